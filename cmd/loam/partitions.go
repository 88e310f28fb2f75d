package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// partitions is what a worker knows of the partitions of its topics: where the lake stands in them, and which of them are its own.
// A consumer group gives and takes them while the worker reads. It is safe for concurrent use.
type partitions struct {
	line *line
	now  func() time.Time

	mu      sync.Mutex
	offsets map[string]lakeOffsets // by topic
	ours    map[feature.Partition]bool
	shared  bool // with other workers; else all are ours
	looked  time.Time
	refused map[feature.Position]feature.Reason // dead letters that the logs have not passed; see [partitions.letters]
}

// lookEvery is how often it is looked how far other workers have come, by one that waits for the end.
const lookEvery = time.Second

func openPartitions(ctx context.Context, n *line, shared bool, now func() time.Time) (*partitions, error) {
	s := &partitions{line: n, now: now, offsets: map[string]lakeOffsets{}, ours: map[feature.Partition]bool{}, shared: shared}
	for _, o := range n.all() {
		at, err := o.offsets()
		if err != nil {
			return nil, err
		}
		s.offsets[o.def.Topic] = lakeOffsets{at}
	}
	var err error
	s.refused, err = n.refusedBefore(ctx, nil)
	return s, err
}

// own reports whether a partition is read by this worker.
func (s *partitions) own(p feature.Partition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.shared || s.ours[p]
}

// at is where the lake stands in a partition. Where another worker reads it, that is looked up now and then.
func (s *partitions) at(ctx context.Context, p feature.Partition) lake.Offset {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); s.shared && !s.ours[p] && now.Sub(s.looked) > lookEvery {
		s.looked = now
		for _, o := range s.line.all() {
			// A lake that can't be asked fails the next commit, which tells.
			if at, err := o.resume(ctx, nil); err == nil {
				s.offsets[o.def.Topic] = lakeOffsets{at}
			}
		}
	}
	return s.offsets[p.Topic].of(p)
}

func (s *partitions) topicID(topic string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offsets[topic].topicID(topic)
}

// give makes partitions this worker's own, and gives where each stands: what others have committed of them is known then, and their
// histories are where their logs are.
func (s *partitions) give(ctx context.Context, given []feature.Partition) (map[feature.Partition]int64, error) {
	starts := map[feature.Partition]int64{}
	for _, o := range s.line.all() {
		var some []feature.Partition
		for _, p := range given {
			if p.Topic == o.def.Topic {
				some = append(some, p)
			}
		}
		if len(some) == 0 {
			continue
		}
		at, err := o.resume(ctx, some)
		if err != nil {
			return nil, err
		}
		for _, p := range some {
			starts[p] = lakeOffsets{at}.of(p).Next
		}
		s.mu.Lock()
		s.offsets[o.def.Topic] = lakeOffsets{at}
		s.mu.Unlock()
	}
	refused, err := s.line.refusedBefore(ctx, nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range given {
		s.ours[p] = true
	}
	maps.Copy(s.refused, refused)
	return starts, nil
}

// take ends the worker's hold of partitions, and gives how many are left.
func (s *partitions) take(taken []feature.Partition) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range taken {
		delete(s.ours, p)
	}
	return len(s.ours)
}

// letters gives the dead letters of a topic that its log has not passed, and forgets them.
func (s *partitions) letters(topic string) map[feature.Position]feature.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	refused := map[feature.Position]feature.Reason{}
	for p, reason := range s.refused {
		if p.Topic == topic {
			refused[p] = reason
			delete(s.refused, p)
		}
	}
	return refused
}

// given begins with partitions that the consumer group has given to this worker.
func (w *worker) given(ctx context.Context, given []feature.Partition) error {
	starts, err := w.partitions.give(ctx, given)
	if err != nil {
		return err
	}
	w.say("reads %s more", count(int64(len(given)), "partition"))
	if w.online == nil {
		return nil
	}
	// What whoever read them before had not written online is found by where these batches begin.
	for _, o := range w.line.all() {
		b := &feature.Batch{Stream: o.def}
		for _, p := range slices.SortedFunc(maps.Keys(starts), feature.Partition.Compare) {
			if p.Topic == o.def.Topic {
				b.Spans = append(b.Spans, feature.Span{Partition: p, From: starts[p], To: starts[p]})
			}
		}
		if len(b.Spans) == 0 {
			continue
		}
		if err := w.online.queue.put(ctx, routed{b, o.knows()}); err != nil {
			return err
		}
	}
	return nil
}

// taken ends with partitions that the consumer group gives to others: what was read of them is committed first.
func (w *worker) taken(ctx context.Context, taken []feature.Partition) {
	w.lake.settle(ctx)
	left := w.partitions.take(taken)
	if w.lake.ended() {
		return // it ends, and says that itself
	}
	w.say("gives %s back, %s left", count(int64(len(taken)), "partition"), number(int64(left)))
}
