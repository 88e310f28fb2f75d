-- Which change each label sees on the clock `event`: the last one, in the order, with an event time not after the
-- label's bound.
-- In:  asked(label_row, label_time, label_bound, label_key), a row a label;
--      changes(label_key, event_time, sequence, live, topic_hash, "partition", "offset", ingested_at, deleted,
--              change_file, change_row), a row a change of the entities asked for.
-- Out: matched(label_row, label_time, event_time, ingested_at, deleted, change_file, change_row); a label that sees no
--      change has no row.
CREATE OR REPLACE TEMP TABLE matched AS
WITH
    settled AS (
        SELECT *
        FROM changes
        QUALIFY row_number() OVER (
            PARTITION BY label_key, event_time
            ORDER BY sequence DESC NULLS LAST, live DESC, topic_hash DESC, "partition" DESC, "offset" DESC
        ) = 1
    )
SELECT
    a.label_row, a.label_time, c.event_time, c.ingested_at, c.deleted, c.change_file, c.change_row
FROM asked a
ASOF JOIN settled c
    ON a.label_key = c.label_key
    AND a.label_bound >= c.event_time;
