package lake

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// lateSeekMax is the number of late keys of a batch up to which their rows are read one by one. More of them are derived
// anew in one pass over the tables.
const lateSeekMax = 2000

// lateKey is a key with changes that aren't later than all that it has seen, and what stands around them.
type lateKey struct {
	*keyChanges
	whole         bool          // derive all of its versions anew
	intervals     []scd.Version // From and To of the stored versions that may matter, in order
	hits          map[int64]hit // closed versions by From
	places        map[int64]place
	from, to      int64 // of event time: which of the key's changes matter
	before, after int   // indexes of intervals, see [scd.Around]
	versions      map[int64]scd.Version
	changes       []scd.Change
}

// late derives what late changes of some keys do to the history, and adds it to p. Of a key it reads the stored versions
// around them and the changes from the log that made these, by the seekers.
func (m *merger) late(ctx context.Context, keys []*keyChanges, p *pending) error {
	all := make([]*lateKey, len(keys))
	for i, k := range keys {
		e := m.index.find([]byte(k.key))
		all[i] = &lateKey{
			keyChanges: k, hits: map[int64]hit{}, places: map[int64]place{}, versions: map[int64]scd.Version{},
			whole: e.newest == unknown || m.layout.stream.Payload == feature.PatchPayload,
		}
	}
	if err := m.findStored(ctx, all); err != nil {
		return err
	}
	for _, k := range all {
		k.around(m.index)
	}
	if err := m.readStored(ctx, all); err != nil {
		return err
	}
	if err := m.readChanges(ctx, all); err != nil {
		return err
	}
	for _, k := range all {
		m.splice(k, p)
	}
	m.historySeeker.tidy()
	m.logSeeker.tidy()
	return nil
}

// findStored finds the stored versions of the keys, but for open ones, which the index has, and of keys whose changes all
// come after the open version's beginning.
func (m *merger) findStored(ctx context.Context, all []*lateKey) error {
	var closed, whole []probe
	byKey := make(map[string]*lateKey, len(all))
	for _, k := range all {
		byKey[k.key] = k
		ask := probe{key: k.key, from: math.MinInt64, to: math.MaxInt64}
		e := m.index.find([]byte(k.key))
		switch {
		case k.whole:
			whole = append(whole, ask)
		case e.file == noFile || k.keyChanges.changes[0].Order.EventTime <= m.index.version(e).From:
			closed = append(closed, ask)
		}
	}
	for _, part := range []struct {
		probes []probe
		open   bool
	}{{slices.Concat(closed, whole), false}, {whole, true}} {
		if len(part.probes) == 0 {
			continue
		}
		var files []*liveFile
		var numbers []int32
		for i, f := range m.files {
			if ofOpenVersions(m.history, f) == part.open {
				files, numbers = append(files, f), append(numbers, int32(i))
			}
		}
		found, err := m.historySeeker.find(ctx, files, part.probes)
		if err != nil {
			return err
		}
		for key, hits := range found {
			k := byKey[key]
			for _, h := range hits {
				h.file = int(numbers[h.file])
				k.hits[h.from], k.places[h.from] = h, place{int32(h.file), uint32(h.row)}
				k.intervals = append(k.intervals, scd.Version{From: h.from, To: h.to})
			}
		}
	}
	return nil
}

// around settles which part of the key's history its changes may alter.
func (k *lateKey) around(x *index) {
	e := x.find([]byte(k.key))
	if !k.whole && e.file != noFile {
		v := x.version(e)
		k.intervals = append(k.intervals, *v)
		k.places[v.From], k.versions[v.From] = place{e.file, e.row}, *v
	}
	slices.SortFunc(k.intervals, func(a, b scd.Version) int { return cmp.Compare(a.From, b.From) })
	k.from, k.to, k.before, k.after = math.MinInt64, scd.Open, -1, -1
	if k.whole {
		return
	}
	first := k.keyChanges.changes[0].Order.EventTime
	k.from, k.to, k.before, k.after = scd.Around(k.intervals, first, k.keyChanges.changes[len(k.keyChanges.changes)-1].Order.EventTime)
	if first > k.from {
		k.before = -1 // what begins the interval stays, so nothing can join what comes before
	}
}

// stored gives the version at an index of intervals, nil for -1.
func (k *lateKey) stored(i int) *scd.Version {
	if i < 0 {
		return nil
	}
	v := k.versions[k.intervals[i].From]
	return &v
}

// readStored reads the closed versions that are needed as they are.
func (m *merger) readStored(ctx context.Context, all []*lateKey) error {
	var hits []hit
	of := map[place]*lateKey{}
	for _, k := range all {
		var needed []int
		if k.whole {
			for i := range k.intervals {
				needed = append(needed, i)
			}
		} else {
			needed = []int{k.before, k.after}
		}
		for _, i := range needed {
			if i < 0 {
				continue
			}
			if h, ok := k.hits[k.intervals[i].From]; ok {
				hits = append(hits, h)
				of[place{int32(h.file), uint32(h.row)}] = k
			}
		}
	}
	columns := feature.ColumnNames(m.layout.stream.HistoryColumns())
	return m.historySeeker.rows(ctx, m.files, hits, columns, func(h hit, batch arrow.RecordBatch, i int) error {
		r, err := m.layout.newReader(batch)
		if err != nil {
			return err
		}
		_, v := r.version(nil, i)
		of[place{int32(h.file), uint32(h.row)}].versions[v.From] = v
		return nil
	})
}

// readChanges reads from the log the changes of the keys that matter, and adds those of the batch, which the log has too.
func (m *merger) readChanges(ctx context.Context, all []*lateKey) error {
	listed, err := m.logFiles(ctx)
	if err != nil {
		return err
	}
	files := slices.DeleteFunc(slices.Clone(listed), func(f *liveFile) bool { return m.written[f.data.FilePath()] })
	byKey := make(map[string]*lateKey, len(all))
	probes := make([]probe, len(all))
	for i, k := range all {
		byKey[k.key] = k
		probes[i] = probe{key: k.key, from: k.from, to: k.to}
		if k.to != scd.Open {
			probes[i].to-- // the interval is half-open
		}
		k.changes = slices.Clone(k.keyChanges.changes)
	}
	found, err := m.logSeeker.find(ctx, files, probes)
	if err != nil {
		return err
	}
	var hits []hit
	of := map[place]*lateKey{}
	for key, some := range found {
		for _, h := range some {
			hits = append(hits, h)
			of[place{int32(h.file), uint32(h.row)}] = byKey[key]
		}
	}
	columns := feature.ColumnNames(m.layout.changeColumns())
	err = m.logSeeker.rows(ctx, files, hits, columns, func(h hit, batch arrow.RecordBatch, i int) error {
		r, err := m.layout.newReader(batch)
		if err != nil {
			return err
		}
		_, c := r.change(nil, i)
		k := of[place{int32(h.file), uint32(h.row)}]
		k.changes = append(k.changes, c)
		return nil
	})
	for _, k := range all {
		scd.Sort(k.changes)
		k.changes = slices.CompactFunc(k.changes, func(a, b scd.Change) bool { return a.Order == b.Order })
	}
	return err
}

// splice adds what the late changes of a key do.
func (m *merger) splice(k *lateKey, p *pending) {
	inBatch := among(k.keyChanges.changes)
	if p.came != nil {
		p.tie(k.changes, p.came)
	} else {
		p.tie(k.changes, inBatch)
	}
	placeOf := func(v scd.Version) place { return k.places[v.From] }
	if k.whole {
		stored := make([]scd.Version, len(k.intervals))
		for i, v := range k.intervals {
			stored[i] = k.versions[v.From]
		}
		_, before := scd.Fold(nil, slices.DeleteFunc(slices.Clone(k.changes), inBatch))
		patch, open, stats := scd.Recompute(stored, k.changes)
		p.result.NoOps += int64(stats.NoOps - before.NoOps)
		p.add(k.key, patch, k.changes[len(k.changes)-1].Order.EventTime, open, k.placeOfOpen(open), placeOf)
		return
	}
	e := m.index.find([]byte(k.key))
	r := scd.Splice(k.stored(k.before), k.changes, inBatch, k.to, k.stored(k.after))
	p.result.NoOps += int64(r.Stats.NoOps)
	open := r.Open
	if !r.Now {
		open = m.index.version(e)
	}
	newest := max(e.newest, k.changes[len(k.changes)-1].Order.EventTime)
	p.add(k.key, r.Patch, newest, open, k.placeOfOpen(open), placeOf)
}

// placeOfOpen is where the open version stands, if it is stored.
func (k *lateKey) placeOfOpen(open *scd.Version) place {
	if open == nil {
		return place{}
	}
	return k.places[open.From]
}

// changeColumns are the columns of a log that tell what a change is.
func (l *layout) changeColumns() []feature.Column {
	unneeded := []string{
		feature.ColExtra, feature.ColAssumed, feature.ColEventType, feature.ColSource, feature.ColSchemaVersion, feature.ColActor,
		feature.ColReason, feature.ColJobID, feature.ColPolicies,
	}
	return slices.DeleteFunc(l.stream.LogColumns(), func(c feature.Column) bool { return slices.Contains(unneeded, c.Name) })
}
