-- How many entities without a row in a full extract have changed at a time or later, deletes apart.
-- In:  extract_rows, the extract; extract_log, a log; {key}; {at}, microseconds since 1970 UTC.
-- Out: their number.
SELECT count(*)
FROM (
    SELECT {key}
    FROM extract_log
    WHERE op = 'upsert' AND event_time >= make_timestamptz({at})
    EXCEPT
    SELECT {key} FROM extract_rows
);
