//go:build !duckdb_arrow

package sql

// loam needs DuckDB's Arrow interface: build with `-tags duckdb_arrow`, as make does, or set GOFLAGS=-tags=duckdb_arrow.
var _ = loam_needs_the_build_tag_duckdb_arrow__set_GOFLAGS_to_dash_tags_equals_duckdb_arrow
