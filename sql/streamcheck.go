package sql

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// checkedMessages reads an Arrow IPC stream and gives it on, message by message, once the lengths in a message's metadata are known to lie in
// it. Arrow's reader takes memory by those lengths before it looks.
type checkedMessages struct {
	in       io.Reader
	bytesMax int64
	read     int64
	buffer   []byte // what is to be given on of a message's beginning
	body     int64  // how much follows it
	scratch  []byte
	ended    bool
	views    int // columns whose values stand in buffers of a number of their own, which each batch tells
}

const (
	continuation = 0xFFFFFFFF // what a message begins with
	// metadataMax bounds the bytes of a message's metadata, which are some hundred a column.
	metadataMax = 16 << 20
)

func (c *checkedMessages) Read(b []byte) (int, error) {
	if len(c.buffer) == 0 && c.body == 0 {
		if c.ended {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if len(c.buffer) > 0 {
		n := copy(b, c.buffer)
		c.buffer = c.buffer[n:]
		return n, nil
	}
	n, err := c.in.Read(b[:min(int64(len(b)), c.body)])
	c.body -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// next reads the beginning of the next message.
func (c *checkedMessages) next() error {
	c.scratch = append(c.scratch[:0], make([]byte, 8)...)
	if n, err := io.ReadFull(c.in, c.scratch); err != nil {
		if zero := n == 4 && binary.LittleEndian.Uint32(c.scratch) == 0; zero || n == 0 && errors.Is(err, io.EOF) { // an end as older writers have it, or none
			c.buffer, c.ended = c.scratch[:n], true
			if n == 0 {
				return io.EOF
			}
			return nil
		}
		return err
	}
	if binary.LittleEndian.Uint32(c.scratch) != continuation {
		return errors.New("it is no Arrow IPC stream of format 0.15 or later")
	}
	length := int64(binary.LittleEndian.Uint32(c.scratch[4:]))
	if length == 0 {
		c.buffer, c.ended = c.scratch, true
		return nil
	}
	if err := c.count(8 + length); err != nil {
		return err
	}
	if length > metadataMax {
		return fmt.Errorf("%w: the metadata of a message has %d bytes, of %d that are taken", ErrStreamTooLong, length, metadataMax)
	}
	c.scratch = append(c.scratch, make([]byte, length)...)
	if _, err := io.ReadFull(c.in, c.scratch[8:]); err != nil {
		return fmt.Errorf("read the metadata of a message: %w", unexpected(err))
	}
	body, err := checkMessage(c.scratch[8:], &c.views)
	if err != nil {
		return fmt.Errorf("the metadata of a message contradicts itself: %w", err)
	}
	if err := c.count(body); err != nil {
		return err
	}
	c.buffer, c.body = c.scratch, body
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *checkedMessages) count(bytes int64) error {
	if c.read += bytes; bytes < 0 || c.read > c.bytesMax || c.read < 0 {
		return fmt.Errorf("%w: it has more than %d bytes", ErrStreamTooLong, c.bytesMax)
	}
	return nil
}

// flat is a Flatbuffer that is walked with every length and place checked. Tables that are met more than once count each time, so that
// what is small can't be walked for ever.
type flat struct {
	bytes  []byte
	visits int
	views  int
}

var errFlat = errors.New("a length or place is outside it")

// flatDepthMax bounds how deep types may be nested.
const flatDepthMax = 64

func (f *flat) uint32(at int) int {
	if at < 0 || at+4 > len(f.bytes) {
		panic(errFlat)
	}
	return int(binary.LittleEndian.Uint32(f.bytes[at:]))
}

// table is the place of a table that an offset leads to.
func (f *flat) table(at int) int {
	if f.visits--; f.visits < 0 {
		panic(errFlat)
	}
	at += f.uint32(at)
	f.field(at, 0)
	return at
}

// field is the place of a table's field, 0 where it has none.
func (f *flat) field(table, slot int) int {
	vtable := table - int(int32(f.uint32(table)))
	if vtable < 0 || vtable+4 > len(f.bytes) {
		panic(errFlat)
	}
	size := int(binary.LittleEndian.Uint16(f.bytes[vtable:]))
	if vtable+size > len(f.bytes) {
		panic(errFlat)
	}
	if 4+2*slot+2 > size {
		return 0
	}
	at := int(binary.LittleEndian.Uint16(f.bytes[vtable+4+2*slot:]))
	if at == 0 {
		return 0
	}
	if table+at >= len(f.bytes) {
		panic(errFlat)
	}
	return table + at
}

// vector gives the place of the first item and the number of a field's items, each of so many bytes.
func (f *flat) vector(table, slot, itemBytes int) (at, n int) {
	field := f.field(table, slot)
	if field == 0 {
		return 0, 0
	}
	at = field + f.uint32(field)
	n = f.uint32(at)
	if at+4+n*itemBytes > len(f.bytes) {
		panic(errFlat)
	}
	return at + 4, n
}

// tables walks the tables of a vector.
func (f *flat) tables(table, slot int, each func(table int)) {
	at, n := f.vector(table, slot, 4)
	for i := range n {
		each(f.table(at + 4*i))
	}
}

// inner walks the table of a field, if it is there.
func (f *flat) inner(table, slot int, each func(table int)) {
	if at := f.field(table, slot); at != 0 {
		each(f.table(at))
	}
}

func (f *flat) pair(table int) {
	f.vector(table, 0, 1)
	f.vector(table, 1, 1)
}

// column walks Arrow's table Field: name, nullable, type_type, type, dictionary, children, custom_metadata.
func (f *flat) column(table, depth int) {
	if depth > flatDepthMax {
		panic(errFlat)
	}
	f.vector(table, 0, 1)
	f.inner(table, 3, func(kind int) {
		// Of the types' fields only these are no numbers: the zone of Timestamp, and the ids of Union.
		switch f.byte(table, 2) {
		case 10:
			f.vector(kind, 1, 1)
		case 14:
			f.vector(kind, 1, 4)
		case 23, 24: // BinaryView, Utf8View
			if f.views++; f.field(table, 4) != 0 {
				panic("a dictionary of views is not taken: write a dictionary of utf8")
			}
		}
	})
	f.inner(table, 4, func(int) {})
	f.tables(table, 5, func(child int) { f.column(child, depth+1) })
	f.tables(table, 6, f.pair)
}

func (f *flat) byte(table, slot int) byte {
	at := f.field(table, slot)
	if at == 0 {
		return 0
	}
	return f.bytes[at]
}

// batch walks Arrow's table RecordBatch: length, nodes, buffers, compression, variadicBufferCounts.
func (f *flat) batch(table int) {
	f.vector(table, 1, 16)
	_, buffers := f.vector(table, 2, 16)
	f.inner(table, 3, func(int) {})
	at, n := f.vector(table, 4, 8) // how many of the buffers are a view's
	if n < f.views {               // Arrow's reader would read on behind it
		panic(errFlat)
	}
	for i := range n {
		if binary.LittleEndian.Uint64(f.bytes[at+8*i:]) > uint64(buffers) {
			panic(errFlat)
		}
	}
}

// checkMessage walks Arrow's table Message (version, header_type, header, bodyLength, custom_metadata) and gives the length of its body. A
// schema sets how many columns are views, which batches are held to.
func checkMessage(bytes []byte, views *int) (body int64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	f := &flat{bytes: bytes, visits: len(bytes) / 4}
	message := f.table(0)
	f.tables(message, 4, f.pair)
	f.inner(message, 2, func(header int) {
		switch f.byte(message, 1) {
		case 1: // Schema: endianness, fields, custom_metadata, features
			f.tables(header, 1, func(column int) { f.column(column, 0) })
			f.tables(header, 2, f.pair)
			f.vector(header, 3, 8)
			*views = f.views
		case 2: // DictionaryBatch: id, data, isDelta
			f.views = 0
			f.inner(header, 1, f.batch)
		case 3:
			f.views = *views
			f.batch(header)
		}
	})
	at := f.field(message, 3)
	if at == 0 {
		return 0, nil
	}
	if at+8 > len(bytes) {
		return 0, errFlat
	}
	if body = int64(binary.LittleEndian.Uint64(bytes[at:])); body < 0 {
		return 0, errFlat
	}
	return body, nil
}
