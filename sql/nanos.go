//go:build duckdb_arrow

package sql

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// cutNanos gives batches in which times of nanoseconds with a zone are cut to the microsecond before them. DuckDB has no such type, and
// cuts those of before 1970 to the microsecond after.
func cutNanos(schema *arrow.Schema, batches iter.Seq2[arrow.RecordBatch, error]) (*arrow.Schema, iter.Seq2[arrow.RecordBatch, error]) {
	fields := slices.Clone(schema.Fields())
	var cut []int
	for i, f := range fields {
		if t, ok := f.Type.(*arrow.TimestampType); ok && t.Unit == arrow.Nanosecond && t.TimeZone != "" {
			fields[i].Type, cut = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: t.TimeZone}, append(cut, i)
		}
	}
	if cut == nil {
		return schema, batches
	}
	schema = arrow.NewSchema(fields, nil)
	return schema, func(yield func(arrow.RecordBatch, error) bool) {
		for batch, err := range batches {
			if batch != nil {
				columns := slices.Clone(batch.Columns())
				for _, i := range cut {
					columns[i] = microseconds(columns[i].(*array.Timestamp), fields[i].Type.(*arrow.TimestampType))
				}
				whole := batch
				batch = array.NewRecordBatch(schema, columns, whole.NumRows())
				for _, i := range cut {
					columns[i].Release()
				}
				whole.Release()
			}
			if !yield(batch, err) {
				return
			}
		}
	}
}

// microseconds are times of nanoseconds, rounded down.
func microseconds(nanos *array.Timestamp, t *arrow.TimestampType) arrow.Array {
	b := array.NewTimestampBuilder(memory.DefaultAllocator, t)
	defer b.Release()
	b.Reserve(nanos.Len())
	for i := range nanos.Len() {
		if nanos.IsNull(i) {
			b.AppendNull()
			continue
		}
		ns := nanos.Value(i)
		us := ns / 1000
		if ns%1000 < 0 {
			us--
		}
		b.Append(us)
	}
	return b.NewArray()
}

// ParquetScan gives a relation of the rows of a Parquet file, in their order. It is a table of the name given where times of
// nanoseconds with a zone are of before 1970: see [cutNanos].
func (db *DB) ParquetScan(ctx context.Context, path, table string) (Fragment, error) {
	args := Args{"path": Path(path)}
	scan := Fragment(Render("read_parquet({path}, hive_partitioning = false)", args))
	rows, err := db.Query(ctx, Render("SELECT DISTINCT column_name FROM parquet_schema({path}) s JOIN (DESCRIBE FROM {scan}) c ON s.name = c.column_name "+
		"WHERE c.column_type = 'TIMESTAMP WITH TIME ZONE' AND s.logical_type LIKE '%NANOS=NanoSeconds%'", Args{"path": args["path"], "scan": scan}))
	if err != nil {
		return "", err
	}
	defer rows.Close()
	before := Fragment("false")
	for rows.Next() {
		var column string
		if err := rows.Scan(&column); err != nil {
			return "", fmt.Errorf("read the schema of %s: %w", path, err)
		}
		before += " OR " + Ident(column) + " <= TIMESTAMPTZ '1970-01-01 00:00:00Z'"
	}
	if err := rows.Err(); err != nil || before == "false" {
		return scan, err
	}
	var some bool
	if err := db.QueryRow(ctx, Render("SELECT coalesce(bool_or({before}), false) FROM {scan}", Args{"before": before, "scan": scan}), nil, &some); err != nil || !some {
		return scan, err
	}
	f, err := file.OpenParquetFile(path, false)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	whole, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{BatchSize: 1 << 16}, memory.DefaultAllocator)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	r, err := whole.GetRecordReader(ctx, nil, nil)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	defer r.Release()
	return Ident(table), db.ImportSeq(ctx, table, r.Schema(), Retained(r))
}
