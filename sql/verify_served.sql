-- The last change, in the order, of every entity of a bucket, deletes included: what is served. The order is the text
-- that Redis keeps as _v, put together here.
-- In:  verify_log, a state stream's log; {key}, the key's columns, and {columns}, all that is needed of a change, both of
--      g; {only}, which entities; {same_key}, that o and n have the same key; {key_alone}; $1 the number of buckets, $2
--      the bucket.
-- Out: verify_served({columns}, loam_order, loam_deleted), a row an entity.
CREATE OR REPLACE TEMP TABLE verify_served AS
WITH
    topics AS (
        SELECT
            topic AS loam_topic,
            CASE WHEN topic LIKE 'file:%' OR topic LIKE 'redrive:%' THEN '0' ELSE '1' END || left(sha256(topic), 8) AS loam_rank
        FROM (SELECT DISTINCT topic FROM verify_log)
    ),
    ordered AS (
        SELECT
            {columns},
            g.op = 'delete' AS loam_deleted,
            printf('%016x', (epoch_us(g.event_time)::HUGEINT + 9223372036854775808)::UBIGINT)
                || coalesce('1' || printf('%016x', (g.sequence::HUGEINT + 9223372036854775808)::UBIGINT), '0')
                || t.loam_rank
                || printf('%06x', g."partition")
                || printf('%012x', g."offset") AS loam_order
        FROM verify_log g
        JOIN topics t ON g.topic = t.loam_topic
        WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT AND {only}
    ),
    newest AS (
        SELECT {key_alone}, max(loam_order) AS loam_order
        FROM ordered
        GROUP BY {key_alone}
    )
SELECT o.*
FROM ordered o
JOIN newest n ON {same_key} AND o.loam_order = n.loam_order;
