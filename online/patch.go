package online

import (
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// guardedPatch writes what changes of a patch stream make of an entity's hash, where each column has a guard of its own:
// the order of the last change that carried it. Every guard in a hash is greater than _d, the order of the last delete. So
// a column is set if its order is greater than its guard and than _d, and a delete takes away the columns whose guards it
// is greater than; whatever the order of the calls, the same stays.
//
// KEYS[1] the hash; ARGV[1] the greatest order of the changes, ARGV[2] when the hash would expire by that in milliseconds
// since 1970 or "" for never, ARGV[3] the order of the last delete or "" for none; then for each column of the view its
// name, the order of the last change that carried it or "" for none, the number of its features, and for each of those its
// field, "1" or "0" for null, and the value.
//
// Nothing has to be undone where memory is short: Redis refuses the first command that takes memory of a script that has
// written nothing, and none after it.
var guardedPatch = newScript(`
local old = redis.call('HMGET', KEYS[1], '_v', '_d')
local deleted = old[2] or ''
if ARGV[3] > deleted then
  deleted = ARGV[3]
  redis.call('HSET', KEYS[1], '_d', deleted)
end
local at = 4
while at <= #ARGV do
  local guard, order = '_v:' .. ARGV[at], ARGV[at + 1]
  local past = at + 3 + 3 * tonumber(ARGV[at + 2])
  local was = redis.call('HGET', KEYS[1], guard) or ''
  if order > was and order > deleted then
    redis.call('HSET', KEYS[1], guard, order)
    for i = at + 3, past - 1, 3 do
      if ARGV[i + 1] == '1' then
        redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
      else
        redis.call('HDEL', KEYS[1], ARGV[i])
      end
    end
  elseif was ~= '' and was < deleted then
    redis.call('HDEL', KEYS[1], guard)
    for i = at + 3, past - 1, 3 do redis.call('HDEL', KEYS[1], ARGV[i]) end
  end
  at = past
end
if ARGV[1] > (old[1] or '') then
  redis.call('HSET', KEYS[1], '_v', ARGV[1])
  if ARGV[2] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[2]) end
end
return 1
`)

// viewColumn is a column of a patch stream that features of a view read.
type viewColumn struct {
	name     string
	key      bool  // it is of the stream's key, which every change carries
	features []int // of the view, those that read it
}

// viewColumns are the columns that a view over a patch stream reads, in the order of the features; none where events
// carry the whole state.
func viewColumns(view *feature.View, stream *feature.Stream) []viewColumn {
	if stream.Payload != feature.PatchPayload {
		return nil
	}
	var columns []viewColumn
	for i, f := range view.Features {
		at := slices.IndexFunc(columns, func(c viewColumn) bool { return c.name == f.Column })
		if at < 0 {
			at = len(columns)
			columns = append(columns, viewColumn{name: f.Column, key: slices.Contains(stream.Key, f.Column)})
		}
		columns[at].features = append(columns[at].features, i)
	}
	return columns
}

// patchArgs are the arguments of the statement served_now_patches: the columns that are read.
func (w *ViewWriter) patchArgs() sql.Args {
	always, others := sql.Fragment(""), sql.Fragment("")
	for _, c := range w.columns {
		list := &others
		if c.key {
			list = &always
		}
		if *list != "" {
			*list += ", "
		}
		*list += sql.Literal(c.name)
	}
	list := func(names sql.Fragment) sql.Fragment { return "[" + names + "]::VARCHAR[]" }
	return sql.Args{"key": sql.Idents("g.", w.stream.Key), "always": list(always), "columns": list(others)}
}

// patchWrite is what changes of a patch stream make of an entity.
type patchWrite struct {
	deleted *feature.Order // of the last delete, nil for none
	columns []columnWrite  // as the view's columns
}

// columnWrite is a column as it was last carried.
type columnWrite struct {
	order  *feature.Order // nil if it was not
	values []any          // field, "1" or "0" for null, and value of each feature that reads it
}

// patchOf reads a row as a write. features are the columns of the view's features.
func (w *ViewWriter) patchOf(e *entityWrite, present *array.List, features []arrow.Array, row int) *patchWrite {
	p := &patchWrite{columns: make([]columnWrite, len(w.columns))}
	order := e.order // merging writes moves that of e
	if e.deleted {
		p.deleted = &order
	}
	for i, c := range w.columns {
		carried := !e.deleted && (c.key || carries(present, row, c.name))
		if carried {
			p.columns[i].order = &order
		}
		for _, f := range c.features {
			flag, value := "0", []byte(nil)
			if carried && features[f].IsValid(row) {
				flag, value = "1", appendValue(nil, features[f], row)
			}
			p.columns[i].values = append(p.columns[i].values, w.fields[f], flag, value)
		}
	}
	return p
}

// carries reports whether a change carries a column, by the names that it carries; without any it carries all.
func carries(present *array.List, row int, column string) bool {
	if present.IsNull(row) {
		return true
	}
	names := present.ListValues().(*array.String)
	from, to := present.ValueOffsets(row)
	for i := from; i < to; i++ {
		if names.Value(int(i)) == column {
			return true
		}
	}
	return false
}

// merge adds to a write of an entity another one.
func (e *entityWrite) merge(o *entityWrite) {
	later := func(a, b *feature.Order) bool { return b != nil && (a == nil || a.Compare(*b) < 0) }
	if later(e.patch.deleted, o.patch.deleted) {
		e.patch.deleted = o.patch.deleted
	}
	for i, c := range o.patch.columns {
		if later(e.patch.columns[i].order, c.order) {
			e.patch.columns[i] = c
		}
	}
	if e.order.Compare(o.order) < 0 {
		e.order = o.order
	}
}

// patchText appends the arguments of guardedPatch after the first two.
func (w *ViewWriter) patchText(args []any, p *patchWrite) []any {
	text := func(o *feature.Order) string {
		if o == nil {
			return ""
		}
		return o.String()
	}
	args = append(args, text(p.deleted))
	for i, c := range p.columns {
		args = append(args, w.columns[i].name, text(c.order), len(w.columns[i].features))
		args = append(args, c.values...)
	}
	return args
}
