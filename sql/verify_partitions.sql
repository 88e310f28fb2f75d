-- What a log holds of each partition.
-- In:  verify_whole_log, a log.
-- Out: topic, partition, rows, the greatest offset; by topic and partition.
SELECT topic, "partition", count(*) AS loam_rows, max("offset") AS loam_greatest
FROM verify_whole_log
GROUP BY topic, "partition"
ORDER BY topic, "partition";
