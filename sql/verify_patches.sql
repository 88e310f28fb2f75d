-- The changes of a patch stream, each with the whole state that it leaves instead of the fields that it carried: a field
-- has the value it was last carried with since the entity came into being.
-- In:  verify_changes with the column present; {key}, {kept}, the columns that stay as they are, and {carried}, for each
--      other column its value over the windows and its name.
-- Out: verify_states({kept}, {carried}).
CREATE OR REPLACE TEMP TABLE verify_states AS
WITH
    lives AS (
        SELECT *, count(*) FILTER (WHERE loam_deleted) OVER (PARTITION BY {key} ORDER BY loam_place) AS loam_life
        FROM verify_changes
    )
SELECT {kept}, {carried}
FROM lives
WINDOW so_far AS (PARTITION BY {key}, loam_life ORDER BY loam_place ROWS UNBOUNDED PRECEDING);
