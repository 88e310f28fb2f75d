-- All changes of one entity, in their order.
-- In:  changes, the entity's rows of a state stream's log; {values}, the stream's columns as text; {present}, the names of
--      the columns that a patch carries, joined by commas, null for a change that carries all.
-- Out: {values}, {present}, event_time, recorded_at and ingested_at in microseconds, sequence, op, event_id, event_type,
--      source, actor, reason, topic, partition, offset; in the one order.
SELECT
    {values},
    {present},
    epoch_us(event_time),
    epoch_us(recorded_at),
    epoch_us(ingested_at),
    sequence,
    op,
    event_id,
    event_type,
    source,
    actor,
    reason,
    topic,
    "partition",
    "offset"
FROM changes
ORDER BY event_time, sequence NULLS FIRST, topic_live(topic), topic_hash(topic), "partition", "offset";
