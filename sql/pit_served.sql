-- Which change each label sees on the clock `served`: the greatest one, in the order, of those ingested by the label's
-- bound. One ASOF join carries one inequality, so the changes are reduced first: in order of ingestion those stay that
-- move the greatest order forward, and of one instant of ingestion the last. Those are what was ever served.
-- In:  asked(label_row, label_time, label_bound, label_key), a row a label;
--      changes(label_key, event_time, sequence, live, topic_hash, "partition", "offset", ingested_at, deleted,
--              change_file, change_row), a row a change of the entities asked for.
-- Out: matched(label_row, label_time, event_time, ingested_at, deleted, change_file, change_row); a label that sees no
--      change has no row.
CREATE OR REPLACE TEMP TABLE matched AS
WITH
    ranked AS (
        SELECT
            *,
            row_number() OVER (
                PARTITION BY label_key
                ORDER BY event_time, sequence NULLS FIRST, live, topic_hash, "partition", "offset"
            ) AS place
        FROM changes
    ),
    advancing AS (
        SELECT *
        FROM ranked
        QUALIFY place = max(place) OVER (
            PARTITION BY label_key
            ORDER BY ingested_at, place
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )
    ),
    served AS (
        SELECT *
        FROM advancing
        QUALIFY row_number() OVER (PARTITION BY label_key, ingested_at ORDER BY place DESC) = 1
    )
SELECT
    a.label_row, a.label_time, c.event_time, c.ingested_at, c.deleted, c.change_file, c.change_row
FROM asked a
ASOF JOIN served c
    ON a.label_key = c.label_key
    AND a.label_bound >= c.ingested_at;
