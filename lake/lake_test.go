package lake

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
	"github.com/loamdata/loam/sql"
)

var seed = flag.Uint64("seed", 0, "seed of the random histories; 0 takes one from the clock")

// seedOf gives the seed of a random test, and prints it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", sd)
	return sd
}

// testStream is a state stream with a key, a tracked column and one that isn't.
func testStream() *feature.Stream {
	return &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "thing.v1", Key: []string{"id"}, ClusterBy: "id",
		EventTime: "at", Payload: feature.FullPayload, Track: []string{"v"},
		Columns: []feature.Column{
			{Name: "id", Type: feature.Type{Kind: feature.String}}, {Name: "v", Type: feature.Type{Kind: feature.String}},
			{Name: "u", Type: feature.Type{Kind: feature.Int64}},
		},
	}
}

// row is an accepted event of testStream.
type row struct {
	id, v   string
	u       int64
	at      int64 // event time, seconds
	topic   string
	offset  int64
	deleted bool
}

func openLake(t *testing.T) *Lake {
	t.Helper()
	return openLakeIn(t, 3)
}

// openLakeIn opens a lake whose tables are of this version of Iceberg's format.
func openLakeIn(t *testing.T, format int) *Lake {
	t.Helper()
	return openLakeAt(t, t.TempDir(), format)
}

// openLakeAt opens the lake that is in a folder, as a process of its own does.
func openLakeAt(t *testing.T, dir string, format int) *Lake {
	t.Helper()
	l, err := Open(context.Background(), Config{
		Lake:      feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: format},
		Namespace: "test", Dir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func openStream(t *testing.T, l *Lake, def *feature.Stream) *Stream {
	t.Helper()
	ctx := context.Background()
	if err := l.CreateStream(ctx, def); err != nil {
		t.Fatal(err)
	}
	s, err := l.OpenStream(ctx, def, StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// batchOf makes a batch of rows; its spans start at from, an offset for each topic.
func batchOf(def *feature.Stream, rows []row, from map[string]int64) *feature.Batch {
	schema := def.LogSchema()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	fields := map[string]array.Builder{}
	for i, f := range schema.Fields() {
		fields[f.Name] = b.Field(i)
	}
	set := func(name string, value any) {
		f := fields[name]
		switch v := value.(type) {
		case nil:
			f.AppendNull()
		case string:
			f.(*array.StringBuilder).Append(v)
		case int64:
			if tb, ok := f.(*array.TimestampBuilder); ok {
				tb.Append(arrow.Timestamp(v))
			} else {
				f.(*array.Int64Builder).Append(v)
			}
		case bool:
			f.(*array.BooleanBuilder).Append(v)
		}
	}
	spans := map[string]*feature.Span{}
	for _, r := range rows {
		set("id", r.id)
		if r.deleted {
			set("v", nil)
			set("u", nil)
			set(feature.ColOp, feature.OpDelete)
		} else {
			set("v", r.v)
			set("u", r.u)
			set(feature.ColOp, feature.OpUpsert)
		}
		for _, c := range def.Columns[3:] {
			set(c.Name, nil)
		}
		for _, c := range def.LogColumns()[len(def.Columns):] {
			switch c.Name {
			case feature.ColEventTime:
				set(c.Name, r.at*1e6)
			case feature.ColRecordedAt, feature.ColIngestedAt:
				set(c.Name, r.offset+1)
			case feature.ColEventID:
				set(c.Name, fmt.Sprintf("%s-%d-%s", r.topic, r.offset, r.id))
			case feature.ColTopic:
				set(c.Name, r.topic)
			case feature.ColPartition:
				set(c.Name, int64(0))
			case feature.ColOffset:
				set(c.Name, r.offset)
			case feature.ColAssumed:
				set(c.Name, false)
			case feature.ColOp:
			default:
				set(c.Name, nil)
			}
		}
		s := spans[r.topic]
		if s == nil {
			s = &feature.Span{Partition: feature.Partition{Topic: r.topic}, From: from[r.topic], To: from[r.topic]}
			spans[r.topic] = s
		}
		s.To = max(s.To, r.offset+1)
		s.Watermark = max(s.Watermark, r.at*1e6)
		s.Counts.Read++
		s.Counts.Accepted++
	}
	batch := &feature.Batch{Stream: def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}}
	for _, topic := range slices.Sorted(maps.Keys(spans)) {
		from[topic] = spans[topic].To
		batch.Spans = append(batch.Spans, *spans[topic])
	}
	return batch
}

// read gives a history as lines "id v/u [from,to) offset", sorted.
func read(t *testing.T, l *Lake, def *feature.Stream) []string {
	t.Helper()
	ctx := context.Background()
	table, err := l.OpenTable(ctx, HistoryName(def.Name))
	if err != nil {
		t.Fatal(err)
	}
	relation, err := table.Scan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.LakeView(ctx, "h", relation, false); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(ctx, `SELECT id, v, u, epoch(valid_from)::BIGINT, coalesce(epoch(valid_to)::BIGINT::VARCHAR, ''), is_current, topic, "offset" FROM h`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var id, v, to, topic string
		var u, from, offset int64
		var current bool
		if err := rows.Scan(&id, &v, &u, &from, &to, &current, &topic, &offset); err != nil {
			t.Fatal(err)
		}
		if current != (to == "") {
			t.Errorf("%s from %d: is_current is %v and valid_to %q", id, from, current, to)
		}
		lines = append(lines, fmt.Sprintf("%s %s/%d [%06d,%s) %s@%d", id, v, u, from, to, topic, offset))
	}
	sort.Strings(lines)
	return lines
}

// want gives the history that the rows make, by scd.Fold alone.
func want(rows []row) []string {
	byKey := map[string][]scd.Change{}
	values := map[string]row{}
	for _, r := range rows {
		c := scd.Change{
			Order:  feature.Order{EventTime: r.at, Live: feature.Live(r.topic), TopicHash: feature.TopicHash(r.topic), Offset: r.offset},
			Origin: scd.Origin{Topic: r.topic}, Delete: r.deleted,
		}
		if !r.deleted {
			_, c.Row = scd.AppendRow(nil, scd.AppendValue(nil, []byte(r.v)), scd.AppendValue(nil, fmt.Append(nil, r.u)))
			values[string(c.Row)] = r
		}
		byKey[r.id] = append(byKey[r.id], c)
	}
	var lines []string
	for id, changes := range byKey {
		scd.Sort(changes)
		versions, _ := scd.Fold(nil, changes)
		for _, v := range versions {
			to := ""
			if v.To != scd.Open {
				to = fmt.Sprint(v.To)
			}
			r := values[string(v.Row)]
			lines = append(lines, fmt.Sprintf("%s %s/%d [%06d,%s) %s@%d", id, r.v, r.u, v.From, to, v.Origin.Topic, v.Order.Offset))
		}
	}
	sort.Strings(lines)
	return lines
}

func commit(t *testing.T, s *Stream, rows []row, from map[string]int64) Result {
	t.Helper()
	b := batchOf(s.Definition(), rows, from)
	defer b.Release()
	r, err := s.Commit(context.Background(), b, s.Head())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("history\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// The two traps: a no-op that a late change makes a version of, and a change that comes before a delete.
func TestTraps(t *testing.T) {
	for name, rows := range map[string][]row{
		"no-op confirmed, then a late change": {{v: "A", at: 10}, {v: "A", at: 20}, {v: "B", at: 15}},
		"delete, then a change before it":     {{deleted: true, at: 30}, {v: "A", at: 25}},
		"correction at the same time":         {{v: "A", at: 10}, {v: "B", at: 20}, {v: "A", at: 20}},
		"untracked in place":                  {{v: "A", u: 1, at: 10}, {v: "A", u: 2, at: 20}, {v: "B", u: 3, at: 30}},
	} {
		t.Run(name, func(t *testing.T) {
			l := openLake(t)
			s := openStream(t, l, testStream())
			from := map[string]int64{}
			for i := range rows {
				rows[i].id, rows[i].topic, rows[i].offset = "k", "thing.v1", int64(i)
				commit(t, s, rows[i:i+1], from)
			}
			compare(t, read(t, l, s.Definition()), want(rows))
		})
	}
}

// TestAnyBatching holds the tables against the oracle for random changes in random batches, with the stream closed and
// opened again, replayed batches, and a history left behind its log.
func TestAnyBatching(t *testing.T) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 2))
	for range 4 {
		l := openLake(t)
		def := testStream()
		s := openStream(t, l, def)
		var rows []row
		next := map[string]int64{}
		for i := range 120 {
			topic := []string{"thing.v1", "file:abc"}[r.IntN(2)]
			rows = append(rows, row{
				id: string(rune('a' + r.IntN(12))), v: string(rune('A' + r.IntN(3))), u: int64(r.IntN(3)),
				at: int64(1000 + i*2 - r.IntN(30)*r.IntN(2)), topic: topic, offset: next[topic], deleted: r.IntN(6) == 0,
			})
			next[topic]++
		}
		from := map[string]int64{}
		var late, fast int64
		for left := rows; len(left) > 0; {
			n := min(1+r.IntN(20), len(left))
			switch r.IntN(8) {
			case 0: // a process that ends between log and history
				b := batchOf(def, left[:n], from)
				var res Result
				written, err := s.commitLog(context.Background(), b, s.Head(), &res)
				if err != nil {
					t.Fatal(err)
				}
				releaseAll(written)
				b.Release()
				s = openStream(t, l, def)
			case 1: // a restart
				s = openStream(t, l, def)
				fallthrough
			default:
				res := commit(t, s, left[:n], from)
				late += res.LateKeys
				fast += int64(n) - res.LateKeys
			}
			left = left[n:]
		}
		compare(t, read(t, l, def), want(rows))
		sameCounts(t, l, def, rows)
		if late == 0 || fast == 0 {
			t.Errorf("%d late keys, %d others: want some of both", late, fast)
		}
	}
}

// A batch that starts where the table doesn't stand is refused, and changes nothing.
func TestFence(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	rows := []row{{id: "a", v: "A", at: 10, topic: "thing.v1"}}
	commit(t, s, rows, map[string]int64{})
	b := batchOf(def, []row{{id: "a", v: "B", at: 20, topic: "thing.v1"}}, map[string]int64{})
	defer b.Release()
	_, err := s.Commit(context.Background(), b, s.Head())
	if err == nil || !strings.Contains(err.Error(), ErrFenced.Error()) {
		t.Fatalf("error %v, want %v", err, ErrFenced)
	}
	compare(t, read(t, l, def), want(rows))
	if o, err := s.Offsets(); err != nil || o.Partitions[feature.Partition{Topic: "thing.v1"}].Next != 1 {
		t.Errorf("offsets %+v, %v", o, err)
	}
}

// Of two processes that move the same offsets at one moment, neither with a row, the second is refused.
func TestOffsetsAloneAreFenced(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	def := testStream()
	first, second := openStream(t, openLakeAt(t, dir, 3), def), openStream(t, openLakeAt(t, dir, 3), def)
	p := feature.Partition{Topic: "thing.v1"}
	idle := func(to int64) *feature.Batch {
		return &feature.Batch{Stream: def, Spans: []feature.Span{{Partition: p, To: to, Counts: feature.Counts{Read: to, Refused: to}}}}
	}
	tries := 0
	err := first.log.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		tries++
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		props, err := offsets.move(idle(3).Spans, summary[summaryCommit])
		if err != nil {
			return err
		}
		if tries == 1 {
			if _, err := second.Commit(ctx, idle(5), second.Head()); err != nil {
				t.Fatal(err)
			}
		}
		return tx.SetProperties(props)
	})
	if !errors.Is(err, ErrFenced) || tries != 2 {
		t.Errorf("%v after %d tries, want %v after 2", err, tries, ErrFenced)
	}
	o, err := second.Offsets()
	if at := o.Partitions[p]; err != nil || at.Next != 5 || at.Counts.Read != 5 {
		t.Errorf("the log stands at %+v, %v", at, err)
	}
}

// Whoever is given a partition brings the history to where its log stands, of that partition alone, and goes on.
func TestResume(t *testing.T) {
	l, ctx := openLake(t), context.Background()
	def := testStream()
	gone, other, next := openStream(t, l, def), openStream(t, l, def), openStream(t, l, def)
	rows := []row{{id: "a", v: "A", at: 10, topic: "thing.v1"}, {id: "b", v: "B", at: 20, topic: "other.v1"}, {id: "a", v: "C", at: 30, topic: "thing.v1", offset: 1}}
	froms := map[string]int64{}
	for i, s := range []*Stream{gone, other} {
		b := batchOf(def, rows[i:i+1], froms)
		written, err := s.commitLog(ctx, b, s.Head(), &Result{}) // and it ends before the history
		if err != nil {
			t.Fatal(err)
		}
		releaseAll(written)
		b.Release()
	}
	p := feature.Partition{Topic: "thing.v1"}
	offsets, err := next.Resume(ctx, []feature.Partition{p})
	if err != nil {
		t.Fatal(err)
	}
	if at, _ := offsets.Of(p); at.Next != 1 {
		t.Errorf("the partition is resumed at %+v", at)
	}
	compare(t, read(t, l, def), want(rows[:1]))
	commit(t, next, rows[2:], froms)
	if _, err := next.Resume(ctx, []feature.Partition{{Topic: "other.v1"}}); err != nil {
		t.Fatal(err)
	}
	compare(t, read(t, l, def), want(rows))
}

// Two workers with partitions of their own write the same tables, and the keys of a third overlap with theirs.
func TestWorkersSideBySide(t *testing.T) {
	l := openLake(t)
	def := testStream()
	var all []row
	streams := make([]*Stream, 3)
	froms := make([]map[string]int64, 3)
	for i := range streams {
		streams[i], froms[i] = openStream(t, l, def), map[string]int64{}
	}
	r := rand.New(rand.NewPCG(5, 5))
	for round := range 8 {
		for i, s := range streams {
			topic := fmt.Sprintf("topic%d", i)
			var rows []row
			for range 5 {
				rows = append(rows, row{
					id: string(rune('a' + r.IntN(6))), v: string(rune('A' + r.IntN(3))), at: int64(1000 + round*10 + r.IntN(20)),
					topic: topic, offset: int64(len(rows)) + froms[i][topic], deleted: r.IntN(8) == 0,
				})
			}
			all = append(all, rows...)
			commit(t, s, rows, froms[i])
		}
	}
	compare(t, read(t, l, def), want(all))
}

// An event that two workers read from two partitions is logged once.
func TestTwinsOfTwoWorkers(t *testing.T) {
	l := openLake(t)
	def := testStream()
	one, two := openStream(t, l, def), openStream(t, l, def)
	known := two.Head()
	commit(t, one, []row{{id: "a", v: "A", at: 10, topic: "p"}}, map[string]int64{})
	b := batchOf(def, []row{{id: "a", v: "A", at: 10, topic: "p"}, {id: "b", v: "B", at: 10, topic: "q", offset: 1}}, map[string]int64{})
	defer b.Release()
	// The first row is the twin of what one has committed: same id, key and time, read from another position.
	b.Spans[0].Partition.Topic = "q2"
	patchTopic(b, 0, "q2")
	res, err := two.Commit(context.Background(), b, known)
	if err != nil {
		t.Fatal(err)
	}
	if res.Dropped != 1 || res.Rows != 1 || len(res.Foreign) != 1 {
		t.Errorf("result %+v, want one row dropped", res)
	}
	for _, s := range b.Spans {
		if s.Counts.Read != s.Counts.Accepted+s.Counts.Refused+s.Counts.Duplicate {
			t.Errorf("counts %+v", s.Counts)
		}
	}
}

// patchTopic replaces the topic of one row.
func patchTopic(b *feature.Batch, n int, topic string) {
	old := b.Rows[0]
	i := old.Schema().FieldIndices(feature.ColTopic)[0]
	sb := array.NewStringBuilder(memory.DefaultAllocator)
	defer sb.Release()
	for r := range int(old.NumRows()) {
		if r == n {
			sb.Append(topic)
		} else {
			sb.Append(old.Column(i).(*array.String).Value(r))
		}
	}
	column := sb.NewArray()
	defer column.Release()
	patched, err := old.SetColumn(i, column)
	if err != nil {
		panic(err)
	}
	b.Rows[0] = patched
	old.Release()
}

func TestEvolve(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	rows := []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "b", v: "B", at: 10, topic: "t", offset: 1}}
	commit(t, s, rows, from)
	wider := testStream()
	wider.Columns = append(wider.Columns, feature.Column{Name: "w", Type: feature.Type{Kind: feature.String, List: true}})
	s = openStream(t, l, wider)
	more := []row{{id: "a", v: "A", at: 20, topic: "t", offset: 2}, {id: "b", v: "C", at: 20, topic: "t", offset: 3}}
	commit(t, s, more, from)
	compare(t, read(t, l, wider), want(append(rows, more...)))
	narrow := testStream()
	narrow.Columns[2].Type = feature.Type{Kind: feature.String}
	if err := l.CreateStream(context.Background(), narrow); err == nil || !strings.Contains(err.Error(), "can't become") {
		t.Errorf("error %v, want the changed type refused", err)
	}
}

// Commit time stays flat because manifests are merged and snapshots expired in line.
func TestUpkeep(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	var rows []row
	for i := range 3 * upkeepCommits {
		r := row{id: fmt.Sprint(i % 7), v: fmt.Sprint(i), at: int64(100 + i), topic: "t", offset: int64(i)}
		rows = append(rows, r)
		commit(t, s, []row{r}, from)
	}
	compare(t, read(t, l, def), want(rows))
	for _, table := range []*Table{s.log, s.history} {
		if n := len(table.tbl.Metadata().Snapshots()); n > snapshotsKept+upkeepCommits+2 {
			t.Errorf("%s keeps %d snapshots", table.Name(), n)
		}
		io, err := table.tbl.FS(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		manifests, err := table.tbl.CurrentSnapshot().Manifests(io)
		if err != nil {
			t.Fatal(err)
		}
		data := 0
		for _, m := range manifests {
			if m.ManifestContent() == iceberg.ManifestContentData {
				data++
			}
		}
		if data > upkeepCommits+2 {
			t.Errorf("%s has %d manifests of data files", table.Name(), data)
		}
	}
}

func TestLookUp(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	commit(t, s, []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "b", v: "B", at: 20, topic: "t", offset: 1}}, map[string]int64{})
	ctx := context.Background()
	seen := feature.Identity{EventID: "t-1-b", Key: "b", EventTime: 20e6}
	found, err := s.LookUp(ctx, []feature.Identity{
		seen, {EventID: "t-1-b", Key: "a", EventTime: 20e6}, {EventID: "t-1-b", Key: "b", EventTime: 21e6}, {EventID: "x", Key: "b", EventTime: 20e6},
	})
	if err != nil || len(found) != 1 || found[seen] != (feature.Position{Topic: "t", Offset: 1}) {
		t.Errorf("found %v, %v", found, err)
	}
	var recent []Accepted
	all, err := s.Recent(ctx, 10, func(a Accepted) { recent = append(recent, a) })
	if err != nil || !all || len(recent) != 2 || recent[0].Identity != seen {
		t.Errorf("recent %v, all %v, %v", recent, all, err)
	}
	if all, err = s.Recent(ctx, 1, func(Accepted) {}); err != nil || all {
		t.Errorf("all %v, %v", all, err)
	}
}
