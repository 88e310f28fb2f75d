-- By how many quarters of an hour the event times of a bucket are off, as a wrong time zone makes them: of the changes whose
-- ingested_at is known, those that were ingested an hour to fourteen after their event time, or before it, give or take
-- two minutes from a whole quarter.
-- In:  quality_changes.
-- Out: quarters of an hour, how many changes; in no order.
WITH
    rounded AS (
        SELECT round((loam_ingested_us - loam_event_us) / 900000000)::BIGINT AS quarters, loam_ingested_us - loam_event_us AS delay_us
        FROM quality_changes
        WHERE NOT loam_assumed
    )
SELECT quarters, count(*)
FROM rounded
WHERE abs(quarters) BETWEEN 4 AND 56 AND abs(delay_us - quarters * 900000000) <= 120000000
GROUP BY quarters;
