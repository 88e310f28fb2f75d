-- The stored versions of a bucket that break a rule of intervals by themselves.
-- In:  verify_have; {key}; {key_text}, the key as text.
-- Out: loam_key, loam_from, loam_kind, a row a broken rule, in no order.
WITH
    ordered AS (
        SELECT
            {key_text} AS loam_key,
            valid_from,
            valid_to,
            is_current,
            lead(valid_from) OVER moments AS next_from,
            count(*) FILTER (WHERE is_current) OVER (PARTITION BY {key}) AS open_versions,
            row_number() OVER (PARTITION BY {key}, is_current ORDER BY valid_from DESC) AS nth_of_kind
        FROM verify_have
        WINDOW moments AS (PARTITION BY {key} ORDER BY valid_from, valid_to)
    ),
    judged AS (
        SELECT
            loam_key,
            valid_from AS loam_from,
            [
                CASE WHEN valid_from IS NULL OR valid_to <= valid_from THEN 'empty_interval' END,
                CASE WHEN next_from < coalesce(valid_to, 'infinity'::TIMESTAMPTZ) THEN 'overlap' END,
                CASE WHEN is_current IS DISTINCT FROM (valid_to IS NULL) THEN 'current_flag' END,
                CASE WHEN is_current AND open_versions > 1 AND nth_of_kind = 1 THEN 'open_versions' END
            ] AS loam_kinds
        FROM ordered
    )
SELECT loam_key, loam_from, loam_kind
FROM (SELECT loam_key, loam_from, unnest(loam_kinds) AS loam_kind FROM judged)
WHERE loam_kind IS NOT NULL;
