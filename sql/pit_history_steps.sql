-- The histories of the entities whose changes came in their order: a step for each event time that has a change, the last in the
-- order, which stands until the next.
-- In:  history_late(label_key); history_changes(label_key, event_us, ingested_us, place, deleted, c<n>, s<n>);
--      clock, the clock's time of a change; flags, f<n>, whether the aggregate counts the step, over the window steps;
--      lasts, last<n>, the last event_us with f<n>, over the window so_far.
-- Out: history_steps(label_key, event_us, clock_us, next_us, next_clock_us, f<n>, last<n>).
CREATE OR REPLACE TEMP TABLE history_steps AS
WITH
    settled AS (
        SELECT c.*
        FROM history_changes c
        ANTI JOIN history_late k ON c.label_key = k.label_key
        QUALIFY c.place = max(c.place) OVER (PARTITION BY c.label_key, c.event_us)
    ),
    stepped AS (
        SELECT
            label_key,
            event_us,
            {clock} AS clock_us,
            lead(event_us) OVER steps AS next_us,
            lead({clock}) OVER steps AS next_clock_us,
            {flags}
        FROM settled
        WINDOW steps AS (PARTITION BY label_key ORDER BY event_us)
    )
SELECT *, {lasts}
FROM stepped
WINDOW so_far AS (PARTITION BY label_key ORDER BY event_us);
