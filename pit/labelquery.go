package pit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// CheckLabelQuery checks the query that gives a request's labels without running it: that it is one SELECT over tables that it may
// read, of columns that they have by the streams' definitions, and that the time column is among those that it gives. whole gives a
// stream with the columns that its tables have besides, of former definitions; it is asked for the streams that the query reads.
func CheckLabelQuery(ctx context.Context, p *feature.Project, r *feature.DatasetRequest, whole func(*feature.Stream) (*feature.Stream, error)) error {
	db, err := sql.Open(ctx, sql.Options{Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	names := queryTables(p.Streams, r.KnownAt != nil)
	query, err := checkQuery(ctx, db, r, names)
	if err != nil {
		return err
	}
	for _, table := range query.Tables {
		s, err := whole(names[table])
		if err != nil {
			return err
		}
		if err := db.Exec(ctx, emptyTable(table, s)); err != nil {
			return err
		}
	}
	columns, err := db.Bind(ctx, query)
	if err != nil {
		text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "run SQL: "), "\n")
		return fmt.Errorf("it does not bind: %s", text)
	}
	if err := checkHeld(columns); err != nil {
		return err
	}
	l := &labels{columns: columns}
	_, err = l.moment(r.TimeColumn)
	return err
}

// unheldTypes are types of DuckDB whose values a training set would hold otherwise, or in part.
var unheldTypes = []string{"UHUGEINT", "INTERVAL", "BIT", "TIME WITH TIME ZONE"}

// checkHeld refuses columns of such types.
func checkHeld(columns []sql.Column) error {
	for _, c := range columns {
		if slices.Contains(unheldTypes, c.Type) {
			return fmt.Errorf("column %s is %s, which a training set can't hold: cast it, to VARCHAR or another type", c.Name, c.Type)
		}
	}
	return nil
}

// emptyTable makes a table that a query may read, without rows.
func emptyTable(table string, s *feature.Stream) string {
	columns := s.LogColumns()
	switch table {
	case lake.HistoryName(s.Name):
		columns = s.HistoryColumns()
	case lake.CurrentName(s.Name):
		columns = append(append([]feature.Column(nil), s.Columns...), feature.Column{Name: feature.ColValidFrom, Type: feature.Type{Kind: feature.Timestamp}})
	}
	items := make([]sql.Fragment, len(columns))
	for i, c := range columns {
		items[i] = sql.Ident(c.Name) + " " + sql.Fragment(c.Type.SQL())
	}
	return sql.Render("CREATE TABLE {table} ({columns})", sql.Args{"table": sql.Ident(table), "columns": sql.Join(", ", items)})
}
