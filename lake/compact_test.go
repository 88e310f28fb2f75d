package lake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

func openMaintainer(t *testing.T, l *Lake, def *feature.Stream) *Maintainer {
	t.Helper()
	m, err := l.OpenMaintainer(context.Background(), def, MaintainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// compactAll compacts until nothing is due, and gives what was done.
func compactAll(t *testing.T, m *Maintainer) Compacted {
	t.Helper()
	var sum Compacted
	for n := 0; ; n++ {
		c, due, err := m.Compact(context.Background(), true)
		if err != nil {
			t.Fatal(err)
		}
		if !due {
			return sum
		}
		if n == 100 {
			t.Fatal("compaction finds no end")
		}
		sum.FilesBefore += c.FilesBefore
		sum.FilesAfter += c.FilesAfter
		sum.Rows += c.Rows
		sum.Deleted += c.Deleted
	}
}

// Workers with keys of their own and common ones go on beside compaction, whose every state they find their open versions
// in again.
func TestCompactionBesideWriters(t *testing.T) {
	for _, format := range []int{2, 3} {
		t.Run(fmt.Sprint("format ", format), func(t *testing.T) {
			l := openLakeIn(t, format)
			compactionBesideWriters(t, l, l)
		})
	}
	t.Run("in another process", func(t *testing.T) {
		dir := t.TempDir()
		compactionBesideWriters(t, openLakeAt(t, dir, 3), openLakeAt(t, dir, 3))
	})
}

func compactionBesideWriters(t *testing.T, l, compacting *Lake) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 3))
	def := testStream()
	streams := []*Stream{openStream(t, l, def), openStream(t, l, def)}
	m := openMaintainer(t, compacting, def)
	froms := []map[string]int64{{}, {}}
	var all []row
	var fast, late int64
	var sum Compacted
	for round := range 12 {
		for i, s := range streams {
			topic := fmt.Sprintf("topic%d", i)
			var rows []row
			for range 12 {
				id := fmt.Sprintf("%d-%d", i, r.IntN(15))
				if r.IntN(6) == 0 {
					id = "common"
				}
				rows = append(rows, row{
					id: id, v: string(rune('A' + r.IntN(3))), u: int64(r.IntN(3)), at: int64(1000 + round*10 + r.IntN(10)),
					topic: topic, offset: int64(len(rows)) + froms[i][topic], deleted: r.IntN(8) == 0,
				})
			}
			all = append(all, rows...)
			res := commit(t, s, rows, froms[i])
			fast, late = fast+int64(len(rows))-res.LateKeys, late+res.LateKeys
		}
		if round%3 == 2 {
			c := compactAll(t, m)
			sum.FilesBefore, sum.FilesAfter, sum.Deleted = sum.FilesBefore+c.FilesBefore, sum.FilesAfter+c.FilesAfter, sum.Deleted+c.Deleted
			compare(t, read(t, l, def), want(all))
		}
	}
	if err := m.Rewrite(context.Background()); err != nil {
		t.Fatal(err)
	}
	compare(t, read(t, l, def), want(all))
	if sum.FilesBefore <= sum.FilesAfter || sum.Deleted == 0 {
		t.Errorf("compacted %+v: want fewer files, and deleted rows gone", sum)
	}
	// Only the common key is late, or the keys would have been lost with the files that they stood in.
	if late > fast/3 {
		t.Errorf("%d late keys, %d others: the places of open versions were lost", late, fast)
	}
}

// Rows that are retired while their file is written again are retired from the new file, in the same snapshot.
func TestCompactionOvertakenByACommit(t *testing.T) {
	for _, format := range []int{2, 3} {
		t.Run(fmt.Sprint("format ", format), func(t *testing.T) { compactionOvertaken(t, openLakeIn(t, format)) })
	}
}

func compactionOvertaken(t *testing.T, l *Lake) {
	ctx := context.Background()
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	var all []row
	put := func(at int64, v string, ids ...string) {
		var rows []row
		for _, id := range ids {
			rows = append(rows, row{id: id, v: v, at: at, topic: "t", offset: int64(len(all) + len(rows))})
		}
		all = append(all, rows...)
		commit(t, s, rows, from)
	}
	put(10, "A", "a", "b", "c", "d", "e", "f", "g", "h")
	put(20, "B", "a", "b", "i", "j", "k", "l", "m", "n")
	m := openMaintainer(t, l, def)
	compactors, err := m.compactors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	history := compactors[0]
	jobs, err := history.jobs(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	var outs []*rewritten
	for _, j := range jobs {
		out, err := history.rewrite(ctx, j)
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, out)
	}
	put(30, "C", "a", "c", "d", "i", "j")
	if c, err := history.replace(ctx, outs); err != nil || c.FilesBefore == 0 {
		t.Fatalf("compacted %+v, %v", c, err)
	}
	compare(t, read(t, l, def), want(all))
	put(40, "D", "a", "b", "c", "j", "n")
	compare(t, read(t, l, def), want(all))

	// The same job again finds its files gone, and leaves the table alone.
	head := history.table.SnapshotID()
	if c, err := history.compact(ctx, jobs); err != nil || c.FilesBefore != 0 {
		t.Fatalf("compacted %+v, %v: want nothing", c, err)
	}
	if err := history.table.reload(ctx); err != nil || history.table.SnapshotID() == head {
		t.Fatalf("the table's head is still the compaction's (%v): want the commit after it", err)
	}
	compare(t, read(t, l, def), want(all))
}

// What a compaction writes of many weeks is cut by time, sorted, and not due again.
func TestCompactionCutsByTime(t *testing.T) {
	ctx := context.Background()
	z := sizes{tierFiles: 8, openTierFiles: 8, fileRowsMax: 8000, cutRows: 1000}
	var weeks []week
	for i := range 10 {
		weeks = append(weeks, week{int64(i), 334})
	}
	if got, want := fmt.Sprint(z.cuts(weeks)), "[3 6]"; got != want {
		t.Errorf("cuts %s, want %s", got, want)
	}
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	const n = Buckets * 1000 * 5 / 4
	const weeksOf = 4
	for part := range 2 {
		rows := make([]row, n)
		for i := range rows {
			rows[i] = row{
				id: fmt.Sprintf("c%07d", i), v: "A", at: int64(i%weeksOf)*7*86400 + int64(part), topic: "t", offset: int64(part*n + i),
			}
		}
		commit(t, s, rows, from)
	}
	m := openMaintainer(t, l, def)
	compactors, err := m.compactors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	log := compactors[1]
	log.sizes = z
	if err := log.table.reload(ctx); err != nil {
		t.Fatal(err)
	}
	files, err := log.table.plan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	byBucket := map[string][]*liveFile{}
	for _, f := range files {
		name := fmt.Sprint(f.data.Partition())
		byBucket[name] = append(byBucket[name], f)
	}
	for name, group := range byBucket {
		partition := make([]any, 1)
		for _, v := range group[0].data.Partition() {
			partition[0] = v
		}
		if _, err := log.compact(ctx, []job{{partition, group}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if jobs, err := log.jobs(ctx, true); err != nil || len(jobs) > 0 {
		t.Fatalf("%d jobs are due again, %v", len(jobs), err)
	}
	relation, err := log.table.Scan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.LakeView(ctx, "l", relation, true); err != nil {
		t.Fatal(err)
	}
	var rows, overlaps, unsorted int64
	if err := db.QueryRow(ctx, "SELECT count(*) FROM l", nil, &rows); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(ctx, `
		WITH spans AS (SELECT loam_file, min(event_time) AS a, max(event_time) AS z, first(hash(id) % 1) FROM l GROUP BY loam_file)
		SELECT count(*) FROM spans x JOIN spans y ON x.loam_file < y.loam_file AND x.a <= y.z AND y.a <= x.z
		WHERE x.a <> y.a AND x.z <> y.z`, nil, &overlaps); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(ctx, `
		SELECT count(*) FROM (SELECT id, event_time, lag((id, event_time)) OVER (PARTITION BY loam_file ORDER BY loam_row) AS before FROM l)
		WHERE before > (id, event_time)`, nil, &unsorted); err != nil {
		t.Fatal(err)
	}
	if rows != 2*n || len(relation.Files) != Buckets*2 || overlaps != 0 || unsorted != 0 {
		t.Errorf("%d rows in %d files, %d overlap in part, %d rows out of order: want %d in %d", rows, len(relation.Files), overlaps, unsorted, 2*n, Buckets*2)
	}
}

// An orphan is removed once it has been known as one for long enough, and never what a snapshot names.
func TestOrphans(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	rows := []row{{id: "a", v: "A", at: 10, topic: "t"}}
	commit(t, s, rows, map[string]int64{})
	now := time.Now()
	m := openMaintainer(t, l, def)
	m.now = func() time.Time { return now }
	if _, err := m.RemoveOrphans(ctx, time.Minute); err == nil {
		t.Error("an age of a minute was taken")
	}
	dir, err := localPath(s.log.tbl.Location())
	if err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "data", "left.parquet")
	if err := os.WriteFile(orphan, []byte("left behind"), 0o644); err != nil {
		t.Fatal(err)
	}
	remove := func(want Orphans) {
		t.Helper()
		if o, err := m.RemoveOrphans(ctx, 2*time.Hour); err != nil || o != want {
			t.Errorf("removed %+v, %v; want %+v", o, err, want)
		}
	}
	remove(Orphans{}) // it may belong to a commit on its way
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, now, now.Add(-30*time.Hour)))
	}); err != nil {
		t.Fatal(err)
	}
	remove(Orphans{Waiting: 1})
	now = now.Add(time.Hour)
	remove(Orphans{Waiting: 1})
	now = now.Add(2 * time.Hour)
	remove(Orphans{Removed: 1, Bytes: int64(len("left behind"))})
	remove(Orphans{})
	if _, err := os.Stat(orphan); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the orphan: %v", err)
	}
	compare(t, read(t, l, def), want(rows))
}
