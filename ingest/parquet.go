package ingest

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/loamdata/loam/feature"
)

// parquetSource reads a .parquet file. Every row is rendered as a JSON object: times as RFC 3339, decimals as numbers,
// numbers that JSON lacks as text. The offset of a row is its number in the file, from 0.
type parquetSource struct {
	file     File
	in       *os.File
	reader   *parquet.Reader
	root     *column
	rows     []parquet.Row
	offset   int64
	total    int64
	progress func(int64)
	records  []Record
	cursors  cursors
	failed   error // what ended the reading, given once all before it has been
}

func openParquet(f File, from int64, progress func(int64)) (*parquetSource, error) {
	in, err := os.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("open the file: %w", err)
	}
	s, err := newParquetSource(f, in, from, progress)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not a Parquet file that can be read: %w", f.Path, err), in.Close())
	}
	return s, nil
}

func newParquetSource(f File, in *os.File, from int64, progress func(int64)) (s *parquetSource, err error) {
	defer recovered(&err)
	if err := checkFooter(in, f.SizeBytes); err != nil {
		return nil, err
	}
	pf, err := parquet.OpenFile(in, f.SizeBytes, parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, err
	}
	s = &parquetSource{
		file: f, in: in, reader: parquet.NewReader(pf), rows: make([]parquet.Row, 256), offset: from, total: pf.NumRows(), progress: progress,
	}
	if s.root, err = columnOf(pf.Root(), 0, 0); err != nil {
		return nil, err
	}
	s.cursors = make(cursors, len(pf.Schema().Columns()))
	if from > 0 && from < s.total {
		if err := s.reader.SeekToRow(from); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// checkFooter holds the length that a file says its footer has against its own: the library takes memory for what is said.
func checkFooter(in io.ReaderAt, size int64) error {
	const around = 12 // the magic number at both ends, and the length
	var tail [8]byte
	if size < around {
		return errors.New("it is too short")
	}
	if _, err := in.ReadAt(tail[:], size-int64(len(tail))); err != nil {
		return err
	}
	if n := int64(binary.LittleEndian.Uint32(tail[:])); n > size-around {
		return fmt.Errorf("its footer is said to have %d bytes, which it doesn't", n)
	}
	return nil
}

// recovered turns a panic of the Parquet library, which hostile files can cause, into an error.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the file is broken: %v", p)
	}
}

func (s *parquetSource) Close() error {
	return errors.Join(s.reader.Close(), s.in.Close())
}

// Poll reads the next rows. An error comes after everything before it has been given.
func (s *parquetSource) Poll(ctx context.Context) (poll Poll, err error) {
	s.records = s.records[:0]
	size := 0
	for s.failed == nil && len(s.records) < pollRecords && size < pollBytes {
		if err := ctx.Err(); err != nil {
			return Poll{}, err
		}
		if s.offset >= s.total {
			poll.Done = true
			poll.Ends = []feature.Partition{{Topic: s.file.Topic}}
			break
		}
		n, err := s.read()
		for _, row := range s.rows[:n] {
			value, broken := s.render(row)
			if broken != nil {
				err = broken
				break
			}
			size += len(value)
			s.records = append(s.records, Record{Position: feature.Position{Topic: s.file.Topic, Offset: s.offset}, Value: value, Text: true})
			s.offset++
		}
		if err != nil && (!errors.Is(err, io.EOF) || s.offset < s.total) {
			s.failed = fmt.Errorf("read %s behind row %d: %w", s.file.Path, s.offset, err)
		}
	}
	if s.failed != nil && len(s.records) == 0 {
		return Poll{}, s.failed
	}
	if s.total > 0 {
		s.progress(s.file.SizeBytes * s.offset / s.total)
	}
	poll.Records = s.records
	return poll, nil
}

func (s *parquetSource) read() (n int, err error) {
	defer recovered(&err)
	return s.reader.ReadRows(s.rows)
}

// column is a node of the file's schema.
type column struct {
	name     string
	leaf     int // index of a leaf, or of the first leaf below
	leaves   int // how many leaves are below
	shape    shape
	optional bool
	repeated bool
	def, rep int // levels at which it is defined, and repeated
	children []*column
	value    func(b []byte, v parquet.Value) []byte
}

type shape uint8

const (
	leafShape shape = iota
	objectShape
	listShape // children[0] repeats, and its element is the value
	mapShape  // children[0] repeats pairs of key and value
)

func columnOf(c *parquet.Column, def, rep int) (*column, error) {
	n := &column{name: c.Name(), optional: c.Optional(), repeated: c.Repeated()}
	if n.optional || n.repeated {
		def++
	}
	if n.repeated {
		rep++
	}
	n.def, n.rep = def, rep
	if c.Leaf() {
		n.leaf, n.leaves = int(c.Index()), 1
		n.value = renderer(c.Type())
		return n, nil
	}
	for _, child := range c.Columns() {
		inner, err := columnOf(child, def, rep)
		if err != nil {
			return nil, err
		}
		n.children = append(n.children, inner)
		n.leaves += inner.leaves
	}
	if len(n.children) == 0 {
		return nil, fmt.Errorf("column %s is a group without fields", n.name)
	}
	n.leaf, n.shape = n.children[0].leaf, objectShape
	if t := c.Type().LogicalType(); t != nil && len(n.children) == 1 && n.children[0].repeated {
		switch t.Value.(type) {
		case *format.ListType:
			n.shape = listShape
		case *format.MapType:
			if pair := n.children[0].children; len(pair) == 2 && pair[0].shape == leafShape {
				n.shape = mapShape
			}
		}
	}
	return n, nil
}

// cursors hold what is left of each leaf's values in a row.
type cursors [][]parquet.Value

func (c cursors) skip(n *column) {
	for i := n.leaf; i < n.leaf+n.leaves; i++ {
		if len(c[i]) > 0 {
			c[i] = c[i][1:]
		}
	}
}

// at gives the next value of the column's first leaf, and whether there is one.
func (c cursors) at(n *column) (parquet.Value, bool) {
	if len(c[n.leaf]) == 0 {
		return parquet.Value{}, false
	}
	return c[n.leaf][0], true
}

func (s *parquetSource) render(row parquet.Row) (object []byte, err error) {
	defer recovered(&err)
	for i := range s.cursors {
		s.cursors[i] = nil
	}
	row.Range(func(index int, values []parquet.Value) bool {
		s.cursors[index] = values
		return true
	})
	return s.root.object(make([]byte, 0, 512), s.cursors), nil
}

// write renders the column's next value, of whatever repetition it has.
func (n *column) write(b []byte, c cursors) []byte {
	if !n.repeated {
		return n.single(b, c)
	}
	b = append(b, '[')
	return append(n.repeat(b, c, func(b []byte) []byte { return n.present(b, c) }), ']')
}

// single renders one value or null.
func (n *column) single(b []byte, c cursors) []byte {
	if v, ok := c.at(n); n.optional && (!ok || v.DefinitionLevel() < n.def) {
		c.skip(n)
		return append(b, "null"...)
	}
	return n.present(b, c)
}

// repeat renders the values of a repeated column, with commas between them.
func (n *column) repeat(b []byte, c cursors, each func(b []byte) []byte) []byte {
	v, ok := c.at(n)
	if !ok || v.DefinitionLevel() < n.def {
		c.skip(n)
		return b
	}
	for first := true; ; first = false {
		if v, ok = c.at(n); !ok || (!first && v.RepetitionLevel() != n.rep) {
			return b
		}
		if !first {
			b = append(b, ',')
		}
		b = each(b)
	}
}

// present renders a value that is there.
func (n *column) present(b []byte, c cursors) []byte {
	switch n.shape {
	case leafShape:
		v, _ := c.at(n)
		c.skip(n)
		if v.IsNull() {
			return append(b, "null"...)
		}
		return n.value(b, v)
	case listShape:
		items := n.children[0]
		b = append(b, '[')
		b = items.repeat(b, c, func(b []byte) []byte {
			if len(items.children) == 1 {
				return items.children[0].write(b, c)
			}
			return items.present(b, c)
		})
		return append(b, ']')
	case mapShape:
		pairs := n.children[0]
		b = append(b, '{')
		b = pairs.repeat(b, c, func(b []byte) []byte {
			key := pairs.children[0].single(nil, c)
			if len(key) == 0 || key[0] != '"' {
				key = append(append([]byte{'"'}, key...), '"')
			}
			return pairs.children[1].write(append(append(b, key...), ':'), c)
		})
		return append(b, '}')
	default:
		return n.object(b, c)
	}
}

func (n *column) object(b []byte, c cursors) []byte {
	b = append(b, '{')
	for i, child := range n.children {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, child.name)
		b = child.write(append(b, ':'), c)
	}
	return append(b, '}')
}

// annotates reports whether a logical type is one that values of the physical type may have. A file may say otherwise.
func annotates(l any, k parquet.Kind) bool {
	text := k == parquet.ByteArray || k == parquet.FixedLenByteArray
	switch l.(type) {
	case *format.TimestampType:
		return k == parquet.Int64
	case *format.DateType:
		return k == parquet.Int32
	case *format.IntType:
		return k == parquet.Int32 || k == parquet.Int64
	case *format.DecimalType:
		return k == parquet.Int32 || k == parquet.Int64 || text
	default:
		return text
	}
}

// renderer gives how values of a type are written as JSON.
func renderer(t parquet.Type) func(b []byte, v parquet.Value) []byte {
	if l := t.LogicalType(); l != nil && annotates(l.Value, t.Kind()) {
		switch l := l.Value.(type) {
		case *format.TimestampType:
			unit := l.Unit.Value.Duration()
			return func(b []byte, v parquet.Value) []byte { return appendTime(b, v.Int64(), unit) }
		case *format.DateType:
			return func(b []byte, v parquet.Value) []byte {
				return time.Unix(int64(v.Int32())*86400, 0).UTC().AppendFormat(b, `"`+time.DateOnly+`"`)
			}
		case *format.DecimalType:
			return func(b []byte, v parquet.Value) []byte { return appendDecimal(b, v, l.Scale) }
		case *format.UUIDType:
			return func(b []byte, v parquet.Value) []byte {
				id, err := uuid.FromBytes(v.ByteArray())
				if err != nil {
					return append(b, "null"...)
				}
				return append(append(append(b, '"'), id.String()...), '"')
			}
		case *format.IntType:
			if !l.IsSigned {
				return appendUnsigned
			}
		case *format.StringType, *format.EnumType, *format.JsonType:
			return func(b []byte, v parquet.Value) []byte { return appendText(b, v.ByteArray()) }
		}
	}
	switch t.Kind() {
	case parquet.Boolean:
		return func(b []byte, v parquet.Value) []byte { return strconv.AppendBool(b, v.Boolean()) }
	case parquet.Int32:
		return func(b []byte, v parquet.Value) []byte { return strconv.AppendInt(b, int64(v.Int32()), 10) }
	case parquet.Int64:
		return func(b []byte, v parquet.Value) []byte { return strconv.AppendInt(b, v.Int64(), 10) }
	case parquet.Int96:
		return func(b []byte, v parquet.Value) []byte {
			i := v.Int96()
			const julianEpoch = 2440588 // the Julian day of 1970-01-01
			nanos := int64(i[1])<<32 | int64(i[0])
			return appendInstant(b, time.Unix((int64(i[2])-julianEpoch)*86400, nanos))
		}
	case parquet.Float:
		return func(b []byte, v parquet.Value) []byte { return appendFloat(b, float64(v.Float())) }
	case parquet.Double:
		return func(b []byte, v parquet.Value) []byte { return appendFloat(b, v.Double()) }
	default:
		return func(b []byte, v parquet.Value) []byte { return appendBytes(b, v.ByteArray()) }
	}
}

func appendUnsigned(b []byte, v parquet.Value) []byte {
	if v.Kind() == parquet.Int32 {
		return strconv.AppendUint(b, uint64(uint32(v.Int32())), 10)
	}
	return strconv.AppendUint(b, uint64(v.Int64()), 10)
}

func appendTime(b []byte, v int64, unit time.Duration) []byte {
	perSecond := int64(time.Second / unit)
	seconds, rest := v/perSecond, v%perSecond
	if rest < 0 {
		seconds, rest = seconds-1, rest+perSecond
	}
	return appendInstant(b, time.Unix(seconds, rest*int64(unit)))
}

// appendInstant writes a time. One that RFC 3339 can't say becomes text that is refused.
func appendInstant(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, `"`+time.RFC3339Nano+`"`)
}

// appendFloat writes a number, or as text one that JSON lacks.
func appendFloat(b []byte, v float64) []byte {
	switch {
	case v != v:
		return append(b, `"NaN"`...)
	case math.IsInf(v, 0):
		if v > 0 {
			return append(b, `"Infinity"`...)
		}
		return append(b, `"-Infinity"`...)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

func appendDecimal(b []byte, v parquet.Value, scale int32) []byte {
	var digits string
	switch v.Kind() {
	case parquet.Int32:
		digits = strconv.FormatInt(int64(v.Int32()), 10)
	case parquet.Int64:
		digits = strconv.FormatInt(v.Int64(), 10)
	default:
		digits = bigEndian(v.ByteArray()).String()
	}
	return fmt.Appendf(b, "%se-%d", digits, scale)
}

// appendText writes text. What isn't UTF-8 stays as it is, which no JSON may hold: it is refused.
func appendText(b, v []byte) []byte {
	if !utf8.Valid(v) {
		return append(append(append(b, '"'), v...), '"')
	}
	b, _ = jsontext.AppendQuote(b, v)
	return b
}

// appendBytes writes bytes that are not declared to be text: as such where they are, else in base64.
func appendBytes(b, v []byte) []byte {
	if utf8.Valid(v) {
		return appendText(b, v)
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}
