package lake

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Reading is a stream's tables at one moment, for reading: of a state stream the history at its head, and the log cut to
// the history's offsets, so that the two agree.
type Reading struct {
	Stream  *feature.Stream
	Log     *Table
	History *Table         // nil for an event stream
	beyond  []feature.Span // log rows that the history has not taken
}

// Read opens a stream's tables for reading, as they are now.
func (l *Lake) Read(ctx context.Context, def *feature.Stream) (*Reading, error) {
	r := &Reading{Stream: def}
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

// LogView makes a view of that name over the log, with these columns, or all where columns is nil. With positions it
// has the columns loam_file and loam_row, too, and the rows that are to be read again by position may be read from a
// view made by the same call.
func (r *Reading) LogView(ctx context.Context, db *sql.DB, name string, columns []string, positions bool) error {
	needed := columns
	if columns != nil && len(r.beyond) > 0 {
		needed = append(append([]string(nil), columns...), feature.ColTopic, feature.ColPartition, feature.ColOffset)
	}
	relation, err := r.Log.Scan(ctx, ScanOptions{Columns: needed})
	if err != nil {
		return err
	}
	if len(r.beyond) == 0 {
		return db.LakeView(ctx, name, relation, positions)
	}
	if err := db.LakeView(ctx, name+"_all", relation, positions); err != nil {
		return err
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE VIEW {name} AS SELECT * FROM {all} WHERE NOT ({beyond})",
		sql.Args{"name": sql.Ident(name), "all": sql.Ident(name + "_all"), "beyond": within(r.beyond)}))
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
	relation, err := r.History.Scan(ctx, ScanOptions{Columns: columns})
	if err != nil {
		return err
	}
	return db.LakeView(ctx, name, relation, false)
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
