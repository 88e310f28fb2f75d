-- What was served of a view, a row an entity and request, with the entity's keys in the types of the stream; what was of a generation
-- as of an instant is left out.
-- In:  verify_feature_log, the table feature_log; {keys}, the typed keys, each made of entity[i]; $1 the view, $2 the hash of its
--      definition, $3 since when, microseconds since 1970 UTC.
-- Out: verify_logged(loam_n, loam_at in microseconds, loam_request, loam_features, loam_values, loam_statuses, loam_seen, the guard
--      that was seen, loam_marks and loam_mark_offsets, the same as loam_mark_texts, loam_guards and loam_guard_values,
--      loam_entity, and the keys).
CREATE OR REPLACE TEMP TABLE verify_logged AS
SELECT
    row_number() OVER (ORDER BY served_at, request, entity) AS loam_n,
    epoch_us(served_at) AS loam_at,
    request AS loam_request,
    features AS loam_features,
    "values" AS loam_values,
    statuses AS loam_statuses,
    "order" AS loam_seen,
    marks AS loam_marks,
    list_transform(mark_offsets, lambda o: o::BIGINT) AS loam_mark_offsets,
    mark_offsets AS loam_mark_texts,
    guards AS loam_guards,
    guard_values AS loam_guard_values,
    entity AS loam_entity,
    {keys}
FROM verify_feature_log
WHERE "view" = $1 AND definition = $2 AND epoch_us(served_at) >= $3 AND coalesce(NOT list_contains(guards, 'as_of'), true);
