-- How many versions of a bucket there are of each sort.
-- In:  quality_versions.
-- Out: one row of counts.
SELECT
    count(*) AS versions,
    count(*) FILTER (WHERE loam_follows) AS successors,
    count(*) FILTER (WHERE loam_created_again) AS created_again,
    count(*) FILTER (WHERE loam_deleted) AS deleted
FROM quality_versions;
