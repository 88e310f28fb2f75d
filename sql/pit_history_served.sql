-- By which moment each label knows its entity's history, on the clock `served`. Where the changes of an entity were ingested
-- in their order, and those of one event time at once, what was known at any time is a beginning of what is known at last: the
-- end of time will do. Else it is the last moment, not after the label's bound, at which a change of the entity was ingested.
-- In:  asked(label_row, label_time, label_bound, label_key); history_changes(label_key, event_us, ingested_us, place).
-- Out: history_labels(label_row, label_key, label_us, bound_us, known_us); times in microseconds. known_us is null where nothing
--      was known.
CREATE OR REPLACE TEMP TABLE history_labels AS
WITH
    followed AS (
        SELECT
            label_key,
            ingested_us < lag(ingested_us) OVER places
                OR (event_us = lag(event_us) OVER places AND ingested_us <> lag(ingested_us) OVER places) AS late
        FROM history_changes
        WINDOW places AS (PARTITION BY label_key ORDER BY place)
    ),
    late_keys AS (
        SELECT DISTINCT label_key FROM followed WHERE late
    ),
    moments AS (
        SELECT DISTINCT c.label_key, c.ingested_us
        FROM history_changes c
        SEMI JOIN late_keys k ON c.label_key = k.label_key
    )
SELECT
    a.label_row,
    a.label_key,
    epoch_us(a.label_time) AS label_us,
    epoch_us(a.label_bound) AS bound_us,
    CASE WHEN k.label_key IS NULL THEN 9223372036854775807 ELSE m.ingested_us END AS known_us
FROM asked a
LEFT JOIN late_keys k ON a.label_key = k.label_key
ASOF LEFT JOIN moments m
    ON a.label_key = m.label_key
    AND epoch_us(a.label_bound) >= m.ingested_us;
