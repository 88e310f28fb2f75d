-- The labels for which the two clocks could differ: some change of their entity had happened by the label's time, within
-- the view's time to live, and had not been ingested yet.
-- In:  asked(label_row, label_time, label_bound, label_key); changes(label_key, event_time, ingested_at);
--      $1 the time to live in microseconds, 0 for none.
-- Out: label_row
SELECT DISTINCT a.label_row
FROM asked a
JOIN changes c
    ON a.label_key = c.label_key
    AND c.event_time <= a.label_time
    AND c.ingested_at > a.label_time
WHERE $1 = 0 OR epoch_us(a.label_time) - epoch_us(c.event_time) <= $1;
