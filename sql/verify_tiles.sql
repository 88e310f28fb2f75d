-- Where Redis holds another thing of an entity of a windowed view than its events make.
-- In:  verify_wanted and verify_there, both (loam_entity, kind, part, value, sums) with every value as text: of an entity
--      its guards, its newest event time, its tiles with the sums of doubles apart, joined by commas, and the values of its
--      distincts one by one; of verify_wanted low, the least that a guard may be, and sizes, the sums of magnitudes; of
--      verify_there level and begins, by which {needed} says what a window can still need;
--      verify_wanted_entities(loam_entity, needed, unsettled) and verify_there_entities(loam_entity, unsettled), where
--      needed says that it has an event in a window; {most}, the most values of a distinct.
-- Out: the entity; whether its events are known, and whether it is there; whether one side has yet to come to the other's
--      events; kind and part of what differs, and what is wanted and there; by entity and part.
WITH
    wanted AS (
        SELECT loam_entity, kind, part, low, value, sums, sizes
        FROM verify_wanted
        WHERE kind <> 'set'
        UNION ALL
        SELECT
            loam_entity, kind, part, NULL,
            CASE WHEN count(*) > {most} THEN 'more than {most}' ELSE string_agg(value, ', ' ORDER BY value) END, NULL, NULL
        FROM verify_wanted
        WHERE kind = 'set'
        GROUP BY loam_entity, kind, part
    ),
    needed AS (
        SELECT DISTINCT * FROM verify_there WHERE {needed}
    ),
    there AS (
        SELECT loam_entity, kind, part, value, sums
        FROM needed
        WHERE kind <> 'set'
        UNION ALL
        SELECT
            loam_entity, kind, part,
            CASE WHEN count(*) > {most} THEN 'more than {most}' ELSE string_agg(value, ', ' ORDER BY value) END, NULL
        FROM needed
        WHERE kind = 'set'
        GROUP BY loam_entity, kind, part
    ),
    paired AS (
        SELECT
            coalesce(w.loam_entity, t.loam_entity) AS loam_entity,
            coalesce(w.kind, t.kind) AS kind,
            coalesce(w.part, t.part) AS part,
            w.low, w.value AS wanted, t.value AS there,
            string_split(w.sums, ',')::DOUBLE[] AS sums_wanted,
            string_split(t.sums, ',')::DOUBLE[] AS sums_there,
            string_split(w.sizes, ',')::DOUBLE[] AS sizes
        FROM wanted w
        FULL JOIN there t ON w.loam_entity = t.loam_entity AND w.kind = t.kind AND w.part = t.part
    ),
    differing AS (
        SELECT loam_entity, kind, part, wanted, there
        FROM paired
        WHERE CASE kind
            WHEN 'guard' THEN NOT coalesce(there::BIGINT, 0) BETWEEN coalesce(low::BIGINT, 0) AND coalesce(wanted::BIGINT, 0)
            WHEN 'newest' THEN wanted IS NOT NULL AND wanted IS DISTINCT FROM there
            ELSE wanted IS DISTINCT FROM there OR len(coalesce(sums_wanted, [])) <> len(coalesce(sums_there, []))
                OR len(list_filter(range(1, 1 + len(coalesce(sums_wanted, []))), lambda i:
                    NOT (sums_wanted[i] = sums_there[i] OR abs(sums_wanted[i] - sums_there[i]) <= 1e-12 * sizes[i]))) > 0
        END
    ),
    entities AS (
        SELECT
            coalesce(w.loam_entity, t.loam_entity) AS loam_entity,
            w.loam_entity IS NOT NULL AS wanted,
            t.loam_entity IS NOT NULL AS there,
            w.needed IS NOT NULL AS needed,
            w.unsettled IS NOT NULL OR t.unsettled IS NOT NULL AS unsettled
        FROM verify_wanted_entities w
        FULL JOIN (SELECT DISTINCT * FROM verify_there_entities) t ON w.loam_entity = t.loam_entity
    )
SELECT e.loam_entity, e.wanted, e.there, e.unsettled, d.kind, d.part, d.wanted, d.there
FROM entities e
LEFT JOIN differing d ON e.loam_entity = d.loam_entity AND e.wanted AND e.there
WHERE NOT e.wanted OR (e.needed AND NOT e.there) OR d.kind IS NOT NULL
ORDER BY e.loam_entity, d.kind, d.part;
