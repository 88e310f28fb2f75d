//go:build duckdb_arrow

package sql

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// Condition is an expression of a user that says yes or no to rows. It is not safe for concurrent use.
type Condition struct {
	db    *DB
	expr  string
	reads []string
}

// OpenCondition makes a condition of an expression that [DB.CheckScalar] has found fit to be a BOOLEAN; reads are the
// columns that it reads, at least one.
func OpenCondition(ctx context.Context, expr string, reads []string) (*Condition, error) {
	db, err := Open(ctx, Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	return &Condition{db: db, expr: expr, reads: reads}, nil
}

// Close frees what the condition holds.
func (c *Condition) Close() error { return c.db.Close() }

// True says of each row whether the expression is true; null is not, and an error of the expression on a row is null.
func (c *Condition) True(ctx context.Context, rows arrow.RecordBatch) ([]bool, error) {
	var fields []arrow.Field
	var columns []arrow.Array
	for i, f := range rows.Schema().Fields() {
		if slices.Contains(c.reads, f.Name) {
			fields, columns = append(fields, f), append(columns, rows.Column(i))
		}
	}
	read := array.NewRecordBatch(arrow.NewSchema(fields, nil), columns, rows.NumRows())
	defer read.Release()
	if err := c.db.ImportBatches(ctx, "loam_rows", read.Schema(), []arrow.RecordBatch{read}); err != nil {
		return nil, err
	}
	found := make([]bool, 0, rows.NumRows())
	statement := Render("SELECT {condition} FROM loam_rows", Args{"condition": Try(c.expr, "BOOLEAN")})
	err := c.db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			values := r.RecordBatch().Column(0).(*array.Boolean)
			for i := range values.Len() {
				found = append(found, values.IsValid(i) && values.Value(i))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if int64(len(found)) != rows.NumRows() {
		return nil, fmt.Errorf("the condition gave %d answers for %d rows", len(found), rows.NumRows())
	}
	return found, nil
}
