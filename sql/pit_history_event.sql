-- By which moment each label knows its entity's history, on the clock `event`: at the end of time. What is true by the label's
-- bound is then a beginning of that history, for no change alters what was true before it happened.
-- In:  asked(label_row, label_time, label_bound, label_key).
-- Out: history_labels(label_row, label_key, label_us, bound_us, known_us); times in microseconds.
CREATE OR REPLACE TEMP TABLE history_labels AS
SELECT
    a.label_row,
    a.label_key,
    epoch_us(a.label_time) AS label_us,
    epoch_us(a.label_bound) AS bound_us,
    9223372036854775807 AS known_us
FROM asked a;
