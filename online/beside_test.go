package online

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
)

// A liveWorld is a project with its lake and its store, and events to write to both.
type liveWorld struct {
	t       *testing.T
	project *feature.Project
	lake    *lake.Lake
	store   *Store
	live    *Live
	random  *rand.Rand
	events  int
	next    map[feature.Partition]int64
	patches bool
	name    func() string // of the entity of the next event; nil for one of twenty
}

func newLiveWorld(t *testing.T, s *Store) *liveWorld {
	return worldOf(t, s, loadProject(t), false)
}

func worldOf(t *testing.T, s *Store, p *feature.Project, patches bool) *liveWorld {
	w := &liveWorld{
		t: t, project: p, lake: openLake(t, p), store: s, random: rand.New(rand.NewPCG(3, 5)), next: map[feature.Partition]int64{}, patches: patches,
	}
	w.live = w.open()
	return w
}

// eachWorld runs a test on each store, with full states, in loam's layout and in Feast's, and with patches.
func eachWorld(t *testing.T, test func(t *testing.T, s *Store, w *liveWorld)) {
	t.Run("states", func(t *testing.T) {
		eachStore(t, func(t *testing.T, s *Store) { test(t, s, newLiveWorld(t, s)) })
	})
	t.Run("feast", func(t *testing.T) {
		eachStore(t, func(t *testing.T, s *Store) { test(t, s, worldOf(t, s, loadFiles(t, testProject, feastViews), false)) })
	})
	t.Run("patches", func(t *testing.T) {
		eachStore(t, func(t *testing.T, s *Store) { test(t, s, worldOf(t, s, loadFiles(t, patchProject, patchViews), true)) })
	})
}

// payload is what the next event carries, besides its key.
func (w *liveWorld) payload() string {
	if w.patches {
		return randomPatch(w.random, w.events).text()
	}
	return fmt.Sprintf(`,"n":%d`, w.events)
}

// open makes the writer of a process that starts.
func (w *liveWorld) open() *Live {
	w.t.Helper()
	live, err := NewLive(context.Background(), w.store, w.lake, w.project)
	w.fatal(err)
	w.t.Cleanup(func() { w.fatal(live.Close()) })
	return live
}

func (w *liveWorld) fatal(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *liveWorld) topic(index int32) feature.Partition {
	return feature.Partition{Topic: w.project.Stream("thing").Topic, Index: index}
}

// batch makes the next events of a partition.
func (w *liveWorld) batch(p feature.Partition, events int, done bool) *feature.Batch {
	w.t.Helper()
	s := w.project.Stream("thing")
	r := ingest.NewRouter(ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: ingest.NewDedup(1<<20, nil)},
		Starts: func(string, feature.Partition) int64 { return w.next[p] },
	})
	for range events {
		verb := "updated"
		if w.random.IntN(8) == 0 {
			verb = "deleted"
		}
		w.events++
		name := string(rune('a' + w.random.IntN(20)))
		if w.name != nil {
			name = w.name()
		}
		text := event(w.events, name, int64(p.Index), w.random.IntN(1000), verb, w.payload())
		r.Add(&ingest.Record{Position: feature.Position{Topic: p.Topic, Partition: p.Index, Offset: w.next[p]}, Value: []byte(text)}, time.Now().UnixMicro())
		w.next[p]++
	}
	batches, err := r.Flush(context.Background(), []ingest.End{{Partition: p, Done: done}})
	w.fatal(err)
	if len(batches) != 1 || len(batches[0].Refused) > 0 {
		w.t.Fatalf("%+v", batches)
	}
	w.t.Cleanup(batches[0].Release)
	return batches[0]
}

func (w *liveWorld) write(l *Live, b *feature.Batch) {
	w.t.Helper()
	_, err := l.Write(context.Background(), b, allKnown)
	w.fatal(err)
}

func (w *liveWorld) commit(batches ...*feature.Batch) {
	w.t.Helper()
	for _, b := range batches {
		commitTo(w.t, w.lake, b)
	}
}

// liveViews are the attribute views that are built, one of columns and one of expressions.
var liveViews = []string{"all", "calc"}

func (w *liveWorld) build(views ...string) {
	w.t.Helper()
	if len(views) == 0 {
		views = liveViews
	}
	for _, v := range views {
		built(w.t, w.store, writer(w.t, w.store, w.project, v), w.lake)
	}
}

// served are the hashes of the generation that is read, by entity.
func (w *liveWorld) served(view string) map[string]string {
	w.t.Helper()
	ctx := context.Background()
	all, err := w.store.Generations(ctx, view)
	w.fatal(err)
	if v := w.project.View(view); v.Layout == feature.FeastLayout {
		return feastServed(w.t, w.store, w.project, view)
	}
	prefix := keyPrefix(w.store.project, view, all.Current)
	hashes := map[string]string{}
	for _, k := range keys(w.t, w.store, globEscape(prefix)+"*") {
		fields, err := w.store.redis.HGetAll(ctx, k).Result()
		w.fatal(err)
		hashes[strings.TrimPrefix(k, prefix)] = fmt.Sprint(fields)
	}
	return hashes
}

// check holds what is served of the views, all unless some are named, against a build from the lake, which must have
// everything.
func (w *liveWorld) check(what string, views ...string) {
	w.t.Helper()
	if len(views) == 0 {
		views = liveViews
	}
	for _, v := range views {
		got := w.served(v)
		w.build(v)
		want := w.served(v)
		if len(want) == 0 || len(got) != len(want) {
			w.t.Errorf("%s: %s serves %d entities, want %d", what, v, len(got), len(want))
		}
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if got[k] != want[k] {
				w.t.Errorf("%s: %s serves of %s\n%s\nwant\n%s", what, v, k, got[k], want[k])
				break
			}
		}
	}
}

// Batches that were skipped are caught up from the log when the next one of their partition comes, or by positions alone.
func TestLiveCatchesUp(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		w.build()
		for i := range 3 {
			written, skipped := w.batch(w.topic(0), 30, false), w.batch(w.topic(0), 30, false)
			w.write(w.live, written)
			w.commit(written, skipped)
			last := w.batch(w.topic(0), 5, false)
			w.write(w.live, last)
			w.commit(last)
			w.check(fmt.Sprint("round ", i))
		}
		quiet := w.batch(w.topic(1), 30, false)
		w.commit(quiet)
		w.fatal(w.live.CatchUp(context.Background(), map[string]map[feature.Partition]int64{"thing": {w.topic(1): 30}}))
		w.check("a partition without another batch")
	})
}

// What a process that ended had committed to the lake alone is written when the next one starts.
func TestSettle(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		before := w.batch(w.topic(0), 30, false)
		w.commit(before)
		w.build()
		w.write(w.live, before)
		lost, elsewhere := w.batch(w.topic(0), 30, false), w.batch(w.topic(1), 30, false)
		w.commit(lost, elsewhere)
		next := w.open()
		w.fatal(next.Settle(context.Background()))
		w.check("settled")
		again := w.batch(w.topic(1), 10, false)
		w.write(next, again)
		w.commit(again)
		w.check("and written on")
	})
}

// A backfill that was cut off between the lake and the store is finished by whoever comes next, and its mark goes.
func TestSettleFile(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.build()
		file := feature.Partition{Topic: feature.FileTopicPrefix + strings.Repeat("ab", 32)}
		streams := []*feature.Stream{w.project.Stream("thing")}
		w.fatal(w.live.Begin(ctx, streams, file, map[string]int64{"thing": 0}))
		first := w.batch(file, 20, false)
		w.commit(first)
		w.write(w.live, first)
		w.commit(w.batch(file, 20, false))
		next := w.open()
		w.fatal(next.Settle(ctx))
		w.check("cut off")
		w.fatal(next.Begin(ctx, streams, file, map[string]int64{"thing": 40}))
		last := w.batch(file, 20, true)
		w.commit(last)
		w.write(next, last)
		w.check("taken whole")
		all, err := s.Generations(ctx, "all")
		w.fatal(err)
		if mark, ok := all.All[0].Marks[file]; ok {
			t.Errorf("the file's mark stays at %d", mark)
		}
	})
}

// A worker writes while views are built over and over: nothing is missed, whichever comes first, and however far the lake
// lags.
func TestBuildBesideWriter(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx, cancel := context.WithCancel(context.Background())
		w.fatal(s.Lease(ctx, "worker"))
		positions := map[string]map[feature.Partition]int64{"thing": {}}
		var worker sync.WaitGroup
		worker.Go(func() {
			var behind []*feature.Batch
			rounds := 0
			for ; ctx.Err() == nil || rounds < 8; rounds++ {
				b := w.batch(w.topic(int32(rounds%2)), 10, false)
				w.write(w.live, b)
				positions["thing"][b.Spans[0].Partition] = b.Spans[0].To
				w.fatal(s.Lease(context.Background(), "worker"))
				w.fatal(w.live.Join(context.Background(), "worker", positions))
				if behind = append(behind, b); len(behind) > 3 {
					w.commit(behind...)
					behind = nil
				}
			}
			w.commit(behind...)
			// On a slow machine the lease may have run out: a partition that then fell quiet is caught up, as a worker does.
			w.fatal(w.live.CatchUp(context.Background(), positions))
		})
		for range 2 {
			w.build("all")
		}
		cancel()
		worker.Wait()
		w.fatal(s.Release(context.Background(), "worker"))
		w.check("built beside a writer", "all")
	})
}

// A worker that starts, or whose lease ran out, while a generation is built joins it beyond the snapshot: the build fetches
// what lies between.
func TestJoinedBeyondSnapshot(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		before, missed := w.batch(w.topic(0), 10, false), w.batch(w.topic(0), 30, false)
		w.commit(before)
		view := writer(t, s, w.project, "all")
		g, err := view.Build(ctx, w.lake, BuildOptions{Now: time.Now, Progress: func(int64, int64) {
			w.commit(missed)
			w.fatal(w.live.Join(ctx, "worker", map[string]map[feature.Partition]int64{"thing": {w.topic(0): 40}}))
			b := w.batch(w.topic(0), 10, false)
			w.write(w.live, b)
			w.commit(b)
		}})
		w.fatal(err)
		w.fatal(s.Switch(ctx, "all", g))
		w.check("joined beyond the snapshot", "all")
	})
}

// A build waits for every worker that runs, for one whose lease has run out no longer, and for a partition that changes hands meanwhile
// nothing is missed.
func TestBuildAwaitsEveryWorker(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.commit(w.batch(w.topic(0), 10, false), w.batch(w.topic(1), 10, false))
		for _, worker := range []string{"a", "b"} {
			w.fatal(s.Lease(ctx, worker))
		}
		if running, err := s.Workers(ctx); err != nil || !slices.Equal(running, []string{"a", "b"}) {
			t.Fatalf("running are %v, %v", running, err)
		}
		view := writer(t, s, w.project, "all")
		built := make(chan Generation)
		go func() {
			g, err := view.Build(ctx, w.lake, BuildOptions{Now: time.Now})
			if err != nil {
				t.Error(err)
			}
			built <- g
		}()
		join := func(worker string, index int32) {
			t.Helper()
			for {
				w.fatal(w.live.Join(ctx, worker, map[string]map[feature.Partition]int64{"thing": {w.topic(index): 10}}))
				all, err := s.Generations(ctx, "all")
				w.fatal(err)
				if len(all.All) == 1 && slices.Contains(all.All[0].Joined, worker) {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}
		join("a", 0)
		select {
		case g := <-built:
			t.Fatalf("generation %d waited for one of two workers", g.Number)
		case <-time.After(10 * poll):
		}
		// What a writes while b has not joined, b writes on once the partition is its own.
		mine, next := w.batch(w.topic(0), 10, false), w.batch(w.topic(0), 10, false)
		w.write(w.live, mine)
		w.commit(mine)
		join("b", 1)
		g := <-built
		other := w.open()
		w.write(other, next)
		w.commit(next)
		w.fatal(s.Switch(ctx, "all", g))
		w.fatal(s.Release(ctx, "b"))
		if running, err := s.Workers(ctx); err != nil || !slices.Equal(running, []string{"a"}) {
			t.Errorf("running are %v, %v", running, err)
		}
		w.fatal(s.Release(ctx, "a"))
		w.check("built beside two workers", "all")
	})
}

// A store that restarts while a view is built has half of it: that generation is never read, and the next one is.
func TestRestartWhileBuilding(t *testing.T) {
	s, err := InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newLiveWorld(t, s)
	ctx := context.Background()
	w.commit(w.batch(w.topic(0), 30, false))
	for range 3 {
		w.build()
	}
	view := writer(t, s, w.project, "all")
	for _, when := range []string{"while it is filled", "before the switch"} {
		g, err := view.Build(ctx, w.lake, BuildOptions{Now: time.Now, Progress: func(int64, int64) {
			if when == "while it is filled" {
				s.process.FlushAll()
			}
		}})
		if when == "before the switch" {
			w.fatal(err)
			s.process.FlushAll()
			s.servers.runs = []string{"another run"}
			err = s.Switch(ctx, "all", g)
		}
		if err == nil || !strings.Contains(err.Error(), "lost") && !strings.Contains(err.Error(), "restarted") {
			t.Errorf("%s: %v", when, err)
		}
		if missing, err := w.live.Missing(ctx); err != nil || !slices.Contains(missing, "all") {
			t.Errorf("%s: half a view is read: missing are %v, %v", when, missing, err)
		}
		if keys := s.process.Keys(); len(keys) > 1 {
			t.Errorf("%s: left are %v", when, keys)
		}
		built(t, s, view, w.lake)
		if missing, err := w.live.Missing(ctx); err != nil || slices.Contains(missing, "all") {
			t.Errorf("%s: built anew, and missing are %v, %v", when, missing, err)
		}
	}
}
