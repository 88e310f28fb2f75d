package sql

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Stream is an Arrow IPC stream that anybody may have written. What it says of its own sizes and places is checked before memory is taken by
// it or anything is read at it: neither Go nor DuckDB would survive the rest.
type Stream struct {
	reader  *ipc.Reader
	rowsMax int64
}

// StreamSpread is how much more memory than its bytes a stream's batches may take at once, since buffers may be compressed.
const StreamSpread = 4

// ErrStreamTooLong: a stream has more bytes, or rows, or takes more memory, than it may.
var ErrStreamTooLong = errors.New("the Arrow stream is too long")

// OpenStream reads the schema of a stream, which may have bytesMax bytes and as many rows, and [StreamSpread] times as much memory for its
// batches at once. The caller closes it.
func OpenStream(from io.Reader, bytesMax int64) (*Stream, error) {
	bounded := ipc.WithAllocator(&boundedMemory{Allocator: memory.NewGoAllocator(), max: StreamSpread * bytesMax})
	messages := ipc.NewMessageReader(&checkedMessages{in: from, bytesMax: bytesMax}, bounded, ipc.WithBodySizeLimit(bytesMax))
	defer messages.Release()
	reader, err := ipc.NewReaderFromMessageReader(messages, bounded)
	if err != nil {
		return nil, fmt.Errorf("read an Arrow IPC stream: %w", err)
	}
	return &Stream{reader, bytesMax}, nil
}

// Schema is that of the stream's batches.
func (s *Stream) Schema() *arrow.Schema { return s.reader.Schema() }

// Batches gives the stream's batches, which whoever takes them releases. The sequence ends with the first error.
func (s *Stream) Batches() iter.Seq2[arrow.RecordBatch, error] {
	return func(yield func(arrow.RecordBatch, error) bool) {
		rows := int64(0)
		for s.reader.Next() {
			batch := s.reader.RecordBatch()
			if rows += batch.NumRows(); rows > s.rowsMax { // rows of nulls take no bytes
				yield(nil, fmt.Errorf("%w: it has more than %d rows", ErrStreamTooLong, s.rowsMax))
				return
			}
			if err := validate(batch); err != nil {
				yield(nil, fmt.Errorf("a batch of the Arrow stream contradicts itself: %w", err))
				return
			}
			batch.Retain()
			if !yield(batch, nil) {
				return
			}
		}
		if err := s.reader.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// Close lets the stream's memory go. What it was read from stays open.
func (s *Stream) Close() { s.reader.Release() }

// validate finds what in a batch contradicts itself, such as an offset that is behind its buffer.
func validate(batch arrow.RecordBatch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return array.ValidateRecordFull(batch)
}

// boundedMemory refuses to give more than its maximum at once. Arrow's reader makes an error of a panic.
type boundedMemory struct {
	memory.Allocator
	max  int64
	used atomic.Int64
}

func (m *boundedMemory) take(n int) {
	if n < 0 || m.used.Add(int64(n)) > m.max {
		panic(fmt.Errorf("%w: its batches take more than %d bytes of memory; write smaller ones", ErrStreamTooLong, m.max))
	}
}

func (m *boundedMemory) Allocate(n int) []byte {
	m.take(n)
	return m.Allocator.Allocate(n)
}

func (m *boundedMemory) Reallocate(n int, b []byte) []byte {
	if n > len(b) {
		m.take(n - len(b))
	} else {
		m.used.Add(int64(n - len(b)))
	}
	return m.Allocator.Reallocate(n, b)
}

func (m *boundedMemory) Free(b []byte) {
	m.used.Add(-int64(len(b)))
	m.Allocator.Free(b)
}
