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
	"github.com/loamdata/loam/sql"
)

func releaseAll(batches []arrow.RecordBatch) {
	for _, b := range batches {
		b.Release()
	}
}

// commitLog writes the accepted events of the batch to the log and moves its offsets. It returns the rows that were
// written, which the caller releases. The batch's spans then count the events that were dropped as duplicates.
func (s *Stream) commitLog(ctx context.Context, b *feature.Batch, known int64, r *Result) ([]arrow.RecordBatch, error) {
	rows, err := concat(s.def.LogSchema(), b.Rows)
	if err != nil {
		return nil, fmt.Errorf("gather the batch of %s: %w", s.def.Name, err)
	}
	defer func() { rows.Release() }()
	spans := slices.Clone(b.Spans)
	var files []iceberg.DataFile
	var writer *fileWriter
	err = s.log.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		kept, dropped, err := s.dropTwins(ctx, rows, spans, known, r)
		if err != nil {
			return err
		}
		known = headID(base)
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
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
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
		return tx.SetProperties(props)
	})
	if err != nil {
		if writer != nil && !errors.Is(err, errUnsettled) {
			writer.removeFiles(files)
		}
		return nil, err
	}
	// After an unknown outcome the table was loaded anew, and its head may be somebody else's.
	if !s.log.recovered {
		s.head = s.log.SnapshotID()
	}
	// A commit of offsets alone makes no snapshot: the head is then anybody's.
	if len(files) > 0 && !s.log.recovered {
		s.wrote(s.log.SnapshotID())
	}
	copy(b.Spans, spans)
	r.Rows = rows.NumRows()
	rows.Retain()
	return []arrow.RecordBatch{rows}, nil
}

// wrote notes a snapshot of the log as this stream's own.
func (s *Stream) wrote(snapshotID int64) {
	maps.DeleteFunc(s.own, func(id int64, _ bool) bool { return s.log.tbl.SnapshotByID(id) == nil })
	s.own[snapshotID] = true
}

// dropTwins looks the batch's events up in what others have committed since the log's snapshot known, and leaves out
// those that are there from another position. The spans' counts follow.
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
	for _, f := range foreign {
		taken[f.Identity] = f.Position
	}
	own, err := identities(s.def, rows)
	if err != nil {
		rows.Release()
		return nil, false, err
	}
	var keep []int64
	for i, a := range own {
		first, twin := taken[a.Identity]
		if !twin || first == a.Position {
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

// acceptedSince lists the events that commits after a snapshot of the log have added.
func (s *Stream) acceptedSince(ctx context.Context, snapshotID int64) ([]Accepted, error) {
	files, ok, err := s.log.addedSince(ctx, snapshotID, s.own)
	if err != nil {
		return nil, err
	}
	if ok && len(files) == 0 {
		return nil, nil
	}
	if !ok { // the snapshot has expired, so nothing less than all will do
		if files, _, err = s.log.addedSince(ctx, 0, nil); err != nil {
			return nil, err
		}
	}
	relation, err := s.log.Scan(ctx, ScanOptions{Columns: identityColumns(s.def)})
	if err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for _, f := range files {
		path, err := s.localOf(ctx, f)
		if err != nil {
			return nil, err
		}
		paths[path] = true
	}
	if ok {
		relation.Files = slices.DeleteFunc(relation.Files, func(f sql.File) bool { return !paths[f.Path] })
	}
	return s.queryAccepted(ctx, relation, "true")
}

func (s *Stream) localOf(ctx context.Context, f iceberg.DataFile) (string, error) {
	io, err := s.log.tbl.FS(ctx)
	if err != nil {
		return "", fmt.Errorf("open the files of %s: %w", s.log.Name(), err)
	}
	return s.log.lake.local(ctx, io, f.FilePath())
}

func identityColumns(def *feature.Stream) []string {
	return append(slices.Clone(def.Key), feature.ColEventID, feature.ColEventTime, feature.ColTopic, feature.ColPartition, feature.ColOffset)
}

// keyText is the SQL expression of [feature.Identity]'s key.
func keyText(def *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		c, _ := def.Column(k)
		ident := sql.Ident(k)
		switch c.Type.Kind {
		case feature.Timestamp:
			ident = "epoch_us(" + ident + ")"
		case feature.Date:
			ident = "(" + ident + " - DATE '1970-01-01')"
		}
		parts[i] = ident + "::VARCHAR"
	}
	return sql.Join(" || chr(31) || ", parts)
}

// queryAccepted reads identities and positions of the relation's rows for which the condition holds.
func (s *Stream) queryAccepted(ctx context.Context, relation sql.Files, where sql.Fragment) ([]Accepted, error) {
	if err := s.db.LakeView(ctx, "accepted", relation, false); err != nil {
		return nil, err
	}
	rows, err := s.db.Query(ctx, sql.Render(
		`SELECT event_id, {key}, epoch_us(event_time), topic, "partition", "offset" FROM accepted WHERE {where}`,
		sql.Args{"key": keyText(s.def), "where": where}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []Accepted
	for rows.Next() {
		var a Accepted
		if err := rows.Scan(&a.EventID, &a.Key, &a.EventTime, &a.Topic, &a.Position.Partition, &a.Offset); err != nil {
			return nil, fmt.Errorf("read identities of %s: %w", s.log.Name(), err)
		}
		found = append(found, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read identities of %s: %w", s.log.Name(), err)
	}
	return found, nil
}

// LookUp finds which of the identities the log holds, and at which positions they were accepted first.
func (s *Stream) LookUp(ctx context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	least, greatest := ids[0].EventTime, ids[0].EventTime
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.BinaryTypes.String}, {Name: "at", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, id := range ids {
		least, greatest = min(least, id.EventTime), max(greatest, id.EventTime)
		b.Field(0).(*array.StringBuilder).Append(id.EventID)
		b.Field(1).(*array.Int64Builder).Append(id.EventTime)
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	if err := s.db.ImportBatches(ctx, "asked", schema, []arrow.RecordBatch{batch}); err != nil {
		return nil, err
	}
	column := iceberg.Reference(feature.ColEventTime)
	relation, err := s.log.Scan(ctx, ScanOptions{
		Columns: identityColumns(s.def),
		Filter: iceberg.NewAnd(iceberg.GreaterThanEqual(column, iceberg.Timestamp(least)),
			iceberg.LessThanEqual(column, iceberg.Timestamp(greatest))),
	})
	if err != nil {
		return nil, err
	}
	found, err := s.queryAccepted(ctx, relation, sql.Fragment(fmt.Sprintf(
		"event_time BETWEEN make_timestamptz(%d) AND make_timestamptz(%d) AND EXISTS (FROM asked WHERE asked.id = event_id AND asked.at = epoch_us(event_time))", least, greatest)))
	if err != nil {
		return nil, err
	}
	wanted := make(map[feature.Identity]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	positions := map[feature.Identity]feature.Position{}
	for _, a := range found {
		if wanted[a.Identity] {
			positions[a.Identity] = a.Position
		}
	}
	return positions, nil
}

// Recent calls yield with the identities of the newest events by event time, at most limit of them, and reports whether
// those are all that the log holds.
func (s *Stream) Recent(ctx context.Context, limit int, yield func(Accepted)) (all bool, err error) {
	relation, err := s.log.Scan(ctx, ScanOptions{Columns: identityColumns(s.def)})
	if err != nil {
		return false, err
	}
	found, err := s.queryAccepted(ctx, relation, sql.Fragment(fmt.Sprintf("true ORDER BY event_time DESC LIMIT %d", limit)))
	if err != nil {
		return false, err
	}
	for _, a := range found {
		yield(a)
	}
	s.head = s.log.SnapshotID()
	return len(found) < limit, nil
}

// identities reads identities and positions of a batch's rows.
func identities(def *feature.Stream, batch arrow.RecordBatch) ([]Accepted, error) {
	l := newLayout(def)
	r, err := l.newReader(batch)
	if err != nil {
		return nil, err
	}
	keys := make([]arrow.Array, len(def.Key))
	for i, k := range def.Key {
		if keys[i], err = columnOf(batch, k); err != nil {
			return nil, err
		}
	}
	all := make([]Accepted, batch.NumRows())
	for i := range all {
		all[i].EventID = r.eventID.Value(i)
		all[i].EventTime = int64(r.eventTime.Value(i))
		for j, k := range keys {
			if j > 0 {
				all[i].Key += feature.KeySeparator
			}
			all[i].Key += keyPart(k, i)
		}
		all[i].Position = feature.Position{Topic: r.topic.Value(i), Partition: int32(r.partition.Value(i)), Offset: r.offset.Value(i)}
	}
	return all, nil
}

func keyPart(column arrow.Array, row int) string {
	switch c := column.(type) {
	case *array.Timestamp:
		return fmt.Sprint(int64(c.Value(row)))
	case *array.Date32:
		return fmt.Sprint(int32(c.Value(row)))
	default:
		return column.ValueStr(row)
	}
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
	var files []iceberg.DataFile
	for _, b := range slices.SortedFunc(maps.Keys(buckets), func(a, b any) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) {
		places := buckets[b]
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
		file, err := s.writeSorted(ctx, w, b, rows, order)
		if err != nil {
			w.removeFiles(files)
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func (s *Stream) writeSorted(ctx context.Context, w *fileWriter, bucket any, rows arrow.RecordBatch, order []int64) (iceberg.DataFile, error) {
	sorted, err := take(ctx, rows, order)
	if err != nil {
		return nil, err
	}
	defer sorted.Release()
	batch, err := w.conform(sorted)
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
