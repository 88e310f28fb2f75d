//go:build duckdb_arrow

package sql

// Computed is a value that an expression makes of a row's columns: [DB.CheckScalar] has found it fit for the type, DuckDB's
// name of one.
type Computed struct{ Name, Expr, Type string }

// OnDemand is the query that computes values of each row of a relation. The relation has the columns that the expressions may
// read, no others that could be taken for one, and what row is made of, which comes first in the result, before the values in order.
// An error of an expression on a row is null.
func OnDemand(relation, row Fragment, values []Computed) string {
	items := []Fragment{row}
	for _, v := range values {
		items = append(items, Try(v.Expr, v.Type)+" AS "+Ident(v.Name))
	}
	return Render("SELECT {items} FROM {relation}", Args{"items": Join(", ", items), "relation": relation})
}
