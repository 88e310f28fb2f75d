-- Where Redis holds another thing of an entity than is served.
-- In:  verify_expected and verify_hashes, both (loam_entity, loam_order, loam_at, loam_deleted, loam_other and a
--      column a feature) with every value as text, null where there is none; of verify_hashes loam_beyond, that the lake has not
--      come to its guard; of verify_expected loam_position, loam_behind, that Redis is not written up to there, loam_newer, that
--      what Redis has as of an instant lacks a change, and loam_old, that the hash may have expired; {differing}, a list with the name of every field that differs and null
--      for the others.
-- Out: the entity; whether it is wanted and whether it is there; the order wanted and the one there; the position wanted;
--      whether one side has yet to come to the other's change; the names of the fields that differ, joined by commas; by
--      entity.
WITH
    hashes AS (
        SELECT DISTINCT ON (loam_entity) * FROM verify_hashes
    ),
    paired AS (
        SELECT
            coalesce(w.loam_entity, h.loam_entity) AS loam_entity,
            w.loam_order AS order_wanted,
            h.loam_order AS order_there,
            w.loam_entity IS NOT NULL AS wanted,
            h.loam_entity IS NOT NULL AS there,
            w.loam_position,
            w.loam_behind IS NOT NULL OR w.loam_newer IS NOT NULL OR h.loam_beyond IS NOT NULL AS unsettled,
            w.loam_old IS NOT NULL AS old,
            list_filter({differing}, lambda name: name IS NOT NULL) AS fields
        FROM verify_expected w
        FULL JOIN hashes h ON w.loam_entity = h.loam_entity
    )
SELECT loam_entity, wanted, there, order_wanted, order_there, loam_position, unsettled, array_to_string(fields, ',')
FROM paired
WHERE NOT wanted OR (NOT there AND NOT old) OR (there AND len(fields) > 0)
ORDER BY loam_entity;
