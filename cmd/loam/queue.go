package main

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/loamdata/loam/feature"
)

// amount is how much some batches are: rows, refused ones among them, and bytes of memory.
type amount struct{ rows, bytes int64 }

func (a amount) plus(b amount) amount { return amount{a.rows + b.rows, a.bytes + b.bytes} }

// amountOf counts the buffers of a batch, and the bytes of records that were refused.
func amountOf(b routed) amount {
	a := amount{rows: b.NumRows() + int64(len(b.Refused))}
	for _, r := range b.Rows {
		for _, c := range r.Columns() {
			a.bytes += int64(c.Data().SizeInBytes())
		}
	}
	for _, l := range b.Refused {
		a.bytes += int64(len(l.Body) + len(l.RecordKey))
	}
	return a
}

// queue holds batches between the readers and one consumer, bounded in rows and bytes. Batches that are put in are retained for
// it; whoever takes them releases them.
type queue struct {
	mu     sync.Mutex
	items  []routed
	held   amount
	most   amount
	enough amount // for which its consumer is woken, as soon as there are so many rows or so many bytes
	// spill says what happens beyond the most: the rows of all that waits are dropped, or the reader is made to wait.
	spill  bool
	closed bool
	ready  chan struct{} // has a token when enough is there, somebody waits, or the queue was closed
	room   chan struct{} // has a token when something was taken

	// Batches are counted as they are put, taken, and done with by the consumer, which moved tells: it is closed, and another made.
	given, taken, done int64
	moved              chan struct{}
}

func newQueue(most, enough amount, spill bool) *queue {
	return &queue{most: most, enough: enough, spill: spill, ready: make(chan struct{}, 1), room: make(chan struct{}, 1), moved: make(chan struct{})}
}

// token puts a token into a channel that holds one.
func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// put adds a batch, and waits for room where the queue doesn't spill.
func (q *queue) put(ctx context.Context, b routed) error {
	size := amountOf(b)
	for {
		q.mu.Lock()
		with := q.held.plus(size)
		if (with.rows > q.most.rows || with.bytes > q.most.bytes) && len(q.items) > 0 {
			if !q.spill {
				token(q.ready)
				q.mu.Unlock()
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-q.room:
				}
				continue
			}
			q.drop()
			with = size
		}
		for _, r := range b.Rows {
			r.Retain()
		}
		q.items = append(q.items, b.copy())
		q.held = with
		q.given++
		if with.rows >= q.enough.rows || with.bytes >= q.enough.bytes {
			token(q.ready)
		}
		q.mu.Unlock()
		return nil
	}
}

// copy gives the consumer a batch of its own: commits settle the counts of its spans.
func (b routed) copy() routed {
	batch := *b.Batch
	batch.Spans = append(batch.Spans[:0:0], b.Spans...)
	return routed{&batch, b.known}
}

// drop leaves of all that waits one batch a stream without rows, whose spans say up to where it was read.
func (q *queue) drop() {
	release(q.items)
	merged := mergeByStream(q.items)
	q.items, q.held = nil, amount{}
	for _, b := range merged {
		for i, s := range b.Spans {
			b.Spans[i] = feature.Span{Partition: s.Partition, TopicID: s.TopicID, From: s.To, To: s.To}
		}
		q.items = append(q.items, routed{&feature.Batch{Stream: b.Stream, Spans: b.Spans}, b.known})
	}
}

// take waits until enough is there, the queue is closed or the time is over, and gives all that is there, oldest first,
// and whether nothing will follow.
func (q *queue) take(wait time.Duration) (items []routed, last bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-q.ready:
	case <-timer.C:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	items, q.items, q.held = q.items, nil, amount{}
	q.taken = q.given
	if q.closed {
		token(q.ready)
	}
	token(q.room)
	return items, q.closed
}

// settle waits until the consumer is done with all that was put, or will never be.
func (q *queue) settle(ctx context.Context) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for all := q.given; q.done < all; {
		token(q.ready)
		moved := q.moved
		q.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-moved:
		}
		q.mu.Lock()
		if ctx.Err() != nil {
			return
		}
	}
}

// settled says that the consumer is done with all that it took.
func (q *queue) settled() { q.move(func() { q.done = q.taken }) }

// abandon says that there is no consumer any more.
func (q *queue) abandon() { q.move(func() { q.done = math.MaxInt64 }) }

func (q *queue) move(how func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	how()
	close(q.moved)
	q.moved = make(chan struct{})
}

// close says that nothing will follow.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	token(q.ready)
}

// ended reports whether the queue was closed.
func (q *queue) ended() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

func release(items []routed) {
	for _, b := range items {
		b.Release()
	}
}
