-- What the changes of a patch stream make of every entity of a bucket: its last change, in the order, its last delete, and
-- of each column that a view reads the last change that carried it since. Orders are the texts that Redis keeps, put
-- together here. No arg_max: of a struct or a list it gives 0.0 for -0.0.
-- In:  verify_log, a patch stream's log; {key}, the key's columns of g; {key_alone}; {columns}, the other columns read, of
--      g, each with a comma before it; {carried}, for each column read whether an upsert carried it; {items}, for each of
--      them the order of its guard, and but for the key's the value, both over so_far; {only}, which entities; $1 the
--      number of buckets, $2 the bucket.
-- Out: verify_served({key_alone}, event_time, topic, partition, offset, loam_order, loam_deleted, {items}), a row an
--      entity; loam_deleted is the order of its last delete.
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
            {key} {columns},
            g.event_time,
            g.topic,
            g."partition",
            g."offset",
            g.op = 'delete' AS loam_deletes,
            {carried},
            printf('%016x', (epoch_us(g.event_time)::HUGEINT + 9223372036854775808)::UBIGINT)
                || coalesce('1' || printf('%016x', (g.sequence::HUGEINT + 9223372036854775808)::UBIGINT), '0')
                || t.loam_rank
                || printf('%06x', g."partition")
                || printf('%012x', g."offset") AS loam_order
        FROM verify_log g
        JOIN topics t ON g.topic = t.loam_topic
        WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT AND {only}
    ),
    lives AS (
        SELECT *, max(loam_order) FILTER (WHERE loam_deletes) OVER (PARTITION BY {key_alone}) AS loam_delete
        FROM ordered
    )
SELECT {key_alone}, event_time, topic, "partition", "offset", loam_order, loam_delete AS loam_deleted, {items}
FROM lives
WINDOW so_far AS (PARTITION BY {key_alone} ORDER BY loam_order ROWS UNBOUNDED PRECEDING)
QUALIFY loam_order = max(loam_order) OVER (PARTITION BY {key_alone});
