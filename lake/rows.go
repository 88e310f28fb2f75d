package lake

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// layout says how a stream's columns stand in an scd.Row and in a key.
type layout struct {
	stream  *feature.Stream
	tracked []feature.Column
	rest    []feature.Column
	key     []feature.Column
}

func newLayout(s *feature.Stream) *layout {
	l := &layout{stream: s}
	for _, c := range s.Columns {
		if s.Tracked(c.Name) {
			l.tracked = append(l.tracked, c)
		} else {
			l.rest = append(l.rest, c)
		}
	}
	for _, k := range s.Key {
		c, _ := s.Column(k)
		l.key = append(l.key, c)
	}
	return l
}

// columns are the stream's columns in the order of a row's values.
func (l *layout) columns() []feature.Column { return slices.Concat(l.tracked, l.rest) }

// packer appends the value of one row of a column to a part of an scd.Row.
type packer func(part []byte, row int) []byte

// reader reads the rows of batches of one stream. One is made a batch.
type reader struct {
	layout              *layout
	tracked, rest, key  []packer
	eventTime, recorded *array.Timestamp
	ingested            *array.Timestamp
	sequence            *array.Int64
	topic, eventID, op  *array.String
	partition, offset   *array.Int64
	present             *array.List
	validFrom, validTo  *array.Timestamp
	buffers             [2][]byte
	topics              map[string]topicFacts
}

type topicFacts struct {
	name string
	live bool
	hash uint32
}

// newReader prepares reading a batch whose columns are found by name, those of a log or of a history.
func (l *layout) newReader(batch arrow.RecordBatch) (*reader, error) {
	r := &reader{layout: l, topics: map[string]topicFacts{}}
	for _, part := range []struct {
		columns []feature.Column
		dst     *[]packer
	}{{l.tracked, &r.tracked}, {l.rest, &r.rest}, {l.key, &r.key}} {
		for _, c := range part.columns {
			column, err := columnOf(batch, c.Name)
			if err != nil {
				return nil, err
			}
			p, err := packerOf(column)
			if err != nil {
				return nil, fmt.Errorf("read column %s: %w", c.Name, err)
			}
			*part.dst = append(*part.dst, p)
		}
	}
	return r, errors1(
		bind(batch, feature.ColEventTime, &r.eventTime), bind(batch, feature.ColRecordedAt, &r.recorded),
		bind(batch, feature.ColIngestedAt, &r.ingested), bind(batch, feature.ColSequence, &r.sequence),
		bind(batch, feature.ColTopic, &r.topic), bind(batch, feature.ColEventID, &r.eventID), bind(batch, feature.ColOp, &r.op),
		bind(batch, feature.ColPartition, &r.partition), bind(batch, feature.ColOffset, &r.offset),
		bind(batch, feature.ColPresent, &r.present), bind(batch, feature.ColValidFrom, &r.validFrom), bind(batch, feature.ColValidTo, &r.validTo),
	)
}

func columnOf(batch arrow.RecordBatch, name string) (arrow.Array, error) {
	found := batch.Schema().FieldIndices(name)
	if len(found) != 1 {
		return nil, fmt.Errorf("the batch has no column %s", name)
	}
	return batch.Column(found[0]), nil
}

// bind sets dst to the named column, and leaves it nil where the batch lacks that.
func bind[A arrow.Array](batch arrow.RecordBatch, name string, dst *A) error {
	found := batch.Schema().FieldIndices(name)
	if len(found) == 0 {
		return nil
	}
	column, ok := batch.Column(found[0]).(A)
	if !ok {
		return fmt.Errorf("column %s is %s", name, batch.Column(found[0]).DataType())
	}
	*dst = column
	return nil
}

func errors1(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// appendKey appends the canonical bytes of the row's key.
func (r *reader) appendKey(dst []byte, row int) []byte {
	for _, p := range r.key {
		dst = p(dst, row)
	}
	return dst
}

// compareKeys compares packed keys as the values in them compare, column by column.
func (l *layout) compareKeys(a, b string) int {
	for _, c := range l.key {
		var x, y string
		x, a = nextInKey(a)
		y, b = nextInKey(b)
		order := cmp.Compare(x, y)
		if c.Type.Kind != feature.String && len(x) == len(y) {
			order = compareNumbers(x, y)
		}
		if order != 0 {
			return order
		}
	}
	return 0
}

// nextInKey splits the first value off a packed key, as [scd.Next] does, without a copy.
func nextInKey(key string) (value, rest string) {
	n, width := 0, 0
	for shift := 0; ; shift += 7 {
		b := key[width]
		n |= int(b&0x7f) << shift
		if width++; b < 0x80 {
			break
		}
	}
	if n == 0 {
		return "", key[width:]
	}
	return key[width : width+n-1], key[width+n-1:]
}

// compareNumbers compares two signed numbers of one width, their least byte first.
func compareNumbers(a, b string) int {
	const sign = 0x80
	for i := len(a) - 1; i >= 0; i-- {
		x, y := a[i], b[i]
		if i == len(a)-1 {
			x, y = x^sign, y^sign
		}
		if x != y {
			return cmp.Compare(x, y)
		}
	}
	return 0
}

// appendRow appends the row's state to dst and returns dst and the state inside it.
func (r *reader) appendRow(dst []byte, row int) ([]byte, scd.Row) {
	for i, packers := range [][]packer{r.tracked, r.rest} {
		r.buffers[i] = r.buffers[i][:0]
		for _, p := range packers {
			r.buffers[i] = p(r.buffers[i], row)
		}
	}
	return scd.AppendRow(dst, r.buffers[0], r.buffers[1])
}

func (r *reader) topicOf(row int) topicFacts {
	name := r.topic.Value(row)
	facts, ok := r.topics[name]
	if !ok {
		name = string(append([]byte(nil), name...)) // outlive the batch
		facts = topicFacts{name: name, live: feature.Live(name), hash: feature.TopicHash(name)}
		r.topics[name] = facts
	}
	return facts
}

func (r *reader) order(row int, eventTime int64) (feature.Order, string) {
	topic := r.topicOf(row)
	o := feature.Order{
		EventTime: eventTime, Live: topic.live, TopicHash: topic.hash,
		Partition: int32(r.partition.Value(row)), Offset: r.offset.Value(row),
	}
	if r.sequence.IsValid(row) {
		o.HasSequence, o.Sequence = true, r.sequence.Value(row)
	}
	return o, topic.name
}

func (r *reader) origin(row int, topic string) scd.Origin {
	return scd.Origin{
		EventID: string(append([]byte(nil), r.eventID.Value(row)...)), Topic: topic,
		RecordedAt: int64(r.recorded.Value(row)), IngestedAt: int64(r.ingested.Value(row)),
	}
}

// change reads a row of a log. The state is appended to slab, which is returned.
func (r *reader) change(slab []byte, row int) ([]byte, scd.Change) {
	order, topic := r.order(row, int64(r.eventTime.Value(row)))
	c := scd.Change{Order: order, Origin: r.origin(row, topic), Delete: r.op.Value(row) == feature.OpDelete}
	if c.Delete {
		return slab, c
	}
	slab, c.Row = r.appendRow(slab, row)
	if r.present != nil && r.present.IsValid(row) {
		c.Present = r.presentColumns(row)
	}
	return slab, c
}

// presentColumns says which columns of a patch the event carried; the key always counts as carried.
func (r *reader) presentColumns(row int) []bool {
	names := r.present.ListValues().(*array.String)
	from, to := r.present.ValueOffsets(row)
	columns := r.layout.columns()
	present := make([]bool, len(columns))
	for i, c := range columns {
		present[i] = slices.Contains(r.layout.stream.Key, c.Name)
		for j := from; j < to && !present[i]; j++ {
			present[i] = names.Value(int(j)) == c.Name
		}
	}
	return present
}

// version reads a row of a history.
func (r *reader) version(slab []byte, row int) ([]byte, scd.Version) {
	from := int64(r.validFrom.Value(row))
	order, topic := r.order(row, from)
	v := scd.Version{From: from, To: scd.Open, Order: order, Origin: r.origin(row, topic)}
	if r.validTo.IsValid(row) {
		v.To = int64(r.validTo.Value(row))
	}
	slab, v.Row = r.appendRow(slab, row)
	return slab, v
}

// packKey packs a key given as text, as [feature.Identity] has it; false where the text is no key of the stream.
func (l *layout) packKey(text string) (string, bool) {
	parts := strings.Split(text, feature.KeySeparator)
	if len(parts) != len(l.key) {
		return "", false
	}
	var key []byte
	for i, c := range l.key {
		if c.Type.Kind == feature.String {
			key = scd.AppendValue(key, []byte(parts[i]))
			continue
		}
		n, err := strconv.ParseInt(parts[i], 10, 64)
		if err != nil {
			return "", false
		}
		key = scd.AppendValue(key, binary.LittleEndian.AppendUint64(nil, uint64(n)))
	}
	return string(key), true
}

// keysOf packs the keys of a batch's rows. What it gives of a row holds until the next.
func keysOf(key []feature.Column, batch arrow.RecordBatch) (func(row int) []byte, error) {
	packers := make([]packer, len(key))
	for i, c := range key {
		column, err := columnOf(batch, c.Name)
		if err != nil {
			return nil, err
		}
		if packers[i], err = packerOf(column); err != nil {
			return nil, err
		}
	}
	var packed []byte
	return func(row int) []byte {
		packed = packed[:0]
		for _, p := range packers {
			packed = p(packed, row)
		}
		return packed
	}, nil
}

// packerOf gives the packer of a column. Values that are equal in DuckDB become equal bytes: every NaN is one, and minus
// zero is zero.
func packerOf(column arrow.Array) (packer, error) {
	nullable := func(value func(part []byte, row int) []byte) packer {
		if column.NullN() == 0 {
			return value
		}
		return func(part []byte, row int) []byte {
			if column.IsNull(row) {
				return scd.AppendNull(part)
			}
			return value(part, row)
		}
	}
	fixed := func(bits func(row int) uint64) packer {
		return nullable(func(part []byte, row int) []byte {
			part = append(part, 9)
			return binary.LittleEndian.AppendUint64(part, bits(row))
		})
	}
	switch c := column.(type) {
	case *array.String:
		return nullable(func(part []byte, row int) []byte {
			v := c.Value(row)
			part = binary.AppendUvarint(part, uint64(len(v))+1)
			return append(part, v...)
		}), nil
	case *array.Int64:
		return fixed(func(row int) uint64 { return uint64(c.Value(row)) }), nil
	case *array.Timestamp:
		return fixed(func(row int) uint64 { return uint64(c.Value(row)) }), nil
	case *array.Float64:
		return fixed(func(row int) uint64 { return math.Float64bits(canonical(c.Value(row))) }), nil
	case *array.Date32:
		return fixed(func(row int) uint64 { return uint64(int64(c.Value(row))) }), nil
	case *array.Boolean:
		return nullable(func(part []byte, row int) []byte {
			if c.Value(row) {
				return append(part, 2, 1)
			}
			return append(part, 2, 0)
		}), nil
	case *array.Decimal128:
		return nullable(func(part []byte, row int) []byte {
			v := c.Value(row)
			part = append(part, 17)
			part = binary.LittleEndian.AppendUint64(part, v.LowBits())
			return binary.LittleEndian.AppendUint64(part, uint64(v.HighBits()))
		}), nil
	case *array.List:
		elements, err := packerOf(c.ListValues())
		if err != nil {
			return nil, err
		}
		var buffer []byte
		return nullable(func(part []byte, row int) []byte {
			buffer = buffer[:0]
			from, to := c.ValueOffsets(row)
			for i := from; i < to; i++ {
				buffer = elements(buffer, int(i))
			}
			return scd.AppendValue(part, buffer)
		}), nil
	default:
		return nil, fmt.Errorf("columns of %s can't be packed", column.DataType())
	}
}

func canonical(v float64) float64 {
	switch {
	case v != v:
		return math.NaN()
	case v == 0:
		return 0
	default:
		return v
	}
}

// appendPacked appends a packed value, nil for null, to the builder of its column.
func appendPacked(b array.Builder, value []byte) {
	if value == nil {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.StringBuilder:
		b.BinaryBuilder.Append(value)
	case *array.Int64Builder:
		b.Append(int64(binary.LittleEndian.Uint64(value)))
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(binary.LittleEndian.Uint64(value)))
	case *array.Float64Builder:
		b.Append(math.Float64frombits(binary.LittleEndian.Uint64(value)))
	case *array.Date32Builder:
		b.Append(arrow.Date32(int64(binary.LittleEndian.Uint64(value))))
	case *array.BooleanBuilder:
		b.Append(value[0] == 1)
	case *array.Decimal128Builder:
		b.Append(decimal128.New(int64(binary.LittleEndian.Uint64(value[8:])), binary.LittleEndian.Uint64(value)))
	case *array.ListBuilder:
		b.Append(true)
		for rest := value; len(rest) > 0; {
			var element []byte
			element, rest = scd.Next(rest)
			appendPacked(b.ValueBuilder(), element)
		}
	default:
		panic(fmt.Sprintf("no column of loam has the builder %T", b))
	}
}
