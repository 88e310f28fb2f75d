-- All changes of the entities asked for, with what windows over history need of each.
-- In:  log; {entities}(label_key, entity); {key}, the entity's key in g; present, that no part of it is null; recorded, which
--      rows of the log are known; items, for each aggregate that is asked for whether its condition holds, and for each state
--      that one looks at a number that two changes of an entity share if it is the same; names, their names.
-- Out: entity, event_time and ingested_at in microseconds, whether it deletes, {names}; by entity, and of one in the order.
WITH
    topics AS (
        SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash
        FROM (SELECT DISTINCT topic FROM {log})
    ),
    loam_wanted AS (
        SELECT e.entity AS loam_entity, g.*
        FROM {log} g
        JOIN {entities} e ON {key} = e.label_key
        WHERE {present} AND {recorded}
    ),
    valued AS (
        SELECT loam_entity, event_time, ingested_at, sequence, topic, "partition", "offset", op = 'delete' AS deleted, {items}
        FROM loam_wanted
    )
SELECT v.loam_entity, epoch_us(v.event_time), epoch_us(v.ingested_at), v.deleted, {names}
FROM valued v
JOIN topics t USING (topic)
ORDER BY v.loam_entity, v.event_time, v.sequence NULLS FIRST, t.live, t.topic_hash, v."partition", v."offset";
