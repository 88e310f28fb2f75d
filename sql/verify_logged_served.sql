-- What each row that was served rests on, and what it should have rested on.
-- In:  verify_logged and verify_changes, {same_key}, that l and c have the same key, {features}, an expression a feature over the
--      columns of the change that was seen, with its name, and {names}, the names.
-- Out: a row of verify_logged: its time, request, entity, features, values, statuses and guard; the greatest change that Redis had
--      taken by then, as the marks say, beyond the one that was seen; whether the change that was seen is in the log, its event
--      time in microseconds and whether it is a delete; the features; by time.
WITH
    missed AS (
        SELECT l.loam_n, max(c.loam_order) AS loam_missed
        FROM verify_logged l
        JOIN verify_changes c
            ON {same_key}
            AND c.loam_order > coalesce(l.loam_seen, '')
            AND c."offset" < l.loam_mark_offsets[list_position(l.loam_marks, c.loam_source)]
        GROUP BY l.loam_n
    ),
    chosen AS (
        SELECT l.loam_n, c.*
        FROM verify_logged l
        JOIN verify_changes c ON {same_key} AND c.loam_order = l.loam_seen
    ),
    seen AS (
        SELECT loam_n, epoch_us(event_time) AS loam_event_time, loam_deleted, {features}
        FROM chosen
    )
SELECT
    l.loam_at, l.loam_request, l.loam_entity, l.loam_features, l.loam_values, l.loam_statuses, l.loam_seen,
    m.loam_missed,
    s.loam_n IS NOT NULL AS loam_found,
    s.loam_event_time,
    coalesce(s.loam_deleted, false) AS loam_deleted,
    {names}
FROM verify_logged l
LEFT JOIN missed m ON l.loam_n = m.loam_n
LEFT JOIN seen s ON l.loam_n = s.loam_n
ORDER BY l.loam_n;
