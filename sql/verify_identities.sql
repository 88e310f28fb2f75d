-- The events of a bucket that a log has accepted more than once.
-- In:  verify_whole_log, a log; {key}; {key_text}, the key as text; $1 the number of buckets, $2 the bucket.
-- Out: event_id, loam_key, event_time, how many rows, the least and the greatest of their positions; in no order.
SELECT
    event_id,
    {key_text} AS loam_key,
    event_time,
    count(*) AS loam_rows,
    min(topic || '/' || "partition" || '@' || "offset") AS loam_first,
    max(topic || '/' || "partition" || '@' || "offset") AS loam_last
FROM verify_whole_log
WHERE hash(event_id) % $1::UBIGINT = $2::UBIGINT
GROUP BY event_id, {key}, event_time
HAVING count(*) > 1;
