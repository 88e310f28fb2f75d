package lake

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
)

// A worker that commits to both tables between another's commits to log and history leaves a right history.
func TestAnotherWorkerBetweenLogAndHistory(t *testing.T) {
	l := openLake(t)
	def := testStream()
	ctx := context.Background()
	one, two := openStream(t, l, def), openStream(t, l, def)
	f1, f2 := map[string]int64{}, map[string]int64{}
	all := []row{{id: "k", v: "A", at: 10, topic: "p"}, {id: "k", v: "B", at: 20, topic: "q"}, {id: "k", v: "C", at: 30, topic: "p", offset: 1}, {id: "k", v: "D", at: 40, topic: "q", offset: 1}}
	commit(t, one, all[:1], f1)
	commit(t, two, all[1:2], f2)
	b := batchOf(def, all[2:3], f1)
	defer b.Release()
	var res Result
	rows, err := one.commitLog(ctx, b, one.Head(), &res)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, two, all[3:4], f2)
	if err := one.merger.commit(ctx, rows, b.Spans, &res); err != nil {
		t.Fatal(err)
	}
	compare(t, read(t, l, def), want(all))
}

// Workers whose commits to log and history interleave in any way, on the same keys, make the history of all changes.
func TestWorkersInterleaved(t *testing.T) {
	ctx := context.Background()
	first := seedOf(t)
	for n := range uint64(6) {
		r := rand.New(rand.NewPCG(first, n))
		l := openLake(t)
		def := testStream()
		const workers = 3
		streams := make([]*Stream, workers)
		froms := make([]map[string]int64, workers)
		type half struct {
			rows []arrow.RecordBatch
			b    *feature.Batch
		}
		pend := make([]*half, workers)
		for i := range streams {
			streams[i], froms[i] = openStream(t, l, def), map[string]int64{}
		}
		var all []row
		finish := func(i int) {
			var res Result
			if err := streams[i].merger.commit(ctx, pend[i].rows, pend[i].b.Spans, &res); err != nil {
				t.Fatal(err)
			}
			pend[i] = nil
		}
		for step := range 60 {
			i := r.IntN(workers)
			if pend[i] != nil {
				finish(i)
				continue
			}
			topic := fmt.Sprintf("topic%d", i)
			var rows []row
			for range 1 + r.IntN(3) {
				rows = append(rows, row{
					id: string(rune('a' + r.IntN(3))), v: string(rune('A' + r.IntN(3))), at: int64(1000 + step*5 + r.IntN(20)),
					topic: topic, offset: int64(len(rows)) + froms[i][topic], deleted: r.IntN(6) == 0,
				})
			}
			all = append(all, rows...)
			b := batchOf(def, rows, froms[i])
			var res Result
			got, err := streams[i].commitLog(ctx, b, streams[i].Head(), &res)
			if err != nil {
				t.Fatal(err)
			}
			pend[i] = &half{got, b}
		}
		for i := range streams {
			if pend[i] != nil {
				finish(i)
			}
		}
		compare(t, read(t, l, def), want(all))
	}
}

// The folder of a project may have any name.
func TestFoldersOfAnyName(t *testing.T) {
	for _, name := range []string{"a b", "50%", "a%20b", "x#y", "q?z", "größe", "a:b", "a'b", "k=v", "a+b", "[x]", "a*b"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			l, err := Open(context.Background(), Config{
				Lake:      feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3},
				Namespace: "test", Dir: dir,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			def := testStream()
			s := openStream(t, l, def)
			rows := []row{{id: "k", v: "A", at: 10, topic: "t"}, {id: "k", v: "B", at: 20, topic: "t", offset: 1}, {id: "k", v: "C", at: 15, topic: "t", offset: 2}}
			f := map[string]int64{}
			for i := range rows {
				commit(t, s, rows[i:i+1], f)
			}
			compare(t, read(t, l, def), want(rows))
			if _, err := os.Stat(filepath.Join(dir, "catalog.db")); err != nil {
				t.Error(err)
			}
		})
	}
}

// What another worker logged between this one's log and history is not taken for known: its twin is dropped all the same.
func TestTwinLoggedBetweenLogAndHistory(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	one, two := openStream(t, l, def), openStream(t, l, def)
	from := map[string]int64{}
	commit(t, one, []row{{id: "a", v: "A", at: 10, topic: "p"}}, from)
	b := batchOf(def, []row{{id: "b", v: "B", at: 10, topic: "p", offset: 1}}, from)
	defer b.Release()
	var res Result
	rows, err := one.commitLog(ctx, b, one.Head(), &res)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseAll(rows)
	commit(t, two, []row{{id: "c", v: "C", at: 10, topic: "q"}}, map[string]int64{})
	if err := one.merger.commit(ctx, rows, b.Spans, &res); err != nil {
		t.Fatal(err)
	}
	twin := batchOf(def, []row{{id: "c", v: "C", at: 10, topic: "q"}}, map[string]int64{})
	defer twin.Release()
	twin.Spans[0].Partition.Topic = "p2"
	patchTopic(twin, 0, "p2")
	res, err = one.Commit(ctx, twin, one.Head())
	if err != nil {
		t.Fatal(err)
	}
	if res.Dropped != 1 || res.Rows != 0 {
		t.Errorf("result %+v, want the twin dropped", res)
	}
}

// An event that stands in two partitions is in log and history once, where the worker of one ends between log and history and that of
// the other, which doesn't know of it, commits its twin before anybody has caught the history up.
func TestTwinsAndACrashBetween(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	one, two := openStream(t, l, def), openStream(t, l, def)
	known := two.Head()
	all := []row{{id: "a", v: "A", at: 10, topic: "p"}, {id: "a", v: "B", at: 20, topic: "p", offset: 1}, {id: "a", v: "C", at: 30, topic: "q2", offset: 1}}
	crashed := batchOf(def, all[:2], map[string]int64{})
	defer crashed.Release()
	var res Result
	rows, err := one.commitLog(ctx, crashed, one.Head(), &res)
	if err != nil {
		t.Fatal(err)
	}
	releaseAll(rows) // and one has ended

	twin := batchOf(def, []row{all[0]}, map[string]int64{})
	defer twin.Release()
	twin.Spans[0].Partition.Topic = "q2"
	patchTopic(twin, 0, "q2")
	if res, err = two.Commit(ctx, twin, known); err != nil {
		t.Fatal(err)
	}
	if res.Dropped != 1 || res.Rows != 0 || len(res.Foreign) != 2 {
		t.Errorf("result %+v, want the twin dropped", res)
	}
	commit(t, two, all[2:], map[string]int64{"q2": 1})
	three := openStream(t, l, def) // catches the history up
	compare(t, read(t, l, def), want(all))
	offsets, err := three.Offsets()
	if err != nil {
		t.Fatal(err)
	}
	var sum feature.Counts
	for _, at := range offsets.Partitions {
		sum.Add(at.Counts)
	}
	if sum.Read != 4 || sum.Accepted != 3 || sum.Duplicate != 1 {
		t.Errorf("counts %+v", sum)
	}
}
