package pit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// output is where a training set is written: part after part in the order of the labels, then as a whole, beside the place
// where it is to be; last it is moved there.
type output struct {
	path      string // what is asked for
	format    feature.OutFormat
	partition []string // its columns, where it is a folder
	scratch   string   // what names of parts begin with
	parts     []string // Parquet files written so far
	whole     string   // the file or folder that is to be moved to path, once it is finished
	old       string   // where stands what it replaces, until its card is kept; "" where there was nothing
	columns   []string // of the training set
}

// oldSuffix ends the name of what is replaced, while its card is.
const oldSuffix = ".old"

// scratchOf is what the names of the parts of a training set begin with: the end of the build's tag tells them from others.
func scratchOf(out, tag string) string { return out + "." + tag[len(tag)-8:] }

// newOutput checks that the training set can be put where it is asked for.
func (b *build) newOutput() (*output, error) {
	o := &output{path: b.request.Out, format: b.request.Format(), partition: b.request.PartitionBy, scratch: scratchOf(b.request.Out, b.card.Tag)}
	if o.format == feature.StreamOut {
		if b.options.Stream == nil {
			return nil, errors.New("there is no standard output to write a training set to: name a file")
		}
		o.scratch = filepath.Join(b.temp, "stream")
		return o, nil
	}
	info, err := os.Stat(o.path)
	if err != nil { // it is usually not there, and what else is wrong shows when it is written
		return o, nil
	}
	switch {
	case o.format != feature.PartitionOut && info.IsDir():
		return nil, fmt.Errorf("%s is a folder: name a file, or remove it", o.path)
	case o.format == feature.PartitionOut && !info.IsDir():
		return nil, fmt.Errorf("%s is a file, and a folder is to be written: name another, or remove it", o.path)
	case o.format == feature.PartitionOut:
		return o, b.replaceable(o.path)
	}
	return o, nil
}

// tempKept is how long the folder of a build that was killed stays: longer than any build goes on without writing to it.
const tempKept = 48 * time.Hour

// ownTemp makes a folder for what the build spills: two DuckDBs in one folder would write each other's files. Those of builds
// that were killed long ago are removed.
func (b *build) ownTemp(now time.Time) error {
	dir := b.options.TempDir
	if dir == "" {
		dir = os.TempDir()
	}
	b.temp = filepath.Join(dir, b.card.Tag)
	for _, sub := range []string{"spill", "query"} {
		if err := os.MkdirAll(filepath.Join(b.temp, sub), 0o755); err != nil {
			return fmt.Errorf("make a folder for what is spilled: %w", err)
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, "dataset-*"))
	if err != nil {
		return fmt.Errorf("look for folders of builds that were killed: %w", err)
	}
	for _, o := range old {
		if o == b.temp { // a clock that is ahead of the disk's would take it for an old one
			continue
		}
		if info, err := os.Stat(filepath.Join(o, "spill")); err != nil || now.Sub(info.ModTime()) <= tempKept {
			continue
		}
		if _, err := os.Stat(filepath.Join(o, noteFile)); err == nil { // it tells what else the build has left
			for _, sub := range []string{"spill", "query"} {
				_ = os.RemoveAll(filepath.Join(o, sub)) // another build may be at it
			}
			continue
		}
		_ = os.RemoveAll(o)
	}
	return nil
}

// replaceable refuses to replace a folder that is no training set: it may hold anything.
func (b *build) replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the folder of the training set: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	if card, err := ReadCard(b.cardPath()); err != nil || filepath.Base(card.Out) != filepath.Base(dir) {
		return fmt.Errorf("folder %s is not empty, and no card beside it says that it is a training set: name another, or remove it", dir)
	}
	return nil
}

// add writes what is assembled, in the order of the labels, as the next part, and makes the view dataset of what was written:
// its rows have the numbers from first on.
func (o *output) add(ctx context.Context, db *sql.DB, first int64) error {
	if err := os.MkdirAll(filepath.Dir(o.scratch), 0o755); err != nil {
		return fmt.Errorf("make the folder of the training set: %w", err)
	}
	if o.columns == nil {
		if err := o.check(ctx, db); err != nil {
			return err
		}
	}
	o.parts = append(o.parts, fmt.Sprintf("%s.part-%05d", o.scratch, len(o.parts)))
	part := o.parts[len(o.parts)-1]
	err := db.Exec(ctx, sql.Render("COPY (SELECT * EXCLUDE ({row}) FROM assembled ORDER BY {row}) TO {out} (FORMAT parquet, COMPRESSION zstd)",
		sql.Args{"row": sql.Ident(labelRow), "out": sql.Literal(part)}))
	if err != nil {
		return fmt.Errorf("write %s: %w", part, err)
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP VIEW dataset AS SELECT * EXCLUDE (file_row_number), file_row_number + {first} AS {row} "+
		"FROM read_parquet({part}, file_row_number = true, hive_partitioning = false)", sql.Args{
		"first": sql.Fragment(fmt.Sprint(first)), "row": sql.Ident(labelRow), "part": sql.Path(part),
	}))
}

// check holds the columns of the partitions against the training set's.
func (o *output) check(ctx context.Context, db *sql.DB) error {
	columns, err := db.Columns(ctx, "assembled")
	if err != nil {
		return err
	}
	for _, c := range columns {
		if c.Name != labelRow {
			o.columns = append(o.columns, c.Name)
		}
	}
	for _, c := range o.partition {
		if !slices.Contains(o.columns, c) {
			return fmt.Errorf("partition_by: the training set has no column %s; it has %v", c, o.columns)
		}
	}
	if len(o.partition) == len(o.columns) {
		return errors.New("partition_by: no column is left to stand in the files; name fewer")
	}
	return nil
}

// finish makes of the parts what is asked for, all but moving it there.
func (o *output) finish(ctx context.Context, db *sql.DB) error {
	if o.format == feature.ParquetOut && len(o.parts) == 1 {
		o.whole = o.parts[0]
		return nil
	}
	if o.format == feature.StreamOut {
		return nil
	}
	o.whole = o.scratch + ".whole"
	err := o.write(ctx, db)
	if err == nil && o.format == feature.PartitionOut {
		err = os.MkdirAll(o.whole, 0o755) // there is none yet where no label is
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", o.whole, err)
	}
	return nil
}

// all is a query of the whole training set, in its order.
func (o *output) all() sql.Fragment {
	parts := make([]sql.Fragment, len(o.parts))
	for i, p := range o.parts {
		parts[i] = sql.Path(p)
	}
	return sql.Fragment(sql.Render("FROM read_parquet([{parts}], hive_partitioning = false)", sql.Args{"parts": sql.Join(", ", parts)}))
}

func (o *output) write(ctx context.Context, db *sql.DB) error {
	var options sql.Fragment
	switch o.format {
	case feature.ParquetOut:
		options = "FORMAT parquet, COMPRESSION zstd"
	case feature.CSVOut:
		options = "FORMAT csv, HEADER"
		if filepath.Ext(o.path) == ".gz" {
			options += ", COMPRESSION gzip"
		}
	case feature.PartitionOut:
		options = "FORMAT parquet, COMPRESSION zstd, PARTITION_BY (" + sql.Idents("", o.partition) + ")"
	case feature.ArrowOut, feature.ArrowsOut:
		f, err := os.Create(o.whole)
		if err != nil {
			return err
		}
		open := func(s *arrow.Schema) (batchWriter, error) { return ipc.NewFileWriter(f, ipc.WithSchema(s)) }
		if o.format == feature.ArrowsOut {
			open = streamTo(f)
		}
		return errors.Join(o.arrow(ctx, db, open), f.Close())
	}
	return db.Exec(ctx, sql.Render("COPY ({all}) TO {out} ({options})", sql.Args{"all": o.all(), "out": sql.Literal(o.whole), "options": options}))
}

// batchWriter writes Arrow IPC, as a file or a stream.
type batchWriter interface {
	Write(arrow.RecordBatch) error
	Close() error
}

// arrow writes the training set batch by batch.
func (o *output) arrow(ctx context.Context, db *sql.DB, open func(*arrow.Schema) (batchWriter, error)) error {
	return db.Arrow(ctx, string(o.all()), func(r array.RecordReader) error {
		w, err := open(r.Schema())
		if err != nil {
			return err
		}
		for r.Next() {
			if err := w.Write(r.RecordBatch()); err != nil {
				return err
			}
		}
		return w.Close()
	})
}

func streamTo(to io.Writer) func(*arrow.Schema) (batchWriter, error) {
	return func(s *arrow.Schema) (batchWriter, error) { return ipc.NewWriter(to, ipc.WithSchema(s)), nil }
}

// stream writes the training set as an Arrow IPC stream.
func (o *output) stream(ctx context.Context, db *sql.DB, to io.Writer) error {
	if err := o.arrow(ctx, db, streamTo(to)); err != nil {
		return fmt.Errorf("write the training set to standard output: %w", err)
	}
	return nil
}

// deliver moves what is finished to where it is asked for, in the place of what is there, which is kept aside.
func (o *output) deliver() error {
	old := o.scratch + oldSuffix
	switch err := os.Rename(o.path, old); {
	case err == nil:
		o.old = old
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	if err := os.Rename(o.whole, o.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", o.path, err), o.restore())
	}
	return nil
}

// restore puts what was replaced back.
func (o *output) restore() error {
	if err := os.RemoveAll(o.path); err != nil || o.old == "" {
		return err
	}
	old := o.old
	o.old = ""
	return os.Rename(old, o.path)
}

// discard removes what is left of the parts, and what was replaced.
func (o *output) discard() {
	for _, p := range append(o.parts, o.whole, o.old) {
		if p != "" {
			_ = os.RemoveAll(p) // it may not be there
		}
	}
}

// hand gives the training set and its card to whoever asked, or neither: a training set without its card is none. What
// stands in a file can be taken back, what went out on a stream can't, so its card is kept first.
func (b *build) hand(ctx context.Context, o *output, start time.Time) error {
	if o.format == feature.StreamOut {
		if err := b.keepCard(ctx, start); err != nil {
			return err
		}
		if err := o.stream(ctx, b.db, b.options.Stream); err != nil {
			return errors.Join(err, b.dropCard())
		}
		return nil
	}
	if err := o.deliver(); err != nil {
		return err
	}
	if err := b.keepCard(ctx, start); err != nil {
		return errors.Join(err, o.restore())
	}
	return nil
}
