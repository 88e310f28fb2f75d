package lake

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strconv"

	"github.com/FastFilter/xorfilter"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// seekFile is an open data file. It is used by one goroutine at a time.
type seekFile struct {
	path   string
	reader *file.Reader
	groups []rowGroup
	leaves map[int]int                  // leaf column by the field id of its top-level field
	keys   *xorfilter.BinaryFuse[uint8] // which keys it holds, nil for none
	pages  []keyPage
	starts map[int][]int64 // first rows of the pages of leaf columns that were read
	used   int64
}

// rowGroup is a row group and its rows. Its reader keeps the parts of the page index that were used.
type rowGroup struct {
	rowRange
	reader *file.RowGroupReader
}

// keyPage is a page of a file's first key column.
type keyPage struct {
	rowRange
	least, greatest []byte // sortable; nil where they aren't known
}

type rowRange struct{ from, to int64 }

func openSeekFile(path, local string) (*seekFile, error) {
	properties := parquet.NewReaderProperties(memory.DefaultAllocator)
	properties.BufferedStreamEnabled, properties.BufferSize = true, seekBytes // else whole column chunks are read
	reader, err := file.OpenParquetFile(local, false, file.WithReadProps(properties))
	if err != nil {
		return nil, err
	}
	f := &seekFile{path: path, reader: reader, leaves: map[int]int{}, starts: map[int][]int64{}}
	schema := reader.MetaData().Schema
	for leaf := range schema.NumColumns() {
		if id := int(schema.ColumnRoot(leaf).FieldID()); id >= 0 {
			f.leaves[id] = leaf
		}
	}
	var start int64
	for n := range reader.NumRowGroups() {
		g := rowGroup{reader: reader.RowGroup(n)}
		g.rowRange = rowRange{start, start + g.reader.NumRows()}
		start = g.to
		f.groups = append(f.groups, g)
	}
	return f, nil
}

// fieldID is the Iceberg field id of a column.
func fieldID(f arrow.Field) (int, bool) {
	text, ok := f.Metadata.GetValue("PARQUET:field_id")
	if !ok {
		return 0, false
	}
	id, err := strconv.Atoi(text)
	return id, err == nil
}

// index lists the pages of the first key column.
func (f *seekFile) index(keyID int) error {
	leaf, ok := f.leaves[keyID]
	if !ok {
		return fmt.Errorf("it has no column with field id %d", keyID)
	}
	for n := range f.groups {
		pages, err := f.groupPages(n, leaf)
		if err != nil {
			return err
		}
		f.pages = append(f.pages, pages...)
	}
	return nil
}

// groupOf gives the row group that has the row.
func (f *seekFile) groupOf(row int64) *rowGroup {
	for i := range f.groups {
		if row < f.groups[i].to {
			return &f.groups[i]
		}
	}
	panic("a row outside of its file")
}

// pageOf gives the page of a leaf column that has the row.
func (f *seekFile) pageOf(leaf int, row int64) (rowRange, error) {
	starts, known := f.starts[leaf]
	if !known {
		for n := range f.groups {
			pages, err := f.groupPages(n, leaf)
			if err != nil {
				return rowRange{}, err
			}
			for _, p := range pages {
				starts = append(starts, p.from)
			}
		}
		f.starts[leaf] = starts
	}
	next, _ := slices.BinarySearch(starts, row+1)
	p := rowRange{starts[next-1], f.reader.NumRows()}
	if next < len(starts) {
		p.to = starts[next]
	}
	return p, nil
}

// groupPages lists the pages of a row group, or one for all of it where it has no page index.
func (f *seekFile) groupPages(group, leaf int) ([]keyPage, error) {
	rows := f.groups[group].rowRange
	whole := []keyPage{{rowRange: rows}}
	indexes, err := f.reader.GetPageIndexReader().RowGroup(group)
	if err != nil || indexes == nil {
		return whole, err
	}
	offsets, err := indexes.GetOffsetIndex(leaf)
	if err != nil || offsets == nil {
		return whole, err
	}
	columns, err := indexes.GetColumnIndex(leaf)
	if err != nil || columns == nil {
		return whole, err
	}
	locations := offsets.GetPageLocations()
	least, greatest := columns.GetMinValues(), columns.GetMaxValues()
	pages := make([]keyPage, len(locations))
	for i, at := range locations {
		p := keyPage{rowRange: rowRange{rows.from + at.FirstRowIndex, rows.to}}
		if i+1 < len(locations) {
			p.to = rows.from + locations[i+1].FirstRowIndex
		}
		if !columns.GetNullPages()[i] {
			physical := f.reader.MetaData().Schema.Column(leaf).PhysicalType()
			p.least, p.greatest = sortableBound(physical, least[i]), sortableBound(physical, greatest[i])
		}
		pages[i] = p
	}
	return pages, nil
}

// sortableBound gives a bound of a page index as bytes that compare as the values do.
func sortableBound(physical parquet.Type, raw []byte) []byte {
	switch {
	case physical == parquet.Types.Int64 && len(raw) == 8:
		return sortableNumber(int64(binary.LittleEndian.Uint64(raw)))
	case physical == parquet.Types.Int32 && len(raw) == 4:
		return sortableNumber(int64(int32(binary.LittleEndian.Uint32(raw))))
	case physical == parquet.Types.ByteArray:
		return bytes.Clone(raw)
	default:
		return nil
	}
}

func sortableNumber(v int64) []byte { return appendSortable(nil, v) }

func appendSortable(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(v)^1<<63)
}

// sortableKey gives the first value of a packed key as bytes that compare as the values do.
func sortableKey(key string, first feature.Column) []byte {
	value, _ := scd.Next([]byte(key))
	if first.Type.Kind == feature.String {
		return value
	}
	return sortableNumber(int64(binary.LittleEndian.Uint64(value)))
}

// mayHold leaves of the probes those whose keys the file may hold.
func (f *seekFile) mayHold(probes []probe) map[string]probe {
	left := map[string]probe{}
	for _, p := range probes {
		if f.keys != nil && f.keys.Contains(xxh3.HashString(p.key)) {
			left[p.key] = p
		}
	}
	return left
}

// pagesOf lists the pages that may hold one of some first values of keys, which are sortable and in order, each with those
// that it may hold.
func (f *seekFile) pagesOf(firsts [][]byte) iter.Seq2[rowRange, [][]byte] {
	return func(yield func(rowRange, [][]byte) bool) {
		for _, p := range f.pages {
			within := firsts
			if p.least != nil && p.greatest != nil {
				from, _ := slices.BinarySearchFunc(firsts, p.least, bytes.Compare)
				to, last := slices.BinarySearchFunc(firsts, p.greatest, bytes.Compare)
				if last {
					to++
				}
				within = firsts[from:max(from, to)]
			}
			if len(within) > 0 && !yield(p.rowRange, within) {
				return
			}
		}
	}
}
