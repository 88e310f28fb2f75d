package schema

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/twmb/avro"
)

// avroWriter decodes by an Avro schema. The schema is read by the library; the bytes are read here, from where JSON is
// written at once: a tree of maps between the two would be hundreds of times what a hostile event is.
type avroWriter struct{ root *avroType }

// avroType is a type of a schema, with what it refers to in place.
type avroType struct {
	is     avroKind
	shaped *shape
	fields []avroField // of a record
	elem   *avroType   // of an array or a map
	union  []*avroType
	words  [][]byte // of an enum, as JSON
	size   int      // of a fixed
	scale  int      // of a decimal
	unit   time.Duration
}

type avroField struct {
	name   string
	quoted []byte
	t      *avroType
}

// avroKind says how a type's bytes are read, and what is written of them.
type avroKind uint8

const (
	avroNull avroKind = iota
	avroBool
	avroInt
	avroLong
	avroFloat
	avroDouble
	avroBytes
	avroString
	avroFixed
	avroEnum
	avroArray
	avroMap
	avroRecord
	avroUnion
	avroDate         // int
	avroTimeMillis   // int
	avroTimeMicros   // long
	avroInstant      // long, with a unit
	avroLocal        // long, with a unit
	avroDecimal      // bytes
	avroFixedDecimal // fixed
	avroFixedUUID    // fixed
)

// parseAvro reads an Avro schema.
func parseAvro(s *source) (*avroWriter, error) {
	var cache avro.SchemaCache
	b := &avroBuilder{defined: map[string]*avro.SchemaNode{}, built: map[string]*avroType{}}
	for _, d := range s.references {
		parsed, err := cache.Parse(d.text)
		if err != nil {
			return nil, fmt.Errorf("%s, which it refers to: %w", d.name, err)
		}
		b.collect(parsed.Root())
	}
	parsed, err := cache.Parse(s.text)
	if err != nil {
		return nil, err
	}
	root := parsed.Root()
	b.collect(root)
	t, err := b.build(root)
	if err != nil {
		return nil, err
	}
	return &avroWriter{t}, nil
}

// avroBuilder makes types of the library's nodes.
type avroBuilder struct {
	defined map[string]*avro.SchemaNode // by full name
	built   map[string]*avroType        // by full name
}

// fullName is the name by which others refer to a type, "" for one without.
func fullName(n *avro.SchemaNode) string {
	if n.Namespace == "" || strings.Contains(n.Name, ".") {
		return n.Name
	}
	return n.Namespace + "." + n.Name
}

// collect notes the named types that are defined in a schema.
func (b *avroBuilder) collect(n *avro.SchemaNode) {
	if n == nil {
		return
	}
	if name := fullName(n); name != "" {
		if b.defined[name] != nil {
			return
		}
		b.defined[name] = n
	}
	for i := range n.Fields {
		b.collect(&n.Fields[i].Type)
	}
	for i := range n.Branches {
		b.collect(&n.Branches[i])
	}
	b.collect(n.Items)
	b.collect(n.Values)
}

func (b *avroBuilder) build(n *avro.SchemaNode) (*avroType, error) {
	name := fullName(n)
	if name != "" {
		if t := b.built[name]; t != nil {
			return t, nil
		}
	}
	t := &avroType{shaped: &shape{}}
	if name != "" {
		b.built[name] = t // before what is inside of it, which may be itself
	}
	var err error
	switch n.Type {
	case "record", "error":
		err = b.record(t, n)
	case "array", "map":
		err = b.container(t, n)
	case "union":
		err = b.union(t, n)
	case "enum":
		t.is, *t.shaped = avroEnum, shape{kind: word, name: "enum"}
		for _, symbol := range n.Symbols {
			t.words = append(t.words, quote(symbol))
		}
	case "fixed":
		t.fixed(n)
	case "null", "boolean", "int", "long", "float", "double", "bytes", "string":
		t.primitive(n)
	default:
		if defined := b.defined[n.Type]; defined != nil {
			return b.build(defined)
		}
		err = fmt.Errorf("it refers to %s, which is nowhere defined", n.Type)
	}
	return t, err
}

func (b *avroBuilder) record(t *avroType, n *avro.SchemaNode) error {
	t.is, *t.shaped = avroRecord, shape{kind: record, name: "record", fields: map[string]*shape{}}
	for i := range n.Fields {
		f := &n.Fields[i]
		inner, err := b.build(&f.Type)
		if err != nil {
			return err
		}
		t.fields = append(t.fields, avroField{f.Name, quote(f.Name), inner})
		t.shaped.fields[f.Name] = inner.shaped
	}
	return nil
}

func (b *avroBuilder) container(t *avroType, n *avro.SchemaNode) error {
	items := n.Items
	t.is, *t.shaped = avroArray, shape{kind: list, name: "array"}
	if n.Type == "map" {
		items = n.Values
		t.is, *t.shaped = avroMap, shape{kind: mapping, name: "map"}
	}
	inner, err := b.build(items)
	if err != nil {
		return err
	}
	t.elem, t.shaped.elem = inner, inner.shaped
	return nil
}

func (b *avroBuilder) union(t *avroType, n *avro.SchemaNode) error {
	t.is = avroUnion
	for i := range n.Branches {
		inner, err := b.build(&n.Branches[i])
		if err != nil {
			return err
		}
		t.union = append(t.union, inner)
		t.shaped.choices = append(t.shaped.choices, inner.shaped)
	}
	if len(t.union) == 0 {
		return errors.New("a union without branches")
	}
	return nil
}

// timeUnits are the units of logical types that count from 1970.
var timeUnits = map[string]time.Duration{"millis": time.Millisecond, "micros": time.Microsecond, "nanos": time.Nanosecond}

// primitive sets a type without a name. A logical type that the type can't have is none, as Avro says.
func (t *avroType) primitive(n *avro.SchemaNode) {
	plain := map[string]struct {
		is avroKind
		k  kind
	}{
		"null": {avroNull, nothing}, "boolean": {avroBool, flag}, "int": {avroInt, whole}, "long": {avroLong, whole},
		"float": {avroFloat, float}, "double": {avroDouble, float}, "bytes": {avroBytes, binaryText}, "string": {avroString, text},
	}[n.Type]
	t.is, *t.shaped = plain.is, shape{kind: plain.k, name: n.Type}
	switch logical := n.LogicalType; {
	case n.Type == "int" && logical == "date":
		t.is, *t.shaped = avroDate, shape{kind: date, name: "date"}
	case n.Type == "int" && logical == "time-millis":
		t.is, *t.shaped = avroTimeMillis, shape{kind: word, name: "time-millis"}
	case n.Type == "long" && logical == "time-micros":
		t.is, *t.shaped = avroTimeMicros, shape{kind: word, name: "time-micros"}
	case n.Type == "long" && strings.HasPrefix(logical, "timestamp-") && timeUnits[logical[len("timestamp-"):]] != 0:
		t.is, t.unit, *t.shaped = avroInstant, timeUnits[logical[len("timestamp-"):]], shape{kind: moment, name: logical}
	case n.Type == "long" && strings.HasPrefix(logical, "local-timestamp-") && timeUnits[logical[len("local-timestamp-"):]] != 0:
		t.is, t.unit, *t.shaped = avroLocal, timeUnits[logical[len("local-timestamp-"):]], shape{kind: word, name: logical}
	case n.Type == "bytes" && logical == "decimal":
		t.decimal(avroDecimal, n)
	}
}

func (t *avroType) fixed(n *avro.SchemaNode) {
	t.is, t.size, *t.shaped = avroFixed, n.Size, shape{kind: binaryText, name: "fixed"}
	switch {
	case n.LogicalType == "decimal":
		t.decimal(avroFixedDecimal, n)
	case n.LogicalType == "uuid" && n.Size == 16:
		t.is, *t.shaped = avroFixedUUID, shape{kind: word, name: "uuid"}
	}
}

func (t *avroType) decimal(is avroKind, n *avro.SchemaNode) {
	t.is, t.scale = is, n.Scale
	*t.shaped = shape{kind: decimal, name: fmt.Sprintf("decimal(%d,%d)", n.Precision, n.Scale), precision: n.Precision, scale: n.Scale}
}

func (w *avroWriter) writer(event []byte) (writer, []byte, error) { return w, event, nil }

func (w *avroWriter) named(string) (writer, error) { return w, nil }

func (w *avroWriter) shape() *shape { return w.root.shaped }

func (w *avroWriter) json(dst, event []byte) ([]byte, error) {
	r := &avroReader{in: event, out: dst}
	if err := r.value(w.root, 0); err != nil {
		return nil, err
	}
	if len(r.in) > 0 {
		return nil, fmt.Errorf("%d bytes are left behind the event", len(r.in))
	}
	if len(r.out) > jsonBytesMax {
		return nil, errTooLarge
	}
	return r.out, nil
}

// avroReader reads values from in and writes them to out.
type avroReader struct {
	in, out []byte
}

// within puts the name of a field before what is wrong inside of it.
func within(name string, err error) error {
	if err == nil || errors.Is(err, errTooLarge) || errors.Is(err, errDeep) {
		return err
	}
	var path fieldError
	if errors.As(err, &path) {
		return fieldError{name + "." + path.field, path.error}
	}
	return fieldError{name, err}
}

type fieldError struct {
	field string
	error
}

func (e fieldError) Error() string { return e.field + ": " + e.error.Error() }

func (e fieldError) Unwrap() error { return e.error }

func (r *avroReader) value(t *avroType, depth int) error {
	switch {
	case len(r.out) > jsonBytesMax:
		return errTooLarge
	case depth > depthMax:
		return errDeep
	}
	switch t.is {
	case avroNull:
		r.out = append(r.out, "null"...)
		return nil
	case avroRecord:
		return r.record(t, depth)
	case avroArray, avroMap:
		return r.blocks(t, depth)
	case avroUnion, avroEnum:
		choices := max(len(t.union), len(t.words))
		i, err := r.long()
		if err != nil {
			return err
		}
		if i < 0 || i >= int64(choices) {
			return fmt.Errorf("choice %d of %d", i, choices)
		}
		if t.is == avroUnion {
			return r.value(t.union[i], depth+1)
		}
		r.out = append(r.out, t.words[i]...)
		return nil
	case avroBytes, avroString, avroDecimal, avroFixed, avroFixedDecimal, avroFixedUUID:
		return r.bytes(t)
	default:
		return r.scalar(t)
	}
}

func (r *avroReader) record(t *avroType, depth int) error {
	r.out = append(r.out, '{')
	for i := range t.fields {
		f := &t.fields[i]
		if i > 0 {
			r.out = append(r.out, ',')
		}
		r.out = append(append(r.out, f.quoted...), ':')
		if err := r.value(f.t, depth+1); err != nil {
			return within(f.name, err)
		}
	}
	r.out = append(r.out, '}')
	return nil
}

// blocks reads the items of an array or a map, which come in blocks of so many each until one of none.
func (r *avroReader) blocks(t *avroType, depth int) error {
	open, shut := byte('['), byte(']')
	if t.is == avroMap {
		open, shut = '{', '}'
	}
	r.out = append(r.out, open)
	for first := true; ; {
		count, err := r.long()
		if err != nil {
			return err
		}
		if count < 0 { // the block's length in bytes follows, for those who want to skip it
			if count == math.MinInt64 {
				return errors.New("a block of no possible length")
			}
			count = -count
			if _, err := r.long(); err != nil {
				return err
			}
		}
		if count == 0 {
			r.out = append(r.out, shut)
			return nil
		}
		for ; count > 0; count-- {
			if !first {
				r.out = append(r.out, ',')
			}
			first = false
			if t.is == avroMap {
				if err := r.bytes(&avroType{is: avroString}); err != nil {
					return err
				}
				r.out = append(r.out, ':')
			}
			if err := r.value(t.elem, depth+1); err != nil {
				return err
			}
		}
	}
}

// take gives the next n bytes.
func (r *avroReader) take(n int64) ([]byte, error) {
	if n < 0 || n > int64(len(r.in)) {
		return nil, errShort
	}
	b := r.in[:n]
	r.in = r.in[n:]
	return b, nil
}

func (r *avroReader) long() (int64, error) {
	v, n := binary.Varint(r.in)
	if n <= 0 {
		return 0, errShort
	}
	r.in = r.in[n:]
	return v, nil
}

// decimalBytesMax bounds a decimal: what is longer is no column's.
const decimalBytesMax = 256

func (r *avroReader) bytes(t *avroType) error {
	size := int64(t.size)
	if t.is == avroBytes || t.is == avroString || t.is == avroDecimal {
		var err error
		if size, err = r.long(); err != nil {
			return err
		}
	}
	b, err := r.take(size)
	if err != nil {
		return err
	}
	switch t.is {
	case avroString:
		if len(b)+len(r.out) > jsonBytesMax {
			return errTooLarge
		}
		r.out, err = appendText(r.out, b)
		return err
	case avroDecimal, avroFixedDecimal:
		if len(b) > decimalBytesMax {
			return fmt.Errorf("a decimal of %d bytes", len(b))
		}
		r.out = appendDecimal(r.out, bigEndian(b), t.scale)
		return nil
	case avroFixedUUID:
		id, err := uuid.FromBytes(b)
		if err != nil {
			return err
		}
		r.out = append(r.out, quote(id.String())...)
		return nil
	default:
		r.out = appendBase64(r.out, b)
		return nil
	}
}

// scalar reads a value of one fixed length, or a whole number.
func (r *avroReader) scalar(t *avroType) error {
	switch t.is {
	case avroBool:
		b, err := r.take(1)
		if err != nil {
			return err
		}
		if b[0] > 1 {
			return errors.New("a boolean that is neither true nor false")
		}
		r.out = strconv.AppendBool(r.out, b[0] == 1)
		return nil
	case avroFloat:
		b, err := r.take(4)
		if err != nil {
			return err
		}
		r.out = appendFloat(r.out, float64(math.Float32frombits(binary.LittleEndian.Uint32(b))))
		return nil
	case avroDouble:
		b, err := r.take(8)
		if err != nil {
			return err
		}
		r.out = appendFloat(r.out, math.Float64frombits(binary.LittleEndian.Uint64(b)))
		return nil
	}
	v, err := r.long()
	if err != nil {
		return err
	}
	if (t.is == avroInt || t.is == avroDate || t.is == avroTimeMillis) && int64(int32(v)) != v {
		return errors.New("an int of more than 32 bits")
	}
	switch t.is {
	case avroDate:
		r.out = time.Unix(v*86400, 0).UTC().AppendFormat(r.out, `"`+time.DateOnly+`"`)
	case avroTimeMillis:
		return r.timeOfDay(v, time.Millisecond)
	case avroTimeMicros:
		return r.timeOfDay(v, time.Microsecond)
	case avroInstant:
		r.out = since1970(v, t.unit).AppendFormat(r.out, `"`+time.RFC3339Nano+`"`)
	case avroLocal:
		r.out = since1970(v, t.unit).AppendFormat(r.out, `"2006-01-02T15:04:05.999999999"`)
	default:
		r.out = strconv.AppendInt(r.out, v, 10)
	}
	return nil
}

func (r *avroReader) timeOfDay(v int64, unit time.Duration) error {
	if v < 0 || v >= int64(24*time.Hour/unit) {
		return errors.New("a time of day beyond the day")
	}
	r.out = since1970(v, unit).AppendFormat(r.out, `"15:04:05.999999"`)
	return nil
}

// since1970 is the time so many units after 1970.
func since1970(v int64, unit time.Duration) time.Time {
	perSecond := int64(time.Second / unit)
	return time.Unix(v/perSecond, v%perSecond*int64(unit)).UTC()
}

func quote(s string) []byte {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic(err) // names in schemas are UTF-8: their text is JSON
	}
	return b
}

// appendText writes text as JSON.
func appendText(b, s []byte) ([]byte, error) {
	if !utf8.Valid(s) {
		return b, errUTF8
	}
	return jsontext.AppendQuote(b, s)
}

func appendBase64(b, v []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// appendFloat writes a number, or as text one that JSON lacks: a column of numbers refuses it.
func appendFloat(b []byte, v float64) []byte {
	switch {
	case v != v:
		return append(b, `"NaN"`...)
	case math.IsInf(v, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(b, `"-Infinity"`...)
	}
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(b, v, 'e', -1, 64)
	}
	return strconv.AppendFloat(b, v, 'f', -1, 64) // as most that write JSON do
}

// appendDecimal writes unscaled x 10^-scale with all of its digits.
func appendDecimal(b []byte, unscaled *big.Int, scale int) []byte {
	if unscaled.Sign() < 0 {
		b = append(b, '-')
	}
	digits := new(big.Int).Abs(unscaled).String()
	if scale <= 0 {
		return append(append(b, digits...), strings.Repeat("0", -scale)...)
	}
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	point := len(digits) - scale
	return append(append(append(b, digits[:point]...), '.'), digits[point:]...)
}

// bigEndian reads a two's complement number.
func bigEndian(b []byte) *big.Int {
	v := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	return v
}
