package online

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
)

// Feast's layout, with entity_key_serialization_version 3. The source is serialize_entity_key in
// feast/infra/key_encoding_utils.py, _redis_key in feast/infra/online_stores/helpers.py, and feast/types/Value.proto; the
// specification in Feast's docs tells of an older one. Integers in keys are little endian.

// Types of values in keys, feast.types.ValueType.
const (
	feastString = 2
	feastInt64  = 4
)

// Tags of the fields of a feast.types.Value: number << 3 | wire type.
const (
	feastStringTag = 2<<3 | 2
	feastInt64Tag  = 4<<3 | 0
	feastDoubleTag = 5<<3 | 1
	feastBoolTag   = 7<<3 | 0
	feastUnixTag   = 8<<3 | 0 // seconds since 1970
)

// feastKey is the key of an entity's hash. names are its join keys in order, kinds and values theirs, the values as text. What
// isn't the number that it should be is written as a string, which no writer does.
func feastKey(project string, names []string, kinds []feature.Kind, values []string) string {
	b := appendCount(nil, len(names))
	for _, name := range names {
		b = binary.LittleEndian.AppendUint32(b, feastString)
		b = append(appendCount(b, len(name)), name...)
	}
	for i, value := range values {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && kinds[i] == feature.Int64 {
			b = binary.LittleEndian.AppendUint32(b, feastInt64)
			b = binary.LittleEndian.AppendUint64(appendCount(b, 8), uint64(n))
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, feastString)
		b = append(appendCount(b, len(value)), value...)
	}
	return string(append(b, project...))
}

func appendCount(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }

// feastKeyOf reports whether a key is one of the project in Feast's layout.
func feastKeyOf(project, key string) bool {
	rest := key
	number := func() (n uint32) {
		if len(rest) < 4 {
			rest = ""
			return math.MaxUint32
		}
		n, rest = binary.LittleEndian.Uint32([]byte(rest)), rest[4:]
		return n
	}
	count := number()
	if count == 0 || uint64(count)*8 > uint64(len(rest)) {
		return false
	}
	for range 2 * count { // names, then values
		number() // the type
		n := number()
		if uint64(n) > uint64(len(rest)) {
			return false
		}
		rest = rest[n:]
	}
	return rest == project
}

// appendFeastTime appends a google.protobuf.Timestamp.
func appendFeastTime(b []byte, us int64) []byte {
	seconds, nanos := us/1_000_000, us%1_000_000*1000
	if nanos < 0 {
		seconds, nanos = seconds-1, nanos+1_000_000_000
	}
	if seconds != 0 {
		b = binary.AppendUvarint(append(b, 1<<3), uint64(seconds))
	}
	if nanos != 0 {
		b = binary.AppendUvarint(append(b, 2<<3), uint64(nanos))
	}
	return b
}

var errNotFeast = errors.New("it is not in Feast's layout")

// feastTime reads what appendFeastTime wrote, in microseconds since 1970.
func feastTime(text string) (int64, error) {
	var parts [3]int64
	for len(text) > 0 {
		field, n := text[0]>>3, 0
		var v uint64
		if v, n = binary.Uvarint([]byte(text[1:])); n <= 0 || text[0]&7 != 0 || field == 0 || field > 2 {
			return 0, errNotFeast
		}
		parts[field], text = int64(v), text[1+n:]
	}
	return parts[1]*1_000_000 + parts[2]/1000, nil
}

// appendFeastValue appends a value as a feast.types.Value. Feast has no field for a null, whose value is empty.
func appendFeastValue(b []byte, column arrow.Array, row int) []byte {
	switch c := column.(type) {
	case *array.String:
		b = binary.AppendUvarint(append(b, feastStringTag), uint64(len(c.Value(row))))
		return append(b, c.Value(row)...)
	case *array.Int64:
		return binary.AppendUvarint(append(b, feastInt64Tag), uint64(c.Value(row)))
	case *array.Float64:
		return binary.LittleEndian.AppendUint64(append(b, feastDoubleTag), math.Float64bits(c.Value(row)))
	case *array.Boolean:
		if c.Value(row) {
			return append(b, feastBoolTag, 1)
		}
		return append(b, feastBoolTag, 0)
	case *array.Date32:
		return binary.AppendUvarint(append(b, feastUnixTag), uint64(int64(c.Value(row))*86400))
	default:
		panic(fmt.Sprintf("no feature in Feast's layout is %s", column.DataType()))
	}
}

// feastText is a value that appendFeastValue wrote as text, as loam's own layout has it.
func feastText(t feature.Type, value string) (string, error) {
	tag, rest := value[0], value[1:]
	number, n := binary.Uvarint([]byte(rest))
	whole := n > 0 && n == len(rest)
	switch {
	case tag == feastStringTag && (t.Kind == feature.String || t.Kind == feature.JSON) && n > 0 && number == uint64(len(rest)-n):
		return rest[n:], nil
	case tag == feastInt64Tag && t.Kind == feature.Int64 && whole:
		return strconv.FormatInt(int64(number), 10), nil
	case tag == feastDoubleTag && t.Kind == feature.Double && len(rest) == 8:
		return strconv.FormatFloat(math.Float64frombits(binary.LittleEndian.Uint64([]byte(rest))), 'g', -1, 64), nil
	case tag == feastBoolTag && t.Kind == feature.Bool && whole && number <= 1:
		return strconv.FormatBool(number == 1), nil
	case tag == feastUnixTag && t.Kind == feature.Date && whole && int64(number)%86400 == 0:
		return time.Unix(int64(number), 0).UTC().Format(dateFormat), nil
	}
	return "", fmt.Errorf("a value of type %s: %w", t, errNotFeast)
}

// generationDigits are the digits of the generation behind the order in a guard of Feast's layout, so that a guard has 64 digits
// at most: a longer value would make Redis keep the hash as a table.
const (
	generationDigits = 4
	generationMax    = 1<<(4*generationDigits) - 1
)

// feastGuard is the guard of a change that is written as part of a generation. Guards compare as text: of one change the newest
// generation's is the greatest.
func feastGuard(o feature.Order, generation int64) string {
	return fmt.Sprintf("%s%0*x", o, generationDigits, generation)
}

// ParseFeastGuard reads the guard of a view in Feast's layout.
func ParseFeastGuard(text string) (feature.Order, int64, error) {
	digits := len(text) - generationDigits // of the order
	if digits < feature.OrderDigits {
		return feature.Order{}, 0, fmt.Errorf("%q is not a guard: want an order and %d lower-case hexadecimal digits more", text, generationDigits)
	}
	order, err := feature.ParseOrder(text[:digits])
	if err != nil {
		return order, 0, err
	}
	generation, err := strconv.ParseInt(text[digits:], 16, 64)
	if err != nil || strings.ToLower(text) != text {
		return order, 0, fmt.Errorf("%q is not a guard: its last digits are no generation", text)
	}
	return order, generation, nil
}

// feastView is a view in Feast's layout.
type feastView struct {
	project  string
	names    []string       // join keys, in order
	kinds    []feature.Kind // theirs
	guard    string         // field of its guard
	time     string         // field of its event time
	features map[string]string
	fields   []string // of its features, in declared order
}

func newFeastView(project string, view *feature.View, entity *feature.Entity, stream *feature.Stream) *feastView {
	f := &feastView{
		project: project, names: joinKeys(entity), guard: feature.FeastGuardPrefix + view.Name, time: feature.FeastTimePrefix + view.Name,
		features: map[string]string{},
	}
	for _, k := range f.names {
		c, _ := stream.Column(k)
		f.kinds = append(f.kinds, c.Type.Kind)
	}
	for _, one := range view.Features {
		f.features[one.Name] = feature.FeastField(view.Name, one.Name)
		f.fields = append(f.fields, f.features[one.Name])
	}
	return f
}

func (f *feastView) key(values []string) string { return feastKey(f.project, f.names, f.kinds, values) }

// all are the fields of the view but its guard, those of the further features included.
func (f *feastView) all(view string, further []string) []string {
	fields := append([]string{f.time}, f.fields...)
	for _, name := range further {
		if field := feature.FeastField(view, name); !slices.Contains(fields, field) {
			fields = append(fields, field)
		}
	}
	return fields
}
