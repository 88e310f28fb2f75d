-- What is odd of each change of one bucket of keys.
-- In:  quality_log, a state stream's log cut to its history's offsets; {columns}, the key and what is needed of a change;
--      {key}; {key_text}, the key as text; {disputes}, a list of the tracked columns in which a change differs from the one
--      before it in the window ties, null for the others; {lost} and {back}, such lists of the columns that became null, and
--      of those among them that the next change has again, over the window places; $1 the number of buckets, $2 the bucket, $3 how
--      many microseconds after recorded_at an event time may be.
-- Out: quality_changes, a row a change:
--      loam_key                       the key as text
--      loam_event_us, loam_ingested_us, loam_assumed
--      loam_settles                   it is the last of its event time
--      loam_tied, loam_disputed       another change of the key has its event time and sequence; and one of those disagrees
--      loam_disputes                  where it disagrees with the one before it: tracked columns, or op where one deletes
--      loam_follows, loam_behind      its partition has an earlier change of the key; and one with a later event time
--      loam_late                      a change of the key with a later event time was recorded before it
--      loam_ahead                     its event time is more than that after it was recorded
--      loam_judged                    it, the one before and the one after it exist and are no deletes
--      loam_lost                      tracked columns that it made null
--      loam_sparse                    it made several null, and the next change has some of them again
CREATE OR REPLACE TEMP TABLE quality_changes AS
WITH
    topics AS (
        SELECT topic AS loam_topic, topic_live(topic) AS loam_live, topic_hash(topic) AS loam_hash
        FROM (SELECT DISTINCT topic FROM quality_log)
    ),
    changes AS (
        SELECT {columns}, op = 'delete' AS loam_deleted, epoch_us(recorded_at) AS loam_recorded_us, loam_live, loam_hash
        FROM quality_log
        JOIN topics ON topic = loam_topic
        WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT
    ),
    compared AS (
        SELECT
            {key},
            {key_text} AS loam_key,
            event_time,
            sequence,
            epoch_us(event_time) AS loam_event_us,
            loam_recorded_us,
            epoch_us(ingested_at) AS loam_ingested_us,
            coalesce(ingested_assumed, false) AS loam_assumed,
            loam_deleted,
            lead(event_time) OVER places IS DISTINCT FROM event_time AS loam_settles,
            count(*) OVER (PARTITION BY {key}, event_time, sequence) > 1 AS loam_tied,
            CASE
                WHEN row_number() OVER ties = 1 THEN []
                WHEN loam_deleted <> lag(loam_deleted) OVER ties THEN ['op']
                WHEN loam_deleted THEN []
                ELSE list_filter({disputes}, lambda name: name IS NOT NULL)
            END AS loam_disputes,
            row_number() OVER arrivals > 1 AS loam_follows,
            coalesce(event_time < max(event_time) OVER earlier_of_partition, false) AS loam_behind,
            coalesce(event_time < max(event_time) OVER earlier, false) AS loam_overtaken,
            NOT loam_deleted AND NOT coalesce(lag(loam_deleted) OVER places, true) AND NOT coalesce(lead(loam_deleted) OVER places, true) AS loam_judged,
            list_filter({lost}, lambda name: name IS NOT NULL) AS loam_lost,
            list_filter({back}, lambda name: name IS NOT NULL) AS loam_back
        FROM changes
        WINDOW
            places AS (PARTITION BY {key} ORDER BY event_time, sequence NULLS FIRST, loam_live, loam_hash, "partition", "offset"),
            ties AS (PARTITION BY {key}, event_time, sequence ORDER BY loam_live, loam_hash, "partition", "offset"),
            arrivals AS (PARTITION BY {key}, topic, "partition" ORDER BY "offset"),
            earlier_of_partition AS (
                PARTITION BY {key}, topic, "partition" ORDER BY "offset" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            earlier AS (PARTITION BY {key} ORDER BY loam_recorded_us RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    )
SELECT
    loam_key, loam_event_us, loam_ingested_us, loam_assumed, loam_settles, loam_tied,
    bool_or(len(loam_disputes) > 0) OVER (PARTITION BY {key}, event_time, sequence) AS loam_disputed,
    loam_disputes, loam_follows, loam_behind, loam_behind OR loam_overtaken AS loam_late,
    loam_event_us > loam_recorded_us + $3::BIGINT AS loam_ahead,
    loam_judged, loam_lost, loam_judged AND len(loam_lost) > 1 AND len(loam_back) > 0 AS loam_sparse
FROM compared;
