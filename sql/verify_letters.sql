-- The dead letters of a stream, by partition.
-- In:  verify_dead_letters; $1 the stream's name.
-- Out: topic, partition, offset; by topic, partition and offset.
SELECT topic, "partition", "offset"
FROM verify_dead_letters
WHERE stream = $1
ORDER BY topic, "partition", "offset";
