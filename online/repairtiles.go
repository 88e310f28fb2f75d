package online

import (
	"context"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// repairTiles repairs entities of a windowed view: each string is made of the events that the lake has, and its guards tell of those
// that are past the generation's base. It gives those that were left as they are, which hold events that the lake doesn't have.
func (w *ViewWriter) repairTiles(ctx context.Context, db *sql.DB, reading *lake.Reading, _ Generations, g Generation, asked [][]string,
	did *Repaired) ([][]string, error) {
	offsets, err := reading.Offsets()
	if err != nil {
		return nil, err
	}
	if err := loadBase(ctx, db, g); err != nil {
		return nil, err
	}
	now := w.now().UnixMicro()
	if err := w.tileEvents(ctx, db, reading, now, w.isAsked()); err != nil {
		return nil, err
	}
	wanted := map[string]*entityTiles{}
	err = db.Batches(ctx, "SELECT * FROM events", func(batch arrow.RecordBatch) error { return w.collect(wanted, batch, now) })
	if err != nil {
		return nil, err
	}
	next := map[guardKey]int64{}
	for p, at := range offsets.Partitions {
		next[guardKeyOf(p)] = at.Next
	}
	prefix := keyPrefix(w.store.project, w.view.Name, g.Number)
	var left [][]string
	for len(asked) > 0 {
		part := asked[:min(len(asked), max(1, w.tileCalls))]
		asked = asked[len(part):]
		keys := make([]string, len(part))
		for i, key := range part {
			keys[i] = prefix + w.entityOf(key)
		}
		texts, err := w.store.strings(ctx, keys)
		if err != nil {
			return nil, err
		}
		calls := newCalls(guardedTiles, len(part), len(part)*7)
		sent, size := repairsSent{}, 0
		for i, key := range part {
			header, guards := headerOf(texts[i])
			if slices.ContainsFunc(guards, func(g guard) bool { return g.next > next[g.guardKey] }) {
				left = append(left, key)
				continue
			}
			e, text, expires := wanted[strings.TrimPrefix(keys[i], prefix)], []byte(nil), int64(0)
			if e != nil {
				w.tiles.trim(e, now)
				text, expires = w.tiles.encode(e), w.tiles.expiry(e)
			}
			size += len(text)
			calls.add(keys[i], func(args []any) []any { return append(args, header, text, expires) })
			sent.add(key, e != nil)
		}
		w.tileCalls = min(pipelineCalls, max(1, tileBytesMax/(size/max(1, len(part))+1)))
		if left, err = w.makeRepairs(ctx, calls, sent, left, did); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// headerOf is the beginning of a string that tells which events are in it, and its guards; of a string that is none of loam's it is
// the whole, and there are none.
func headerOf(text string) (string, []guard) {
	if text == "" {
		return "", nil
	}
	e, r := &entityTiles{}, &tileReader{rest: text}
	if e.decodeHeader(r); r.bad {
		return text, nil
	}
	return text[:len(text)-len(r.rest)], e.guards
}

// collect takes events of the table events into entities' tiles, with guards for those that are past the base.
func (w *ViewWriter) collect(entities map[string]*entityTiles, batch arrow.RecordBatch, now int64) error {
	rows, err := w.tiles.rows(batch)
	if err != nil {
		return err
	}
	past := batch.Column(batch.Schema().FieldIndices(columnPast)[0]).(*array.Boolean)
	for i := range int(batch.NumRows()) {
		key, _ := rows.key(i)
		id := w.entityOf(key)
		e := entities[id]
		if e == nil {
			e = w.tiles.empty()
			e.base = true
			entities[id] = e
		}
		at := rows.order(i)
		if past.Value(i) {
			k := guardKey{at.TopicHash, at.Partition}
			place, found := e.guard(k)
			if !found {
				e.guards = slices.Insert(e.guards, place, guard{guardKey: k})
			}
			e.guards[place].next = max(e.guards[place].next, at.Offset+1)
		}
		w.tiles.add(e, rows, i, &at, now)
	}
	return nil
}
