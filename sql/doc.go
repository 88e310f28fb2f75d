// Package sql is loam's one way to DuckDB: a small wrapper of its driver, the statements that more than one package
// runs, a file each, and the check of the expressions that users write.
//
// A [DB] is one in-memory database with one connection, used by one goroutine at a time. Its clock zone is UTC, it loads
// no extensions, and it touches files only where it was opened to read them. Arrow comes in by [DB.Import], which copies
// it into a table at once: the driver matches the columns of a registered Arrow view by position after projection, so a
// query on one could give another column's values without an error.
//
// The package builds only with the tag duckdb_arrow, without which the driver has no Arrow interface.
package sql
