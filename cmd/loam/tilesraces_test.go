package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"golang.org/x/sync/errgroup"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// A steppedWorker is a worker whose parts a test moves by hand.
type steppedWorker struct {
	*worker
	t      *testing.T
	source *source
}

func (p *windowsProject) stepped(jobID string) *steppedWorker {
	p.t.Helper()
	ctx, a := p.t.Context(), p.app()
	fatal := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatal(err)
		}
	}
	project, l, err := a.open(ctx)
	fatal(err)
	w := &worker{jobID: jobID, now: a.now, say: a.say, did: outcome{}, project: project}
	w.line, err = openLine(ctx, project, l, []*feature.Stream{project.Stream("fact")}, w.jobID)
	fatal(err)
	store, err := openStore(ctx, project)
	fatal(err)
	w.online, err = newOnlineLoop(ctx, w, store, w.jobID)
	fatal(err)
	sources, err := w.openSources(ctx)
	fatal(err)
	p.t.Cleanup(func() {
		sources[0].Close()
		for _, err := range []error{w.online.live.Close(), store.Close(), w.line.close(), l.Close()} {
			if err != nil {
				p.t.Error(err)
			}
		}
	})
	return &steppedWorker{w, p.t, sources[0]}
}

// route reads what the topic holds and decides on duplicates.
func (w *steppedWorker) route() []routed {
	w.t.Helper()
	poll, err := w.source.Poll(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	batches, err := w.source.route(w.t.Context(), poll.Records, nil, time.Now())
	if err != nil || len(batches) == 0 || batches[0].NumRows() == 0 {
		w.t.Fatalf("%d batches, %v", len(batches), err)
	}
	w.t.Cleanup(func() { release(batches) })
	return batches
}

// write is the online half of a worker.
func (w *steppedWorker) write(batches []routed) {
	w.t.Helper()
	var own []routed
	for _, b := range batches {
		own = append(own, b.copy())
	}
	if err := w.online.write(w.t.Context(), own); err != nil {
		w.t.Fatal(err)
	}
}

// commit is its lake's half, of which the online one is told.
func (w *steppedWorker) commit(batches []routed) {
	w.t.Helper()
	if err := w.line.commit(w.t.Context(), batches, outcome{}); err != nil {
		w.t.Fatal(err)
	}
	w.online.committed.Store(true)
}

// tend lets the online half do what it does beside writing, until done, or once where that is nil.
func (w *steppedWorker) tend(done <-chan error) {
	w.t.Helper()
	for {
		w.online.checked = time.Time{}
		if err := w.online.tend(w.t.Context(), w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		if done == nil {
			return
		}
		select {
		case err := <-done:
			if err != nil {
				w.t.Fatal(err)
			}
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// awaitBuilding waits until a generation of the view is written beside the one that is read.
func (p *windowsProject) awaitBuilding() {
	p.t.Helper()
	store, err := online.Open(p.t.Context(), "test", p.redis)
	if err != nil {
		p.t.Fatal(err)
	}
	defer store.Close()
	for {
		all, err := store.Generations(p.t.Context(), "w")
		if err != nil {
			p.t.Fatal(err)
		}
		if slices.ContainsFunc(all.All, func(g online.Generation) bool { return g.State == online.Building }) {
			return
		}
		pause(p.t.Context(), time.Millisecond)
	}
}

// An event counts once that a file and the topic have, also where a worker has decided on the topic's before it could know of the
// file's, and whenever it comes to write it: while the view is built anew, or once that is served.
func TestTwinOfAFileDecidedOnBeforeIt(t *testing.T) {
	for _, when := range []string{"before the file is taken", "while the view is built", "once it is served"} {
		t.Run(when, func(t *testing.T) {
			p := newWindowsProject(t, true)
			p.topic(0, 40)
			p.loam("run", "--until-end")
			w := p.stepped(newJobID("run"))
			twins := p.lines(10)
			p.append(0, twins+p.lines(5))
			p.write("twins.jsonl", twins+p.lines(5))
			batches := w.route()
			if when == "before the file is taken" {
				w.write(batches)
			}
			done := make(chan error, 1)
			go func() {
				done <- p.app().backfill(t.Context(), []string{filepath.Join(p.dir, "twins.jsonl")}, backfillOptions{stream: "fact"})
			}()
			p.awaitBuilding()
			if when == "while the view is built" {
				w.write(batches)
			}
			if when != "once it is served" {
				w.commit(batches)
			}
			w.tend(done)
			if when == "once it is served" {
				w.write(batches)
				w.commit(batches)
			}
			w.tend(nil)
			p.clean("a file with the topic's events")
			p.append(0, p.lines(10))
			batches = w.route()
			w.write(batches)
			w.commit(batches)
			p.clean("the next events")
		})
	}
}

// materializeBeside builds the view, and has do run before the nth command of the build after it has drawn its number, of those of a
// name where one is given. It reports whether there were so many.
func (p *windowsProject) materializeBeside(name string, n int64, do func()) bool {
	p.t.Helper()
	var numbered atomic.Bool
	var left atomic.Int64
	left.Store(n)
	reached, on := make(chan struct{}), make(chan struct{})
	p.server.Server().SetPreHook(func(_ *server.Peer, command string, _ ...string) bool {
		if (command == "HINCRBY" || numbered.Load()) && (name == "" || name == command) && left.Add(-1) == -1 {
			close(reached)
			<-on
		}
		numbered.Store(numbered.Load() || command == "HINCRBY")
		return false
	})
	defer p.server.Server().SetPreHook(nil)
	done := make(chan error, 1)
	go func() { done <- p.app().materialize(p.t.Context(), []string{"w"}, nil) }()
	var err error
	select {
	case <-reached:
		do()
		close(on)
		err = <-done
	case err = <-done:
		close(on)
		n = -1
	}
	if err != nil {
		p.t.Errorf("built beside, before command %d: %v", n, err)
	}
	return n >= 0
}

// Wherever in a build a file or a dead letter is taken, also by a view that has no generation yet, the view ends with all of it.
func TestBuildBesideFilesAndRedrives(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, redrive := range []bool{false, true} {
			t.Run(fmt.Sprintf("first %v, redrive %v", first, redrive), func(t *testing.T) {
				p := newWindowsProject(t, true)
				p.topic(0, 60)
				p.loam("run", "--until-end")
				letters := p.letters()
				for n := range 5 { // the ones behind are within scripts, where Redis can't be held
					if first {
						p.server.FlushAll()
					}
					there := p.materializeBeside("", int64(n), func() {
						if redrive {
							p.repair(letters[n])
							return
						}
						p.write("some.jsonl", p.lines(10))
						p.loam("backfill", "--stream", "fact", filepath.Join(p.dir, "some.jsonl"))
					})
					if !there {
						t.Errorf("a build has no command %d", n)
					}
					p.clean(fmt.Sprintf("a build that was held before its command %d", n))
				}
			})
		}
	}
}

// A build that a newer one has overtaken, which removes it, has done no less than it was asked to.
func TestOvertakenBuild(t *testing.T) {
	p := newWindowsProject(t, true)
	p.topic(0, 20)
	p.loam("run", "--until-end")
	overtaken := p.materializeBeside("HGETALL", 0, func() { p.loam("materialize", "--view", "w") })
	if r := p.verified(); !overtaken || r.Generation != 3 {
		t.Errorf("the newest of 3 generations is %d", r.Generation)
	}
	p.clean("a build that was overtaken")
}

// What a backfill that was cut off has left behind is built by the worker that starts next, also where another runs that builds
// what is missing.
func TestOwedBesideAnotherWorker(t *testing.T) {
	p := newWindowsProject(t, true)
	p.topic(0, 40)
	p.loam("run", "--until-end")
	first := p.stepped("first by its name")
	p.write("some.jsonl", p.lines(10))
	p.loam("backfill", "--no-online", "--stream", "fact", filepath.Join(p.dir, "some.jsonl"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- p.app().run(ctx, workerOptions{untilEnd: true, commitEvery: time.Second, commitRows: 1000, commitBytes: 1 << 20}, nil)
	}()
	first.tend(done)
	p.clean("the start of a second worker")
}

// besidesFor is how long commands run beside each other in TestWindowsBesideEverything.
const besidesFor = 4 * time.Second

// Whatever runs beside each other, a worker, files with events of its topic, redrives of letters with others of them, and builds, once
// all has settled the view is what the log makes, with nothing owed.
func TestWindowsBesideEverything(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprintf("keyed %v, seed %d", keyed, seed), func(t *testing.T) {
			p := newWindowsProject(t, keyed)
			p.random = rand.New(rand.NewPCG(seed, 1))
			p.topic(0, 40)
			p.topic(1, 40)
			p.loam("run", "--until-end")
			working, stop := context.WithCancel(t.Context())
			worker := make(chan error, 1)
			go func() {
				worker <- p.app().run(working, workerOptions{commitEvery: time.Second, commitRows: 1000, commitBytes: 1 << 20, maintainShare: 0.5}, nil)
			}()
			p.slow(seed)
			begun, rounds := time.Now(), 0
			for ; time.Since(begun) < besidesFor; rounds++ {
				p.besides(rounds)
			}
			p.topic(0, 5)
			stop()
			if err := <-worker; err != nil {
				t.Fatal(err)
			}
			if owing := p.owing(); len(owing) > 0 {
				t.Errorf("after %d rounds %v lack what was paid", rounds, owing)
			}
			before := p.verified().Generation
			p.loam("run", "--until-end")
			p.clean(fmt.Sprintf("%d rounds", rounds))
			if after := p.verified().Generation; after != before {
				t.Errorf("generation %d was built after %d, so this shows nothing", after, before)
			}
		})
	}
}

// slow has the worker that runs, alone yet, learn late which generations there are, so that batches wait that it has decided on.
func (p *windowsProject) slow(seed uint64) {
	var mu sync.Mutex
	workers, begun := map[*server.Peer]bool{}, time.Now()
	delays := rand.New(rand.NewPCG(seed, 2))
	p.server.Server().SetPreHook(func(peer *server.Peer, command string, _ ...string) bool {
		mu.Lock()
		workers[peer] = workers[peer] || time.Since(begun) < time.Second
		delay := time.Duration(0)
		if workers[peer] && command == "HGETALL" {
			delay = time.Duration(max(0, delays.IntN(12)-5)) * 300 * time.Millisecond
		}
		mu.Unlock()
		pause(p.t.Context(), delay)
		return false
	})
	pause(p.t.Context(), time.Second)
}

// besides has events come on the topic, in a file and in the place of dead letters at once, some of them in two of the three, and
// builds the view beside, each after a while.
func (p *windowsProject) besides(round int) {
	p.t.Helper()
	letters := p.letters()
	filed, redriven := p.lines(8), strings.SplitAfter(p.lines(6), "\n")
	p.write(fmt.Sprintf("%d.jsonl", round), filed+p.lines(4))
	var repaired strings.Builder
	for i, at := range letters[:min(len(letters), len(redriven)-1)] {
		fmt.Fprintf(&repaired, `{"position": %q, "body": %s}`+"\n", at, strings.TrimSpace(redriven[i]))
	}
	p.write("repaired.jsonl", repaired.String())
	partition, live := p.random.IntN(2), filed+strings.Join(redriven, "")+p.lines(5)
	group, ctx := errgroup.WithContext(p.t.Context())
	after := func(do func() error) {
		wait := time.Duration(p.random.IntN(300)) * time.Millisecond
		group.Go(func() error {
			pause(ctx, wait)
			return do()
		})
	}
	after(func() error {
		p.append(partition, live)
		return nil
	})
	after(func() error {
		return p.app().backfill(ctx, []string{filepath.Join(p.dir, fmt.Sprintf("%d.jsonl", round))}, backfillOptions{stream: "fact"})
	})
	if repaired.Len() > 0 {
		after(func() error {
			return p.app().redrive(ctx, redriveOptions{with: filepath.Join(p.dir, "repaired.jsonl"), by: "me"})
		})
	}
	if p.random.IntN(2) == 0 {
		after(func() error { return p.app().materialize(ctx, []string{"w"}, nil) })
	}
	if err := group.Wait(); err != nil {
		p.t.Fatal(err)
	}
}
