-- The histories of the entities asked for, each as it was known at the moments that labels ask of: a step for each event time
-- that has a change, the last in the order, which stands until the next.
-- In:  history_labels(label_key, known_us); history_changes(label_key, event_us, ingested_us, place, deleted, c<n>, s<n>);
--      clock, the clock's time of a change; flags, f<n>, whether the aggregate counts the step, over the window steps;
--      lasts, last<n>, the last event_us with f<n>, over the window so_far.
-- Out: history_steps(label_key, known_us, event_us, clock_us, next_us, next_clock_us, f<n>, last<n>).
CREATE OR REPLACE TEMP TABLE history_steps AS
WITH
    moments AS (
        SELECT DISTINCT label_key, known_us FROM history_labels
    ),
    settled AS (
        SELECT c.*, m.known_us
        FROM history_changes c
        JOIN moments m
            ON c.label_key = m.label_key
            AND c.ingested_us <= m.known_us
        QUALIFY c.place = max(c.place) OVER (PARTITION BY c.label_key, m.known_us, c.event_us)
    ),
    stepped AS (
        SELECT
            label_key,
            known_us,
            event_us,
            {clock} AS clock_us,
            lead(event_us) OVER steps AS next_us,
            lead({clock}) OVER steps AS next_clock_us,
            {flags}
        FROM settled
        WINDOW steps AS (PARTITION BY label_key, known_us ORDER BY event_us)
    )
SELECT *, {lasts}
FROM stepped
WINDOW so_far AS (PARTITION BY label_key, known_us ORDER BY event_us);
