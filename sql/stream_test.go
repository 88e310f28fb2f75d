package sql

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// streamOf writes so many batches of text and numbers.
func streamOf(t *testing.T, batches, rows int, options ...ipc.Option) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{{Name: "name", Type: arrow.BinaryTypes.String}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	var out bytes.Buffer
	w := ipc.NewWriter(&out, append(options, ipc.WithSchema(schema))...)
	for range batches {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for i := range rows {
			b.Field(0).(*array.StringBuilder).Append("some text")
			b.Field(1).(*array.Int64Builder).Append(int64(i))
		}
		batch := b.NewRecordBatch()
		if err := w.Write(batch); err != nil {
			t.Fatal(err)
		}
		batch.Release()
		b.Release()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// readAll counts the rows of a stream.
func readAll(text []byte, bytesMax int64) (rows int64, err error) {
	s, err := OpenStream(bytes.NewReader(text), bytesMax)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	for batch, err := range s.Batches() {
		if err != nil {
			return rows, err
		}
		rows += batch.NumRows()
		batch.Release()
	}
	return rows, nil
}

// Memory that was given back doesn't count: compressed, the whole stream takes more than its batches may at once.
func TestStreamIsLongerThanItsBatches(t *testing.T) {
	for name, options := range map[string][]ipc.Option{"plain": nil, "zstd": {ipc.WithZstd()}, "lz4": {ipc.WithLZ4()}} {
		text := streamOf(t, 300, 1000, options...)
		if rows, err := readAll(text, int64(max(len(text), 300_000))); err != nil || rows != 300_000 {
			t.Errorf("%s: %d rows, %v", name, rows, err)
		}
	}
}

func TestStreamBounds(t *testing.T) {
	for name, c := range map[string]struct {
		text     []byte
		bytesMax int64
	}{
		"one long batch":               {streamOf(t, 1, 100_000), 64 << 10},
		"many batches":                 {streamOf(t, 100, 1000), 64 << 10},
		"a batch that spreads":         {streamOf(t, 1, 1<<20, ipc.WithZstd()), 6 << 20},
		"rows of nulls, without bytes": {nulls(t, 1<<40), 1 << 20},
	} {
		if _, err := readAll(c.text, c.bytesMax); !errors.Is(err, ErrStreamTooLong) {
			t.Errorf("%s, %d bytes: %v", name, len(c.text), err)
		}
	}
	// A message that says it is as long as nothing is.
	whole := streamOf(t, 1, 10)
	binary.LittleEndian.PutUint32(whole[4:], 1<<30)
	if _, err := readAll(whole, 1<<20); !errors.Is(err, ErrStreamTooLong) {
		t.Errorf("metadata of 1 GiB: %v", err)
	}
}

// nulls writes a batch of rows that take no bytes.
func nulls(t *testing.T, rows int) []byte {
	schema := arrow.NewSchema([]arrow.Field{{Name: "nothing", Type: arrow.Null, Nullable: true}}, nil)
	column := array.NewNull(rows)
	defer column.Release()
	batch := array.NewRecordBatch(schema, []arrow.Array{column}, int64(rows))
	defer batch.Release()
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(schema))
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// richStream writes two rows of every kind of nesting, with metadata.
func richStream(t *testing.T) []byte {
	t.Helper()
	metadata := arrow.MetadataFrom(map[string]string{"key": "value"})
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "coded", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, Nullable: true, Metadata: metadata},
		{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Int32), Nullable: true},
		{Name: "struct", Type: arrow.StructOf(arrow.Field{Name: "x", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, arrow.Field{Name: "y", Type: arrow.BinaryTypes.StringView})},
		{Name: "at", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}},
		{Name: "pair", Type: arrow.FixedSizeListOf(2, arrow.FixedWidthTypes.Boolean)},
	}, &metadata)
	batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(
		`[{"coded": "a", "list": [1, 2], "struct": {"x": 1.5, "y": "a text that is long enough to stand in a buffer"}, "at": "2026-11-01T00:00:00Z", "pair": [true, false]},
		{"coded": null, "list": null, "struct": {"x": null, "y": "b"}, "at": "2026-11-02T00:00:00Z", "pair": [false, true]}]`))
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Release()
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(schema))
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Whatever byte of a stream is another: an error or rows, never a crash of Go's or of what reads the rows.
func TestStreamOfAnybody(t *testing.T) {
	whole := richStream(t)
	for at := range whole {
		for _, value := range []byte{0, 1, 0x7f, 0x80, 0xff, whole[at] ^ 4} {
			text := bytes.Clone(whole)
			text[at] = value
			s, err := OpenStream(bytes.NewReader(text), 1<<20)
			if err != nil {
				continue
			}
			for batch, err := range s.Batches() {
				if err != nil {
					break
				}
				for _, c := range batch.Columns() {
					for i := range c.Len() {
						io.WriteString(io.Discard, c.ValueStr(i))
					}
				}
				batch.Release()
			}
			s.Close()
		}
	}
	for cut := range whole {
		if rows, err := readAll(whole[:cut], 1<<20); err == nil && rows == 2 && cut < len(whole)-8 {
			t.Errorf("%d of %d bytes gave all rows and no error", cut, len(whole))
		}
	}
}
