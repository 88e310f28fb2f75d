package lake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/compute"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/twmb/murmur3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
)

func releaseAll(batches []arrow.RecordBatch) {
	for _, b := range batches {
		b.Release()
	}
}

// commitLog writes the accepted events of the batch to the log and moves its offsets. It returns the rows that were
// written, which the caller releases. The batch's spans then count the events that were dropped as duplicates.
func (s *Stream) commitLog(ctx context.Context, b *feature.Batch, known Head, r *Result) ([]arrow.RecordBatch, error) {
	return s.appendLog(ctx, b, known, r, nil)
}

// appendLog is commitLog, or where it is given a redrive the commit of its rows: that moves no offsets, and is none without rows.
func (s *Stream) appendLog(ctx context.Context, b *feature.Batch, known Head, r *Result, redrive *redriving) ([]arrow.RecordBatch, error) {
	rows, err := concat(s.def.LogSchema(), b.Rows)
	if err != nil {
		return nil, fmt.Errorf("gather the batch of %s: %w", s.def.Name, err)
	}
	defer func() { rows.Release() }()
	if len(s.layout.stream.Columns) > len(s.def.Columns) {
		whole, err := conform(s.layout.stream.LogSchema(), rows)
		if err != nil {
			return nil, fmt.Errorf("gather the batch of %s: %w", s.def.Name, err)
		}
		rows.Release()
		rows = whole
	}
	spans := slices.Clone(b.Spans)
	var files []iceberg.DataFile
	var writer *fileWriter
	err = s.log.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		if redrive != nil && offsets.Redrive.JobID != redrive.after {
			return ErrRedriven
		}
		kept, dropped, err := s.dropTwins(ctx, rows, spans, known.Snapshot, r)
		if err != nil {
			return err
		}
		known = headOf(base)
		if dropped || writer == nil {
			if writer != nil {
				writer.removeFiles(files)
			}
			rows.Release()
			rows = kept
			if writer, err = s.log.fileWriter(ctx); err != nil {
				return err
			}
			if files, err = s.writeLog(ctx, writer, rows); err != nil {
				return err
			}
		} else {
			kept.Release()
		}
		step.At(step.LogWritten)
		if redrive != nil {
			if len(files) == 0 {
				return errNothing
			}
			summary[summaryOffsets] = offsetsSummary([]feature.Span{redriveSpan(redrive.JobID)})
			if err := tx.NewRowDelta(summary).AddRows(files...).Commit(ctx); err != nil {
				return err
			}
			return tx.SetProperties(iceberg.Properties{propertyRedrive: mustJSON(redrive.Redrive)})
		}
		if err := findLate(rows, spans, &offsets); err != nil {
			return err
		}
		props, err := offsets.move(spans, summary[summaryCommit])
		if err != nil {
			return err
		}
		summary[summaryOffsets] = offsetsSummary(spans)
		if len(files) > 0 {
			if err := tx.NewRowDelta(summary).AddRows(files...).Commit(ctx); err != nil {
				return err
			}
		}
		step.At(step.LogStaged)
		return tx.SetProperties(props)
	})
	if err != nil {
		if writer != nil && !errors.Is(err, errUnsettled) {
			writer.removeFiles(files)
		}
		return nil, err
	}
	if redrive == nil && len(files) == 0 {
		step.At(step.OffsetsCommitted)
	}
	// After an unknown outcome the table was loaded anew, and its head may be somebody else's.
	if !s.log.recovered {
		s.head = headOf(s.log.tbl)
	}
	// A commit of offsets alone makes no snapshot: the head is then anybody's.
	if len(files) > 0 && !s.log.recovered {
		if s.listed != nil && s.listedHead == known.Snapshot {
			for _, f := range files {
				s.listed = append(s.listed, &liveFile{data: f})
			}
			s.listedHead = s.log.SnapshotID()
		}
		s.wrote(s.log.SnapshotID())
	}
	if s.merger != nil {
		s.merger.written = map[string]bool{}
		for _, f := range files {
			s.merger.written[f.FilePath()] = true
		}
	}
	copy(b.Spans, spans)
	r.Rows = rows.NumRows()
	rows.Retain()
	return []arrow.RecordBatch{rows}, nil
}

// findLate counts in the spans which of their rows, which stand in the order of their offsets, are older than one before them
// in their partition, and finds the newest. It is a function of the log's rows alone: the offsets tell of those before.
func findLate(rows arrow.RecordBatch, spans []feature.Span, offsets *Offsets) error {
	var columns [3]arrow.Array
	for i, name := range []string{feature.ColTopic, feature.ColPartition, feature.ColEventTime} {
		var err error
		if columns[i], err = columnOf(rows, name); err != nil {
			return err
		}
	}
	topics, partitions, times := columns[0].(*array.String), columns[1].(*array.Int64), columns[2].(*array.Timestamp)
	type sofar struct {
		late, newest int64
		any          bool
	}
	found := make(map[feature.Partition]*sofar, len(spans))
	for _, s := range spans {
		f := &sofar{}
		if at, _ := offsets.Of(s.Partition); at.Newest != nil {
			f.newest, f.any = *at.Newest, true
		}
		found[s.Partition] = f
	}
	for row := range int(rows.NumRows()) {
		t := int64(times.Value(row))
		switch f := found[feature.Partition{Topic: topics.Value(row), Index: int32(partitions.Value(row))}]; {
		case f == nil: // a row outside of all spans, which are what is counted
		case f.any && t < f.newest:
			f.late++
		default:
			f.newest, f.any = t, true
		}
	}
	for i := range spans {
		f := found[spans[i].Partition]
		if spans[i].Counts.Late = f.late; f.any {
			spans[i].Newest = &f.newest
		}
	}
	return nil
}

// wrote notes a snapshot of the log as this stream's own.
func (s *Stream) wrote(snapshotID int64) {
	maps.DeleteFunc(s.own, func(id int64, _ bool) bool { return s.log.tbl.SnapshotByID(id) == nil })
	s.own[snapshotID] = true
}

// dropTwins looks the batch's events up in what others have committed since the log's snapshot known, and leaves out
// those that are there from another position. The spans' counts follow. What came to stand at one of the batch's own positions is left
// out, too: it was a dead letter that somebody else has taken again, which no offset tells.
func (s *Stream) dropTwins(ctx context.Context, rows arrow.RecordBatch, spans []feature.Span, known int64, r *Result) (arrow.RecordBatch, bool, error) {
	rows.Retain()
	if s.log.SnapshotID() == known {
		return rows, false, nil
	}
	foreign, err := s.acceptedSince(ctx, known)
	if err != nil {
		rows.Release()
		return nil, false, err
	}
	r.Foreign = append(r.Foreign, foreign...)
	taken := make(map[feature.Identity]feature.Position, len(foreign))
	there := make(map[feature.Position]bool, len(foreign))
	for _, f := range foreign {
		taken[f.Identity], there[f.Position] = f.Position, true
	}
	own, err := identities(s.def, rows)
	if err != nil {
		rows.Release()
		return nil, false, err
	}
	var keep []int64
	for i, a := range own {
		if _, twin := taken[a.Identity]; !twin && !there[a.Position] {
			keep = append(keep, int64(i))
			continue
		}
		r.Dropped++
		for j := range spans {
			if spans[j].Topic == a.Topic && spans[j].Index == a.Position.Partition {
				spans[j].Counts.Accepted--
				spans[j].Counts.Duplicate++
			}
		}
	}
	if len(keep) == len(own) {
		return rows, false, nil
	}
	kept, err := take(ctx, rows, keep)
	rows.Release()
	return kept, true, err
}

// concat makes one batch of several, which the caller releases.
func concat(schema *arrow.Schema, batches []arrow.RecordBatch) (arrow.RecordBatch, error) {
	if len(batches) == 1 {
		batches[0].Retain()
		return batches[0], nil
	}
	columns := make([]arrow.Array, schema.NumFields())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	var rows int64
	for _, b := range batches {
		rows += b.NumRows()
	}
	for i, f := range schema.Fields() {
		if len(batches) == 0 {
			columns[i] = array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, 0)
			continue
		}
		parts := make([]arrow.Array, len(batches))
		for j, b := range batches {
			parts[j] = b.Column(i)
		}
		var err error
		if columns[i], err = array.Concatenate(parts, memory.DefaultAllocator); err != nil {
			return nil, err
		}
	}
	return array.NewRecordBatch(schema, columns, rows), nil
}

// take gives the rows at these positions, in this order, as a batch that the caller releases.
func take(ctx context.Context, batch arrow.RecordBatch, positions []int64) (arrow.RecordBatch, error) {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.AppendValues(positions, nil)
	indices := b.NewArray()
	defer indices.Release()
	columns := make([]arrow.Array, batch.NumCols())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i := range columns {
		var err error
		if columns[i], err = compute.TakeArray(ctx, batch.Column(i), indices); err != nil {
			return nil, fmt.Errorf("order column %s: %w", batch.ColumnName(i), err)
		}
	}
	return array.NewRecordBatch(batch.Schema(), columns, int64(len(positions))), nil
}

// writeLog writes the rows as one file a bucket, sorted by cluster key and event time.
func (s *Stream) writeLog(ctx context.Context, w *fileWriter, rows arrow.RecordBatch) ([]iceberg.DataFile, error) {
	if rows.NumRows() == 0 {
		return nil, nil
	}
	cluster, err := columnOf(rows, s.def.ClusterBy)
	if err != nil {
		return nil, err
	}
	eventTime, err := columnOf(rows, feature.ColEventTime)
	if err != nil {
		return nil, err
	}
	times := eventTime.(*array.Timestamp)
	key, err := sortKey(cluster)
	if err != nil {
		return nil, err
	}
	type place struct {
		key  []byte
		time int64
		row  int64
	}
	buckets := map[any][]place{}
	for i := range int(rows.NumRows()) {
		k := key(i)
		b := bucketOf(cluster, i)
		buckets[b] = append(buckets[b], place{k, int64(times.Value(i)), int64(i)})
	}
	numbers := slices.SortedFunc(maps.Keys(buckets), func(a, b any) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	files := make([]iceberg.DataFile, len(numbers))
	err = each(len(numbers), func(i int) error {
		places := buckets[numbers[i]]
		slices.SortFunc(places, func(a, b place) int {
			if c := bytes.Compare(a.key, b.key); c != 0 {
				return c
			}
			return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.row, b.row))
		})
		order := make([]int64, len(places))
		for i, p := range places {
			order[i] = p.row
		}
		var err error
		files[i], err = s.writeSorted(ctx, w, numbers[i], rows, order)
		return err
	})
	if err != nil {
		w.removeFiles(files)
		return nil, err
	}
	return files, nil
}

func (s *Stream) writeSorted(ctx context.Context, w *fileWriter, bucket any, rows arrow.RecordBatch, order []int64) (iceberg.DataFile, error) {
	sorted, err := take(ctx, rows, order)
	if err != nil {
		return nil, err
	}
	defer sorted.Release()
	batch, err := conform(w.schema, sorted)
	if err != nil {
		return nil, err
	}
	defer batch.Release()
	return w.write([]any{bucket}, batch)
}

// sortKey gives bytes that compare as the values of a key column do; null is empty.
func sortKey(column arrow.Array) (func(row int) []byte, error) {
	number := func(value func(int) int64) func(int) []byte {
		return func(row int) []byte {
			if column.IsNull(row) {
				return nil
			}
			return binary.BigEndian.AppendUint64(nil, uint64(value(row))^1<<63)
		}
	}
	switch c := column.(type) {
	case *array.String:
		return func(row int) []byte {
			if c.IsNull(row) {
				return nil
			}
			return []byte(c.Value(row))
		}, nil
	case *array.Int64:
		return number(c.Value), nil
	case *array.Timestamp:
		return number(func(row int) int64 { return int64(c.Value(row)) }), nil
	case *array.Date32:
		return number(func(row int) int64 { return int64(c.Value(row)) }), nil
	default:
		return nil, fmt.Errorf("a column of %s can't cluster files", column.DataType())
	}
}

// bucketOf is Iceberg's bucket transform of a key value; null stays null.
func bucketOf(column arrow.Array, row int) any {
	if column.IsNull(row) {
		return nil
	}
	number := func(v int64) any { return bucketOfBytes(binary.LittleEndian.AppendUint64(nil, uint64(v))) }
	switch c := column.(type) {
	case *array.String:
		return bucketOfBytes([]byte(c.Value(row)))
	case *array.Int64:
		return number(c.Value(row))
	case *array.Timestamp:
		return number(int64(c.Value(row)))
	case *array.Date32:
		return number(int64(c.Value(row)))
	default:
		panic(fmt.Sprintf("no key of loam is %s", column.DataType()))
	}
}

// bucketOfBytes hashes what Iceberg's specification says: murmur3 of text, or of a number as eight little-endian bytes.
func bucketOfBytes(value []byte) any {
	return int32(murmur3.Sum32(value)&0x7fffffff) % Buckets
}
