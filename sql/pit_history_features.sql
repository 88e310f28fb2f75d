-- The features of windows over history: of each label what it sees of its entity's history, as far as its widest window, or the
-- last change, needs it. What nothing seen follows stands until the label's time.
-- In:  history_labels; history_steps; history_spans; floors, the starts of the windows in microseconds; reach, whether a step of s
--      with a follower that the label sees is needed; flags, the names of f<n> and last<n> of s; features, the aggregates over
--      seen s.
-- Out: table(label_row, loam_newest_us, a column a feature); labels that see no change have no row.
CREATE OR REPLACE TEMP TABLE {table} AS
WITH
    framed AS (
        SELECT *, {floors} FROM history_labels
    ),
    seen AS (
        SELECT
            a.*, s.event_us, s.clock_us,
            CASE WHEN s.next_clock_us <= a.bound_us THEN least(s.next_us, a.label_us) ELSE a.label_us END AS end_us,
            {flags}
        FROM framed a
        JOIN history_steps s
            ON a.label_key = s.label_key
            AND s.clock_us <= a.bound_us
            AND (s.next_clock_us IS NULL OR s.next_clock_us > a.bound_us OR {reach})
        UNION ALL
        SELECT
            a.*, s.event_us, s.clock_us,
            least(s.next_us, a.label_us) AS end_us,
            {flags}
        FROM framed a
        JOIN history_spans s
            ON a.label_key = s.label_key
            AND s.from_us <= a.bound_us
            AND (s.to_us IS NULL OR s.to_us > a.bound_us)
    )
SELECT s.label_row, max(s.clock_us) AS loam_newest_us, {features}
FROM seen s
GROUP BY s.label_row;
