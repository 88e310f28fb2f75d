package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// extractOptions are the flags of backfill that only full extracts take.
type extractOptions struct {
	time         string // RFC 3339; "" for the greatest event time in the extract
	allowEmpty   bool
	allowDeletes bool
	dryRun       bool
}

// given names the first flag that was given, "" for none.
func (o extractOptions) given() string {
	switch {
	case o.time != "":
		return "--extract-time"
	case o.allowEmpty:
		return "--allow-empty"
	case o.allowDeletes:
		return "--allow-deletes"
	case o.dryRun:
		return "--dry-run"
	}
	return ""
}

// fullExtract is all files of one command, taken together as what a stream's source held at one time. Entities that
// existed then and have no row in it are deleted as of then, once all of its rows have been taken.
//
// The deletes stand behind the rows of one file, the last by content of those that weren't loaded before, and that file isn't
// done before they are committed: all of them in one commit. So an extract that was cut off goes on, and one that was loaded
// implies nothing more. With a time that is given, files that were loaded before are an extract of that time, too: two
// extracts may have the same bytes.
type fullExtract struct {
	stream  *feature.Stream
	files   []ingest.File // in the order of their contents, each once
	options extractOptions
	at      int64             // the given time, microseconds since 1970 UTC
	loaded  bool              // all of it was loaded before this command
	behind  feature.Partition // the file behind whose rows the deletes stand

	rows, refused int64
	end           int64 // one past the last row of the file behind which the deletes stand
	first         int64 // one past the last row of that file in the log: more than its offset where the file was forgotten
}

// extractIDs is how many ids are kept in memory to leave repeated rows of an extract out. Any number would do: a row that
// comes twice is no other entity.
const extractIDs = 1 << 16

// extractReport tells what a full extract said of its stream.
type extractReport struct {
	Time     time.Time `json:"time"`
	Given    bool      `json:"time_given"`
	Rows     int64     `json:"rows"`
	Existing int64     `json:"existing"` // entities that existed at its time
	Absent   int64     `json:"absent"`   // of these, without a row in it
	Deleted  int64     `json:"deleted"`
	// StayDeleted are entities with a row in it that don't exist at its time all the same: a newer delete stands.
	StayDeleted int64 `json:"stay_deleted"`
	// Again says that rows of it were new and the log holds newer changes: of the entities that only this extract brings,
	// newer ones that were loaded before couldn't tell that they lack them.
	Again  bool `json:"load_newer_again"`
	DryRun bool `json:"dry_run,omitempty"`
}

// newFullExtract is nil for a stream that takes changes, for which no flag of extracts may be given.
func newFullExtract(s *feature.Stream, files []ingest.File, o extractOptions, now time.Time) (*fullExtract, error) {
	if s == nil || !s.Full() {
		if flag := o.given(); flag != "" {
			return nil, misused("%s is for a stream with load: full, named by --stream", flag)
		}
		return nil, nil
	}
	e := &fullExtract{stream: s, options: o}
	if o.time != "" {
		at, err := flagTime("--extract-time", o.time)
		if err != nil {
			return nil, err
		}
		if at.After(now.Add(s.MaxClockSkew)) {
			return nil, misused("--extract-time %s is in the future", o.time)
		}
		e.at = at.UnixMicro()
	}
	for _, f := range files {
		if !slices.ContainsFunc(e.files, func(o ingest.File) bool { return o.Topic == f.Topic }) {
			e.files = append(e.files, f)
		}
	}
	slices.SortFunc(e.files, func(a, b ingest.File) int { return strings.Compare(a.Topic, b.Topic) })
	return e, nil
}

// begin sees what of the extract was loaded before.
func (e *fullExtract) begin(n *line) error {
	offsets, err := n.streams[e.stream.Name].offsets()
	if err != nil {
		return err
	}
	e.loaded, e.behind.Topic = true, e.files[len(e.files)-1].Topic
	for _, f := range e.files {
		if !fileDone(offsets, f.Topic) {
			e.loaded, e.behind.Topic = false, f.Topic
		}
	}
	return nil
}

// finish deletes what the extract lacks, once its rows have been taken. Without an error and a report there was nothing to
// find out. With a report and an error nothing was deleted.
func (b *backfill) finish(ctx context.Context, l *lake.Lake) (*extractReport, error) {
	e := b.full
	if e.loaded && e.options.time == "" {
		return nil, nil
	}
	offsets, err := b.line.streams[e.stream.Name].offsets()
	if err != nil {
		return nil, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: streamMemoryBytes, TempDir: tempDir(b.project)})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if err := b.readExtract(ctx, db); err != nil {
		return nil, err
	}
	for _, f := range e.files {
		at, _ := offsets.Of(feature.Partition{Topic: f.Topic})
		e.refused = max(e.refused, at.Refused)
	}
	if err := e.complete(); err != nil {
		return nil, err
	}
	reading, err := l.Read(ctx, e.stream)
	if err != nil {
		return nil, err
	}
	report, ambiguous, err := e.compare(ctx, db, reading)
	if err != nil {
		return nil, err
	}
	at, _ := offsets.Of(e.behind)
	forgotten := e.first > at.Next && !report.Given
	if forgotten {
		report.Absent, ambiguous = 0, 0
	}
	report.Again = report.Again && b.did.of(e.stream.Name).Accepted > 0
	if err := e.guard(report, ambiguous); err != nil || e.options.dryRun {
		return report, err
	}
	var keys []arrow.RecordBatch
	if !forgotten {
		if keys, err = db.Collect(ctx, e.statement("extract_gone", report.Time.UnixMicro())); err != nil {
			return nil, fmt.Errorf("list what the extract lacks: %w", err)
		}
	}
	defer func() {
		for _, k := range keys {
			k.Release()
		}
	}()
	if err := b.delete(ctx, keys, at.Next, report); err != nil {
		return nil, err
	}
	return report, nil
}

// complete refuses an extract that can't tell what is gone.
func (e *fullExtract) complete() error {
	switch {
	case e.refused > 0:
		return fmt.Errorf("refused of the extract: %s, and whose isn't known, so nothing is deleted; see `loam dlq list`, mend the "+
			"file, and load the whole extract again", count(e.refused, "row"))
	case e.rows == 0 && !e.options.allowEmpty:
		return errors.New("the extract has no rows: nothing is deleted; if everything is gone, say so with --allow-empty")
	case e.rows == 0 && e.options.time == "":
		return errors.New("an extract without rows says no time: give it with --extract-time")
	}
	return nil
}

// guard refuses deletes that are likely to be a mistake.
func (e *fullExtract) guard(r *extractReport, ambiguous int64) error {
	switch {
	case ambiguous > 0:
		return fmt.Errorf("the extract's time is taken as its greatest event time, %s, and %s that it lacks changed then or later: nothing is "+
			"deleted, for they may be newer than the extract, or gone; say when it was taken with --extract-time", moment(r.Time.UnixMicro()), count(ambiguous, "entity"))
	case 2*r.Absent > r.Existing && e.rows > 0 && !e.options.allowDeletes:
		return fmt.Errorf("the extract lacks %s of %s that existed at its time, %s: it may be cut off, so nothing is deleted; "+
			"if they are gone, say so with --allow-deletes", number(r.Absent), count(r.Existing, "entity"), moment(r.Time.UnixMicro()))
	}
	return nil
}

// readExtract reads all rows of the extract once more, whatever of them was taken before, into the table extract_rows: the
// key, event time and op of each.
func (b *backfill) readExtract(ctx context.Context, db *sql.DB) error {
	e, s := b.full, b.full.stream
	fresh := ingest.NewDedup(extractIDs, func(context.Context, []feature.Identity) (map[feature.Identity]feature.Position, error) {
		return nil, nil
	})
	router := ingest.NewRouter(ingest.RouterOptions{
		Streams: b.streams, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: fresh}, Deletes: b.line.deletes(), Mappings: b.line.mappings(),
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	keep := append(slices.Clone(s.Key), feature.ColEventTime, feature.ColOp)
	schema := columnsOf(s.LogSchema(), keep)
	if err := db.ImportBatches(ctx, "extract_rows", schema, nil); err != nil {
		return err
	}
	for _, f := range e.files {
		source, err := f.Open(0, nil)
		if err != nil {
			return err
		}
		end, err := e.readFile(ctx, db, source, router, keep)
		if f.Topic == e.behind.Topic {
			e.end = end
		}
		if err = errors.Join(err, source.Close()); err != nil {
			return err
		}
	}
	return nil
}

// readFile adds the rows of a file to the table, and gives the offset after the last of them.
func (e *fullExtract) readFile(ctx context.Context, db *sql.DB, source ingest.Source, router *ingest.Router, keep []string) (end int64, err error) {
	for {
		poll, err := source.Poll(ctx)
		if err != nil {
			return end, err
		}
		if err := router.AddAll(ctx, poll.Records, 0); err != nil {
			return end, err
		}
		if n := len(poll.Records); n > 0 {
			end = poll.Records[n-1].Offset + 1
		}
		if rows, size := router.Pending(); rows < backfillRows && size < backfillBytes && !poll.Done {
			continue
		}
		batches, err := router.Flush(ctx, nil)
		if err != nil {
			return end, err
		}
		for _, batch := range batches {
			err = errors.Join(err, e.keep(ctx, db, batch, keep))
			batch.Release()
		}
		if err != nil || poll.Done {
			return end, err
		}
	}
}

// keep adds a batch of the extract to the table.
func (e *fullExtract) keep(ctx context.Context, db *sql.DB, batch *feature.Batch, columns []string) error {
	for _, s := range batch.Spans {
		e.rows += s.Counts.Read
		e.refused += s.Counts.Refused
	}
	for _, rows := range batch.Rows {
		if rows.NumRows() == 0 {
			continue
		}
		schema := columnsOf(rows.Schema(), columns)
		arrays := make([]arrow.Array, schema.NumFields())
		for i, f := range schema.Fields() {
			arrays[i] = rows.Column(rows.Schema().FieldIndices(f.Name)[0])
		}
		kept := array.NewRecordBatch(schema, arrays, rows.NumRows())
		err := db.ImportBatches(ctx, "extract_part", schema, []arrow.RecordBatch{kept})
		kept.Release()
		if err == nil {
			err = db.Exec(ctx, "INSERT INTO extract_rows FROM extract_part")
		}
		if err != nil {
			return fmt.Errorf("keep the keys of the extract: %w", err)
		}
	}
	return nil
}

// columnsOf is the schema with the named columns alone.
func columnsOf(schema *arrow.Schema, names []string) *arrow.Schema {
	fields := make([]arrow.Field, len(names))
	for i, name := range names {
		fields[i] = schema.Field(schema.FieldIndices(name)[0])
	}
	return arrow.NewSchema(fields, nil)
}

// statement is one of the statements of full extracts.
func (e *fullExtract) statement(name string, at int64) string {
	text := sql.Statement(name)
	return sql.Render(text, sql.Args{"key": sql.Idents("", e.stream.Key), "at": sql.Fragment(fmt.Sprint(at))})
}

// compare holds the extract against the lake. It leaves the views and tables that the statements read, and tells how many
// entities can't be judged because the extract's time isn't known.
func (e *fullExtract) compare(ctx context.Context, db *sql.DB, reading *lake.Reading) (*extractReport, int64, error) {
	at := e.at
	if e.options.time == "" {
		if err := db.QueryRow(ctx, "SELECT epoch_us(max(event_time)) FROM extract_rows", nil, &at); err != nil {
			return nil, 0, fmt.Errorf("find the extract's time: %w", err)
		}
	}
	history := append(slices.Clone(e.stream.Key), feature.ColValidFrom, feature.ColValidTo)
	log := append(slices.Clone(e.stream.Key), feature.ColEventTime, feature.ColOp, feature.ColTopic, feature.ColOffset)
	err := errors.Join(reading.HistoryView(ctx, db, "extract_history", history), reading.LogView(ctx, db, "extract_log", log, false))
	if err != nil {
		return nil, 0, err
	}
	if err := db.Exec(ctx, "CREATE OR REPLACE TABLE extract_existing AS "+e.statement("extract_existing", at)); err != nil {
		return nil, 0, fmt.Errorf("list the entities that exist at the extract's time: %w", err)
	}
	r := &extractReport{Time: time.UnixMicro(at).UTC(), Given: e.options.time != "", Rows: e.rows, DryRun: e.options.dryRun}
	numbers := map[string]*int64{
		"SELECT count(*) FROM extract_existing":                                                    &r.Existing,
		"SELECT count(*) FROM (" + strings.TrimRight(e.statement("extract_gone", at), ";\n") + ")": &r.Absent,
	}
	if !r.DryRun { // the rows have been taken
		numbers[e.statement("extract_stay", at)] = &r.StayDeleted
	}
	var ambiguous int64
	if !r.Given {
		numbers[e.statement("extract_changed", at)] = &ambiguous
	}
	for statement, n := range numbers {
		if err := db.QueryRow(ctx, statement, nil, n); err != nil {
			return nil, 0, fmt.Errorf("compare the extract with the lake: %w", err)
		}
	}
	topics := make([]sql.Fragment, len(e.files))
	for i, f := range e.files {
		topics[i] = sql.Literal(f.Topic)
	}
	err = db.QueryRow(ctx, `SELECT coalesce(max("offset"), -1) + 1 FROM extract_log WHERE topic = $1`, []any{e.behind.Topic}, &e.first)
	if err != nil {
		return nil, 0, fmt.Errorf("find where the deletes shall stand: %w", err)
	}
	err = db.QueryRow(ctx, sql.Render("SELECT EXISTS (FROM extract_log WHERE event_time > make_timestamptz({at}) AND topic NOT IN ({topics}))",
		sql.Args{"at": sql.Fragment(fmt.Sprint(at)), "topics": sql.Join(", ", topics)}), nil, &r.Again)
	if err != nil {
		return nil, 0, fmt.Errorf("compare the extract with the lake: %w", err)
	}
	return r, ambiguous, nil
}

// delete commits the deletes of the keys, which ends the file behind whose rows they stand; next is where the stream stands
// in it.
func (b *backfill) delete(ctx context.Context, keys []arrow.RecordBatch, next int64, r *extractReport) error {
	e, o := b.full, b.line.streams[b.full.stream.Name]
	if next < e.end {
		return fmt.Errorf("stream %s has taken %d rows of %d of the extract: the file was changed while it was read; load it again", e.stream.Name, next, e.end)
	}
	implied := ingest.Implied{
		Stream: e.stream, JobID: b.line.jobID, Keys: keys, At: r.Time.UnixMicro(), File: e.behind, From: next, First: max(next, e.first),
		RecordedAt: b.now().UnixMicro(),
	}
	batch, err := implied.Batch(ctx)
	if err != nil {
		return err
	}
	defer batch.Release()
	if b.live != nil {
		if err := b.live.Begin(ctx, b.streams, e.behind, map[string]int64{e.stream.Name: next}); err != nil {
			return err
		}
	}
	r.Deleted = batch.NumRows()
	return b.commit(ctx, []routed{{batch, o.knows()}})
}

// print tells what the extract said.
func (r *extractReport) print(w io.Writer) {
	becomes := "deleted as of then"
	switch {
	case r.DryRun:
		becomes = "would be deleted as of then"
	case r.Deleted == 0 && r.Absent > 0:
		becomes = "left as they are"
	}
	fmt.Fprintf(w, "  full extract of %s: %s; entities that existed then: %s, of which without a row in it: %s, %s\n",
		moment(r.Time.UnixMicro()), count(r.Rows, "row"), number(r.Existing), number(r.Absent), becomes)
	if r.StayDeleted > 0 {
		fmt.Fprintf(w, "  %s in it stay deleted: the deletes are newer than their rows, which need a newer event time\n", count(r.StayDeleted, "entity"))
	}
	if r.Again {
		fmt.Fprintln(w, "  there are newer changes: a newer extract that was loaded before can't have told what this one alone has; "+
			"load it again, with its --extract-time")
	}
}
