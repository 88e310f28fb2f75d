-- Macros that statements share, and a setting that expressions of users need.
-- topic_live: whether a position's topic is live, and not a file or a redrive.
-- topic_hash: the first 4 bytes of the SHA-256 of a topic's name, as 8 hexadecimal digits: how topics compare.
CREATE OR REPLACE MACRO topic_live(topic) AS
    NOT (starts_with(topic, 'file:') OR starts_with(topic, 'redrive:'));
CREATE OR REPLACE MACRO topic_hash(topic) AS
    substr(sha256(topic), 1, 8);
-- What two expressions have in common DuckDB would evaluate before them, and so outside their TRY: an error there would be the
-- statement's.
SET disabled_optimizers = 'common_subexpressions';
