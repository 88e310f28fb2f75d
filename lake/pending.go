package lake

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table/dv"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// place is where a row of a history stands.
type place struct {
	file int32 // number in merger.files
	row  uint32
}

// pending is one attempt to commit to a history: derived, then written, and applied to the index only once the commit
// has succeeded.
type pending struct {
	merger  *merger
	retired map[int32][]int64 // rows to delete, by file
	rows    []newRow
	entries []newEntry
	taken   func(feature.Position) bool // whether the history had a change before
	came    func(scd.Change) bool       // which changes of a key are new, nil where those that it is given
	ties    tally
	result  Result

	writer     *fileWriter
	data       []iceberg.DataFile
	deletes    []iceberg.DataFile
	superseded []iceberg.DataFile
}

// newRow is a version to write.
type newRow struct {
	key     string
	version scd.Version
	entry   int // index in entries of the key whose open version this is, or -1
}

// newEntry is what the index shall know of a key.
type newEntry struct {
	key    string
	newest int64
	open   *scd.Version
	at     place // of the open version; set when it is written
}

// add takes the patch of a key, whose newest change and open version are then those given. at is where the open version
// stands if the patch leaves that as it is; placeOf gives the places of versions that it retires.
func (p *pending) add(key string, patch scd.Patch, newest int64, open *scd.Version, at place, placeOf func(scd.Version) place) {
	p.entries = append(p.entries, newEntry{key: key, newest: newest, open: open, at: at})
	for _, v := range patch.Retire {
		where := placeOf(v)
		p.retired[where.file] = append(p.retired[where.file], int64(where.row))
	}
	for _, v := range patch.Add {
		entry := -1
		if v.To == scd.Open {
			entry = len(p.entries) - 1
		}
		p.rows = append(p.rows, newRow{key, v, entry})
	}
	p.result.Added += int64(len(patch.Add))
	p.result.Retired += int64(len(patch.Retire))
	p.result.Versions += int64(len(patch.Add) - len(patch.Retire))
}

// tie counts which of a key's sorted changes share event time and sequence with another that came before or with them. Only those that are
// fresh came now, and all that share an event time with one that is must be given. Of several that came at once, the first recorded
// stands for what was there. What the log has of others and the history hasn't taken is left for when it does.
func (p *pending) tie(changes []scd.Change, fresh func(scd.Change) bool) {
	for len(changes) > 1 {
		n := 1
		for n < len(changes) && changes[0].Order.SettledByPosition(changes[n].Order) {
			n++
		}
		if n > 1 {
			p.tieGroup(changes[:n], fresh)
		}
		changes = changes[n:]
	}
}

func (p *pending) tieGroup(group []scd.Change, fresh func(scd.Change) bool) {
	var came []scd.Change
	known := false
	for _, c := range group {
		if fresh(c) {
			came = append(came, c)
		} else if p.taken == nil || p.taken(positionOf(c)) {
			known = true
		}
	}
	slices.SortStableFunc(came, func(a, b scd.Change) int { return cmp.Compare(a.Origin.RecordedAt, b.Origin.RecordedAt) })
	for i, c := range came {
		if i > 0 || known {
			p.ties[partitionOf(positionOf(c))]++
		}
	}
}

func positionOf(c scd.Change) feature.Position {
	return feature.Position{Topic: c.Origin.Topic, Partition: c.Order.Partition, Offset: c.Order.Offset}
}

// every is true of any change.
func every(scd.Change) bool { return true }

// write writes the data files and deletion vectors. On an error nothing that was written is referred to.
func (p *pending) write(ctx context.Context, r *Result) error {
	begin := time.Now()
	var err error
	if p.writer, err = p.merger.history.fileWriter(ctx); err != nil {
		return err
	}
	if err := p.writeRows(); err != nil {
		return err
	}
	r.Files += time.Since(begin)
	begin = time.Now()
	defer func() { r.Vectors += time.Since(begin) }()
	return p.writeDeletes(ctx)
}

// partition is the key of a file to write.
type partitionKey struct {
	current bool
	bucket  any
}

// writeRows writes the new versions, a file a partition, sorted by key and valid_from.
func (p *pending) writeRows() error {
	groups := map[partitionKey][]*newRow{}
	for i := range p.rows {
		row := &p.rows[i]
		k := partitionKey{row.version.To == scd.Open, bucketOfKey(row.key)}
		groups[k] = append(groups[k], row)
	}
	keys := slices.SortedFunc(maps.Keys(groups), func(a, b partitionKey) int {
		return cmp.Or(cmp.Compare(fmt.Sprint(a.current), fmt.Sprint(b.current)), cmp.Compare(fmt.Sprint(a.bucket), fmt.Sprint(b.bucket)))
	})
	p.data = make([]iceberg.DataFile, len(keys))
	err := each(len(keys), func(i int) error {
		k := keys[i]
		slices.SortFunc(groups[k], func(a, b *newRow) int {
			return cmp.Or(p.merger.layout.compareKeys(a.key, b.key), cmp.Compare(a.version.From, b.version.From))
		})
		batch := p.merger.layout.historyBatch(p.writer.schema, groups[k])
		defer batch.Release()
		var err error
		p.data[i], err = p.writer.write([]any{k.current, k.bucket}, batch)
		return err
	})
	if err != nil {
		return err
	}
	for i, k := range keys {
		number := int32(len(p.merger.files) + i)
		for row, r := range groups[k] {
			if r.entry >= 0 {
				p.entries[r.entry].at = place{number, uint32(row)}
			}
		}
	}
	return nil
}

// writeDeletes writes which rows are retired.
func (p *pending) writeDeletes(ctx context.Context) error {
	if len(p.retired) == 0 {
		return nil
	}
	d := p.writer.deletes()
	for _, number := range slices.Sorted(maps.Keys(p.retired)) {
		if err := d.add(p.merger.files[number], p.retired[number]); err != nil {
			return err
		}
	}
	var err error
	p.superseded = d.replaced
	p.deletes, err = d.flush(ctx)
	return err
}

// discard removes what was written for an attempt that did not succeed.
func (p *pending) discard() {
	if p.writer == nil {
		return
	}
	p.writer.removeFiles(p.data)
	p.writer.removeFiles(p.deletes)
	p.data, p.deletes = nil, nil
}

// apply brings the index to what was committed.
func (p *pending) apply(r *Result) {
	m := p.merger
	for _, f := range p.data {
		m.fileOf[f.FilePath()] = int32(len(m.files))
		m.files = append(m.files, &liveFile{data: f})
	}
	for number, rows := range p.retired {
		f := m.files[number]
		if f.deleted == nil {
			f.deleted = dv.NewRoaringPositionBitmap()
		}
		for _, row := range rows {
			f.deleted.Set(uint64(row))
		}
	}
	for _, d := range p.deletes {
		if path := d.ReferencedDataFile(); path != nil {
			m.files[m.fileOf[*path]].vector = d
		} else {
			f := m.files[m.fileOf[string(d.LowerBoundValues()[deletePathID])]]
			f.positions = append(f.positions, d)
		}
	}
	for _, e := range p.entries {
		if err := m.index.put([]byte(e.key), e.newest, e.open, e.at.file, e.at.row); err != nil {
			m.dropIndex() // the commit stands; what it did is loaded with the next one, which tells of the error
			break
		}
	}
	if m.index != nil {
		m.index.tidy()
	}
	r.Added, r.Retired, r.Versions = r.Added+p.result.Added, r.Retired+p.result.Retired, r.Versions+p.result.Versions
	r.NoOps, r.LateKeys = r.NoOps+p.result.NoOps, r.LateKeys+p.result.LateKeys
}

// bucketOfKey is the bucket of a packed key, by its first column. Packed values are the bytes that Iceberg hashes: text
// as it is, every other kind of a key as eight bytes.
func bucketOfKey(key string) any {
	value, _ := scd.Next([]byte(key))
	return bucketOfBytes(value)
}

// historyBatch makes the Arrow rows of versions in the order of the history's columns.
func (l *layout) historyBatch(schema *arrow.Schema, rows []*newRow) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Reserve(len(rows))
	field := func(name string) array.Builder { return b.Field(schema.FieldIndices(name)[0]) }
	columns := l.columns()
	own := make([]array.Builder, len(columns))
	for i, c := range columns {
		own[i] = field(c.Name)
	}
	var (
		from, to             = field(feature.ColValidFrom).(*array.TimestampBuilder), field(feature.ColValidTo).(*array.TimestampBuilder)
		recorded, ingested   = field(feature.ColRecordedAt).(*array.TimestampBuilder), field(feature.ColIngestedAt).(*array.TimestampBuilder)
		current              = field(feature.ColIsCurrent).(*array.BooleanBuilder)
		eventID, topic       = field(feature.ColEventID).(*array.StringBuilder), field(feature.ColTopic).(*array.StringBuilder)
		sequence             = field(feature.ColSequence).(*array.Int64Builder)
		partitionCol, offset = field(feature.ColPartition).(*array.Int64Builder), field(feature.ColOffset).(*array.Int64Builder)
	)
	for _, r := range rows {
		v := &r.version
		for i, value := range v.Row.Values {
			appendPacked(own[i], value)
		}
		from.Append(arrow.Timestamp(v.From))
		if v.To == scd.Open {
			to.AppendNull()
		} else {
			to.Append(arrow.Timestamp(v.To))
		}
		current.Append(v.To == scd.Open)
		eventID.Append(v.Origin.EventID)
		if v.Order.HasSequence {
			sequence.Append(v.Order.Sequence)
		} else {
			sequence.AppendNull()
		}
		topic.Append(v.Origin.Topic)
		partitionCol.Append(int64(v.Order.Partition))
		offset.Append(v.Order.Offset)
		recorded.Append(arrow.Timestamp(v.Origin.RecordedAt))
		ingested.Append(arrow.Timestamp(v.Origin.IngestedAt))
	}
	// Columns that the table has and the stream no longer names stay null.
	for i := range schema.NumFields() {
		for n := len(rows) - b.Field(i).Len(); n > 0; n-- {
			b.Field(i).AppendNull()
		}
	}
	return b.NewRecordBatch()
}
