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

// Files are Parquet data files to read as one relation, as an Iceberg table's scan planning gives them.
type Files struct {
	Columns []FileColumn
	Files   []File
	// Same says that every file has these columns with these names and types: they are then found by name, which DuckDB
	// scans a third faster.
	Same bool
}

// FileColumn is one column of [Files], found in each file by its field id, so that renamed, added and widened columns
// read right from old files.
type FileColumn struct {
	FieldID int
	Name    string
	Type    string // DuckDB's name of it
}

// File is one data file.
type File struct {
	Path    string  // local
	Deleted []int64 // positions of rows that are deleted, ascending
}

// Columns of a lake view that say where a row stands, for [DB.LakeView] with positions.
const (
	FileColumnName = "loam_file" // BIGINT: index of the file in Files
	RowColumnName  = "loam_row"  // BIGINT: position of the row in it
)

// LakeView makes a view of that name over the files, deleted rows left out. With positions it has the columns
// loam_file and loam_row besides.
func (db *DB) LakeView(ctx context.Context, name string, f Files, positions bool) error {
	var selects []string
	var plain, holed []int
	for i, file := range f.Files {
		if len(file.Deleted) == 0 {
			plain = append(plain, i)
		} else {
			holed = append(holed, i)
		}
	}
	if len(plain) > 0 {
		selects = append(selects, f.scan(plain, positions, ""))
	}
	if len(holed) > 0 {
		deletes := name + "_deletes"
		if err := db.importDeletes(ctx, deletes, f, holed); err != nil {
			return err
		}
		selects = append(selects, f.scan(holed, positions, Ident(deletes)))
	}
	if len(selects) == 0 {
		selects = append(selects, f.empty(positions))
	}
	return db.Exec(ctx, Render("CREATE OR REPLACE VIEW {name} AS {body}",
		Args{"name": Ident(name), "body": Fragment(strings.Join(selects, " UNION ALL "))}))
}

// scan is a SELECT over some of the files, without the positions in the deletes table if one is given.
func (f Files) scan(which []int, positions bool, deletes Fragment) string {
	paths := make([]Fragment, len(which))
	for i, w := range which {
		paths[i] = Path(f.Files[w].Path)
	}
	schema := make([]Fragment, len(f.Columns))
	names := make([]string, len(f.Columns))
	for i, c := range f.Columns {
		schema[i] = Fragment(fmt.Sprintf("%d: {name: %s, type: %s, default_value: NULL}", c.FieldID, Literal(c.Name), Literal(c.Type)))
		names[i] = c.Name
	}
	args := Args{
		"columns": Idents("r.", names), "paths": Join(", ", paths), "schema": Join(", ", schema), "deletes": deletes,
		"where": "", "positions": "", "options": "",
	}
	// Names of folders are no columns, whatever they look like.
	args["options"] = ", hive_partitioning = false"
	if !f.Same {
		args["options"] += Fragment(Render(", schema = MAP {{schema}}", args))
	}
	if positions || deletes != "" {
		args["options"] += ", filename = true, file_row_number = true"
	}
	if positions {
		// DuckDB numbers the files of a scan itself; where they are not all, those numbers lead to ours.
		number := "r.file_index::BIGINT"
		if len(which) < len(f.Files) {
			numbers := make([]Fragment, len(which))
			for i, w := range which {
				numbers[i] = Fragment(fmt.Sprint(w))
			}
			number = fmt.Sprintf("([%s])[(r.file_index + 1)::BIGINT]::BIGINT", Join(", ", numbers))
		}
		args["positions"] = Fragment(", " + number + " AS loam_file, r.file_row_number AS loam_row")
	}
	if deletes != "" {
		args["where"] = Fragment(Render(
			" WHERE NOT EXISTS (FROM {deletes} d WHERE d.path = r.filename AND d.pos = r.file_row_number)", args))
	}
	return Render("SELECT {columns}{positions} FROM read_parquet([{paths}]{options}) r{where}", args)
}

// empty is a SELECT without rows that has the columns.
func (f Files) empty(positions bool) string {
	items := make([]Fragment, 0, len(f.Columns)+2)
	for _, c := range f.Columns {
		items = append(items, Fragment(fmt.Sprintf("NULL::%s AS %s", c.Type, Ident(c.Name))))
	}
	if positions {
		items = append(items, "NULL::BIGINT AS loam_file", "NULL::BIGINT AS loam_row")
	}
	return Render("SELECT {items} WHERE false", Args{"items": Join(", ", items)})
}

// importDeletes fills a table (path, pos) with the deleted positions of some of the files.
func (db *DB) importDeletes(ctx context.Context, table string, f Files, which []int) error {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "path", Type: arrow.BinaryTypes.String}, {Name: "pos", Type: arrow.PrimitiveTypes.Int64},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	paths, positions := b.Field(0).(*array.StringBuilder), b.Field(1).(*array.Int64Builder)
	for _, w := range which {
		for _, p := range f.Files[w].Deleted {
			paths.Append(f.Files[w].Path)
			positions.Append(p)
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	return db.ImportBatches(ctx, table, schema, []arrow.RecordBatch{batch})
}
