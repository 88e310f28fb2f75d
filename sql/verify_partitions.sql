-- What a log holds of each partition, but for rows that were dead letters before, at whose offsets the table need not stand.
-- In:  verify_whole_log, a log.
-- Out: topic, partition, rows, the greatest offset; by topic and partition.
SELECT topic, "partition", count(*) AS loam_rows, max("offset") AS loam_greatest
FROM verify_whole_log
WHERE NOT starts_with(coalesce(job_id, ''), 'redrive-')
GROUP BY topic, "partition"
ORDER BY topic, "partition";
