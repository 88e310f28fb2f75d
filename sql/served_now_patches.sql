-- The changes of a patch stream that make what is served now: of each entity the greatest one, in the order, the last
-- delete, and of each column that a view reads the last change that carried it.
-- In:  log, a patch stream's log with loam_file and loam_row; {key}, the expression of the entity's key; {always} and
--      {columns}, lists of the names of the columns read: those of the key, which every change carries, and the others.
-- Out: newest(change_file, change_row, greatest), a row a change; greatest is true once an entity.
CREATE OR REPLACE TEMP TABLE newest AS
WITH
    topics AS (
        SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash
        FROM (SELECT DISTINCT topic FROM log)
    ),
    bearing AS (
        SELECT
            g.loam_file,
            g.loam_row,
            ({key}) AS entity,
            row_number() OVER (
                PARTITION BY {key}
                ORDER BY g.event_time, g.sequence NULLS FIRST, t.live, t.topic_hash, g."partition", g."offset"
            ) AS place,
            -- What a change is looked at for: '' as any, '_d' as a delete, and the columns that it carried.
            unnest([''] || CASE
                WHEN g.op = 'delete' THEN ['_d']
                WHEN g.present IS NULL THEN {always} || {columns}
                ELSE {always} || list_intersect(g.present, {columns})
            END) AS bears_on
        FROM log g
        JOIN topics t USING (topic)
    ),
    last_ones AS (
        SELECT *
        FROM bearing
        QUALIFY place = max(place) OVER (PARTITION BY entity, bears_on)
    )
SELECT loam_file AS change_file, loam_row AS change_row, bool_or(bears_on = '') AS greatest
FROM last_ones
GROUP BY loam_file, loam_row;
