package quality

import (
	"context"
	"fmt"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Options bound and inform a report.
type Options struct {
	// Buckets is how many parts the keys are taken in; 0 means one a million changes.
	Buckets     int
	MemoryBytes int64  // of DuckDB; 0 leaves its default
	TempDir     string // where it spills to
	// Progress, if not nil, is told how many buckets of how many have been measured.
	Progress func(done, of int)
}

const (
	changesPerBucket = 1_000_000
	keysMax          = 5         // examples of a measure
	aheadUS          = 1_000_000 // how far after recorded_at an event time may be: clocks of two machines differ
)

// run is a report in the making: sums over the buckets that were measured.
type run struct {
	def     *feature.Stream
	db      *sql.DB
	buckets int
	counts  map[string]int64 // by the columns of quality_change_counts and quality_version_counts
	shifts  map[int64]int64  // changes by quarters of an hour
	columns map[Kind]map[string]Column
	keys    map[string][]string // by kind, of noise by kind and column
}

// Of measures a state stream: its history, and its log cut to the history's offsets.
func Of(ctx context.Context, l *lake.Lake, def *feature.Stream, o Options) (*Report, error) {
	r := &run{
		def: def, buckets: o.Buckets, counts: map[string]int64{}, shifts: map[int64]int64{},
		columns: map[Kind]map[string]Column{}, keys: map[string][]string{},
	}
	report, err := r.all(ctx, l, o)
	if err != nil {
		return nil, fmt.Errorf("report on stream %s: %w", def.Name, err)
	}
	return report, nil
}

func (r *run) all(ctx context.Context, l *lake.Lake, o Options) (*Report, error) {
	reading, err := l.Read(ctx, r.def)
	if err != nil {
		return nil, err
	}
	offsets, err := reading.Log.Offsets()
	if err != nil {
		return nil, err
	}
	if r.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	defer r.db.Close()
	if err := reading.LogView(ctx, r.db, "quality_log", changeColumns(r.def), false); err != nil {
		return nil, err
	}
	if err := reading.HistoryView(ctx, r.db, "quality_history", versionColumns(r.def)); err != nil {
		return nil, err
	}
	if r.buckets == 0 {
		var changes int64
		if err := r.db.QueryRow(ctx, "SELECT count(*) FROM quality_log", nil, &changes); err != nil {
			return nil, err
		}
		r.buckets = int(max(1, (changes+changesPerBucket-1)/changesPerBucket))
	}
	for bucket := range r.buckets {
		if err := r.measureBucket(ctx, bucket); err != nil {
			return nil, err
		}
		if o.Progress != nil {
			o.Progress(bucket+1, r.buckets)
		}
	}
	return r.report(offsets.Counts()), nil
}

// measureBucket adds what there is of the keys of one bucket.
func (r *run) measureBucket(ctx context.Context, bucket int) error {
	args := lists(r.def)
	args["columns"], args["key"], args["key_text"] = sql.Idents("", changeColumns(r.def)), sql.Idents("", r.def.Key), keyText(r.def)
	if err := r.db.Exec(ctx, sql.Render(sql.Statement("quality_changes"), args), r.buckets, bucket, aheadUS); err != nil {
		return err
	}
	args = sql.Args{"key": args["key"], "key_text": args["key_text"], "changed": named(r.def, "{c} IS DISTINCT FROM lag({c}) OVER moments")}
	if err := r.db.Exec(ctx, sql.Render(sql.Statement("quality_versions"), args), r.buckets, bucket); err != nil {
		return err
	}
	for _, statement := range []string{"quality_change_counts", "quality_version_counts"} {
		if err := r.addCounts(ctx, sql.Statement(statement)); err != nil {
			return err
		}
	}
	if err := r.addShifts(ctx); err != nil {
		return err
	}
	return r.addExamples(ctx)
}

// addCounts adds the one row of counts that a statement gives, by its columns.
func (r *run) addCounts(ctx context.Context, statement string) error {
	rows, err := r.db.Query(ctx, statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	counts := make([]int64, len(names))
	into := make([]any, len(names))
	for i := range counts {
		into[i] = &counts[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("read counts: %w", err)
		}
		for i, name := range names {
			r.counts[name] += counts[i]
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	return nil
}

func (r *run) addShifts(ctx context.Context) error {
	rows, err := r.db.Query(ctx, sql.Statement("quality_shifts"))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var quarters, n int64
		if err := rows.Scan(&quarters, &n); err != nil {
			return fmt.Errorf("read shifts of event times: %w", err)
		}
		r.shifts[quarters] += n
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read shifts of event times: %w", err)
	}
	return nil
}

// addExamples adds columns and keys of what was found in the bucket.
func (r *run) addExamples(ctx context.Context) error {
	for _, e := range []struct {
		kind      Kind
		rows      string
		condition string
		list      string // of columns; "" for none
	}{
		{Ties, "quality_changes", "loam_tied", ""},
		{Disputed, "quality_changes", "loam_disputed", "loam_disputes"},
		{OutOfOrder, "quality_changes", "loam_behind", ""},
		{Ahead, "quality_changes", "loam_ahead", ""},
		{SparseNulls, "quality_changes", "loam_sparse", "loam_lost"},
		{Late, "quality_changes", "loam_late", ""},
		{CreatedAgain, "quality_versions", "loam_created_again", ""},
		{Noise, "quality_versions", "loam_follows", "loam_changed"},
	} {
		if e.list != "" {
			if err := r.addColumns(ctx, e.kind, sql.Args{
				"rows": sql.Fragment(e.rows), "list": sql.Fragment(e.list), "condition": sql.Fragment(e.condition),
			}); err != nil {
				return err
			}
		}
		name, condition := string(e.kind), sql.Fragment(e.condition)
		if e.kind == Noise {
			loudest := loudestOf(r.columns[Noise])
			name, condition = noiseKeys(loudest), "loam_changed = ["+sql.Literal(loudest)+"]"
		}
		if err := r.addKeys(ctx, name, sql.Args{"rows": sql.Fragment(e.rows), "condition": condition}); err != nil {
			return err
		}
	}
	return nil
}

// noiseKeys is the name under which keys of a column are kept that alone made versions of them.
func noiseKeys(column string) string { return string(Noise) + " " + column }

func (r *run) addColumns(ctx context.Context, kind Kind, args sql.Args) error {
	rows, err := r.db.Query(ctx, sql.Render(sql.Statement("quality_columns"), args))
	if err != nil {
		return err
	}
	defer rows.Close()
	if r.columns[kind] == nil {
		r.columns[kind] = map[string]Column{}
	}
	for rows.Next() {
		var c Column
		if err := rows.Scan(&c.Name, &c.Count, &c.Alone); err != nil {
			return fmt.Errorf("count columns: %w", err)
		}
		sum := r.columns[kind][c.Name]
		r.columns[kind][c.Name] = Column{Name: c.Name, Count: sum.Count + c.Count, Alone: sum.Alone + c.Alone}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("count columns: %w", err)
	}
	return nil
}

func (r *run) addKeys(ctx context.Context, name string, args sql.Args) error {
	left := keysMax - len(r.keys[name])
	if left == 0 {
		return nil
	}
	rows, err := r.db.Query(ctx, sql.Render(sql.Statement("quality_keys"), args), left)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		r.keys[name] = append(r.keys[name], key)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	return nil
}
