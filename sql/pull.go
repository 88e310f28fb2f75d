//go:build duckdb_arrow

package sql

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
)

// ImportSeq copies batches of one schema into a new table of that name, replacing one that exists. Batches are released once
// they are copied.
func (db *DB) ImportSeq(ctx context.Context, table string, schema *arrow.Schema, batches iter.Seq2[arrow.RecordBatch, error]) error {
	schema, batches = cutNanos(schema, batches)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &pulled{schema: schema, items: make(chan pulledItem, pulledMax)}
	r.refs.Store(1)
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		defer close(r.items)
		for batch, err := range batches {
			failed = err
			select {
			case r.items <- pulledItem{batch, err}:
			case <-ctx.Done():
				if batch != nil {
					batch.Release()
				}
				return
			}
			if err != nil {
				return
			}
		}
	}()
	err := db.Import(ctx, table, r)
	cancel()
	<-ended
	for item := range r.items {
		if item.batch != nil {
			item.batch.Release()
		}
	}
	if r.current != nil {
		r.current.Release()
	}
	if err != nil && failed != nil {
		return failed // DuckDB passes on its words alone
	}
	return err
}

// ImportFile copies the batches of an Arrow IPC file into a new table of that name, replacing one that exists.
func (db *DB) ImportFile(ctx context.Context, table string, r *ipc.FileReader) error {
	return db.ImportSeq(ctx, table, r.Schema(), func(yield func(arrow.RecordBatch, error) bool) {
		for i := range r.NumRecords() {
			if batch, err := r.RecordBatchAt(i); !yield(batch, err) || err != nil {
				return
			}
		}
	})
}

// Retained gives the batches of a reader, for whoever takes them to release.
func Retained(r array.RecordReader) iter.Seq2[arrow.RecordBatch, error] {
	return func(yield func(arrow.RecordBatch, error) bool) {
		for r.Next() {
			batch := r.RecordBatch()
			batch.Retain()
			if !yield(batch, nil) {
				return
			}
		}
		if err := r.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// pulledMax bounds the batches that wait for DuckDB.
const pulledMax = 4

type pulledItem struct {
	batch arrow.RecordBatch
	err   error
}

// pulled reads what a goroutine hands over: DuckDB asks for batches on a thread of its own, where a coroutine of Go's iter
// package can't go on.
type pulled struct {
	schema  *arrow.Schema
	items   chan pulledItem
	current arrow.RecordBatch
	err     error
	refs    atomic.Int64
}

func (r *pulled) Retain()                        { r.refs.Add(1) }
func (r *pulled) Release()                       { r.refs.Add(-1) }
func (r *pulled) Schema() *arrow.Schema          { return r.schema }
func (r *pulled) RecordBatch() arrow.RecordBatch { return r.current }
func (r *pulled) Record() arrow.RecordBatch      { return r.current }
func (r *pulled) Err() error                     { return r.err }

func (r *pulled) Next() bool {
	if r.current != nil {
		r.current.Release()
		r.current = nil
	}
	item, ok := <-r.items
	if !ok || item.err != nil {
		r.err = item.err
		return false
	}
	r.current = item.batch
	return true
}
