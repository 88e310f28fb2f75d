-- A few keys of a bucket's rows.
-- In:  {rows}, quality_changes or quality_versions; {condition}, which rows; $1 how many keys.
-- Out: keys as text, in their order.
SELECT DISTINCT loam_key
FROM {rows}
WHERE {condition}
ORDER BY loam_key
LIMIT $1;
