package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"golang.org/x/sync/errgroup"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// guarded writes entities' hashes, each if its order is greater than the one that stands there. It gives the numbers of the keys, from 1, that
// hold another type.
//
// KEYS the hashes; ARGV of each the order, when the hash expires in milliseconds since 1970 or "" for never, and "" where no
// feature is null, "d" for a tombstone, or else a 1 or a 0 for each feature, which is null for 0; then, but for a tombstone, the values
// of all features, "" of one that is null.
//
// The values come before anything is taken away: where memory is short, Redis refuses the first command that takes some,
// and the hash stays as it was. A tombstone is always taken: it takes less than what it replaces. A field that must go, of a null or of a
// tombstone, is there only where HSET has added one, or a null is written.
const guarded = `
local hash, features = {'', '_v', ''{{fields}}}, {{count}}
local foreign, refused, at = {}, nil, 1
for i, key in ipairs(KEYS) do
  local order, expires, present, first = ARGV[at], ARGV[at + 1], ARGV[at + 2], at + 3
  at = first
  if present ~= 'd' then at = at + features end
  local old = redis.pcall('HGET', key, '_v')
  if type(old) == 'table' then
    if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
    foreign[#foreign + 1] = i
  elseif not old or old < order then
    local done
    if present == '' then
      hash[1], hash[3] = key, order
      for f = 1, features do hash[3 + 2 * f] = ARGV[first + f - 1] end
      done = redis.pcall('HSET', unpack(hash))
      if old and type(done) == 'number' and done > 0 then redis.call('HDEL', key, '_d') end
    elseif present == 'd' then
      redis.call('DEL', key)
      done = redis.pcall('HSET', key, '_v', order, '_d', '1')
    else
      local there, gone = {key, '_v', order}, {key, '_d'}
      for f = 1, features do
        if string.sub(present, f, f) == '1' then
          there[#there + 1] = hash[2 + 2 * f]
          there[#there + 1] = ARGV[first + f - 1]
        else
          gone[#gone + 1] = hash[2 + 2 * f]
        end
      end
      done = redis.pcall('HSET', unpack(there))
      if old and type(done) == 'number' then redis.call('HDEL', unpack(gone)) end
    end
    if type(done) == 'table' then
      refused = done
    elseif expires ~= '' then
      redis.call('PEXPIREAT', key, expires)
    end
  end
end
return refused or foreign
`

// guardedOf is the script that writes a view of that many features. Their fields stand in it, so that no call has to name them.
func guardedOf(features int) *script {
	var fields strings.Builder
	for i := range features {
		fmt.Fprintf(&fields, ", '%s', ''", featureField(i))
	}
	return newScript(strings.NewReplacer("{{fields}}", fields.String(), "{{count}}", strconv.Itoa(features)).Replace(guarded))
}

// Bounds of what is on its way to Redis.
const (
	pipelineCalls = 1000 // of one pipeline, as entities where a call writes several
	pipelinesMax  = 4    // of a writer at a time, each on a connection of its own
	callKeys      = 20   // of one call of a script; a Cluster takes one, whose server nobody else knows
)

// entityWrite is one write of an entity.
type entityWrite struct {
	entity  string // as it stands in keys, in its braces; in Feast's layout the whole key
	part    int    // of the entities, where the rows say it
	order   feature.Order
	deleted bool
	values  []*string   // by feature of the view; nil for null
	patch   *patchWrite // of a patch stream, in place of deleted and values
}

// ViewWriter writes one view. It is not safe for concurrent use.
type ViewWriter struct {
	store   *Store
	view    *feature.View
	entity  *feature.Entity
	stream  *feature.Stream
	hash    string                  // of the view's definition
	script  *script                 // that writes the view; nil in Feast's layout and of windows
	fields  []any                   // where the features of a patch stream stand, as arguments of calls
	columns []viewColumn            // that the view reads of a patch stream; none where events carry the whole state
	feast   *feastView              // where the view is in Feast's layout
	past    func(guard string) bool // while a generation in Feast's layout is filled
	history bool                    // it is windowed over history
	frozen  bool                    // while a generation as of an instant is built, which doesn't expire
	lease   *buildLease             // of the generation that is built
	db      *sql.DB                 // evaluates expressions; nil where every feature is a column

	noting  sync.Mutex
	foreign []string // keys that hold what is not loam's

	// Of a windowed view:
	tiles     *tilePlan // nil of others
	tileCalls int       // how many entities go into a pipeline
	clock     func() time.Time
}

// NewViewWriter makes a writer of a view of the project.
func NewViewWriter(ctx context.Context, s *Store, p *feature.Project, view *feature.View) (*ViewWriter, error) {
	if why := p.Unserved(view); why != "" {
		return nil, fmt.Errorf("feature view %s: %s", view.Name, why)
	}
	w := &ViewWriter{
		store: s, view: view, entity: p.Entity(view.Entity), stream: p.Stream(view.Stream), hash: p.ViewDefinition(view).Hash,
		lease: &buildLease{},
	}
	if p.OverHistory(view) {
		w.history, w.fields, w.script = true, featureFields(view), guardedOf(len(view.FeatureNames()))
		return w, nil
	}
	if view.Windowed() {
		return w, w.openTiles(ctx, p)
	}
	w.columns = viewColumns(view, w.stream)
	if w.script = guardedPatch; w.columns == nil {
		w.script = guardedOf(len(view.Features))
	}
	if view.Layout == feature.FeastLayout {
		w.feast = newFeastView(s.project, view, w.entity, w.stream)
	}
	w.fields = featureFields(view)
	for _, f := range view.Features {
		if f.SQL != "" && w.db == nil {
			var err error
			if w.db, err = sql.Open(ctx, sql.Options{Threads: 1}); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// featureFields are the fields of a view's features, as arguments of calls.
func featureFields(view *feature.View) []any {
	fields := make([]any, len(view.FeatureNames()))
	for i := range fields {
		fields[i] = featureField(i)
	}
	return fields
}

// Close frees what the writer holds.
func (w *ViewWriter) Close() error {
	if w.db == nil {
		return nil
	}
	return w.db.Close()
}

// Write writes rows of the stream's log to generations of the view, each guarded by its order; of several changes of an
// entity only the greatest is sent, and of several patches what they make together. It returns the number of entities written. Writes may be repeated.
func (w *ViewWriter) Write(ctx context.Context, generations []int64, rows []arrow.RecordBatch) (int, error) {
	newest := map[string]*entityWrite{}
	for _, batch := range rows {
		if batch.NumRows() == 0 {
			continue
		}
		valued, err := w.evaluate(ctx, batch)
		if err != nil {
			return 0, err
		}
		for _, v := range valued {
			err = w.each(v, func(e *entityWrite) {
				switch old := newest[e.entity]; {
				case old != nil && e.patch != nil:
					old.merge(e)
				case old == nil || old.order.Compare(e.order) < 0:
					newest[e.entity] = e
				}
			})
			v.Release()
			if err != nil {
				return 0, err
			}
		}
	}
	writes := make([]*entityWrite, 0, len(newest))
	for _, e := range newest {
		writes = append(writes, e)
	}
	if w.feast != nil && len(generations) > 0 {
		generations = []int64{slices.Max(generations)} // they share their hashes
	}
	for _, g := range generations {
		if err := w.send(ctx, g, writes); err != nil {
			return 0, fmt.Errorf("write feature view %s: %w", w.view.Name, err)
		}
	}
	return len(writes), nil
}

// evaluate gives the batch with a column for each feature. Features that are columns are there already.
func (w *ViewWriter) evaluate(ctx context.Context, batch arrow.RecordBatch) ([]arrow.RecordBatch, error) {
	if w.db == nil {
		batch.Retain()
		return []arrow.RecordBatch{batch}, nil
	}
	if err := w.db.ImportBatches(ctx, "batch", batch.Schema(), []arrow.RecordBatch{batch}); err != nil {
		return nil, err
	}
	columns := sql.Fragment("")
	if w.tiles != nil {
		columns = w.tiles.selection()
	} else {
		columns = selection(w.view, w.stream)
	}
	return w.db.Collect(ctx, sql.Render("SELECT {columns} FROM batch", sql.Args{"columns": columns}))
}

// featureColumn is the column of a feature in what expressions are evaluated to: features may share names with columns.
func featureColumn(name string) string { return "loam_f_" + name }

// selection is what is needed of a log row to write a view: keys, order, and the features.
func selection(view *feature.View, stream *feature.Stream) sql.Fragment {
	columns := append([]string{}, stream.Key...)
	columns = append(columns, feature.ColEventTime, feature.ColSequence, feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColOp)
	if stream.Payload == feature.PatchPayload {
		columns = append(columns, feature.ColPresent)
	}
	items := []sql.Fragment{sql.Idents("", columns)}
	for _, f := range view.Features {
		items = append(items, sql.Try(f.Expr(), f.Type.SQL())+" AS "+sql.Ident(featureColumn(f.Name)))
	}
	return sql.Join(", ", items)
}

// each reads the rows of a batch as writes.
func (w *ViewWriter) each(batch arrow.RecordBatch, yield func(*entityWrite)) error {
	column := func(name string) (arrow.Array, error) {
		found := batch.Schema().FieldIndices(name)
		if len(found) != 1 {
			return nil, fmt.Errorf("the rows of stream %s have no column %s", w.stream.Name, name)
		}
		return batch.Column(found[0]), nil
	}
	var failed error
	must := func(name string) arrow.Array {
		c, err := column(name)
		failed = errors.Join(failed, err)
		return c
	}
	var keys, features []arrow.Array
	for _, k := range joinKeys(w.entity) {
		keys = append(keys, must(k))
	}
	for _, f := range w.view.Features {
		name := featureColumn(f.Name)
		if w.db == nil && len(batch.Schema().FieldIndices(name)) == 0 {
			name = f.Name
		}
		features = append(features, must(name))
	}
	eventTime, sequence, topic := must(feature.ColEventTime), must(feature.ColSequence), must(feature.ColTopic)
	partition, offset, op := must(feature.ColPartition), must(feature.ColOffset), must(feature.ColOp)
	var present *array.List
	if w.columns != nil {
		present, _ = must(feature.ColPresent).(*array.List)
	}
	if failed != nil {
		return failed
	}
	var parts *array.Int32
	if found := batch.Schema().FieldIndices(columnPart); len(found) == 1 {
		parts = batch.Column(found[0]).(*array.Int32)
	}
	topics := map[string]uint32{}
	texts := make([]string, len(keys))
	var text []byte
	rows := int(batch.NumRows())
	writes, values := make([]entityWrite, rows), make([]string, 0, rows*len(features)) // never grown: it is pointed into
	pointers := make([]*string, rows*len(features))
	for i := range rows {
		name := topic.(*array.String).Value(i)
		hash, ok := topics[name]
		if !ok {
			hash = feature.TopicHash(name)
			topics[strings.Clone(name)] = hash
		}
		e := &writes[i]
		e.order = feature.Order{
			EventTime: int64(eventTime.(*array.Timestamp).Value(i)), Live: feature.Live(name), TopicHash: hash,
			Partition: int32(partition.(*array.Int64).Value(i)), Offset: offset.(*array.Int64).Value(i),
		}
		e.deleted = op.(*array.String).Value(i) == feature.OpDelete
		if parts != nil {
			e.part = int(parts.Value(i))
		}
		if sequence.IsValid(i) {
			e.order.HasSequence, e.order.Sequence = true, sequence.(*array.Int64).Value(i)
		}
		for j, k := range keys {
			texts[j] = keyText(k, i)
		}
		if w.feast != nil {
			e.entity = w.feast.key(texts)
		} else {
			e.entity = entityText(w.entity.Name, texts)
		}
		switch {
		case w.columns != nil:
			e.patch = w.patchOf(e, present, features, i)
		case !e.deleted:
			e.values = pointers[i*len(features) : (i+1)*len(features)]
			for j, f := range features {
				if f.IsValid(i) {
					if w.feast != nil {
						text = appendFeastValue(text[:0], f, i)
					} else {
						text = appendValue(text[:0], f, i)
					}
					values = append(values, string(text))
					e.values[j] = &values[len(values)-1]
				}
			}
		}
		yield(e)
	}
	return nil
}

// expiry is when an entity's hash may go, in milliseconds since 1970, or 0 for never: a second after its values are too
// old to be served. The reader's own check is the rule.
func (w *ViewWriter) expiry(eventTime int64) int64 {
	if w.view.TTL == 0 || w.frozen {
		return 0
	}
	return time.UnixMicro(eventTime).Add(w.view.TTL+time.Second).UnixMilli() + 1
}

// send makes guarded writes, each of another entity, to one generation. Several pipelines are on their way at a time.
func (w *ViewWriter) send(ctx context.Context, generation int64, writes []*entityWrite) error {
	if w.feast != nil {
		return w.sendFeast(ctx, generation, writes, w.past)
	}
	prefix := keyPrefix(w.store.project, w.view.Name, generation)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pipelinesMax)
	for part := range slices.Chunk(writes, pipelineCalls) {
		group.Go(func() error {
			err := w.sendPart(ctx, prefix, part)
			var foreign *ForeignKeysError
			if errors.As(err, &foreign) { // one key doesn't hold the others up
				w.noteForeign(foreign.Keys...)
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// foreignMax bounds how many keys a writer names that hold what is not loam's.
const foreignMax = 10

func (w *ViewWriter) noteForeign(keys ...string) {
	w.noting.Lock()
	defer w.noting.Unlock()
	w.foreign = append(w.foreign, keys[:min(len(keys), foreignMax-len(w.foreign))]...)
}

// Foreign are keys of the view that hold another type than loam writes, and that were come upon since this was asked last: ten
// at most. They are left as they are, so what they should hold is lacking: the view is to be built anew, under other keys.
func (w *ViewWriter) Foreign() []string {
	w.noting.Lock()
	defer w.noting.Unlock()
	keys := w.foreign
	w.foreign = nil
	return keys
}

// sendPart makes the writes of one pipeline.
func (w *ViewWriter) sendPart(ctx context.Context, prefix string, writes []*entityWrite) error {
	per := callKeys
	if w.columns != nil || w.store.sharded() {
		per = 1
	}
	calls := newCalls(w.script, len(writes), len(writes)*(5+3*len(w.fields)))
	for part := range slices.Chunk(writes, per) {
		calls.begin(len(part))
		for _, e := range part {
			calls.key(prefix + e.entity)
		}
		for _, e := range part {
			calls.args = w.arguments(calls.args, e)
		}
		calls.end()
	}
	err := w.store.make(ctx, calls)
	if err != nil || w.columns != nil {
		return err
	}
	var foreign []string
	for i, given := range calls.given {
		numbers, _ := given.([]any)
		for _, number := range numbers {
			foreign = append(foreign, calls.keys[i*per+int(number.(int64))-1])
		}
	}
	if len(foreign) > 0 {
		return &ForeignKeysError{foreign}
	}
	return nil
}

// arguments appends those of an entity.
func (w *ViewWriter) arguments(args []any, e *entityWrite) []any {
	expires := ""
	if at := w.expiry(e.order.EventTime); at != 0 {
		expires = strconv.FormatInt(at, 10)
	}
	args = append(args, e.order.String(), expires)
	switch {
	case e.patch != nil:
		return w.patchText(args, e.patch)
	case e.deleted:
		return append(args, "d")
	}
	args = append(args, present(e.values))
	for _, v := range e.values {
		if v == nil {
			args = append(args, "")
		} else {
			args = append(args, v)
		}
	}
	return args
}

// present tells guarded which values are null.
func present(values []*string) string {
	if !slices.Contains(values, nil) {
		return ""
	}
	flags := make([]byte, len(values))
	for i, v := range values {
		flags[i] = '1'
		if v == nil {
			flags[i] = '0'
		}
	}
	return string(flags)
}
