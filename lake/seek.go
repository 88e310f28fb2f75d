package lake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/FastFilter/xorfilter"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// seeker reads the rows of some keys from a table's data files without reading the files: of each it knows which keys it
// may hold, and its page index tells the pages that these are in. So the cost follows the number of keys, not of rows. Files
// stay open with what is known of them.
//
// A file without a page index, as another engine may write it, counts as one page a row group. A file that isn't sorted by
// key is read right, too, if slower.
type seeker struct {
	table    *Table
	key      []feature.Column
	from, to string // columns of the times that a row begins and ends at
	mu       sync.Mutex
	opened   map[string]*seekFile // by path of the data file
	uses     int64
}

const (
	filesOpenMax = 256     // files that a seeker keeps open
	seekBytes    = 8 << 10 // read at a time
)

func newSeeker(t *Table, key []feature.Column, from, to string) *seeker {
	return &seeker{table: t, key: key, from: from, to: to, opened: map[string]*seekFile{}}
}

// close closes the files.
func (s *seeker) close() {
	for _, f := range s.opened {
		f.reader.Close()
	}
	s.opened = map[string]*seekFile{}
}

// probe asks for the rows of a key whose times touch [from, to].
type probe struct {
	key      string // packed
	from, to int64
}

// hit is a row of the files that were given.
type hit struct {
	file     int // index in the files given
	row      int64
	from, to int64 // the row's times; to is scd.Open for null
}

// find gives the rows of the files that the probes ask for, by key, deleted ones left out.
func (s *seeker) find(ctx context.Context, files []*liveFile, probes []probe) (map[string][]hit, error) {
	byBucket := map[any][]probe{}
	for _, p := range probes {
		b := bucketOfKey(p.key)
		byBucket[b] = append(byBucket[b], p)
	}
	fields, err := s.fields()
	if err != nil {
		return nil, err
	}
	found := map[string][]hit{}
	var mu sync.Mutex
	err = each(len(files), func(i int) error {
		asked := s.within(files[i], byBucket[bucketOfFile(s.table, files[i])])
		if len(asked) == 0 {
			return ctx.Err()
		}
		f, err := s.open(ctx, files[i])
		if err != nil {
			return err
		}
		wanted := f.mayHold(asked)
		if len(wanted) == 0 {
			return nil
		}
		some, err := s.matches(f, fields, wanted)
		if err != nil {
			return fmt.Errorf("read data file %s: %w", f.path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for key, hits := range some {
			for _, h := range hits {
				if h.file = i; !files[i].lacks(uint32(h.row)) {
					found[key] = append(found[key], h)
				}
			}
		}
		return nil
	})
	return found, err
}

// fields gives the field ids of the key, of the time that a row begins at and, where that is another, of the one it ends at.
func (s *seeker) fields() ([]int, error) {
	schema := s.table.tbl.Schema()
	var ids []int
	names := append(feature.ColumnNames(s.key), s.from)
	if s.to != s.from {
		names = append(names, s.to)
	}
	for _, name := range names {
		field, ok := schema.FindFieldByName(name)
		if !ok {
			return nil, fmt.Errorf("%s has no column %s", s.table.Name(), name)
		}
		ids = append(ids, field.ID)
	}
	return ids, nil
}

// matches gives the rows of a file that the probes ask for. Of the pages that may hold a key its first column is read, and
// of the rest what stands in the rows that have the first value of one. fields are as fields gives them.
func (s *seeker) matches(f *seekFile, fields []int, probes map[string]probe) (map[string][]hit, error) {
	columns := make([]*columnReader, len(fields))
	for i, id := range fields {
		var err error
		if columns[i], err = f.column(id); err != nil {
			return nil, err
		}
	}
	firsts := make([][]byte, 0, len(probes))
	for key := range probes {
		firsts = append(firsts, sortableKey(key, s.key[0]))
	}
	slices.SortFunc(firsts, bytes.Compare)
	found := map[string][]hit{}
	for page, within := range f.pagesOf(firsts) {
		rows, err := s.rowsWith(columns[0], page, within)
		if err != nil {
			return nil, err
		}
		for len(rows) > 0 {
			n := 1
			for n < len(rows) && rows[n].row == rows[n-1].row+1 {
				n++
			}
			if err := s.complete(rows[:n], columns[1:]); err != nil {
				return nil, err
			}
			for _, r := range rows[:n] {
				if p, ok := probes[string(r.key)]; ok && r.from <= p.to && r.to >= p.from {
					found[p.key] = append(found[p.key], r.hit)
				}
			}
			rows = rows[n:]
		}
	}
	return found, nil
}

// foundRow is a row that may be a hit.
type foundRow struct {
	hit
	key []byte // packed, as far as it was read
}

// rowsWith gives the rows of a page that have one of some first values of keys, which are sortable and in order. It takes
// the fewest steps where the rows are in order, too.
func (s *seeker) rowsWith(first *columnReader, page rowRange, wanted [][]byte) ([]foundRow, error) {
	var rows []foundRow
	var sortable []byte
	next := 0
	err := first.each(page, func(at int64, v value, _ bool) {
		of := v.text
		if s.key[0].Type.Kind != feature.String {
			sortable = appendSortable(sortable[:0], v.number)
			of = sortable
		}
		if next == len(wanted) || next > 0 && bytes.Compare(of, wanted[next-1]) <= 0 {
			next, _ = slices.BinarySearchFunc(wanted, of, bytes.Compare)
		}
		for next < len(wanted) && bytes.Compare(wanted[next], of) < 0 {
			next++
		}
		if next < len(wanted) && bytes.Equal(wanted[next], of) {
			rows = append(rows, foundRow{hit{row: at}, s.pack(nil, 0, v)})
		}
	})
	return rows, err
}

// complete reads what is missing of rows that follow one another.
func (s *seeker) complete(rows []foundRow, columns []*columnReader) error {
	run := rowRange{rows[0].row, rows[len(rows)-1].row + 1}
	for i, c := range columns {
		err := c.each(run, func(at int64, v value, valid bool) {
			r := &rows[at-run.from]
			switch column := i + 1; {
			case column < len(s.key):
				r.key = s.pack(r.key, column, v)
			case column == len(s.key):
				r.from, r.to = v.number, v.number
			case valid:
				r.to = v.number
			default:
				r.to = scd.Open
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pack appends the value of a key's column to the packed key.
func (s *seeker) pack(key []byte, column int, v value) []byte {
	if s.key[column].Type.Kind == feature.String {
		return scd.AppendValue(key, v.text)
	}
	return binary.LittleEndian.AppendUint64(append(key, 9), uint64(v.number))
}

// within leaves of the probes those whose times the file may hold.
func (s *seeker) within(f *liveFile, probes []probe) []probe {
	if len(probes) == 0 {
		return nil
	}
	if f.span == nil {
		least, _ := bounds(s.table, f, s.from)
		_, greatest := bounds(s.table, f, s.to)
		f.span = &[2]int64{least, greatest}
	}
	var left []probe
	for _, p := range probes {
		if p.from <= f.span[1] && p.to >= f.span[0] {
			left = append(left, p)
		}
	}
	return left
}

// rows reads rows of the files, and calls use with each as row i of a batch that has these columns, one at a time.
func (s *seeker) rows(ctx context.Context, files []*liveFile, hits []hit, columns []string, use func(h hit, batch arrow.RecordBatch, i int) error) error {
	byFile := map[int][]hit{}
	for _, h := range hits {
		byFile[h.file] = append(byFile[h.file], h)
	}
	numbers := make([]int, 0, len(byFile))
	for n, group := range byFile {
		numbers = append(numbers, n)
		slices.SortFunc(group, func(a, b hit) int { return cmp.Compare(a.row, b.row) })
	}
	schema, err := s.table.arrowSchema()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	return each(len(numbers), func(i int) error {
		group := byFile[numbers[i]]
		f, err := s.open(ctx, files[numbers[i]])
		if err != nil {
			return err
		}
		var ranges []rowRange
		for _, h := range group {
			if n := len(ranges); n > 0 && ranges[n-1].to >= h.row {
				ranges[n-1].to = h.row + 1
			} else {
				ranges = append(ranges, rowRange{h.row, h.row + 1})
			}
		}
		batch, err := f.take(schema, columns, ranges)
		if err != nil {
			return fmt.Errorf("read data file %s: %w", f.path, err)
		}
		defer batch.Release()
		mu.Lock()
		defer mu.Unlock()
		at := -1
		for n, h := range group {
			if n == 0 || h.row != group[n-1].row {
				at++
			}
			if err := use(h, batch, at); err != nil {
				return err
			}
		}
		return nil
	})
}

// open opens a data file, or gives it as it was opened before.
func (s *seeker) open(ctx context.Context, live *liveFile) (*seekFile, error) {
	path := live.data.FilePath()
	s.mu.Lock()
	s.uses++
	if f := s.opened[path]; f != nil {
		f.used = s.uses
		s.mu.Unlock()
		return f, nil
	}
	s.mu.Unlock()
	fsys, err := s.table.tbl.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the files of %s: %w", s.table.Name(), err)
	}
	local, err := s.table.lake.local(ctx, fsys, path)
	if err != nil {
		return nil, err
	}
	f, err := openSeekFile(path, local)
	if err != nil {
		return nil, fmt.Errorf("open data file %s: %w", path, err)
	}
	key, ok := s.table.tbl.Schema().FindFieldByName(s.key[0].Name)
	if !ok {
		panic("a table without its key")
	}
	if err := f.index(key.ID); err != nil {
		f.reader.Close()
		return nil, fmt.Errorf("read the page index of %s: %w", path, err)
	}
	if err := s.filter(f); err != nil {
		f.reader.Close()
		return nil, fmt.Errorf("read the keys of %s: %w", path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.used = s.uses
	s.opened[path] = f
	return f, nil
}

// tidy closes the files that were not used for the longest time, where there are too many. Nothing may be reading.
func (s *seeker) tidy() {
	if len(s.opened) <= filesOpenMax {
		return
	}
	all := make([]*seekFile, 0, len(s.opened))
	for _, f := range s.opened {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *seekFile) int { return cmp.Compare(a.used, b.used) })
	for _, f := range all[:len(all)-filesOpenMax*3/4] {
		f.reader.Close()
		delete(s.opened, f.path)
	}
}

// filter keeps which keys a file holds: a byte and a bit a key, and one key in 256 that it doesn't hold.
func (s *seeker) filter(f *seekFile) error {
	schema, err := s.table.arrowSchema()
	if err != nil {
		return err
	}
	hashes := make([]uint64, 0, f.reader.NumRows())
	for _, g := range f.groups {
		batch, err := f.take(schema, feature.ColumnNames(s.key), []rowRange{g.rowRange})
		if err != nil {
			return err
		}
		keyOf, err := keysOf(s.key, batch)
		if err != nil {
			return err
		}
		for i := range int(batch.NumRows()) {
			if hash := xxh3.Hash(keyOf(i)); len(hashes) == 0 || hash != hashes[len(hashes)-1] {
				hashes = append(hashes, hash)
			}
		}
		batch.Release()
	}
	if len(hashes) == 0 {
		return nil
	}
	f.keys, err = xorfilter.NewBinaryFuse[uint8](hashes)
	return err
}

// bounds gives the least and greatest value of a time column in a file, from its statistics.
func bounds(t *Table, f *liveFile, column string) (least, greatest int64) {
	field, ok := t.tbl.Schema().FindFieldByName(column)
	if !ok {
		panic("no column " + column)
	}
	of := func(all map[int][]byte, otherwise int64) int64 {
		if raw := all[field.ID]; len(raw) == 8 {
			return int64(binary.LittleEndian.Uint64(raw))
		}
		return otherwise
	}
	return of(f.data.LowerBoundValues(), math.MinInt64), of(f.data.UpperBoundValues(), math.MaxInt64)
}

// bucketOfFile is the bucket that a file's rows are of.
func bucketOfFile(t *Table, f *liveFile) any {
	spec := t.tbl.Spec()
	for i := range spec.NumFields() {
		if spec.Field(i).Name == bucketField {
			return f.data.Partition()[spec.Field(i).FieldID]
		}
	}
	return nil
}
