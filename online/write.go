package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// guarded writes an entity's hash if its order is greater than the one that stands there.
//
// KEYS[1] the hash; ARGV[1] the order, ARGV[2] the event time, ARGV[3] when the hash expires in milliseconds since 1970
// or "" for never, ARGV[4] "1" for a tombstone, then name and value of each feature that is not null.
var guarded = redis.NewScript(`
local old = redis.call('HGET', KEYS[1], '_v')
if old and old >= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], '_v', ARGV[1], '_et', ARGV[2], '_d', '1')
else
  redis.call('HSET', KEYS[1], '_v', ARGV[1], '_et', ARGV[2], unpack(ARGV, 5))
end
if ARGV[3] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[3]) end
return 1
`)

// pipelineCalls bounds the calls of one pipeline.
const pipelineCalls = 1000

// entityWrite is one write of an entity.
type entityWrite struct {
	key     []string // join keys as text, in the order of their names
	order   feature.Order
	deleted bool
	values  []any       // name, value, …; null features are left out
	patch   *patchWrite // of a patch stream, in place of deleted and values
}

// ViewWriter writes one view. It is not safe for concurrent use.
type ViewWriter struct {
	store   *Store
	view    *feature.View
	entity  *feature.Entity
	stream  *feature.Stream
	hash    string                  // of the view's definition
	columns []viewColumn            // that the view reads of a patch stream; none where events carry the whole state
	feast   *feastView              // where the view is in Feast's layout
	past    func(guard string) bool // while a generation in Feast's layout is filled
	db      *sql.DB                 // evaluates expressions; nil where every feature is a column

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
	}
	if view.Windowed() {
		return w, w.openTiles(ctx, p)
	}
	w.columns = viewColumns(view, w.stream)
	if view.Layout == feature.FeastLayout {
		w.feast = newFeastView(s.project, view, w.entity, w.stream)
	}
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

// Close frees what the writer holds.
func (w *ViewWriter) Close() error {
	if w.db == nil {
		return nil
	}
	return w.db.Close()
}

// View is the view that is written.
func (w *ViewWriter) View() *feature.View { return w.view }

// Definition is the hash of the view's definition.
func (w *ViewWriter) Definition() string { return w.hash }

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
				id := entityKey("", w.entity.Name, e.key) // which no other entity has, whatever bytes its keys hold
				switch old := newest[id]; {
				case old != nil && e.patch != nil:
					old.merge(e)
				case old == nil || old.order.Compare(e.order) < 0:
					newest[id] = e
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
	topics := map[string]uint32{}
	for i := range int(batch.NumRows()) {
		name := topic.(*array.String).Value(i)
		hash, ok := topics[name]
		if !ok {
			hash = feature.TopicHash(name)
			topics[strings.Clone(name)] = hash
		}
		e := &entityWrite{
			order: feature.Order{
				EventTime: int64(eventTime.(*array.Timestamp).Value(i)), Live: feature.Live(name), TopicHash: hash,
				Partition: int32(partition.(*array.Int64).Value(i)), Offset: offset.(*array.Int64).Value(i),
			},
			deleted: op.(*array.String).Value(i) == feature.OpDelete,
		}
		if sequence.IsValid(i) {
			e.order.HasSequence, e.order.Sequence = true, sequence.(*array.Int64).Value(i)
		}
		for _, k := range keys {
			e.key = append(e.key, keyText(k, i))
		}
		switch {
		case w.columns != nil:
			e.patch = w.patchOf(e, present, features, i)
		case w.feast != nil && !e.deleted:
			for j, f := range features {
				value := []byte{} // of a null
				if f.IsValid(i) {
					value = appendFeastValue(value, f, i)
				}
				e.values = append(e.values, w.feast.fields[j], value)
			}
		case !e.deleted:
			for j, f := range features {
				if f.IsValid(i) {
					e.values = append(e.values, w.view.Features[j].Name, appendValue(nil, f, i))
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
	if w.view.TTL == 0 {
		return 0
	}
	return time.UnixMicro(eventTime).Add(w.view.TTL+time.Second).UnixMilli() + 1
}

// script is the one that writes the view.
func (w *ViewWriter) script() *redis.Script {
	if w.columns != nil {
		return guardedPatch
	}
	return guarded
}

// send makes guarded writes to one generation.
func (w *ViewWriter) send(ctx context.Context, generation int64, writes []*entityWrite) error {
	if w.feast != nil {
		return w.sendFeast(ctx, generation, writes, w.past)
	}
	prefix := keyPrefix(w.store.project, w.view.Name, generation)
	for len(writes) > 0 {
		part := writes[:min(len(writes), pipelineCalls)]
		err := w.sendPart(ctx, prefix, part)
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			// The server lost its scripts. Writes that went through are repeated, which their guard makes harmless.
			if err = w.script().Load(ctx, w.store.redis).Err(); err == nil {
				err = w.sendPart(ctx, prefix, part)
			}
		}
		if err != nil {
			return err
		}
		writes = writes[len(part):]
	}
	return nil
}

func (w *ViewWriter) sendPart(ctx context.Context, prefix string, writes []*entityWrite) error {
	_, err := w.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, e := range writes {
			w.script().EvalSha(ctx, p, []string{entityKey(prefix, w.entity.Name, e.key)}, w.arguments(e)...)
		}
		return nil
	})
	return err
}

// arguments are those of the script.
func (w *ViewWriter) arguments(e *entityWrite) []any {
	expires := ""
	if at := w.expiry(e.order.EventTime); at != 0 {
		expires = strconv.FormatInt(at, 10)
	}
	args := []any{e.order.String(), e.order.EventTime, expires}
	if e.patch != nil {
		return append(args, w.patchText(e.patch)...)
	}
	deleted := ""
	if e.deleted {
		deleted = "1"
	}
	return append(append(args, deleted), e.values...)
}
