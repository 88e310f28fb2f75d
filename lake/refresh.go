package lake

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
	"github.com/loamdata/loam/sql"
)

// catchLog loads the log as far as the loaded history, where that holds what another writer has made of its log rows, and always
// for a redrive: of one without a row for the history no snapshot tells. Every writer commits to the log first.
func (m *merger) catchLog(ctx context.Context, redriven bool) error {
	if m.index != nil && m.history.SnapshotID() == m.historyHead && !redriven {
		return nil
	}
	return m.log.reload(ctx)
}

// refresh brings the index and the list of files to the loaded heads of the tables.
func (m *merger) refresh(ctx context.Context) error {
	if m.index == nil {
		return m.load(ctx)
	}
	if head := m.log.SnapshotID(); head != m.logHead {
		if known, err := m.distrust(ctx, m.log, m.logHead, m.ownLog); err != nil {
			return err
		} else if !known {
			return m.load(ctx)
		}
		m.logHead = head
	}
	if head := m.history.SnapshotID(); head != m.historyHead {
		if m.history.rebuiltSince(m.historyHead) {
			m.index = nil // it may be wrong of any key
			return m.load(ctx)
		}
		if err := m.loadFiles(ctx); err != nil {
			return err
		}
		if known, err := m.distrust(ctx, m.history, m.historyHead, nil); err != nil {
			return err
		} else if !known {
			return m.load(ctx)
		}
		m.historyHead = head
	}
	return nil
}

// loadFiles lists the history's live files. Open versions whose files are gone are found again where compaction has put
// them. Keys whose open version is in none of the files, because somebody else has retired it, are distrusted.
func (m *merger) loadFiles(ctx context.Context) error {
	files, err := m.listFiles(ctx)
	if err != nil {
		return fmt.Errorf("list the files of %s: %w", m.history.Name(), err)
	}
	numbers := make(map[string]int32, len(files))
	var fresh []int32
	for i, f := range files {
		path := f.data.FilePath()
		numbers[path] = int32(i)
		if _, known := m.fileOf[path]; !known && ofOpenVersions(m.history, f) {
			fresh = append(fresh, int32(i))
		}
	}
	if m.index != nil {
		if err := m.moveIndex(ctx, files, numbers, fresh); err != nil {
			return fmt.Errorf("find the open versions of %s: %w", m.history.Name(), err)
		}
	}
	m.files, m.fileOf = files, numbers
	return nil
}

// listFiles lists the history's live files. The deletion vectors of files that have the same ones as before aren't read
// again.
func (m *merger) listFiles(ctx context.Context) ([]*liveFile, error) {
	files, err := m.history.list(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	var changed []*liveFile
	for _, f := range files {
		if n, ok := m.fileOf[f.data.FilePath()]; ok && sameDeletes(f, m.files[n]) {
			f.deleted = m.files[n].deleted
		} else if f.hasDeletes() {
			changed = append(changed, f)
		}
	}
	if len(changed) == 0 {
		return files, nil
	}
	io, err := m.history.tbl.FS(ctx)
	if err != nil {
		return nil, err
	}
	return files, readDeletes(ctx, io, changed)
}

// sameDeletes reports whether two states of a file have the same delete files.
func sameDeletes(a, b *liveFile) bool {
	if len(a.positions) != len(b.positions) || (a.vector == nil) != (b.vector == nil) {
		return false
	}
	if a.vector != nil {
		return a.vector.FilePath() == b.vector.FilePath() && a.vector.ContentOffset() != nil && b.vector.ContentOffset() != nil &&
			*a.vector.ContentOffset() == *b.vector.ContentOffset()
	}
	paths := func(f *liveFile) []string {
		all := make([]string, len(f.positions))
		for i, d := range f.positions {
			all[i] = d.FilePath()
		}
		slices.Sort(all)
		return all
	}
	return slices.Equal(paths(a), paths(b))
}

// moveIndex brings the places in the index to other files. fresh are those of open versions that were not listed before.
func (m *merger) moveIndex(ctx context.Context, files []*liveFile, numbers map[string]int32, fresh []int32) error {
	const moved = noFile - 1 // of an entry whose file is gone
	numberOf := func(path string) int32 {
		if n, ok := numbers[path]; ok {
			return n
		}
		return moved
	}
	renumbered := make([]int32, len(m.files))
	moves := make([]*movedFile, len(m.files)) // of files that are gone
	targets := make([][]int32, len(m.files))  // numbers of the files that these have become
	for i, f := range m.files {
		path := f.data.FilePath()
		if renumbered[i] = numberOf(path); renumbered[i] != moved {
			continue
		}
		if moves[i] = m.history.lake.moves.of(path); moves[i] != nil {
			for _, to := range moves[i].paths {
				targets[i] = append(targets[i], numberOf(to))
			}
		}
	}
	left := 0
	for i := range m.index.entries {
		e := &m.index.entries[i]
		if e.file == noFile {
			continue
		}
		was := e.file
		e.file = renumbered[was]
		if e.file == moved && moves[was] != nil {
			if file, row, ok := moves[was].at(e.row); ok && targets[was][file] != moved {
				e.file, e.row = targets[was][file], row
			}
		}
		if e.file == moved {
			left++
		} else if files[e.file].lacks(e.row) {
			e.file, e.newest = noFile, unknown
		}
	}
	if left == 0 {
		return nil
	}
	listed := make([]*liveFile, len(fresh))
	for i, n := range fresh {
		listed[i] = files[n]
	}
	relation, err := m.history.relation(ctx, listed, m.layout.stream.Key)
	if err != nil {
		return err
	}
	if err := m.db.LakeView(ctx, "moved_versions", relation, true); err != nil {
		return err
	}
	err = m.db.Arrow(ctx, "SELECT * FROM moved_versions", func(reader array.RecordReader) error {
		for reader.Next() {
			batch := reader.RecordBatch()
			keyOf, err := keysOf(m.layout.key, batch)
			if err != nil {
				return err
			}
			places, err := placesOf(batch, fresh)
			if err != nil {
				return err
			}
			for i := range int(batch.NumRows()) {
				key := keyOf(i)
				if e := m.index.find(key); e != nil && e.file == moved {
					at := places(i)
					e.file, e.row = at.file, at.row
				}
			}
		}
		return nil
	})
	if err != nil {
		m.dropIndex() // half of it was moved
		return err
	}
	for i := range m.index.entries {
		if e := &m.index.entries[i]; e.file == moved {
			e.file, e.newest = noFile, unknown
		}
	}
	return nil
}

// load fills the index from the lake: every open version with its place, and every key's newest event time.
func (m *merger) load(ctx context.Context) error {
	if err := m.loadFiles(ctx); err != nil {
		return err
	}
	m.dropIndex()
	x := newIndex(m.memoryBytes, m.tempDir)
	var open []int32 // numbers of files
	versions := int64(0)
	for i, f := range m.files {
		if ofOpenVersions(m.history, f) {
			open = append(open, int32(i))
			versions += f.rows()
		}
	}
	x.reserve(int(versions))
	var key, slab []byte
	err := m.byBucket(ctx, m.history, m.files, open, nil, "SELECT * FROM loam_bucket", func(numbers []int32, batch arrow.RecordBatch) error {
		r, err := m.layout.newReader(batch)
		if err != nil {
			return err
		}
		places, err := placesOf(batch, numbers)
		if err != nil {
			return err
		}
		for i := range int(batch.NumRows()) {
			key = r.appendKey(key[:0], i)
			var v scd.Version
			slab, v = r.version(slab[:0], i)
			at := places(i)
			if err := x.put(key, v.From, &v, at.file, at.row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		x.close()
		return fmt.Errorf("load the open versions of %s: %w", m.history.Name(), err)
	}
	m.index = x
	if err := m.eachKey(ctx, func(key []byte, newest int64) error {
		if e := x.find(key); e != nil {
			e.newest = newest
			return nil
		}
		return x.put(key, newest, nil, noFile, 0)
	}); err != nil {
		m.dropIndex()
		return fmt.Errorf("load the newest changes of %s: %w", m.log.Name(), err)
	}
	if err := m.distrustBehind(ctx); err != nil {
		m.dropIndex()
		return fmt.Errorf("compare %s with its log: %w", m.history.Name(), err)
	}
	m.logHead, m.historyHead = m.log.SnapshotID(), m.history.SnapshotID()
	return nil
}

// byBucket runs a statement over files of the given numbers, those of each bucket at a time, which it sees as the view
// loam_bucket with positions: loam_file counts in the numbers that use is given.
func (m *merger) byBucket(ctx context.Context, t *Table, files []*liveFile, which []int32, columns []string, statement string, use func(numbers []int32, batch arrow.RecordBatch) error) error {
	numbers := map[any][]int32{}
	chosen := map[any][]*liveFile{}
	var buckets []any
	for _, n := range which {
		b := bucketOfFile(t, files[n])
		if chosen[b] == nil {
			buckets = append(buckets, b)
		}
		numbers[b], chosen[b] = append(numbers[b], n), append(chosen[b], files[n])
	}
	parts := make([]sql.Files, len(buckets))
	for i, b := range buckets {
		var err error
		if parts[i], err = t.relation(ctx, chosen[b], columns); err != nil {
			return err
		}
	}
	return m.db.Parts(ctx, "loam_bucket", parts, true, statement, func(part int, batch arrow.RecordBatch) error {
		return use(numbers[buckets[part]], batch)
	})
}

// numbersOf gives the numbers of a relation's files.
func (m *merger) numbersOf(ctx context.Context, relation sql.Files) ([]int32, error) {
	io, err := m.history.tbl.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the files of %s: %w", m.history.Name(), err)
	}
	byLocal := make(map[string]int32, len(m.files))
	for i, f := range m.files {
		path, err := m.history.lake.local(ctx, io, f.data.FilePath())
		if err != nil {
			return nil, err
		}
		byLocal[path] = int32(i)
	}
	numbers := make([]int32, len(relation.Files))
	for i, f := range relation.Files {
		number, ok := byLocal[f.Path]
		if !ok {
			return nil, fmt.Errorf("file %s of %s came into being while it was read", f.Path, m.history.Name())
		}
		numbers[i] = number
	}
	return numbers, nil
}

// placesOf says where the rows of a batch of a view with positions stand.
func placesOf(batch arrow.RecordBatch, numbers []int32) (func(row int) place, error) {
	file, err := columnOf(batch, sql.FileColumnName)
	if err != nil {
		return nil, err
	}
	row, err := columnOf(batch, sql.RowColumnName)
	if err != nil {
		return nil, err
	}
	files, rows := file.(*array.Int64), row.(*array.Int64)
	return func(i int) place { return place{numbers[files.Value(i)], uint32(rows.Value(i))} }, nil
}

// eachKey calls yield with the keys of the log's rows and their newest event times.
func (m *merger) eachKey(ctx context.Context, yield func(key []byte, newest int64) error) error {
	files, err := m.logFiles(ctx)
	if err != nil {
		return err
	}
	keys := sql.Idents("", m.layout.stream.Key)
	statement := sql.Render("SELECT {keys}, epoch_us(max(event_time)) AS newest FROM loam_bucket GROUP BY ALL", sql.Args{"keys": keys})
	columns := append(slices.Clone(m.layout.stream.Key), feature.ColEventTime)
	all := make([]int32, len(files))
	for i := range all {
		all[i] = int32(i)
	}
	return m.byBucket(ctx, m.log, files, all, columns, statement, func(_ []int32, batch arrow.RecordBatch) error {
		keyOf, err := keysOf(m.layout.key, batch)
		if err != nil {
			return err
		}
		newest := batch.Column(int(batch.NumCols()) - 1).(*array.Int64)
		for i := range int(batch.NumRows()) {
			if err := yield(keyOf(i), newest.Value(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// distrust marks the keys of rows that were added to the log or the history after a snapshot, but for the snapshots in
// without. It is false where the snapshot is no longer known.
func (m *merger) distrust(ctx context.Context, t *Table, since int64, without map[int64]bool) (bool, error) {
	files, ok, err := t.addedSince(ctx, since, without)
	if err != nil || !ok || len(files) == 0 {
		return ok, err
	}
	relation, err := t.relation(ctx, files, m.layout.stream.Key)
	if err != nil {
		return false, err
	}
	return true, m.distrustKeys(ctx, relation, "true")
}

// distrustBehind marks the keys of the log's rows that the history has not taken: the history says less of them than the
// log.
func (m *merger) distrustBehind(ctx context.Context) error {
	log, err := m.log.Offsets()
	if err != nil {
		return err
	}
	history, err := m.history.Offsets()
	if err != nil {
		return err
	}
	spans := missing(log, history)
	if len(spans) == 0 {
		return nil
	}
	columns := append(slices.Clone(m.layout.stream.Key), feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColJobID)
	relation, err := m.log.Scan(ctx, ScanOptions{Columns: columns})
	if err != nil {
		return err
	}
	return m.distrustKeys(ctx, relation, within(spans))
}

// distrustKeys marks the keys of the relation's rows for which the condition holds.
func (m *merger) distrustKeys(ctx context.Context, relation sql.Files, condition sql.Fragment) error {
	if err := m.db.LakeView(ctx, "added_rows", relation, false); err != nil {
		return err
	}
	return m.db.Arrow(ctx, sql.Render("SELECT DISTINCT {keys} FROM added_rows WHERE {condition}",
		sql.Args{"keys": sql.Idents("", m.layout.stream.Key), "condition": condition}),
		func(reader array.RecordReader) error {
			for reader.Next() {
				keyOf, err := keysOf(m.layout.key, reader.RecordBatch())
				if err != nil {
					return err
				}
				for i := range int(reader.RecordBatch().NumRows()) {
					key := keyOf(i)
					if e := m.index.find(key); e != nil {
						e.newest = unknown
					} else if err := m.index.put(key, unknown, nil, noFile, 0); err != nil {
						return err
					}
				}
			}
			return nil
		})
}
