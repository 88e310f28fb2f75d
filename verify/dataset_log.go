package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"

	"github.com/parquet-go/parquet-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// logged is a row of a log.
type logged struct {
	values                []any // by column of the stream
	at, ingested          int64 // microseconds since 1970 UTC
	sequence              any   // int64 or nil
	topic                 string
	partition, offset     int64
	deleted               bool
	present               []any // columns that a patch carried, nil where all were
	number                int   // among those read
	live                  bool
	topicHash             []byte
	conditions, arguments []any // of a windowed view, by aggregate
}

// after reports whether a stands after b in the order: event time, sequence with null lowest, live topics after files, the
// topic by the first four bytes of its hash, partition and offset.
func (a *logged) after(b *logged) bool {
	sequence := 0
	switch as, bs := a.sequence, b.sequence; {
	case as != nil && bs != nil:
		sequence = cmp.Compare(as.(int64), bs.(int64))
	case as != nil:
		sequence = 1
	case bs != nil:
		sequence = -1
	}
	live := 0
	if a.live != b.live {
		if live = -1; a.live {
			live = 1
		}
	}
	return cmp.Or(cmp.Compare(a.at, b.at), sequence, live, bytes.Compare(a.topicHash, b.topicHash), cmp.Compare(a.partition, b.partition), cmp.Compare(a.offset, b.offset)) > 0
}

// bookkeeping are loam's own columns that are read of a log.
var bookkeeping = []string{
	feature.ColEventTime, feature.ColSequence, feature.ColRecordedAt, feature.ColIngestedAt, feature.ColTopic, feature.ColPartition,
	feature.ColOffset, feature.ColOp, feature.ColJobID,
}

// read gives the changes of the labels' entities, by key, from the files of the log.
func (v *viewCheck) read(ctx context.Context, labels []*label) (map[string][]*logged, error) {
	wanted := map[string]bool{}
	for _, l := range labels {
		if l.key != "" {
			wanted[l.key] = true
		}
	}
	names := append(feature.ColumnNames(v.stream.Columns), bookkeeping...)
	if v.stream.Payload == feature.PatchPayload {
		names = append(names, feature.ColPresent)
	}
	files, err := v.log.Scan(ctx, lake.ScanOptions{Columns: names})
	if err != nil {
		return nil, err
	}
	all := map[string][]*logged{}
	number := 0
	for _, f := range files.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := eachRow(f, files.Columns, v.joinKeys, func(parts []any) bool { return wanted[keyOf(parts)] }, func(row map[string]any) {
			r := v.row(row)
			if r == nil {
				return
			}
			r.number = number
			number++
			parts := make([]any, len(v.joinKeys))
			for i, k := range v.joinKeys {
				parts[i] = row[k]
			}
			all[keyOf(parts)] = append(all[keyOf(parts)], r)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return all, nil
}

// row is a row of the log, nil for one that the training set may not see: beyond the history, or recorded after known_at.
func (v *viewCheck) row(row map[string]any) *logged {
	r := &logged{
		at: row[feature.ColEventTime].(int64), ingested: row[feature.ColIngestedAt].(int64), sequence: row[feature.ColSequence],
		topic: row[feature.ColTopic].(string), partition: row[feature.ColPartition].(int64), offset: row[feature.ColOffset].(int64),
		deleted: row[feature.ColOp] == feature.OpDelete,
	}
	for _, s := range v.beyond {
		if job, ok := feature.RedriveJob(s.Topic); ok {
			if row[feature.ColJobID] == job {
				return nil
			}
		} else if s.Topic == r.topic && int64(s.Partition) == r.partition && s.From <= r.offset && r.offset < s.To {
			return nil
		}
	}
	if known := v.card.Request.KnownAt; known != nil && row[feature.ColRecordedAt].(int64) > known.UnixMicro() {
		return nil
	}
	if list, ok := row[feature.ColPresent].([]any); ok {
		r.present = list
	}
	r.live = !strings.HasPrefix(r.topic, "file:") && !strings.HasPrefix(r.topic, "redrive:")
	hash := sha256.Sum256([]byte(r.topic))
	r.topicHash = hash[:4]
	for _, c := range v.stream.Columns {
		r.values = append(r.values, row[c.Name])
	}
	return r
}

// eachRow hands over the rows of a data file that are not deleted and whose key is wanted, as values by name. Columns are
// found by their field ids; those that the file lacks are nil.
func eachRow(f sql.File, columns []sql.FileColumn, key []string, wanted func([]any) bool, use func(map[string]any)) error {
	in, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	file, err := parquet.OpenFile(in, info.Size(), parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return err
	}
	deleted := map[int64]bool{}
	for _, d := range f.Deleted {
		deleted[d] = true
	}
	first := int64(0)
	for _, group := range file.RowGroups() {
		n := group.NumRows()
		keys := make([][]any, len(key))
		for i, name := range key {
			column := columns[slices.IndexFunc(columns, func(c sql.FileColumn) bool { return c.Name == name })]
			if keys[i], err = columnValues(file, group, column); err != nil {
				return fmt.Errorf("column %s: %w", name, err)
			}
		}
		var rows []int64
		parts := make([]any, len(key))
		for i := range n {
			for k := range parts {
				parts[k] = keys[k][i]
			}
			if !deleted[first+i] && wanted(parts) {
				rows = append(rows, i)
			}
		}
		first += n
		if len(rows) == 0 {
			continue
		}
		values := make([][]any, len(columns))
		for i, column := range columns {
			if values[i], err = columnValues(file, group, column); err != nil {
				return fmt.Errorf("column %s: %w", column.Name, err)
			}
		}
		for _, i := range rows {
			row := map[string]any{}
			for c, column := range columns {
				row[column.Name] = values[c][i]
			}
			use(row)
		}
	}
	return nil
}

// columnValues reads a column of a row group, a value a row: bool, int64 (also of dates, days, and times, microseconds),
// float64, *big.Int (a decimal without its point), string, []any, or nil.
func columnValues(file *parquet.File, group parquet.RowGroup, c sql.FileColumn) ([]any, error) {
	all := make([]any, 0, group.NumRows())
	var root *parquet.Column
	for _, top := range file.Root().Columns() {
		if top.ID() == c.FieldID {
			root = top
		}
	}
	if root == nil {
		return make([]any, group.NumRows()), nil
	}
	leaf, nullable := root, 0
	if root.Optional() {
		nullable = 1
	}
	for !leaf.Leaf() {
		leaf = leaf.Columns()[0]
	}
	element, isList := strings.CutSuffix(c.Type, "[]")
	pages := group.ColumnChunks()[leaf.Index()].Pages()
	defer pages.Close()
	buffer := make([]parquet.Value, 1024)
	for {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		for values := page.Values(); ; {
			n, err := values.ReadValues(buffer)
			for _, v := range buffer[:n] {
				switch {
				case !isList:
					all = append(all, plainValue(v, element))
				case v.RepetitionLevel() > 0:
					list := all[len(all)-1].([]any)
					all[len(all)-1] = append(list, plainValue(v, element))
				case v.DefinitionLevel() < nullable:
					all = append(all, nil)
				case v.DefinitionLevel() == nullable:
					all = append(all, []any{})
				default:
					all = append(all, []any{plainValue(v, element)})
				}
			}
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
		}
		parquet.Release(page)
	}
	if int64(len(all)) != group.NumRows() {
		return nil, fmt.Errorf("it has %d values in %d rows", len(all), group.NumRows())
	}
	return all, nil
}

// plainValue is a value of a column whose type is named as DuckDB does.
func plainValue(v parquet.Value, typ string) any {
	if v.IsNull() {
		return nil
	}
	decimal := strings.HasPrefix(typ, "DECIMAL")
	switch v.Kind() {
	case parquet.Boolean:
		return v.Boolean()
	case parquet.Int32:
		if decimal {
			return big.NewInt(int64(v.Int32()))
		}
		return int64(v.Int32())
	case parquet.Int64:
		if decimal {
			return big.NewInt(v.Int64())
		}
		return v.Int64()
	case parquet.Double:
		return v.Double()
	default:
		raw := v.ByteArray()
		if !decimal {
			return string(raw)
		}
		n := new(big.Int).SetBytes(raw) // two's complement, the highest byte first
		if len(raw) > 0 && raw[0] >= 0x80 {
			n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
		}
		return n
	}
}
