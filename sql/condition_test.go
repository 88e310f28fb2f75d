//go:build duckdb_arrow

package sql

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// numbered has n rows: n counts from 0, word is null in every third, tags and seen are there, and beside stands what no
// condition reads.
func numbered(n int) arrow.RecordBatch {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, {Name: "word", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "beside", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "tags", Type: arrow.ListOfField(arrow.Field{Name: "element", Type: arrow.BinaryTypes.String, Nullable: true}), Nullable: true},
		{Name: "seen", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}, Nullable: true},
		{Name: "money", Type: &arrow.Decimal128Type{Precision: 6, Scale: 2}, Nullable: true},
		{Name: "gone", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i := range n {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		if word := b.Field(1).(*array.StringBuilder); i%3 == 0 {
			word.AppendNull()
		} else {
			word.Append(fmt.Sprintf(`{"n":"%d"}`, i))
		}
		b.Field(2).AppendNull()
		b.Field(3).(*array.ListBuilder).Append(true)
		b.Field(3).(*array.ListBuilder).ValueBuilder().(*array.StringBuilder).Append(fmt.Sprint(i))
		b.Field(4).(*array.TimestampBuilder).Append(arrow.Timestamp(i))
		if err := b.Field(5).(*array.Decimal128Builder).AppendValueFromString(fmt.Sprintf("%d.5", i%100)); err != nil {
			panic(err)
		}
		b.Field(6).(*array.BooleanBuilder).Append(i%2 == 0)
	}
	return b.NewRecordBatch()
}

// A condition is true where it is true: not where it is null, nor where it fails, which is null. Each row keeps its answer,
// through several of DuckDB's batches.
func TestCondition(t *testing.T) {
	rows := numbered(5000)
	defer rows.Release()
	for _, c := range []struct {
		expr  string
		reads []string
		want  func(i int) bool
	}{
		{"n % 7 = 0", []string{"n"}, func(i int) bool { return i%7 == 0 }},
		{"gone", []string{"gone"}, func(i int) bool { return i%2 == 0 }},
		{"NOT gone AND n > 4990", []string{"gone", "n"}, func(i int) bool { return i%2 == 1 && i > 4990 }},
		{"word <> 'x'", []string{"word"}, func(i int) bool { return i%3 != 0 }},
		{"word IS NULL", []string{"word"}, func(i int) bool { return i%3 == 0 }},
		{"word->>'n' = '4'", []string{"word"}, func(i int) bool { return i == 4 }},
		{"word::BIGINT > 0", []string{"word"}, func(int) bool { return false }},
		{"tags[1]::TINYINT > 100", []string{"tags"}, func(i int) bool { return i > 100 && i < 128 }}, // 128 and more fail
		{"seen >= TIMESTAMPTZ '1970-01-01 00:00:00.004+00'", []string{"seen"}, func(i int) bool { return i >= 4000 }},
		{"money = 3.5 -- a comment", []string{"money"}, func(i int) bool { return i%100 == 3 }},
		{"n - 3", []string{"n"}, func(i int) bool { return i != 3 }},
	} {
		condition, err := OpenCondition(t.Context(), c.expr, c.reads)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second batch has answers of its own
			got, err := condition.True(t.Context(), rows)
			if err != nil {
				t.Fatalf("%s: %v", c.expr, err)
			}
			want := make([]bool, rows.NumRows())
			for i := range want {
				want[i] = c.want(i)
			}
			if !slices.Equal(got, want) {
				i := 0
				for got[i] == want[i] {
					i++
				}
				t.Errorf("%s: row %d is %v", c.expr, i, got[i])
			}
		}
		if err := condition.Close(); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkCondition(b *testing.B) {
	condition, err := OpenCondition(context.Background(), "n % 100 = 0", []string{"n"})
	if err != nil {
		b.Fatal(err)
	}
	defer condition.Close()
	for _, n := range []int{1, 1000, 100_000} {
		rows := numbered(n)
		b.Run(fmt.Sprintf("rows=%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := condition.True(context.Background(), rows); err != nil {
					b.Fatal(err)
				}
			}
		})
		rows.Release()
	}
}
