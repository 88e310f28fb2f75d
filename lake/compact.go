package lake

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/sql"
)

// compactor writes files of one table again: fewer and larger ones, without the rows that were deleted, sorted as a
// whole. It changes no rows, and may work beside any number of writers. Rows that these delete in the meantime from the
// files it is about to replace are deleted from the new ones in the same snapshot, by the place that each row has moved to.
type compactor struct {
	table   *Table
	db      *sql.DB
	sort    []string // columns that files are sorted by
	sizes   sizes
	packing packing // of files, but for whether they are to stay
	time    string  // column by whose weeks large files are cut, but for those of open versions, which are of all times
}

// Compacted says what a compaction did.
type Compacted struct {
	FilesBefore, FilesAfter int
	Rows                    int64 // written
	Deleted                 int64 // rows that were read in vain before
}

// compact does the jobs, in one commit. A job whose files were replaced by another compaction is left out.
func (c *compactor) compact(ctx context.Context, jobs []job) (Compacted, error) {
	step.At(step.CompactPlanned)
	outs := make([]*rewritten, 0, len(jobs))
	for _, j := range jobs {
		out, err := c.rewrite(ctx, j)
		if err != nil {
			for _, o := range outs {
				o.discard()
			}
			return Compacted{}, fmt.Errorf("compact %s: %w", c.table.Name(), err)
		}
		outs = append(outs, out)
	}
	step.At(step.CompactWritten)
	return c.replace(ctx, outs)
}

// replace puts what was written in place of the files that it was read from.
func (c *compactor) replace(ctx context.Context, outs []*rewritten) (Compacted, error) {
	for _, out := range outs {
		if ofOpenVersions(c.table, out.inputs[0]) {
			c.table.lake.moves.note(out)
		}
	}
	var done Compacted
	var left []*rewritten // whose inputs are gone
	var deletes []iceberg.DataFile
	err := c.table.commit(ctx, func(ctx context.Context, _ *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		outs[0].writer.removeFiles(deletes)
		done, left, deletes = Compacted{}, nil, nil
		live, err := c.live(ctx, outs)
		if err != nil {
			return err
		}
		rewrite := tx.NewRewrite(summary)
		w := outs[0].writer.deletes()
		age, deleted := int64(math.MaxInt64), false
		for i, out := range outs {
			if live[i] == nil {
				left = append(left, out)
				continue
			}
			n, err := out.stage(live[i], rewrite, w)
			if err != nil {
				return err
			}
			deleted = deleted || n > 0
			for _, f := range live[i] {
				age = min(age, f.sequence)
			}
			done.add(out)
		}
		if done.FilesBefore == 0 {
			return errNothing
		}
		if deleted {
			// Deletes hold for files that are no younger than they are, and take their age from those that they replace.
			rewrite.DataSequenceNumber(age)
			if deletes, err = w.flush(ctx); err != nil {
				return err
			}
			for _, d := range deletes {
				rewrite.AddDeleteFile(d)
			}
		}
		return rewrite.Commit(ctx)
	})
	if err != nil {
		if !errors.Is(err, errUnsettled) {
			outs[0].writer.removeFiles(deletes)
			for _, o := range outs {
				o.discard()
			}
		}
		return Compacted{}, err
	}
	step.At(step.CompactCommitted)
	for _, o := range left {
		o.discard()
	}
	return done, nil
}

func (c *Compacted) add(out *rewritten) {
	c.FilesBefore += len(out.inputs)
	c.FilesAfter += len(out.files)
	for i, f := range out.inputs {
		c.Rows += int64(out.kept[i])
		c.Deleted += f.data.Count() - int64(out.kept[i])
	}
}

// live gives the inputs of each as they are now, with what has been deleted from them since; nil where any was replaced.
func (c *compactor) live(ctx context.Context, outs []*rewritten) ([][]*liveFile, error) {
	files, err := c.table.list(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	byPath := make(map[string]*liveFile, len(files))
	for _, f := range files {
		byPath[f.data.FilePath()] = f
	}
	io, err := c.table.tbl.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the files of %s: %w", c.table.Name(), err)
	}
	all := make([][]*liveFile, len(outs))
	for i, out := range outs {
		live := make([]*liveFile, len(out.inputs))
		for j, f := range out.inputs {
			live[j] = byPath[f.data.FilePath()]
		}
		if slices.Contains(live, nil) {
			continue
		}
		if err := readDeletes(ctx, io, live); err != nil {
			return nil, err
		}
		all[i] = live
	}
	return all, nil
}

// rewritten is what a compaction has written.
type rewritten struct {
	writer *fileWriter
	inputs []*liveFile
	files  []iceberg.DataFile
	starts []int64 // number of each file's first row among all of them
	// moved says, for each input and row of it, which of all the rows written that is; gone for one that was deleted.
	moved [][]uint32
	kept  []int // rows of each input that were written
}

const gone = ^uint32(0)

// rewrite writes the rows of the job's files, sorted, as new files of their partition.
func (c *compactor) rewrite(ctx context.Context, j job) (*rewritten, error) {
	relation, err := c.table.relation(ctx, j.files, nil)
	if err != nil {
		return nil, err
	}
	if err := c.db.LakeView(ctx, "compact", relation, true); err != nil {
		return nil, err
	}
	order, part, err := c.order(ctx, j)
	if err != nil {
		return nil, err
	}
	w, err := c.table.fileWriter(ctx)
	if err != nil {
		return nil, err
	}
	w.packing = c.packing
	w.packing.lasting = j.rows() >= c.sizes.cutRows
	out := &rewritten{writer: w, inputs: j.files, moved: make([][]uint32, len(j.files)), kept: make([]int, len(j.files))}
	for i, f := range j.files {
		out.moved[i] = slices.Repeat([]uint32{gone}, int(f.data.Count()))
	}
	statement := sql.Render("SELECT *, {part} AS loam_part FROM compact ORDER BY {order}", sql.Args{"part": part, "order": order})
	err = c.db.Arrow(ctx, statement, func(r array.RecordReader) error { return out.copy(r, j.partition, c.sizes.fileRowsMax) })
	if err != nil {
		out.discard()
		return nil, err
	}
	return out, nil
}

// order gives what the rows of a job are ordered by, and the expression of the part of time that a row falls into.
func (c *compactor) order(ctx context.Context, j job) (order, part sql.Fragment, err error) {
	part = "0"
	if !ofOpenVersions(c.table, j.files[0]) && j.rows() >= 2*c.sizes.cutRows {
		starts, err := c.starts(ctx)
		if err != nil {
			return "", "", err
		}
		if len(starts) > 0 {
			var b strings.Builder
			b.WriteString("CASE")
			for i, s := range starts {
				fmt.Fprintf(&b, " WHEN %s < make_timestamptz(%d) THEN %d", sql.Ident(c.time), s, i)
			}
			fmt.Fprintf(&b, " ELSE %d END", len(starts))
			part = sql.Fragment(b.String())
		}
	}
	return "loam_part, " + sql.Idents("", c.sort), part, nil
}

// starts gives where to cut the rows of the view compact by time.
func (c *compactor) starts(ctx context.Context) ([]int64, error) {
	// In microseconds, for DuckDB's own weeks of a TIMESTAMPTZ, which know calendars, cost far more than the compaction.
	rows, err := c.db.Query(ctx, sql.Render(
		"WITH times AS (SELECT epoch_us({time}) - {monday} AS micros FROM compact) "+
			"SELECT micros - (micros % {week} + {week}) % {week} + {monday} AS start, count(*) FROM times GROUP BY start ORDER BY start",
		sql.Args{"time": sql.Ident(c.time), "week": weekLength, "monday": firstMonday}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var weeks []week
	for rows.Next() {
		var w week
		if err := rows.Scan(&w.start, &w.rows); err != nil {
			return nil, err
		}
		weeks = append(weeks, w)
	}
	return c.sizes.cuts(weeks), rows.Err()
}

// copy writes the rows that the reader gives, and notes where each has gone.
func (out *rewritten) copy(r array.RecordReader, partition []any, fileRowsMax int64) error {
	var f *openFile
	var part int64
	var total int64
	end := func() error {
		if f == nil {
			return nil
		}
		file, err := f.close()
		f = nil
		if err == nil {
			out.files = append(out.files, file)
		}
		return err
	}
	write := func(batch arrow.RecordBatch) error {
		if f == nil {
			var err error
			if f, err = out.writer.create(partition, batch); err != nil {
				return err
			}
			out.starts = append(out.starts, total)
		}
		total += batch.NumRows()
		return f.write(batch)
	}
	err := func() error {
		for r.Next() {
			batch := r.RecordBatch()
			if err := out.note(batch, total); err != nil {
				return err
			}
			parts, err := columnOf(batch, "loam_part")
			if err != nil {
				return err
			}
			conformed, err := conform(out.writer.schema, batch)
			if err != nil {
				return err
			}
			// A batch is split where a part of time ends.
			for from := 0; from < int(batch.NumRows()); {
				p := partOf(parts, from)
				to := from + 1
				for to < int(batch.NumRows()) && partOf(parts, to) == p {
					to++
				}
				if f != nil && (p != part || f.rows >= fileRowsMax) {
					if err := end(); err != nil {
						conformed.Release()
						return err
					}
				}
				part = p
				slice := conformed.NewSlice(int64(from), int64(to))
				err := write(slice)
				slice.Release()
				if err != nil {
					conformed.Release()
					return err
				}
				from = to
			}
			conformed.Release()
		}
		return end()
	}()
	if err != nil && f != nil {
		err = errors.Join(err, f.abandon())
	}
	return err
}

func partOf(column arrow.Array, row int) int64 {
	return int64(column.(*array.Int32).Value(row))
}

// note takes down where the rows of a batch go, the first of which will be the row numbered total of all.
func (out *rewritten) note(batch arrow.RecordBatch, total int64) error {
	numbers := make([]int32, len(out.inputs))
	for i := range numbers {
		numbers[i] = int32(i)
	}
	placeOf, err := placesOf(batch, numbers)
	if err != nil {
		return err
	}
	for i := range int(batch.NumRows()) {
		at := placeOf(i)
		out.moved[at.file][at.row] = uint32(total + int64(i))
		out.kept[at.file]++
	}
	return nil
}

// stage puts the new files in place of the inputs, as they are live now, and adds to w the rows of them that were deleted
// since, whose number it gives.
func (out *rewritten) stage(live []*liveFile, rewrite *table.RewriteFiles, w *deletesWriter) (deleted int, err error) {
	rows := map[int][]int64{} // by file
	for i, now := range live {
		rewrite.DeleteFile(now.data)
		if now.deleted == nil {
			continue
		}
		for _, d := range now.deleteFiles() {
			rewrite.DeleteFile(d)
		}
		for row := range now.deleted.Positions() {
			if moved := out.moved[i][row]; moved != gone {
				file, position := placeAmong(out.starts, moved)
				rows[file] = append(rows[file], position)
				deleted++
			}
		}
	}
	for file, positions := range rows {
		if err := w.add(&liveFile{data: out.files[file]}, positions); err != nil {
			return 0, err
		}
	}
	for _, f := range out.files {
		rewrite.AddDataFile(f)
	}
	return deleted, nil
}

// placeAmong finds the row numbered so among all of some files, of which starts has the numbers of the first rows.
func placeAmong(starts []int64, number uint32) (file int, row int64) {
	i, found := slices.BinarySearch(starts, int64(number))
	if !found {
		i--
	}
	return i, int64(number) - starts[i]
}

// discard removes what was written, which no commit names.
func (out *rewritten) discard() {
	out.writer.removeFiles(out.files)
	out.files = nil
}

// span gives the times that a file covers, from its statistics. Open versions cover all of time.
func (c *compactor) span(f *liveFile) (from, to int64) {
	const least, greatest = -1 << 63, 1<<63 - 1
	if ofOpenVersions(c.table, f) {
		return least, greatest
	}
	return bounds(c.table, f, c.time)
}

// ofOpenVersions reports whether the file is of open versions.
func ofOpenVersions(t *Table, f *liveFile) bool {
	spec := t.tbl.Spec()
	for i := range spec.NumFields() {
		if spec.Field(i).Name == currentField {
			return f.data.Partition()[spec.Field(i).FieldID] == true
		}
	}
	return false
}

// kept is a table that is maintained, and how its files are written again.
type kept struct {
	name    string
	sort    []string // as of a compactor
	time    string
	packing packing
}

// keptOf are a stream's tables, the history first: its files weigh on every commit.
func keptOf(def *feature.Stream) []kept {
	log := kept{
		name: LogName(def.Name), sort: []string{def.ClusterBy, feature.ColEventTime}, time: feature.ColEventTime,
		packing: packing{scanned: true, sought: append(slices.Clone(def.Key), feature.ColEventTime)},
	}
	if def.Kind == feature.EventStream {
		return []kept{log}
	}
	return []kept{{
		name: HistoryName(def.Name), sort: append(slices.Clone(def.Key), feature.ColValidFrom), time: feature.ColValidFrom,
		packing: packing{sought: append(slices.Clone(def.Key), feature.ColValidFrom, feature.ColValidTo)},
	}, log}
}

// compactors are those of the tables, as they are now.
func (m *Maintainer) compactors(ctx context.Context) ([]*compactor, error) {
	all := make([]*compactor, len(m.kept))
	for i, k := range m.kept {
		t, err := m.lake.openTable(ctx, k.name)
		if err != nil {
			return nil, err
		}
		all[i] = &compactor{table: t, db: m.db, sizes: usualSizes, sort: k.sort, time: k.time, packing: k.packing}
	}
	return all, nil
}

// jobs lists what there is to compact in the table as it is now.
func (c *compactor) jobs(ctx context.Context, all bool) ([]job, error) {
	if err := c.table.reload(ctx); err != nil {
		return nil, err
	}
	files, err := c.table.plan(ctx, ScanOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", c.table.Name(), err)
	}
	return c.sizes.planJobs(c.table.tbl.Spec(), files, func(f *liveFile) bool { return ofOpenVersions(c.table, f) }, c.span, all), nil
}
