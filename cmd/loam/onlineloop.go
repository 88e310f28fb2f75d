package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/pit"
)

// onlineLoop writes the batches of a worker to the online store, keeps the worker's lease, and has generations built
// where a view has none that can be read. It never fails for a store that is away: it tries again, and what it had to
// drop meanwhile is caught up from the log.
type onlineLoop struct {
	queue   *queue
	store   *online.Store
	live    *online.Live
	project *feature.Project
	lake    *lake.Lake
	worker  string
	once    bool // end when the queue has ended and every view can be read
	now     func() time.Time
	say     func(format string, args ...any)
	reads   func(feature.Partition) bool // whether this worker reads a partition; nil where it reads all
	// positions are the next offsets to write, by stream.
	positions map[string]map[feature.Partition]int64
	committed atomic.Bool // the lake holds more than when it was last followed

	builds   sync.WaitGroup
	mu       sync.Mutex
	building map[string]bool
	foreign  []string // keys that held what is not loam's, the last that were told
	failures int
	away     bool
	checked  time.Time
}

// Cadence of the loop.
const (
	joinEvery   = 100 * time.Millisecond // how soon a build is joined
	checkEvery  = time.Second            // the lease, a restart of Redis, views without a generation
	backoffMin  = 50 * time.Millisecond
	backoffMax  = 2 * time.Second
	drainMax    = 15 * time.Second // how long a store that is away is waited for at the end
	foreignMax  = 1000             // keys that are remembered as told
	buildsMax   = 3                // failures of builds after which a worker that shall end gives up
	onlineRetry = "what it lacks is caught up from the log at the next start"
)

// run works until the queue has ended; alive ends when another part of the worker has failed, reading when the worker
// was asked to stop. It fails only once the queue has ended.
func (o *onlineLoop) run(alive, reading context.Context) error {
	building, stop := context.WithCancel(alive)
	defer o.builds.Wait()
	defer stop()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(alive), time.Second)
		defer cancel()
		_ = o.store.Release(ctx, o.worker) // it runs out by itself
	}()
	for {
		items, last := o.queue.take(joinEvery)
		err := o.write(alive, items)
		release(items)
		if err == nil {
			err = o.try(alive, func() error { return o.tend(alive, building) })
		}
		switch {
		case alive.Err() != nil:
			return nil
		case err != nil:
			return err
		case !last || len(items) > 0:
			continue
		case !o.once || reading.Err() != nil:
			return nil
		}
		if done, err := o.complete(alive); done || err != nil {
			return err
		}
		pause(alive, joinEvery)
	}
}

// complete reports whether every view can be read, and lacks nothing.
func (o *onlineLoop) complete(ctx context.Context) (bool, error) {
	var missing []string
	err := o.try(ctx, func() (err error) {
		if missing, err = o.live.Missing(ctx); err == nil && len(missing) == 0 {
			err = o.live.CatchUp(ctx, o.positions)
		}
		if err == nil && len(missing) == 0 {
			err = o.live.Follow(ctx, o.positions, true)
		}
		return err
	})
	if err != nil || ctx.Err() != nil {
		return false, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures >= buildsMax {
		return false, fmt.Errorf("feature views %v can't be read yet: run `loam materialize`", missing)
	}
	return len(missing) == 0 && len(o.building) == 0, nil
}

// write writes batches, in their order.
func (o *onlineLoop) write(ctx context.Context, items []routed) error {
	for len(items) > 0 {
		n := unbroken(items)
		if err := o.writeTogether(ctx, items[:n]); err != nil || ctx.Err() != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// unbroken is how many batches, from the first on, go on in each partition where the one before them ended. Where one doesn't,
// others have written what lies between.
func unbroken(items []routed) int {
	type reading struct {
		stream string
		feature.Partition
	}
	ends := map[reading]int64{}
	for i, b := range items {
		if b.Stream == nil {
			continue
		}
		for _, s := range b.Spans {
			r := reading{b.Stream.Name, s.Partition}
			if end, begun := ends[r]; begun && end != s.From {
				return i
			}
			ends[r] = s.To
		}
	}
	return len(items)
}

func (o *onlineLoop) writeTogether(ctx context.Context, items []routed) error {
	for _, b := range mergeByStream(items) {
		err := o.try(ctx, func() error {
			_, err := o.live.Write(ctx, b.Batch, b.known)
			return err
		})
		if err != nil || ctx.Err() != nil {
			return err
		}
		at := o.positions[b.Stream.Name]
		if at == nil {
			at = map[feature.Partition]int64{}
			o.positions[b.Stream.Name] = at
		}
		for _, s := range b.Spans {
			at[s.Partition] = s.To
		}
	}
	return nil
}

// try does something with the store, and again until it succeeds or ctx is done. Once the queue has ended a store that is
// away is waited for no longer than drainMax.
func (o *onlineLoop) try(ctx context.Context, do func() error) error {
	var deadline time.Time
	for backoff := backoffMin; ; backoff = min(2*backoff, backoffMax) {
		err := do()
		if err == nil || ctx.Err() != nil {
			if o.away && err == nil {
				o.away = false
				o.say("the online store is back")
			}
			return nil
		}
		if !o.away {
			o.away = true
			o.say("the online store is away, the lake goes on without it: %v", err)
		}
		switch {
		case !o.queue.ended():
		case deadline.IsZero():
			deadline = o.now().Add(drainMax)
		case o.now().After(deadline):
			return fmt.Errorf("the online store is still away, the lake has everything and %s: %w", onlineRetry, err)
		}
		pause(ctx, backoff)
		_ = o.restarted(ctx) // it may be another one that answers next; that it doesn't yet is what the next try says
	}
}

// pause waits, no longer than ctx.
func pause(ctx context.Context, wait time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// restarted looks whether the store is the one that it was. One that isn't has lost what was written to it, and its views
// are built anew.
func (o *onlineLoop) restarted(ctx context.Context) error {
	restarted, err := o.store.Restarted(ctx)
	if restarted {
		o.say("the online store restarted: its views are built anew")
	}
	return err
}

// tend keeps the lease, joins builds, starts those that are missing, and writes what was dropped.
func (o *onlineLoop) tend(ctx, building context.Context) error {
	if err := o.live.Join(ctx, o.worker, o.own(o.positions)); err != nil {
		return err
	}
	if o.committed.Swap(false) {
		if err := o.live.Follow(ctx, o.own(o.positions), false); err != nil {
			o.committed.Store(true)
			return err
		}
	}
	o.mend(building)
	if o.now().Sub(o.checked) < checkEvery {
		return nil
	}
	if err := o.store.Lease(ctx, o.worker); err != nil {
		return err
	}
	if err := o.restarted(ctx); err != nil {
		return err
	}
	if err := o.live.CatchUp(ctx, o.positions); err != nil {
		return err
	}
	missing, err := o.live.Missing(ctx)
	if err != nil {
		return err
	}
	workers, err := o.store.Workers(ctx)
	if err != nil {
		return err
	}
	one := len(workers) == 0 || workers[0] == o.worker // of several builds
	if !one {
		// What a view is owed only this one knows, who has begun since.
		missing = slices.DeleteFunc(missing, func(view string) bool { return !o.live.Owes(view) })
	}
	for _, view := range missing {
		o.build(building, view)
	}
	if one {
		if err := o.discard(ctx, building); err != nil {
			return err
		}
	}
	o.checked = o.now()
	return nil
}

// discard has generations removed that were left unfinished and that no build can go on with.
func (o *onlineLoop) discard(ctx, building context.Context) error {
	abandoned, err := o.live.Abandoned(ctx)
	if err != nil {
		return err
	}
	for view, generations := range abandoned {
		o.beside(view, func() { o.store.Discard(building, view, generations) })
	}
	return nil
}

// mend has views built anew some of whose keys hold what loam doesn't write: under such a key values were lost that can't be
// known from what comes next. Keys of a generation that is replaced anyway are told once.
func (o *onlineLoop) mend(building context.Context) {
	for view, keys := range o.live.Foreign() {
		keys = slices.DeleteFunc(keys, func(key string) bool { return slices.Contains(o.foreign, key) })
		if len(keys) == 0 {
			continue
		}
		o.foreign = append(o.foreign, keys...)
		o.foreign = o.foreign[max(0, len(o.foreign)-foreignMax):]
		o.say("the key %s of the online store holds what loam doesn't write: feature view %s is built anew", keys[0], view)
		o.build(building, view)
	}
}

// own leaves of the positions those of partitions that this worker reads.
func (o *onlineLoop) own(positions map[string]map[feature.Partition]int64) map[string]map[feature.Partition]int64 {
	if o.reads == nil {
		return positions
	}
	ours := map[string]map[feature.Partition]int64{}
	for stream, at := range positions {
		ours[stream] = maps.Clone(at)
		maps.DeleteFunc(ours[stream], func(p feature.Partition, _ int64) bool { return !o.reads(p) })
	}
	return ours
}

// build builds a view beside the loop, unless that is going on.
func (o *onlineLoop) build(ctx context.Context, view string) {
	o.mu.Lock()
	failed := o.failures >= buildsMax && o.once
	o.mu.Unlock()
	if failed {
		return
	}
	o.beside(view, func() {
		n, at, err := o.rebuild(ctx, o.project.View(view))
		o.mu.Lock()
		defer o.mu.Unlock()
		switch {
		case err == nil:
			o.failures = 0
			o.say("feature view %s is served%s: %s", view, asOfText(at), count(n, "entity"))
		case !errors.Is(err, context.Canceled):
			o.failures++
			o.say("feature view %s could not be built, it is tried again: %v", view, err)
		}
	})
}

// beside does work on a view beside the loop, unless other work on it is going on.
func (o *onlineLoop) beside(view string, work func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.building[view] {
		return
	}
	o.building[view] = true
	o.builds.Go(func() {
		work()
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.building, view)
	})
}

// rebuild builds a view as of now, or as of the instant that it is frozen at.
func (o *onlineLoop) rebuild(ctx context.Context, view *feature.View) (int64, *time.Time, error) {
	reading, err := o.lake.Read(ctx, o.project.Stream(view.Stream))
	if err != nil {
		return 0, nil, err
	}
	all, err := reading.Frozen()
	if err != nil {
		return 0, nil, err
	}
	var asOf *time.Time
	if at, frozen := all[view.Name]; frozen {
		asOf = &at
	}
	n, g, err := materialize(ctx, o.store, o.lake, o.project, view, asOf, o.now, nil, o.say)
	return n, g.AsOf, err
}

// materialize builds a new generation of a view, as of an instant where one is given, and switches to it. It gives the number of entities,
// and the generation, or a newer one that somebody else has built and switched to meanwhile, which removes this one. say is told of what an
// earlier build left unfinished.
func materialize(ctx context.Context, s *online.Store, l *lake.Lake, p *feature.Project, view *feature.View, asOf *time.Time, now func() time.Time,
	progress func(done, of int64), say func(format string, args ...any)) (entities int64, g online.Generation, err error) {
	w, err := online.NewViewWriter(ctx, s, p, view)
	if err != nil {
		return 0, g, err
	}
	defer w.Close()
	o := online.BuildOptions{Now: now, AsOf: asOf, MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), Say: say, Progress: func(done, of int64) {
		entities = done
		if progress != nil {
			progress(done, of)
		}
	}}
	o.Instant = func(ctx context.Context, reading *lake.Reading, at time.Time, use func(arrow.RecordBatch, int64) error) error {
		return pit.Instant(ctx, p, view, reading, at, pit.Options{Now: now, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}, use)
	}
	if g, err = w.Build(ctx, l, o); err == nil {
		err = s.Switch(ctx, view.Name, g)
	}
	if err == nil || g.Number == 0 || asOf != nil {
		return entities, g, err
	}
	all, asked := s.Generations(ctx, view.Name)
	if newer, ok := s.Usable(all, p.ViewDefinition(view).Hash); asked == nil && ok && newer.Number > g.Number {
		return entities, newer, nil
	}
	return entities, g, err
}
