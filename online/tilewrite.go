package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// guardedTiles puts an entity's string in the place of the one that was read, if it is still that one: a header tells which
// events a string holds.
//
// KEYS[1] the entity; ARGV[1] the header of the string that was read, "" where there was none, ARGV[2] the string to put, "" for
// none, ARGV[3] when it expires in milliseconds since 1970 or "" for never. It gives 0 where another stands there.
var guardedTiles = newScript(`
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
elseif ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
end
return 1
`)

// Bounds of writes.
const (
	tileTries    = 50      // of one entity's: another writer came first each time
	tileBytesMax = 8 << 20 // of the strings of one pipeline, as the one before it was
)

// tileUpdate is what is to be made of an entity's tiles.
type tileUpdate struct {
	key []string // join keys as text, in the order of their names
	// apply changes the tiles, and reports whether they are to be written. It is called again where another writer came first.
	apply func(*entityTiles) bool
}

// updateTiles reads entities, changes them here, where numbers are exact, and puts them back if nobody wrote them meanwhile;
// else again. A call of which it isn't known whether it was done is settled the same way: what it wrote is read, and its
// events are below the guards. Where the entities are likely to be absent, they are taken to be so at first.
func (w *ViewWriter) updateTiles(ctx context.Context, generation int64, updates []tileUpdate, absent bool) error {
	prefix := keyPrefix(w.store.project, w.view.Name, generation)
	for try := 0; len(updates) > 0; try++ {
		if try == tileTries {
			return fmt.Errorf("write %d entities: others wrote them each time they were to be put back", len(updates))
		}
		var again []tileUpdate
		for len(updates) > 0 {
			part := updates[:min(len(updates), max(1, w.tileCalls))]
			updates = updates[len(part):]
			keys := make([]string, len(part))
			for i, u := range part {
				keys[i] = entityKey(prefix, w.entity.Name, u.key)
			}
			texts := make([]string, len(part))
			if try > 0 || !absent {
				var err error
				if texts, err = w.store.strings(ctx, keys); err != nil {
					return err
				}
			}
			lost, err := w.putTiles(ctx, keys, texts, part)
			if err != nil {
				return err
			}
			again = append(again, lost...)
		}
		updates = again
	}
	return nil
}

// putTiles changes entities as they were read, and puts them back. It gives those that others wrote meanwhile.
func (w *ViewWriter) putTiles(ctx context.Context, keys, texts []string, updates []tileUpdate) ([]tileUpdate, error) {
	calls := newCalls(guardedTiles, len(updates), len(updates)*7)
	var sent []tileUpdate
	size := 0
	for i, u := range updates {
		e, err := w.tiles.decode(texts[i])
		if err != nil {
			w.noteForeign(keys[i]) // one key doesn't hold the others up
			continue
		}
		var header []byte
		if texts[i] != "" {
			header = e.header()
		}
		if !u.apply(e) {
			continue
		}
		text := w.tiles.encode(e)
		size += len(text)
		var expires any = ""
		if !w.frozen {
			expires = w.tiles.expiry(e)
		}
		calls.add(keys[i], func(args []any) []any { return append(args, header, text, expires) })
		sent = append(sent, u)
	}
	if len(sent) == 0 {
		return nil, nil
	}
	w.tileCalls = min(pipelineCalls, max(1, tileBytesMax/(size/len(sent)+1)))
	err := w.store.make(ctx, calls)
	if foreign := (*ForeignKeysError)(nil); errors.As(err, &foreign) {
		w.noteForeign(foreign.Keys...)
	} else if err != nil {
		return nil, err
	}
	var lost []tileUpdate
	for i, given := range calls.given {
		if given == int64(0) {
			lost = append(lost, sent[i])
		}
	}
	return lost, nil
}

// strings reads strings, "" of keys that aren't there.
func (s *Store) strings(ctx context.Context, keys []string) ([]string, error) {
	commands := make([]*redis.SliceCmd, len(keys))
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, k := range keys {
			commands[i] = p.MGet(ctx, k)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %d entities: %w", len(keys), err)
	}
	texts := make([]string, len(keys))
	for i, c := range commands {
		texts[i], _ = c.Val()[0].(string)
	}
	return texts, nil
}

// EachTiles hands over the key and the string of every entity of a generation of a windowed view, for those who check what
// was written; see [Store.EachHash].
func (s *Store) EachTiles(ctx context.Context, view string, generation int64, yield func(key, text string) error) error {
	return s.eachKeys(ctx, view, generation, func(keys []string) error { return s.Tiles(ctx, keys, yield) })
}

// Tiles hands over the strings with these keys, without those that are not there.
func (s *Store) Tiles(ctx context.Context, keys []string, yield func(key, text string) error) error {
	for part := range slices.Chunk(keys, pipelineCalls) {
		texts, err := s.strings(ctx, part)
		if err != nil {
			return err
		}
		for i, text := range texts {
			if text == "" {
				continue
			}
			if err := yield(part[i], text); err != nil {
				return err
			}
		}
	}
	return nil
}

// tileEvent is an event of an entity.
type tileEvent struct {
	rows  *tileRows
	row   int
	order feature.Order
}

// writeTiles takes rows of the stream's log that came of its topic into the tiles of a generation. Those that it is past, by
// an entity's guards or by the generation's base, are left out, so writes may be repeated; of a partition they must come in
// the order of their offsets. It gives the number of entities that had events.
func (w *ViewWriter) writeTiles(ctx context.Context, g Generation, batches []arrow.RecordBatch) (int, error) {
	var evaluated []arrow.RecordBatch
	defer func() {
		for _, b := range evaluated {
			b.Release()
		}
	}()
	for _, batch := range batches {
		if batch.NumRows() == 0 {
			continue
		}
		some, err := w.evaluate(ctx, batch)
		if err != nil {
			return 0, err
		}
		evaluated = append(evaluated, some...)
	}
	return w.takeRows(ctx, g, evaluated)
}

// takeRows is writeTiles of rows whose conditions are evaluated.
func (w *ViewWriter) takeRows(ctx context.Context, g Generation, batches []arrow.RecordBatch) (int, error) {
	events := map[string][]tileEvent{}
	keys := map[string][]string{}
	for _, b := range batches {
		rows, err := w.tiles.rows(b)
		if err != nil {
			return 0, err
		}
		for i := range int(b.NumRows()) {
			key, whole := rows.key(i)
			at := rows.order(i)
			if !whole || !at.Live {
				continue
			}
			id := entityText(w.entity.Name, key) // which no other entity has, whatever bytes its keys hold
			keys[id] = key
			events[id] = append(events[id], tileEvent{rows, i, at})
		}
	}
	base, now := baseOf(g), w.now().UnixMicro()
	updates := make([]tileUpdate, 0, len(events))
	for id, of := range events {
		slices.SortStableFunc(of, func(a, b tileEvent) int {
			if c := a.partition().compare(b.partition()); c != 0 {
				return c
			}
			return int(a.order.Offset - b.order.Offset)
		})
		updates = append(updates, tileUpdate{keys[id], func(e *entityTiles) bool { return w.tiles.take(e, of, base, now) }})
	}
	return len(updates), w.updateTiles(ctx, g.Number, updates, false)
}

func (t *tileEvent) partition() guardKey { return guardKey{t.order.TopicHash, t.order.Partition} }

// baseOf is how far a generation's base goes, by what guards say of partitions.
func baseOf(g Generation) map[guardKey]int64 {
	base := map[guardKey]int64{}
	for text, next := range g.Base {
		if p, ok := parsePartition(text); ok {
			base[guardKeyOf(p)] = next
		}
	}
	return base
}

// take takes an entity's events, ordered by partition and offset, into its tiles, and reports whether these are to be written.
func (p *tilePlan) take(e *entityTiles, events []tileEvent, base map[guardKey]int64, now int64) bool {
	taken, was := false, e.known
	for i := range events {
		t := &events[i]
		k := t.partition()
		at, found := e.guard(k)
		next := base[k]
		if found {
			next = e.guards[at].next
		}
		if t.order.Offset < next {
			continue
		}
		if !found {
			e.guards = slices.Insert(e.guards, at, guard{guardKey: k})
		}
		e.guards[at].next = t.order.Offset + 1
		p.add(e, t.rows, t.row, &t.order, now)
		taken = true
	}
	if !taken || !was && !p.needed(e.newest, now) {
		return false
	}
	p.trim(e, now)
	return true
}

// now is the writer's clock.
func (w *ViewWriter) now() time.Time {
	if w.clock != nil {
		return w.clock()
	}
	return time.Now()
}

// openTiles prepares a writer of a windowed view.
func (w *ViewWriter) openTiles(ctx context.Context, p *feature.Project) error {
	w.tiles, w.tileCalls = newTilePlan(w.view, w.stream, w.entity), pipelineCalls
	if len(w.tiles.conditions) == 0 {
		return nil
	}
	var err error
	w.db, err = sql.Open(ctx, sql.Options{Threads: 1})
	return err
}
