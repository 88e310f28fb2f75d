-- The greatest change of each entity, in the order, deletes included: what is served now.
-- In:  log, a stream's log with loam_file and loam_row; $-free.
--      key is the columns of the entity's key.
-- Out: newest(change_file, change_row), a row an entity.
--
-- Few changes are of their entity's last event time; the rest of the order is looked at in those alone.
CREATE OR REPLACE TEMP TABLE newest AS
WITH
    topics AS (
        SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash
        FROM (SELECT DISTINCT topic FROM log)
    ),
    last_times AS (
        SELECT {key}, max(event_time) AS event_time
        FROM log
        GROUP BY {key}
    )
SELECT g.loam_file AS change_file, g.loam_row AS change_row
FROM log g
JOIN last_times USING ({key}, event_time)
JOIN topics t USING (topic)
QUALIFY row_number() OVER (
    PARTITION BY {key}
    ORDER BY
        g.sequence DESC NULLS LAST, t.live DESC, t.topic_hash DESC, g."partition" DESC, g."offset" DESC
) = 1;
