package lake

import (
	"cmp"
	"math"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

// Packed keys compare as their values do, and not as their bytes.
func TestKeysInOrder(t *testing.T) {
	column := func(name string, kind feature.Kind) feature.Column {
		return feature.Column{Name: name, Type: feature.Type{Kind: kind}}
	}
	s := &feature.Stream{
		Key:     []string{"n", "s", "d", "at"},
		Columns: []feature.Column{column("n", feature.Int64), column("s", feature.String), column("d", feature.Date), column("at", feature.Timestamp)},
	}
	ordered := [][4]any{
		{int64(math.MinInt64), "", int64(0), int64(0)},
		{int64(-256), "", int64(0), int64(0)},
		{int64(-1), "", int64(0), int64(0)},
		{int64(0), "", int64(-1), int64(9)},
		{int64(0), "", int64(0), int64(-300)},
		{int64(0), "", int64(0), int64(2)},
		{int64(0), string(make([]byte, 200)), int64(0), int64(1)}, // a length of two bytes
		{int64(0), "a", int64(0), int64(1)},
		{int64(0), "ab", int64(0), int64(1)},
		{int64(0), "b", int64(0), int64(1)},
		{int64(1), "", int64(0), int64(0)},
		{int64(256), "", int64(0), int64(0)},
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, feature.ArrowSchema(s.Columns))
	defer b.Release()
	for _, row := range ordered {
		b.Field(0).(*array.Int64Builder).Append(row[0].(int64))
		b.Field(1).(*array.StringBuilder).Append(row[1].(string))
		b.Field(2).(*array.Date32Builder).Append(arrow.Date32(row[2].(int64)))
		b.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(row[3].(int64)))
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	l := newLayout(s)
	keyOf, err := keysOf(l.key, batch)
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, len(ordered))
	for i := range keys {
		keys[i] = string(keyOf(i))
	}
	for i := range keys {
		for j := range keys {
			if got := l.compareKeys(keys[i], keys[j]); got != cmp.Compare(i, j) {
				t.Errorf("%v compares with %v as %d", ordered[i], ordered[j], got)
			}
		}
	}
}
