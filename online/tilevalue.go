package online

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"

	"github.com/loamdata/loam/feature"
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
		return wideOf(v.LowBits(), v.HighBits()).bytes(), true
	case *array.List:
		return "", true
	default:
		panic(fmt.Sprintf("no column of loam is %s", column.DataType()))
	}
}

func wholeBytes(v int64) string { return wideOf(uint64(v), v>>63).bytes() }

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
		x, y := doubleOf(a), doubleOf(b)
		switch {
		case math.IsNaN(x) || math.IsNaN(y):
			return truth(math.IsNaN(x)) - truth(math.IsNaN(y))
		case x == y:
			return truth(math.Signbit(y)) - truth(math.Signbit(x))
		}
		return cmp.Compare(x, y)
	default:
		return readWide(a).compare(readWide(b))
	}
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// distinctCell makes one of values that count as the same: all NaNs, and both zeros.
func distinctCell(t feature.Type, text string) string {
	if t.Kind != feature.Double {
		return text
	}
	switch v := doubleOf(text); {
	case v == 0:
		return doubleBytes(0)
	case math.IsNaN(v):
		return doubleBytes(math.NaN())
	}
	return text
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

// wide is a signed integer of 192 bits, low word first: any number of 128-bit decimals adds up in it.
type wide [3]uint64

func wideOf(low uint64, high int64) wide { return wide{low, uint64(high), uint64(high >> 63)} }

func (w *wide) add(o wide) {
	var carry uint64
	w[0], carry = bits.Add64(w[0], o[0], 0)
	w[1], carry = bits.Add64(w[1], o[1], carry)
	w[2], _ = bits.Add64(w[2], o[2], carry)
}

func (w wide) compare(o wide) int {
	return cmp.Or(cmp.Compare(int64(w[2]), int64(o[2])), cmp.Compare(w[1], o[1]), cmp.Compare(w[0], o[0]))
}

// wideBytes is how many bytes the greatest wide takes.
const wideBytes = 24

// bytes is the number in two's complement, high byte first, in as few bytes as hold it: none for 0.
func (w wide) bytes() string {
	if w == (wide{}) {
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

// readWide reads what bytes wrote, of wideBytes at most.
func readWide(text string) wide {
	var all [wideBytes]byte
	if text != "" && text[0] >= 0x80 {
		for i := range all {
			all[i] = 0xff
		}
	}
	copy(all[wideBytes-len(text):], text)
	var w wide
	for i := range w {
		w[i] = binary.BigEndian.Uint64(all[wideBytes-8-8*i:])
	}
	return w
}

// int64 gives the number where it fits.
func (w wide) int64() (int64, bool) {
	sign := uint64(int64(w[0]) >> 63)
	return int64(w[0]), w[1] == sign && w[2] == sign
}

// decimal gives the number where it has 38 digits at most.
func (w wide) decimal() (decimal128.Num, bool) {
	n := decimal128.New(int64(w[1]), w[0])
	return n, w[2] == uint64(int64(w[1])>>63) && n.FitsInPrecision(38)
}

func (w wide) float64() float64 {
	if n, ok := w.int64(); ok {
		return float64(n)
	}
	n := new(big.Int).SetUint64(w[2])
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(w[1]))
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(w[0]))
	if int64(w[2]) < 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), 192))
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return f
}
