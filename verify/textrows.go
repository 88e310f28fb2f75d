package verify

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/sql"
)

// textRows fills a table whose columns are all text, part by part, so that memory stays DuckDB's.
type textRows struct {
	db      *sql.DB
	table   string
	schema  *arrow.Schema
	builder *array.RecordBuilder
	rows    int
	held    bool // a result of the same DuckDB is being read, which takes nothing else meanwhile
	parts   []arrow.RecordBatch
}

// textRowsPart is how many rows go to DuckDB at once.
const textRowsPart = 20_000

// newTextRows makes the table, replacing one that exists. The caller closes it.
func newTextRows(ctx context.Context, db *sql.DB, table string, columns []string) (*textRows, error) {
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		fields[i] = arrow.Field{Name: c, Type: arrow.BinaryTypes.String, Nullable: true}
	}
	schema := arrow.NewSchema(fields, nil)
	if err := db.ImportBatches(ctx, table, schema, nil); err != nil {
		return nil, err
	}
	return &textRows{db: db, table: table, schema: schema, builder: array.NewRecordBuilder(memory.DefaultAllocator, schema)}, nil
}

// set sets a column of the row that add ends.
func (t *textRows) set(column int, value string) {
	t.builder.Field(column).(*array.StringBuilder).Append(value)
}

// add ends a row; columns that were not set are null.
func (t *textRows) add(ctx context.Context) error {
	t.rows++
	for _, f := range t.builder.Fields() {
		if f.Len() < t.rows {
			f.AppendNull()
		}
	}
	if t.rows < textRowsPart {
		return nil
	}
	return t.flush(ctx)
}

// flush moves the rows so far to the table, unless they are held.
func (t *textRows) flush(ctx context.Context) error {
	t.parts = append(t.parts, t.builder.NewRecordBatch())
	t.rows = 0
	if t.held {
		return nil
	}
	for len(t.parts) > 0 {
		if err := t.insert(ctx, t.parts[0]); err != nil {
			return err
		}
		t.parts[0].Release()
		t.parts = t.parts[1:]
	}
	return nil
}

// whileReading reads a result of the tables' DuckDB, whose rows may be added to them. They go there once it has been read.
func whileReading(ctx context.Context, read func() error, tables ...*textRows) error {
	for _, t := range tables {
		t.held = true
	}
	err := read()
	for _, t := range tables {
		if t.held = false; err == nil {
			err = t.flush(ctx)
		}
	}
	return err
}

func (t *textRows) insert(ctx context.Context, batch arrow.RecordBatch) error {
	part := t.table + "_part"
	if err := t.db.ImportBatches(ctx, part, t.schema, []arrow.RecordBatch{batch}); err != nil {
		return err
	}
	args := sql.Args{"table": sql.Ident(t.table), "part": sql.Ident(part)}
	if err := t.db.Exec(ctx, sql.Render("INSERT INTO {table} FROM {part}", args)); err != nil {
		return err
	}
	if err := t.db.Exec(ctx, sql.Render("DROP TABLE {part}", args)); err != nil {
		return fmt.Errorf("drop a part: %w", err)
	}
	return nil
}

func (t *textRows) close() {
	for _, b := range t.parts {
		b.Release()
	}
	t.builder.Release()
}
