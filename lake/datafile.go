package lake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

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
)

// rowGroupRows is DuckDB's own size of a row group: small enough to skip by its statistics.
const rowGroupRows = 122_880

// writerProperties are how loam writes Parquet.
func writerProperties() *parquet.WriterProperties {
	return parquet.NewWriterProperties(
		parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(1),
		parquet.WithMaxRowGroupLength(rowGroupRows), parquet.WithPageIndexEnabled(true),
		parquet.WithCreatedBy("loam"), parquet.WithStats(true),
	)
}

// fileWriter writes data files of one table.
type fileWriter struct {
	tbl    *table.Table
	fs     iceio.WriteFileIO
	schema *arrow.Schema // with field ids, in the table's order
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

// conform gives the batch in the table's order of columns; columns that the batch lacks are null. The caller releases it.
func (w *fileWriter) conform(batch arrow.RecordBatch) (arrow.RecordBatch, error) {
	columns := make([]arrow.Array, w.schema.NumFields())
	for i, f := range w.schema.Fields() {
		if found := batch.Schema().FieldIndices(f.Name); len(found) == 1 {
			columns[i] = batch.Column(found[0])
			if !arrow.TypeEqual(columns[i].DataType(), f.Type) {
				return nil, fmt.Errorf("column %s is %s in the batch and %s in the table", f.Name, columns[i].DataType(), f.Type)
			}
			continue
		}
		nulls := array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(batch.NumRows()))
		defer nulls.Release()
		columns[i] = nulls
	}
	return array.NewRecordBatch(w.schema, columns, batch.NumRows()), nil
}

// write writes the batches, whose columns are as conform gives them, as one data file of the partition, given by the
// partition's values in the order of the spec. Positions of rows in the file are their positions in the batches.
func (w *fileWriter) write(partition []any, batches ...arrow.RecordBatch) (iceberg.DataFile, error) {
	provider, err := w.tbl.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("place a data file: %w", err)
	}
	spec := w.tbl.Spec()
	values := map[int]any{}
	folder := ""
	for i := range spec.NumFields() {
		f := spec.Field(i)
		values[f.FieldID] = partition[i]
		folder += fmt.Sprintf("%s=%v/", f.Name, partition[i])
	}
	path := provider.NewDataLocation(folder + uuid.NewString() + ".parquet")
	out, err := w.fs.Create(path)
	if err != nil {
		return nil, fmt.Errorf("write a data file: %w", err)
	}
	counted := &countingWriter{w: bufio.NewWriterSize(out, 1<<20)}
	meta, err := w.encode(counted, batches)
	if err == nil {
		err = counted.w.Flush()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write data file %s: %w", path, err), w.fs.Remove(path))
	}
	file, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: w.tbl.Schema(), Spec: spec, Format: iceberg.ParquetFile, Metadata: meta, FilePath: path, FileSize: counted.n,
		Content: iceberg.EntryContentData, PartitionValues: values, Properties: w.tbl.Properties(), FormatVersion: w.tbl.Metadata().Version(),
	})
	if err != nil {
		return nil, fmt.Errorf("describe data file %s: %w", path, err)
	}
	return file, nil
}

func (w *fileWriter) encode(out io.Writer, batches []arrow.RecordBatch) (any, error) {
	pw, err := pqarrow.NewFileWriter(w.schema, out, writerProperties(), pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return nil, err
	}
	for _, b := range batches {
		if err := pw.WriteBuffered(b); err != nil {
			return nil, errors.Join(err, pw.Close())
		}
	}
	if err := pw.Close(); err != nil {
		return nil, err
	}
	return pw.FileMetadata()
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
		// Best effort: what stays is an orphan, which maintenance removes.
		_ = w.fs.Remove(f.FilePath())
	}
}
