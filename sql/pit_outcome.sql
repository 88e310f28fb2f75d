-- Whether a condition came true of each label's entity in (t, t + within].
-- In:  judged(label_row, label_time, label_key), a row a label with a time and a key; came_true(label_key, event_time);
--      {within} in microseconds.
-- Out: label_row, came
SELECT
    j.label_row,
    coalesce(epoch_us(c.event_time) - epoch_us(j.label_time) <= {within}, false) AS came
FROM judged j
ASOF LEFT JOIN came_true c
    ON j.label_key = c.label_key
    AND j.label_time < c.event_time
