-- The labels for which the two clocks could differ in windows over history: some change of their entity, however old, had
-- happened by the label's time, and had not been ingested yet.
-- In:  history_labels(label_row, label_key, label_us); history_changes(label_key, event_us, ingested_us).
-- Out: label_row
SELECT DISTINCT a.label_row
FROM history_labels a
JOIN history_changes c
    ON a.label_key = c.label_key
    AND c.event_us <= a.label_us
    AND c.ingested_us > a.label_us;
