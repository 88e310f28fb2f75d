package ingest

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/compute"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

// Condition says of each row of a batch in the schema [feature.Stream.LogSchema] whether a condition on the stream's
// columns is true; null is not.
type Condition func(ctx context.Context, rows arrow.RecordBatch) ([]bool, error)

// markDeletes makes deletes of the rows for which the stream's delete_when is true: their op says so, and their columns
// but the key are null. It comes after the decision on duplicates, which it has no part in: a row's id and event time are
// those of the row as it was read. It takes the batch over; the caller releases what it gives.
func markDeletes(ctx context.Context, s *feature.Stream, batch arrow.RecordBatch, condition Condition) (arrow.RecordBatch, error) {
	defer batch.Release()
	deleted, err := condition(ctx, batch)
	if err != nil {
		return nil, fmt.Errorf("evaluate delete_when of %s: %w", s.Name, err)
	}
	if !slices.Contains(deleted, true) {
		batch.Retain()
		return batch, nil
	}
	indices := array.NewInt64Builder(memory.DefaultAllocator) // the row that a value comes from, null for none
	defer indices.Release()
	ops := array.NewStringBuilder(memory.DefaultAllocator)
	defer ops.Release()
	was := batch.Column(batch.Schema().FieldIndices(feature.ColOp)[0]).(*array.String)
	for i, gone := range deleted {
		if gone {
			indices.AppendNull()
			ops.Append(feature.OpDelete)
		} else {
			indices.Append(int64(i))
			ops.Append(was.Value(i))
		}
	}
	from := indices.NewArray()
	defer from.Release()
	columns := slices.Clone(batch.Columns())
	var made []arrow.Array
	defer func() {
		for _, c := range made {
			c.Release()
		}
	}()
	for i, f := range batch.Schema().Fields() {
		_, own := s.Column(f.Name)
		switch {
		case f.Name == feature.ColOp:
			columns[i] = ops.NewArray()
		case own && !slices.Contains(s.Key, f.Name), f.Name == feature.ColPresent:
			if columns[i], err = compute.TakeArray(ctx, batch.Column(i), from); err != nil {
				return nil, fmt.Errorf("empty column %s of deletes: %w", f.Name, err)
			}
		default:
			continue
		}
		made = append(made, columns[i])
	}
	return array.NewRecordBatch(batch.Schema(), columns, batch.NumRows()), nil
}
