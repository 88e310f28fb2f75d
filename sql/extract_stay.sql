-- How many entities a full extract has, by a row not newer than its time, that don't exist then all the same: a delete
-- newer than the row stands.
-- In:  extract_rows, the extract; extract_history, the history with it; {key}; {at}, microseconds since 1970 UTC.
-- Out: their number.
WITH newest AS (
    SELECT {key}, max(event_time) AS loam_last, arg_max(op, event_time) AS loam_op
    FROM extract_rows
    GROUP BY {key}
)
SELECT count(*)
FROM (
    SELECT {key}
    FROM newest
    WHERE loam_op = 'upsert' AND loam_last <= make_timestamptz({at})
    EXCEPT
    SELECT {key}
    FROM extract_history
    WHERE valid_from <= make_timestamptz({at})
        AND (valid_to IS NULL OR valid_to > make_timestamptz({at}))
);
