package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/sql"
)

// wholeFile holds the training set as a whole against the hash of its rows in the card, as docs/card.md defines it: what was
// altered in a column that isn't recomputed, or in a row that isn't, shows there. A finding says so only where there is no other.
func (c *datasetCheck) wholeFile(ctx context.Context) error {
	if c.report.Total > 0 {
		return nil
	}
	got, err := c.rowsHash(ctx)
	if err != nil {
		return fmt.Errorf("hash the rows of the training set: %w", err)
	}
	if got != c.card.RowsHash {
		c.report.add(DatasetFinding{Text: "the hash of all rows: something was altered that isn't recomputed, or wasn't this time", Want: c.card.RowsHash, Got: got})
	}
	return nil
}

// rowsHash is the hash of all rows of the training set.
func (c *datasetCheck) rowsHash(ctx context.Context) (string, error) {
	items := []sql.Fragment{"file_row_number"}
	for _, column := range c.columns {
		if !slices.Contains(c.card.Unhashed, column.Name) {
			items = append(items, hashedAs(column))
		}
	}
	sum := new(big.Int)
	err := c.db.Arrow(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM "+string(c.set()), func(r array.RecordReader) error {
		var row bytes.Buffer
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				row.Reset()
				writeNumber(&row, uint64(arrowValue(batch.Column(0), i).(int64)))
				for n := 1; n < int(batch.NumCols()); n++ {
					writeHashed(&row, arrowValue(batch.Column(n), i))
				}
				hash := xxh3.Hash128(row.Bytes()).Bytes()
				sum.Add(sum, new(big.Int).SetBytes(hash[:]))
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	sum.Mod(sum, new(big.Int).Lsh(big.NewInt(1), 128))
	return fmt.Sprintf("xxh3:%032x", sum), nil
}

// hashedAs is a column as its values go into the hash.
func hashedAs(c sql.Column) sql.Fragment {
	name := sql.Ident(c.Name)
	switch {
	case c.Type == "BIGINT" || c.Type == "DOUBLE" || c.Type == "VARCHAR":
		return name
	case c.Type == "FLOAT":
		return "CAST(" + name + " AS DOUBLE)"
	case c.Type == "DATE":
		return "CAST(" + name + " - DATE '1970-01-01' AS BIGINT)"
	case strings.HasPrefix(c.Type, "TIMESTAMP") && c.Type != "TIMESTAMP_NS":
		return "epoch_us(" + name + ")"
	case slices.Contains([]string{"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER"}, c.Type):
		return "CAST(" + name + " AS BIGINT)"
	}
	return "CAST(" + name + " AS VARCHAR)"
}

func writeHashed(row *bytes.Buffer, v any) {
	switch v := v.(type) {
	case nil:
		row.WriteByte(0)
	case int64:
		row.WriteByte(1)
		writeNumber(row, uint64(v))
	case float64:
		if v != v {
			v = math.NaN()
		}
		row.WriteByte(2)
		writeNumber(row, math.Float64bits(v))
	case string:
		row.WriteByte(3)
		writeNumber(row, uint64(len(v)))
		row.WriteString(v)
	default:
		panic(fmt.Sprintf("a value of %T isn't hashed", v))
	}
}

func writeNumber(row *bytes.Buffer, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	row.Write(b[:])
}
