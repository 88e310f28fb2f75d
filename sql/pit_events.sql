-- The events of the entities that labels ask for, with what aggregates take of them.
-- In:  {log}, an event stream's log; {entities}(label_key, entity); {key}, the entity's key in g; {only}, which events;
--      {rank} and topics, the rank of an event's topic and the join that it comes from; {order}, the sequence, the rank,
--      the partition and the offset, or something in their places where no aggregate goes by them; {items}, columns and
--      conditions of the aggregates, a comma before each.
-- Out: entity, event_time and ingested_at in microseconds, {order}, {items}; in no order.
WITH
    loam_wanted AS (
        SELECT e.entity AS loam_entity, g.*
        FROM {log} g
        JOIN {entities} e ON {key} = e.label_key
        WHERE {only}
    )
SELECT loam_entity, epoch_us(event_time), epoch_us(ingested_at) {order} {items}
FROM loam_wanted;
