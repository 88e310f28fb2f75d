-- The entities whose history, as it was known at some time, is not a beginning of what is known now: their changes were not
-- ingested in their order, or those of one event time not at once.
-- In:  history_changes(label_key, event_us, ingested_us, place); served, whether the clock is `served`: by the clock `event`
--      there are none, for no change alters what was true before it happened.
-- Out: history_late(label_key)
CREATE OR REPLACE TEMP TABLE history_late AS
WITH
    followed AS (
        SELECT
            label_key,
            ingested_us < lag(ingested_us) OVER places
                OR (event_us = lag(event_us) OVER places AND ingested_us <> lag(ingested_us) OVER places) AS late
        FROM history_changes
        WINDOW places AS (PARTITION BY label_key ORDER BY place)
    )
SELECT DISTINCT label_key
FROM followed
WHERE late AND {served};
