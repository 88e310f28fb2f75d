package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
)

// rowGroupRowsMax is how many rows a row group of loam's may have.
const rowGroupRowsMax = 122_880

// expected is what a data file of a table must be.
type expected struct {
	fieldIDs map[string]int // by the column's path, such as amount, or segments.list.element
	sortedBy []string       // columns; nil where no order is promised
}

// checkParquet tells what is wrong with a data file, as parquet-go reads it, which shares no code with what wrote it: a
// page index for every column chunk whose statistics are those of the values, and so are those of the chunk; row groups
// of a bounded size; the promised order; the field ids of the table; the name of who wrote it.
func checkParquet(path string, want expected) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	text, err := os.ReadFile(path)
	if err != nil {
		return []string{err.Error()}
	}
	f, err := parquet.OpenFile(bytes.NewReader(text), int64(len(text)))
	if err != nil {
		return []string{err.Error()}
	}
	if by := f.Metadata().CreatedBy; by != "loam" {
		fault("it was created by %q, want loam", by)
	}
	leaves := leavesOf(f.Root(), nil)
	for _, leaf := range leaves {
		for node := leaf; node != nil; node = node.above {
			name := strings.Join(node.path, ".")
			if id, named := want.fieldIDs[name]; named && id != node.column.ID() {
				fault("column %s has field id %d, and %d in the table", name, node.column.ID(), id)
			} else if !named && node.column.ID() != 0 {
				fault("column %s has field id %d, and the table has no such column", name, node.column.ID())
			}
		}
	}
	for name := range want.fieldIDs {
		if !slices.ContainsFunc(leaves, func(l *leaf) bool { return strings.HasPrefix(strings.Join(l.path, ".")+".", name+".") }) {
			fault("column %s of the table is not in the file", name)
		}
	}
	sorted := newOrderCheck(want.sortedBy)
	for g, group := range f.RowGroups() {
		if n := group.NumRows(); n > rowGroupRowsMax {
			fault("row group %d has %d rows, want %d at most", g, n, rowGroupRowsMax)
		}
		for i, chunk := range group.ColumnChunks() {
			name := strings.Join(leaves[i].path, ".")
			pages, err := readPages(chunk)
			if err != nil {
				fault("row group %d, column %s: %v", g, name, err)
				continue
			}
			for _, wrong := range checkChunk(chunk, pages, leaves[i].column) {
				fault("row group %d, column %s: %s", g, name, wrong)
			}
			statistics := f.Metadata().RowGroups[g].Columns[i].MetaData.Statistics
			for _, wrong := range checkBounds(slices.Concat(pages...), leaves[i].column.Type(), statistics.NullCount, statistics.MinValue, statistics.MaxValue) {
				fault("row group %d, column %s: %s", g, name, wrong)
			}
			sorted.add(name, slices.Concat(pages...))
		}
		if row := sorted.broken(leaves); row >= 0 {
			fault("row group %d: row %d is before the row above it in the order of %v", g, row, want.sortedBy)
		}
	}
	return faults
}

// leaf is a column of a file, with those that it is in.
type leaf struct {
	column *parquet.Column
	path   []string
	above  *leaf
}

func leavesOf(column *parquet.Column, above *leaf) []*leaf {
	var leaves []*leaf
	for _, c := range column.Columns() {
		l := &leaf{column: c, path: c.Path(), above: above}
		if c.Leaf() {
			leaves = append(leaves, l)
		} else {
			leaves = append(leaves, leavesOf(c, l)...)
		}
	}
	return leaves
}

// readPages reads the values of a chunk, page by page.
func readPages(chunk parquet.ColumnChunk) ([][]parquet.Value, error) {
	reader := chunk.Pages()
	defer reader.Close()
	var pages [][]parquet.Value
	for {
		page, err := reader.ReadPage()
		if errors.Is(err, io.EOF) {
			return pages, nil
		} else if err != nil {
			return nil, err
		}
		values := make([]parquet.Value, page.NumValues())
		n, err := page.Values().ReadValues(values)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n != len(values) {
			return nil, fmt.Errorf("page %d has %d values, and %d can be read", len(pages), len(values), n)
		}
		for i := range values {
			values[i] = values[i].Clone()
		}
		parquet.Release(page)
		pages = append(pages, values)
	}
}

// checkChunk tells what is wrong with the page index of a chunk.
func checkChunk(chunk parquet.ColumnChunk, pages [][]parquet.Value, column *parquet.Column) (faults []string) {
	offsets, err := chunk.OffsetIndex()
	if err != nil {
		return []string{fmt.Sprintf("it has no offset index: %v", err)}
	}
	columns, err := chunk.ColumnIndex()
	if errors.Is(err, parquet.ErrMissingColumnIndex) && unbounded(column.MaxRepetitionLevel() > 0, pages) {
		return nil
	} else if err != nil {
		return []string{fmt.Sprintf("it has no column index: %v", err)}
	}
	if columns.NumPages() != len(pages) || offsets.NumPages() != len(pages) {
		return []string{fmt.Sprintf("it has %d pages, %d in the column index and %d in the offset index", len(pages), columns.NumPages(), offsets.NumPages())}
	}
	row := int64(0)
	for i, values := range pages {
		if first := offsets.FirstRowIndex(i); first != row {
			faults = append(faults, fmt.Sprintf("page %d begins at row %d, and at %d in the offset index", i, row, first))
		}
		for _, v := range values {
			if v.RepetitionLevel() == 0 {
				row++
			}
		}
		nulls := slices.IndexFunc(values, func(v parquet.Value) bool { return !v.IsNull() }) < 0
		if columns.NullPage(i) != nulls {
			faults = append(faults, fmt.Sprintf("page %d: in the column index all of it being null is %v, and %v by its values", i, columns.NullPage(i), nulls))
			continue
		}
		var least, greatest []byte
		if !nulls {
			least, greatest = columns.MinValue(i).Bytes(), columns.MaxValue(i).Bytes()
		}
		for _, wrong := range checkBounds(values, column.Type(), columns.NullCount(i), least, greatest) {
			faults = append(faults, fmt.Sprintf("page %d: %s", i, wrong))
		}
	}
	return faults
}

// unbounded reports whether a chunk has nothing that its index could bound, which arrow-go leaves out then: no list in it has
// an element.
func unbounded(list bool, pages [][]parquet.Value) bool {
	return list && !slices.ContainsFunc(slices.Concat(pages...), func(v parquet.Value) bool { return !v.IsNull() })
}

// checkBounds holds statistics against values. The bounds must be values that are there; those of text may be cut, and
// then lie outside.
func checkBounds(values []parquet.Value, typ parquet.Type, nulls int64, least, greatest []byte) (faults []string) {
	var low, high parquet.Value
	count := int64(0)
	for _, v := range values {
		switch {
		case v.IsNull():
			count++
		case v.Kind() == parquet.Double && math.IsNaN(v.Double()):
		case low.IsNull():
			low, high = v, v
		default:
			if compareValues(typ, v, low) < 0 {
				low = v
			}
			if compareValues(typ, v, high) > 0 {
				high = v
			}
		}
	}
	if count != nulls {
		faults = append(faults, fmt.Sprintf("%d values are null, and %d by the statistics", count, nulls))
	}
	if low.IsNull() {
		return faults
	}
	if least == nil || greatest == nil {
		return append(faults, "it has values and no bounds")
	}
	from, to := typ.Kind().Value(least), typ.Kind().Value(greatest)
	below, above := compareValues(typ, from, low), compareValues(typ, to, high)
	exact := typ.Kind() != parquet.ByteArray
	if below > 0 || (exact && below != 0) {
		faults = append(faults, fmt.Sprintf("the least value is %v, and %v by the statistics", low, from))
	}
	if above < 0 || (exact && above != 0) {
		faults = append(faults, fmt.Sprintf("the greatest value is %v, and %v by the statistics", high, to))
	}
	return faults
}

// compareValues compares two values that are not null in the order of their column's type.
func compareValues(typ parquet.Type, a, b parquet.Value) int {
	switch typ.Kind() {
	case parquet.Boolean:
		return cmp.Compare(bit(a.Boolean()), bit(b.Boolean()))
	case parquet.Int32:
		return cmp.Compare(a.Int32(), b.Int32())
	case parquet.Int64:
		return cmp.Compare(a.Int64(), b.Int64())
	case parquet.Double:
		return cmp.Compare(a.Double(), b.Double())
	case parquet.FixedLenByteArray: // a decimal: a signed number, its greatest byte first
		x, y := slices.Clone(a.ByteArray()), slices.Clone(b.ByteArray())
		x[0], y[0] = x[0]^0x80, y[0]^0x80
		return bytes.Compare(x, y)
	default:
		return bytes.Compare(a.ByteArray(), b.ByteArray())
	}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// orderCheck collects the columns that rows are sorted by, a row group at a time.
type orderCheck struct {
	by   []string
	rows map[string][]parquet.Value
	last []parquet.Value // of the row group before
}

func newOrderCheck(by []string) *orderCheck {
	return &orderCheck{by: by, rows: map[string][]parquet.Value{}}
}

func (o *orderCheck) add(name string, values []parquet.Value) {
	if slices.Contains(o.by, name) {
		o.rows[name] = values
	}
}

// broken is the number of the first row that is before the one above it, or -1.
func (o *orderCheck) broken(leaves []*leaf) int {
	if len(o.by) == 0 || slices.ContainsFunc(o.by, func(name string) bool { return len(o.rows[name]) != len(o.rows[o.by[0]]) }) {
		return -1 // a column that is missing is a fault of its own
	}
	types := map[string]parquet.Type{}
	for _, l := range leaves {
		types[strings.Join(l.path, ".")] = l.column.Type()
	}
	for row := range o.rows[o.by[0]] {
		next := make([]parquet.Value, len(o.by))
		order := 0
		for i, name := range o.by {
			next[i] = o.rows[name][row]
			if o.last != nil && order == 0 {
				order = compareValues(types[name], next[i], o.last[i])
			}
		}
		if order < 0 {
			return row
		}
		o.last = next
	}
	return -1
}

// tableFiles are the data files of a table, and what its newest metadata says of their columns.
func tableFiles(t *testing.T, dir, table string) ([]string, map[string]int) {
	t.Helper()
	folder := filepath.Join(dir, ".loam/warehouse", "crm.db", table)
	var files []string
	err := filepath.WalkDir(filepath.Join(folder, "data"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".parquet") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := filepath.Glob(filepath.Join(folder, "metadata", "*.metadata.json"))
	if err != nil || len(metadata) == 0 {
		t.Fatalf("table %s has no metadata: %v", table, err)
	}
	text, err := os.ReadFile(slices.Max(metadata)) // their names begin with their number
	if err != nil {
		t.Fatal(err)
	}
	var tbl struct {
		Current int `json:"current-schema-id"`
		Schemas []struct {
			ID     int `json:"schema-id"`
			Fields []struct {
				ID   int
				Name string
				Type json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(text, &tbl); err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for _, s := range tbl.Schemas {
		if s.ID != tbl.Current {
			continue
		}
		for _, f := range s.Fields {
			ids[f.Name] = f.ID
			var list struct {
				Element int `json:"element-id"`
			}
			if f.Type[0] == '{' {
				if err := json.Unmarshal(f.Type, &list); err != nil {
					t.Fatal(err)
				}
				ids[f.Name+".list.element"] = list.Element
			}
		}
	}
	return files, ids
}
