package online

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

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
