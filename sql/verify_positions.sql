-- The positions of a bucket that more than one row of a log has.
-- In:  verify_whole_log, a log; $1 the number of buckets, $2 the bucket.
-- Out: topic, partition, offset, how many rows; in no order.
SELECT topic, "partition", "offset", count(*) AS loam_rows
FROM verify_whole_log
WHERE hash("offset") % $1::UBIGINT = $2::UBIGINT
GROUP BY topic, "partition", "offset"
HAVING count(*) > 1;
