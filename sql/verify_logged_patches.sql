-- What each row of a view over a patch stream rests on, guard by guard, and what it should have rested on. A guard is the name of a
-- column, '_d' of the last delete, or '' of the newest change.
-- In:  verify_logged; verify_changes, with loam_moves, the names of the guards that a change moves; {guards}, rows of the name of a
--      guard and a list of the features that rest on it, null for all; {same_key}, that l and c have the same key; {features},
--      an expression a feature over the columns of the change that was seen as its guard, with its name, and {names}, the names.
-- Out: of each row of verify_logged, and each guard that a feature of it rests on: the row's time, request, entity, features, values
--      and statuses; its number; the guard's name and the order that was seen of it; the greatest order that it should have had:
--      Redis had taken that change by then, as the marks say or another guard of the row; whether the change that was seen moves
--      it, null where the log has none such of the entity; that change's event time in microseconds; the features that rest
--      on the guard; by number.
WITH
    named AS (SELECT * FROM (VALUES {guards}) AS v(loam_guard, loam_readers)),
    guarded AS (
        SELECT
            l.*,
            n.loam_guard,
            CASE WHEN n.loam_guard = '' THEN l.loam_seen
                ELSE l.loam_guard_values[list_position(l.loam_guards, n.loam_guard)] END AS loam_was,
            -- A delete takes the guards of columns away.
            CASE WHEN n.loam_guard NOT IN ('', '_d')
                THEN l.loam_guard_values[list_position(l.loam_guards, '_d')] END AS loam_delete
        FROM verify_logged l
        JOIN named n ON n.loam_readers IS NULL OR list_has_any(n.loam_readers, l.loam_features)
    ),
    missed AS (
        SELECT l.loam_n, l.loam_guard, max(c.loam_order) AS loam_missed
        FROM guarded l
        JOIN verify_changes c
            ON {same_key}
            AND list_contains(c.loam_moves, l.loam_guard)
            AND c.loam_order > coalesce(l.loam_was, '')
            AND c.loam_order > coalesce(l.loam_delete, '')
            AND (
                c."offset" < l.loam_mark_offsets[list_position(l.loam_marks, c.loam_source)]
                OR c.loam_order = l.loam_seen
                OR list_contains(l.loam_guard_values, c.loam_order)
            )
        GROUP BY l.loam_n, l.loam_guard
    ),
    chosen AS (
        SELECT l.loam_n, l.loam_guard, c.*
        FROM guarded l
        JOIN verify_changes c ON {same_key} AND c.loam_order = l.loam_was
    ),
    seen AS (
        SELECT
            loam_n,
            loam_guard,
            event_time AS loam_event_time,
            list_contains(loam_moves, loam_guard) AS loam_moved,
            {features}
        FROM chosen
    )
SELECT
    l.loam_at, l.loam_request, l.loam_entity, l.loam_features, l.loam_values, l.loam_statuses,
    l.loam_n,
    l.loam_guard,
    l.loam_was,
    m.loam_missed,
    s.loam_moved,
    epoch_us(s.loam_event_time) AS loam_event_time,
    {names}
FROM guarded l
LEFT JOIN missed m ON l.loam_n = m.loam_n AND l.loam_guard = m.loam_guard
LEFT JOIN seen s ON l.loam_n = s.loam_n AND l.loam_guard = s.loam_guard
ORDER BY l.loam_n;
