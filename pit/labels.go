package pit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// labels is the table of that name in DuckDB: the columns of the labels and loam's own two.
type labels struct {
	columns []sql.Column // of the training set, in their order
	aliases []sql.Column // join keys under their own names, which the training set doesn't have
	rows    int64
	sha256  string
	time    string // the column that holds the time
}

// Columns that loam adds to the labels. Labels can't have columns whose names begin with loam_.
const (
	labelRow  = "loam_label_row"  // BIGINT: number of the label in the file, from 0
	labelTime = "loam_label_time" // TIMESTAMPTZ: its time, finer digits than microseconds cut off
)

// loadLabels reads the labels into the table labels.
func (b *build) loadLabels(ctx context.Context) error {
	from, err := b.openSource(ctx, b.textKeys())
	if err != nil {
		return err
	}
	l := &labels{time: b.request.TimeColumn, sha256: from.sha256}
	if err := l.describe(ctx, b.db, from); err != nil {
		return err
	}
	moment, err := l.moment(b.request.TimeColumn)
	if err != nil {
		return fmt.Errorf("labels %s: %w", from.what, err)
	}
	if err := l.checkTexts(ctx, b.db, from); err != nil {
		return err
	}
	aliases, err := l.join(from, b.request.JoinKeys)
	if err != nil {
		return err
	}
	err = b.db.Exec(ctx, sql.Render(
		"CREATE OR REPLACE TEMP TABLE labels AS SELECT *{aliases}, (row_number() OVER ()) - 1 AS {row}, {moment} AS {time} FROM {scan}",
		sql.Args{"aliases": aliases, "row": sql.Ident(labelRow), "time": sql.Ident(labelTime), "moment": moment, "scan": from.scan}))
	if err != nil {
		return fmt.Errorf("read labels %s: %w", from.what, err)
	}
	if err := l.checkTimes(ctx, b.db, from.what); err != nil {
		return err
	}
	if err := b.db.Exec(ctx, "DROP TABLE IF EXISTS "+sourceTable); err != nil {
		return err
	}
	if err := b.db.QueryRow(ctx, "SELECT count(*) FROM labels", nil, &l.rows); err != nil {
		return err
	}
	if l.sha256 == "" {
		if l.sha256, err = hashRows(ctx, b.db, l.names()); err != nil {
			return fmt.Errorf("hash labels %s: %w", from.what, err)
		}
	}
	for _, f := range b.request.Features {
		if name, taken := l.has(f.Column()); taken {
			return fmt.Errorf("labels %s have a column %s already, which is the name of a feature: rename it", from.what, name)
		}
	}
	b.labels = l
	if err := b.sameLabels(); err != nil {
		return err
	}
	b.card.Labels = CardLabels{
		Kind: from.kind, Path: b.request.Labels, Table: b.request.LabelsTable, SQL: b.request.LabelsSQL, SHA256: l.sha256, Read: l.rows, Rows: l.rows,
	}
	if b.labelTable != nil {
		b.card.Labels.Table = b.labelTable.Name()
	}
	if err := b.checkRequestColumns(ctx, from.what); err != nil {
		return err
	}
	if err := b.checkKeys(ctx, from.what); err != nil {
		return err
	}
	return b.settle(ctx, from.what)
}

// textKeys are the label columns of join keys that are text in a stream.
func (b *build) textKeys() []string {
	var columns []string
	add := func(s *feature.Stream, keys []string) {
		for _, k := range keys {
			if c, ok := s.Column(k); ok && c.Type.Kind == feature.String {
				columns = append(columns, b.labelColumn(k))
			}
		}
	}
	for _, j := range b.jobs {
		add(j.stream, j.entity.JoinKeys)
	}
	for _, o := range b.outcomes {
		add(o.stream, o.stream.Keys())
	}
	for _, c := range b.requestColumns() {
		if c.Type == (feature.Type{Kind: feature.String}) {
			columns = append(columns, c.Name)
		}
	}
	return columns
}

// labelColumn is the label column that holds a join key.
func (b *build) labelColumn(key string) string {
	if column := b.request.JoinKeys[key]; column != "" {
		return column
	}
	return key
}

// describe finds the columns of the labels.
func (l *labels) describe(ctx context.Context, db *sql.DB, from source) error {
	columns, err := db.Columns(ctx, "SELECT * FROM "+string(from.scan))
	if err != nil {
		return fmt.Errorf("read labels %s: %w", from.what, err)
	}
	for _, c := range columns {
		if strings.HasPrefix(strings.ToLower(c.Name), "loam_") {
			return fmt.Errorf("labels %s have a column %s, a name that loam uses itself: rename it", from.what, c.Name)
		}
	}
	l.columns = columns
	return nil
}

// join gives columns to the table labels for join keys that the labels have under another name. They are found as columns of
// the labels are, and are none of the training set.
func (l *labels) join(from source, joinKeys map[string]string) (sql.Fragment, error) {
	var items sql.Fragment
	for _, key := range slices.Sorted(maps.Keys(joinKeys)) {
		column := joinKeys[key]
		if key == column {
			continue
		}
		typ, ok := l.typeOf(column)
		if !ok {
			return "", fmt.Errorf("labels %s have no column %s, which is to hold the join key %s; they have %s", from.what, column, key, strings.Join(l.names(), ", "))
		}
		if name, taken := l.has(key); taken {
			return "", fmt.Errorf("labels %s have a column %s, and the join key %s is to be taken from %s: rename that column, or join by it", from.what, name, key, column)
		}
		l.aliases = append(l.aliases, sql.Column{Name: key, Type: typ})
		items += ", " + sql.Ident(column) + " AS " + sql.Ident(key)
	}
	return items, nil
}

// csvOptions are how CSV files are read: the first line names the columns, and all of the file decides on their types.
const csvOptions = "header = true, sample_size = -1, hive_partitioning = false"

// checkTexts refuses times in text that are not written as ISO 8601 does. DuckDB would take 01/02/2026 for the first of
// February, and 01-02-26 for a day of the year 1 or of 2001; who meant another would have a training set that looks ahead.
func (l *labels) checkTexts(ctx context.Context, db *sql.DB, from source) error {
	scan := from.scan
	if from.csv != "" {
		scan = sql.Fragment(sql.Render("read_csv({path}, "+csvOptions+", all_varchar = true)", sql.Args{"path": sql.Path(from.csv)}))
	} else if typ, _ := l.typeOf(l.time); typ != "VARCHAR" {
		return nil
	}
	var bad int64
	err := db.QueryRow(ctx, sql.Render("SELECT count(*) FROM {scan} WHERE {column} IS NOT NULL AND (try_cast({column} AS TIMESTAMPTZ) IS NULL "+
		`OR NOT regexp_matches({column}, '^\s*[0-9]{4,}-[0-9]{2}-[0-9]{2}'))`, sql.Args{"column": sql.Ident(l.time), "scan": scan}), nil, &bad)
	if err != nil {
		return fmt.Errorf("read labels %s: %w", from.what, err)
	}
	if bad > 0 {
		return fmt.Errorf("labels %s: %d values of time column %s are no times as ISO 8601 writes them, such as 2026-11-01 or 2026-11-01T12:00:00Z",
			from.what, bad, l.time)
	}
	return nil
}

// checkTimes refuses times that are none, such as infinity, or that no other tool could read.
func (l *labels) checkTimes(ctx context.Context, db *sql.DB, what string) error {
	var bad int64
	var first *int64
	err := db.QueryRow(ctx, sql.Render("SELECT count(*), min({row}) FROM labels WHERE NOT isfinite({time}) OR {time} < '0001-01-01 00:00:00Z' OR {time} >= '10000-01-01 00:00:00Z'",
		sql.Args{"row": sql.Ident(labelRow), "time": sql.Ident(labelTime)}), nil, &bad, &first)
	if err != nil {
		return fmt.Errorf("read the times of labels %s: %w", what, err)
	}
	if bad > 0 {
		return fmt.Errorf("labels %s: %d values of time column %s are not in the years 1 to 9999, the first in row %d, counted from 0: mend them, or leave them empty",
			what, bad, l.time, *first)
	}
	return nil
}

// csvScan is a scan of a CSV file. Types are found by looking at all of it, but for keys that are text.
func csvScan(ctx context.Context, db *sql.DB, path string, textKeys []string) (sql.Fragment, error) {
	args := sql.Args{"path": sql.Path(path), "types": ""}
	columns, err := db.Columns(ctx, sql.Render("SELECT * FROM read_csv({path}, "+csvOptions+")", args))
	if err != nil {
		return "", fmt.Errorf("read labels %s: %w", path, err)
	}
	var types []sql.Fragment
	var doubles []string
	for _, c := range columns {
		if slices.Contains(textKeys, c.Name) {
			types = append(types, sql.Literal(c.Name)+": 'VARCHAR'")
		} else if c.Type == "DOUBLE" {
			doubles = append(doubles, c.Name)
		}
	}
	wide, err := wideTypes(ctx, db, path, doubles)
	if err != nil {
		return "", fmt.Errorf("read labels %s: %w", path, err)
	}
	types = append(types, wide...)
	if len(types) > 0 {
		args["types"] = ", types = {" + sql.Join(", ", types) + "}"
	}
	return sql.Fragment(sql.Render("read_csv({path}, "+csvOptions+"{types})", args)), nil
}

// wideTypes are the types of those columns of a CSV file, which DuckDB takes for doubles, that are of whole numbers, of which one is beyond
// 64 bits: doubles would round them all.
func wideTypes(ctx context.Context, db *sql.DB, path string, columns []string) ([]sql.Fragment, error) {
	rows := sql.Fragment(sql.Render("read_csv({path}, "+csvOptions+", all_varchar = true)", sql.Args{"path": sql.Path(path)}))
	// Text is slow to look at, and most doubles show in the first rows that they aren't whole.
	columns, _, err := wholeColumns(ctx, db, "(FROM "+rows+" LIMIT 1000)", columns)
	if err != nil {
		return nil, err
	}
	columns, held, err := wholeColumns(ctx, db, rows, columns)
	if err != nil {
		return nil, err
	}
	types := make([]sql.Fragment, len(columns))
	for i, c := range columns {
		types[i] = sql.Literal(c) + ": 'VARCHAR'"
		if held[i] {
			types[i] = sql.Literal(c) + ": 'DECIMAL(38,0)'"
		}
	}
	return types, nil
}

// wholeColumns are those of the columns of text that are of whole numbers, and whether 38 digits hold all of each.
func wholeColumns(ctx context.Context, db *sql.DB, rows sql.Fragment, columns []string) (whole []string, held []bool, err error) {
	if len(columns) == 0 {
		return nil, nil, nil
	}
	var tests []sql.Fragment
	results := make([]bool, 2*len(columns))
	dst := make([]any, len(results))
	for i, c := range columns {
		for k, test := range []string{"regexp_full_match({n}, '[+-]?[0-9]+')", "TRY_CAST({n} AS DECIMAL(38,0)) IS NOT NULL"} {
			n := "nullif(trim(" + sql.Ident(c) + "), '')"
			tests = append(tests, sql.Fragment(sql.Render("coalesce(bool_and({n} IS NULL OR "+test+"), false)", sql.Args{"n": n})))
			dst[2*i+k] = &results[2*i+k]
		}
	}
	err = db.QueryRow(ctx, sql.Render("SELECT {tests} FROM {rows}", sql.Args{"tests": sql.Join(", ", tests), "rows": rows}), nil, dst...)
	if err != nil {
		return nil, nil, err
	}
	for i, c := range columns {
		if results[2*i] {
			whole, held = append(whole, c), append(held, results[2*i+1])
		}
	}
	return whole, held, nil
}

// moment is the expression of a label's time: without a zone it is UTC, and finer digits are cut off, so that a label
// never sees what came after it.
func (l *labels) moment(column string) (sql.Fragment, error) {
	typ, ok := l.typeOf(column)
	if !ok {
		return "", fmt.Errorf("there is no time column %q; name the one that holds the time, among %s", column, strings.Join(l.names(), ", "))
	}
	ident := sql.Ident(column)
	switch typ {
	case "TIMESTAMP WITH TIME ZONE":
		return ident, nil
	case "TIMESTAMP_NS":
		return "make_timestamptz((epoch_ns(" + ident + ") - ((epoch_ns(" + ident + ") % 1000) + 1000) % 1000) // 1000)", nil
	case "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "DATE":
		return "timezone('UTC', " + ident + "::TIMESTAMP)", nil
	case "VARCHAR":
		return ident + "::TIMESTAMPTZ", nil
	}
	return "", fmt.Errorf("time column %s is %s; it must be a timestamp", column, typ)
}

// has gives the label column that statements would take for this name, whatever its case.
func (l *labels) has(column string) (string, bool) {
	for _, c := range l.columns {
		if strings.EqualFold(c.Name, column) {
			return c.Name, true
		}
	}
	return "", false
}

func (l *labels) typeOf(column string) (string, bool) {
	for _, c := range slices.Concat(l.columns, l.aliases) {
		if c.Name == column {
			return c.Type, true
		}
	}
	return "", false
}

func (l *labels) names() []string {
	names := make([]string, len(l.columns))
	for i, c := range l.columns {
		names[i] = c.Name
	}
	return names
}

// key is the expression of an entity's key in the labels, or of its columns in a stream: one value, so that statements
// need not know how many columns it has. The types are the stream's; a label's value that can't be one is no entity's.
func key(prefix string, joinKeys []string, s *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(joinKeys))
	for i, k := range joinKeys {
		c, _ := s.Column(k)
		parts[i] = sql.Fragment(sql.Render("TRY_CAST({column} AS {type})", sql.Args{"column": sql.Fragment(prefix) + sql.Ident(k), "type": sql.Fragment(c.Type.SQL())}))
	}
	if len(parts) == 1 {
		return parts[0]
	}
	for i, k := range joinKeys {
		parts[i] = sql.Ident(k) + " := " + parts[i]
	}
	return "struct_pack(" + sql.Join(", ", parts) + ")"
}

// notNull is true where no part of an entity's key is null: a null key matches nothing.
func notNull(prefix string, joinKeys []string) sql.Fragment {
	parts := make([]sql.Fragment, len(joinKeys))
	for i, k := range joinKeys {
		parts[i] = sql.Fragment(prefix) + sql.Ident(k) + " IS NOT NULL"
	}
	return sql.Join(" AND ", parts)
}
