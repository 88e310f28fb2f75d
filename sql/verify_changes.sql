-- The changes of one bucket of keys, each with its place in the order of its key.
-- In:  verify_log, a state stream's log cut to its history's offsets; {key}, the key's columns, and {columns}, all that is
--      needed of a change, both of g; $1 the number of buckets, $2 the bucket.
-- Out: verify_changes({columns}, loam_deleted, loam_place, loam_settles): loam_settles marks the last change of an event
--      time, which alone decides what is true from then on.
CREATE OR REPLACE TEMP TABLE verify_changes AS
WITH
    topics AS (
        SELECT
            topic AS loam_topic,
            CASE WHEN topic LIKE 'file:%' OR topic LIKE 'redrive:%' THEN 0 ELSE 1 END AS loam_live,
            left(sha256(topic), 8) AS loam_hash
        FROM (SELECT DISTINCT topic FROM verify_log)
    )
SELECT
    {columns},
    g.op = 'delete' AS loam_deleted,
    row_number() OVER places AS loam_place,
    lead(g.event_time) OVER places IS DISTINCT FROM g.event_time AS loam_settles
FROM verify_log g
JOIN topics t ON g.topic = t.loam_topic
WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT
WINDOW places AS (
    PARTITION BY {key}
    ORDER BY g.event_time, g.sequence NULLS FIRST, t.loam_live, t.loam_hash, g."partition", g."offset"
);
