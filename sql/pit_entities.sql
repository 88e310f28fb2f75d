-- The entities that labels ask for, numbered from 0.
-- In:  asked(label_row, label_time, label_bound, label_key); {entities}, the name of the table to make.
-- Out: {entities}(label_key, entity), a row an entity.
CREATE OR REPLACE TEMP TABLE {entities} AS
SELECT label_key, row_number() OVER () - 1 AS entity
FROM (SELECT DISTINCT label_key FROM asked);
