package ingest

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
)

// ImpliedReason is the reason that the log gives of a delete which a full extract implies. It is frozen.
const ImpliedReason = "absent from the full extract"

// Implied are the deletes that a full extract implies: of entities that exist at its time and have no row in it.
type Implied struct {
	Stream *feature.Stream
	JobID  string
	// Keys are the entities, in batches of the key's columns in their order; the deletes stand in the order of these.
	Keys []arrow.RecordBatch
	At   int64 // the extract's time, microseconds since 1970 UTC
	// File is the extract's last file, From where the stream stands in it. The first delete stands at First, which is From
	// unless a log knows more of the file than the offsets do.
	File        feature.Partition
	From, First int64
	RecordedAt  int64 // microseconds since 1970 UTC
}

// Batch makes the batch of the deletes, which ends the file. It was possible to serve each since the extract's time.
func (i *Implied) Batch(ctx context.Context) (*feature.Batch, error) {
	b := newBuilder(i.Stream, i.JobID)
	defer b.rows.Release()
	var f fields
	f.reset(len(i.Stream.Columns))
	a := accepted{
		fields: &f, deleted: true, op: feature.OpDelete, eventTime: i.At, recordedAt: i.RecordedAt, ingestedAt: i.At, assumed: true,
		envelope: &envelope{reason: []byte(ImpliedReason)}, position: feature.Position{Topic: i.File.Topic, Partition: i.File.Index, Offset: i.First},
	}
	for _, keys := range i.Keys {
		for row := range int(keys.NumRows()) {
			for k, name := range i.Stream.Key {
				if err := setKey(&f.columns[i.columnOf(name)], keys.Column(k), row); err != nil {
					return nil, fmt.Errorf("read key column %s: %w", name, err)
				}
			}
			a.eventID = positionID(a.position)
			b.add(&a)
			a.position.Offset++
		}
	}
	rows, err := b.flush(ctx, nil)
	if err != nil {
		return nil, err
	}
	counts := feature.Counts{Read: rows.NumRows(), Accepted: rows.NumRows()}
	if i.At > i.RecordedAt {
		counts.Ahead = rows.NumRows()
	}
	span := feature.Span{Partition: i.File, From: i.From, To: a.position.Offset, RecordedAt: i.RecordedAt, Counts: counts, Done: true}
	if rows.NumRows() > 0 {
		span.Watermark = i.At - i.Stream.AllowedLateness.Microseconds()
	}
	return &feature.Batch{Stream: i.Stream, Rows: []arrow.RecordBatch{rows}, Spans: []feature.Span{span}}, nil
}

func (i *Implied) columnOf(name string) int {
	for n, c := range i.Stream.Columns {
		if c.Name == name {
			return n
		}
	}
	panic("stream " + i.Stream.Name + " has no column " + name)
}

// setKey sets a cell to a value of a key column.
func setKey(c *cell, column arrow.Array, row int) error {
	if column.IsNull(row) {
		return fmt.Errorf("row %d is null", row)
	}
	c.state = present
	switch column := column.(type) {
	case *array.String:
		c.text = []byte(column.Value(row))
	case *array.Int64:
		c.integer = column.Value(row)
	case *array.Timestamp:
		c.integer = int64(column.Value(row))
	case *array.Date32:
		c.integer = int64(column.Value(row))
	default:
		return fmt.Errorf("no key of loam is %s", column.DataType())
	}
	return nil
}
