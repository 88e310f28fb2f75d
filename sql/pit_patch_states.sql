-- The states that patches of some entities make together, as they were known, with what windows over history need of each.
-- In:  loam_states(loam_entity, loam_event, loam_since, loam_deleted, and of which rows of loam_patches a state is made);
--      {columns}, what is looked at, a comma before each, and {joins}, where it comes from; {items}, see pit_history_changes.
-- Out: entity, event time and since when it was known in microseconds, whether the entity is deleted, {items}; by entity, and of
--      one by event time, of which a state that was known later takes the place of one before.
WITH
    loam_whole AS (
        SELECT s.loam_entity, s.loam_event, s.loam_since, s.loam_deleted {columns}
        FROM loam_states s
        {joins}
    )
SELECT loam_entity, loam_event, loam_since, loam_deleted, {items}
FROM loam_whole
ORDER BY loam_entity, loam_event, loam_since;
