package online

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/numeric"
)

// A value of a column stands in tiles as bytes: whole numbers, bools as 0 and 1, dates, timestamps and unscaled decimals as
// two's complement, high byte first, in as few bytes as hold it, none for 0; doubles as 8 bytes of IEEE 754; text as it is.
// The format is frozen.

// cell gives the value of a row as it stands in tiles; false where it is null. Of what can only be counted it is "".
func cell(column arrow.Array, row int) (string, bool) {
	if column.IsNull(row) {
		return "", false
	}
	switch c := column.(type) {
	case *array.String:
		return strings.Clone(c.Value(row)), true
	case *array.Int64:
		return wholeBytes(c.Value(row)), true
	case *array.Timestamp:
		return wholeBytes(int64(c.Value(row))), true
	case *array.Date32:
		return wholeBytes(int64(c.Value(row))), true
	case *array.Boolean:
		if c.Value(row) {
			return wholeBytes(1), true
		}
		return wholeBytes(0), true
	case *array.Float64:
		return doubleBytes(c.Value(row)), true
	case *array.Decimal128:
		v := c.Value(row)
		return wideText(numeric.WideOf(v.LowBits(), v.HighBits())), true
	case *array.List:
		return "", true
	default:
		panic(fmt.Sprintf("no column of loam is %s", column.DataType()))
	}
}

func wholeBytes(v int64) string { return wideText(numeric.WideOf(uint64(v), v>>63)) }

func doubleBytes(v float64) string {
	return string(binary.BigEndian.AppendUint64(nil, math.Float64bits(v)))
}

// checkCell reports whether bytes can be a value of the type.
func checkCell(t feature.Type, text string) bool {
	switch t.Kind {
	case feature.Double:
		return len(text) == 8
	case feature.String, feature.JSON:
		return true
	case feature.Decimal:
		return len(text) <= 16
	default:
		return len(text) <= 8
	}
}

func doubleOf(text string) float64 {
	return math.Float64frombits(binary.BigEndian.Uint64([]byte(text)))
}

// compareCells orders values of a type: doubles as DuckDB does, where NaN is the greatest and of the zeros the negative is
// lower; text by its bytes.
func compareCells(t feature.Type, a, b string) int {
	switch t.Kind {
	case feature.String, feature.JSON:
		return cmp.Compare(a, b)
	case feature.Double:
		return numeric.CompareDoubles(doubleOf(a), doubleOf(b))
	default:
		return readWide(a).Compare(readWide(b))
	}
}

// distinctCell makes one of values that count as the same: all NaNs, and both zeros.
func distinctCell(t feature.Type, text string) string {
	if t.Kind != feature.Double {
		return text
	}
	return doubleBytes(numeric.SameDouble(doubleOf(text)))
}

// cellText is a value as features are written.
func cellText(t feature.Type, text string) string {
	switch t.Kind {
	case feature.String, feature.JSON:
		return text
	case feature.Double:
		return doubleText(doubleOf(text))
	}
	w := readWide(text)
	if t.Kind == feature.Decimal {
		return decimal128.New(int64(w[1]), w[0]).ToString(t.Scale)
	}
	v := int64(w[0])
	switch t.Kind {
	case feature.Bool:
		return strconv.FormatBool(v != 0)
	case feature.Timestamp:
		return time.UnixMicro(v).UTC().Format(timeFormat)
	case feature.Date:
		return time.Unix(v*86400, 0).UTC().Format(dateFormat)
	default:
		return strconv.FormatInt(v, 10)
	}
}

func doubleText(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// wideBytes is how many bytes the greatest wide takes.
const wideBytes = 24

// wideText is the number in two's complement, high byte first, in as few bytes as hold it: none for 0.
func wideText(w numeric.Wide) string {
	if w == (numeric.Wide{}) {
		return ""
	}
	var all [wideBytes]byte
	for i, word := range w {
		binary.BigEndian.PutUint64(all[wideBytes-8-8*i:], word)
	}
	from := 0
	for from < wideBytes-1 && (all[from] == 0 && all[from+1] < 0x80 || all[from] == 0xff && all[from+1] >= 0x80) {
		from++
	}
	return string(all[from:])
}

// readWide reads what wideText wrote, of wideBytes at most.
func readWide(text string) numeric.Wide {
	var all [wideBytes]byte
	if text != "" && text[0] >= 0x80 {
		for i := range all {
			all[i] = 0xff
		}
	}
	copy(all[wideBytes-len(text):], text)
	var w numeric.Wide
	for i := range w {
		w[i] = binary.BigEndian.Uint64(all[wideBytes-8-8*i:])
	}
	return w
}
