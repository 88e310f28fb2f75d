-- How many changes of a bucket are odd, and in which way.
-- In:  quality_changes.
-- Out: one row of counts. known are those whose ingested_at is not assumed; days, hours, minutes and seconds those at a whole
--      one; settles, follows and judged what is said of quality_changes.
SELECT
    count(*) AS changes,
    count(DISTINCT loam_key) AS keys,
    count(*) FILTER (WHERE loam_settles) AS settles,
    count(*) FILTER (WHERE loam_tied) AS tied,
    count(*) FILTER (WHERE loam_disputed) AS disputed,
    count(*) FILTER (WHERE loam_follows) AS follows,
    count(*) FILTER (WHERE loam_behind) AS behind,
    count(*) FILTER (WHERE loam_late) AS late,
    count(*) FILTER (WHERE loam_ahead) AS ahead,
    count(*) FILTER (WHERE loam_assumed) AS assumed,
    count(*) FILTER (WHERE NOT loam_assumed) AS known,
    count(*) FILTER (WHERE loam_event_us % 86400000000 = 0) AS days,
    count(*) FILTER (WHERE loam_event_us % 3600000000 = 0) AS hours,
    count(*) FILTER (WHERE loam_event_us % 60000000 = 0) AS minutes,
    count(*) FILTER (WHERE loam_event_us % 1000000 = 0) AS seconds,
    count(*) FILTER (WHERE loam_judged) AS judged,
    count(*) FILTER (WHERE loam_sparse) AS sparse
FROM quality_changes;
