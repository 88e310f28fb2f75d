-- The events of a bucket of a windowed view's entities, with what aggregates take of them.
-- In:  verify_log, an event stream's log; {key}, the entity's join keys in g; {known}, that none of them is null; {only},
--      which entities; {items}, columns and conditions of the aggregates, a comma before each; verify_partitions(topic,
--      "partition", base, mark), how far the generation's base and what was written to it go, all text; $1 the number of
--      buckets, $2 the bucket.
-- Out: verify_tile_events({key}, loam_at in microseconds, loam_topic, loam_partition, loam_offset, loam_order as Redis
--      keeps it, loam_other: it came of a file or a redrive, loam_live: it is past the base, loam_behind: Redis isn't
--      written up to it, {items}).
CREATE OR REPLACE TEMP TABLE verify_tile_events AS
WITH
    topics AS (
        SELECT
            topic AS loam_topic,
            CASE WHEN topic LIKE 'file:%' OR topic LIKE 'redrive:%' THEN '0' ELSE '1' END AS loam_rank,
            left(sha256(topic), 8) AS loam_hash
        FROM (SELECT DISTINCT topic FROM verify_log)
    )
SELECT
    {key},
    epoch_us(g.event_time) AS loam_at,
    t.loam_hash || ':' || g."partition" AS loam_source,
    g."offset" AS loam_offset,
    printf('%016x', (epoch_us(g.event_time)::HUGEINT + 9223372036854775808)::UBIGINT)
        || coalesce('1' || printf('%016x', (g.sequence::HUGEINT + 9223372036854775808)::UBIGINT), '0')
        || t.loam_rank
        || t.loam_hash
        || printf('%06x', g."partition")
        || printf('%012x', g."offset") AS loam_order,
    t.loam_rank = '0' OR coalesce(g.job_id LIKE 'redrive-%', false) AS loam_other,
    t.loam_rank = '1' AND g."offset" >= coalesce(p.base::BIGINT, 0) AS loam_live,
    t.loam_rank = '1' AND g."offset" >= coalesce(p.mark::BIGINT, 0) AS loam_behind
    {items}
FROM verify_log g
JOIN topics t ON g.topic = t.loam_topic
LEFT JOIN verify_partitions p ON g.topic = p.topic AND g."partition"::VARCHAR = p."partition"
WHERE {known} AND hash({key}) % $1::UBIGINT = $2::UBIGINT AND {only};
