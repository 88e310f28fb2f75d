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
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// idsResident is how many of a stream's newest event ids are kept in memory to decide duplicates; older ones are looked
// up in the log.
const idsResident = 1 << 20

// streamMemoryBytes bounds the memory of a stream's DuckDB, which reads what late changes touch.
const streamMemoryBytes = 2 << 30

// indexMemoryBytes bounds what a history's open versions take of the heap; more of them stand in a file.
const indexMemoryBytes = 4 << 30

// line is what run and backfill put batches through: the streams' tables, and the dead letters before them.
type line struct {
	lake    *lake.Lake
	letters *lake.DeadLetters
	topics  *ingest.Letters // of dead letters, nil where no stream has one
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
	known  lake.Head // all of whose identities dedup knows
	// deletes evaluates the stream's delete_when for whoever holds ids; nil where it has none.
	deletes *sql.Condition
	mapping *sql.Mapping // likewise the stream's mapping
}

// routed is a batch, and the log's head of which its maker knew all identities.
type routed struct {
	*feature.Batch
	known lake.Head
}

func openLine(ctx context.Context, p *feature.Project, l *lake.Lake, streams []*feature.Stream, jobID string) (*line, error) {
	n := &line{lake: l, streams: map[string]*openStream{}, jobID: jobID}
	var err error
	if n.letters, err = l.OpenDeadLetters(ctx); err != nil {
		return nil, err
	}
	for _, def := range streams {
		s, err := l.OpenStream(ctx, def, lake.StreamOptions{MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), IndexBytes: indexMemoryBytes})
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		o := &openStream{def: def, lake: s}
		n.streams[def.Name] = o
		if def.DeleteWhen != "" {
			if o.deletes, err = sql.OpenCondition(ctx, def.DeleteWhen, def.DeleteReads); err != nil {
				return nil, errors.Join(err, n.close())
			}
		}
		if o.mapping, err = openMapping(ctx, def); err != nil {
			return nil, errors.Join(err, n.close())
		}
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

// resume gives where the log stands, once the history stands there in these partitions, too.
func (o *openStream) resume(ctx context.Context, partitions []feature.Partition) (lake.Offsets, error) {
	o.tables.Lock()
	defer o.tables.Unlock()
	return o.lake.Resume(ctx, partitions)
}

func (o *openStream) offsets() (lake.Offsets, error) {
	o.tables.Lock()
	defer o.tables.Unlock()
	return o.lake.Offsets()
}

// openTopics connects to the brokers where a stream has a topic for its dead letters.
func (n *line) openTopics(ctx context.Context, p *feature.Project) error {
	var topics []string
	for _, o := range n.all() {
		if o.def.DeadLetterTopic != "" && !slices.Contains(topics, o.def.DeadLetterTopic) {
			topics = append(topics, o.def.DeadLetterTopic)
		}
	}
	if len(topics) == 0 {
		return nil
	}
	access, err := ingest.AccessOf(p.Broker, p.Dir)
	if err != nil {
		return err
	}
	n.topics, err = ingest.OpenLetters(ctx, ingest.KafkaOptions{Seeds: p.Broker.Seeds, Access: access}, topics)
	return err
}

// produce gives the letters that aren't kept yet to the topics of their streams. It comes before they are kept, and before any offset
// moves, so that a letter may come to its topic twice, and never not at all.
func (n *line) produce(ctx context.Context, letters []feature.DeadLetter) error {
	offsets, err := n.letters.Offsets()
	if err != nil {
		return err
	}
	byTopic := map[string][]feature.DeadLetter{}
	for _, l := range letters {
		o := n.streams[l.Stream]
		if o == nil || o.def.DeadLetterTopic == "" {
			continue
		}
		if at, _ := offsets.Of(feature.Partition{Topic: l.Topic, Index: l.Partition}); l.Offset >= at.Next {
			byTopic[o.def.DeadLetterTopic] = append(byTopic[o.def.DeadLetterTopic], l)
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		if err := n.topics.Produce(ctx, topic, byTopic[topic]); err != nil {
			return err
		}
	}
	return nil
}

func (n *line) close() error {
	var errs []error
	if n.topics != nil {
		errs = append(errs, n.topics.Close())
	}
	for _, o := range n.streams {
		errs = append(errs, o.lake.Close())
		if o.deletes != nil {
			errs = append(errs, o.deletes.Close())
		}
		if o.mapping != nil {
			errs = append(errs, o.mapping.Close())
		}
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

// deletes are what the streams' routers tell deletes by, of the streams that have a delete_when.
func (n *line) deletes() map[string]ingest.Condition {
	deletes := map[string]ingest.Condition{}
	for name, o := range n.streams {
		if o.deletes != nil {
			deletes[name] = o.deletes.True
		}
	}
	return deletes
}

// mappings make rows of the records of the streams that have a mapping.
func (n *line) mappings() map[string]ingest.Mapper {
	mappings := map[string]ingest.Mapper{}
	for name, o := range n.streams {
		if o.mapping != nil {
			mappings[name] = mapperOf(o.mapping)
		}
	}
	return mappings
}

// outcome is what commits did, by stream; events of no stream are under "".
type outcome map[string]*streamOutcome

type streamOutcome struct {
	feature.Counts
	lake.Result
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
	merged := mergeByStream(batches)
	if len(letters) > 0 {
		// Dead letters of a stream that was rewound meanwhile would hide those that are found when it is read again, and those of a
		// partition that another worker reads now are its own.
		for _, b := range merged {
			if err := n.streams[b.Stream.Name].check(ctx, b.Spans); err != nil {
				return err
			}
		}
		strays, err := n.newStrays(letters)
		if err != nil {
			return err
		}
		if err := n.produce(ctx, letters); err != nil {
			return err
		}
		step.At(step.LettersProduced)
		if err := n.letters.Commit(ctx, letters, spans, n.jobID); err != nil {
			return fmt.Errorf("keep dead letters: %w", err)
		}
		did.of("").Counts.Add(feature.Counts{Read: strays, Refused: strays})
	}
	for _, b := range merged {
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

func (o *openStream) check(ctx context.Context, spans []feature.Span) error {
	o.tables.Lock()
	defer o.tables.Unlock()
	return alone(o.lake.Check(ctx, spans))
}

// alone says what to do where another process has taken the same.
func alone(err error) error {
	if errors.Is(err, lake.ErrFenced) {
		return fmt.Errorf("%w; another loam run or backfill reads the same: end one of them, this one has written nothing twice", err)
	}
	return err
}

func (o *openStream) commit(ctx context.Context, b routed, did *streamOutcome) error {
	o.tables.Lock()
	r, err := o.lake.Commit(ctx, b.Batch, b.known)
	head := o.lake.Head()
	o.tables.Unlock()
	if r.Logged {
		for _, s := range b.Spans {
			did.Counts.Add(s.Counts)
		}
		did.Result.Add(r)
	}
	if err != nil {
		return alone(err)
	}
	o.tell(r.Foreign, head)
	return nil
}

// knows is the log's head all of whose identities the reader knows now.
func (o *openStream) knows() lake.Head {
	o.ids.Lock()
	defer o.ids.Unlock()
	return o.known
}

// tell has the reader know what others have committed, up to a head of the log.
func (o *openStream) tell(foreign []lake.Accepted, head lake.Head) {
	o.ids.Lock()
	defer o.ids.Unlock()
	for _, f := range foreign {
		o.dedup.Remember(f.Identity, f.Position)
	}
	o.known = head
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

// refusedBefore are positions of a partition, or of the live topics where that is nil, that are dead letters and that their
// streams' logs have not passed: dead letters are committed first, and a process may end before the log is. A replay refuses
// them again, though their time may have come, or a definition may have become wider since.
func (n *line) refusedBefore(ctx context.Context, only *feature.Partition) (map[feature.Position]feature.Reason, error) {
	table, err := n.lake.OpenDeadLetters(ctx) // as others have left it, and beside who commits to it
	if err != nil {
		return nil, err
	}
	letters, err := table.Offsets()
	if err != nil {
		return nil, err
	}
	ends := map[feature.Partition]int64{}
	if only != nil {
		at, _ := letters.Of(*only)
		ends[*only] = at.Next
	} else {
		for p, at := range letters.Partitions {
			ends[p] = at.Next
		}
	}
	var ahead []sql.Fragment
	for name, o := range n.streams {
		at, err := o.offsets()
		if err != nil {
			return nil, err
		}
		for p, end := range ends {
			if next, _ := at.Of(p); next.Next < end && (only != nil || p.Topic == o.def.Topic) {
				ahead = append(ahead, sql.Fragment(fmt.Sprintf(`(stream = %s AND topic = %s AND "partition" = %d AND "offset" >= %d)`,
					sql.Literal(name), sql.Literal(p.Topic), p.Index, next.Next)))
			}
		}
	}
	refused := map[feature.Position]feature.Reason{}
	if len(ahead) == 0 {
		return refused, nil
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	err = table.Each(ctx, db, sql.Join(" OR ", ahead), lake.NewestFirst, idsResident, func(l feature.DeadLetter) error {
		refused[l.Position] = l.Reason
		return nil
	})
	return refused, err
}
