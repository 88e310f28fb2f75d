package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// Data files of all tables are what they are said to be, as parquet-go reads them.
func TestDataFiles(t *testing.T) {
	t.Parallel()
	dir := newProject(t, "")
	write(t, dir+"/streams/score.yaml", `stream: score
kind: state
format: row
key: [number, day, name]
event_time: at
columns:
  - {name: number, type: int64}
  - {name: day, type: date}
  - {name: name, type: string}
  - {name: score, type: double}
  - {name: exact, type: "decimal(30,4)"}
  - {name: seen, type: timestamp}
  - {name: fine, type: bool}
  - {name: many, type: list<double>}
`)
	run(t, dir, "apply")
	backfill(t, dir, simulated(t)...)
	scores := dir + "/scores.jsonl"
	write(t, scores, scoreRows())
	backfill(t, dir, "--stream", "score", scores)
	project := openLake(t, dir).project
	for _, table := range []string{
		"contact_log", "contact_history", "opportunity_log", "opportunity_history", "engagement_log", "score_log", "score_history", "dead_letters", "definitions",
	} {
		t.Run(table, func(t *testing.T) {
			files, ids := tableFiles(t, dir, table)
			if len(files) == 0 {
				t.Fatal("it has no data files")
			}
			want := expected{fieldIDs: ids}
			if stream, isLog := strings.CutSuffix(table, "_log"); isLog {
				want.sortedBy = []string{project.Stream(stream).ClusterBy, feature.ColEventTime}
			} else if stream, isHistory := strings.CutSuffix(table, "_history"); isHistory {
				want.sortedBy = append(append([]string{}, project.Stream(stream).Key...), feature.ColValidFrom)
			}
			for _, file := range files {
				for _, fault := range checkParquet(file, want) {
					t.Errorf("%s: %s", strings.TrimPrefix(file, dir), fault)
				}
			}
		})
	}
}

// scoreRows are rows of a stream whose key has columns of several types: numbers of both signs, dates before and after
// 1970, names of several lengths.
func scoreRows() string {
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, `{"number":%d,"day":"%d-03-01","name":"%s","at":"2026-01-%02dT00:00:00Z","score":%d.5,"exact":"%d.0001","seen":"1969-01-01T00:00:%02dZ","fine":%v,"many":[%d,null]}`+"\n",
			(i*7919)%41-20, 1965+i%10, strings.Repeat("n", i%3), 1+i%28, i%11-5, (i*31)%17-8, i%60, i%2 == 0, i)
	}
	return b.String()
}

// A file of more rows than a row group may have gets several of them.
func TestRowGroups(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	l, err := lake.Open(ctx, lake.Config{
		Lake: feature.Lake{Catalog: ".loam/catalog.db", Warehouse: ".loam/warehouse", FormatVersion: 3}, Namespace: "crm", Dir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	def := &feature.Stream{
		Name: "many", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "many.v1", Key: []string{"bucket", "id"}, ClusterBy: "bucket",
		EventTime: "at", Payload: feature.FullPayload,
		Columns: []feature.Column{{Name: "bucket", Type: feature.Type{Kind: feature.String}}, {Name: "id", Type: feature.Type{Kind: feature.Int64}}},
	}
	if err := l.CreateStream(ctx, def); err != nil {
		t.Fatal(err)
	}
	s, err := l.OpenStream(ctx, def, lake.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const rows = rowGroupRowsMax + 5000
	b := array.NewRecordBuilder(memory.DefaultAllocator, def.LogSchema())
	defer b.Release()
	for i := range int64(rows) {
		for j, f := range def.LogSchema().Fields() {
			switch column := b.Field(j).(type) {
			case *array.StringBuilder:
				text, there := map[string]string{
					"bucket": "one", feature.ColEventID: fmt.Sprint(i), feature.ColTopic: "many.v1", feature.ColOp: feature.OpUpsert,
				}[f.Name]
				if there {
					column.Append(text)
				} else {
					column.AppendNull()
				}
			case *array.Int64Builder:
				column.Append(map[string]int64{"id": rows - i, feature.ColOffset: i}[f.Name])
			case *array.TimestampBuilder:
				column.Append(arrow.Timestamp(i * 7919 % rows))
			default:
				column.AppendNull()
			}
		}
	}
	batch := &feature.Batch{Stream: def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}, Spans: []feature.Span{
		{Partition: feature.Partition{Topic: "many.v1"}, To: rows, Counts: feature.Counts{Read: rows, Accepted: rows}},
	}}
	defer batch.Release()
	if _, err := s.Commit(ctx, batch, s.Head()); err != nil {
		t.Fatal(err)
	}
	for table, sortedBy := range map[string][]string{
		"many_log": {"bucket", feature.ColEventTime}, "many_history": {"bucket", "id", feature.ColValidFrom},
	} {
		files, ids := tableFiles(t, dir, table)
		if len(files) != 1 {
			t.Errorf("%s has %d files, want 1", table, len(files))
		}
		for _, file := range files {
			for _, fault := range checkParquet(file, expected{ids, sortedBy}) {
				t.Errorf("%s: %s", table, fault)
			}
		}
	}
}

// The check tells what is wrong with a file.
func TestDataFileFaults(t *testing.T) {
	t.Parallel()
	const marked = 0x1122334455667788 // found again among the file's bytes
	field := func(name string, typ arrow.DataType, id string) arrow.Field {
		return arrow.Field{Name: name, Type: typ, Nullable: true, Metadata: arrow.NewMetadata([]string{"PARQUET:field_id"}, []string{id})}
	}
	schema := arrow.NewSchema([]arrow.Field{field("k", arrow.BinaryTypes.String, "1"), field("n", arrow.PrimitiveTypes.Int64, "2")}, nil)
	keys, numbers := []string{"a", "a", "b", "b", "c"}, []int64{3, 5, 1, marked, marked + 9}
	usual := []parquet.WriterProperty{
		parquet.WithPageIndexEnabled(true), parquet.WithCreatedBy("loam"), parquet.WithStats(true), parquet.WithDictionaryDefault(false),
	}
	number := binary.LittleEndian.AppendUint64(nil, marked)
	for name, c := range map[string]struct {
		change func(schema **arrow.Schema, keys *[]string, numbers *[]int64)
		more   []parquet.WriterProperty
		tamper func(text []byte) []byte
		want   string // of a fault; "" for none
	}{
		"nothing":    {},
		"no index":   {more: []parquet.WriterProperty{parquet.WithPageIndexEnabled(false)}, want: "it has no offset index"},
		"no bounds":  {more: []parquet.WriterProperty{parquet.WithStats(false)}, want: "index"},
		"created by": {more: []parquet.WriterProperty{parquet.WithCreatedBy("other")}, want: `created by "other"`},
		"a value above the bounds": {tamper: func(text []byte) []byte {
			return bytes.Replace(text, number, binary.LittleEndian.AppendUint64(nil, marked+99), 1)
		}, want: "page 0: the greatest value is"},
		"a value below the bounds": {tamper: func(text []byte) []byte {
			return bytes.Replace(text, number, binary.LittleEndian.AppendUint64(nil, 0), 1)
		}, want: "page 0: the least value is 0, and 1 by the statistics"},
		"order of the first column":  {change: func(_ **arrow.Schema, keys *[]string, _ *[]int64) { *keys = []string{"a", "a", "c", "b", "b"} }, want: "row 3 is before"},
		"order of the second column": {change: func(_ **arrow.Schema, _ *[]string, n *[]int64) { *n = []int64{3, 5, marked, 1, marked + 9} }, want: "row 3 is before"},
		"field id": {change: func(s **arrow.Schema, _ *[]string, _ *[]int64) {
			*s = arrow.NewSchema([]arrow.Field{(*s).Field(0), field("n", arrow.PrimitiveTypes.Int64, "3")}, nil)
		}, want: "column n has field id 3, and 2 in the table"},
		"a column too many": {change: func(s **arrow.Schema, _ *[]string, _ *[]int64) {
			*s = arrow.NewSchema([]arrow.Field{(*s).Field(0), field("other", arrow.PrimitiveTypes.Int64, "2")}, nil)
		}, want: "the table has no such column"},
		"a column that is missing": {change: func(s **arrow.Schema, _ *[]string, _ *[]int64) {
			*s = arrow.NewSchema([]arrow.Field{(*s).Field(0), field("other", arrow.PrimitiveTypes.Int64, "2")}, nil)
		}, want: "column n of the table is not in the file"},
		"a row group too large": {change: func(_ **arrow.Schema, keys *[]string, numbers *[]int64) {
			for range rowGroupRowsMax {
				*keys, *numbers = append(*keys, "d"), append(*numbers, 7)
			}
		}, want: "has 122885 rows, want 122880 at most"},
		"order over row groups": {change: func(_ **arrow.Schema, keys *[]string, _ *[]int64) { *keys = []string{"b", "b", "a", "c", "c"} },
			more: []parquet.WriterProperty{parquet.WithMaxRowGroupLength(2)}, want: "row group 1: row 0 is before"},
		"no Parquet": {tamper: func([]byte) []byte { return []byte("no Parquet") }, want: "magic"},
	} {
		t.Run(name, func(t *testing.T) {
			schema, keys, numbers := schema, slices.Clone(keys), slices.Clone(numbers)
			if c.change != nil {
				c.change(&schema, &keys, &numbers)
			}
			b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
			defer b.Release()
			b.Field(0).(*array.StringBuilder).AppendValues(keys, nil)
			b.Field(1).(*array.Int64Builder).AppendValues(numbers, nil)
			batch := b.NewRecordBatch()
			defer batch.Release()
			var text bytes.Buffer
			w, err := pqarrow.NewFileWriter(schema, &text, parquet.NewWriterProperties(append(slices.Clone(usual), c.more...)...), pqarrow.DefaultWriterProps())
			if err == nil {
				err = w.WriteBuffered(batch)
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			bytes := text.Bytes()
			if c.tamper != nil {
				bytes = c.tamper(bytes)
			}
			path := filepath.Join(t.TempDir(), "file.parquet")
			if err := os.WriteFile(path, bytes, 0o644); err != nil {
				t.Fatal(err)
			}
			faults := checkParquet(path, expected{map[string]int{"k": 1, "n": 2}, []string{"k", "n"}})
			switch found := slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.want) }); {
			case c.want == "" && len(faults) > 0:
				t.Errorf("%q, want no fault", faults)
			case c.want != "" && !found:
				t.Errorf("%q, want %q among them", faults, c.want)
			}
		})
	}
}
