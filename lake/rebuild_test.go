package lake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// damage writes every data file of a stream's history anew with what a SELECT * REPLACE list makes of its rows, where the
// condition holds for them, behind the back of Iceberg.
func damage(t *testing.T, l *Lake, def *feature.Stream, replacement, where string) {
	t.Helper()
	ctx := context.Background()
	history, err := l.OpenTable(ctx, HistoryName(def.Name))
	if err != nil {
		t.Fatal(err)
	}
	relation, err := history.Scan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var ids []sql.Fragment
	for _, c := range relation.Columns {
		ids = append(ids, sql.Ident(c.Name)+": "+sql.Fragment(fmt.Sprint(c.FieldID)))
	}
	for _, f := range relation.Files {
		if err := db.Exec(ctx, fmt.Sprintf("COPY (SELECT * REPLACE (%s) FROM read_parquet(%s, hive_partitioning = false) WHERE %s) TO %s (FORMAT parquet, FIELD_IDS {%s})",
			replacement, sql.Literal(f.Path), where, sql.Literal(f.Path+".new"), sql.Join(", ", ids))); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(f.Path+".new", f.Path); err != nil {
			t.Fatal(err)
		}
	}
}

func rebuildIt(t *testing.T, l *Lake, def *feature.Stream) Rebuilt {
	t.Helper()
	done, err := l.Rebuild(context.Background(), def, RebuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// randomRows are n rows of a topic from an offset on, some of them late.
func randomRows(r *rand.Rand, topic string, offset int64, n, keys int, at int64) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{
			id: fmt.Sprintf("k%02d", r.IntN(keys)), v: string(rune('A' + r.IntN(3))), u: int64(r.IntN(3)),
			at: at + int64(i) - int64(r.IntN(40)*r.IntN(2)), topic: topic, offset: offset + int64(i), deleted: r.IntN(7) == 0,
		}
	}
	return rows
}

// A history whose rows were altered and lost is, rebuilt, what its log makes again; a worker that was open goes on from it.
func TestRebuildOfADamagedHistory(t *testing.T) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 21))
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	var all []row
	put := func(n int) Result {
		rows := randomRows(r, "thing.v1", from["thing.v1"], n, 30, int64(1000+len(all)))
		all = append(all, rows...)
		return commit(t, s, rows, from)
	}
	for range 6 {
		put(40)
	}
	damage(t, l, def, "CASE WHEN id > 'k10' THEN 'Z' ELSE v END AS v", "id <> 'k05'")
	if got := read(t, l, def); strings.Join(got, "\n") == strings.Join(want(all), "\n") {
		t.Fatal("the history was not damaged")
	}
	done := rebuildIt(t, l, def)
	versions := want(all)
	compare(t, read(t, l, def), versions)
	if done.Changes != int64(len(all)) || done.Versions != int64(len(versions)) || done.Later != 0 {
		t.Errorf("rebuilt %+v: want %d changes and %d versions", done, len(all), len(versions))
	}
	for range 3 {
		put(40)
	}
	compare(t, read(t, l, def), want(all))
	s = openStream(t, l, def)
	put(40)
	rebuildIt(t, l, def) // once more, of a history that has deletion vectors
	put(40)
	compare(t, read(t, l, def), want(all))
}

// The index of a worker holds what the damaged history said; after a rebuild it goes by what that says.
func TestRebuildUnderAnOpenWorker(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	all := []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "b", v: "A", at: 10, topic: "t", offset: 1}}
	commit(t, s, all, from)
	damage(t, l, def, "'Z' AS v", "true")
	s = openStream(t, l, def)
	if err := s.Warm(context.Background()); err != nil {
		t.Fatal(err)
	}
	rebuildIt(t, l, def)
	more := []row{{id: "a", v: "A", at: 20, topic: "t", offset: 2}, {id: "b", v: "B", at: 20, topic: "t", offset: 3}}
	res := commit(t, s, more, from)
	if res.NoOps != 1 {
		t.Errorf("%d no-ops: want the state that the rebuild wrote confirmed", res.NoOps)
	}
	compare(t, read(t, l, def), want(append(all, more...)))
	// From then on it is as fast as before.
	last := []row{{id: "a", v: "C", at: 30, topic: "t", offset: 4}}
	if res := commit(t, s, last, from); res.LateKeys != 0 {
		t.Error("a change after the rebuild went the late way")
	}
	compare(t, read(t, l, def), want(append(append(all, more...), last...)))
}

// A stream that tracks other columns is opened only once its history is derived by them; who was open before is ErrChanged.
func TestRebuildByOtherTrackedColumns(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	columns := []feature.Column{column("id", "string"), column("a", "string"), column("b", "string")}
	def := evolving(columns...)
	s := openStream(t, l, def)
	values := func(a, b string) map[string]string { return map[string]string{"id": "k", "a": a, "b": b} }
	takeEvents(t, s, event{10, 0, values("A", "1")}, event{20, 1, values("A", "2")}, event{30, 2, values("B", "2")})
	same(t, "history", rowsOf(t, l, "thing_history", "a", "b"), "A 1 [10,20)", "A 2 [20,30)", "B 2 [30,)")

	other := evolving(columns...)
	other.Track = []string{"a"}
	if refusal, err := l.Refusal(ctx, other); err != nil || refusal != "" {
		t.Errorf("refusal %q, %v", refusal, err)
	}
	if err := l.CreateStream(ctx, other); err != nil {
		t.Fatal(err)
	}
	if names, err := l.Retracked(ctx, other); err != nil || strings.Join(names, " ") != "b" {
		t.Errorf("retracked %v, %v", names, err)
	}
	if _, err := l.OpenStream(ctx, other, StreamOptions{}); err == nil || !strings.Contains(err.Error(), "test.thing_history was derived while b was tracked otherwise: run `loam rebuild thing`") {
		t.Errorf("open: %v", err)
	}
	takeEvents(t, s, event{40, 3, values("B", "3")}) // who tracks what it did goes on
	same(t, "before", rowsOf(t, l, "thing_history", "a", "b"), "A 1 [10,20)", "A 2 [20,30)", "B 2 [30,40)", "B 3 [40,)")

	rebuildIt(t, l, other)
	same(t, "after", rowsOf(t, l, "thing_history", "a", "b"), "A 2 [10,30)", "B 3 [30,)")
	if names, err := l.Retracked(ctx, other); err != nil || names != nil {
		t.Errorf("retracked %v, %v", names, err)
	}
	b := eventsOf(t, def, []event{{50, 4, values("B", "4")}})
	defer b.Release()
	if _, err := s.Commit(ctx, b, s.Head()); !errors.Is(err, ErrChanged) {
		t.Errorf("a worker that was open: %v, want %v", err, ErrChanged)
	}
	if _, err := l.OpenStream(ctx, def, StreamOptions{}); err == nil || !strings.Contains(err.Error(), "run `loam rebuild thing`") {
		t.Errorf("open as before: %v", err)
	}
	s = openStream(t, l, other) // takes what was logged
	same(t, "caught up", rowsOf(t, l, "thing_history", "a", "b"), "A 2 [10,30)", "B 4 [30,)")

	// A column keeps how it was tracked last when it is dropped.
	dropped := evolving(columns[0], columns[1])
	s = openStream(t, l, dropped)
	takeEvents(t, s, event{60, 5, map[string]string{"id": "k", "a": "B"}}, event{15, 6, map[string]string{"id": "k", "a": "A"}})
	same(t, "dropped", rowsOf(t, l, "thing_history", "a", "b"), "A 2 [10,30)", "B - [30,)")
	rebuildIt(t, l, dropped)
	same(t, "dropped, rebuilt", rowsOf(t, l, "thing_history", "a", "b"), "A 2 [10,30)", "B - [30,)")
	if refusal, err := l.Refusal(ctx, def); err != nil || refusal != "" {
		t.Errorf("refusal %q, %v", refusal, err)
	}
	if err := l.CreateStream(ctx, def); err != nil {
		t.Fatal(err)
	}
	rebuildIt(t, l, def)
	same(t, "tracked again", rowsOf(t, l, "thing_history", "a", "b"), "A 1 [10,15)", "A - [15,20)", "A 2 [20,30)", "B 2 [30,40)", "B 3 [40,50)", "B 4 [50,60)", "B - [60,)")
}

// Keys of every kind are divided into parts that neither overlap nor leave one out, and files are sorted as one.
func TestRebuildInParts(t *testing.T) {
	ctx := context.Background()
	for typ, key := range map[string]func(n int) string{
		"string": func(n int) string { return fmt.Sprintf("k'%03d", n) },
		"int64":  func(n int) string { return fmt.Sprint((n - 50) * 1_000_000_007) },
		"date":   func(n int) string { return time.Unix(int64(n-50)*86400*40, 0).UTC().Format("2006-01-02") },
		"timestamp": func(n int) string {
			return time.UnixMicro(int64(n-50) * 1_234_567_890_123).UTC().Format(time.RFC3339Nano)
		},
	} {
		t.Run(typ, func(t *testing.T) {
			l := openLake(t)
			def := evolving(column("id", typ), column("a", "string"))
			s := openStream(t, l, def)
			var events []event
			for i := range 300 {
				events = append(events, event{int64(1000 + i), int64(i), map[string]string{"id": key(i * 37 % 100), "a": fmt.Sprint(i % 3 / 2)}})
			}
			takeEvents(t, s, events...)
			before := rowsOf(t, l, "thing_history", "id", "a")
			rebuild, err := l.openRebuild(ctx, def, RebuildOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer rebuild.db.Close()
			rebuild.rows, rebuild.ends = 9, 8
			var told []int64
			rebuild.tell = func(done, of int64) { told = append(told, done, of) }
			if err := rebuild.run(ctx); err != nil {
				t.Fatal(err)
			}
			same(t, "history", rowsOf(t, l, "thing_history", "id", "a"), before...)
			if n := len(told); n < 20 || told[n-2] != 300 || told[n-1] != 300 {
				t.Errorf("told %v", told)
			}
			if n := len(rebuild.merger.files); n < 12 {
				t.Errorf("%d files: want full ones ended", n)
			}
			overlapping := 0
			for i, f := range rebuild.merger.files {
				for _, g := range rebuild.merger.files[:i] {
					id := f.data.LowerBoundValues()[1]
					if fmt.Sprint(f.data.Partition()) == fmt.Sprint(g.data.Partition()) && typ == "string" &&
						string(id) < string(g.data.UpperBoundValues()[1]) && string(f.data.UpperBoundValues()[1]) > string(g.data.LowerBoundValues()[1]) {
						overlapping++
					}
				}
			}
			if overlapping > 0 {
				t.Errorf("%d pairs of files overlap", overlapping)
			}
		})
	}
}

// What a rebuild can't do it says.
func TestRebuildRefusals(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	events := evolving(column("id", "string"), column("a", "string"))
	events.Kind = feature.EventStream
	if _, err := l.Rebuild(ctx, events, RebuildOptions{}); err == nil || !strings.Contains(err.Error(), "stream thing is of kind event and has no history: only that of a state stream can be rebuilt") {
		t.Errorf("an event stream: %v", err)
	}
	def := testStream()
	if _, err := l.Rebuild(ctx, def, RebuildOptions{}); !errors.Is(err, ErrNoTable) {
		t.Errorf("no tables: %v", err)
	}
	openStream(t, l, def)
	if done := rebuildIt(t, l, def); done != (Rebuilt{}) {
		t.Errorf("an empty stream: %+v", done)
	}
	compare(t, read(t, l, def), nil)
}

// steppingCatalog calls step before each commit of a table.
type steppingCatalog struct {
	catalog.Catalog
	name string
	step func()
}

func (c *steppingCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := c.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, c), nil
}

func (c *steppingCatalog) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	if ident[len(ident)-1] == c.name {
		c.step()
	}
	return c.Catalog.CommitTable(ctx, ident, reqs, updates)
}

// Two workers commit between the steps of a rebuild, and right before it commits; no row is lost or doubled, whichever way
// their keys are derived again.
func TestRebuildBesideWorkers(t *testing.T) {
	ctx := context.Background()
	sd := seedOf(t)
	for n := range uint64(2) {
		r := rand.New(rand.NewPCG(sd, n))
		dir := t.TempDir()
		l := openLakeAt(t, dir, 3)
		def := testStream()
		streams := []*Stream{openStream(t, l, def), openStream(t, l, def)}
		froms := []map[string]int64{{}, {}}
		var all []row
		var halves []func() // logged, and not yet in the history
		work := func() {
			for i := range streams {
				topic := fmt.Sprintf("topic%d", i)
				rows := randomRows(r, topic, froms[i][topic], 1+r.IntN(12), 20, int64(1000+len(all)))
				all = append(all, rows...)
				if r.IntN(4) > 0 || len(halves) > 0 {
					commit(t, streams[i], rows, froms[i])
					continue
				}
				b := batchOf(def, rows, froms[i])
				var res Result
				logged, err := streams[i].commitLog(ctx, b, streams[i].Head(), &res)
				if err != nil {
					t.Fatal(err)
				}
				s := streams[i]
				halves = append(halves, func() {
					if err := s.merger.commit(ctx, logged, b.Spans, &res); err != nil {
						t.Fatal(err)
					}
				})
				break
			}
		}
		finish := func() {
			for _, f := range halves {
				f()
			}
			halves = nil
		}
		for range 2 {
			work()
			finish()
		}
		damage(t, l, def, "'Z' AS v", "true")

		rebuilder := openLakeAt(t, dir, 3) // a process of its own
		rebuild, err := rebuilder.openRebuild(ctx, def, RebuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer rebuild.db.Close()
		rebuild.rows, rebuild.ends = 1+r.Int64N(40), 1+r.Int64N(10)
		work()
		if err := rebuild.derive(ctx, nil); err != nil {
			t.Fatal(err)
		}
		rebuild.first = len(rebuild.merger.files)
		for range r.IntN(4) {
			finish()
			work()
			if err := rebuild.log.reload(ctx); err != nil {
				t.Fatal(err)
			}
			if r.IntN(2) == 0 { // the way of many keys
				offsets, err := rebuild.log.Offsets()
				if err != nil {
					t.Fatal(err)
				}
				if spans := missing(offsets, rebuild.at); len(spans) > 0 {
					if _, err := rebuild.touch(ctx, spans); err != nil {
						t.Fatal(err)
					}
					if err := rebuild.followAll(ctx, cameIn(spans)); err != nil {
						t.Fatal(err)
					}
					rebuild.at, rebuild.head = offsets, rebuild.log.SnapshotID()
				}
			} else if _, err := rebuild.follow(ctx); err != nil {
				t.Fatal(err)
			}
		}
		conflicts := r.IntN(3)
		rebuilder.catalog = &steppingCatalog{Catalog: rebuilder.catalog, name: HistoryName(def.Name), step: func() {
			if conflicts--; conflicts >= 0 {
				finish()
				work()
			}
		}}
		if err := rebuild.commit(ctx); err != nil {
			t.Fatal(err)
		}
		finish()
		compare(t, read(t, l, def), want(all))
		sameCounts(t, l, def, all)
		work()
		finish()
		compare(t, read(t, l, def), want(all))
		log, history := offsetsOf(t, l, LogName(def.Name)), offsetsOf(t, l, HistoryName(def.Name))
		for p, at := range log.Partitions {
			of := history.Partitions[p]
			if of.Ties = 0; of.Next != at.Next || of.Counts != at.Counts {
				t.Errorf("the history stands at %+v of %s, the log at %+v", of, p.Topic, at)
			}
		}
	}
}

func offsetsOf(t *testing.T, l *Lake, name string) Offsets {
	t.Helper()
	opened, err := l.OpenTable(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	o, err := opened.Offsets()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A rebuild that ends before its commit leaves the history as it was, and files that nothing names; one that fails removes
// them.
func TestRebuildCutOff(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	all := randomRows(rand.New(rand.NewPCG(1, 1)), "t", 0, 60, 10, 1000)
	commit(t, s, all, from)
	count := func() int {
		dir, err := localPath(s.history.tbl.Location())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := filepath.WalkDir(filepath.Join(dir, "data"), func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	files := count()
	killed, err := l.openRebuild(ctx, def, RebuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer killed.db.Close()
	if err := killed.derive(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if count() == files {
		t.Fatal("nothing was written")
	}
	compare(t, read(t, l, def), want(all))
	files = count()
	failing := errors.New("the catalog is away")
	real := l.catalog
	l.catalog = &failingCatalog{Catalog: real, err: failing}
	_, err = l.Rebuild(ctx, def, RebuildOptions{})
	l.catalog = real
	if !errors.Is(err, failing) {
		t.Fatalf("error %v, want %v", err, failing)
	}
	if n := count(); n != files {
		t.Errorf("a rebuild that failed left %d files", n-files)
	}
	compare(t, read(t, l, def), want(all))
	rebuildIt(t, l, def)
	compare(t, read(t, l, def), want(all))
}

// failingCatalog takes no commit.
type failingCatalog struct {
	catalog.Catalog
	err error
}

func (c *failingCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := c.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, c), nil
}

func (c *failingCatalog) CommitTable(context.Context, table.Identifier, []table.Requirement, []table.Update) (table.Metadata, string, error) {
	return nil, "", c.err
}

// A writer waits while another asks it to, and no longer than that lasts.
func TestHold(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	all := []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "a", v: "B", at: 20, topic: "t", offset: 1}, {id: "a", v: "C", at: 30, topic: "t", offset: 2}}
	commit(t, s, all[:1], from)
	holder, err := l.OpenTable(ctx, HistoryName(def.Name))
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.hold(ctx); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan Result)
	go func() { waiting <- commit(t, s, all[1:2], from) }()
	select {
	case <-waiting:
		t.Fatal("a commit went through while others were asked to wait")
	case <-time.After(300 * time.Millisecond):
	}
	compare(t, read(t, l, def), want(all[:1]))
	if err := holder.commit(ctx, func(_ context.Context, _ *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		return tx.SetProperties(iceberg.Properties{propertyHold: fmt.Sprint(time.Now().Add(200 * time.Millisecond).UnixMicro())})
	}); err != nil {
		t.Fatal(err)
	}
	<-waiting
	compare(t, read(t, l, def), want(all[:2]))
	commit(t, s, all[2:], from)
	rebuildIt(t, l, def)
	compare(t, read(t, l, def), want(all))
	if err := holder.Refresh(ctx); err != nil || holder.tbl.Properties()[propertyHold] != "" {
		t.Errorf("a rebuild left the request to wait: %v", err)
	}
}
