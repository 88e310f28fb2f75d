package lake

import (
	"context"
	"reflect"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
)

// allLetters are the dead letters of a lake, by position.
func allLetters(t *testing.T, l *Lake) []feature.DeadLetter {
	t.Helper()
	d, err := l.OpenDeadLetters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var all []feature.DeadLetter
	err = d.Each(context.Background(), openDB(t), "true", ByPosition, -1, func(l feature.DeadLetter) error {
		all = append(all, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A table of dead letters that an older loam has made has fewer columns: it gets the others, and its rows stay.
func TestOlderLetters(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	text, number, binary := iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Int64, iceberg.PrimitiveTypes.Binary
	old, err := l.openRecords(ctx, DeadLettersName, []iceberg.NestedField{
		{Name: "stream", Type: text}, {Name: "reason", Type: text}, {Name: "detail", Type: text},
		{Name: feature.ColTopic, Type: text}, {Name: feature.ColPartition, Type: number}, {Name: feature.ColOffset, Type: number},
		{Name: "record_key", Type: binary}, {Name: "body", Type: binary},
		{Name: feature.ColRecordedAt, Type: iceberg.PrimitiveTypes.TimestampTz}, {Name: feature.ColJobID, Type: text},
	}, partitionField{column: feature.ColRecordedAt, transform: iceberg.DayTransform{}, name: "recorded_day"})
	if err != nil {
		t.Fatal(err)
	}
	err = old.appendRows(ctx, dayOf(5), func(b *array.RecordBuilder) {
		texts(b, "contact", "not_json", "why", "contact.v1")
		b.Field(4).(*array.Int64Builder).Append(3)
		b.Field(5).(*array.Int64Builder).Append(4)
		b.Field(6).AppendNull()
		b.Field(7).(*array.BinaryBuilder).Append([]byte("body"))
		b.Field(8).(*array.TimestampBuilder).Append(arrow.Timestamp(5))
		b.Field(9).(*array.StringBuilder).Append("run-0")
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []feature.DeadLetter{{
		Position: feature.Position{Topic: "contact.v1", Partition: 3, Offset: 4}, Stream: "contact", Reason: feature.NotJSON, Detail: "why", Body: []byte("body"),
		RecordedAt: 5, JobID: "run-0",
	}}
	if got := allLetters(t, l); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	// New ones beside it hold all there is.
	d, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	whole := feature.DeadLetter{
		Position: feature.Position{Topic: "contact.v1", Partition: 3, Offset: 9}, Stream: "contact", Reason: feature.BadValue, Detail: "x", RecordKey: []byte{}, Body: []byte{},
		RecordedAt: 6, RecordTime: 2, Text: true, JobID: "run-1", Headers: []feature.Header{{Key: "a", Value: []byte("b")}, {Key: "a"}},
		Redriven: &feature.Redriven{Outcome: feature.RedriveAccepted, Stream: "contact", At: 7, By: "me", JobID: "redrive-1", Repaired: true},
	}
	if err := d.Commit(ctx, []feature.DeadLetter{whole}, []feature.Span{{Partition: feature.Partition{Topic: "contact.v1", Index: 3}, To: 10}}, "run-1"); err != nil {
		t.Fatal(err)
	}
	if got := allLetters(t, l); !reflect.DeepEqual(got, append(want, whole)) {
		t.Errorf("%+v", got)
	}
}
