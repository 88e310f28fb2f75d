package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// idsResident is how many of a stream's newest event ids are kept in memory to decide duplicates; older ones are looked
// up in the log.
const idsResident = 1 << 20

// streamMemoryBytes bounds the memory of a stream's DuckDB, which reads what late changes touch.
const streamMemoryBytes = 2 << 30

// line is what run and backfill put batches through: the streams' tables, and the dead letters before them.
type line struct {
	lake    *lake.Lake
	letters *lake.DeadLetters
	streams map[string]*openStream
	jobID   string
}

// openStream is a stream whose tables are open, and what is known of its events' identities. Its reader decides on
// duplicates while its committer commits, so each of the two is guarded; whoever holds ids may take tables, never the
// other way round.
type openStream struct {
	def    *feature.Stream
	tables sync.Mutex
	lake   *lake.Stream
	ids    sync.Mutex
	dedup  *ingest.Dedup
	known  int64 // head of the log all of whose identities dedup knows
}

// routed is a batch, and the log's head of which its maker knew all identities.
type routed struct {
	*feature.Batch
	known int64
}

func openLine(ctx context.Context, p *feature.Project, l *lake.Lake, streams []*feature.Stream, jobID string) (*line, error) {
	n := &line{lake: l, streams: map[string]*openStream{}, jobID: jobID}
	var err error
	if n.letters, err = l.OpenDeadLetters(ctx); err != nil {
		return nil, err
	}
	for _, def := range streams {
		s, err := l.OpenStream(ctx, def, lake.StreamOptions{MemoryBytes: streamMemoryBytes, TempDir: tempDir(p)})
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		o := &openStream{def: def, lake: s}
		n.streams[def.Name] = o
		if err := o.fill(ctx); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

// fill loads the newest identities of the log.
func (o *openStream) fill(ctx context.Context) error {
	o.dedup = ingest.NewDedup(idsResident, o.lookUp)
	all, err := o.lake.Recent(ctx, idsResident/2, func(a lake.Accepted) { o.dedup.Remember(a.Identity, a.Position) })
	if err != nil {
		return fmt.Errorf("load the newest event ids of %s: %w", o.def.Name, err)
	}
	if !all {
		o.dedup.Older()
	}
	o.known = o.lake.Head()
	return nil
}

func (o *openStream) lookUp(ctx context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error) {
	o.tables.Lock()
	defer o.tables.Unlock()
	return o.lake.LookUp(ctx, ids)
}

func (o *openStream) offsets() (lake.Offsets, error) {
	o.tables.Lock()
	defer o.tables.Unlock()
	return o.lake.Offsets()
}

func (n *line) close() error {
	var errs []error
	for _, o := range n.streams {
		errs = append(errs, o.lake.Close())
	}
	return errors.Join(errs...)
}

// names are the open streams' names, sorted.
func (n *line) names() []string { return slices.Sorted(maps.Keys(n.streams)) }

// all are the open streams, by name.
func (n *line) all() []*openStream {
	var all []*openStream
	for _, name := range n.names() {
		all = append(all, n.streams[name])
	}
	return all
}

// lockIDs takes what is known of the streams' identities, for whom decides on duplicates, and gives what frees it. The
// streams must be in the order of [line.all].
func lockIDs(streams []*openStream) (unlock func()) {
	for _, o := range streams {
		o.ids.Lock()
	}
	return func() {
		for _, o := range streams {
			o.ids.Unlock()
		}
	}
}

// dedups are what the streams' routers decide duplicates by.
func (n *line) dedups() map[string]*ingest.Dedup {
	dedups := map[string]*ingest.Dedup{}
	for name, o := range n.streams {
		dedups[name] = o.dedup
	}
	return dedups
}

// outcome is what commits did, by stream; events of no stream are under "".
type outcome map[string]*streamOutcome

type streamOutcome struct {
	feature.Counts
	lake.Result
	Late int64
}

func (o outcome) of(stream string) *streamOutcome {
	if o[stream] == nil {
		o[stream] = &streamOutcome{}
	}
	return o[stream]
}

// total sums the counts of all streams.
func (o outcome) total() feature.Counts {
	var sum feature.Counts
	for _, s := range o {
		sum.Add(s.Counts)
	}
	return sum
}

// commit writes batches to the lake: dead letters, then each stream's log and history. The batches stay the caller's.
// What it did is added to the outcome.
func (n *line) commit(ctx context.Context, batches []routed, did outcome) error {
	var letters []feature.DeadLetter
	var spans []feature.Span
	for _, b := range batches {
		letters = append(letters, b.Refused...)
		spans = append(spans, b.Spans...)
	}
	if len(letters) > 0 {
		strays, err := n.newStrays(letters)
		if err != nil {
			return err
		}
		if err := n.letters.Commit(ctx, letters, spans, n.jobID); err != nil {
			return fmt.Errorf("keep dead letters: %w", err)
		}
		did.of("").Counts.Add(feature.Counts{Read: strays, Refused: strays})
	}
	for _, b := range mergeByStream(batches) {
		if err := n.streams[b.Stream.Name].commit(ctx, b, did.of(b.Stream.Name)); err != nil {
			return err
		}
	}
	return nil
}

// newStrays counts the letters of no stream that are not kept yet.
func (n *line) newStrays(letters []feature.DeadLetter) (int64, error) {
	offsets, err := n.letters.Offsets()
	if err != nil {
		return 0, err
	}
	var strays int64
	for _, l := range letters {
		if at, _ := offsets.Of(feature.Partition{Topic: l.Topic, Index: l.Partition}); l.Stream == "" && l.Offset >= at.Next {
			strays++
		}
	}
	return strays, nil
}

func (o *openStream) commit(ctx context.Context, b routed, did *streamOutcome) error {
	o.tables.Lock()
	r, err := o.lake.Commit(ctx, b.Batch, b.known)
	head := o.lake.Head()
	o.tables.Unlock()
	if errors.Is(err, lake.ErrFenced) {
		return fmt.Errorf("%w; another loam run or backfill reads the same: end one of them, this one has written nothing twice", err)
	} else if err != nil {
		return err
	}
	o.ids.Lock()
	for _, f := range r.Foreign {
		o.dedup.Remember(f.Identity, f.Position)
	}
	o.known = head
	o.ids.Unlock()
	for _, s := range b.Spans {
		did.Counts.Add(s.Counts)
	}
	did.Late += b.Late
	did.Result.Add(r)
	return nil
}

// mergeByStream makes one batch a stream, by the streams' names; batches of no stream are left out.
func mergeByStream(batches []routed) []routed {
	byStream := map[string][]routed{}
	for _, b := range batches {
		if b.Stream != nil {
			byStream[b.Stream.Name] = append(byStream[b.Stream.Name], b)
		}
	}
	var merged []routed
	for _, name := range slices.Sorted(maps.Keys(byStream)) {
		merged = append(merged, merge(byStream[name]))
	}
	return merged
}

// merge makes one batch of several of a stream, in the order in which they were made.
func merge(batches []routed) routed {
	if len(batches) == 1 {
		return batches[0]
	}
	all := routed{Batch: &feature.Batch{Stream: batches[0].Stream}, known: batches[0].known}
	spans := map[feature.Partition]*feature.Span{}
	for _, b := range batches {
		all.Rows = append(all.Rows, b.Rows...)
		all.Refused = append(all.Refused, b.Refused...)
		all.Late += b.Late
		for _, s := range b.Spans {
			m := spans[s.Partition]
			if m == nil {
				m = &feature.Span{Partition: s.Partition, From: s.From}
				spans[s.Partition] = m
			}
			m.To, m.TopicID, m.Done = s.To, s.TopicID, m.Done || s.Done
			m.Watermark, m.RecordedAt = max(m.Watermark, s.Watermark), max(m.RecordedAt, s.RecordedAt)
			m.Counts.Add(s.Counts)
		}
	}
	for _, s := range spans {
		all.Spans = append(all.Spans, *s)
	}
	slices.SortFunc(all.Spans, feature.CompareSpans)
	return all
}

// refusedBefore are positions of live topics that were refused for being in the future and that the log has not passed:
// a replay refuses them again, though their time may have come.
func (n *line) refusedBefore(ctx context.Context) (map[feature.Position]bool, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	refused := map[feature.Position]bool{}
	condition := sql.Fragment("reason = " + string(sql.Literal(string(feature.FutureEventTime))) + " AND topic_live(topic)")
	offsets := map[string]lake.Offsets{}
	err = n.letters.Each(ctx, db, condition, idsResident, func(l feature.DeadLetter) error {
		o := n.streams[l.Stream]
		if o == nil {
			return nil
		}
		if _, known := offsets[l.Stream]; !known {
			at, err := o.offsets()
			if err != nil {
				return err
			}
			offsets[l.Stream] = at
		}
		at := offsets[l.Stream]
		if next, _ := at.Of(feature.Partition{Topic: l.Topic, Index: l.Partition}); l.Offset >= next.Next {
			refused[l.Position] = true
		}
		return nil
	})
	return refused, err
}
