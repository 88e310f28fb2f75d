-- The entities that exist at the time of a full extract, have no row in it, and have no change at that very time, which
-- would be taken as made after the extract.
-- In:  extract_existing, keys; extract_rows, the extract; extract_log, a log; {key}; {at}, microseconds since 1970 UTC.
-- Out: the key; in its order.
WITH changed AS (
    SELECT {key}
    FROM extract_log
    WHERE op = 'upsert' AND event_time = make_timestamptz({at})
)
SELECT {key}
FROM (
    FROM extract_existing
    EXCEPT (
        SELECT {key} FROM extract_rows
        UNION ALL
        SELECT {key} FROM changed
    )
)
ORDER BY {key};
