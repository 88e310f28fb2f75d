package feature

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
)

// Kind is the scalar part of a [Type].
type Kind uint8

// The kinds a column or a feature may have. A list has one of them as its element.
const (
	Bool Kind = iota + 1
	Int64
	Double
	Decimal
	String
	Timestamp // microseconds since 1970-01-01T00:00:00Z
	Date      // days since 1970-01-01
	JSON      // JSON text, object members sorted by name
)

var kindNames = map[Kind]string{
	Bool: "bool", Int64: "int64", Double: "double", Decimal: "decimal", String: "string",
	Timestamp: "timestamp", Date: "date", JSON: "json",
}

// Type is the type of a column or a feature: a kind, for a decimal its precision and scale, or a list of those.
// Types are comparable with ==.
type Type struct {
	Kind      Kind
	Precision int32 // decimal only, 1..38
	Scale     int32 // decimal only, 0..Precision
	List      bool
}

var decimalText = regexp.MustCompile(`^decimal\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)$`)

// ParseType reads a type as users write it: bool, int64, double, decimal(p,s), string, timestamp, date, json, or
// list<T> of one of these.
func ParseType(text string) (Type, error) {
	if n := len(text); n > 6 && text[:5] == "list<" && text[n-1] == '>' {
		elem, err := ParseType(text[5 : n-1])
		if err != nil {
			return Type{}, err
		}
		if elem.List {
			return Type{}, fmt.Errorf("a list of lists is not a type; use json")
		}
		elem.List = true
		return elem, nil
	}
	if m := decimalText.FindStringSubmatch(text); m != nil {
		p, _ := strconv.Atoi(m[1])
		s, _ := strconv.Atoi(m[2])
		if p < 1 || p > 38 || s > p {
			return Type{}, fmt.Errorf("decimal(%d,%d): precision is 1 to 38, scale 0 to the precision", p, s)
		}
		return Type{Kind: Decimal, Precision: int32(p), Scale: int32(s)}, nil
	}
	for kind, name := range kindNames {
		if name == text && kind != Decimal {
			return Type{Kind: kind}, nil
		}
	}
	return Type{}, fmt.Errorf(
		"unknown type %q; use bool, int64, double, decimal(p,s), string, timestamp, date, json or list<one of these>", text)
}

// String gives the type as users write it; [ParseType] reads it back.
func (t Type) String() string {
	name := kindNames[t.Kind]
	if t.Kind == Decimal {
		name = fmt.Sprintf("decimal(%d,%d)", t.Precision, t.Scale)
	}
	if t.List {
		return "list<" + name + ">"
	}
	return name
}

// Elem is the type of a list's elements; of a scalar it is the type itself.
func (t Type) Elem() Type {
	t.List = false
	return t
}

// Arrow is the type of the column in every Arrow batch of loam.
func (t Type) Arrow() arrow.DataType {
	if t.List {
		return arrow.ListOfField(arrow.Field{Name: "element", Type: t.Elem().Arrow(), Nullable: true})
	}
	switch t.Kind {
	case Bool:
		return arrow.FixedWidthTypes.Boolean
	case Int64:
		return arrow.PrimitiveTypes.Int64
	case Double:
		return arrow.PrimitiveTypes.Float64
	case Decimal:
		return &arrow.Decimal128Type{Precision: t.Precision, Scale: t.Scale}
	case Timestamp:
		return &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
	case Date:
		return arrow.FixedWidthTypes.Date32
	default:
		return arrow.BinaryTypes.String
	}
}

// SQL is the type's name in DuckDB. JSON is text there: its operators take text, and one name for both keeps a column
// the same whether it comes from Arrow or from Parquet.
func (t Type) SQL() string {
	var name string
	switch t.Kind {
	case Bool:
		name = "BOOLEAN"
	case Int64:
		name = "BIGINT"
	case Double:
		name = "DOUBLE"
	case Decimal:
		name = fmt.Sprintf("DECIMAL(%d,%d)", t.Precision, t.Scale)
	case Timestamp:
		name = "TIMESTAMPTZ"
	case Date:
		name = "DATE"
	default:
		name = "VARCHAR"
	}
	if t.List {
		name += "[]"
	}
	return name
}

// Widens reports whether every value of the one type is the same value of the other, and Iceberg lets a column follow:
// a decimal, or a list of them, gets more digits before the point.
func Widens(from, to Type) bool {
	return from.Kind == Decimal && to.Kind == Decimal && from.List == to.List && from.Scale == to.Scale && from.Precision <= to.Precision
}

// Key reports whether a column of this type may be part of a key: exact, scalar and comparable.
func (t Type) Key() bool {
	switch t.Kind {
	case String, Int64, Date, Timestamp:
		return !t.List
	default:
		return false
	}
}
