package lake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
	"github.com/loamdata/loam/sql"
)

// merger writes what follows from accepted changes to a history.
//
// Its index and its list of live files describe the history at one head and the keys that the log held at another. They
// are loaded once. Where another writer has committed since, the keys of the log rows and of the history rows that it
// added, and those whose open version it retired, are distrusted, which sends their changes the late way; and the list of
// files is read anew. The log is always loaded at least as far as the history: a key's changes are all there when its
// versions are derived anew.
type merger struct {
	layout  *layout
	log     *Table
	history *Table
	db      *sql.DB

	index       *index // nil until it is needed
	logHead     int64
	historyHead int64
	ownLog      map[int64]bool // the stream's own snapshots of the log, whose rows are given to commit
	files       []*liveFile
	fileOf      map[string]int32 // by path
}

// keyChanges are the changes of one key in a batch.
type keyChanges struct {
	key     string
	changes []scd.Change
}

// commit applies accepted changes, given as rows of the log, and moves the history's offsets by the spans. Rows that the
// history has taken already are skipped, so anybody may apply them, any number of times.
func (m *merger) commit(ctx context.Context, rows []arrow.RecordBatch, spans []feature.Span, r *Result) error {
	var done *pending
	err := m.history.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if done != nil {
			done.discard()
		}
		if err := m.catchLog(ctx); err != nil {
			return err
		}
		if err := m.refresh(ctx); err != nil {
			return err
		}
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		left, err := m.notTaken(offsets, spans)
		if err != nil {
			return err
		}
		keys, err := m.group(rows, offsets)
		if err != nil {
			return err
		}
		if done, err = m.merge(ctx, keys); err != nil {
			return err
		}
		if err := done.write(ctx); err != nil {
			return err
		}
		props, err := offsets.move(left, summary[summaryCommit])
		if err != nil {
			return err
		}
		summary[summaryOffsets] = offsetsSummary(left)
		if len(done.data) > 0 || len(done.vectors) > 0 {
			delta := tx.NewRowDelta(summary).AddRows(done.data...).AddDeletes(done.vectors...).RemoveDeletes(done.superseded...)
			if err := delta.Commit(ctx); err != nil {
				return err
			}
		}
		return tx.SetProperties(props)
	})
	if err != nil {
		if done != nil && !errors.Is(err, errUnsettled) {
			done.discard()
		}
		return err
	}
	if done != nil {
		done.apply(r)
	}
	m.historyHead = m.history.SnapshotID()
	if m.history.recovered {
		m.index = nil // others may have committed since
	}
	return nil
}

// notTaken leaves of the spans what the history has not taken yet.
func (m *merger) notTaken(offsets Offsets, spans []feature.Span) ([]feature.Span, error) {
	var left []feature.Span
	for _, s := range spans {
		at, _ := offsets.Of(s.Partition)
		switch {
		case at.Next >= s.To:
			continue
		case at.Next < s.From:
			return nil, fmt.Errorf("the history of %s stands at offset %d of partition %d of %s, and the batch starts at %d: "+
				"open the stream anew", m.layout.stream.Name, at.Next, s.Index, s.Topic, s.From)
		case at.Next > s.From:
			// Somebody took a part. The counts of the rest can't be told apart from the log's, which are the ones shown.
			s.From = at.Next
			s.Counts = feature.Counts{}
		}
		left = append(left, s)
	}
	return left, nil
}

// group reads the changes that the history has not taken, by key, each key's in their order.
func (m *merger) group(rows []arrow.RecordBatch, offsets Offsets) ([]*keyChanges, error) {
	byKey := map[string]*keyChanges{}
	var keys []*keyChanges
	var key, slab []byte
	for _, batch := range rows {
		r, err := m.layout.newReader(batch)
		if err != nil {
			return nil, fmt.Errorf("read the batch of %s: %w", m.layout.stream.Name, err)
		}
		next := map[feature.Partition]int64{}
		for i := range int(batch.NumRows()) {
			p := feature.Partition{Topic: r.topic.Value(i), Index: int32(r.partition.Value(i))}
			from, ok := next[p]
			if !ok {
				at, _ := offsets.Of(p)
				from = at.Next
				next[p] = from
			}
			if r.offset.Value(i) < from {
				continue
			}
			key = r.appendKey(key[:0], i)
			k := byKey[string(key)]
			if k == nil {
				k = &keyChanges{key: string(key)}
				byKey[k.key] = k
				keys = append(keys, k)
			}
			var c scd.Change
			slab, c = r.change(slab, i)
			k.changes = append(k.changes, c)
			if len(slab) > chunkBytes {
				slab = nil
			}
		}
	}
	for _, k := range keys {
		scd.Sort(k.changes)
	}
	return keys, nil
}

// merge derives what the changes do to the history.
func (m *merger) merge(ctx context.Context, keys []*keyChanges) (*pending, error) {
	p := &pending{merger: m, retired: map[int32][]int64{}}
	var late []*keyChanges
	for _, k := range keys {
		e := m.index.find([]byte(k.key))
		if e != nil && !scd.Fast(e.newest, k.changes) {
			late = append(late, k)
			continue
		}
		var open *scd.Version
		var at place
		if e != nil && e.file != noFile {
			open, at = m.index.version(e), place{e.file, e.row}
		}
		patch, now, stats := scd.Advance(open, k.changes)
		p.result.NoOps += int64(stats.NoOps)
		p.add(k.key, patch, k.changes[len(k.changes)-1].Order.EventTime, now, at, func(scd.Version) place { return at })
	}
	p.result.LateKeys = int64(len(late))
	if len(late) == 0 {
		return p, nil
	}
	stored, err := m.readLate(ctx, late)
	if err != nil {
		return nil, fmt.Errorf("read what late changes of %s touch: %w", m.layout.stream.Name, err)
	}
	for _, k := range late {
		s := stored[k.key]
		if s == nil {
			return nil, fmt.Errorf("the log of %s lacks changes that it was just given", m.layout.stream.Name)
		}
		before := scd.Stats{}
		if len(s.versions) > 0 || len(s.changes) > len(k.changes) {
			_, before = scd.Fold(nil, sortedWithout(s.changes, k.changes))
		}
		patch, now, stats := scd.Recompute(s.versions, s.changes)
		p.result.NoOps += int64(stats.NoOps - before.NoOps)
		var at place
		if now != nil {
			at = s.places[now.From] // where it stands if the patch leaves it
		}
		newest := s.changes[len(s.changes)-1].Order.EventTime // Recompute sorted them
		p.add(k.key, patch, newest, now, at, func(v scd.Version) place { return s.places[v.From] })
	}
	return p, nil
}

// sortedWithout gives the changes that are not among those of the batch, in their order.
func sortedWithout(all, batch []scd.Change) []scd.Change {
	orders := make(map[feature.Order]bool, len(batch))
	for _, c := range batch {
		orders[c.Order] = true
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(c scd.Change) bool { return orders[c.Order] })
	scd.Sort(rest)
	return rest
}

// catchLog loads the log as far as the loaded history, where that holds what another writer has made of its log rows.
// Every writer commits to the log first.
func (m *merger) catchLog(ctx context.Context) error {
	if m.index != nil && m.history.SnapshotID() == m.historyHead {
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

// loadFiles lists the history's live files. Files of the index that are gone were rewritten: the places in them are
// unknown, so their keys are distrusted, as are those whose open version somebody else has retired.
func (m *merger) loadFiles(ctx context.Context) error {
	files, err := m.history.plan(ctx, ScanOptions{})
	if err != nil {
		return fmt.Errorf("list the files of %s: %w", m.history.Name(), err)
	}
	numbers := make(map[string]int32, len(files))
	for i, f := range files {
		numbers[f.data.FilePath()] = int32(i)
	}
	if m.index != nil {
		renumbered := make([]int32, len(m.files))
		for i, f := range m.files {
			n, ok := numbers[f.data.FilePath()]
			if !ok {
				n = noFile
			}
			renumbered[i] = n
		}
		for i := range m.index.entries {
			e := &m.index.entries[i]
			if e.file == noFile {
				continue
			}
			if e.file = renumbered[e.file]; e.file == noFile || files[e.file].lacks(e.row) {
				e.newest = unknown
			}
		}
	}
	m.files, m.fileOf = files, numbers
	return nil
}

// load fills the index from the lake: every open version with its place, and every key's newest event time.
func (m *merger) load(ctx context.Context) error {
	if err := m.loadFiles(ctx); err != nil {
		return err
	}
	current := iceberg.EqualTo(iceberg.Reference(feature.ColIsCurrent), true)
	relation, err := m.history.Scan(ctx, ScanOptions{Filter: current})
	if err != nil {
		return err
	}
	if err := m.db.LakeView(ctx, "open_versions", relation, true); err != nil {
		return err
	}
	numbers, err := m.numbersOf(ctx, relation)
	if err != nil {
		return err
	}
	x := newIndex(0)
	var key, slab []byte
	err = m.db.Arrow(ctx, "SELECT * FROM open_versions WHERE is_current", func(reader array.RecordReader) error {
		for reader.Next() {
			batch := reader.RecordBatch()
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
				x.put(key, v.From, &v, at.file, at.row)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load the open versions of %s: %w", m.history.Name(), err)
	}
	m.index = x
	if err := m.eachKey(ctx, "", func(key []byte, newest int64) {
		if e := x.find(key); e != nil {
			e.newest = newest
		} else {
			x.put(key, newest, nil, noFile, 0)
		}
	}); err != nil {
		m.index = nil
		return fmt.Errorf("load the newest changes of %s: %w", m.log.Name(), err)
	}
	m.logHead, m.historyHead = m.log.SnapshotID(), m.history.SnapshotID()
	return nil
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
func (m *merger) eachKey(ctx context.Context, condition sql.Fragment, yield func(key []byte, newest int64)) error {
	if condition == "" {
		condition = "true"
	}
	keys := sql.Idents("", m.layout.stream.Key)
	relation, err := m.log.Scan(ctx, ScanOptions{Columns: append(slices.Clone(m.layout.stream.Key), feature.ColEventTime)})
	if err != nil {
		return err
	}
	if err := m.db.LakeView(ctx, "log_keys", relation, false); err != nil {
		return err
	}
	statement := sql.Render("SELECT {keys}, epoch_us(max(event_time)) AS newest FROM log_keys WHERE {condition} GROUP BY ALL",
		sql.Args{"keys": keys, "condition": condition})
	return m.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		var key []byte
		for reader.Next() {
			batch := reader.RecordBatch()
			packers, err := m.layout.keyPackers(batch)
			if err != nil {
				return err
			}
			newest := batch.Column(int(batch.NumCols()) - 1).(*array.Int64)
			for i := range int(batch.NumRows()) {
				key = key[:0]
				for _, p := range packers {
					key = p(key, i)
				}
				yield(key, newest.Value(i))
			}
		}
		return nil
	})
}

// keyPackers read the key columns of a batch.
func (l *layout) keyPackers(batch arrow.RecordBatch) ([]packer, error) {
	packers := make([]packer, len(l.key))
	for i, c := range l.key {
		column, err := columnOf(batch, c.Name)
		if err != nil {
			return nil, err
		}
		if packers[i], err = packerOf(column); err != nil {
			return nil, err
		}
	}
	return packers, nil
}

// distrust marks the keys of rows that were added to the log or the history after a snapshot, but for the snapshots in
// without. It is false where the snapshot is no longer known.
func (m *merger) distrust(ctx context.Context, t *Table, since int64, without map[int64]bool) (bool, error) {
	files, ok, err := t.addedSince(ctx, since, without)
	if err != nil || !ok || len(files) == 0 {
		return ok, err
	}
	io, err := t.tbl.FS(ctx)
	if err != nil {
		return false, fmt.Errorf("open the files of %s: %w", t.Name(), err)
	}
	relation, err := t.Scan(ctx, ScanOptions{Columns: m.layout.stream.Key})
	if err != nil {
		return false, err
	}
	relation.Files = nil
	for _, f := range files {
		path, err := t.lake.local(ctx, io, f.FilePath())
		if err != nil {
			return false, err
		}
		relation.Files = append(relation.Files, sql.File{Path: path})
	}
	return true, m.distrustKeys(ctx, relation)
}

func (m *merger) distrustKeys(ctx context.Context, relation sql.Files) error {
	if err := m.db.LakeView(ctx, "added_rows", relation, false); err != nil {
		return err
	}
	return m.db.Arrow(ctx, sql.Render("SELECT DISTINCT {keys} FROM added_rows", sql.Args{"keys": sql.Idents("", m.layout.stream.Key)}),
		func(reader array.RecordReader) error {
			var key []byte
			for reader.Next() {
				packers, err := m.layout.keyPackers(reader.RecordBatch())
				if err != nil {
					return err
				}
				for i := range int(reader.RecordBatch().NumRows()) {
					key = key[:0]
					for _, p := range packers {
						key = p(key, i)
					}
					if e := m.index.find(key); e != nil {
						e.newest = unknown
					} else {
						m.index.put(key, unknown, nil, noFile, 0)
					}
				}
			}
			return nil
		})
}

// storedKey is what the lake holds of a key.
type storedKey struct {
	versions []scd.Version
	places   map[int64]place // by From
	changes  []scd.Change
}

// readLate reads the stored versions and all changes of some keys, in one pass over each table.
func (m *merger) readLate(ctx context.Context, keys []*keyChanges) (map[string]*storedKey, error) {
	if err := m.importKeys(ctx, keys); err != nil {
		return nil, err
	}
	stored := make(map[string]*storedKey, len(keys))
	of := func(key []byte) *storedKey {
		s := stored[string(key)]
		if s == nil {
			s = &storedKey{places: map[int64]place{}}
			stored[string(key)] = s
		}
		return s
	}
	var key, slab []byte
	each := func(name string, relation sql.Files, row func(r *reader, batch arrow.RecordBatch) (func(i int), error)) error {
		if err := m.db.LakeView(ctx, name, relation, true); err != nil {
			return err
		}
		statement := sql.Render("SELECT t.* FROM {name} t SEMI JOIN late_keys k USING ({keys})",
			sql.Args{"name": sql.Ident(name), "keys": sql.Idents("", m.layout.stream.Key)})
		return m.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
			for reader.Next() {
				r, err := m.layout.newReader(reader.RecordBatch())
				if err != nil {
					return err
				}
				read, err := row(r, reader.RecordBatch())
				if err != nil {
					return err
				}
				for i := range int(reader.RecordBatch().NumRows()) {
					key = r.appendKey(key[:0], i)
					read(i)
					if len(slab) > chunkBytes {
						slab = nil
					}
				}
			}
			return nil
		})
	}
	log, err := m.log.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	err = each("late_log", log, func(r *reader, _ arrow.RecordBatch) (func(int), error) {
		return func(i int) {
			var c scd.Change
			slab, c = r.change(slab, i)
			s := of(key)
			s.changes = append(s.changes, c)
		}, nil
	})
	if err != nil {
		return nil, err
	}
	history, err := m.history.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	numbers, err := m.numbersOf(ctx, history)
	if err != nil {
		return nil, err
	}
	err = each("late_history", history, func(r *reader, batch arrow.RecordBatch) (func(int), error) {
		places, err := placesOf(batch, numbers)
		return func(i int) {
			var v scd.Version
			slab, v = r.version(slab, i)
			s := of(key)
			s.versions = append(s.versions, v)
			s.places[v.From] = places(i)
		}, err
	})
	for _, s := range stored {
		slices.SortFunc(s.versions, func(a, b scd.Version) int { return cmp.Compare(a.From, b.From) })
	}
	return stored, err
}

// importKeys fills the table late_keys.
func (m *merger) importKeys(ctx context.Context, keys []*keyChanges) error {
	schema := feature.ArrowSchema(m.layout.key)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, k := range keys {
		rest := []byte(k.key)
		for i := range m.layout.key {
			var value []byte
			value, rest = scd.Next(rest)
			appendPacked(b.Field(i), value)
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	return m.db.ImportBatches(ctx, "late_keys", schema, []arrow.RecordBatch{batch})
}
