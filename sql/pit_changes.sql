-- The changes of some entities, with what decides which of them a label sees.
-- In:  {log}, a stream's log with loam_file and loam_row; {entities}(label_key, entity); {key}, the entity's key in g;
--      {only}, which changes; {order}, what settles ties of event time, or nothing, and {bears}, whether the change bears on
--      a value, with a comma before each.
-- Out: entity, event_time and ingested_at in microseconds, the place (file and row in one number), whether it deletes,
--      {order}, {bears}; in no order.
SELECT
    e.entity,
    epoch_us(g.event_time),
    epoch_us(g.ingested_at),
    (g.loam_file << 32) + g.loam_row,
    g.op = 'delete'
    {order}
    {bears}
FROM {log} g
JOIN {entities} e ON {key} = e.label_key
WHERE {only};
