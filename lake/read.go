package lake

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Reading is a stream's tables at one moment, for reading: of a state stream the history at its head, and the log cut to
// the history's offsets, so that the two agree.
type Reading struct {
	Stream  *feature.Stream // with the columns that its tables have of definitions before
	Log     *Table
	History *Table         // nil for an event stream
	beyond  []feature.Span // log rows that the history has not taken
	// declared is how many of the stream's columns its definition has; those behind are of definitions before.
	declared int

	ingested *int64 // the log has what was ingested by then alone, microseconds since 1970; nil for all

	files iceberg.BooleanExpression // which files may hold the entity that the reading is of; nil for all entities
	rows  sql.Fragment              // which rows are the entity's
}

// Read opens a stream's tables for reading, as they are now.
func (l *Lake) Read(ctx context.Context, def *feature.Stream) (*Reading, error) {
	r := &Reading{declared: len(def.Columns)}
	var err error
	// The history first: the log is then at least as far.
	if def.Kind == feature.StateStream {
		if r.History, err = l.openTable(ctx, HistoryName(def.Name)); err != nil {
			return nil, err
		}
	}
	if r.Log, err = l.openTable(ctx, LogName(def.Name)); err != nil {
		return nil, err
	}
	last := r.Log // of the tables to be brought to a definition; it says what both have
	if r.History != nil {
		last = r.History
	}
	if r.Stream, err = last.whole(def); err != nil {
		return nil, err
	}
	if r.History == nil {
		return r, nil
	}
	log, err := r.Log.Offsets()
	if err != nil {
		return nil, err
	}
	history, err := r.History.Offsets()
	if err != nil {
		return nil, err
	}
	r.beyond = missing(log, history)
	return r, nil
}

// Offsets is up to where the reading goes: the history's offsets, or an event stream's log's.
func (r *Reading) Offsets() (Offsets, error) {
	if r.History != nil {
		return r.History.Offsets()
	}
	return r.Log.Offsets()
}

// Head is the log's head as it was loaded.
func (r *Reading) Head() Head { return headOf(r.Log.tbl) }

// Of narrows a reading to one entity, given by the text of each column of its key. Views of it have only the entity's rows,
// and only files of its bucket whose range of keys holds it are read.
func (r *Reading) Of(ctx context.Context, db *sql.DB, key []string) (*Reading, error) {
	one := *r
	for i, name := range r.Stream.Key {
		column, _ := r.Stream.Column(name)
		match, literal, err := keyValue(ctx, db, column, key[i])
		if err != nil {
			return nil, fmt.Errorf("read the key of %s: %w", r.Stream.Name, err)
		}
		condition := sql.Ident(name) + " = " + literal
		if i == 0 {
			one.files, one.rows = match, condition
			continue
		}
		one.files, one.rows = iceberg.NewAnd(one.files, match), one.rows+" AND "+condition
	}
	return &one, nil
}

// keyValue reads the text of one column of a key as DuckDB casts it: that the column equals it, for files, and its
// literal, for rows.
func keyValue(ctx context.Context, db *sql.DB, c feature.Column, text string) (iceberg.BooleanExpression, sql.Fragment, error) {
	column := iceberg.Reference(c.Name)
	if c.Type.Kind == feature.String {
		return iceberg.EqualTo(column, text), sql.Literal(text), nil
	}
	number := sql.Fragment("v")
	switch c.Type.Kind {
	case feature.Date:
		number = "date_diff('day', DATE '1970-01-01', v)"
	case feature.Timestamp:
		number = "epoch_us(v)"
	}
	var value *int64
	err := db.QueryRow(ctx, sql.Render("SELECT {number} FROM (SELECT TRY_CAST($1 AS {type}) AS v)",
		sql.Args{"number": number, "type": sql.Fragment(c.Type.SQL())}), []any{text}, &value)
	if err != nil {
		return nil, "", err
	}
	if value == nil {
		return nil, "", fmt.Errorf("%q is not a value of %s, which is %s", text, c.Name, c.Type)
	}
	literal := sql.Literal(text) + "::" + sql.Fragment(c.Type.SQL())
	switch c.Type.Kind {
	case feature.Date:
		return iceberg.EqualTo(column, iceberg.Date(*value)), literal, nil
	case feature.Timestamp:
		return iceberg.EqualTo(column, iceberg.Timestamp(*value)), literal, nil
	default:
		return iceberg.EqualTo(column, *value), literal, nil
	}
}

// Span is a span of time that changes are asked of, in microseconds, by what they tell rather than exactly: a reading of it
// leaves out files that hold no such change.
type Span struct {
	From *int64 // their event time is not before this; nil for no bound
	To   int64  // it is not after this
	// Ingested takes changes, too, whose event time is after To and which were ingested by then.
	Ingested bool
}

// Spanning narrows a reading of a log to the files that may hold changes of the span.
func (r *Reading) Spanning(s Span) *Reading {
	narrow := *r
	event := iceberg.Reference(feature.ColEventTime)
	var files iceberg.BooleanExpression = iceberg.LessThanEqual(event, iceberg.Timestamp(s.To))
	if s.Ingested {
		files = iceberg.NewOr(files, iceberg.LessThanEqual(iceberg.Reference(feature.ColIngestedAt), iceberg.Timestamp(s.To)))
	}
	if s.From != nil {
		files = iceberg.NewAnd(files, iceberg.GreaterThanEqual(event, iceberg.Timestamp(*s.From)))
	}
	if narrow.files != nil {
		files = iceberg.NewAnd(narrow.files, files)
	}
	narrow.files = files
	return &narrow
}

// IngestedBy narrows a reading of a log to the rows that were ingested by a time, in microseconds since 1970.
func (r *Reading) IngestedBy(us int64) *Reading {
	narrow := *r
	narrow.ingested = &us
	var files iceberg.BooleanExpression = iceberg.LessThanEqual(iceberg.Reference(feature.ColIngestedAt), iceberg.Timestamp(us))
	if narrow.files != nil {
		files = iceberg.NewAnd(narrow.files, files)
	}
	narrow.files = files
	return &narrow
}

// Above narrows a reading of a log to the files that may hold rows at an offset or behind it.
func (r *Reading) Above(offset int64) *Reading {
	narrow := *r
	files := iceberg.GreaterThanEqual(iceberg.Reference(feature.ColOffset), offset)
	if narrow.files != nil {
		narrow.files = iceberg.NewAnd(narrow.files, files)
	} else {
		narrow.files = files
	}
	return &narrow
}

// LogView makes a view of that name over the log, with these columns, or all where columns is nil. With positions it
// has the columns loam_file and loam_row, too, and the rows that are to be read again by position may be read from a
// view made by the same call.
func (r *Reading) LogView(ctx context.Context, db *sql.DB, name string, columns []string, positions bool) error {
	var conditions []sql.Fragment
	if len(r.beyond) > 0 {
		if columns != nil {
			columns = append(append([]string(nil), columns...), feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColJobID)
		}
		conditions = append(conditions, "NOT ("+within(r.beyond)+")")
	}
	if r.ingested != nil {
		if columns != nil {
			columns = append(append([]string(nil), columns...), feature.ColIngestedAt)
		}
		conditions = append(conditions, sql.Fragment(fmt.Sprintf("epoch_us(ingested_at) <= %d", *r.ingested)))
	}
	return r.view(ctx, db, r.Log, name, columns, positions, conditions)
}

// view makes a view over one of the tables with the rows of the entity, if the reading is of one, that meet the conditions.
func (r *Reading) view(ctx context.Context, db *sql.DB, t *Table, name string, columns []string, positions bool, conditions []sql.Fragment) error {
	if r.rows != "" {
		if columns != nil {
			columns = append(append([]string(nil), columns...), r.Stream.Key...)
		}
		conditions = append(conditions, r.rows)
	}
	relation, err := t.Scan(ctx, ScanOptions{Columns: columns, Filter: r.files})
	if err != nil {
		return err
	}
	if len(conditions) == 0 {
		return db.LakeView(ctx, name, relation, positions)
	}
	if err := db.LakeView(ctx, name+"_all", relation, positions); err != nil {
		return err
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE VIEW {name} AS SELECT * FROM {all} WHERE {conditions}",
		sql.Args{"name": sql.Ident(name), "all": sql.Ident(name + "_all"), "conditions": sql.Join(" AND ", conditions)}))
}

// Rows hands over the log's rows in the spans, in no order, in batches with the columns of [feature.Stream.LogColumns];
// they are released after use returns.
func (r *Reading) Rows(ctx context.Context, db *sql.DB, spans []feature.Span, use func(arrow.RecordBatch) error) error {
	if len(spans) == 0 {
		return nil
	}
	if err := r.LogView(ctx, db, "spans", nil, false); err != nil {
		return err
	}
	statement := sql.Render("SELECT * FROM spans WHERE {where}", sql.Args{"where": within(spans)})
	return db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		for reader.Next() {
			if err := use(reader.RecordBatch()); err != nil {
				return err
			}
		}
		return nil
	})
}

// HistoryView makes a view of that name over the history.
func (r *Reading) HistoryView(ctx context.Context, db *sql.DB, name string, columns []string) error {
	return r.view(ctx, db, r.History, name, columns, false, nil)
}

// Snapshots are the snapshots that the reading stands on, by the tables' full names; empty tables are left out.
func (r *Reading) Snapshots() map[string]int64 {
	snapshots := map[string]int64{}
	for _, t := range []*Table{r.Log, r.History} {
		if t != nil && t.SnapshotID() != 0 {
			snapshots[t.Name()] = t.SnapshotID()
		}
	}
	return snapshots
}
