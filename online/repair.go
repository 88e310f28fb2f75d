package online

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// repaired makes a hash, or some of its fields, anew if its guards are those that were read.
//
// KEYS[1] the hash; ARGV[1] the number of guards, then field and text of each, "" for none; when the hash expires in milliseconds
// since 1970 or "" for never; the number of fields to remove, or "" for the whole hash, then those; then field and value of each
// that is to be there. It gives 0 where a guard is another.
var repaired = newScript(`
local at = 2 + 2 * tonumber(ARGV[1])
for i = 2, at - 1, 2 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
local first = at + 2
if ARGV[at + 1] == '' then
  redis.call('DEL', KEYS[1])
else
  first = first + tonumber(ARGV[at + 1])
  redis.call('HDEL', KEYS[1], unpack(ARGV, at + 2, first - 1))
end
if first <= #ARGV then
  redis.call('HSET', KEYS[1], unpack(ARGV, first))
  if ARGV[at] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[at]) end
end
return 1
`)

// Repaired is what a repair did.
type Repaired struct {
	Generation int64 // that was written
	Written    int64 // entities that are as the lake has them, tombstones included
	Removed    int64 // entities that the lake doesn't know, and that aren't there any more
	Ahead      int64 // entities that were left as they are: what the lake doesn't have yet was written of them
}

// RepairOptions bound a repair.
type RepairOptions struct {
	Now         func() time.Time // the clock
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to
}

// repairRounds bounds how often an entity is tried that a worker is ahead with, or writes each time.
const repairRounds = 5

// Repair writes entities anew, as the lake has them, into the generation that is read, whatever stands there. keys are the text of
// each one's join keys, in the order of their names. A worker may run beside it: the lake is read once it has what was written
// before, and what is put in the place of what was read is put there only if nobody wrote it meanwhile. What a worker writes of a
// change that the lake doesn't have stays. It is an error that wraps [ErrUnavailable] where no generation is read.
func (w *ViewWriter) Repair(ctx context.Context, l *lake.Lake, keys [][]string, o RepairOptions) (Repaired, error) {
	r, err := w.repair(ctx, l, keys, o)
	if keys := w.Foreign(); err == nil && len(keys) > 0 {
		err = fmt.Errorf("%w: remove them, they are in the way", &ForeignKeysError{keys})
	}
	if err != nil {
		return r, fmt.Errorf("repair entities of feature view %s: %w", w.view.Name, err)
	}
	return r, nil
}

func (w *ViewWriter) repair(ctx context.Context, l *lake.Lake, keys [][]string, o RepairOptions) (Repaired, error) {
	w.clock = o.Now
	var r Repaired
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return r, err
	}
	defer db.Close()
	asked, err := w.ask(ctx, db, keys)
	if err != nil {
		return r, err
	}
	for round := 1; len(asked) > 0; round++ {
		all, err := w.store.Generations(ctx, w.view.Name)
		if err != nil {
			return r, err
		}
		g, ok := w.store.Usable(all, w.hash)
		if !ok {
			return r, fmt.Errorf("%w: run `loam materialize --view %s`, or the worker", ErrUnavailable, w.view.Name)
		}
		if r.Generation != 0 && r.Generation != g.Number {
			return r, nil // the one that is read by now was built from the lake since
		}
		if g.AsOf != nil {
			return r, fmt.Errorf("its values are as of %s, which can't be said of some of its entities: run `loam materialize --view %s` for it whole",
				g.AsOf.Format(time.RFC3339Nano), w.view.Name)
		}
		r.Generation = g.Number
		reading, working, err := w.readMarked(ctx, l, g)
		if err != nil {
			return r, err
		}
		repair := w.repairHashes
		if w.tiles != nil {
			repair = w.repairTiles
		}
		left, err := repair(ctx, db, reading, all, g, asked, &r)
		if err != nil {
			return r, err
		}
		if !working && len(left) == len(asked) || round == repairRounds {
			r.Ahead = int64(len(left))
			return r, nil
		}
		asked = left
	}
	return r, nil
}

// ask makes the table loam_asked of the entities, each once, and gives the texts of their keys as they stand in Redis.
func (w *ViewWriter) ask(ctx context.Context, db *sql.DB, keys [][]string) ([][]string, error) {
	names := joinKeys(w.entity)
	if err := db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE loam_asked_text AS SELECT NULL::VARCHAR[] AS texts LIMIT 0"); err != nil {
		return nil, err
	}
	for part := range slices.Chunk(keys, pipelineCalls) {
		rows := make([]sql.Fragment, len(part))
		for i, key := range part {
			texts := make([]sql.Fragment, len(key))
			for j, text := range key {
				texts[j] = sql.Literal(text)
			}
			rows[i] = "([" + sql.Join(", ", texts) + "]::VARCHAR[])"
		}
		if err := db.Exec(ctx, "INSERT INTO loam_asked_text VALUES "+string(sql.Join(", ", rows))); err != nil {
			return nil, err
		}
	}
	var typed []sql.Fragment
	for i, name := range names {
		c, _ := w.stream.Column(name)
		value := sql.Fragment(fmt.Sprintf("TRY_CAST(texts[%d] AS %s)", i+1, c.Type.SQL()))
		typed = append(typed, value+" AS "+sql.Ident(name))
		var bad int64
		if err := db.QueryRow(ctx, "SELECT count(*) FROM loam_asked_text WHERE "+string(value)+" IS NULL", nil, &bad); err != nil {
			return nil, err
		}
		if bad > 0 {
			return nil, fmt.Errorf("%d values of join key %s can't be %s, its type in stream %s", bad, name, c.Type, w.stream.Name)
		}
	}
	err := db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE loam_asked AS SELECT DISTINCT "+string(sql.Join(", ", typed))+" FROM loam_asked_text")
	if err != nil {
		return nil, err
	}
	var asked [][]string
	err = db.Arrow(ctx, sql.Render("SELECT {keys} FROM loam_asked ORDER BY ALL", sql.Args{"keys": sql.Idents("", names)}), func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for row := range int(batch.NumRows()) {
				key := make([]string, len(names))
				for i := range key {
					key[i] = keyText(batch.Column(i), row)
				}
				asked = append(asked, key)
			}
		}
		return nil
	})
	return asked, err
}

// isAsked is the condition on a log, called g, that a row is of an entity that was asked for.
func (w *ViewWriter) isAsked() sql.Fragment {
	names := joinKeys(w.entity)
	return "(" + sql.Idents("g.", names) + ") IN (SELECT " + sql.Idents("", names) + " FROM loam_asked)"
}

// readMarked opens the stream's tables once they have what the marks say was written of topics, so that what is lacking from Redis
// isn't lacking from them, too. Where no worker runs nobody is waited for: whoever comes begins where the lake stands, and writes it
// again.
func (w *ViewWriter) readMarked(ctx context.Context, l *lake.Lake, g Generation) (reading *lake.Reading, working bool, err error) {
	for {
		workers, err := w.store.Workers(ctx)
		if err != nil {
			return nil, false, err
		}
		reading, offsets, err := readPast(ctx, l, w.stream, nil)
		if err != nil {
			return nil, false, err
		}
		ahead := false
		for p, mark := range g.Marks {
			ahead = ahead || feature.Live(p.Topic) && mark > offsets.Partitions[p].Next
		}
		if !ahead || len(workers) == 0 {
			return reading, len(workers) > 0, nil
		}
		if err := pause(ctx); err != nil {
			return nil, false, fmt.Errorf("wait for the lake to hold what has been written online: %w", err)
		}
	}
}

// hashRepair is what is to be made of an entity's hash.
type hashRepair struct {
	guards  []string          // fields
	were    map[string]string // fields as they were read
	fields  map[string]string // as they shall be; none where the lake doesn't know the entity
	remove  []string          // fields that go, where others stay
	expires string
}

// repairHashes repairs entities of an attribute view. It gives those that were left as they are.
func (w *ViewWriter) repairHashes(ctx context.Context, db *sql.DB, reading *lake.Reading, all Generations, g Generation, asked [][]string,
	did *Repaired) ([][]string, error) {
	offsets, err := reading.Offsets()
	if err != nil {
		return nil, err
	}
	wanted, err := w.wanted(ctx, db, reading)
	if err != nil {
		return nil, err
	}
	has := hasOf(offsets)
	past := func(guard string) bool {
		o, err := feature.ParseOrder(guard)
		return err != nil || has(o)
	}
	prefix, number, fields := keyPrefix(w.store.project, w.view.Name, g.Number), g.Number, []string(nil)
	if w.feast != nil {
		prefix, past = "", pastOf(offsets)
		var further []string
		for _, one := range all.All { // a later build, also one that was cut off, must not take it for older than itself
			if one.Definition == w.hash {
				number = max(number, one.Number)
			}
			further = append(further, one.Features...)
		}
		fields = append([]string{w.feast.guard}, w.feast.all(w.view.Name, further)...)
	}
	var left [][]string
	for part := range slices.Chunk(asked, pipelineCalls) {
		keys := make([]string, len(part))
		for i, key := range part {
			keys[i] = prefix + w.entityOf(key)
		}
		there := map[string]map[string]string{}
		if err := w.store.Hashes(ctx, keys, func(h Hash) error { there[h.Key] = h.Fields; return nil }); err != nil {
			return nil, err
		}
		calls := newCalls(repaired, len(part), len(part)*32)
		sent := repairsSent{}
		for i, key := range part {
			e := wanted[strings.TrimPrefix(keys[i], prefix)]
			repair, ok := w.repairOf(e, there[keys[i]], number, fields, past)
			if !ok {
				left = append(left, key)
				continue
			}
			calls.add(keys[i], repair.arguments)
			sent.add(key, e != nil)
		}
		if left, err = w.makeRepairs(ctx, calls, sent, left, did); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// repairsSent are the entities of calls, and whether the lake knows each.
type repairsSent struct {
	keys  [][]string
	known []bool
}

func (s *repairsSent) add(key []string, known bool) {
	s.keys, s.known = append(s.keys, key), append(s.known, known)
}

// makeRepairs makes calls, and adds those entities to left that were written by others meanwhile.
func (w *ViewWriter) makeRepairs(ctx context.Context, calls *calls, sent repairsSent, left [][]string, did *Repaired) ([][]string, error) {
	err := w.store.make(ctx, calls)
	if foreign := (*ForeignKeysError)(nil); errors.As(err, &foreign) {
		w.noteForeign(foreign.Keys...)
	} else if err != nil {
		return nil, err
	}
	for i, given := range calls.given {
		switch {
		case given == int64(0):
			left = append(left, sent.keys[i])
		case given != nil && sent.known[i]:
			did.Written++
		case given != nil:
			did.Removed++
		}
	}
	return left, nil
}

// entityOf is an entity as it stands in keys; in Feast's layout the whole key.
func (w *ViewWriter) entityOf(key []string) string {
	if w.feast != nil {
		return w.feast.key(key)
	}
	return entityText(w.entity.Name, key)
}

// wanted is what the lake makes of the entities that were asked for.
func (w *ViewWriter) wanted(ctx context.Context, db *sql.DB, reading *lake.Reading) (map[string]*entityWrite, error) {
	if err := reading.LogView(ctx, db, "loam_log", nil, true); err != nil {
		return nil, err
	}
	if err := db.Exec(ctx, "CREATE OR REPLACE VIEW log AS SELECT * FROM loam_log g WHERE "+string(w.isAsked())); err != nil {
		return nil, err
	}
	if err := w.newest(ctx, db); err != nil {
		return nil, err
	}
	wanted := map[string]*entityWrite{}
	statement := sql.Render("SELECT {columns} FROM log g SEMI JOIN newest n ON g.loam_file = n.change_file AND g.loam_row = n.change_row",
		sql.Args{"columns": selection(w.view, w.stream)})
	err := db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			err := w.each(r.RecordBatch(), func(e *entityWrite) {
				if old := wanted[e.entity]; old != nil {
					old.merge(e)
					return
				}
				wanted[e.entity] = e
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return wanted, err
}

// repairOf says what is to be made of a hash, given what the lake makes of the entity and what is there. It is false where what is
// there is of a change that the lake doesn't have. Of a patch stream that is said of each column.
func (w *ViewWriter) repairOf(e *entityWrite, there map[string]string, number int64, fields []string, past func(guard string) bool) (hashRepair, bool) {
	r := hashRepair{guards: []string{fieldOrder}, were: there, fields: map[string]string{}}
	switch {
	case w.feast != nil:
		return w.repairOfFeast(e, there, number, fields, past)
	case w.columns != nil:
		w.repairOfPatch(&r, e, there, past)
	default:
		guard := there[fieldOrder]
		if guard != "" && !past(guard) && (e == nil || guard > e.order.String()) {
			return r, false
		}
		if e != nil {
			r.fields[fieldOrder] = e.order.String()
			if e.deleted {
				r.fields[fieldDeleted] = "1"
			}
			for i, v := range e.values {
				if v != nil {
					r.fields[featureField(i)] = *v
				}
			}
		}
	}
	if order, err := feature.ParseOrder(r.fields[fieldOrder]); err == nil {
		if at := w.expiry(order.EventTime); at != 0 {
			r.expires = strconv.FormatInt(at, 10)
		}
	}
	return r, true
}

// repairOfPatch makes a hash of a patch stream of what the lake makes of the entity, and of what is there of changes that it doesn't
// have.
func (w *ViewWriter) repairOfPatch(r *hashRepair, e *entityWrite, there map[string]string, past func(guard string) bool) {
	put := func(guard string, order *feature.Order) (ahead bool) {
		text := ""
		if order != nil {
			text = order.String()
		}
		if stands := there[guard]; stands > text && !past(stands) {
			text, ahead = stands, true
		}
		if text != "" {
			r.fields[guard] = text
		}
		return ahead
	}
	known := entityWrite{patch: &patchWrite{columns: make([]columnWrite, len(w.columns))}}
	var order *feature.Order
	if e != nil {
		known, order = *e, &e.order
	}
	r.guards = append(r.guards, fieldDeleted)
	put(fieldOrder, order)
	put(fieldDeleted, known.patch.deleted)
	for i, c := range w.columns {
		guard, column := fieldGuard+c.name, known.patch.columns[i]
		r.guards = append(r.guards, guard)
		ahead := put(guard, column.order)
		if r.fields[guard] <= r.fields[fieldDeleted] {
			delete(r.fields, guard)
			continue
		}
		for j, f := range c.features {
			if ahead {
				if value, ok := there[featureField(f)]; ok {
					r.fields[featureField(f)] = value
				}
			} else if column.values[3*j+1] == "1" {
				r.fields[featureField(f)] = string(column.values[3*j+2].([]byte))
			}
		}
	}
}

// repairOfFeast is repairOf of a view in Feast's layout; fields are the view's, its guard first.
func (w *ViewWriter) repairOfFeast(e *entityWrite, there map[string]string, number int64, fields []string, past func(guard string) bool) (hashRepair, bool) {
	r := hashRepair{guards: fields[:1], were: there, fields: map[string]string{}, remove: fields}
	guard := there[w.feast.guard]
	order, generation, err := ParseFeastGuard(guard)
	if err != nil {
		generation = 0
	} else if !past(guard) && (e == nil || order.Compare(e.order) > 0) {
		return r, false
	}
	if e == nil {
		return r, true
	}
	r.fields[w.feast.guard] = feastGuard(e.order, max(number, generation))
	if !e.deleted {
		r.fields[w.feast.time] = string(feastTimeOf(e.order))
		for i, field := range w.feast.fields {
			r.fields[field] = "" // of a null
			if e.values[i] != nil {
				r.fields[field] = *e.values[i]
			}
		}
	}
	return r, true
}

// arguments appends those of the script.
func (r hashRepair) arguments(args []any) []any {
	args = append(args, len(r.guards))
	for _, guard := range r.guards {
		args = append(args, guard, r.were[guard])
	}
	args = append(args, r.expires)
	if r.remove == nil {
		args = append(args, "")
	} else {
		args = append(args, len(r.remove))
		for _, field := range r.remove {
			args = append(args, field)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(r.fields)) {
		args = append(args, field, r.fields[field])
	}
	return args
}

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
