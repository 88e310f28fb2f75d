-- All changes of the entities that were served, with their order as the text that Redis keeps as _v, put together here.
-- In:  verify_log, a state stream's log; verify_logged; {key}, the key's columns of g, {key_alone} without it, and {columns}, all
--      that is needed of a change, of g.
-- Out: verify_changes({columns}, loam_order, loam_deleted, loam_source, as marks name it).
CREATE OR REPLACE TEMP TABLE verify_changes AS
WITH
    topics AS (
        SELECT
            topic AS loam_topic,
            CASE WHEN topic LIKE 'file:%' OR topic LIKE 'redrive:%' THEN '0' ELSE '1' END || left(sha256(topic), 8) AS loam_rank
        FROM (SELECT DISTINCT topic FROM verify_log)
    )
SELECT
    {columns},
    g.op = 'delete' AS loam_deleted,
    g.topic || ':' || g."partition" AS loam_source,
    printf('%016x', (epoch_us(g.event_time)::HUGEINT + 9223372036854775808)::UBIGINT)
        || coalesce('1' || printf('%016x', (g.sequence::HUGEINT + 9223372036854775808)::UBIGINT), '0')
        || t.loam_rank
        || printf('%06x', g."partition")
        || printf('%012x', g."offset") AS loam_order
FROM verify_log g
JOIN topics t ON g.topic = t.loam_topic
WHERE ({key}) IN (SELECT {key_alone} FROM verify_logged);
