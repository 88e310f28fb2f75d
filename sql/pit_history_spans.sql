-- The histories, as they were known at every time, of the entities whose changes did not come in their order. A change that
-- comes finds, among those that came before it, the last of an earlier event time and the last of the next later one, unless it
-- is overruled by one of its own: it then follows the former and is followed by the latter, until something comes between them
-- or overrules one of them. So there are about two such pairs a change, whatever number of times they are looked at.
-- In:  history_late(label_key); history_changes(label_key, event_us, ingested_us, place, deleted, c<n>, s<n>);
--      begins, f<n> and last<n> of the change c that follows p, null for none; stands, those of the change p.
-- Out: history_spans(label_key, event_us, clock_us, next_us, from_us, to_us, f<n>, last<n>): known from from_us on and before
--      to_us, null for ever. A pair is two rows: its second change, which may begin a version, and its first, which stands until
--      next_us, null for ever.
CREATE OR REPLACE TEMP TABLE history_spans AS
WITH
    late AS (
        SELECT c.*, row_number() OVER (PARTITION BY c.label_key ORDER BY c.ingested_us, c.place) AS turn
        FROM history_changes c
        SEMI JOIN history_late k ON c.label_key = k.label_key
    ),
    met AS (
        SELECT
            d.label_key, d.place, d.turn, d.ingested_us,
            max(e.place) FILTER (WHERE e.event_us < d.event_us) AS before_place,
            min(e.event_us) FILTER (WHERE e.event_us > d.event_us) AS after_us,
            coalesce(bool_or(e.event_us = d.event_us AND e.place > d.place), false) AS overruled
        FROM late d
        LEFT JOIN late e
            ON d.label_key = e.label_key
            AND e.turn < d.turn
        GROUP BY d.label_key, d.place, d.turn, d.ingested_us
    ),
    found AS (
        SELECT m.label_key, m.place, m.turn, m.ingested_us, m.before_place, max(e.place) AS after_place
        FROM met m
        LEFT JOIN late e
            ON m.label_key = e.label_key
            AND m.after_us = e.event_us
            AND e.turn < m.turn
        WHERE NOT m.overruled
        GROUP BY m.label_key, m.place, m.turn, m.ingested_us, m.before_place
    ),
    begun AS (
        SELECT label_key, before_place AS first_place, place AS second_place, turn, ingested_us FROM found
        UNION ALL
        SELECT label_key, place AS first_place, after_place AS second_place, turn, ingested_us FROM found
    ),
    overruling AS (
        SELECT d.label_key, d.place, min(e.ingested_us) AS overruled_us
        FROM late d
        JOIN late e
            ON d.label_key = e.label_key
            AND d.event_us = e.event_us
            AND d.place < e.place
        GROUP BY d.label_key, d.place
    ),
    pairs AS (
        SELECT
            b.label_key, b.first_place, b.second_place, b.ingested_us AS from_us,
            least(lead(b.ingested_us) OVER (PARTITION BY b.label_key, b.second_place ORDER BY b.turn), o.overruled_us) AS to_us
        FROM begun b
        LEFT JOIN overruling o
            ON b.label_key = o.label_key
            AND b.second_place = o.place
    ),
    -- What came and went at one instant was never known.
    known AS (
        SELECT k.label_key, k.from_us, k.to_us, p, c
        FROM pairs k
        LEFT JOIN late p
            ON k.label_key = p.label_key
            AND k.first_place = p.place
        LEFT JOIN late c
            ON k.label_key = c.label_key
            AND k.second_place = c.place
        WHERE k.to_us IS NULL OR k.from_us < k.to_us
    )
SELECT label_key, c.event_us AS event_us, c.ingested_us AS clock_us, NULL::BIGINT AS next_us, from_us, to_us, {begins}
FROM known
WHERE c IS NOT NULL
UNION ALL
SELECT label_key, p.event_us, p.ingested_us, c.event_us, from_us, to_us, {stands}
FROM known
WHERE p IS NOT NULL;
