-- All patches of the entities asked for, narrow and in their order, which is that of the table's rows.
-- In:  log; {entities}(label_key, entity); {key}, the entity's key in g; present, that no part of it is null; recorded, which
--      rows of the log are known; {items}, the columns that are looked at and whether each is carried, a comma before each.
-- Out: loam_patches(loam_entity, loam_event, loam_ingested, loam_deleted, {items}), times in microseconds; by entity, and of one
--      in the order.
CREATE OR REPLACE TEMP TABLE loam_patches AS
WITH
    topics AS (
        SELECT topic AS loam_topic, topic_live(topic) AS loam_live, topic_hash(topic) AS loam_topic_hash
        FROM (SELECT DISTINCT topic FROM {log})
    )
SELECT
    e.entity AS loam_entity,
    epoch_us(g.event_time) AS loam_event,
    epoch_us(g.ingested_at) AS loam_ingested,
    g.op = 'delete' AS loam_deleted
    {items}
FROM {log} g
JOIN topics t ON g.topic = t.loam_topic
JOIN {entities} e ON {key} = e.label_key
WHERE {present} AND {recorded}
ORDER BY e.entity, g.event_time, g.sequence NULLS FIRST, t.loam_live, t.loam_topic_hash, g."partition", g."offset";
