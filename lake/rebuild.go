package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/table/dv"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/scd"
	"github.com/loamdata/loam/sql"
)

// RebuildOptions bound and inform a rebuild.
type RebuildOptions struct {
	MemoryBytes int64  // of DuckDB, which reads and sorts the log; 0 leaves its default
	TempDir     string // where it spills to
	// Progress, if not nil, is told how many changes of how many have been read.
	Progress func(done, of int64)
}

// Rebuilt says what a rebuild did.
type Rebuilt struct {
	Changes  int64 // of the log, read in the first pass
	Later    int64 // keys that changed meanwhile, and were derived again
	Versions int64 // that the history then holds
}

// Bounds of a rebuild.
const (
	// rebuildRows is how many changes are read at a time, those of whole keys: a key with more is read at once all the same.
	rebuildRows = 1 << 18
	// rebuildPasses bounds how often what was taken meanwhile is read before the first attempt to commit. Each is shorter
	// than the one before, where the log is read faster than it grows.
	rebuildPasses = 8
	// versionBatch is how many versions wait for a file until they are written to it.
	versionBatch = 1 << 14
)

// rebuild derives the history of a stream anew from its log, in files of its own, and puts them in place of all the history's
// files. It may work beside any number of writers:
//
//  1. The log is read as it stands, some keys at a time, and the versions of all keys are written, sorted.
//  2. Keys that the log has taken changes of since are derived again, whole. Their rows in the files so far are noted as
//     deleted, and the new ones are written to further files. That is repeated until little comes.
//  3. Each attempt to commit begins with loading the history, and then the log, which is at least as far: writers commit to it
//     first. What the log has taken since is derived as before, so the files hold what the log makes of all its rows, and the
//     history's offsets become the log's. Other writers of the history are asked to wait meanwhile. One that commits between
//     all the same makes the attempt a conflict, and the next one has only what came since to derive.
//
// Until the commit the history is what it was. What a rebuild that ends before it has written is named by no snapshot.
type rebuild struct {
	layout  *layout
	log     *Table
	history *Table
	db      *sql.DB
	// files, of the merger, are those written so far, with the rows of them that were replaced since. It finds keys in them.
	merger  *merger
	first   int // of the files: those of the first pass
	lasting *fileWriter
	vectors []iceberg.DataFile
	at      Offsets // those of the log that the files make the history of
	head    int64   // the log's snapshot with these
	ties    tally   // of the changes of those
	out     Rebuilt
	tell    func(done, of int64)
	rows    int64 // see rebuildRows
	ends    int64 // rows that end a file
}

// Rebuild derives the history of a state stream anew from its log, by what the stream tracks now, and puts it in place of the
// old one in one commit. Writers may go on beside it; those that were opened for other tracked columns are then [ErrChanged].
func (l *Lake) Rebuild(ctx context.Context, def *feature.Stream, o RebuildOptions) (Rebuilt, error) {
	return l.rebuild(ctx, def, o, false)
}

func (l *Lake) rebuild(ctx context.Context, def *feature.Stream, o RebuildOptions, rewinding bool) (Rebuilt, error) {
	r, err := l.openRebuild(ctx, def, o)
	if err != nil {
		return Rebuilt{}, err
	}
	defer r.db.Close()
	if !rewinding {
		if err := r.log.notRewinding(def.Name); err != nil {
			return Rebuilt{}, err
		}
	}
	defer r.merger.close()
	if err := r.run(ctx); err != nil {
		if !errors.Is(err, errUnsettled) {
			r.discard()
		}
		return Rebuilt{}, fmt.Errorf("rebuild the history of %s: %w", def.Name, err)
	}
	return r.out, nil
}

func (l *Lake) openRebuild(ctx context.Context, def *feature.Stream, o RebuildOptions) (*rebuild, error) {
	if def.Kind != feature.StateStream {
		return nil, fmt.Errorf("stream %s is of kind %s and has no history: only that of a state stream can be rebuilt", def.Name, def.Kind)
	}
	r := &rebuild{ties: tally{}, tell: o.Progress, rows: rebuildRows, ends: usualSizes.fileRowsMax}
	if r.tell == nil {
		r.tell = func(int64, int64) {}
	}
	var err error
	if r.log, err = l.openFor(ctx, LogName(def.Name), def.LogColumns()); err != nil {
		return nil, err
	}
	rewound := r.log.tbl.Properties()[propertyRewind]
	r.log.rewound = &rewound
	if r.history, err = l.openTable(ctx, HistoryName(def.Name)); err != nil {
		return nil, err
	}
	whole, err := r.history.whole(def)
	if err != nil {
		return nil, err
	}
	if r.history, err = l.openFor(ctx, HistoryName(def.Name), whole.HistoryColumns()); err != nil {
		return nil, err
	}
	r.layout = newLayout(whole)
	if r.lasting, err = r.history.fileWriter(ctx); err != nil {
		return nil, err
	}
	r.lasting.packing.lasting = true
	if r.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	r.merger = newMerger(&Stream{layout: r.layout, log: r.log, history: r.history, db: r.db}, StreamOptions{})
	r.merger.fileOf = map[string]int32{}
	return r, nil
}

func (r *rebuild) run(ctx context.Context) error {
	if err := r.derive(ctx, nil); err != nil {
		return err
	}
	r.first = len(r.merger.files)
	for range rebuildPasses {
		if keys, err := r.follow(ctx); err != nil {
			return err
		} else if keys <= lateSeekMax {
			break
		}
	}
	step.At(step.RebuildDerived)
	if err := r.history.hold(ctx); err != nil {
		return err
	}
	step.At(step.RebuildHeld)
	if err := r.commit(ctx); err != nil {
		return err
	}
	step.At(step.RebuildCommitted)
	return nil
}

// derive writes the versions of all keys that the log has, or where came is given of those in the table rebuild_touched, from its
// loaded head. came tells which of their changes are new.
func (r *rebuild) derive(ctx context.Context, came func(scd.Change) bool) error {
	touched := came != nil
	relation, err := r.log.Scan(ctx, ScanOptions{Columns: feature.ColumnNames(r.layout.changeColumns())})
	if err != nil {
		return err
	}
	if err := r.db.LakeView(ctx, "rebuild_log", relation, false); err != nil {
		return err
	}
	join := sql.Fragment("")
	if touched {
		join = " SEMI JOIN rebuild_touched k USING (" + sql.Idents("", r.layout.stream.Key) + ")"
	}
	if err := r.db.Exec(ctx, sql.Render("CREATE OR REPLACE VIEW rebuild_changes AS SELECT l.* FROM rebuild_log l{join}", sql.Args{"join": join})); err != nil {
		return err
	}
	parts, total, err := r.parts(ctx)
	if err != nil {
		return err
	}
	out := &versionWriter{layout: r.layout, writer: r.lasting, ends: r.ends, files: map[partitionKey]*versionFile{}}
	var done int64
	for _, part := range parts {
		var n int64
		if n, err = r.derivePart(ctx, part, came, out); err != nil {
			break
		}
		if done += n; !touched {
			r.tell(min(done, total), total)
		}
	}
	if err == nil {
		err = out.end()
	}
	r.add(out.written)
	if err != nil {
		return errors.Join(err, out.abandon())
	}
	if touched {
		return nil
	}
	r.out.Changes, r.head = done, r.log.SnapshotID()
	r.at, err = r.log.Offsets()
	return err
}

// add notes files that were written.
func (r *rebuild) add(files []iceberg.DataFile) {
	m := r.merger
	for _, f := range files {
		m.fileOf[f.FilePath()] = int32(len(m.files))
		m.files = append(m.files, &liveFile{data: f})
	}
}

// parts divides the changes of the view rebuild_changes by ranges of the key's first column, so that each has about
// r.rows of them. It gives the condition of each part, in order, and how many changes there are.
func (r *rebuild) parts(ctx context.Context) ([]sql.Fragment, int64, error) {
	var total int64
	if err := r.db.QueryRow(ctx, "SELECT count(*) FROM rebuild_changes", nil, &total); err != nil {
		return nil, 0, err
	}
	n := total/r.rows + 1
	if n == 1 {
		return []sql.Fragment{"true"}, total, nil
	}
	first := r.layout.key[0]
	column, typ := sql.Ident(first.Name), sql.Fragment(first.Type.SQL())
	rows, err := r.db.Query(ctx, sql.Render(`
WITH
    sampled AS (
        SELECT {column} AS loam_key FROM rebuild_changes USING SAMPLE reservoir({size} ROWS) REPEATABLE (1)
    ),
    numbered AS (
        SELECT loam_key, ntile({n}) OVER (ORDER BY loam_key) AS loam_part FROM sampled
    )
SELECT DISTINCT least::VARCHAR FROM (SELECT min(loam_key) AS least FROM numbered WHERE loam_part > 1 GROUP BY loam_part) ORDER BY least`,
		sql.Args{"column": column, "size": sql.Fragment(fmt.Sprint(100 * n)), "n": sql.Fragment(fmt.Sprint(n))}))
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	var cuts []sql.Fragment
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, 0, fmt.Errorf("divide the keys: %w", err)
		}
		cuts = append(cuts, sql.Literal(text)+"::"+typ)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("divide the keys: %w", err)
	}
	var parts []sql.Fragment
	for i := range len(cuts) + 1 {
		part := sql.Fragment("true")
		if i > 0 {
			part += " AND " + column + " >= " + cuts[i-1]
		}
		if i < len(cuts) {
			part += " AND " + column + " < " + cuts[i]
		}
		parts = append(parts, part)
	}
	return parts, total, nil
}

// derivePart writes the versions of the keys of a part, and gives the number of changes that made them.
func (r *rebuild) derivePart(ctx context.Context, part sql.Fragment, came func(scd.Change) bool, out *versionWriter) (int64, error) {
	if came == nil {
		came = every
	}
	p := &pending{ties: r.ties}
	var count int64
	var key, next, slab []byte
	var changes []scd.Change
	fold := func() error {
		if len(changes) == 0 {
			return nil
		}
		scd.Sort(changes)
		p.tie(changes, came)
		versions, _ := scd.Fold(nil, changes)
		changes = changes[:0]
		return out.put(string(key), versions)
	}
	statement := sql.Render("SELECT * FROM rebuild_changes WHERE {part} ORDER BY {key}", sql.Args{"part": part, "key": sql.Idents("", r.layout.stream.Key)})
	err := r.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		for reader.Next() {
			batch := reader.RecordBatch()
			read, err := r.layout.newReader(batch)
			if err != nil {
				return err
			}
			for i := range int(batch.NumRows()) {
				if next = read.appendKey(next[:0], i); string(next) != string(key) {
					if err := fold(); err != nil {
						return err
					}
					key = append(key[:0], next...)
				}
				var c scd.Change
				slab, c = read.change(slab, i)
				changes = append(changes, c)
				if len(slab) > chunkBytes {
					slab = nil
				}
				count++
			}
		}
		return nil
	})
	if err != nil {
		return count, err
	}
	return count, fold()
}

// versionWriter writes versions as lasting files of their partitions. They come in the order of keys.
type versionWriter struct {
	layout  *layout
	writer  *fileWriter
	ends    int64 // rows that end a file
	files   map[partitionKey]*versionFile
	written []iceberg.DataFile
}

// versionFile is a file that is being written, nil before its first row, and what waits to be.
type versionFile struct {
	partition []any
	file      *openFile
	waiting   []*newRow
}

func (w *versionWriter) put(key string, versions []scd.Version) error {
	for _, v := range versions {
		k := partitionKey{v.To == scd.Open, bucketOfKey(key)}
		f := w.files[k]
		if f == nil {
			f = &versionFile{partition: []any{k.current, k.bucket}}
			w.files[k] = f
		}
		f.waiting = append(f.waiting, &newRow{key: key, version: v, entry: -1})
		if n := int64(len(f.waiting)); n >= versionBatch || n >= w.ends {
			if err := w.flush(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush writes what waits, and ends a file that is full.
func (w *versionWriter) flush(f *versionFile) error {
	if len(f.waiting) > 0 {
		batch := w.layout.historyBatch(w.writer.schema, f.waiting)
		defer batch.Release()
		clear(f.waiting)
		f.waiting = f.waiting[:0]
		if f.file == nil {
			var err error
			if f.file, err = w.writer.create(f.partition, batch); err != nil {
				return err
			}
		}
		if err := f.file.write(batch); err != nil {
			return err
		}
	}
	if f.file != nil && f.file.rows >= w.ends {
		return w.close(f)
	}
	return nil
}

func (w *versionWriter) close(f *versionFile) error {
	if f.file == nil {
		return nil
	}
	file, err := f.file.close()
	f.file = nil
	if err == nil {
		w.written = append(w.written, file)
	}
	return err
}

// end writes what waits and ends all files.
func (w *versionWriter) end() error {
	var errs []error
	for _, f := range w.files {
		if err := w.flush(f); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, w.close(f))
	}
	return errors.Join(errs...)
}

// abandon removes the files that have not ended. Those that have are the rebuild's to remove.
func (w *versionWriter) abandon() error {
	var errs []error
	for _, f := range w.files {
		if f.file != nil {
			errs = append(errs, f.file.abandon())
			f.file = nil
		}
	}
	return errors.Join(errs...)
}

// follow derives again what the log has taken changes of since the files were written, and gives the number of those keys.
func (r *rebuild) follow(ctx context.Context) (int64, error) {
	if err := r.log.reload(ctx); err != nil {
		return 0, err
	}
	offsets, err := r.log.Offsets()
	if err != nil {
		return 0, err
	}
	spans := missing(offsets, r.at)
	if len(spans) == 0 {
		r.at, r.head = offsets, r.log.SnapshotID()
		return 0, nil
	}
	keys, err := r.touch(ctx, spans)
	if err != nil {
		return 0, err
	}
	came := cameIn(spans)
	if keys > lateSeekMax {
		err = r.followAll(ctx, came)
	} else if keys > 0 {
		err = r.followFew(ctx, came)
	}
	r.at, r.head = offsets, r.log.SnapshotID()
	r.out.Later += keys
	return keys, err
}

// cameIn tells whether a change stands in one of the spans. Of those that a redrive brings nothing tells.
func cameIn(spans []feature.Span) func(scd.Change) bool {
	of := make(map[feature.Partition]feature.Span, len(spans))
	for _, s := range spans {
		of[s.Partition] = s
	}
	return func(c scd.Change) bool {
		at := positionOf(c)
		s, ok := of[partitionOf(at)]
		return ok && s.From <= at.Offset && at.Offset < s.To
	}
}

// touch fills the table rebuild_touched with the keys of the log's rows in the spans, and counts them.
func (r *rebuild) touch(ctx context.Context, spans []feature.Span) (int64, error) {
	columns := append(slices.Clone(r.layout.stream.Key), feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColJobID)
	relation, err := r.log.Scan(ctx, ScanOptions{Columns: columns})
	if err != nil {
		return 0, err
	}
	// Rows that came since are in files that came since, though others may have been compacted into new files meanwhile.
	if added, ok, err := r.log.addedSince(ctx, r.head, nil); err != nil {
		return 0, err
	} else if ok {
		if relation, err = r.log.relation(ctx, added, columns); err != nil {
			return 0, err
		}
	}
	if err := r.db.LakeView(ctx, "rebuild_added", relation, false); err != nil {
		return 0, err
	}
	where := within(spans)
	if slices.ContainsFunc(spans, isRedrive) { // the last of several, of which the log doesn't tell the others
		where += sql.Fragment(fmt.Sprintf(" OR starts_with(job_id, %s)", sql.Literal(feature.RedriveJobPrefix)))
	}
	statement := sql.Render("CREATE OR REPLACE TEMP TABLE rebuild_touched AS SELECT DISTINCT {keys} FROM rebuild_added WHERE {where}",
		sql.Args{"keys": sql.Idents("", r.layout.stream.Key), "where": where})
	if err := r.db.Exec(ctx, statement); err != nil {
		return 0, err
	}
	var n int64
	return n, r.db.QueryRow(ctx, "SELECT count(*) FROM rebuild_touched", nil, &n)
}

// followAll derives the keys of rebuild_touched again in one pass over the log and over what was written.
func (r *rebuild) followAll(ctx context.Context, came func(scd.Change) bool) error {
	m := r.merger
	relation, err := r.history.relation(ctx, m.files, r.layout.stream.Key)
	if err != nil {
		return err
	}
	if err := r.db.LakeView(ctx, "rebuild_written", relation, true); err != nil {
		return err
	}
	numbers := make([]int32, len(m.files))
	for i := range numbers {
		numbers[i] = int32(i)
	}
	statement := sql.Render("SELECT loam_file, loam_row FROM rebuild_written SEMI JOIN rebuild_touched USING ({keys})",
		sql.Args{"keys": sql.Idents("", r.layout.stream.Key)})
	retired := map[int32][]int64{}
	err = r.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		for reader.Next() {
			places, err := placesOf(reader.RecordBatch(), numbers)
			if err != nil {
				return err
			}
			for i := range int(reader.RecordBatch().NumRows()) {
				at := places(i)
				retired[at.file] = append(retired[at.file], int64(at.row))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.retire(retired)
	return r.derive(ctx, came)
}

// followFew derives the keys of rebuild_touched again by reading them alone, as late changes are.
func (r *rebuild) followFew(ctx context.Context, came func(scd.Change) bool) error {
	m := r.merger
	m.index = newIndex(0, "")
	var late []*keyChanges
	err := r.db.Arrow(ctx, "SELECT * FROM rebuild_touched", func(reader array.RecordReader) error {
		for reader.Next() {
			keyOf, err := keysOf(r.layout.key, reader.RecordBatch())
			if err != nil {
				return err
			}
			for i := range int(reader.RecordBatch().NumRows()) {
				key := keyOf(i)
				if err := m.index.put(key, unknown, nil, noFile, 0); err != nil { // all of its versions are derived anew
					return err
				}
				late = append(late, &keyChanges{key: string(key)})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p := &pending{merger: m, retired: map[int32][]int64{}, came: came, ties: r.ties}
	if err := m.late(ctx, late, p); err != nil {
		return err
	}
	if p.writer, err = r.history.fileWriter(ctx); err != nil {
		return err
	}
	if err := p.writeRows(); err != nil {
		p.discard()
		return err
	}
	r.retire(p.retired)
	r.add(p.data)
	return nil
}

// retire notes rows of the files as deleted.
func (r *rebuild) retire(rows map[int32][]int64) {
	for number, some := range rows {
		f := r.merger.files[number]
		if f.deleted == nil {
			f.deleted = dv.NewRoaringPositionBitmap()
		}
		for _, row := range some {
			f.deleted.Set(uint64(row))
		}
	}
}

// commit puts the files in place of all that the history has.
func (r *rebuild) commit(ctx context.Context) error {
	return r.history.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		r.removeVectors()
		if _, err := r.follow(ctx); err != nil {
			return err
		}
		before, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		live, err := r.history.list(ctx, ScanOptions{})
		if err != nil {
			return err
		}
		summary[summaryRebuilt] = "true"
		summary[summaryOffsets] = r.at.summary()
		if err := r.stage(ctx, base, live, tx, summary); err != nil {
			return err
		}
		rests, err := retrackedText(base, r.layout.stream)
		if err != nil {
			return err
		}
		r.at.tie(r.ties, iceberg.Properties{})
		props := r.at.properties(summary[summaryCommit])
		props[propertyStream] = rests
		if err := tx.SetProperties(props); err != nil {
			return err
		}
		if gone := r.gone(base, before, props); len(gone) > 0 {
			if err := tx.RemoveProperties(gone); err != nil {
				return err
			}
		}
		r.out.Versions = 0
		for _, f := range r.merger.files {
			r.out.Versions += f.rows()
		}
		return nil
	})
}

// gone are the properties that the history is to lose: the request to wait, and where it stands in what the log doesn't know, as
// after a rewind.
func (r *rebuild) gone(base *table.Table, before Offsets, props iceberg.Properties) []string {
	names := []string{propertyHold, propertyFiles}
	for p := range before.Partitions {
		names = append(names, offsetProperty(p))
	}
	return slices.DeleteFunc(names, func(name string) bool {
		_, stays := props[name]
		_, there := base.Properties()[name]
		return stays || !there
	})
}

// stage replaces the live files by those that were written. Where keys were derived again it makes a second snapshot in the
// same commit, with the rows that those keys have now and deletion vectors for those that they had: Iceberg's library adds no
// vectors in the snapshot that replaces files. The first one alone is the history of the log when it was read first.
func (r *rebuild) stage(ctx context.Context, base *table.Table, live []*liveFile, tx *table.Transaction, summary iceberg.Properties) error {
	files := r.merger.files
	data := make([]iceberg.DataFile, len(files))
	for i, f := range files {
		data[i] = f.data
	}
	first, later := data[:r.first], data[r.first:]
	switch {
	case len(live) > 0:
		var old, vectors []iceberg.DataFile
		for _, f := range live {
			old = append(old, f.data)
			vectors = append(vectors, f.deleteFiles()...)
		}
		numbered, err := withRowIDs(base, first)
		if err != nil {
			return err
		}
		if err := tx.ReplaceFiles(ctx, old, numbered, vectors, summary, table.WithoutAutoNameMapping()); err != nil {
			return fmt.Errorf("replace the files of %s: %w", r.history.Name(), err)
		}
	case len(first) > 0:
		if err := tx.NewRowDelta(summary).AddRows(first...).Commit(ctx); err != nil {
			return err
		}
	}
	if err := r.writeVectors(ctx); err != nil {
		return err
	}
	if len(later)+len(r.vectors) == 0 {
		return nil
	}
	return tx.NewRowDelta(summary).AddRows(later...).AddDeletes(r.vectors...).Commit(ctx)
}

// writeVectors writes which rows of the files, which no snapshot has yet, are deleted.
func (r *rebuild) writeVectors(ctx context.Context) error {
	d := r.lasting.deletes()
	for _, f := range r.merger.files {
		if f.deleted != nil {
			if err := d.add(&liveFile{data: f.data}, f.deletedRows()); err != nil {
				return err
			}
		}
	}
	var err error
	r.vectors, err = d.flush(ctx)
	return err
}

func (r *rebuild) removeVectors() {
	r.lasting.removeFiles(r.vectors)
	r.vectors = nil
}

// discard removes what was written, which no commit names.
func (r *rebuild) discard() {
	r.removeVectors()
	for _, f := range r.merger.files {
		r.lasting.removeFiles([]iceberg.DataFile{f.data})
	}
}

// withRowIDs gives the files with the ids of their rows, which a v3 table wants where files are replaced: those that come
// after all that it has given.
func withRowIDs(base *table.Table, files []iceberg.DataFile) ([]iceberg.DataFile, error) {
	if base.Metadata().Version() < 3 {
		return files, nil
	}
	next := base.Metadata().NextRowID()
	numbered := make([]iceberg.DataFile, len(files))
	for i, f := range files {
		b, err := iceberg.NewDataFileBuilder(base.Spec(), f.ContentType(), f.FilePath(), f.FileFormat(), f.Partition(), nil, nil, f.Count(), f.FileSizeBytes())
		if err != nil {
			return nil, fmt.Errorf("describe data file %s: %w", f.FilePath(), err)
		}
		b.ColumnSizes(f.ColumnSizes()).ValueCounts(f.ValueCounts()).NullValueCounts(f.NullValueCounts()).NaNValueCounts(f.NaNValueCounts()).
			LowerBoundValues(f.LowerBoundValues()).UpperBoundValues(f.UpperBoundValues()).SplitOffsets(f.SplitOffsets()).FirstRowID(next)
		numbered[i] = b.Build()
		next += f.Count()
	}
	return numbered, nil
}

// rebuiltSince reports whether the table was replaced as a whole after a snapshot.
func (t *Table) rebuiltSince(snapshotID int64) bool {
	for s := t.tbl.CurrentSnapshot(); s != nil && s.SnapshotID != snapshotID; s = t.tbl.SnapshotByID(*s.ParentSnapshotID) {
		if s.Summary != nil && s.Summary.Properties[summaryRebuilt] != "" {
			return true
		}
		if s.ParentSnapshotID == nil {
			return false
		}
	}
	return false
}

// notBeyond refuses a history that has taken more than its log, which would leave out what comes.
func notBeyond(def *feature.Stream, history, log Offsets) error {
	p, ok := beyond(history, log)
	if !ok {
		return nil
	}
	return fmt.Errorf("the history of %s stands at offset %d of partition %d of %s, and its log at %d: run `loam rebuild %s`",
		def.Name, history.next(p), p.Index, p.Topic, log.next(p), def.Name)
}

// beyond finds the first partition in which offsets are further than others, but for files that those have forgotten.
func beyond(offsets, others Offsets) (feature.Partition, bool) {
	var all []feature.Partition
	for p := range offsets.Partitions {
		all = append(all, p)
	}
	for _, f := range offsets.Files {
		all = append(all, feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256})
	}
	slices.SortFunc(all, feature.Partition.Compare)
	for _, p := range all {
		if _, known := others.Of(p); !known && strings.HasPrefix(p.Topic, feature.FileTopicPrefix) && len(others.Files) >= filesMax {
			continue
		}
		if offsets.next(p) > others.next(p) {
			return p, true
		}
	}
	return feature.Partition{}, false
}

// next is the first offset of the partition that was not taken.
func (o *Offsets) next(p feature.Partition) int64 {
	at, _ := o.Of(p)
	return at.Next
}

// properties are those of a table that stands at the offsets, all moved by the commit.
func (o Offsets) properties(commit string) iceberg.Properties {
	props := iceberg.Properties{}
	for p, at := range o.Partitions {
		at.Commit = commit
		props[offsetProperty(p)] = mustJSON(at)
	}
	if len(o.Files) > 0 {
		files := slices.Clone(o.Files)
		for i := range files {
			files[i].Commit = commit
		}
		props[propertyFiles] = mustJSON(files)
	}
	if o.Redrive.JobID != "" {
		props[propertyRedrive] = mustJSON(Redrive{JobID: o.Redrive.JobID})
	}
	return props
}

// summary is what the summary of a commit says that moves a table to the offsets.
func (o Offsets) summary() string {
	var spans []feature.Span
	for p, at := range o.Partitions {
		spans = append(spans, feature.Span{Partition: p, To: at.Next})
	}
	for _, f := range o.Files {
		spans = append(spans, feature.Span{Partition: feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}, To: f.Next})
	}
	return offsetsSummary(spans)
}
