package main

import (
	"testing"

	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// Several batches make one that covers their spans, partition by partition, with everything that is counted in them.
func TestMerge(t *testing.T) {
	first := batchOf(memory.DefaultAllocator, queued, span(1, 0, 10), span(0, 7, 9))
	second := batchOf(memory.DefaultAllocator, queued, span(1, 10, 14), span(2, 0, 1))
	first.known, second.known = lake.Head{Snapshot: 3}, lake.Head{Snapshot: 4}
	first.Refused, second.Refused = make([]feature.DeadLetter, 1), make([]feature.DeadLetter, 2)
	first.Spans[0].Watermark, second.Spans[0].Watermark = 90, 80
	first.Spans[0].RecordedAt, second.Spans[0].RecordedAt = 100, 110
	second.Spans[0].TopicID, second.Spans[0].Done = "id", true
	second.Spans[0].Counts = feature.Counts{Read: 4, Accepted: 1, Refused: 1, Duplicate: 2, Extra: 1, Ahead: 1, IDReuse: 1, Unkeyed: 1}

	all := merge([]routed{first, second})
	if all.NumRows() != 12+5 || len(all.Refused) != 3 || all.Stream != queued {
		t.Errorf("%d rows, %d refused of %s", all.NumRows(), len(all.Refused), all.Stream.Name)
	}
	if all.known.Snapshot != 3 {
		t.Errorf("knows the ids up to snapshot %d, and the first batch was decided at 3", all.known.Snapshot)
	}
	want := []feature.Span{span(0, 7, 9), {
		Partition: feature.Partition{Topic: "contact.v1", Index: 1}, TopicID: "id", From: 0, To: 14, Watermark: 90, RecordedAt: 110, Done: true,
		Counts: feature.Counts{Read: 14, Accepted: 11, Refused: 1, Duplicate: 2, Extra: 1, Ahead: 1, IDReuse: 1, Unkeyed: 1},
	}, span(2, 0, 1)}
	if len(all.Spans) != len(want) {
		t.Fatalf("%d spans, want %d", len(all.Spans), len(want))
	}
	for i, s := range all.Spans {
		if s != want[i] {
			t.Errorf("span %d is\n%+v, want\n%+v", i, s, want[i])
		}
	}
	if one := merge([]routed{first}); one.Batch != first.Batch {
		t.Error("one batch is copied")
	}
}
