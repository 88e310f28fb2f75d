package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// check is one run of [History].
type check struct {
	def     *feature.Stream
	reading *lake.Reading
	db      *sql.DB
	report  *Report
	drawn   int
}

// History checks the tables of a stream: the log by itself, and of a state stream the history against the log, cut to
// the history's offsets. The error says what could not be read; what is wrong is in the report.
func History(ctx context.Context, l *lake.Lake, def *feature.Stream, o Options) (*Report, error) {
	c := &check{def: def, report: &Report{Stream: def.Name}}
	if err := c.run(ctx, l, o); err != nil {
		return nil, fmt.Errorf("verify stream %s: %w", def.Name, err)
	}
	return c.report, nil
}

func (c *check) run(ctx context.Context, l *lake.Lake, o Options) error {
	var err error
	if c.reading, err = l.Read(ctx, c.def); err != nil {
		return err
	}
	c.def = c.reading.Stream // a history is made of columns that were dropped, too
	if c.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return err
	}
	defer c.db.Close()
	if err := c.openLog(ctx); err != nil {
		return err
	}
	c.report.Buckets = o.bucketsFor(c.report.LogRows)
	if err := c.partitions(ctx, l); err != nil {
		return err
	}
	if c.reading.History != nil {
		if err := c.openHistory(ctx); err != nil {
			return err
		}
	}
	for bucket := range c.report.Buckets {
		if err := c.duplicates(ctx, bucket); err != nil {
			return err
		}
		if c.reading.History != nil {
			if err := c.versions(ctx, bucket); err != nil {
				return err
			}
		}
		if o.Progress != nil {
			o.Progress(bucket+1, c.report.Buckets)
		}
	}
	return nil
}

// openHistory makes the views of the log, cut to the history's offsets, and of the history.
func (c *check) openHistory(ctx context.Context) error {
	if err := c.reading.LogView(ctx, c.db, "verify_log", logColumns(c.def), false); err != nil {
		return err
	}
	return c.reading.HistoryView(ctx, c.db, "verify_history", feature.ColumnNames(c.def.HistoryColumns()))
}

// versions compares the versions of a bucket.
func (c *check) versions(ctx context.Context, bucket int) error {
	key, columns := sql.Idents("", c.def.Key), feature.ColumnNames(c.def.HistoryColumns())
	states := "verify_changes"
	bounds := []any{c.report.Buckets, bucket}
	err := c.db.Exec(ctx, sql.Render(sql.Statement("verify_changes"), sql.Args{
		"columns": sql.Idents("g.", changeColumns(c.def)), "key": sql.Idents("g.", c.def.Key),
	}), bounds...)
	if err != nil {
		return err
	}
	if c.def.Payload == feature.PatchPayload {
		states = "verify_states"
		kept, carried := patched(c.def)
		err := c.db.Exec(ctx, sql.Render(sql.Statement("verify_patches"), sql.Args{"key": key, "kept": kept, "carried": carried}))
		if err != nil {
			return err
		}
	}
	err = c.db.Exec(ctx, sql.Render(sql.Statement("verify_versions"), sql.Args{
		"states": sql.Ident(states), "key": key, "changed": changed(c.def), "columns": versionColumns(c.def),
		"same_key": sameKey(c.def, "o.", "e."),
	}))
	if err != nil {
		return err
	}
	err = c.db.Exec(ctx, sql.Render(sql.Statement("verify_have"), sql.Args{"key": key, "columns": sql.Idents("", columns)}), bounds...)
	if err != nil {
		return err
	}
	err = c.db.Exec(ctx, sql.Render(sql.Statement("verify_differences"), sql.Args{
		"key": key, "same_key": sameKey(c.def, "w.", "h."), "either_key": eitherKey(c.def), "differing": differing(columns),
	}))
	if err != nil {
		return err
	}
	var changes, keys, versions int64
	err = c.db.QueryRow(ctx, sql.Render(
		"SELECT (SELECT count(*) FROM verify_changes), (SELECT count(*) FROM (SELECT DISTINCT {key} FROM verify_changes)), (SELECT count(*) FROM verify_want)",
		sql.Args{"key": key}), nil, &changes, &keys, &versions)
	if err != nil {
		return err
	}
	c.report.Changes, c.report.Keys, c.report.Versions = c.report.Changes+changes, c.report.Keys+keys, c.report.Versions+versions
	if err := c.intervals(ctx); err != nil {
		return err
	}
	return c.differences(ctx)
}

// intervals takes the rows that break a rule by themselves.
func (c *check) intervals(ctx context.Context) error {
	texts := map[Kind]string{
		EmptyInterval: "the version from %s does not end after it begins",
		Overlap:       "the version from %s ends after the next one begins",
		CurrentFlag:   "the version from %s is current and has an end, or is neither",
		OpenVersions:  "several versions are current; the last of them is from %s",
	}
	rows, err := c.db.Query(ctx, sql.Render(sql.Statement("verify_intervals"), sql.Args{
		"key": sql.Idents("", c.def.Key), "key_text": keyText("", c.def),
	}))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var from moment
		var kind Kind
		if err := rows.Scan(&key, &from, &kind); err != nil {
			return fmt.Errorf("read broken intervals: %w", err)
		}
		c.report.add(Finding{Kind: kind, Key: key, Text: fmt.Sprintf(texts[kind], from)})
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read broken intervals: %w", err)
	}
	return nil
}

// differences takes the rows that differ, and draws the histories of the first keys.
func (c *check) differences(ctx context.Context) error {
	kinds := map[string]Kind{"missing": MissingVersion, "extra": ExtraVersion, "differs": WrongVersion}
	found, err := c.readDifferences(ctx)
	if err != nil {
		return err
	}
	last := ""
	for _, f := range found {
		kind := kinds[f.kind]
		finding := Finding{Kind: kind, Key: f.key}
		switch kind {
		case MissingVersion:
			finding.Text = fmt.Sprintf("the log makes a version from %s that the history lacks", f.from)
		case ExtraVersion:
			finding.Text = fmt.Sprintf("the history has a version from %s that the log doesn't make", f.from)
		case WrongVersion:
			finding.Text = fmt.Sprintf("the version from %s differs in %s", f.from, strings.ReplaceAll(f.columns, ",", ", "))
		}
		if f.key != last && c.drawn < drawingsMax && !c.report.full(kind) {
			c.drawn++
			if finding.Drawing, err = c.draw(ctx, f.key); err != nil {
				return err
			}
		}
		last = f.key
		c.report.add(finding)
	}
	return c.countRest(ctx, kinds, found)
}

// difference is a row of verify_differences.
type difference struct {
	key, kind, columns string
	from               moment
}

// differencesRead bounds how many differences of a bucket are read; the others are counted.
const differencesRead = 3 * findingsMax

func (c *check) readDifferences(ctx context.Context) ([]difference, error) {
	rows, err := c.db.Query(ctx, sql.Render(
		"SELECT {key_text} AS loam_key, loam_from, loam_kind, array_to_string(loam_columns, ',') FROM verify_differences ORDER BY loam_key, loam_from, loam_kind LIMIT {limit}",
		sql.Args{"key_text": keyText("", c.def), "limit": sql.Fragment(fmt.Sprint(differencesRead))}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []difference
	for rows.Next() {
		var d difference
		if err := rows.Scan(&d.key, &d.from, &d.kind, &d.columns); err != nil {
			return nil, fmt.Errorf("read differences: %w", err)
		}
		found = append(found, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read differences: %w", err)
	}
	return found, nil
}

// countRest counts the differences of the bucket that were not read.
func (c *check) countRest(ctx context.Context, kinds map[string]Kind, read []difference) error {
	if len(read) < differencesRead {
		return nil
	}
	for name, kind := range kinds {
		var n int64
		if err := c.db.QueryRow(ctx, "SELECT count(*) FROM verify_differences WHERE loam_kind = $1", []any{name}, &n); err != nil {
			return err
		}
		for _, d := range read {
			if d.kind == name {
				n--
			}
		}
		c.report.count(kind, n)
	}
	return nil
}
