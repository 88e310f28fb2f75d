package lake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// rowGroupRows is DuckDB's own size of a row group: small enough to skip by its statistics.
const rowGroupRows = 122_880

// Pages are small, so that few rows can be read without many: see [seeker]. A page ends with the batch of rows in which it
// passes its size. Old files of a log are read as a whole by every training set, and few rows of them seldom, so their pages are
// larger: DuckDB takes half the processor time for them.
const (
	pageBytes     = 16 << 10
	scanPageBytes = 64 << 10
	pageBatchRows = 1024
)

// packing says what a data file is for.
type packing struct {
	lasting bool     // it is to stay, and not soon written again
	scanned bool     // once it stays, it is read as a whole more than by rows
	sought  []string // columns that a [seeker] finds rows by
}

// properties are how a file that begins with the batch is written as Parquet. What a micro-batch writes is soon written again by
// maintenance, so it is packed fast; what is to stay is packed small, but for the columns that rows are sought by.
func (p packing) properties(first arrow.RecordBatch) *parquet.WriterProperties {
	page, samples := int64(pageBytes), 128
	if p.lasting {
		samples = 2048
	}
	if p.lasting && p.scanned {
		page = scanPageBytes
	}
	properties := []parquet.WriterProperty{
		parquet.WithMaxRowGroupLength(rowGroupRows), parquet.WithPageIndexEnabled(true), parquet.WithStats(true),
		parquet.WithDataPageSize(page), parquet.WithBatchSize(pageBatchRows),
		parquet.WithCreatedBy("loam"), parquet.WithCompression(compress.Codecs.Snappy),
	}
	if p.lasting {
		properties = append(properties, parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(1))
		for _, name := range p.sought {
			properties = append(properties, parquet.WithCompressionFor(name, compress.Codecs.Snappy))
		}
	}
	for i, f := range first.Schema().Fields() {
		if !repetitive(first.Column(i), samples) {
			properties = append(properties, parquet.WithDictionaryFor(f.Name, false))
		}
	}
	return parquet.NewWriterProperties(properties...)
}

// repetitive reports whether a dictionary is worth its while for a column: whether fewer than half of some of its values
// differ from those before them.
func repetitive(column arrow.Array, samples int) bool {
	step := max(column.Len()/samples, 1)
	seen := make(map[any]struct{}, samples)
	asked := 0
	for i := 0; i < column.Len(); i += step {
		if column.IsNull(i) {
			continue
		}
		asked++
		switch c := column.(type) {
		case *array.String:
			seen[c.Value(i)] = struct{}{}
		case *array.Int64:
			seen[c.Value(i)] = struct{}{}
		case *array.Timestamp:
			seen[c.Value(i)] = struct{}{}
		default:
			return true
		}
	}
	return len(seen)*2 <= asked
}

// fileWriter writes data files of one table.
type fileWriter struct {
	tbl     *table.Table
	fs      iceio.WriteFileIO
	schema  *arrow.Schema // with field ids, in the table's order
	packing packing
}

func (t *Table) fileWriter(ctx context.Context) (*fileWriter, error) {
	fs, err := t.tbl.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the files of %s: %w", t.Name(), err)
	}
	wfs, ok := fs.(iceio.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("the files of %s can't be written", t.Name())
	}
	schema, err := t.arrowSchema()
	if err != nil {
		return nil, err
	}
	return &fileWriter{tbl: t.tbl, fs: wfs, schema: schema}, nil
}

// conform gives the batch in the order of the schema's columns; columns that the batch lacks are null. The caller
// releases it.
func conform(schema *arrow.Schema, batch arrow.RecordBatch) (arrow.RecordBatch, error) {
	columns := make([]arrow.Array, schema.NumFields())
	for i, f := range schema.Fields() {
		if found := batch.Schema().FieldIndices(f.Name); len(found) == 1 {
			columns[i] = batch.Column(found[0])
			if !arrow.TypeEqual(columns[i].DataType(), f.Type) {
				return nil, fmt.Errorf("column %s is %s and must be %s", f.Name, columns[i].DataType(), f.Type)
			}
			continue
		}
		nulls := array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(batch.NumRows()))
		defer nulls.Release()
		columns[i] = nulls
	}
	return array.NewRecordBatch(schema, columns, batch.NumRows()), nil
}

// write writes the batches, whose columns are as conform gives them, as one data file of the partition, given by the
// partition's values in the order of the spec. Positions of rows in the file are their positions in the batches.
func (w *fileWriter) write(partition []any, batches ...arrow.RecordBatch) (iceberg.DataFile, error) {
	f, err := w.create(partition, batches[0])
	if err != nil {
		return nil, err
	}
	for _, b := range batches {
		if err := f.write(b); err != nil {
			return nil, errors.Join(err, f.abandon())
		}
	}
	return f.close()
}

// openFile is a data file that is being written.
type openFile struct {
	writer    *fileWriter
	path      string
	partition map[int]any // by the partition fields' ids
	out       iceio.FileWriter
	counted   *countingWriter
	parquet   *pqarrow.FileWriter
	rows      int64
}

// create begins a data file of the partition. first is what it will begin with, and decides how it is encoded.
func (w *fileWriter) create(partition []any, first arrow.RecordBatch) (*openFile, error) {
	provider, err := w.tbl.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("place a data file: %w", err)
	}
	f := &openFile{writer: w, partition: map[int]any{}}
	spec := w.tbl.Spec()
	folder := ""
	for i := range spec.NumFields() {
		field := spec.Field(i)
		f.partition[field.FieldID] = partition[i]
		folder += fmt.Sprintf("%s=%v/", field.Name, partition[i])
	}
	f.path = provider.NewDataLocation(folder + uuid.NewString() + ".parquet")
	if f.out, err = w.fs.Create(f.path); err != nil {
		return nil, fmt.Errorf("write a data file: %w", err)
	}
	f.counted = &countingWriter{w: bufio.NewWriterSize(f.out, 1<<20)}
	f.parquet, err = pqarrow.NewFileWriter(w.schema, f.counted, w.packing.properties(first), pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write data file %s: %w", f.path, err), f.out.Close(), w.fs.Remove(f.path))
	}
	return f, nil
}

// write appends a batch, whose columns are as conform gives them.
func (f *openFile) write(batch arrow.RecordBatch) error {
	if err := f.parquet.WriteBuffered(batch); err != nil {
		return fmt.Errorf("write data file %s: %w", f.path, err)
	}
	f.rows += batch.NumRows()
	return nil
}

// abandon ends and removes the file.
func (f *openFile) abandon() error {
	return errors.Join(f.parquet.Close(), f.out.Close(), f.writer.fs.Remove(f.path))
}

// close ends the file and describes it.
func (f *openFile) close() (iceberg.DataFile, error) {
	err := f.parquet.Close()
	if err == nil {
		err = f.counted.w.Flush()
	}
	if closeErr := f.out.Close(); err == nil {
		err = closeErr
	}
	var meta any
	if err == nil {
		meta, err = f.parquet.FileMetadata()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write data file %s: %w", f.path, err), f.writer.fs.Remove(f.path))
	}
	tbl := f.writer.tbl
	file, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: tbl.Schema(), Spec: tbl.Spec(), Format: iceberg.ParquetFile, Metadata: meta, FilePath: f.path, FileSize: f.counted.n,
		Content: iceberg.EntryContentData, PartitionValues: f.partition, Properties: tbl.Properties(), FormatVersion: tbl.Metadata().Version(),
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe data file %s: %w", f.path, err), f.writer.fs.Remove(f.path))
	}
	return file, nil
}

// countingWriter counts what goes through it. It hides the file's Close from the Parquet writer.
type countingWriter struct {
	w *bufio.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// removeFiles removes data files that no commit has named.
func (w *fileWriter) removeFiles(files []iceberg.DataFile) {
	for _, f := range files {
		if f == nil {
			continue // it was not written
		}
		// Best effort: what stays is an orphan, which maintenance removes.
		_ = w.fs.Remove(f.FilePath())
	}
}

// each runs work for 0 to n-1, some at a time, waits for all of it and gives the first error.
func each(n int, work func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		group.Go(func() error { return work(i) })
	}
	return group.Wait()
}
