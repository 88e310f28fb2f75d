package lake

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// The seeker gives the rows that reading all of them gives: of small files and large ones, with keys in one page and over
// several, deleted rows left out, and times before and after those of a row.
func TestSeeker(t *testing.T) {
	ctx := context.Background()
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 4))
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	offset := int64(0)
	put := func(n int, key func(i int) string) {
		rows := make([]row, n)
		for i := range rows {
			rows[i] = row{id: key(i), v: fmt.Sprint(r.IntN(4)), u: r.Int64N(3), at: 1000 + offset/100, topic: "t", offset: offset}
			offset++
		}
		commit(t, s, rows, from)
	}
	put(300_000, func(i int) string {
		if i%7 == 0 {
			return "hot" // over many pages
		}
		return fmt.Sprintf("%x", i/3)
	})
	for range 3 {
		put(5000, func(int) string { return fmt.Sprintf("%x", r.IntN(100_000)) })
	}
	for _, kind := range []struct {
		table    *Table
		from, to string
	}{{s.log, feature.ColEventTime, feature.ColEventTime}, {s.history, feature.ColValidFrom, feature.ColValidTo}} {
		seeker := newSeeker(kind.table, s.layout.key, kind.from, kind.to)
		defer seeker.close()
		files, err := kind.table.plan(ctx, ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var probes []probe
		asked := map[string]probe{}
		for i := range 60 {
			id := fmt.Sprintf("%x", r.IntN(110_000))
			if i == 0 {
				id = "hot"
			}
			p := probe{key: string(scd.AppendValue(nil, []byte(id))), from: math.MinInt64, to: math.MaxInt64}
			if i%2 == 0 {
				p.from = (1000 + r.Int64N(offset/100)) * 1e6
				p.to = p.from + r.Int64N(2000)*1e6
			}
			if i == 0 { // always long enough to hold many of its rows, and never all
				p.from = (1000 + offset/400) * 1e6
				p.to = p.from + 1000*1e6
			}
			if _, twice := asked[id]; !twice {
				asked[id] = p
				probes = append(probes, p)
			}
		}
		found, err := seeker.find(ctx, files, probes)
		if err != nil {
			t.Fatal(err)
		}
		var hits []hit
		for _, some := range found {
			hits = append(hits, some...)
		}
		var got []string
		columns := []string{"id", "v", feature.ColOffset, kind.from}
		err = seeker.rows(ctx, files, hits, columns, func(_ hit, batch arrow.RecordBatch, i int) error {
			got = append(got, rowText(batch, i))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := scanned(t, s, kind.table, columns, kind.from, kind.to, asked)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || len(want) < 100 {
			t.Errorf("%s: %d rows, want %d of at least 100", kind.table.Name(), len(got), len(want))
		}
	}
}

// A key of several columns is found as a key of one is.
func TestSeekerCompositeKey(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	var rows []row
	for i := range int64(5000) {
		rows = append(rows, row{id: fmt.Sprint(i / 10), v: "v", u: i % 3, at: 1000 + i, topic: "t", offset: i})
	}
	commit(t, s, rows, map[string]int64{})
	files, err := s.log.plan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := def.Column("u")
	seeker := newSeeker(s.log, append(slices.Clone(s.layout.key), u), feature.ColEventTime, feature.ColEventTime)
	defer seeker.close()
	var probes []probe
	want := map[string][]int64{}
	for i := int64(0); i < 5000; i += 41 {
		r := rows[i]
		number := binary.LittleEndian.AppendUint64(nil, uint64(r.u))
		key := string(scd.AppendValue(scd.AppendValue(nil, []byte(r.id)), number))
		probes = append(probes, probe{key: key, from: math.MinInt64, to: math.MaxInt64})
		for _, other := range rows {
			if other.id == r.id && other.u == r.u {
				want[key] = append(want[key], other.at)
			}
		}
	}
	found, err := seeker.find(ctx, files, probes)
	if err != nil {
		t.Fatal(err)
	}
	for key, times := range want {
		var got []int64
		for _, h := range found[key] {
			got = append(got, h.from/1e6)
		}
		if slices.Sort(got); !slices.Equal(got, times) {
			t.Errorf("%q: rows at %v, want %v", key, got, times)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d keys, want %d", len(found), len(want))
	}
}

func rowText(batch arrow.RecordBatch, i int) string {
	text := ""
	for c := range int(batch.NumCols()) {
		text += batch.Column(c).ValueStr(i) + " "
	}
	return text
}

// scanned gives the rows that probes ask for by reading all rows.
func scanned(t *testing.T, s *Stream, table *Table, columns []string, from, to string, asked map[string]probe) []string {
	t.Helper()
	ctx := context.Background()
	relation, err := table.Scan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.LakeView(ctx, "whole", relation, false); err != nil {
		t.Fatal(err)
	}
	var rows []string
	statement := fmt.Sprintf(`SELECT id, v, "offset", %s, coalesce(epoch_us(%s), %d) FROM whole`, from, to, int64(math.MaxInt64))
	err = s.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		for reader.Next() {
			b := reader.RecordBatch()
			part := b.Schema().Fields()[:len(columns)]
			shown := array.NewRecordBatch(arrow.NewSchema(part, nil), b.Columns()[:len(columns)], b.NumRows())
			for i := range int(b.NumRows()) {
				p, ok := asked[b.Column(0).(*array.String).Value(i)]
				begin, end := int64(b.Column(3).(*array.Timestamp).Value(i)), b.Column(4).(*array.Int64).Value(i)
				if ok && begin <= p.to && end >= p.from {
					rows = append(rows, rowText(shown, i))
				}
			}
			shown.Release()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// LookUp finds the identities of several commits, and none that differs in id or time; also in an event stream, whose files need not be in
// the order of its keys.
func TestLookUpByPages(t *testing.T) {
	byKey, byOther := testStream(), testStream()
	byKey.Name, byKey.Kind = "fact", feature.EventStream
	byOther.Name, byOther.Kind, byOther.ClusterBy = "other", feature.EventStream, "v"
	for _, def := range []*feature.Stream{testStream(), byKey, byOther} {
		t.Run(def.Name, func(t *testing.T) { lookUpByPages(t, def) })
	}
}

func lookUpByPages(t *testing.T, def *feature.Stream) {
	ctx := context.Background()
	l := openLake(t)
	s := openStream(t, l, def)
	from := map[string]int64{}
	var rows []row
	for i := range 500 {
		rows = append(rows, row{id: fmt.Sprint("k", i%50), v: string(rune('A' + i%7)), at: int64(1000 + i/3), topic: "t", offset: int64(i)})
	}
	commit(t, s, rows[:300], from)
	commit(t, s, rows[300:], from)
	var ids []feature.Identity
	want := map[feature.Identity]feature.Position{}
	for i := 0; i < 500; i += 7 {
		r := rows[i]
		id := feature.Identity{EventID: fmt.Sprintf("t-%d-%s", i, r.id), Key: r.id, EventTime: r.at * 1e6}
		want[id] = feature.Position{Topic: "t", Offset: int64(i)}
		other, later := id, id
		other.EventID += "x"
		later.EventTime++
		ids = append(ids, id, other, later)
	}
	got, err := s.LookUp(ctx, ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d found, want %d", len(got), len(want))
	}
	for id, p := range want {
		if got[id] != p {
			t.Errorf("%+v at %v, want %v", id, got[id], p)
		}
	}
}

// writeSeekFile writes a batch as a file of its own, and opens that.
func writeSeekFile(t *testing.T, batch arrow.RecordBatch, properties *parquet.WriterProperties) *seekFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rows.parquet")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pqarrow.NewFileWriter(batch.Schema(), out, properties, pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := openSeekFile(path, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.reader.Close() })
	return f
}

// Lists are read right from anywhere in a file: rows of one page and of several, of one row group and of two, empty and null.
func TestSeekFileLists(t *testing.T) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 5))
	id := func(n string) arrow.Metadata { return arrow.NewMetadata([]string{"PARQUET:field_id"}, []string{n}) }
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int64, Metadata: id("1")},
		{Name: "tags", Type: arrow.ListOfField(arrow.Field{Name: "element", Type: arrow.BinaryTypes.String, Nullable: true, Metadata: id("3")}), Nullable: true, Metadata: id("2")},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	tags := b.Field(1).(*array.ListBuilder)
	rows := rowGroupRows + 40_000
	want := make([]string, rows)
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		n := r.IntN(6) - 1
		if i/1000%9 == 8 {
			n = -1 // pages of nulls alone
		}
		tags.Append(n >= 0)
		for k := range n {
			tags.ValueBuilder().(*array.StringBuilder).Append(fmt.Sprint(i*10 + k))
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	for i := range want {
		want[i] = batch.Column(1).ValueStr(i)
	}
	f := writeSeekFile(t, batch, packing{}.properties(batch))
	for range 30 {
		var ranges []rowRange
		for at := r.Int64N(20_000); at < int64(rows) && len(ranges) < 1+r.IntN(20); at += 1 + r.Int64N(1<<r.IntN(16)) {
			end := min(at+1+r.Int64N(1<<r.IntN(13)), int64(rows))
			ranges = append(ranges, rowRange{at, end})
			at = end
		}
		got, err := f.take(schema, []string{"tags", "n"}, ranges)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for _, r := range ranges {
			for row := r.from; row < r.to; row++ {
				if list := got.Column(0).ValueStr(i); list != want[row] || got.Column(1).(*array.Int64).Value(i) != row {
					t.Fatalf("%v: row %d is %s, want %s", ranges, row, list, want[row])
				}
				i++
			}
		}
		if int(got.NumRows()) != i {
			t.Errorf("%v: %d rows, want %d", ranges, got.NumRows(), i)
		}
		got.Release()
	}
	if pages := len(f.starts[f.leaves[2]]); pages < 100 {
		t.Errorf("%d pages of lists, want many", pages)
	}
}

// Rows are taken as they were written, whatever the type of a column, and null where the file lacks it.
func TestTakeOfEveryType(t *testing.T) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 6))
	var fields []arrow.Field
	for _, name := range []string{
		"bool", "int64", "double", "string", "json", "timestamp", "date", "decimal(5,2)", "decimal(18,0)", "decimal(38,9)",
		"list<string>", "list<int64>", "list<bool>", "list<double>", "list<date>", "list<timestamp>", "list<decimal(20,3)>",
	} {
		typ, err := feature.ParseType(name)
		if err != nil {
			t.Fatal(err)
		}
		id := arrow.NewMetadata([]string{"PARQUET:field_id"}, []string{fmt.Sprint(len(fields) + 1)})
		fields = append(fields, arrow.Field{Name: name, Type: typ.Arrow(), Nullable: true, Metadata: id})
	}
	schema := arrow.NewSchema(fields, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	var put func(b array.Builder)
	put = func(b array.Builder) {
		if r.IntN(4) == 0 {
			b.AppendNull()
			return
		}
		n := r.Int64N(20_000) - 10_000
		switch b := b.(type) {
		case *array.BooleanBuilder:
			b.Append(n > 0)
		case *array.Int64Builder:
			b.Append(n << r.IntN(40))
		case *array.Float64Builder:
			b.Append(float64(n) / 3)
		case *array.StringBuilder:
			b.Append(fmt.Sprint("text ", n))
		case *array.TimestampBuilder:
			b.Append(arrow.Timestamp(n << r.IntN(40)))
		case *array.Date32Builder:
			b.Append(arrow.Date32(n))
		case *array.Decimal128Builder:
			b.Append(decimal128.FromI64(n))
		case *array.ListBuilder:
			b.Append(true)
			for range r.IntN(4) {
				put(b.ValueBuilder())
			}
		default:
			t.Fatalf("%T", b)
		}
	}
	for range 20_000 {
		for i := range fields {
			put(b.Field(i))
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	more := append(slices.Clone(fields), arrow.Field{
		Name: "added", Type: arrow.BinaryTypes.String, Nullable: true, Metadata: arrow.NewMetadata([]string{"PARQUET:field_id"}, []string{"99"}),
	})
	var names []string
	for _, f := range more {
		names = append(names, f.Name)
	}
	for _, lasting := range []bool{true, false} {
		f := writeSeekFile(t, batch, packing{lasting: lasting, scanned: true}.properties(batch))
		for range 10 {
			from := r.Int64N(batch.NumRows())
			ranges := []rowRange{{from, from + 1 + r.Int64N(min(5000, batch.NumRows()-from))}}
			if at := ranges[0].to + 7; at < batch.NumRows() {
				ranges = append(ranges, rowRange{at, at + 1})
			}
			got, err := f.take(arrow.NewSchema(more, nil), names, ranges)
			if err != nil {
				t.Fatal(err)
			}
			for c := range names {
				at := int64(0)
				for _, rows := range ranges {
					n := rows.to - rows.from
					part := array.NewSlice(got.Column(c), at, at+n)
					want := array.MakeArrayOfNull(memory.DefaultAllocator, more[c].Type, int(n))
					if c < len(fields) {
						want = array.NewSlice(batch.Column(c), rows.from, rows.to)
					}
					if !array.Equal(part, want) {
						t.Errorf("%s of rows %v: %v, want %v", names[c], rows, part, want)
					}
					at += n
				}
			}
			got.Release()
		}
	}
}

// Values of a flat column are read right from anywhere in a row group, in files that have a page index and in those that
// haven't, where a range is of many pages.
func TestColumnReader(t *testing.T) {
	id := func(n string) arrow.Metadata { return arrow.NewMetadata([]string{"PARQUET:field_id"}, []string{n}) }
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true, Metadata: id("1")},
		{Name: "at", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}, Nullable: true, Metadata: id("2")},
		{Name: "day", Type: arrow.FixedWidthTypes.Date32, Metadata: id("3")},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	rows := rowGroupRows + 30_000
	for i := range rows {
		b.Field(0).(*array.StringBuilder).Append(fmt.Sprintf("key %d", i))
		if i%3 == 0 {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(i * 10))
		}
		b.Field(2).(*array.Date32Builder).Append(arrow.Date32(i - 5))
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	for name, properties := range map[string]*parquet.WriterProperties{
		"with a page index": packing{lasting: true}.properties(batch),
		"packed fast":       packing{}.properties(batch),
		"without": parquet.NewWriterProperties(parquet.WithMaxRowGroupLength(rowGroupRows), parquet.WithDataPageSize(pageBytes),
			parquet.WithBatchSize(pageBatchRows), parquet.WithCompression(compress.Codecs.Zstd), parquet.WithDictionaryDefault(false)),
	} {
		t.Run(name, func(t *testing.T) {
			f := writeSeekFile(t, batch, properties)
			for id := 1; id <= 3; id++ {
				c, err := f.column(id)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []rowRange{{0, rowGroupRows}, {5, 6}, {rowGroupRows, int64(rows)}, {2000, 9000}, {rowGroupRows - 1, rowGroupRows + 1}} {
					next := r.from
					err := c.each(r, func(row int64, v value, valid bool) {
						right := map[int]bool{
							1: valid && string(v.text) == fmt.Sprintf("key %d", row),
							2: valid == (row%3 != 0) && (!valid || v.number == row*10),
							3: valid && v.number == row-5,
						}[id]
						if row != next || !right {
							t.Fatalf("field %d, row %d for row %d: %q %d %v", id, row, next, v.text, v.number, valid)
						}
						next++
					})
					if err != nil || next != r.to {
						t.Fatalf("field %d: rows %v end at %d, %v", id, r, next, err)
					}
				}
			}
		})
	}
}
