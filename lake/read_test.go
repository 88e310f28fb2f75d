package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// A reading is had again by its pins, whatever has been committed, renamed and compacted since; what is gone is said.
func TestReadingAgain(t *testing.T) {
	ctx := context.Background()
	l, def, db := openLake(t), testStream(), openDB(t)
	s := openStream(t, l, def)
	from := map[string]int64{}
	for part := range 3 {
		var rows []row
		for i := range 5 {
			rows = append(rows, row{id: fmt.Sprint("k", i), v: fmt.Sprint(part), at: int64(10*part + i), topic: "t", offset: int64(5*part + i)})
		}
		commit(t, s, rows, from)
	}
	read := func(r *Reading) (log, history string) {
		t.Helper()
		if err := r.LogView(ctx, db, "log", []string{"v"}, false); err != nil {
			t.Fatal(err)
		}
		if err := r.HistoryView(ctx, db, "history", []string{"v", "valid_to"}); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRow(ctx, "SELECT (SELECT string_agg(v, '' ORDER BY v) FROM log), (SELECT string_agg(v || coalesce(epoch_us(valid_to)::VARCHAR, '-'), ' ' ORDER BY v, valid_to) FROM history)", nil, &log, &history); err != nil {
			t.Fatal(err)
		}
		return log, history
	}
	now, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	log, history := read(now)
	pins := now.Pins()
	for _, table := range []*Table{now.Log, now.History} {
		if err := table.Tag(ctx, "kept", table.SnapshotID()); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, s, []row{{id: "k1", v: "9", at: 100, topic: "t", offset: 15}, {id: "k2", v: "8", at: 11, topic: "t", offset: 16}}, from)
	m, err := l.OpenMaintainer(ctx, def, MaintainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for {
		if _, more, err := m.Compact(ctx, true); err != nil {
			t.Fatal(err)
		} else if !more {
			break
		}
	}
	if err := s.log.expire(ctx, 0); err != nil {
		t.Fatal(err)
	}
	again, err := l.ReadAt(ctx, def, pins)
	if err != nil {
		t.Fatal(err)
	}
	if l, h := read(again); l != log || h != history {
		t.Errorf("again the log is %s and the history %s, want %s and %s", l, h, log, history)
	}
	if newest, err := l.Read(ctx, def); err != nil {
		t.Fatal(err)
	} else if l, h := read(newest); l == log || h == history {
		t.Error("the newest reading is as before")
	}
	if !maps.EqualFunc(again.Pins(), pins, func(a, b Pin) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) || !maps.Equal(again.Snapshots(), now.Snapshots()) {
		t.Errorf("pins %v, want %v", again.Pins(), pins)
	}
	name := l.TableName(LogName(def.Name))
	for what, change := range map[string]func(*Pin){
		"made anew since": func(p *Pin) { p.UUID = "x" }, "it was unpinned, and has expired": func(p *Pin) { p.Snapshot = 17 },
		"schema 99 of": func(p *Pin) { p.Schema = 99 },
	} {
		changed := maps.Clone(pins)
		p := changed[name]
		change(&p)
		changed[name] = p
		if _, err := l.ReadAt(ctx, def, changed); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
	if tags, err := l.Tags(ctx, name); !slices.Equal(tags, []string{"kept"}) || err != nil {
		t.Errorf("the tags are %v: %v", tags, err)
	}
	if was, err := l.Unpin(ctx, name, "kept"); !was || err != nil {
		t.Errorf("unpin: %v, %v", was, err)
	}
	if was, err := l.Unpin(ctx, name, "kept"); was || err != nil {
		t.Errorf("unpin again: %v, %v", was, err)
	}
}

// Rows that the history had not taken are left out again, when it has taken them since.
func TestReadingAgainWithoutWhatWasBeyond(t *testing.T) {
	ctx := context.Background()
	l, def, db := openLake(t), testStream(), openDB(t)
	s := openStream(t, l, def)
	commit(t, s, []row{{id: "a", v: "1", at: 1, topic: "t", offset: 0}, {id: "a", v: "2", at: 2, topic: "t", offset: 1}}, map[string]int64{})
	now, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	pins := now.Pins()
	pin := pins[now.Log.Name()]
	pin.Beyond = []PinSpan{{Topic: "t", From: 1, To: 2}}
	pins[now.Log.Name()] = pin
	again, err := l.ReadAt(ctx, def, pins)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.LogView(ctx, db, "log", []string{"v"}, false); err != nil {
		t.Fatal(err)
	}
	var v string
	if err := db.QueryRow(ctx, "SELECT string_agg(v, '') FROM log", nil, &v); err != nil || v != "1" {
		t.Errorf("the log is %s, want 1: %v", v, err)
	}
	if got := again.Pins()[now.Log.Name()]; fmt.Sprint(got) != fmt.Sprint(pin) {
		t.Errorf("pin %v, want %v", got, pin)
	}
}
