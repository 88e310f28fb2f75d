package quality

import (
	"cmp"
	"context"
	"flag"
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

var seed = flag.Uint64("seed", 0, "seed of the made-up changes; 0 takes one from the clock")

func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return rand.New(rand.NewPCG(s, 3))
}

var columns = []string{"a", "b", "c", "d"}

func testStream(payload feature.Payload) *feature.Stream {
	s := &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "thing.v1", Key: []string{"id"}, ClusterBy: "id",
		EventTime: "at", Payload: payload, Columns: []feature.Column{{Name: "id", Type: feature.Type{Kind: feature.String}}},
	}
	for _, c := range columns {
		s.Columns = append(s.Columns, feature.Column{Name: c, Type: feature.Type{Kind: feature.String}})
	}
	return s
}

// change is a change of testStream; times are microseconds.
type change struct {
	id                     string
	at, recorded, ingested int64
	sequence               int64 // 0 for none
	assumed, deleted       bool
	topic                  string
	partition, offset      int64
	values                 [4]string // "" is null
	carries                []string  // of a patch
}

const (
	second = int64(1_000_000)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// begin is when made-up changes begin.
var begin = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// healthy makes changes of a stream with nothing wrong: fine clocks, little late, few no-ops and deletes.
func healthy(r *rand.Rand) []change {
	var changes []change
	for k := range 150 {
		c := change{id: fmt.Sprintf("k%03d", k), topic: "thing.v1", partition: int64(k % 3)}
		at := begin + r.Int64N(day)
		for i := range columns {
			c.values[i] = fmt.Sprint("v", r.IntN(1000))
		}
		for range 12 {
			at += hour + r.Int64N(day)
			c.deleted = false
			switch n := r.IntN(100); {
			case n < 5: // a no-op
			case n < 7:
				c.deleted = true
			default:
				first := r.IntN(len(columns))
				for i := range 1 + r.IntN(3) {
					c.values[(first+i)%len(columns)] = fmt.Sprint("v", r.IntN(1000))
				}
			}
			c.at = at
			c.recorded = at + r.Int64N(30*second)
			c.ingested = c.recorded
			changes = append(changes, c)
			if c.deleted {
				break // who is gone stays gone
			}
		}
	}
	return changes
}

// placed gives the changes offsets in the order in which they were recorded.
func placed(changes []change) []change {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(a.recorded, b.recorded) })
	next := map[string]int64{}
	for i := range changes {
		c := &changes[i]
		p := fmt.Sprint(c.topic, c.partition)
		c.offset = next[p]
		next[p]++
	}
	return changes
}

// stored commits the changes to a new lake, as many again being counted as duplicates.
func stored(t *testing.T, def *feature.Stream, changes []change, duplicates int64) *lake.Lake {
	t.Helper()
	ctx := context.Background()
	l, err := lake.Open(ctx, lake.Config{
		Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "test", Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.CreateStream(ctx, def); err != nil {
		t.Fatal(err)
	}
	s, err := l.OpenStream(ctx, def, lake.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := array.NewRecordBuilder(memory.DefaultAllocator, def.LogSchema())
	defer b.Release()
	spans := map[feature.Partition]*feature.Span{}
	for _, c := range changes {
		for i, f := range def.LogSchema().Fields() {
			put(b.Field(i), c.value(f.Name))
		}
		p := feature.Partition{Topic: c.topic, Index: int32(c.partition)}
		if spans[p] == nil {
			spans[p] = &feature.Span{Partition: p, Counts: feature.Counts{Read: duplicates, Duplicate: duplicates}}
			duplicates = 0
		}
		spans[p].To = max(spans[p].To, c.offset+1)
		spans[p].Counts.Read++
		spans[p].Counts.Accepted++
	}
	batch := &feature.Batch{Stream: def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}}
	defer batch.Release()
	for _, s := range spans {
		batch.Spans = append(batch.Spans, *s)
	}
	slices.SortFunc(batch.Spans, feature.CompareSpans)
	if _, err := s.Commit(ctx, batch, s.Head()); err != nil {
		t.Fatal(err)
	}
	return l
}

// value is the change's value of a column of the log, nil for null.
func (c change) value(name string) any {
	if i := slices.Index(columns, name); i >= 0 {
		if c.deleted || c.values[i] == "" {
			return nil
		}
		return c.values[i]
	}
	switch name {
	case "id":
		return c.id
	case feature.ColEventTime:
		return c.at
	case feature.ColRecordedAt:
		return c.recorded
	case feature.ColIngestedAt:
		return c.ingested
	case feature.ColAssumed:
		return c.assumed
	case feature.ColSequence:
		if c.sequence == 0 {
			return nil
		}
		return c.sequence
	case feature.ColEventID:
		return fmt.Sprintf("%s-%d-%d", c.topic, c.partition, c.offset)
	case feature.ColTopic:
		return c.topic
	case feature.ColPartition:
		return c.partition
	case feature.ColOffset:
		return c.offset
	case feature.ColOp:
		if c.deleted {
			return feature.OpDelete
		}
		return feature.OpUpsert
	case feature.ColPresent:
		if c.carries == nil {
			return nil
		}
		return c.carries
	default:
		return nil
	}
}

func put(b array.Builder, value any) {
	switch v := value.(type) {
	case nil:
		b.AppendNull()
	case string:
		b.(*array.StringBuilder).Append(v)
	case bool:
		b.(*array.BooleanBuilder).Append(v)
	case int64:
		if times, ok := b.(*array.TimestampBuilder); ok {
			times.Append(arrow.Timestamp(v))
		} else {
			b.(*array.Int64Builder).Append(v)
		}
	case []string:
		list := b.(*array.ListBuilder)
		list.Append(true)
		for _, text := range v {
			list.ValueBuilder().(*array.StringBuilder).Append(text)
		}
	}
}

// order is the place of the change in the one order.
func (c change) order() feature.Order {
	return feature.Order{
		EventTime: c.at, Sequence: c.sequence, HasSequence: c.sequence != 0, Live: feature.Live(c.topic), TopicHash: feature.TopicHash(c.topic),
		Partition: int32(c.partition), Offset: c.offset,
	}
}

// expected counts, change by change and pair by pair, what a report measures.
func expected(changes []change, patches bool) map[Kind]int64 {
	n := map[Kind]int64{}
	byKey := map[string][]change{}
	for _, c := range changes {
		byKey[c.id] = append(byKey[c.id], c)
		if c.at > c.recorded+second {
			n[Ahead]++
		}
		if c.assumed {
			n[Assumed]++
		}
	}
	alone := map[int]int64{}
	for _, list := range byKey {
		slices.SortFunc(list, func(a, b change) int { return a.order().Compare(b.order()) })
		for i, c := range list {
			tied, disputed, behind, late := false, false, false, false
			for j, o := range list {
				if i == j {
					continue
				}
				samePartition := c.topic == o.topic && c.partition == o.partition
				tied = tied || c.at == o.at && c.sequence == o.sequence
				behind = behind || samePartition && o.offset < c.offset && o.at > c.at
				late = late || o.at > c.at && (samePartition && o.offset < c.offset || o.recorded < c.recorded)
			}
			for _, o := range list {
				for _, p := range list {
					if o.at == c.at && o.sequence == c.sequence && p.at == c.at && p.sequence == c.sequence {
						disputed = disputed || disagree(o, p)
					}
				}
			}
			for kind, is := range map[Kind]bool{Ties: tied, Disputed: disputed, OutOfOrder: behind, Late: late} {
				if is {
					n[kind]++
				}
			}
			if i > 0 && i < len(list)-1 && !patches && lostSome(list[i-1], c, list[i+1]) {
				n[SparseNulls]++
			}
		}
		fold(list, n, alone)
	}
	for _, count := range alone {
		n[Noise] = max(n[Noise], count)
	}
	return n
}

func disagree(a, b change) bool {
	if a.deleted || b.deleted {
		return a.deleted != b.deleted
	}
	for i, name := range columns {
		carried := func(c change) bool { return c.carries == nil || slices.Contains(c.carries, name) }
		if carried(a) && carried(b) && a.values[i] != b.values[i] {
			return true
		}
	}
	return false
}

func lostSome(before, c, after change) bool {
	lost, back := 0, 0
	for i := range columns {
		if before.values[i] != "" && c.values[i] == "" {
			lost++
			if after.values[i] != "" {
				back++
			}
		}
	}
	return !before.deleted && !c.deleted && !after.deleted && lost > 1 && back > 0
}

// fold counts what the changes of a key, in their order, do to its state.
func fold(list []change, n map[Kind]int64, alone map[int]int64) {
	var state *[4]string
	existed := false
	for len(list) > 0 {
		end := 1
		for end < len(list) && list[end].at == list[0].at {
			end++
		}
		before := state
		for _, c := range list[:end] {
			next := c.values
			if c.carries != nil {
				next = [4]string{}
				if state != nil {
					next = *state
				}
				for i, name := range columns {
					if slices.Contains(c.carries, name) {
						next[i] = c.values[i]
					}
				}
			}
			if state = &next; c.deleted {
				state = nil
			}
		}
		list = list[end:]
		switch {
		case state == nil && before == nil, state != nil && before != nil && *state == *before:
			n[NoOps]++
		case state == nil:
		case before == nil && existed:
			n[CreatedAgain]++
		case before != nil:
			changed := []int{}
			for i := range columns {
				if state[i] != before[i] {
					changed = append(changed, i)
				}
			}
			if len(changed) == 1 {
				alone[changed[0]]++
			}
		}
		existed = existed || state != nil
	}
}
