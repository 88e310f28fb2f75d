package lake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

func openDB(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open(context.Background(), sql.Options{Files: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// A reading of one entity has the rows of that entity alone, all of them, and reads files of its bucket and key range only.
func TestReadingOf(t *testing.T) {
	ctx := context.Background()
	l, def, db := openLake(t), testStream(), openDB(t)
	s := openStream(t, l, def)
	from := map[string]int64{}
	wanted := map[string]int{}
	offset := int64(0)
	for part := range 5 {
		var rows []row
		for i := range 40 {
			// Every commit has keys of its own range, each twice.
			id := fmt.Sprintf("%c'{id}%02d", 'a'+part, i/2)
			rows = append(rows, row{id: id, v: fmt.Sprint(i), at: int64(i), topic: "t", offset: offset})
			wanted[id]++
			offset++
		}
		commit(t, s, rows, from)
	}
	reading, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a'{id}01", "c'{id}17", "e'{id}19", "zzz"} {
		one, err := reading.Of(ctx, db, []string{id})
		if err != nil {
			t.Fatal(err)
		}
		for name, view := range map[string]func() error{
			"log":     func() error { return one.LogView(ctx, db, "one", []string{"v"}, false) },
			"history": func() error { return one.HistoryView(ctx, db, "one", []string{"v"}) },
		} {
			if err := view(); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := db.QueryRow(ctx, "SELECT count(*) FROM one", nil, &n); err != nil {
				t.Fatal(err)
			}
			if n != wanted[id] {
				t.Errorf("the %s has %d rows of %s, want %d", name, n, id, wanted[id])
			}
		}
		files, err := one.Log.plan(ctx, ScanOptions{Filter: one.files})
		if err != nil {
			t.Fatal(err)
		}
		all, err := one.Log.plan(ctx, ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if want := min(1, wanted[id]); len(files) != want || len(all) != 5*Buckets {
			t.Errorf("%d of %d files are read for %s, want %d", len(files), len(all), id, want)
		}
	}
}

// Keys of every type are found by their text, and a text that is no value of the column is refused.
func TestReadingOfTypes(t *testing.T) {
	ctx := context.Background()
	l, db := openLake(t), openDB(t)
	def := testStream()
	def.Key = []string{"n", "d", "at2", "id"}
	def.ClusterBy = "n"
	def.Columns = []feature.Column{
		{Name: "n", Type: feature.Type{Kind: feature.Int64}}, {Name: "d", Type: feature.Type{Kind: feature.Date}},
		{Name: "at2", Type: feature.Type{Kind: feature.Timestamp}}, {Name: "id", Type: feature.Type{Kind: feature.String}},
		{Name: "v", Type: feature.Type{Kind: feature.String}},
	}
	s := openStream(t, l, def)
	day := time.Date(1969, 3, 1, 0, 0, 0, 0, time.UTC)
	schema := def.LogSchema()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	const rows = 3
	for i := range rows {
		for c, f := range schema.Fields() {
			switch field := b.Field(c).(type) {
			case *array.Int64Builder:
				field.Append(int64(i)) // n, sequence, partition and offset, of which the third may be anything
			case *array.Date32Builder:
				field.Append(arrow.Date32FromTime(day.AddDate(0, 0, i)))
			case *array.TimestampBuilder:
				field.Append(arrow.Timestamp(day.Add(time.Duration(i) * time.Microsecond).UnixMicro()))
			case *array.StringBuilder:
				switch f.Name {
				case feature.ColOp:
					field.Append(feature.OpUpsert)
				case feature.ColTopic:
					field.Append("t")
				default:
					field.Append(fmt.Sprint("x", i))
				}
			default:
				field.AppendNull()
			}
		}
	}
	batch := &feature.Batch{Stream: def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}}
	defer batch.Release()
	for i := range int32(rows) {
		batch.Spans = append(batch.Spans, feature.Span{Partition: feature.Partition{Topic: "t", Index: i}, To: int64(i) + 1})
	}
	if _, err := s.Commit(ctx, batch, s.Head()); err != nil {
		t.Fatal(err)
	}
	reading, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		key := []string{fmt.Sprint(i), day.AddDate(0, 0, i).Format(time.DateOnly),
			day.Add(time.Duration(i) * time.Microsecond).Format("2006-01-02 15:04:05.000000"), fmt.Sprint("x", i)}
		one, err := reading.Of(ctx, db, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := one.HistoryView(ctx, db, "one", nil); err != nil {
			t.Fatal(err)
		}
		var v string
		if err := db.QueryRow(ctx, "SELECT v FROM one", nil, &v); err != nil || v != fmt.Sprint("x", i) {
			t.Errorf("key %v: %q, %v", key, v, err)
		}
		for c, bad := range []string{"one", "yesterday", "noon"} {
			wrong := slices.Clone(key)
			wrong[c] = bad
			if _, err := reading.Of(ctx, db, wrong); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q is not a value of %s", bad, def.Key[c])) {
				t.Errorf("key %v: error %v", wrong, err)
			}
		}
	}
}
