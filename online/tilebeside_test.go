package online

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
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
