package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

var queued = &feature.Stream{Name: "contact"}

// span is offsets [from, to) of a partition of contact.v1, all of them accepted.
func span(partition int32, from, to int64) feature.Span {
	return feature.Span{
		Partition: feature.Partition{Topic: "contact.v1", Index: partition}, From: from, To: to,
		Counts: feature.Counts{Read: to - from, Accepted: to - from},
	}
}

// batchOf has a row for each offset of its spans, on an allocator that counts.
func batchOf(memory memory.Allocator, s *feature.Stream, spans ...feature.Span) routed {
	b := array.NewRecordBuilder(memory, arrow.NewSchema([]arrow.Field{{Name: "offset", Type: arrow.PrimitiveTypes.Int64}}, nil))
	defer b.Release()
	for _, s := range spans {
		for offset := s.From; offset < s.To; offset++ {
			b.Field(0).(*array.Int64Builder).Append(offset)
		}
	}
	return routed{Batch: &feature.Batch{Stream: s, Rows: []arrow.RecordBatch{b.NewRecordBatch()}, Spans: spans}}
}

// put puts a batch in and lets go of it, as a reader does.
func put(t *testing.T, q *queue, b routed) {
	t.Helper()
	if err := q.put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	b.Release()
}

// rows are so many rows of any size.
func rows(n int64) amount { return amount{n, math.MaxInt64} }

func rowsOf(items []routed) (n int64) {
	for _, b := range items {
		n += b.NumRows()
	}
	return n
}

func TestQueueHandsOverInOrder(t *testing.T) {
	counted := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer counted.AssertSize(t, 0)
	q := newQueue(rows(100), rows(20), false)
	if items, last := q.take(time.Nanosecond); len(items) > 0 || last {
		t.Errorf("an empty queue gives %d batches, last: %v", len(items), last)
	}
	put(t, q, batchOf(counted, queued, span(0, 0, 10)))
	put(t, q, batchOf(counted, queued, span(0, 10, 20)))
	items, last := q.take(time.Hour) // enough rows are there
	if len(items) != 2 || items[0].Spans[0].From != 0 || items[1].Spans[0].From != 10 || rowsOf(items) != 20 || last {
		t.Errorf("taken %v, last: %v", items, last)
	}
	release(items)
	put(t, q, batchOf(counted, queued, span(0, 20, 21)))
	q.close()
	items, last = q.take(time.Hour)
	if len(items) != 1 || !last {
		t.Errorf("of a closed queue %d batches are taken, last: %v", len(items), last)
	}
	release(items)
	if items, last := q.take(time.Hour); len(items) > 0 || !last {
		t.Errorf("a closed queue gives %d batches, last: %v", len(items), last)
	}
}

// Whoever takes a batch may change its spans: the one who made it keeps its own.
func TestQueueKeepsSpansApart(t *testing.T) {
	q := newQueue(rows(100), amount{}, false)
	b := batchOf(memory.DefaultAllocator, queued, span(0, 0, 10))
	put(t, q, b)
	items, _ := q.take(time.Hour)
	items[0].Spans[0].Counts.Duplicate = 7
	release(items)
	if b.Spans[0].Counts.Duplicate != 0 {
		t.Error("the maker's span changed")
	}
}

// A reader waits for room, without waiting for the consumer's time to be over; and no longer than its context.
func TestQueueHoldsItsReaderUp(t *testing.T) {
	q := newQueue(rows(15), rows(1000), false)
	put(t, q, batchOf(memory.DefaultAllocator, queued, span(0, 0, 10)))
	full, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.put(full, batchOf(memory.DefaultAllocator, queued, span(0, 10, 20))); !errors.Is(err, context.Canceled) {
		t.Errorf("a full queue takes a batch: %v", err)
	}
	done := make(chan error)
	go func() { done <- q.put(t.Context(), batchOf(memory.DefaultAllocator, queued, span(0, 10, 20))) }()
	first, _ := q.take(time.Hour)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	second, _ := q.take(time.Nanosecond)
	if rowsOf(first) != 10 || rowsOf(second) != 10 {
		t.Errorf("taken %d rows, then %d", rowsOf(first), rowsOf(second))
	}
	// A batch beyond the bound passes alone.
	put(t, q, batchOf(memory.DefaultAllocator, queued, span(0, 20, 50)))
	if items, _ := q.take(time.Nanosecond); rowsOf(items) != 30 {
		t.Errorf("taken %d rows of 30", rowsOf(items))
	}
}

// Whoever settles waits for what was put before, wakes the consumer for it, and waits for no consumer that is gone.
func TestQueueSettles(t *testing.T) {
	q := newQueue(rows(100), rows(1000), false)
	q.settle(t.Context()) // nothing was put
	put(t, q, batchOf(memory.DefaultAllocator, queued, span(0, 0, 10)))
	settled := make(chan struct{})
	go func() {
		q.settle(t.Context())
		close(settled)
	}()
	items, _ := q.take(time.Hour)
	put(t, q, batchOf(memory.DefaultAllocator, queued, span(0, 10, 20))) // is not waited for
	select {
	case <-settled:
		t.Fatalf("settled while %d rows are being committed", rowsOf(items))
	case <-time.After(20 * time.Millisecond):
	}
	q.settled()
	<-settled
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	q.settle(ended)
	q.abandon()
	q.settle(t.Context())
}

// Few rows are enough, and too many, where they are large; and refused records count by their bytes.
func TestQueueCountsBytes(t *testing.T) {
	q := newQueue(amount{1000, 25_000}, amount{1000, 9000}, false)
	if items, _ := q.take(time.Nanosecond); len(items) > 0 {
		t.Fatal("an empty queue gives a batch")
	}
	large := routed{Batch: &feature.Batch{Stream: queued, Refused: []feature.DeadLetter{{Body: make([]byte, 10_000)}}}}
	put(t, q, large)
	if items, _ := q.take(time.Hour); len(items) != 1 {
		t.Errorf("%d batches are taken, want the one that is large", len(items))
	}
	put(t, q, large)
	put(t, q, batchOf(memory.DefaultAllocator, queued, span(0, 0, 900))) // 7200 bytes
	full, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.put(full, large); !errors.Is(err, context.Canceled) {
		t.Errorf("a queue with too many bytes takes more: %v", err)
	}
	items, _ := q.take(time.Hour)
	if len(items) != 2 {
		t.Errorf("%d batches are taken, want 2", len(items))
	}
	release(items)
	put(t, q, large)
}

// A queue that spills drops rows, never what says up to where a partition was read.
func TestQueueSpills(t *testing.T) {
	counted := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer counted.AssertSize(t, 0)
	other := &feature.Stream{Name: "opportunity"}
	q := newQueue(rows(25), amount{}, true)
	for _, b := range []routed{
		batchOf(counted, queued, span(0, 0, 10), span(1, 5, 10)),
		batchOf(counted, other, span(3, 0, 5)),
		batchOf(counted, queued, span(0, 10, 20)), // too many: all before are dropped
		batchOf(counted, queued, span(2, 0, 20)),  // and once more
		batchOf(counted, queued, span(0, 20, 22)),
	} {
		put(t, q, b)
	}
	items, _ := q.take(time.Hour)
	if rowsOf(items) != 22 || len(items) != 4 {
		t.Errorf("%d batches of %d rows", len(items), rowsOf(items))
	}
	byStream := map[string][]routed{}
	for _, b := range items {
		byStream[b.Stream.Name] = append(byStream[b.Stream.Name], b)
	}
	type reach struct {
		partition int32
		from, to  int64
	}
	reaches := func(b routed) (all []reach) {
		for _, s := range b.Spans {
			all = append(all, reach{s.Index, s.From, s.To})
		}
		return all
	}
	if got, want := reaches(merge(byStream["contact"])), []reach{{0, 20, 22}, {1, 10, 10}, {2, 0, 20}}; !slices.Equal(got, want) {
		t.Errorf("contact is read to %v, want %v", got, want)
	}
	if got, want := reaches(merge(byStream["opportunity"])), []reach{{3, 5, 5}}; !slices.Equal(got, want) {
		t.Errorf("opportunity is read to %v, want %v", got, want)
	}
	release(items)
}
