-- All changes of the entities asked for, numbered in the order, with what windows over history need of each.
-- In:  log; asked(label_key); key, and log_key with g before its columns, the expression of the entity's key;
--      present, that no part of it is null; recorded, which rows of the log are known;
--      items, for each aggregate that is asked for its condition c<n> and its state s<n>, a number that two changes of an
--      entity share if what the aggregate looks at is the same; names, their names.
-- Out: history_changes(label_key, event_us, ingested_us, place, deleted, names); times in microseconds.
CREATE OR REPLACE TEMP TABLE history_changes AS
WITH
    topics AS (
        SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash
        FROM (SELECT DISTINCT topic FROM {log})
    ),
    entities AS (
        SELECT DISTINCT label_key FROM asked
    ),
    wanted AS (
        SELECT g.*
        FROM {log} g
        SEMI JOIN entities e ON {log_key} = e.label_key
        WHERE {present} AND {recorded}
    ),
    valued AS (
        SELECT
            {key} AS label_key, event_time, ingested_at, sequence, topic, "partition", "offset", op = 'delete' AS deleted,
            {items}
        FROM wanted
    )
SELECT
    v.label_key,
    epoch_us(v.event_time) AS event_us,
    epoch_us(v.ingested_at) AS ingested_us,
    row_number() OVER (
        PARTITION BY v.label_key
        ORDER BY v.event_time, v.sequence NULLS FIRST, t.live, t.topic_hash, v."partition", v."offset"
    ) AS place,
    v.deleted,
    {names}
FROM valued v
JOIN topics t USING (topic);
