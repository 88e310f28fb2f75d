package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
)

func (a *app) runCommand() *cobra.Command {
	o := workerOptions{}
	var streams []string
	var onGap string
	var megabytes int64
	c := &cobra.Command{
		Use:   "run",
		Short: "Take the topics in: lake and online store",
		Long: `run reads every stream's topic, from the broker or from the folders .loam/topics/<topic>/<partition>.jsonl, writes the
accepted events to the lake and the newest values to the online store, and goes on until it is ended. SIGTERM or Ctrl-C
makes it commit what it has read first. Where loam apply changes the definitions beside it, it goes on by the new ones.`,
		Example: "  loam run\n  loam run --until-end               # take what is there, and end\n  loam run --stream contact --commit-every 10s",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch onGap {
			case "stop", "earliest":
			default:
				return misused("--on-gap is stop or earliest, not %q", onGap)
			}
			if o.maintainShare < 0 || o.maintainShare > 1 {
				return misused("--maintain is a share between 0 and 1, not %g", o.maintainShare)
			}
			if o.commitEvery <= 0 || o.commitRows < 1 || megabytes < 1 || megabytes > commitMegabytesMax {
				return misused("--commit-every is more than 0s, --commit-rows at least 1 and --commit-mb between 1 and %d", commitMegabytesMax)
			}
			o.commitBytes = megabytes << 20
			o.earliestOnGap = onGap == "earliest"
			return a.run(c.Context(), o, streams)
		},
	}
	c.Flags().BoolVar(&o.untilEnd, "until-end", false, "end once all that is there has been taken")
	c.Flags().StringSliceVar(&streams, "stream", nil, "read only these streams")
	c.Flags().StringVar(&onGap, "on-gap", "stop", "where the broker has removed records that were not read: stop, or go on at the earliest")
	c.Flags().DurationVar(&o.commitEvery, "commit-every", 2*time.Second, "commit to the lake at least so often")
	c.Flags().Int64Var(&o.commitRows, "commit-rows", 100_000, "or as soon as so many events wait")
	c.Flags().Int64Var(&megabytes, "commit-mb", 128, "or as soon as what waits takes so many MiB of memory; twice as much may wait")
	c.Flags().Float64Var(&o.maintainShare, "maintain", 0.5, "share of one core's time that compaction beside may take; 0 leaves it to loam maintain")
	return c
}

// workerGC is the garbage collector's percentage in a worker: what lives is some large batches, which are gone after a commit, and at Go's
// own 100 as much again would wait to be collected. GOGC in the environment wins.
const workerGC = 50

func (a *app) run(ctx context.Context, o workerOptions, names []string) error {
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(workerGC))
	}
	w := &worker{options: o, jobID: newJobID("run"), now: a.now, say: a.say, did: outcome{}}
	if !o.untilEnd {
		tell, stop := context.WithCancel(ctx)
		defer stop()
		go w.tell(tell, tellEvery)
	}
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	free := func() {}
	if len(p.Broker.Seeds) > 0 {
		w.instance, free = takeInstance(p)
	}
	defer free()
	err = a.work(ctx, w, names)
	for fenced, read := 0, int64(0); errors.Is(err, errRedefined) && ctx.Err() == nil; {
		if sum := w.outcome().total().Read; sum > read || !errors.Is(err, lake.ErrFenced) {
			fenced, read = 0, sum
		}
		switch {
		case errors.Is(err, lake.ErrRewound):
			a.say("a stream was rewound: going on from where it stands")
		case errors.Is(err, lake.ErrFenced):
			if fenced++; fenced > fencedMax {
				return err
			}
			a.say("another worker has taken a partition over: going on with those that are left here")
		default:
			a.say("the definitions have changed: going on by the new ones")
		}
		if err = a.awaitApplied(ctx); err == nil {
			err = a.work(ctx, w, names)
		}
	}
	if errors.Is(err, errRedefined) || ctx.Err() != nil && errors.Is(err, context.Canceled) && !o.untilEnd {
		err = nil // asked to end meanwhile: what was not committed is read again
	}
	did := w.outcome()
	if w.began && (o.untilEnd || did.total().Read > 0) {
		err = errors.Join(err, a.result(did.report(), func(out io.Writer) { did.print(out) }))
	}
	return err
}

// work opens the project and has the worker take its topics by the definitions that are applied now. It gives
// errRedefined where others are applied meanwhile: what was read by then is committed, or will be read again.
func (a *app) work(ctx context.Context, w *worker, names []string) (err error) {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	streams, err := a.topicStreams(p, names)
	if err != nil {
		return err
	}
	if w.definitions, err = a.applied(ctx, p, l); err != nil {
		return err
	}
	n, err := openLine(ctx, p, l, streams, w.jobID)
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.openTopics(ctx, p); err != nil {
		return err
	}
	w.project, w.line, w.online = p, n, nil
	enough := amount{w.options.commitRows, w.options.commitBytes}
	w.lake = newQueue(amount{min(lakeQueueBatches*enough.rows, lakeQueueMax), lakeQueueBatches * enough.bytes}, enough, false)
	store, err := openStore(ctx, p)
	if err != nil {
		return err
	}
	if store != nil {
		defer store.Close()
		if w.online, err = newOnlineLoop(ctx, w, store, w.jobID); err != nil {
			return err
		}
		defer w.online.live.Close()
	}
	sources, err := w.openSources(ctx)
	if err != nil {
		return err
	}
	if w.online != nil {
		w.online.reads = w.partitions.own
	}
	defer func() { w.closeSources(sources, errors.Is(err, errRedefined)) }()
	if !w.options.untilEnd {
		a.say("taking %s; Ctrl-C ends", strings.Join(n.names(), ", "))
	}
	w.began = true
	return w.run(ctx, sources)
}

// fencedMax is how often in turn a worker goes on that finds its partitions taken by another, without anything committed between.
const fencedMax = 5

// leaveTimeout bounds how long a worker that ends tells its consumer group.
const leaveTimeout = 3 * time.Second

// closeSources closes the sources. Unless the worker goes on, its partitions go to others at once.
func (w *worker) closeSources(sources []*source, goesOn bool) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	for _, s := range sources {
		if k, ok := s.Source.(*ingest.Kafka); ok && !goesOn {
			if err := k.Leave(ctx); err != nil {
				w.say("%v; its partitions are read by others in some seconds", err)
			}
		}
		s.Close()
	}
}

// A worker whose definitions have changed waits so long until its folder holds what is applied: tables change before the
// definitions are kept, and a folder elsewhere may come later. It waits longer where a history is derived anew meanwhile: columns
// come before that, and a stream that is rewound can't be written until then.
const (
	appliedWait  = time.Minute
	rebuiltWait  = 12 * time.Hour
	appliedEvery = 500 * time.Millisecond
)

// awaitApplied waits until the project folder holds what is applied, and no stream is being rewound.
func (a *app) awaitApplied(ctx context.Context) error {
	check := func() error {
		p, l, err := a.open(ctx)
		if err != nil {
			return err
		}
		defer l.Close()
		if err := a.ensureApplied(ctx, p, l); err != nil {
			return err
		}
		for _, s := range p.Streams {
			if err := l.Rewinding(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	for begun := a.now(); ; pause(ctx, appliedEvery) {
		err := check()
		wait := appliedWait
		if errors.As(err, new(rebuilding)) || errors.Is(err, lake.ErrRewinding) {
			wait = rebuiltWait
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errRedefined
		case a.now().After(begun.Add(wait)):
			return fmt.Errorf("what is applied has changed, and this worker can't go on by it; everything it took is kept: %w", err)
		}
	}
}

// tellEvery is how often a worker tells what it has taken, where it has taken anything.
const tellEvery = 30 * time.Second

// tell says now and then what the worker has taken.
func (w *worker) tell(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last := feature.Counts{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		sum := w.outcome().total()
		if sum.Read > last.Read {
			w.say("%s taken so far, %s accepted, %s refused, %s duplicate", count(sum.Read, "event"),
				number(sum.Accepted), number(sum.Refused), number(sum.Duplicate))
		}
		last = sum
	}
}

// newOnlineLoop makes the online half of a worker, settled: what the lake has taken already is in the store.
func newOnlineLoop(ctx context.Context, w *worker, store *online.Store, jobID string) (*onlineLoop, error) {
	live, err := online.NewLive(ctx, store, w.line.lake, w.project)
	if err != nil {
		return nil, err
	}
	o := &onlineLoop{
		queue: newQueue(onlineQueueMost, amount{}, true), store: store, live: live, project: w.project, lake: w.line.lake, worker: jobID,
		once: w.options.untilEnd, now: w.now, say: w.say, positions: map[string]map[feature.Partition]int64{}, building: map[string]bool{},
	}
	// The lease comes first: a build that begins from now on waits until this worker has joined it.
	if err := errors.Join(store.Lease(ctx, jobID), live.Settle(ctx)); err != nil {
		return nil, errors.Join(err, live.Close())
	}
	for name, s := range w.line.streams {
		at, err := s.offsets()
		if err != nil {
			return nil, errors.Join(err, live.Close())
		}
		o.positions[name] = map[feature.Partition]int64{}
		for p, offset := range at.Partitions {
			o.positions[name][p] = offset.Next
		}
	}
	return o, nil
}

// topicStreams are the streams of these names, or all, that have a topic: full extracts come from files alone.
func (a *app) topicStreams(p *feature.Project, names []string) ([]*feature.Stream, error) {
	picked, err := pickStreams(p, names)
	var streams []*feature.Stream
	for _, s := range picked {
		switch {
		case !s.Full():
			streams = append(streams, s)
		case len(names) > 0:
			return nil, fmt.Errorf("stream %s has no topic: its load is full, so `loam backfill --stream %s FILE` alone feeds it", s.Name, s.Name)
		default:
			a.say("stream %s is left out: its load is full, so `loam backfill --stream %s FILE` alone feeds it", s.Name, s.Name)
		}
	}
	return streams, err
}

// pickStreams are the streams of these names, or all where none is named.
func pickStreams(p *feature.Project, names []string) ([]*feature.Stream, error) {
	if len(names) == 0 {
		return p.Streams, nil
	}
	var streams []*feature.Stream
	for _, name := range names {
		s, err := streamOf(p, name)
		if err != nil {
			return nil, err
		}
		streams = append(streams, s)
	}
	return streams, nil
}

func streamOf(p *feature.Project, name string) (*feature.Stream, error) {
	if s := p.Stream(name); s != nil {
		return s, nil
	}
	var known []string
	for _, s := range p.Streams {
		known = append(known, s.Name)
	}
	return nil, fmt.Errorf("there is no stream %q; known: %s", name, strings.Join(known, ", "))
}

// streamReport is what was done to a stream, for machines.
type streamReport struct {
	feature.Counts
	Late     int64 `json:"late"`
	Versions int64 `json:"versions"`
	NoOps    int64 `json:"no_ops"`
}

type report struct {
	Total   feature.Counts          `json:"total"`
	Streams map[string]streamReport `json:"streams"`
	Stray   int64                   `json:"of_no_stream"` // refused events that belong to no stream
	Extract *extractReport          `json:"extract,omitempty"`
}

func (o outcome) report() report {
	r := report{Total: o.total(), Streams: map[string]streamReport{}}
	for name, s := range o {
		if name == "" {
			r.Stray = s.Refused
			continue
		}
		r.Streams[name] = streamReport{Counts: s.Counts, Late: s.Counts.Late, Versions: s.Versions, NoOps: s.NoOps}
	}
	return r
}

// print draws what was done as a table.
func (o outcome) print(w io.Writer) {
	rows := [][]string{{"stream", ">read", ">accepted", ">refused", ">duplicate", ">late", ">versions", ">no-ops"}}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		s := o[name]
		if name == "" || s.Read == 0 {
			continue
		}
		rows = append(rows, []string{name, number(s.Read), number(s.Accepted), number(s.Refused), number(s.Duplicate), number(s.Counts.Late),
			number(s.Versions), number(s.NoOps)})
	}
	if s := o[""]; s != nil && s.Read > 0 {
		rows = append(rows, []string{"(of no stream)", number(s.Read), "", number(s.Refused), "", "", "", ""})
	}
	sum := o.total()
	if sum.Read == 0 {
		fmt.Fprintln(w, "nothing new")
		return
	}
	rows = append(rows, []string{"all", number(sum.Read), number(sum.Accepted), number(sum.Refused), number(sum.Duplicate), "", "", ""})
	table(w, rows)
	if sum.Refused > 0 {
		fmt.Fprintln(w, "  `loam dlq list` tells why events were refused")
	}
}
