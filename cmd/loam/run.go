package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

func (a *app) runCommand() *cobra.Command {
	o := workerOptions{}
	var streams []string
	var onGap string
	c := &cobra.Command{
		Use:   "run",
		Short: "Take the topics in: lake and online store",
		Long: `run reads every stream's topic, from the broker or from the folders .loam/topics/<topic>/<partition>.jsonl, writes the
accepted events to the lake and the newest values to the online store, and goes on until it is ended. SIGTERM or Ctrl-C
makes it commit what it has read first.`,
		Example: "  loam run\n  loam run --until-end               # take what is there, and end\n  loam run --stream contact --commit-every 10s",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch onGap {
			case "stop", "earliest":
			default:
				return misused("--on-gap is stop or earliest, not %q", onGap)
			}
			if o.commitEvery <= 0 || o.commitRows < 1 {
				return misused("--commit-every is more than 0s and --commit-rows at least 1")
			}
			o.earliestOnGap = onGap == "earliest"
			return a.run(c.Context(), o, streams)
		},
	}
	c.Flags().BoolVar(&o.untilEnd, "until-end", false, "end once all that is there has been taken")
	c.Flags().StringSliceVar(&streams, "stream", nil, "read only these streams")
	c.Flags().StringVar(&onGap, "on-gap", "stop", "where the broker has removed records that were not read: stop, or go on at the earliest")
	c.Flags().DurationVar(&o.commitEvery, "commit-every", 2*time.Second, "commit to the lake at least so often")
	c.Flags().Int64Var(&o.commitRows, "commit-rows", 100_000, "or as soon as so many events wait")
	return c
}

func (a *app) run(ctx context.Context, o workerOptions, names []string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	streams, err := pickStreams(p, names)
	if err != nil {
		return err
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		return err
	}
	jobID := newJobID("run")
	n, err := openLine(ctx, p, l, streams, jobID)
	if err != nil {
		return err
	}
	defer n.close()
	w := &worker{
		options: o, project: p, line: n, now: a.now, say: a.say, did: outcome{},
		lake: newQueue(min(lakeQueueBatches*o.commitRows, lakeQueueMax), o.commitRows, false),
	}
	store, err := openStore(ctx, p)
	if err != nil {
		return err
	}
	if store != nil {
		defer store.Close()
		if w.online, err = newOnlineLoop(ctx, w, store, jobID); err != nil {
			return err
		}
		defer w.online.live.Close()
	}
	sources, err := w.openSources(ctx)
	if err != nil && ctx.Err() != nil && !o.untilEnd {
		return nil // asked to end before it had read anything
	} else if err != nil {
		return err
	}
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	if !o.untilEnd {
		a.say("taking %s; Ctrl-C ends", strings.Join(n.names(), ", "))
		tell, stop := context.WithCancel(ctx)
		defer stop()
		go w.tell(tell, tellEvery)
	}
	err = w.run(ctx, sources)
	did := w.outcome()
	if o.untilEnd || did.total().Read > 0 {
		err = errors.Join(err, a.result(did.report(), func(out io.Writer) { did.print(out) }))
	}
	return err
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
		queue: newQueue(onlineQueueRows, 0, true), store: store, live: live, project: w.project, lake: w.line.lake, worker: jobID,
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
}

func (o outcome) report() report {
	r := report{Total: o.total(), Streams: map[string]streamReport{}}
	for name, s := range o {
		if name == "" {
			r.Stray = s.Refused
			continue
		}
		r.Streams[name] = streamReport{Counts: s.Counts, Late: s.Late, Versions: s.Versions, NoOps: s.NoOps}
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
		rows = append(rows, []string{name, number(s.Read), number(s.Accepted), number(s.Refused), number(s.Duplicate), number(s.Late),
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
