package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// Status says what a value that was read is.
type Status string

// Statuses of values, in Feast's words.
const (
	Present       Status = "PRESENT"
	NotFound      Status = "NOT_FOUND"       // the entity is unknown, or was deleted
	NullValue     Status = "NULL_VALUE"      // the entity is known, its value is null
	OutsideMaxAge Status = "OUTSIDE_MAX_AGE" // the value is older than the view's time to live
)

// Feature is one value of one entity.
type Feature struct {
	Ref       feature.Ref
	Value     Value
	Status    Status
	EventTime time.Time // of the change it comes from; zero where it is not found
}

// Reader reads feature values. It is safe for concurrent use.
type Reader struct {
	store   *Store
	project *feature.Project
	now     func() time.Time
}

// NewReader makes a reader of the project's views.
func NewReader(s *Store, p *feature.Project, now func() time.Time) *Reader {
	return &Reader{store: s, project: p, now: now}
}

// Read gives the features, in the order asked, of each of the entities, which are given by their join keys as text. It
// is [ErrUnavailable] where a view has no generation that is ready.
func (r *Reader) Read(ctx context.Context, refs []feature.Ref, entities []map[string]string) ([][]Feature, error) {
	views := map[string]*viewRead{}
	var order []*viewRead
	for _, ref := range refs {
		v := views[ref.View]
		if v == nil {
			var err error
			if v, err = r.open(ctx, ref.View); err != nil {
				return nil, err
			}
			views[ref.View] = v
			order = append(order, v)
		}
		v.features = append(v.features, ref.Feature)
	}
	commands := make([][]*redis.SliceCmd, len(order))
	_, err := r.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, v := range order {
			for _, e := range entities {
				key, err := v.key(e)
				if err != nil {
					return err
				}
				commands[i] = append(commands[i], p.HMGet(ctx, key, v.fields()...))
			}
		}
		return nil
	})
	if err != nil {
		var bad *EntityError
		if errors.As(err, &bad) {
			return nil, err
		}
		return nil, fmt.Errorf("read features: %w", err)
	}
	now := r.now().UnixMicro()
	rows := make([][]Feature, len(entities))
	for n := range entities {
		values := map[feature.Ref]Feature{}
		for i, v := range order {
			decode := v.decode
			if v.columns != nil {
				decode = v.decodePatched
			}
			if err := decode(commands[i][n].Val(), now, values); err != nil {
				return nil, err
			}
		}
		for _, ref := range refs {
			rows[n] = append(rows[n], values[ref])
		}
	}
	return rows, nil
}

// EntityError says that an entity lacks a join key.
type EntityError struct{ View, JoinKey string }

func (e *EntityError) Error() string {
	return fmt.Sprintf("feature view %s needs the join key %s", e.View, e.JoinKey)
}

// viewRead is a view of which features are read.
type viewRead struct {
	view     *feature.View
	entity   *feature.Entity
	stream   *feature.Stream
	columns  []viewColumn // of a patch stream; none where events carry the whole state
	prefix   string
	features []string
}

// fields are those of a hash that are read: event time, tombstone, then the features; of a patch stream then the newest
// order, and the guard of each of the view's columns.
func (v *viewRead) fields() []string {
	fields := append([]string{fieldEventTime, fieldDeleted}, v.features...)
	if v.columns == nil {
		return fields
	}
	fields = append(fields, fieldOrder)
	for _, c := range v.columns {
		fields = append(fields, fieldGuard+c.name)
	}
	return fields
}

func (r *Reader) open(ctx context.Context, name string) (*viewRead, error) {
	view := r.project.View(name)
	if view == nil {
		return nil, fmt.Errorf("there is no feature view %s", name)
	}
	if why := r.project.Unserved(view); why != "" {
		return nil, fmt.Errorf("feature view %s: %s", name, why)
	}
	all, err := r.store.Generations(ctx, name)
	if err != nil {
		return nil, err
	}
	g, ok := r.store.Usable(all, r.project.ViewDefinition(view).Hash)
	if !ok {
		return nil, fmt.Errorf("feature view %s: %w: run `loam materialize --view %s`, or the worker", name, ErrUnavailable, name)
	}
	stream := r.project.Stream(view.Stream)
	return &viewRead{
		view: view, entity: r.project.Entity(view.Entity), stream: stream, columns: viewColumns(view, stream),
		prefix: keyPrefix(r.store.project, name, g.Number),
	}, nil
}

// key is the key of an entity's hash.
func (v *viewRead) key(entity map[string]string) (string, error) {
	var values []string
	for _, k := range joinKeys(v.entity) {
		value, ok := entity[k]
		if !ok {
			return "", &EntityError{v.view.Name, k}
		}
		values = append(values, v.canonical(k, value))
	}
	return entityKey(v.prefix, v.entity.Name, values), nil
}

// canonical writes a join key's value as the writer does, so that 07 finds the number 7 and a time in any zone is found.
func (v *viewRead) canonical(joinKey, value string) string {
	c, _ := v.stream.Column(joinKey)
	switch c.Type.Kind {
	case feature.Int64:
		if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case feature.Timestamp:
		if t, err := time.Parse(time.RFC3339Nano, value); err == nil {
			return t.UTC().Format(timeFormat)
		}
	}
	return value
}

// decode reads what HMGET gave of a view whose events carry the whole state.
func (v *viewRead) decode(raw []any, now int64, into map[feature.Ref]Feature) error {
	_, deleted := raw[1].(string)
	at, found, err := v.eventTime(raw[0])
	if err != nil {
		return err
	}
	for i, name := range v.features {
		v.put(into, name, raw[i+2], found && !deleted, at, now)
	}
	return nil
}

// decodePatched reads what HMGET gave of a view over a patch stream, where each feature is as old as its column. What no
// change has carried is null, and as old as the newest change.
func (v *viewRead) decodePatched(raw []any, now int64, into map[feature.Ref]Feature) error {
	guards := raw[len(v.features)+2:]
	newest, exists := guards[0].(string)
	if deleted, ever := raw[1].(string); ever && deleted == newest {
		exists = false
	}
	at, found, err := v.eventTime(raw[0])
	if err != nil {
		return err
	}
	for i, name := range v.features {
		own := at
		column := slices.IndexFunc(v.columns, func(c viewColumn) bool { return c.name == v.feature(name).Column })
		if guard, carried := guards[1+column].(string); carried {
			order, err := feature.ParseOrder(guard)
			if err != nil {
				return fmt.Errorf("a hash of feature view %s has a guard of column %s that is not loam's: %w", v.view.Name, v.columns[column].name, err)
			}
			own = order.EventTime
		}
		v.put(into, name, raw[i+2], found && exists, own, now)
	}
	return nil
}

// eventTime reads a hash's event time; without one there is no hash.
func (v *viewRead) eventTime(raw any) (at int64, found bool, err error) {
	text, found := raw.(string)
	if !found {
		return 0, false, nil
	}
	if at, err = strconv.ParseInt(text, 10, 64); err != nil {
		return 0, false, fmt.Errorf("a hash of feature view %s has the event time %q, which is not loam's: %w", v.view.Name, text, err)
	}
	return at, true, nil
}

// put notes a feature with its status: raw is its value as HMGET gave it, of the event time at.
func (v *viewRead) put(into map[feature.Ref]Feature, name string, raw any, exists bool, at, now int64) {
	f := Feature{Ref: feature.Ref{View: v.view.Name, Feature: name}, Value: Value{Type: v.feature(name).Type, Null: true}}
	text, present := raw.(string)
	switch {
	case !exists:
		f.Status = NotFound
	case v.view.TTL > 0 && now-at > v.view.TTL.Microseconds():
		f.Status, f.EventTime = OutsideMaxAge, time.UnixMicro(at).UTC()
	case !present:
		f.Status, f.EventTime = NullValue, time.UnixMicro(at).UTC()
	default:
		f.Status, f.EventTime = Present, time.UnixMicro(at).UTC()
		f.Value.Text, f.Value.Null = text, false
	}
	into[f.Ref] = f
}

func (v *viewRead) feature(name string) feature.Feature {
	return v.view.Features[slices.IndexFunc(v.view.Features, func(f feature.Feature) bool { return f.Name == name })]
}
