-- The stored versions of one bucket of keys.
-- In:  verify_history, a state stream's history; {key}; {columns}, the history's; $1 the number of buckets, $2 the bucket.
-- Out: verify_have({columns}).
CREATE OR REPLACE TEMP TABLE verify_have AS
SELECT {columns}
FROM verify_history
WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT;
