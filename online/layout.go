package online

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/loamdata/loam/feature"
)

// Fields of an entity's hash besides its features, which are numbers: featureField.
const (
	fieldOrder   = "_v" // feature.Order as text, which begins with the event time
	fieldDeleted = "_d" // "1" in a tombstone; of a patch stream the order of the last delete, as text
	// fieldGuard begins the fields of a patch stream's columns: the order of the last change that carried the column.
	fieldGuard = "_v:"
)

// generationsKey is the key of the hash that tells of all generations of a view.
func generationsKey(project, view string) string { return project + ":" + view + ":generations" }

// featureField is the field of a view's feature, by its number in the view. A name in each hash of millions would take
// more than the values: the generation says the names once. A view whose features stand in another order has another
// definition.
func featureField(feature int) string { return strconv.Itoa(feature) }

// keyPrefix begins the keys of all entities of a generation.
func keyPrefix(project, view string, generation int64) string {
	return fmt.Sprintf("%s:%s:%d:", project, view, generation)
}

// entityKey is the key of an entity's hash. values are its join keys as text, in the order of their names. The braces
// keep all of an entity in one slot of a cluster.
func entityKey(prefix, entity string, values []string) string {
	return prefix + entityText(entity, values)
}

// entityText is an entity as it stands in keys, in its braces.
func entityText(entity string, values []string) string {
	var b strings.Builder
	b.WriteByte('{')
	b.WriteString(entity)
	for _, v := range values {
		b.WriteByte('|')
		escape(&b, v)
	}
	b.WriteByte('}')
	return b.String()
}

// escape writes a join key's value so that the key can be told apart again: %, |, { and } become %25, %7C, %7B and %7D.
func escape(b *strings.Builder, v string) {
	if !strings.ContainsAny(v, "%|{}") {
		b.WriteString(v)
		return
	}
	for i := range len(v) {
		switch c := v[i]; c {
		case '%', '|', '{', '}':
			fmt.Fprintf(b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
}

// joinKeys are an entity's join keys in the order in which they stand in keys: by name.
func joinKeys(e *feature.Entity) []string { return slices.Sorted(slices.Values(e.JoinKeys)) }

// Formats of times in values.
const (
	timeFormat = "2006-01-02T15:04:05.000000Z"
	dateFormat = time.DateOnly
)

// appendValue appends a feature's value as text: numbers in decimal, doubles in the fewest digits that read back the same,
// bools as true and false, times as RFC 3339 in microseconds, dates as YYYY-MM-DD, lists as JSON of the same.
func appendValue(b []byte, column arrow.Array, row int) []byte {
	switch c := column.(type) {
	case *array.String:
		return append(b, c.Value(row)...)
	case *array.Int64:
		return strconv.AppendInt(b, c.Value(row), 10)
	case *array.Float64:
		return strconv.AppendFloat(b, c.Value(row), 'g', -1, 64)
	case *array.Boolean:
		return strconv.AppendBool(b, c.Value(row))
	case *array.Timestamp:
		return time.UnixMicro(int64(c.Value(row))).UTC().AppendFormat(b, timeFormat)
	case *array.Date32:
		return time.Unix(int64(c.Value(row))*86400, 0).UTC().AppendFormat(b, dateFormat)
	case *array.Decimal128:
		scale := c.DataType().(*arrow.Decimal128Type).Scale
		return append(b, c.Value(row).ToString(scale)...)
	case *array.List:
		return appendList(b, c, row)
	default:
		panic(fmt.Sprintf("no feature of loam is %s", column.DataType()))
	}
}

func appendList(b []byte, c *array.List, row int) []byte {
	from, to := c.ValueOffsets(row)
	elements := c.ListValues()
	b = append(b, '[')
	for i := from; i < to; i++ {
		if i > from {
			b = append(b, ',')
		}
		if elements.IsNull(int(i)) {
			b = append(b, "null"...)
			continue
		}
		text := appendValue(nil, elements, int(i))
		switch e := elements.(type) {
		case *array.Int64, *array.Boolean:
			b = append(b, text...)
		case *array.Float64:
			if v := e.Value(int(i)); math.IsNaN(v) || math.IsInf(v, 0) {
				text, _ = json.Marshal(string(text))
			}
			b = append(b, text...)
		default:
			quoted, err := json.Marshal(string(text))
			if err != nil {
				panic(err) // strings always encode
			}
			b = append(b, quoted...)
		}
	}
	return append(b, ']')
}

// keyText is a join key's value as it stands in keys, before it is escaped.
func keyText(column arrow.Array, row int) string { return string(appendValue(nil, column, row)) }

// Value is a feature's value as it was read.
type Value struct {
	Type feature.Type
	Text string // as stored; meaningless where Null
	Null bool
}

// JSON is the value as JSON: numbers and bools as such, decimals, dates and times as strings, json and lists as what they
// hold. Doubles that JSON lacks are strings.
func (v Value) JSON() json.RawMessage { return v.AppendJSON(nil) }

// AppendJSON appends what [Value.JSON] gives.
func (v Value) AppendJSON(b []byte) []byte {
	bare := false
	switch {
	case v.Null:
		return append(b, "null"...)
	case v.Type.List, v.Type.Kind == feature.JSON:
		bare = json.Valid([]byte(v.Text))
	case v.Type.Kind == feature.Int64, v.Type.Kind == feature.Bool:
		bare = true
	case v.Type.Kind == feature.Double:
		bare = number(v.Text)
	}
	if bare {
		return append(b, v.Text...)
	}
	return appendQuoted(b, v.Text)
}

// appendQuoted appends text as a JSON string.
func appendQuoted(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(text)
			if err != nil {
				panic(err) // strings always encode
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}
