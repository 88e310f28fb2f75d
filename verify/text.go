package verify

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// valueText is a value as the layout in Redis has it, docs/redis.md: whole numbers and decimals in decimal digits, doubles
// in the fewest digits that read back the same, times as RFC 3339 in microseconds, lists as JSON. It must not be null.
func valueText(column arrow.Array, row int) string {
	switch c := column.(type) {
	case *array.String:
		return strings.Clone(c.Value(row)) // outlive the batch
	case *array.Boolean:
		if c.Value(row) {
			return "true"
		}
		return "false"
	case *array.Int64:
		return strconv.FormatInt(c.Value(row), 10)
	case *array.Float64:
		return strconv.FormatFloat(c.Value(row), 'g', -1, 64)
	case *array.Decimal128:
		return decimalText(c.Value(row).BigInt().String(), int(c.DataType().(*arrow.Decimal128Type).Scale))
	case *array.Timestamp:
		return time.UnixMicro(int64(c.Value(row))).UTC().Format("2006-01-02T15:04:05.000000Z07:00")
	case *array.Date32:
		return c.Value(row).ToTime().UTC().Format("2006-01-02")
	case *array.List:
		return listText(c, row)
	default:
		panic(fmt.Sprintf("no column of loam is %s", column.DataType()))
	}
}

// decimalText puts the point into the digits of an unscaled decimal.
func decimalText(digits string, scale int) string {
	sign := ""
	if rest, negative := strings.CutPrefix(digits, "-"); negative {
		sign, digits = "-", rest
	}
	if scale == 0 {
		return sign + digits
	}
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	point := len(digits) - scale
	return sign + digits[:point] + "." + digits[point:]
}

// listText is a list as JSON: numbers and bools as such, everything else, and doubles that JSON lacks, in quotes.
func listText(c *array.List, row int) string {
	elements := c.ListValues()
	from, to := c.ValueOffsets(row)
	items := make([]string, 0, to-from)
	for i := int(from); i < int(to); i++ {
		item := "null"
		if elements.IsValid(i) {
			item = valueText(elements, i)
			if !bare(elements, i) {
				quoted, err := json.Marshal(item)
				if err != nil {
					panic(err) // text always encodes
				}
				item = string(quoted)
			}
		}
		items = append(items, item)
	}
	return "[" + strings.Join(items, ",") + "]"
}

// bare reports whether an element of a list stands without quotes.
func bare(elements arrow.Array, i int) bool {
	switch e := elements.(type) {
	case *array.Int64, *array.Boolean:
		return true
	case *array.Float64:
		return !math.IsNaN(e.Value(i)) && !math.IsInf(e.Value(i), 0)
	default:
		return false
	}
}
