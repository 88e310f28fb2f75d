-- How often each column is in a list of a bucket's rows, and how often it is alone in it.
-- In:  {rows}, quality_changes or quality_versions; {list}, one of its lists; {condition}, which rows.
-- Out: column, rows, rows that have it alone; in no order.
WITH
    named AS (
        SELECT unnest({list}) AS name, len({list}) = 1 AS alone
        FROM {rows}
        WHERE {condition}
    )
SELECT name, count(*), count(*) FILTER (WHERE alone)
FROM named
GROUP BY name;
