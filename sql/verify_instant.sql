-- The entities of a bucket that a state stream knew at an instant, and whether the log has taken changes of before it since
-- a generation was built as of it.
-- In:  verify_log, the stream's log up to the instant; {key}, the entity's join keys in g, and {key_alone}; {only}, which entities;
--      verify_partitions(topic, "partition", base, mark), how far what was built goes, all text; $1 the number of buckets,
--      $2 the bucket; $3 when the build began, in microseconds since 1970; $4, that rows of files or redrives may have come
--      beside it.
-- Out: {key_alone}, whether there is a change that isn't in what was built, a row an entity.
SELECT
    {key_alone},
    bool_or(
        CASE
            WHEN g.topic LIKE 'file:%' OR g.topic LIKE 'redrive:%' OR coalesce(g.job_id LIKE 'redrive-%', false)
                THEN $4::BOOLEAN OR epoch_us(g.recorded_at) > $3::BIGINT
            ELSE g."offset" >= coalesce(p.base::BIGINT, 0)
        END
    )
FROM verify_log g
LEFT JOIN verify_partitions p ON g.topic = p.topic AND g."partition"::VARCHAR = p."partition"
WHERE hash({key}) % $1::UBIGINT = $2::UBIGINT AND {only}
GROUP BY {key_alone};
