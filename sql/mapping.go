//go:build duckdb_arrow

package sql

import (
	"context"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Mapped is a member of the rows that a mapping makes: an expression that [DB.CheckScalar] has found fit for the type, DuckDB's name of one.
type Mapped struct {
	Name, Expr, Type string
	JSON             bool // the value is a JSON document
}

// Mapping makes rows of records by expressions of a user, which read record, the record's value as VARCHAR, record_key, VARCHAR, and
// record_time, TIMESTAMPTZ. It is not safe for concurrent use.
type Mapping struct {
	db      *DB
	columns []Mapped
	row     Fragment
}

// MappingRecord is a record to be mapped.
type MappingRecord struct {
	JSON string // its value, a valid document
	Key  *string
	Time *int64 // microseconds since 1970 UTC
}

// OpenMapping makes a mapping of at least one column.
func OpenMapping(ctx context.Context, columns []Mapped) (*Mapping, error) {
	db, err := Open(ctx, Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	items := make([]Fragment, 0, 2*len(columns))
	for _, c := range columns {
		items = append(items, Literal(c.Name), c.text())
	}
	return &Mapping{db: db, columns: columns, row: "json_object(" + Join(", ", items) + ")::VARCHAR"}, nil
}

// text writes a value as text, which says exactly what the expression gave; lists are JSON.
func (c Mapped) text() Fragment {
	expr := "(" + Fragment(c.Expr) + "\n)"
	utc := func(value Fragment) Fragment {
		return "strftime(timezone('UTC', " + value + "), '%Y-%m-%dT%H:%M:%S.%fZ')"
	}
	switch {
	case c.JSON:
		return "to_json(" + expr + ")::VARCHAR"
	case c.Type == "TIMESTAMPTZ[]":
		return "list_transform(" + expr + "::TIMESTAMPTZ[], lambda x: " + utc("x") + ")"
	case strings.HasSuffix(c.Type, "[]"):
		return "to_json(" + expr + "::" + Fragment(c.Type) + ")"
	case c.Type == "TIMESTAMPTZ":
		return utc(expr + "::TIMESTAMPTZ")
	case c.Type == "DATE":
		return expr + "::DATE::VARCHAR"
	default:
		return expr + "::VARCHAR"
	}
}

// Close frees what the mapping holds.
func (m *Mapping) Close() error { return m.db.Close() }

// Rows makes a row of each record, an object as JSON whose scalar values are text or null. Of a record for which an expression fails there is
// an error that names the column instead; all others are nil.
func (m *Mapping) Rows(ctx context.Context, records []MappingRecord) ([]string, []error, error) {
	rows, failed := make([]string, len(records)), make([]error, len(records))
	return rows, failed, m.part(ctx, records, rows, failed)
}

// part fills rows and failed for some records. Where one of them fails the statement it halves them.
func (m *Mapping) part(ctx context.Context, records []MappingRecord, rows []string, failed []error) error {
	if len(records) == 0 {
		return nil
	}
	err := m.run(ctx, records, m.row, rows)
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case len(records) == 1:
		failed[0] = m.culprit(ctx, records, err)
		return nil
	}
	half := len(records) / 2
	if err := m.part(ctx, records[:half], rows[:half], failed[:half]); err != nil {
		return err
	}
	return m.part(ctx, records[half:], rows[half:], failed[half:])
}

// culprit names the column whose expression fails on the record.
func (m *Mapping) culprit(ctx context.Context, record []MappingRecord, whole error) error {
	for _, c := range m.columns {
		if err := m.run(ctx, record, c.text()+"::VARCHAR", make([]string, 1)); err != nil {
			return fmt.Errorf("%s: %s", c.Name, strings.TrimPrefix(firstLine(err.Error()), "run SQL: "))
		}
	}
	return whole
}

// run evaluates an expression for records.
func (m *Mapping) run(ctx context.Context, records []MappingRecord, expr Fragment, results []string) error {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "record", Type: arrow.BinaryTypes.String}, {Name: "record_key", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "record_time", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}, Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, r := range records {
		b.Field(0).(*array.StringBuilder).Append(r.JSON)
		if r.Key == nil {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.StringBuilder).Append(*r.Key)
		}
		if r.Time == nil {
			b.Field(2).AppendNull()
		} else {
			b.Field(2).(*array.TimestampBuilder).Append(arrow.Timestamp(*r.Time))
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	if err := m.db.ImportBatches(ctx, "loam_records", schema, []arrow.RecordBatch{batch}); err != nil {
		return err
	}
	statement := Render("SELECT {expr} FROM loam_records", Args{"expr": expr})
	n := 0
	err := m.db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			values := r.RecordBatch().Column(0).(*array.String)
			for i := range values.Len() {
				results[n] = strings.Clone(values.Value(i))
				n++
			}
		}
		return nil
	})
	if err == nil && n != len(records) {
		err = fmt.Errorf("the mapping gave %d rows for %d records", n, len(records))
	}
	return err
}
