-- The labels by entity, and of an entity by the bound up to which they see.
-- In:  asked(label_row, label_time, label_bound, label_key); {entities}(label_key, entity).
-- Out: entity, the bound in microseconds, label_row; in this order.
SELECT e.entity, epoch_us(a.label_bound) AS label_bound, a.label_row
FROM asked a
JOIN {entities} e ON a.label_key = e.label_key
ORDER BY e.entity, label_bound, a.label_row;
