package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
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

	memoryBytes              int64  // see newIndex
	tempDir                  string // see newIndex
	logFiles                 func(context.Context) ([]*liveFile, error)
	logSeeker, historySeeker *seeker
	written                  map[string]bool // paths of the log's files that hold nothing but the batch's changes
}

func newMerger(s *Stream, o StreamOptions) *merger {
	key := s.layout.key
	return &merger{
		layout: s.layout, log: s.log, history: s.history, db: s.db, ownLog: s.own, logFiles: s.logFiles, memoryBytes: o.IndexBytes, tempDir: o.TempDir,
		logSeeker:     newSeeker(s.log, key, feature.ColEventTime, feature.ColEventTime),
		historySeeker: newSeeker(s.history, key, feature.ColValidFrom, feature.ColValidTo),
	}
}

// dropIndex forgets the index, which is loaded anew when it is needed.
func (m *merger) dropIndex() {
	if m.index != nil {
		m.index.close()
	}
	m.index = nil
}

func (m *merger) close() {
	m.dropIndex()
	m.logSeeker.close()
	m.historySeeker.close()
}

// keyChanges are the changes of one key in a batch.
type keyChanges struct {
	key     string
	changes []scd.Change
}

// commit applies accepted changes, given as rows of the log, and moves the history's offsets by the spans. Rows that the
// history has taken already are skipped, so anybody may apply them, any number of times. The rows of a redrive come alone, with the
// span that [redriveSpan] gives.
func (m *merger) commit(ctx context.Context, rows []arrow.RecordBatch, spans []feature.Span, r *Result) error {
	var done *pending
	begin := time.Now()
	staged := begin // when the last attempt was handed to the catalog
	err := m.history.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if done != nil {
			done.discard()
		}
		redriven := slices.ContainsFunc(spans, isRedrive)
		if err := m.catchLog(ctx, redriven); err != nil {
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
		given, stands := rows, offsets
		if redriven && len(left) > 0 {
			stands = Offsets{} // of the partitions that the rows are of it is beyond them
		} else if redriven {
			given = nil
		}
		keys, err := m.group(given, stands)
		if err != nil {
			return err
		}
		if done, err = m.merge(ctx, keys, offsets, r); err != nil {
			return err
		}
		step.At(step.HistoryPlanned)
		if err := done.write(ctx, r); err != nil {
			return err
		}
		step.At(step.HistoryWritten)
		staged = time.Now()
		props, err := offsets.move(left, summary[summaryCommit])
		if err != nil {
			return err
		}
		offsets.tie(done.ties, props)
		summary[summaryOffsets] = offsetsSummary(left)
		if len(done.data) > 0 || len(done.deletes) > 0 {
			delta := tx.NewRowDelta(summary).AddRows(done.data...).AddDeletes(done.deletes...).RemoveDeletes(done.superseded...)
			if err := delta.Commit(ctx); err != nil {
				return err
			}
		}
		step.At(step.HistoryStaged)
		return tx.SetProperties(props)
	})
	if err != nil {
		if done != nil && !errors.Is(err, errUnsettled) {
			done.discard()
		}
		return err
	}
	step.At(step.HistoryCommitted)
	if done != nil {
		done.apply(r)
	}
	m.historyHead = m.history.SnapshotID()
	if m.history.recovered {
		m.dropIndex() // others may have committed since
	}
	r.Commit += time.Since(staged)
	r.History += time.Since(begin)
	return nil
}

// notTaken leaves of the spans what the history has not taken yet. A history names the last redrive that it has, and a log begins
// none before the history has the one before: one that is the last of neither was taken long ago.
func (m *merger) notTaken(offsets Offsets, spans []feature.Span) ([]feature.Span, error) {
	var left []feature.Span
	for _, s := range spans {
		if job, ok := feature.RedriveJob(s.Topic); ok {
			log, err := m.log.Offsets()
			if err != nil {
				return nil, err
			}
			if offsets.Redrive.JobID != job && log.Redrive.JobID == job {
				left = append(left, s)
			}
			continue
		}
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
	parts := make([][]*keyChanges, len(rows))
	err := each(len(rows), func(i int) error {
		var err error
		if parts[i], err = m.groupBatch(rows[i], offsets); err != nil {
			return fmt.Errorf("read the batch of %s: %w", m.layout.stream.Name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	byKey := map[string]*keyChanges{}
	var keys []*keyChanges
	for _, part := range parts {
		for _, k := range part {
			if same := byKey[k.key]; same != nil {
				same.changes = append(same.changes, k.changes...)
				continue
			}
			byKey[k.key] = k
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		scd.Sort(k.changes)
	}
	return keys, nil
}

// groupBatch is group for one batch, in no order.
func (m *merger) groupBatch(batch arrow.RecordBatch, offsets Offsets) ([]*keyChanges, error) {
	byKey := map[string]*keyChanges{}
	var keys []*keyChanges
	var key, slab []byte
	r, err := m.layout.newReader(batch)
	if err != nil {
		return nil, err
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
	return keys, nil
}

// merge derives what the changes do to the history, which stands at the offsets.
func (m *merger) merge(ctx context.Context, keys []*keyChanges, offsets Offsets, r *Result) (*pending, error) {
	begin := time.Now()
	p := &pending{merger: m, retired: map[int32][]int64{}, taken: offsets.Passed, ties: tally{}}
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
		p.tie(k.changes, every)
		patch, now, stats := scd.Advance(open, k.changes)
		p.result.NoOps += int64(stats.NoOps)
		p.add(k.key, patch, k.changes[len(k.changes)-1].Order.EventTime, now, at, func(scd.Version) place { return at })
	}
	r.Plan += time.Since(begin)
	p.result.LateKeys = int64(len(late))
	if len(late) == 0 {
		return p, nil
	}
	begin = time.Now()
	defer func() { r.Late += time.Since(begin) }()
	if len(late) <= lateSeekMax {
		if err := m.late(ctx, late, p); err != nil {
			return nil, fmt.Errorf("read what late changes of %s touch: %w", m.layout.stream.Name, err)
		}
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
		p.tie(s.changes, among(k.changes))
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
