package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/ingest/schema"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
)

// workerOptions are the settings of a worker.
type workerOptions struct {
	untilEnd      bool
	earliestOnGap bool
	commitEvery   time.Duration // the lake is committed to at least so often while there is something
	commitRows    int64         // or as soon as so many rows wait
	commitBytes   int64         // or rows of so many bytes
	maintainShare float64       // share of the time that compaction may take; 0 means never
}

// worker reads the live topics of a project. One reader a source polls, checks and decides on duplicates; what comes of a
// poll then takes two ways, each at its own pace and with its own offsets: to the lake, which holds the readers up when it
// lags, and to the online store, which doesn't: it drops what it can't take and catches up from the log.
type worker struct {
	options workerOptions
	jobID   string
	now     func() time.Time
	say     func(format string, args ...any)

	// What it works by; opened anew when other definitions are applied.
	project     *feature.Project
	definitions *lake.Definitions
	line        *line
	partitions  *partitions
	instance    string      // what the consumer group knows this worker by across restarts, "" where by nothing
	online      *onlineLoop // nil without an online store
	lake        *queue

	began bool // it has come to read
	mu    sync.Mutex
	did   outcome
}

// Bounds of what waits between the readers and a consumer.
const (
	lakeQueueBatches = 2 // times the rows of a commit
	// lakeQueueMax keeps what waits and what is being committed below the half of a window of ids that is on its way.
	lakeQueueMax       = idsResident / 4
	commitMegabytesMax = 1 << 20
	idleEvery          = time.Minute // how often an idle partition's watermark is moved
)

var onlineQueueMost = amount{rows: 200_000, bytes: 256 << 20}

// source is a source of live topics, and a router for each.
type source struct {
	ingest.Source
	routers map[string]*ingest.Router // by topic
	// decoders are those of topics whose values name schemas of a registry.
	decoders map[string]*schema.Decoder
	streams  []*openStream
	// stopped says why topics are read no further, while the others go on.
	stopped map[string]error
	end     func() // says that nothing more comes of it: it has ended, or all of its topics have stopped
}

// errRedefined ends a worker that is to go on by definitions that were applied since it began.
var errRedefined = errors.New("the applied definitions have changed")

// redefinedEvery is how often a worker looks whether definitions were applied.
const redefinedEvery = time.Second

// run works until the topics end, where it was asked to, or ctx is done, or other definitions are applied; then it
// commits what it has read. It is errRedefined in the last case, also where the tables had changed before that commit, and where
// a stream was rewound.
func (w *worker) run(ctx context.Context, sources []*source) error {
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(failed, func() { stop(nil) })()
	watching, unwatch := context.WithCancel(reading)
	defer unwatch()
	var readers sync.WaitGroup
	polling, noMore := context.WithCancel(reading)
	defer noMore()
	var left atomic.Int64 // sources that something may come of
	left.Store(int64(len(sources)))
	for _, s := range sources {
		s.end = sync.OnceFunc(func() {
			if left.Add(-1) == 0 {
				noMore()
			}
		})
		readers.Add(1)
		group.Go(func() error {
			defer readers.Done()
			defer s.end()
			return w.read(polling, failed, s)
		})
	}
	group.Go(func() error {
		readers.Wait()
		unwatch()
		w.lake.close()
		if w.online != nil {
			w.online.queue.close()
		}
		return nil
	})
	group.Go(func() error { return w.commit(failed) })
	if w.options.maintainShare > 0 {
		group.Go(func() error {
			w.maintain(watching)
			return nil
		})
	}
	group.Go(func() error {
		if w.redefined(watching) {
			stop(errRedefined)
		}
		return nil
	})
	var lacking error // online: no reason for the lake to end
	if w.online != nil {
		group.Go(func() error {
			lacking = w.online.run(failed, reading)
			return nil
		})
	}
	err := group.Wait()
	switch {
	case errors.Is(err, lake.ErrChanged), errors.Is(err, lake.ErrRewound), errors.Is(err, lake.ErrFenced) && w.partitions.shared:
		return fmt.Errorf("%w: %w", errRedefined, err)
	case err == nil && context.Cause(reading) == errRedefined:
		return errRedefined // what the store lacks is settled when it is opened again
	}
	for _, s := range sources {
		for _, why := range s.stopped {
			err = errors.Join(err, why)
		}
	}
	return errors.Join(err, lacking)
}

// redefined waits until other definitions are applied, and says whether they were before ctx was done.
func (w *worker) redefined(ctx context.Context) bool {
	ticker := time.NewTicker(redefinedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		// A catalog that can't be asked fails the next commit, which tells.
		if changed, err := w.definitions.Changed(ctx); err == nil && changed {
			return ctx.Err() == nil
		}
	}
}

// read polls a source and puts what comes of it into the queues. alive ends when another part of the worker has failed.
func (w *worker) read(ctx, alive context.Context, s *source) error {
	idle := map[feature.Partition]time.Time{}
	for {
		poll, err := s.Poll(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		step.At(step.Polled)
		s.restart(poll.Given, w.partitions)
		polled := w.now()
		ends := make([]ingest.End, 0, len(poll.Ends))
		for _, p := range poll.Ends {
			e := ingest.End{Partition: p, At: polled.UnixMicro(), Idle: polled.Sub(idle[p]) >= idleEvery}
			if e.Idle {
				idle[p] = polled
			}
			ends = append(ends, e)
		}
		for records := s.going(poll.Records); ; {
			n, err := w.decode(ctx, s, records)
			if err != nil && ctx.Err() != nil {
				return nil // what was not decoded is read again
			} else if err != nil {
				return err
			}
			step.At(step.Decoded)
			last := n == len(records)
			var at []ingest.End // the ends are reached with the last record
			if last {
				at = s.goingEnds(ends)
			}
			if err := w.pass(alive, s, records[:n], at); err != nil {
				return err
			}
			if records = s.going(records[n:]); last {
				break
			}
		}
		if poll.Done || ctx.Err() != nil {
			return nil
		}
		if len(s.stopped) == len(s.streams) {
			s.end() // it stays a member of its group as long as others are read
		}
	}
}

// pass hands records to their streams, and what comes of them to the queues.
func (w *worker) pass(alive context.Context, s *source, records []ingest.Record, ends []ingest.End) error {
	batches, err := s.route(alive, records, ends, w.now())
	if err != nil {
		return err
	}
	step.At(step.Routed)
	for _, b := range batches {
		err := w.lake.put(alive, b)
		if err == nil && w.online != nil && b.Stream != nil {
			err = w.online.queue.put(alive, b)
		}
		b.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// restart has the routers begin anew with partitions that were given to this worker.
func (s *source) restart(given []feature.Partition, known *partitions) {
	if len(given) == 0 {
		return
	}
	for topic, r := range s.routers {
		r.Restart(slices.DeleteFunc(slices.Clone(given), func(p feature.Partition) bool { return p.Topic != topic }))
		r.Refuse(known.letters(topic))
	}
}

// route hands records to their streams and gives what came of them.
func (s *source) route(ctx context.Context, records []ingest.Record, ends []ingest.End, now time.Time) ([]routed, error) {
	defer lockIDs(s.streams)()
	for len(records) > 0 {
		// Those of a topic that follow one another, which a mapping takes together.
		n := slices.IndexFunc(records, func(r ingest.Record) bool { return r.Topic != records[0].Topic })
		if n < 0 {
			n = len(records)
		}
		if err := s.routers[records[0].Topic].AddAll(ctx, records[:n], now.UnixMicro()); err != nil {
			return nil, err
		}
		records = records[n:]
	}
	var all []routed
	for _, o := range s.streams {
		batches, err := s.routers[o.def.Topic].Flush(ctx, ends)
		if err != nil {
			return nil, err
		}
		for _, b := range batches {
			all = append(all, routed{b, o.known})
		}
	}
	return all, nil
}

// commit writes what waits to the lake, until the queue ends.
func (w *worker) commit(ctx context.Context) error {
	defer w.lake.abandon()
	for {
		items, last := w.lake.take(w.options.commitEvery)
		did := outcome{}
		err := w.line.commit(ctx, items, did)
		release(items)
		if ctx.Err() != nil {
			return nil // another part has failed, and says why
		}
		w.note(did) // also of the streams before one that failed
		if err != nil {
			return err
		}
		w.lake.settled()
		if w.online != nil {
			w.online.committed.Store(true)
		}
		if last {
			return nil
		}
	}
}

// note adds what a commit did to what the worker tells of itself.
func (w *worker) note(did outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for stream, s := range did {
		t := w.did.of(stream)
		t.Counts.Add(s.Counts)
		t.Result.Add(s.Result)
	}
}

func (w *worker) outcome() outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	copied := outcome{}
	for stream, s := range w.did {
		one := *s
		copied[stream] = &one
	}
	return copied
}

// topicDir is the folder of a topic in a project without a broker.
func topicDir(p *feature.Project, topic string) string {
	return filepath.Join(p.Dir, ".loam", "topics", topic)
}

// openSources opens the topics of the open streams where the lake stands.
func (w *worker) openSources(ctx context.Context) ([]*source, error) {
	shared := len(w.project.Broker.Seeds) > 0
	var err error
	if w.partitions, err = openPartitions(ctx, w.line, shared, w.now); err != nil {
		return nil, err
	}
	starts := func(p feature.Partition) int64 { return w.partitions.at(ctx, p).Next }
	router := func(o *openStream, topicID func(string) string) *ingest.Router {
		return ingest.NewRouter(ingest.RouterOptions{
			Streams: []*feature.Stream{o.def}, Only: o.def, JobID: w.line.jobID, Dedups: w.line.dedups(), Deletes: w.line.deletes(),
			Mappings:   w.line.mappings(),
			Starts:     func(_ string, p feature.Partition) int64 { return starts(p) },
			RecordedAt: func(p feature.Partition) int64 { return w.partitions.at(ctx, p).RecordedAt },
			TopicID:    topicID, Refused: w.partitions.letters(o.def.Topic),
		})
	}
	if shared {
		return w.openKafka(ctx, starts, router)
	}
	return w.openFolders(starts, router)
}

// openKafka opens the topics of a broker. Those that need a registry are a source of their own: what waits for the registry
// holds nothing else up.
func (w *worker) openKafka(ctx context.Context, starts func(feature.Partition) int64,
	router func(*openStream, func(string) string) *ingest.Router) ([]*source, error) {
	var sources []*source
	fail := func(err error) ([]*source, error) {
		for _, s := range sources {
			s.Close()
		}
		return nil, err
	}
	access, err := ingest.AccessOf(w.project.Broker, w.project.Dir)
	if err != nil {
		return nil, err
	}
	for _, framed := range []bool{false, true} {
		var topics []string
		var streams []*openStream
		for _, o := range w.line.all() {
			if o.def.Framed() == framed {
				topics, streams = append(topics, o.def.Topic), append(streams, o)
			}
		}
		if len(streams) == 0 {
			continue
		}
		s := &source{routers: map[string]*ingest.Router{}, streams: streams}
		if framed {
			if s.decoders, err = openDecoders(w.project, streams, w.now); err != nil {
				return fail(err)
			}
		}
		kafka, err := ingest.OpenKafka(ctx, ingest.KafkaOptions{
			Seeds: w.project.Broker.Seeds, Access: access, Topics: topics, Starts: starts, UntilEnd: w.options.untilEnd, EarliestOnGap: w.options.earliestOnGap,
			TopicID: w.partitions.topicID, Group: w.group(framed),
		})
		if err != nil {
			return fail(err)
		}
		s.Source = kafka
		for _, o := range streams {
			s.routers[o.def.Topic] = router(o, kafka.TopicID)
		}
		sources = append(sources, s)
	}
	return sources, nil
}

// group is this worker in the consumer group that shares the topics. Its two sources are two members.
func (w *worker) group(framed bool) *ingest.KafkaGroup {
	g := &ingest.KafkaGroup{Name: cmp.Or(w.project.Broker.Group, "loam."+w.project.Name), Instance: w.instance, Given: w.given, Taken: w.taken}
	if framed && w.instance != "" {
		g.Instance += "-framed"
	}
	return g
}

// openFolders opens topics that are folders. Where some of them are there, the others are made: they are empty topics.
func (w *worker) openFolders(starts func(feature.Partition) int64, router func(*openStream, func(string) string) *ingest.Router) ([]*source, error) {
	var missing []string
	streams := w.line.all()
	for _, o := range streams {
		dir := topicDir(w.project, o.def.Topic)
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, dir)
		}
	}
	if len(missing) < len(streams) {
		for _, dir := range missing {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, fmt.Errorf("make a topic's folder: %w", err)
			}
			w.say("%s was missing and is made: an empty topic", dir)
		}
	}
	var sources []*source
	for _, o := range streams {
		folder, err := ingest.OpenFolder(o.def.Topic, topicDir(w.project, o.def.Topic), starts, w.options.untilEnd)
		if err != nil {
			return nil, err
		}
		sources = append(sources, &source{
			Source: folder, routers: map[string]*ingest.Router{o.def.Topic: router(o, nil)}, streams: []*openStream{o},
		})
	}
	return sources, nil
}
