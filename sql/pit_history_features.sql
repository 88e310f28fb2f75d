-- The features of windows over history: of each label the steps that it sees and that its widest window, or the last change,
-- needs. A step that nothing seen follows stands until the label's time.
-- In:  history_labels; history_steps; floors, the starts of the windows in microseconds; reach, whether a step of s with a
--      follower that the label sees is needed; features, the aggregates over spans s.
-- Out: table(label_row, loam_newest_us, a column a feature); labels that see no change have no row.
CREATE OR REPLACE TEMP TABLE {table} AS
WITH
    framed AS (
        SELECT *, {floors} FROM history_labels
    ),
    spans AS (
        SELECT
            a.*,
            s.* EXCLUDE (label_key, known_us),
            CASE WHEN s.next_clock_us <= a.bound_us THEN least(s.next_us, a.label_us) ELSE a.label_us END AS end_us
        FROM framed a
        JOIN history_steps s
            ON a.label_key = s.label_key
            AND a.known_us = s.known_us
            AND s.clock_us <= a.bound_us
            AND (s.next_clock_us IS NULL OR s.next_clock_us > a.bound_us OR {reach})
    )
SELECT s.label_row, max(s.clock_us) AS loam_newest_us, {features}
FROM spans s
GROUP BY s.label_row;
