package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// workerOptions are the settings of a worker.
type workerOptions struct {
	untilEnd      bool
	earliestOnGap bool
	commitEvery   time.Duration // the lake is committed to at least so often while there is something
	commitRows    int64         // or as soon as so many rows wait
}

// worker reads the live topics of a project. One reader a source polls, checks and decides on duplicates; what comes of a
// poll then takes two ways, each at its own pace and with its own offsets: to the lake, which holds the readers up when it
// lags, and to the online store, which doesn't: it drops what it can't take and catches up from the log.
type worker struct {
	options workerOptions
	project *feature.Project
	line    *line
	online  *onlineLoop // nil without an online store
	lake    *queue
	now     func() time.Time
	say     func(format string, args ...any)

	mu  sync.Mutex
	did outcome
}

// Bounds of what waits between the readers and a consumer.
const (
	lakeQueueBatches = 2 // times the rows of a commit
	// lakeQueueMax keeps what waits and what is being committed below the half of a window of ids that is on its way.
	lakeQueueMax    = idsResident / 4
	onlineQueueRows = 200_000
	idleEvery       = time.Minute // how often an idle partition's watermark is moved
)

// source is a source of live topics, and a router for each.
type source struct {
	ingest.Source
	routers map[string]*ingest.Router // by topic
	streams []*openStream
}

// run works until the topics end, where it was asked to, or ctx is done; then it commits what it has read.
func (w *worker) run(ctx context.Context, sources []*source) error {
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	reading, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(failed, stop)()
	var readers sync.WaitGroup
	for _, s := range sources {
		readers.Add(1)
		group.Go(func() error {
			defer readers.Done()
			return w.read(reading, failed, s)
		})
	}
	group.Go(func() error {
		readers.Wait()
		w.lake.close()
		if w.online != nil {
			w.online.queue.close()
		}
		return nil
	})
	group.Go(func() error { return w.commit(failed) })
	var lacking error // online: no reason for the lake to end
	if w.online != nil {
		group.Go(func() error {
			lacking = w.online.run(failed, reading)
			return nil
		})
	}
	return errors.Join(group.Wait(), lacking)
}

// read polls a source and puts what comes of it into the queues. alive ends when another part of the worker has failed.
func (w *worker) read(ctx, alive context.Context, s *source) error {
	idle := map[feature.Partition]time.Time{}
	for {
		poll, err := s.Poll(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		now := w.now()
		ends := make([]ingest.End, 0, len(poll.Ends))
		for _, p := range poll.Ends {
			e := ingest.End{Partition: p, At: now.UnixMicro(), Idle: now.Sub(idle[p]) >= idleEvery}
			if e.Idle {
				idle[p] = now
			}
			ends = append(ends, e)
		}
		batches, err := s.route(alive, poll.Records, ends, now)
		if err != nil {
			return err
		}
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
		if poll.Done || ctx.Err() != nil {
			return nil
		}
	}
}

// route hands records to their streams and gives what came of them.
func (s *source) route(ctx context.Context, records []ingest.Record, ends []ingest.End, now time.Time) ([]routed, error) {
	defer lockIDs(s.streams)()
	for i := range records {
		s.routers[records[i].Topic].Add(&records[i], now.UnixMicro())
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
	for {
		items, last := w.lake.take(w.options.commitEvery)
		did := outcome{}
		err := w.line.commit(ctx, items, did)
		release(items)
		if ctx.Err() != nil {
			return nil // another part has failed, and says why
		}
		if err != nil {
			return err
		}
		w.note(did)
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
		t.Late += s.Late
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
	offsets := map[string]lakeOffsets{} // by topic
	for _, o := range w.line.all() {
		at, err := o.offsets()
		if err != nil {
			return nil, err
		}
		offsets[o.def.Topic] = lakeOffsets{at}
	}
	refused, err := w.line.refusedBefore(ctx)
	if err != nil {
		return nil, err
	}
	starts := func(p feature.Partition) int64 { return offsets[p.Topic].of(p).Next }
	router := func(o *openStream, topicID func(string) string) *ingest.Router {
		return ingest.NewRouter(ingest.RouterOptions{
			Streams: []*feature.Stream{o.def}, Only: o.def, JobID: w.line.jobID, Dedups: w.line.dedups(),
			Starts:     func(_ string, p feature.Partition) int64 { return starts(p) },
			RecordedAt: func(p feature.Partition) int64 { return offsets[p.Topic].of(p).RecordedAt },
			TopicID:    topicID, Refused: refused,
		})
	}
	if len(w.project.Broker.Seeds) > 0 {
		return w.openKafka(ctx, offsets, starts, router)
	}
	return w.openFolders(starts, router)
}

func (w *worker) openKafka(ctx context.Context, offsets map[string]lakeOffsets, starts func(feature.Partition) int64,
	router func(*openStream, func(string) string) *ingest.Router) ([]*source, error) {
	var topics []string
	for _, o := range w.line.all() {
		topics = append(topics, o.def.Topic)
	}
	kafka, err := ingest.OpenKafka(ctx, ingest.KafkaOptions{
		Seeds: w.project.Broker.Seeds, Topics: topics, Starts: starts, UntilEnd: w.options.untilEnd, EarliestOnGap: w.options.earliestOnGap,
		TopicID: func(topic string) string { return offsets[topic].topicID(topic) },
	})
	if err != nil {
		return nil, err
	}
	s := &source{Source: kafka, routers: map[string]*ingest.Router{}}
	for _, o := range w.line.all() {
		s.streams = append(s.streams, o)
		s.routers[o.def.Topic] = router(o, kafka.TopicID)
	}
	return []*source{s}, nil
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
