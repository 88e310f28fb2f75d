package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
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
	// positions are the next offsets to write, by stream.
	positions map[string]map[feature.Partition]int64

	builds   sync.WaitGroup
	mu       sync.Mutex
	building map[string]bool
	failures int
	away     bool
	checked  time.Time
	written  int64
}

// Cadence of the loop.
const (
	joinEvery   = 100 * time.Millisecond // how soon a build is joined
	checkEvery  = time.Second            // the lease, a restart of Redis, views without a generation
	backoffMin  = 50 * time.Millisecond
	backoffMax  = 2 * time.Second
	drainMax    = 15 * time.Second // how long a store that is away is waited for at the end
	buildsMax   = 3                // failures of builds after which a worker that shall end gives up
	onlineRetry = "what it lacks is caught up from the log at the next start"
)

// run works until the queue has ended; alive ends when another part of the worker has failed, reading when the worker
// was asked to stop.
func (o *onlineLoop) run(alive, reading context.Context) error {
	building, stop := context.WithCancel(alive)
	defer o.builds.Wait()
	defer stop()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(alive), time.Second)
		defer cancel()
		_ = o.store.Release(ctx, o.worker) // it runs out by itself
	}()
	var deadline time.Time
	for {
		items, last := o.queue.take(joinEvery)
		if last && deadline.IsZero() {
			deadline = o.now().Add(drainMax)
		}
		err := o.write(alive, items, deadline)
		release(items)
		if alive.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := o.tend(alive, building); err != nil {
			if err := o.failed(err, deadline); err != nil {
				return err
			}
			continue
		}
		o.back()
		if !last || len(items) > 0 {
			continue
		}
		if !o.once || reading.Err() != nil {
			return nil
		}
		done, err := o.complete(alive)
		if done || err != nil {
			return err
		}
	}
}

// complete reports whether every view can be read.
func (o *onlineLoop) complete(ctx context.Context) (bool, error) {
	missing, err := o.live.Missing(ctx)
	if err != nil {
		return false, nil // away: tend says so
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures >= buildsMax {
		return false, fmt.Errorf("feature views %v can't be read yet: run `loam materialize`", missing)
	}
	return len(missing) == 0 && len(o.building) == 0, nil
}

// write writes batches, in their order, and tries again until it succeeds or the deadline, if there is one, has passed.
func (o *onlineLoop) write(ctx context.Context, items []routed, deadline time.Time) error {
	byStream := map[string][]routed{}
	var names []string
	for _, b := range items {
		if len(byStream[b.Stream.Name]) == 0 {
			names = append(names, b.Stream.Name)
		}
		byStream[b.Stream.Name] = append(byStream[b.Stream.Name], b)
	}
	slices.Sort(names)
	for _, name := range names {
		b := merge(byStream[name])
		backoff := backoffMin
		for {
			n, err := o.live.Write(ctx, b.Batch)
			if err == nil {
				o.written += int64(n)
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			if err := o.failed(err, deadline); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(backoff):
			}
			backoff = min(2*backoff, backoffMax)
			// A store that restarted has lost what was written to it: its generations are built anew.
			if _, err := o.store.Restarted(ctx); err == nil {
				o.back()
			}
		}
		o.back()
		at := o.positions[name]
		if at == nil {
			at = map[feature.Partition]int64{}
			o.positions[name] = at
		}
		for _, s := range b.Spans {
			at[s.Partition] = s.To
		}
	}
	return nil
}

// failed notes that the store is away. With a deadline that has passed it gives that up as an error.
func (o *onlineLoop) failed(err error, deadline time.Time) error {
	if !o.away {
		o.away = true
		o.say("the online store is away, the lake goes on without it: %v", err)
	}
	if !deadline.IsZero() && o.now().After(deadline) {
		return fmt.Errorf("the online store is still away, the lake has everything and %s: %w", onlineRetry, err)
	}
	return nil
}

func (o *onlineLoop) back() {
	if o.away {
		o.away = false
		o.say("the online store is back")
	}
}

// tend keeps the lease, joins builds, and starts those that are missing.
func (o *onlineLoop) tend(ctx, building context.Context) error {
	if err := o.live.Join(ctx, o.positions); err != nil {
		return err
	}
	if o.now().Sub(o.checked) < checkEvery {
		return nil
	}
	if err := o.store.Lease(ctx, o.worker); err != nil {
		return err
	}
	restarted, err := o.store.Restarted(ctx)
	if err != nil {
		return err
	}
	if restarted {
		o.say("the online store restarted: its views are built anew")
	}
	missing, err := o.live.Missing(ctx)
	if err != nil {
		return err
	}
	for _, view := range missing {
		o.build(building, view)
	}
	o.checked = o.now()
	return nil
}

// build builds a view beside the loop, unless that is going on.
func (o *onlineLoop) build(ctx context.Context, view string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.building[view] || o.failures >= buildsMax && o.once {
		return
	}
	o.building[view] = true
	o.builds.Add(1)
	go func() {
		defer o.builds.Done()
		n, err := materialize(ctx, o.store, o.lake, o.project, o.project.View(view), o.now, nil)
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.building, view)
		switch {
		case err == nil:
			o.failures = 0
			o.say("feature view %s is served: %s", view, count(n, "entity"))
		case !errors.Is(err, context.Canceled):
			o.failures++
			o.say("feature view %s could not be built, it is tried again: %v", view, err)
		}
	}()
}

// materialize builds a new generation of a view and switches to it. It gives the number of entities.
func materialize(ctx context.Context, s *online.Store, l *lake.Lake, p *feature.Project, view *feature.View, now func() time.Time,
	progress func(done, of int64)) (int64, error) {
	w, err := online.NewViewWriter(ctx, s, p, view)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	var entities int64
	g, err := w.Build(ctx, l, online.BuildOptions{Now: now, MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), Progress: func(done, of int64) {
		entities = done
		if progress != nil {
			progress(done, of)
		}
	}})
	if err != nil {
		return entities, err
	}
	return entities, s.Switch(ctx, view.Name, g)
}
