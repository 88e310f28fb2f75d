-- The labels of an entity's view, with times in microseconds.
-- In:  asked(label_row, label_time, label_bound, label_key).
-- Out: history_labels(label_row, label_key, label_us, bound_us).
CREATE OR REPLACE TEMP TABLE history_labels AS
SELECT
    a.label_row,
    a.label_key,
    epoch_us(a.label_time) AS label_us,
    epoch_us(a.label_bound) AS bound_us
FROM asked a;
