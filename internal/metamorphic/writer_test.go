package metamorphic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// writer is a worker on partitions of its own: it makes batches, leaving out what it knows to be delivered twice, and
// commits each while the next is being made.
type writer struct {
	t      *testing.T
	name   string
	def    *feature.Stream
	dir    string
	queues map[feature.Partition][]*delivery // all there are, each at the offset that is its index
	most   int                               // deliveries of a batch

	lake   *lake.Lake
	stream *lake.Stream
	next   map[feature.Partition]int64
	known  map[feature.Identity]feature.Position
	made   []*made
	count  int
	since  int // commits since it was opened
	did    did
}

// made is a batch, and the log's head of which its maker knew all events.
type made struct {
	*feature.Batch
	known lake.Head
}

// did counts what a test has come by, which would prove nothing if it came by none.
type did struct{ commits, late, fast, dropped, twins, restarts, cutOff, fenced, together, upkeep, compacted int64 }

func (d *did) add(o did) {
	d.commits += o.commits
	d.late += o.late
	d.fast += o.fast
	d.dropped += o.dropped
	d.twins += o.twins
	d.restarts += o.restarts
	d.cutOff += o.cutOff
	d.fenced += o.fenced
	d.together += o.together
	d.upkeep += o.upkeep
	d.compacted += o.compacted
}

// open opens the stream as a worker's start does: where it stands and what it holds is read from the tables.
func (w *writer) open() {
	w.t.Helper()
	ctx := context.Background()
	w.close()
	var err error
	w.lake, err = lake.Open(ctx, lake.Config{
		Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "test", Dir: w.dir,
	})
	if err == nil {
		err = w.lake.CreateStream(ctx, w.def)
	}
	if err == nil {
		w.stream, err = w.lake.OpenStream(ctx, w.def, lake.StreamOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.since = 0
	w.known = map[feature.Identity]feature.Position{}
	if _, err := w.stream.Recent(ctx, 1<<30, func(a lake.Accepted) { w.known[a.Identity] = a.Position }); err != nil {
		w.t.Fatal(err)
	}
	offsets, err := w.stream.Offsets()
	if err != nil {
		w.t.Fatal(err)
	}
	w.next = map[feature.Partition]int64{}
	for p := range w.queues {
		at, _ := offsets.Of(p)
		w.next[p] = at.Next
	}
}

func (w *writer) close() {
	for _, m := range w.made {
		m.Release()
	}
	w.made = nil
	if w.stream != nil {
		w.stream.Close()
		w.lake.Close()
		w.stream = nil
	}
}

// left is how many deliveries are in no batch yet.
func (w *writer) left() int {
	left := 0
	for p, q := range w.queues {
		left += len(q) - int(w.next[p])
	}
	return left
}

// makeBatch makes a batch of so many deliveries at most, from all partitions alike.
func (w *writer) makeBatch(r *rand.Rand, most int) {
	w.t.Helper()
	w.count++
	b := array.NewRecordBuilder(memory.DefaultAllocator, w.def.LogSchema())
	defer b.Release()
	batch := &feature.Batch{Stream: w.def}
	for range most {
		var waiting []feature.Partition
		for _, p := range partitionsOf(w.queues) {
			if int(w.next[p]) < len(w.queues[p]) {
				waiting = append(waiting, p)
			}
		}
		if len(waiting) == 0 {
			break
		}
		p := waiting[r.IntN(len(waiting))]
		d := w.queues[p][w.next[p]]
		i := slices.IndexFunc(batch.Spans, func(s feature.Span) bool { return s.Partition == p })
		if i < 0 {
			i = len(batch.Spans)
			batch.Spans = append(batch.Spans, feature.Span{Partition: p, From: w.next[p]})
		}
		w.next[p]++
		span := &batch.Spans[i]
		span.To, span.RecordedAt = w.next[p], d.recordedAt()
		span.Counts.Read++
		d.batch = fmt.Sprintf("%s%d", w.name, w.count)
		if first, twice := w.known[d.identity()]; twice && first != d.Position {
			span.Counts.Duplicate++
			w.did.twins++
			continue
		}
		w.known[d.identity()] = d.Position
		span.Counts.Accepted++
		span.Watermark = max(span.Watermark, d.at)
		w.row(b, d)
	}
	slices.SortFunc(batch.Spans, feature.CompareSpans)
	batch.Rows = []arrow.RecordBatch{b.NewRecordBatch()}
	w.made = append(w.made, &made{batch, w.stream.Head()})
}

func partitionsOf(queues map[feature.Partition][]*delivery) []feature.Partition {
	var all []feature.Partition
	for p := range queues {
		all = append(all, p)
	}
	slices.SortFunc(all, feature.Partition.Compare) // a map's order is no seed's
	return all
}

func (w *writer) row(b *array.RecordBuilder, d *delivery) {
	w.t.Helper()
	values := map[string]any{
		"a": d.key.a, "b": d.key.b, feature.ColEventTime: d.at, feature.ColTopic: d.Topic, feature.ColPartition: int64(d.Partition),
		feature.ColOffset: d.Offset, feature.ColOp: feature.OpUpsert, feature.ColEventID: d.id, feature.ColRecordedAt: d.recordedAt(),
		feature.ColIngestedAt: d.ingestedAt(), feature.ColAssumed: false,
	}
	if d.sequence != nil {
		values[feature.ColSequence] = *d.sequence
	}
	if d.deleted {
		values[feature.ColOp] = feature.OpDelete
	}
	for name, v := range d.values {
		values[name] = v
	}
	if d.present != nil {
		present := []any{}
		for _, name := range d.present {
			present = append(present, name)
		}
		values[feature.ColPresent] = present
	}
	for i, f := range w.def.LogSchema().Fields() {
		put(w.t, b.Field(i), values[f.Name])
	}
}

// put appends a value to the builder of its column.
func put(t *testing.T, b array.Builder, value any) {
	t.Helper()
	if value == nil {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.ListBuilder:
		b.Append(true)
		for _, v := range value.([]any) {
			put(t, b.ValueBuilder(), v)
		}
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(value.(int64)))
	case *array.Int64Builder:
		b.Append(value.(int64))
	case *array.Float64Builder:
		b.Append(value.(float64))
	case *array.BooleanBuilder:
		b.Append(value.(bool))
	case *array.StringBuilder:
		b.Append(value.(string))
	default:
		if err := b.AppendValueFromString(fmt.Sprint(value)); err != nil {
			t.Fatal(err)
		}
	}
}

// commit commits the oldest batch that was made. Its error is for the caller to judge.
func (w *writer) commit(ctx context.Context) error {
	m := w.made[0]
	res, err := w.stream.Commit(ctx, m.Batch, m.known)
	if err != nil {
		return err
	}
	for _, f := range res.Foreign {
		w.known[f.Identity] = f.Position
	}
	w.did.commits++
	if w.since++; w.since == upkeepCommits {
		w.did.upkeep++
	}
	w.did.late += res.LateKeys
	w.did.fast += res.Rows - res.LateKeys
	w.did.dropped += res.Dropped
	return nil
}

// committed ends a commit that succeeded.
func (w *writer) committed() {
	w.made[0].Release()
	w.made = w.made[1:]
}

// commitOnce commits the oldest batch, and now and then again, which must be refused.
func (w *writer) commitOnce(r *rand.Rand) {
	w.t.Helper()
	if err := w.commit(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	if r.IntN(10) == 0 {
		if err := w.commit(context.Background()); !errors.Is(err, lake.ErrFenced) {
			w.t.Fatalf("the same batch again: %v, want %v", err, lake.ErrFenced)
		}
		w.did.fenced++
	}
	w.committed()
}

// commitCutOff commits the oldest batch, is cut off after a moment, and starts anew where that came in time. The moment
// is of the clock, so here a seed doesn't repeat a run; what must come out is the same.
func (w *writer) commitCutOff(r *rand.Rand) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(60))*time.Millisecond)
	defer cancel()
	err := w.commit(ctx)
	switch {
	case err == nil:
		w.committed()
	case ctx.Err() == nil:
		w.t.Fatal(err)
	default:
		w.did.cutOff++
		w.open()
	}
}
