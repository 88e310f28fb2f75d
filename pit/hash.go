package pit

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// rowsHash is a hash of rows: the sum, modulo 2^128, of the XXH3-128 of each, which holds the row's number. So it depends on
// the order of the rows, and not on that in which they are hashed. What is hashed of a row is frozen: its number as 8 bytes,
// little-endian, then of each column a byte and the value: 0 for null, 1 and 8 bytes for whole numbers, dates (days), times
// (microseconds) and truths, 2 and the 8 bytes of a double (any NaN as one), 3, the length in 8 bytes, and the bytes of a
// text; values of all other types are DuckDB's text of them.
type rowsHash struct{ hi, lo uint64 }

func (h *rowsHash) add(row []byte) {
	sum := xxh3.Hash128(row)
	var carry uint64
	h.lo, carry = bits.Add64(h.lo, sum.Lo, 0)
	h.hi, _ = bits.Add64(h.hi, sum.Hi, carry)
}

func (h rowsHash) String() string { return fmt.Sprintf("xxh3:%016x%016x", h.hi, h.lo) }

// hashRows adds the rows of the table dataset to the hash.
func (b *build) hashRows(ctx context.Context) error {
	b.unhashed = nil
	for _, f := range b.request.Features {
		if b.inexact(f) {
			b.unhashed = append(b.unhashed, f.Column())
		}
	}
	items := []sql.Fragment{sql.Ident(labelRow)}
	columns, err := b.db.Columns(ctx, "dataset")
	if err != nil {
		return err
	}
	for _, c := range columns {
		if c.Name != labelRow && !slices.Contains(b.unhashed, c.Name) {
			items = append(items, hashed(c))
		}
	}
	return b.db.Batches(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM dataset", func(batch arrow.RecordBatch) error {
		var row []byte
		columns := make([]arrow.Array, batch.NumCols())
		for i := range columns {
			columns[i] = batch.Column(i)
		}
		for i := range int(batch.NumRows()) {
			row = binary.LittleEndian.AppendUint64(row[:0], uint64(columns[0].(*array.Int64).Value(i)))
			for _, c := range columns[1:] {
				row = appendHashed(row, c, i)
			}
			b.sum.add(row)
		}
		return nil
	})
}

// hashed is the expression of a column as it is hashed: a whole number, a double or a text.
func hashed(c sql.Column) sql.Fragment {
	name := sql.Ident(c.Name)
	switch c.Type {
	case "BIGINT", "DOUBLE", "VARCHAR":
		return name
	case "FLOAT":
		return name + "::DOUBLE"
	case "DATE":
		return "date_diff('day', DATE '1970-01-01', " + name + ")"
	case "TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS":
		return "epoch_us(" + name + ")"
	case "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER":
		return name + "::BIGINT"
	default:
		return name + "::VARCHAR"
	}
}

func appendHashed(row []byte, c arrow.Array, i int) []byte {
	if c.IsNull(i) {
		return append(row, 0)
	}
	switch c := c.(type) {
	case *array.Int64:
		return binary.LittleEndian.AppendUint64(append(row, 1), uint64(c.Value(i)))
	case *array.Float64:
		v := c.Value(i)
		if math.IsNaN(v) {
			v = math.NaN()
		}
		return binary.LittleEndian.AppendUint64(append(row, 2), math.Float64bits(v))
	case *array.String:
		v := c.Value(i)
		return append(binary.LittleEndian.AppendUint64(append(row, 3), uint64(len(v))), v...)
	default:
		panic(fmt.Sprintf("a column to be hashed is %s", c.DataType()))
	}
}

// inexact reports whether a feature is a sum or an average of doubles, whose last digits depend on the order of addition, or
// computed of one.
func (b *build) inexact(f feature.Ref) bool {
	view := b.project.View(f.View)
	if view.OnDemand != nil {
		i := slices.IndexFunc(view.Features, func(o feature.Feature) bool { return o.Name == f.Feature })
		return slices.ContainsFunc(b.project.Inputs(view), func(in feature.Input) bool {
			return in.From != (feature.Ref{}) && slices.Contains(view.Features[i].Reads, in.Name) && b.inexact(in.From)
		})
	}
	stream := b.project.Stream(view.Stream)
	return slices.ContainsFunc(view.Aggregates, func(a feature.Aggregate) bool {
		c, _ := stream.Column(a.Column)
		return (a.Fn == feature.Sum || a.Fn == feature.Avg) && c.Type.Kind == feature.Double &&
			slices.ContainsFunc(a.Windows, func(w time.Duration) bool { return a.FeatureName(w) == f.Feature })
	})
}
