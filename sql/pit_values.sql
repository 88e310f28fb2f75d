-- The features of the labels that see a change, each null where that is a delete or too old.
-- In:  {log}, a log with loam_file and loam_row; matched(loam_label_row, loam_place, loam_alive), a row a label that sees a
--      change; {items}, the features' expressions; {clock}, the column of the clock's time; {only}, the condition that
--      those changes meet all, which spares reading the values of others.
-- Out: {table}(label_row, loam_time, {items}): loam_time is the clock's time of the change.
CREATE OR REPLACE TEMP TABLE {table} AS
SELECT loam_label_row AS label_row, {clock} AS loam_time, {items}
FROM {log}
JOIN matched ON (loam_file << 32) + loam_row = loam_place
WHERE {only};
