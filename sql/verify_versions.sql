-- The versions that the changes of a bucket make.
-- In:  {states}, verify_changes or verify_states; {key}; {changed}, whether a tracked column differs from the state before;
--      {columns}, the history's columns, those not tracked taken from the run's end.
-- Out: verify_want with the columns of the history.
CREATE OR REPLACE TEMP TABLE verify_want AS
WITH
    settled AS (
        SELECT * FROM {states} WHERE loam_settles
    ),
    -- A bound begins a run of equal states, or a gap.
    bounded AS (
        SELECT *, (loam_deleted OR coalesce(lag(loam_deleted) OVER moments, true) OR {changed}) AS loam_bound
        FROM settled
        WINDOW moments AS (PARTITION BY {key} ORDER BY event_time)
    ),
    numbered AS (
        SELECT
            *,
            count(*) FILTER (WHERE loam_bound) OVER moments AS loam_run,
            coalesce(lead(loam_bound) OVER moments, true) AS loam_ends
        FROM bounded
        WINDOW moments AS (PARTITION BY {key} ORDER BY event_time)
    ),
    opened AS (
        SELECT *, lead(event_time) OVER (PARTITION BY {key} ORDER BY event_time) AS loam_to
        FROM numbered
        WHERE loam_bound
    ),
    ended AS (
        SELECT * FROM numbered WHERE loam_ends
    )
SELECT {columns}
FROM opened o
JOIN ended e ON {same_key} AND o.loam_run = e.loam_run
WHERE NOT o.loam_deleted;
