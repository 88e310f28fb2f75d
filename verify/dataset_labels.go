package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// viewCheck is the part of the verification that one feature view has.
type viewCheck struct {
	*datasetCheck
	view     *feature.View
	stream   *feature.Stream
	joinKeys []string
	log      *lake.Table
	beyond   []lake.PinSpan
	features []featureCheck
	want     [][]wanted // by label and feature, once they are recomputed
}

type featureCheck struct {
	name   string
	column string // of the training set; "" for what is an input of others alone
	typ    feature.Type
}

// keyColumns are the columns of the labels that hold the entity's key.
func (v *viewCheck) keyColumns() []string {
	names := make([]string, len(v.joinKeys))
	for i, k := range v.joinKeys {
		names[i] = v.labelColumn(k)
	}
	return names
}

// label is a row of the training set, as one view sees it.
type label struct {
	row   int64
	key   string // "" where a part of it is null, or none of the stream's type
	keyed bool   // whether no part of the key is null
	at    *int64 // microseconds since 1970 UTC
	got   []any  // by feature
}

// pick makes the table picked of the rows with these numbers; their column loam_row is the number, and loam_label that of the
// row's label.
func (c *datasetCheck) pick(ctx context.Context, rows []int64) error {
	numbers, taken := make([]sql.Fragment, len(rows)), make([]sql.Fragment, len(rows))
	for i, r := range rows {
		numbers[i] = sql.Fragment(fmt.Sprint(r))
		taken[i] = numbers[i]
		if labels := c.labelsAt.taken; int(r) < len(labels) { // a row beyond has no label, and compares with none
			taken[i] = sql.Fragment(fmt.Sprint(labels[r]))
		} else if labels != nil {
			taken[i] = "NULL"
		}
	}
	err := c.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE picked AS SELECT * RENAME (file_row_number AS loam_row) "+
		"FROM {set} JOIN (SELECT unnest([{rows}]::BIGINT[]) AS file_row_number, unnest([{taken}]::BIGINT[]) AS loam_label) USING (file_row_number)",
		sql.Args{"set": c.set(), "rows": sql.Join(", ", numbers), "taken": sql.Join(", ", taken)}))
	if err != nil {
		return fmt.Errorf("read the training set: %w", err)
	}
	return nil
}

// passedThrough holds the labels' own columns against the labels, which stand in the same order.
func (c *datasetCheck) passedThrough(ctx context.Context) error {
	scan := c.labelsAt.scan
	if scan == "" {
		return nil
	}
	columns, err := c.db.Columns(ctx, "SELECT * FROM "+string(scan))
	if err != nil {
		return fmt.Errorf("read the labels: %w", err)
	}
	for _, column := range columns {
		typ := c.typeOf(column.Name)
		if typ == "" {
			c.report.add(DatasetFinding{Column: column.Name, Text: "the training set lacks a column of the labels"})
			continue
		}
		rows, err := c.db.Query(ctx, sql.Render("SELECT p.loam_row, TRY_CAST(l.{c} AS {type})::VARCHAR, p.{c}::VARCHAR "+
			"FROM picked p LEFT JOIN (SELECT *, row_number() OVER () - 1 AS loam_label FROM {scan}) l USING (loam_label) "+
			"WHERE TRY_CAST(l.{c} AS {type}) IS DISTINCT FROM p.{c} ORDER BY p.loam_row",
			sql.Args{"c": sql.Ident(column.Name), "type": sql.Fragment(typ), "scan": scan}))
		if err != nil {
			return fmt.Errorf("compare the labels: %w", err)
		}
		for rows.Next() {
			var row int64
			var want, got *string
			if err := rows.Scan(&row, &want, &got); err != nil {
				rows.Close()
				return fmt.Errorf("compare the labels: %w", err)
			}
			c.report.add(DatasetFinding{Row: &row, Column: column.Name, Text: "it is not what the labels say", Want: orNull(want), Got: orNull(got)})
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("compare the labels: %w", err)
		}
		rows.Close()
	}
	return nil
}

// csvTexts are the types of the columns that a build read from a CSV file as text, or as whole numbers beyond 64 bits; it found the
// others, and how dates are written, by looking at all of the file, and so they are found here.
func (c *datasetCheck) csvTexts(ctx context.Context) (sql.Fragment, error) {
	scan := sql.Render("SELECT * FROM read_csv({path}, header = true, sample_size = -1, hive_partitioning = false)", sql.Args{"path": sql.Path(c.card.Labels.Path)})
	columns, err := c.db.Columns(ctx, scan)
	if err != nil {
		return "", fmt.Errorf("read the labels: %w", err)
	}
	var types []sql.Fragment
	for _, column := range columns {
		if typ := c.typeOf(column.Name); typ == "VARCHAR" || typ == "DECIMAL(38,0)" {
			types = append(types, sql.Literal(column.Name)+": "+sql.Literal(typ))
		}
	}
	if len(types) == 0 {
		return "", nil
	}
	return ", types = {" + sql.Join(", ", types) + "}", nil
}

func orNull(text *string) string {
	if text == nil {
		return "null"
	}
	return *text
}

// labels reads the picked rows: keys by the types of the stream, times, and the values to be checked.
func (v *viewCheck) labels(ctx context.Context) ([]*label, error) {
	need := slices.Concat(v.keyColumns(), []string{v.card.Request.TimeColumn})
	for _, f := range v.features {
		if f.column != "" {
			need = append(need, f.column)
		}
	}
	for _, name := range need {
		if v.typeOf(name) == "" {
			return nil, fmt.Errorf("it has no column %s", name)
		}
	}
	items, keyed := []sql.Fragment{"loam_row", v.moment(v.typeOf(v.card.Request.TimeColumn))}, []sql.Fragment{"true"}
	for _, k := range v.joinKeys {
		column, _ := v.stream.Column(k)
		items = append(items, "TRY_CAST("+sql.Ident(v.labelColumn(k))+" AS "+sql.Fragment(column.Type.SQL())+")")
		keyed = append(keyed, sql.Ident(v.labelColumn(k))+" IS NOT NULL")
	}
	items = append(items, sql.Join(" AND ", keyed))
	for _, f := range v.features {
		column := sql.Fragment("NULL")
		if f.column != "" {
			column = sql.Ident(f.column)
		}
		items = append(items, column+"::"+sql.Fragment(f.typ.SQL()))
	}
	var all []*label
	err := v.db.Arrow(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM picked ORDER BY loam_row", func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				l := &label{row: batch.Column(0).(*array.Int64).Value(i)}
				var err error
				if l.at, err = timeOf(batch.Column(1), i); err != nil {
					return err
				}
				parts := make([]any, len(v.joinKeys))
				for n := range parts {
					parts[n] = arrowValue(batch.Column(2+n), i)
				}
				l.key = keyOf(parts)
				l.keyed = arrowValue(batch.Column(2+len(parts)), i).(bool)
				for n := range v.features {
					l.got = append(l.got, arrowValue(batch.Column(3+len(parts)+n), i))
				}
				all = append(all, l)
			}
		}
		return nil
	})
	return all, err
}

// moment is the expression of a label's time, of a column of that type, for [timeOf].
func (c *datasetCheck) moment(typ string) sql.Fragment {
	at := sql.Ident(c.card.Request.TimeColumn)
	if typ == "VARCHAR" {
		at = "TRY_CAST(" + at + " AS TIMESTAMPTZ)"
	}
	return at
}

// timeOf is a label's time: without a zone it is UTC, and finer digits than microseconds are cut off.
func timeOf(column arrow.Array, i int) (*int64, error) {
	if column.IsNull(i) {
		return nil, nil
	}
	var us int64
	switch c := column.(type) {
	case *array.Timestamp:
		us = int64(c.Value(i))
		switch c.DataType().(*arrow.TimestampType).Unit {
		case arrow.Second:
			us *= 1e6
		case arrow.Millisecond:
			us *= 1e3
		case arrow.Nanosecond:
			us = floorDiv(us, 1e3)
		}
	case *array.Date32:
		us = int64(c.Value(i)) * 86400e6
	default:
		return nil, fmt.Errorf("the time column is %s", column.DataType())
	}
	return &us, nil
}

// floorDiv divides and rounds down, also below zero.
func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}

// keyOf is a key as one text, "" where a part of it is null.
func keyOf(parts []any) string {
	var b strings.Builder
	for _, p := range parts {
		if p == nil {
			return ""
		}
		text := fmt.Sprint(p)
		fmt.Fprintf(&b, "%d:%s,", len(text), text)
	}
	return b.String()
}
