-- The versions of one key, as the changes make them and as they are stored.
-- In:  verify_want, verify_have; {columns}, those of a state; {key_text}, the key as text; $1 the key.
-- Out: loam_side, want or have; loam_state, the same number for equal states; valid_from, valid_to; in order of time.
WITH
    both_sides AS (
        SELECT 'want' AS loam_side, {columns}, valid_from, valid_to FROM verify_want WHERE {key_text} = $1
        UNION ALL
        SELECT 'have' AS loam_side, {columns}, valid_from, valid_to FROM verify_have WHERE {key_text} = $1
    )
SELECT loam_side, dense_rank() OVER (ORDER BY {columns}) AS loam_state, valid_from, valid_to
FROM both_sides
ORDER BY valid_from, valid_to, loam_side;
