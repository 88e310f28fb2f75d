-- The entities that exist at a time: just before it, and not ended by it.
-- In:  extract_history, a history; {key}; {at}, microseconds since 1970 UTC.
-- Out: the key; in no order.
SELECT DISTINCT {key}
FROM extract_history
WHERE valid_from < make_timestamptz({at})
    AND (valid_to IS NULL OR valid_to > make_timestamptz({at}));
