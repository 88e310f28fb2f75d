package lake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table/dv"
	"github.com/google/uuid"
)

// deletesWriter writes which rows of data files are deleted. In format v3 that is a deletion vector a data file, which holds
// all of its deleted rows and supersedes the one before; in v2 a file of position deletes a data file, which add up.
type deletesWriter struct {
	w        *fileWriter
	vectors  *dv.DVWriter // of v3
	rows     map[string][]int64
	of       map[string]iceberg.DataFile
	replaced []iceberg.DataFile // vectors that are superseded
	any      bool               // whether a row was deleted
}

// deletes begins to write deletes of the table's format.
func (w *fileWriter) deletes() *deletesWriter {
	d := &deletesWriter{w: w, rows: map[string][]int64{}, of: map[string]iceberg.DataFile{}}
	if meta := w.tbl.Metadata(); meta.Version() >= 3 {
		d.vectors = dv.NewDVWriter(w.fs, func(id int32) *iceberg.PartitionSpec { return meta.PartitionSpecByID(int(id)) })
	}
	return d
}

// add deletes rows of a file.
func (d *deletesWriter) add(f *liveFile, rows []int64) error {
	path := f.data.FilePath()
	d.any = true
	if d.vectors == nil {
		d.rows[path] = append(d.rows[path], rows...)
		d.of[path] = f.data
		return nil
	}
	if f.deleted != nil {
		d.vectors.Load(path, f.deleted, f.data.SpecID(), f.data.Partition())
		d.replaced = append(d.replaced, f.vector)
	}
	if err := d.vectors.Add(path, rows, f.data.SpecID(), f.data.Partition()); err != nil {
		return fmt.Errorf("delete rows of %s: %w", path, err)
	}
	return nil
}

// flush writes the delete files, none where no row was deleted.
func (d *deletesWriter) flush(ctx context.Context) ([]iceberg.DataFile, error) {
	if !d.any {
		return nil, nil
	}
	provider, err := d.w.tbl.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("place deletes: %w", err)
	}
	if d.vectors != nil {
		vectors, err := d.vectors.Flush(ctx, provider.NewDataLocation(uuid.NewString()+".puffin"))
		if err != nil {
			return nil, fmt.Errorf("write deletion vectors: %w", err)
		}
		return vectors, nil
	}
	paths := slices.Sorted(maps.Keys(d.rows))
	files := make([]iceberg.DataFile, len(paths))
	err = each(len(paths), func(i int) error {
		rows := d.rows[paths[i]]
		slices.Sort(rows)
		var err error
		files[i], err = d.writePositions(provider.NewDataLocation(uuid.NewString()+"-deletes.parquet"), d.of[paths[i]], rows)
		return err
	})
	if err != nil {
		d.w.removeFiles(files)
		return nil, fmt.Errorf("write position deletes: %w", err)
	}
	return files, nil
}

// Columns of a file of position deletes; their field ids are Iceberg's.
const (
	deletePathID     = 2147483546
	deletePositionID = 2147483545
)

var positionSchema = arrow.NewSchema([]arrow.Field{
	{Name: "file_path", Type: arrow.BinaryTypes.String, Metadata: arrow.MetadataFrom(map[string]string{"PARQUET:field_id": fmt.Sprint(deletePathID)})},
	{Name: "pos", Type: arrow.PrimitiveTypes.Int64, Metadata: arrow.MetadataFrom(map[string]string{"PARQUET:field_id": fmt.Sprint(deletePositionID)})},
}, nil)

// writePositions writes a file of position deletes of one data file.
func (d *deletesWriter) writePositions(path string, of iceberg.DataFile, rows []int64) (iceberg.DataFile, error) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, positionSchema)
	defer b.Release()
	for _, row := range rows {
		b.Field(0).(*array.StringBuilder).Append(of.FilePath())
		b.Field(1).(*array.Int64Builder).Append(row)
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	out, err := d.w.fs.Create(path)
	if err != nil {
		return nil, err
	}
	counted := &countingWriter{w: bufio.NewWriter(out)}
	err = encodePositions(counted, batch)
	if err == nil {
		err = counted.w.Flush()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, errors.Join(err, d.w.fs.Remove(path))
	}
	builder, err := iceberg.NewDataFileBuilder(d.w.tbl.Spec(), iceberg.EntryContentPosDeletes, path, iceberg.ParquetFile,
		of.Partition(), nil, nil, int64(len(rows)), counted.n)
	if err != nil {
		return nil, errors.Join(err, d.w.fs.Remove(path))
	}
	// Equal bounds tell readers that the deletes are of one file.
	bound := map[int][]byte{deletePathID: []byte(of.FilePath())}
	return builder.LowerBoundValues(bound).UpperBoundValues(bound).Build(), nil
}

func encodePositions(out io.Writer, batch arrow.RecordBatch) error {
	w, err := pqarrow.NewFileWriter(positionSchema, out, parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Snappy),
		parquet.WithCreatedBy("loam")), pqarrow.DefaultWriterProps())
	if err != nil {
		return err
	}
	return errors.Join(w.WriteBuffered(batch), w.Close())
}

// readPositions adds to the files the rows that their position deletes say are deleted.
func readPositions(ctx context.Context, fsys iceio.IO, files []*liveFile) error {
	return each(len(files), func(i int) error {
		f := files[i]
		for _, deletes := range f.positions {
			if err := f.readPositions(ctx, fsys, deletes); err != nil {
				return fmt.Errorf("read the position deletes in %s: %w", deletes.FilePath(), err)
			}
		}
		return nil
	})
}

func (f *liveFile) readPositions(ctx context.Context, fsys iceio.IO, deletes iceberg.DataFile) error {
	in, err := fsys.Open(deletes.FilePath())
	if err != nil {
		return err
	}
	defer in.Close()
	reader, err := file.NewParquetReader(in)
	if err != nil {
		return err
	}
	arrows, err := pqarrow.NewFileReader(reader, pqarrow.ArrowReadProperties{BatchSize: 1 << 16}, memory.DefaultAllocator)
	if err != nil {
		return err
	}
	rows, err := arrows.GetRecordReader(ctx, nil, nil)
	if err != nil {
		return err
	}
	defer rows.Release()
	for rows.Next() {
		var paths *array.String
		var positions *array.Int64
		if err := errors1(bind(rows.RecordBatch(), "file_path", &paths), bind(rows.RecordBatch(), "pos", &positions)); err != nil {
			return err
		}
		for i := range positions.Len() {
			if paths.Value(i) == f.data.FilePath() {
				if f.deleted == nil {
					f.deleted = dv.NewRoaringPositionBitmap()
				}
				f.deleted.Set(uint64(positions.Value(i)))
			}
		}
	}
	if err := rows.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
