-- What changed from version to version of one bucket of keys.
-- In:  quality_history, a state stream's history; {key}; {key_text}, the key as text; {changed}, a list of the tracked columns
--      that differ from the version before over the window moments, null for the others; $1 the number of buckets, $2 the
--      bucket.
-- Out: quality_versions, a row a version:
--      loam_key                            the key as text
--      loam_follows, loam_created_again    it follows another without a gap, or after one
--      loam_deleted                        a gap, or nothing, follows its end
--      loam_changed                        tracked columns that differ from the version that it follows without a gap
CREATE OR REPLACE TEMP TABLE quality_versions AS
SELECT
    {key_text} AS loam_key,
    coalesce(lag(valid_to) OVER moments = valid_from, false) AS loam_follows,
    coalesce(lag(valid_to) OVER moments < valid_from, false) AS loam_created_again,
    valid_to IS NOT NULL AND lead(valid_from) OVER moments IS DISTINCT FROM valid_to AS loam_deleted,
    CASE
        WHEN lag(valid_to) OVER moments = valid_from THEN list_filter({changed}, lambda name: name IS NOT NULL)
        ELSE []
    END AS loam_changed
FROM quality_history
WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT
WINDOW moments AS (PARTITION BY {key} ORDER BY valid_from);
