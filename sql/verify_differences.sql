-- Where the stored versions of a bucket are not those that the changes make.
-- In:  verify_want, verify_have; {key}; {same_key}, that the keys of w and h are the same; {either_key}, the key of the one
--      that there is; {differing}, a list with the name of every column that differs and null for the others.
-- Out: verify_differences({key}, loam_from, loam_kind, loam_columns): loam_kind is missing, extra or differs.
CREATE OR REPLACE TEMP TABLE verify_differences AS
WITH
    -- Two stored rows of one key and one valid_from must not both be taken for the one that is wanted.
    want AS (
        SELECT *, row_number() OVER (PARTITION BY {key}, valid_from ORDER BY "offset") AS loam_nth FROM verify_want
    ),
    have AS (
        SELECT *, row_number() OVER (PARTITION BY {key}, valid_from ORDER BY "offset") AS loam_nth FROM verify_have
    ),
    paired AS (
        SELECT
            {either_key},
            coalesce(w.valid_from, h.valid_from) AS loam_from,
            CASE WHEN h.loam_nth IS NULL THEN 'missing' WHEN w.loam_nth IS NULL THEN 'extra' ELSE 'differs' END AS loam_kind,
            list_filter({differing}, lambda name: name IS NOT NULL) AS loam_columns
        FROM want w
        FULL JOIN have h
            ON {same_key}
            AND w.valid_from IS NOT DISTINCT FROM h.valid_from
            AND w.loam_nth = h.loam_nth
    )
SELECT *
FROM paired
WHERE loam_kind <> 'differs' OR len(loam_columns) > 0;
