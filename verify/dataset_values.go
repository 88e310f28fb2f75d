package verify

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/big"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// arrowValue is a value as columnValues gives them.
func arrowValue(column arrow.Array, i int) any {
	if column.IsNull(i) {
		return nil
	}
	switch c := column.(type) {
	case *array.Boolean:
		return c.Value(i)
	case *array.Int64:
		return c.Value(i)
	case *array.Int32:
		return int64(c.Value(i))
	case *array.Float64:
		return c.Value(i)
	case *array.Decimal128:
		return c.Value(i).BigInt()
	case *array.String:
		return strings.Clone(c.Value(i)) // outlive the batch
	case *array.Timestamp:
		return int64(c.Value(i))
	case *array.Date32:
		return int64(c.Value(i))
	case *array.List:
		list := []any{}
		from, to := c.ValueOffsets(i)
		for e := from; e < to; e++ {
			list = append(list, arrowValue(c.ListValues(), int(e)))
		}
		return list
	default:
		panic(fmt.Sprintf("no column of loam is %s", column.DataType()))
	}
}

func appendArrow(b array.Builder, v any) {
	if v == nil {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.BooleanBuilder:
		b.Append(v.(bool))
	case *array.Int64Builder:
		b.Append(v.(int64))
	case *array.Float64Builder:
		b.Append(v.(float64))
	case *array.Decimal128Builder:
		b.Append(decimal128.FromBigInt(v.(*big.Int)))
	case *array.StringBuilder:
		b.Append(v.(string))
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(v.(int64)))
	case *array.Date32Builder:
		b.Append(arrow.Date32(v.(int64)))
	case *array.ListBuilder:
		b.Append(true)
		for _, e := range v.([]any) {
			appendArrow(b.ValueBuilder(), e)
		}
	default:
		panic(fmt.Sprintf("no column of loam is %s", b.Type()))
	}
}

// evaluate gives the values of expressions over the columns of rows, by the rows' numbers: DuckDB is their one engine.
func (v *viewCheck) evaluate(ctx context.Context, rows []*logged, expressions []sql.Fragment) (map[int][]any, error) {
	fields := feature.ArrowSchema(append([]feature.Column{{Name: "loam_number", Type: feature.Type{Kind: feature.Int64}}}, v.stream.Columns...))
	b := array.NewRecordBuilder(memory.DefaultAllocator, fields)
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(r.number))
		for i, value := range r.values {
			appendArrow(b.Field(i+1), value)
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	if err := v.db.ImportBatches(ctx, "chosen", fields, []arrow.RecordBatch{batch}); err != nil {
		return nil, err
	}
	items := append([]sql.Fragment{"loam_number"}, expressions...)
	values := map[int][]any{}
	err := v.db.Arrow(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM chosen", func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				row := make([]any, len(expressions))
				for n := range row {
					row[n] = arrowValue(batch.Column(n+1), i)
				}
				values[int(batch.Column(0).(*array.Int64).Value(i))] = row
			}
		}
		return nil
	})
	return values, err
}

// sameValue reports whether two values are the same, doubles no farther from each other than near.
func sameValue(a, b any, near float64) bool {
	switch a := a.(type) {
	case *big.Int:
		other, ok := b.(*big.Int)
		return ok && a.Cmp(other) == 0
	case float64:
		other, ok := b.(float64)
		return ok && (a == other || math.IsNaN(a) && math.IsNaN(other) || math.Abs(a-other) <= near)
	case []any:
		other, ok := b.([]any)
		if !ok || len(a) != len(other) {
			return false
		}
		for i := range a {
			if !sameValue(a[i], other[i], near) {
				return false
			}
		}
		return true
	default:
		return a == b
	}
}

// compareValues orders two values of one type; NaN is greatest.
func compareValues(a, b any) int {
	switch a := a.(type) {
	case int64:
		return cmp.Compare(a, b.(int64))
	case float64:
		other := b.(float64)
		switch {
		case math.IsNaN(a) && math.IsNaN(other):
			return 0
		case math.IsNaN(a):
			return 1
		case math.IsNaN(other):
			return -1
		}
		return cmp.Compare(a, other)
	case string:
		return cmp.Compare(a, b.(string))
	case *big.Int:
		return a.Cmp(b.(*big.Int))
	case bool:
		switch {
		case a == b.(bool):
			return 0
		case a:
			return 1
		}
		return -1
	default:
		panic(fmt.Sprintf("values of %T have no order", a))
	}
}

// showValue is a value as a report shows it.
func showValue(v any, t feature.Type) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case *big.Int:
		return decimalText(v.String(), int(t.Scale))
	case []any:
		items := make([]string, len(v))
		for i, e := range v {
			items[i] = showValue(e, t.Elem())
		}
		return "[" + strings.Join(items, ", ") + "]"
	case int64:
		switch t.Kind {
		case feature.Timestamp:
			return time.UnixMicro(v).UTC().Format(time.RFC3339Nano)
		case feature.Date:
			return time.Unix(v*86400, 0).UTC().Format(time.DateOnly)
		}
	}
	return fmt.Sprint(v)
}
