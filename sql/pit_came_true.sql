-- When a condition came true of an entity: the changes whose state meets it where the state before didn't. Of changes at one
-- event time the last in the order counts.
-- In:  states(label_key, event_time, sequence, live, topic_hash, "partition", "offset", holds), a row a change; holds is
--      false for a delete and where the condition is false or null.
-- Out: came_true(label_key, event_time), ascending times a key.
CREATE OR REPLACE TEMP TABLE came_true AS
WITH
    settled AS (
        SELECT *
        FROM states
        QUALIFY row_number() OVER (
            PARTITION BY label_key, event_time
            ORDER BY sequence DESC NULLS LAST, live DESC, topic_hash DESC, "partition" DESC, "offset" DESC
        ) = 1
    ),
    followed AS (
        SELECT
            label_key, event_time, holds,
            lag(holds, 1, false) OVER (PARTITION BY label_key ORDER BY event_time) AS held
        FROM settled
    )
SELECT label_key, event_time
FROM followed
WHERE holds AND NOT held;
