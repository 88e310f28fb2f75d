package online

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// A tileRun is a history of a windowed view: events come, are committed and written by workers that lag, drop, stall, repeat
// and restart, while generations are built beside them.
type tileRun struct {
	*tileWorld
	live      *Live // of the worker that reads now
	stalled   *Live // of one that was before it, and still writes
	committed [3]int
	written   [3]int
}

func (r *tileRun) commit(index, to int) {
	if from := r.committed[index]; from < to {
		commitTo(r.t, r.lake, r.batch(index, from, to))
		r.committed[index] = to
	}
}

func (r *tileRun) step() {
	w, ctx, index := r.tileWorld, context.Background(), r.random.IntN(3)
	end := len(w.topics[index])
	switch r.random.IntN(12) {
	case 0, 1, 2:
		for range r.random.IntN(6) {
			w.produceAny(index)
		}
	case 3, 4, 5: // write, mostly after the lake has it
		if from := r.written[index]; from < end {
			if r.random.IntN(3) > 0 {
				r.commit(index, from+r.random.IntN(end-from+1))
			}
			r.commit(index, from) // a gap is caught up from what the lake holds
			w.write(r.live, w.batch(index, from, end))
			r.written[index] = end
		}
	case 6: // dropped
		r.written[index] = end
	case 7:
		r.commit(index, end)
	case 8: // a replay, or the one that stalled
		if end > 0 {
			from := r.random.IntN(end)
			r.commit(index, from)
			w.write(r.stalled, w.batch(index, from, from+r.random.IntN(end-from+1)))
		}
	case 9: // restart: what was read and not committed is read again
		r.stalled, r.live = r.live, w.open()
		w.fatal(r.live.Settle(ctx))
		r.written = r.committed
	case 10:
		w.build([]string{"all", "few"}[r.random.IntN(2)])
	case 11: // beside
		r.beside()
	}
}

// beside writes while a generation is built that waits for the worker.
func (r *tileRun) beside() {
	w, ctx := r.tileWorld, context.Background()
	w.fatal(w.store.Lease(ctx, "worker"))
	v := writer(w.t, w.store, w.project, "all")
	done := make(chan error, 1)
	go func() {
		g, err := v.Build(ctx, w.lake, BuildOptions{Now: w.clock})
		if err == nil {
			err = w.store.Switch(ctx, "all", g)
		}
		done <- err
	}()
	for range 6 {
		index := r.random.IntN(3)
		w.produceAny(index)
		from, end := r.written[index], len(w.topics[index])
		r.commit(index, end)
		w.write(r.live, w.batch(index, from, end))
		r.written[index] = end
		w.fatal(r.live.Join(ctx, "worker", nil))
	}
	for index := range 3 { // what the generation before has is waited for
		r.commit(index, r.written[index])
	}
	for {
		select {
		case err := <-done:
			w.fatal(err)
			w.fatal(w.store.Release(ctx, "worker"))
			return
		case <-time.After(5 * time.Millisecond):
			w.fatal(r.live.Join(ctx, "worker", nil))
		}
	}
}

// Whatever workers do, what is read is what the events say, at every instant from then on.
func TestTilesAgainstOracle(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
			t.Run(fmt.Sprintf("keyed %v, seed %d", keyed, seed), func(t *testing.T) {
				eachStore(t, func(t *testing.T, s *Store) {
					w := newTileWorld(t, s, keyed, seed)
					w.build("all")
					w.build("few")
					r := &tileRun{tileWorld: w, live: w.open(), stalled: w.open()}
					for range 45 {
						r.step()
					}
					ctx := context.Background()
					positions := map[feature.Partition]int64{}
					for index := range 3 {
						end := len(w.topics[index])
						r.commit(index, end)
						w.write(r.live, w.batch(index, min(r.written[index], end), end))
						positions[w.partition(index)] = int64(end)
					}
					at := map[string]map[feature.Partition]int64{"thing": positions}
					w.fatal(r.live.CatchUp(ctx, at))
					w.fatal(r.live.Follow(ctx, at, true))
					for _, later := range []time.Duration{0, 5 * time.Minute, time.Hour, 23 * time.Hour, 7 * 24 * time.Hour, 31 * 24 * time.Hour, 80 * 24 * time.Hour} {
						w.check(fmt.Sprintf("seed %d after %s", seed, later), w.facts(), w.now.Add(later))
					}
					w.now = w.now.Add(8 * time.Hour) // tiles are dropped by the next writes
					for index := range 3 {
						from := len(w.topics[index])
						for who := 'a'; who < 'g'; who++ {
							w.produce(index, string(who), time.Second, map[string]string{"n": "1"})
						}
						r.commit(index, len(w.topics[index]))
						w.write(r.live, w.batch(index, from, len(w.topics[index])))
						positions[w.partition(index)] = int64(len(w.topics[index]))
					}
					w.fatal(r.live.Follow(ctx, at, true))
					w.check("later", w.facts(), w.now)
				})
			})
		}
	}
}

// counted calls functions before the nth call of a client that is about a hash; what these do themselves isn't counted.
type counted struct {
	at   map[int][]func()
	n    int
	busy bool
}

func (c *counted) see(cmds ...redis.Cmder) {
	hash := func(cmd redis.Cmder) bool { return strings.HasPrefix(cmd.Name(), "h") && cmd.Name() != "hello" }
	if c.busy || !slices.ContainsFunc(cmds, hash) {
		return
	}
	c.busy = true
	for _, do := range c.at[c.n] {
		do()
	}
	c.n++
	c.busy = false
}

func (c *counted) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *counted) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.see(cmd)
		return next(ctx, cmd)
	}
}

func (c *counted) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.see(cmds...)
		return next(ctx, cmds)
	}
}

// However the steps of a file's backfill fall between those of a view's first build, what is read at the end has the file.
func TestFirstBuildBesideFile(t *testing.T) {
	const calls = 5 // up to where the generation is entered, and more
	for committed := range calls {
		for paid := committed; paid <= calls; paid++ {
			t.Run(fmt.Sprintf("committed before call %d, paid before %d", committed, paid), func(t *testing.T) {
				s, err := InProcess("test")
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				w, ctx := newTileWorld(t, s, true, 1), context.Background()
				for range 5 {
					w.produce(0, "a", time.Hour, nil)
				}
				commitTo(t, w.lake, w.batch(0, 0, 5))
				live := w.open()
				pay := func() {
					owing, err := live.Owing(ctx)
					w.fatal(err)
					for _, view := range owing {
						w.build(view)
					}
				}
				hook := &counted{at: map[int][]func(){committed: {func() { commitTo(t, w.lake, w.file("ab", 3)) }}}}
				hook.at[paid] = append(hook.at[paid], pay)
				s.redis.AddHook(hook)
				v := writer(t, s, w.project, "all")
				g, err := v.Build(ctx, w.lake, BuildOptions{Now: w.clock})
				if err == nil {
					err = s.Switch(ctx, "all", g)
				}
				if err != nil && !strings.Contains(err.Error(), "has lost generation") {
					t.Fatal(err)
				}
				if hook.n <= committed {
					t.Fatalf("a build has %d calls", hook.n)
				}
				hook.busy = true
				if hook.n <= paid { // after the build
					pay()
				}
				all, err := s.Generations(ctx, "all")
				w.fatal(err)
				if owing, err := live.Owing(ctx); len(all.All) != 1 || err != nil || len(owing) > 0 {
					t.Errorf("there are %+v, %v lack the file, %v", all, owing, err)
				}
				if got := w.read("all", map[string]string{"who": "a"}, w.now)["rows_30d"].Value.Text; got != "8" {
					t.Errorf("5 events of the topic and 3 of the file are %s", got)
				}
			})
		}
	}
}

// file is the whole of a file with events of a; hex begins its hash.
func (w *tileWorld) file(hex string, events int) *feature.Batch {
	w.t.Helper()
	s, p := w.project.Stream("thing"), feature.Partition{Topic: feature.FileTopicPrefix + hex + strings.Repeat("0", 64-len(hex))}
	if events == 0 {
		return &feature.Batch{Stream: s, Spans: []feature.Span{{Partition: p, Done: true}}}
	}
	r := ingest.NewRouter(ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: ingest.NewDedup(1<<20, nil)},
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	for i := range events {
		w.add(r, p, i, tileFact{who: "a", at: w.now.Add(-2 * time.Hour).UnixMicro()})
	}
	batches, err := r.Flush(context.Background(), []ingest.End{{Partition: p, Done: true}})
	w.fatal(err)
	w.t.Cleanup(batches[0].Release)
	return batches[0]
}
