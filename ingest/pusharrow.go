package ingest

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// ArrowColumns adds the rows of a batch to columns, each value as the JSON that an event holds: numbers with all of their digits, times
// without a zone as UTC. Columns is nil before the first batch. Text in a column that the stream has as json is the JSON that it is.
func ArrowColumns(s *feature.Stream, columns []PushColumn, batch arrow.RecordBatch) ([]PushColumn, error) {
	if columns == nil {
		columns = make([]PushColumn, batch.NumCols())
		for i, f := range batch.Schema().Fields() {
			columns[i].Name = f.Name
		}
	}
	for i, a := range batch.Columns() {
		c := &columns[i]
		place := pushPlaces(s)[c.Name]
		isJSON := false
		for _, own := range s.Columns {
			isJSON = isJSON || own.Type.Kind == feature.JSON && !own.Type.List && place != nil && slices.Equal(own.Path, place)
		}
		for row := range a.Len() {
			raw, err := appendArrow(nil, a, row)
			if err != nil {
				return nil, &ColumnError{c.Name, err.Error()}
			}
			if isJSON && raw[0] == '"' {
				if text, err := jsontext.AppendUnquote(nil, raw); err == nil && jsontext.Value(text).IsValid() {
					raw = text
				}
			}
			c.Values = append(c.Values, raw)
		}
	}
	return columns, nil
}

// appendArrow appends a value of an array as JSON.
func appendArrow(b []byte, a arrow.Array, i int) ([]byte, error) {
	if a.IsNull(i) {
		return append(b, "null"...), nil
	}
	switch a := a.(type) {
	case *array.Null:
		return append(b, "null"...), nil
	case *array.Boolean:
		return strconv.AppendBool(b, a.Value(i)), nil
	case *array.Int8:
		return strconv.AppendInt(b, int64(a.Value(i)), 10), nil
	case *array.Int16:
		return strconv.AppendInt(b, int64(a.Value(i)), 10), nil
	case *array.Int32:
		return strconv.AppendInt(b, int64(a.Value(i)), 10), nil
	case *array.Int64:
		return strconv.AppendInt(b, a.Value(i), 10), nil
	case *array.Uint8:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10), nil
	case *array.Uint16:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10), nil
	case *array.Uint32:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10), nil
	case *array.Uint64:
		return strconv.AppendUint(b, a.Value(i), 10), nil
	case *array.Float16:
		return appendFloat(b, float64(a.Value(i).Float32())), nil
	case *array.Float32:
		return appendFloat(b, float64(a.Value(i))), nil
	case *array.Float64:
		return appendFloat(b, a.Value(i)), nil
	case *array.Decimal128:
		return append(b, a.Value(i).ToString(a.DataType().(*arrow.Decimal128Type).Scale)...), nil
	case *array.Decimal256:
		return append(b, a.Value(i).ToString(a.DataType().(*arrow.Decimal256Type).Scale)...), nil
	case *array.String:
		return appendText(b, []byte(a.Value(i))), nil
	case *array.LargeString:
		return appendText(b, []byte(a.Value(i))), nil
	case *array.StringView:
		return appendText(b, []byte(a.Value(i))), nil
	case *array.Binary:
		return appendBytes(b, a.Value(i)), nil
	case *array.LargeBinary:
		return appendBytes(b, a.Value(i)), nil
	case *array.Timestamp:
		return appendTime(b, int64(a.Value(i)), a.DataType().(*arrow.TimestampType).Unit.Multiplier()), nil
	case *array.Date32:
		return appendDate(b, a.Value(i).ToTime()), nil
	case *array.Date64:
		return appendDate(b, a.Value(i).ToTime()), nil
	case *array.Dictionary:
		return appendArrow(b, a.Dictionary(), a.GetValueIndex(i))
	case *array.Struct:
		return appendStruct(b, a, i)
	case array.ListLike:
		from, to := a.ValueOffsets(i)
		b = append(b, '[')
		for j := from; j < to; j++ {
			if j > from {
				b = append(b, ',')
			}
			var err error
			if b, err = appendArrow(b, a.ListValues(), int(j)); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	}
	return nil, fmt.Errorf("is %s, which can't be pushed: convert it to a number, text, a time, a date, a list or a struct of those", a.DataType())
}

func appendDate(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, `"`+time.DateOnly+`"`) }

func appendStruct(b []byte, a *array.Struct, i int) ([]byte, error) {
	b = append(b, '{')
	for j, f := range a.DataType().(*arrow.StructType).Fields() {
		if j > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, []byte(f.Name)), ':')
		var err error
		if b, err = appendArrow(b, a.Field(j), i); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}
