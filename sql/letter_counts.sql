-- Dead letters by what became of them.
-- In:  dead_letters; {waiting}, the condition that no redrive took a letter; {beyond}, that it is not to be counted.
-- Out: topic, partition, stream, and how many distinct offsets of them
--      loam_to        the stream that a redrive gave them to, null where they wait
--      loam_reason    why they wait, null where they don't
--      loam_accepted, loam_duplicate, loam_waiting
SELECT
    topic,
    "partition",
    stream,
    CASE WHEN NOT ({waiting}) THEN coalesce(redriven_to, '') END AS loam_to,
    CASE WHEN {waiting} THEN reason END AS loam_reason,
    count(DISTINCT "offset") FILTER (outcome = 'accepted') AS loam_accepted,
    count(DISTINCT "offset") FILTER (outcome = 'duplicate') AS loam_duplicate,
    count(DISTINCT "offset") FILTER ({waiting}) AS loam_waiting
FROM dead_letters
WHERE NOT ({beyond})
GROUP BY topic, "partition", stream, loam_to, loam_reason
ORDER BY topic, "partition", stream, loam_to, loam_reason;
