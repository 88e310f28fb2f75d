-- All versions of one entity.
-- In:  versions, the entity's rows of a state stream's history; {values}, the stream's columns as text.
-- Out: {values}, valid_from, valid_to and ingested_at in microseconds, event_id, topic, partition, offset; in order of time.
SELECT
    {values},
    epoch_us(valid_from),
    epoch_us(valid_to),
    epoch_us(ingested_at),
    event_id,
    topic,
    "partition",
    "offset"
FROM versions
ORDER BY valid_from;
