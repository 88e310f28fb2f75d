package lake

import (
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
)

// columnReader reads few rows of a column, or of a list's elements, as the values stand in the pages. That costs a part of
// what reading them to Arrow does, which opens the column chunk and its page index anew at each seek.
type columnReader struct {
	file   *seekFile
	leaf   int
	group  *rowGroup // that chunk reads
	chunk  file.ColumnChunkReader
	at     int64 // row that chunk stands at; -1 inside of a list
	defs   []int16
	reps   []int16
	values []value
	// buffers to read into
	texts   []parquet.ByteArray
	fixed   []parquet.FixedLenByteArray
	longs   []int64
	ints    []int32
	doubles []float64
	bools   []bool
}

// value is one value of a column: text and the bytes of a decimal as they are, a double as its bits, other numbers and
// times as integers, and true as 1. The bytes are valid until the next call of what gave them.
type value struct {
	text   []byte
	number int64
}

// column reads the field with this id.
func (f *seekFile) column(id int) (*columnReader, error) {
	leaf, ok := f.leaves[id]
	if !ok {
		return nil, fmt.Errorf("it has no column with field id %d", id)
	}
	return &columnReader{file: f, leaf: leaf, at: -1}, nil
}

// seek moves to a row.
func (c *columnReader) seek(row int64) error {
	if c.group == nil || row < c.group.from || row >= c.group.to {
		c.group = c.file.groupOf(row)
		var err error
		if c.chunk, err = c.group.reader.Column(c.leaf); err != nil {
			return err
		}
	} else if row == c.at {
		return nil
	}
	c.at = row
	return c.chunk.SeekToRow(row - c.group.from)
}

// read reads up to n levels of the page that it stands in or, at its end, of the next one, and the values among them.
func (c *columnReader) read(n int) error {
	switch chunk := c.chunk.(type) {
	case *file.ByteArrayColumnChunkReader:
		return readPage(c, n, &c.texts, chunk.ReadBatchInPage, func(v parquet.ByteArray) value { return value{text: v} })
	case *file.FixedLenByteArrayColumnChunkReader:
		return readPage(c, n, &c.fixed, chunk.ReadBatchInPage, func(v parquet.FixedLenByteArray) value { return value{text: v} })
	case *file.Int64ColumnChunkReader:
		return readPage(c, n, &c.longs, chunk.ReadBatchInPage, func(v int64) value { return value{number: v} })
	case *file.Int32ColumnChunkReader:
		return readPage(c, n, &c.ints, chunk.ReadBatchInPage, func(v int32) value { return value{number: int64(v)} })
	case *file.Float64ColumnChunkReader:
		return readPage(c, n, &c.doubles, chunk.ReadBatchInPage, func(v float64) value { return value{number: int64(math.Float64bits(v))} })
	case *file.BooleanColumnChunkReader:
		return readPage(c, n, &c.bools, chunk.ReadBatchInPage, func(v bool) value { return value{number: number(v)} })
	default:
		return fmt.Errorf("column %d is of type %s", c.leaf, chunk.Type())
	}
}

func readPage[T any](c *columnReader, n int, buffer *[]T, read func(int64, []T, []int16, []int16) (int64, int, error), as func(T) value) error {
	*buffer = slices.Grow((*buffer)[:0], n)[:n]
	c.defs, c.reps = slices.Grow(c.defs[:0], n)[:n], slices.Grow(c.reps[:0], n)[:n]
	levels, values, err := read(int64(n), *buffer, c.defs, c.reps)
	c.defs, c.reps = c.defs[:levels], c.reps[:levels]
	c.values = c.values[:0]
	for _, v := range (*buffer)[:values] {
		c.values = append(c.values, as(v))
	}
	return err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// each hands over the values of rows of a column that is no list.
func (c *columnReader) each(rows rowRange, use func(row int64, v value, valid bool)) error {
	for row := rows.from; row < rows.to; {
		if err := c.seek(row); err != nil {
			return err
		}
		if err := c.read(int(min(rows.to, c.group.to) - row)); err != nil {
			return err
		}
		if len(c.defs) == 0 {
			return fmt.Errorf("column %d ends before row %d", c.leaf, row)
		}
		nullable := c.chunk.Descriptor().MaxDefinitionLevel() > 0
		next := 0
		for i, def := range c.defs {
			if nullable && def == 0 {
				use(row+int64(i), value{}, false)
				continue
			}
			use(row+int64(i), c.values[next], true)
			next++
		}
		row += int64(len(c.defs))
		c.at = row
	}
	return nil
}

// listLevels are the levels of lists' elements that are read at a time.
const listLevels = 256

// appendLists appends the lists of rows to b. It reads from the beginnings of pages on: arrow-go's readers give wrong lists
// after they were moved to a row inside of a page.
func (c *columnReader) appendLists(b *array.ListBuilder, rows rowRange) error {
	for rows.from < rows.to {
		page, err := c.file.pageOf(c.leaf, rows.from)
		if err != nil {
			return err
		}
		if err := c.seek(page.from); err != nil {
			return err
		}
		end := min(rows.to, c.group.to)
		if err := c.appendListsFrom(b, page.from, rowRange{rows.from, end}); err != nil {
			return err
		}
		rows.from = end
	}
	return nil
}

// appendListsFrom does so for rows of one row group, standing at the row at.
func (c *columnReader) appendListsFrom(b *array.ListBuilder, at int64, rows rowRange) error {
	c.at = -1
	descr := c.chunk.Descriptor()
	full := descr.MaxDefinitionLevel() // that of an element; below it comes that of a null element, where there may be any
	element := full
	if descr.SchemaNode().RepetitionType() == parquet.Repetitions.Optional {
		element--
	}
	for at--; ; {
		if err := c.read(listLevels); err != nil {
			return err
		}
		if len(c.defs) == 0 { // the row group's end
			if at < rows.to-1 {
				return fmt.Errorf("list column %d ends after row %d", c.leaf, at)
			}
			return nil
		}
		next := 0
		for i, def := range c.defs {
			var v value
			if def == full {
				v = c.values[next]
				next++
			}
			if c.reps[i] == 0 {
				at++
			}
			if at == rows.to {
				return nil
			}
			if at < rows.from {
				continue
			}
			if c.reps[i] == 0 {
				b.Append(def >= element-1) // below an element's comes an empty list, and a null one below that
			}
			switch {
			case def == full:
				if err := appendValue(b.ValueBuilder(), v); err != nil {
					return err
				}
			case def == element:
				b.ValueBuilder().AppendNull()
			}
		}
	}
}

// appendValue appends a value to the builder of its column.
func appendValue(b array.Builder, v value) error {
	switch b := b.(type) {
	case *array.StringBuilder:
		b.BinaryBuilder.Append(v.text)
	case *array.Int64Builder:
		b.Append(v.number)
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(v.number))
	case *array.Date32Builder:
		b.Append(arrow.Date32(v.number))
	case *array.Float64Builder:
		b.Append(math.Float64frombits(uint64(v.number)))
	case *array.BooleanBuilder:
		b.Append(v.number == 1)
	case *array.Decimal128Builder:
		if v.text == nil {
			b.Append(decimal128.FromI64(v.number))
			return nil
		}
		n := new(big.Int).SetBytes(v.text)
		if len(v.text) > 0 && v.text[0]&0x80 != 0 {
			n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(v.text))))
		}
		b.Append(decimal128.FromBigInt(n))
	default:
		return fmt.Errorf("no column of loam is of %s", b.Type())
	}
	return nil
}

// take gives the rows of ranges, which are in order, as a batch with these columns of the table's schema. Columns that the
// file lacks are null. The caller releases it.
func (f *seekFile) take(schema *arrow.Schema, columns []string, ranges []rowRange) (arrow.RecordBatch, error) {
	fields := make([]arrow.Field, len(columns))
	for i, name := range columns {
		fields[i] = schema.Field(schema.FieldIndices(name)[0])
	}
	batch := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema(fields, nil))
	defer batch.Release()
	for i, field := range fields {
		if err := f.appendColumn(batch.Field(i), field, ranges); err != nil {
			return nil, fmt.Errorf("read column %s: %w", field.Name, err)
		}
	}
	return batch.NewRecordBatch(), nil
}

func (f *seekFile) appendColumn(b array.Builder, field arrow.Field, ranges []rowRange) error {
	id, _ := fieldID(field)
	if _, has := f.leaves[id]; !has {
		for _, r := range ranges {
			b.AppendNulls(int(r.to - r.from))
		}
		return nil
	}
	c, err := f.column(id)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if lists, ok := b.(*array.ListBuilder); ok {
			err = c.appendLists(lists, r)
		} else {
			var wrong error
			err = c.each(r, func(_ int64, v value, valid bool) {
				if !valid {
					b.AppendNull()
				} else if err := appendValue(b, v); err != nil {
					wrong = err
				}
			})
			if err == nil {
				err = wrong
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
