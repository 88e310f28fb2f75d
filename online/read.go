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
	for column, ref := range refs {
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
		v.places = append(v.places, column)
	}
	commands := make([][]redis.Cmder, len(order))
	_, err := r.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, v := range order {
			for _, e := range entities {
				key, err := v.key(e)
				if err != nil {
					return err
				}
				commands[i] = append(commands[i], v.layout.ask(ctx, p, key))
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
		rows[n] = make([]Feature, len(refs))
		for i, v := range order {
			for _, place := range v.places {
				rows[n][place] = Feature{Ref: refs[place], Value: Value{Type: r.project.FeatureType(refs[place]), Null: true}, Status: NotFound}
			}
			if err := v.layout.decode(commands[i][n], now, v.places, rows[n]); err != nil {
				return nil, fmt.Errorf("read an entity of feature view %s: %w", v.view.Name, err)
			}
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
	prefix   string
	features []string // that are read
	places   []int    // by feature: the column that it fills
	layout   layout
}

// layout is how the values of a view stand in Redis.
type layout interface {
	// ask adds to a pipeline what reads the key of an entity.
	ask(ctx context.Context, p redis.Pipeliner, key string) redis.Cmder
	// decode fills the places of a row by what was answered, as of now in microseconds since 1970. They come as [NotFound].
	decode(answer redis.Cmder, now int64, places []int, row []Feature) error
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
	v := &viewRead{view: view, entity: r.project.Entity(view.Entity), stream: stream, prefix: keyPrefix(r.store.project, name, g.Number)}
	v.layout = &states{v}
	if view.Windowed() {
		v.layout = newTiled(r.project, v, g)
	} else if columns := viewColumns(view, stream); columns != nil {
		v.layout = &patches{v, columns}
	}
	return v, nil
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

// states is the layout of a view whose events carry the whole state: a hash of features, event time and tombstone.
type states struct{ *viewRead }

func (s *states) ask(ctx context.Context, p redis.Pipeliner, key string) redis.Cmder {
	return p.HMGet(ctx, key, append([]string{fieldEventTime, fieldDeleted}, s.features...)...)
}

func (s *states) decode(answer redis.Cmder, now int64, places []int, row []Feature) error {
	raw := answer.(*redis.SliceCmd).Val()
	_, deleted := raw[1].(string)
	at, found, err := eventTime(raw[0])
	if err != nil || !found || deleted {
		return err
	}
	for i, place := range places {
		s.put(&row[place], raw[i+2], at, now)
	}
	return nil
}

// patches is the layout of a view over a patch stream, where each feature is as old as its column. What no change has
// carried is null, and as old as the newest change.
type patches struct {
	*viewRead
	columns []viewColumn
}

func (p *patches) ask(ctx context.Context, pipe redis.Pipeliner, key string) redis.Cmder {
	fields := append([]string{fieldEventTime, fieldDeleted}, p.features...)
	fields = append(fields, fieldOrder)
	for _, c := range p.columns {
		fields = append(fields, fieldGuard+c.name)
	}
	return pipe.HMGet(ctx, key, fields...)
}

func (p *patches) decode(answer redis.Cmder, now int64, places []int, row []Feature) error {
	raw := answer.(*redis.SliceCmd).Val()
	guards := raw[len(places)+2:]
	newest, exists := guards[0].(string)
	if deleted, ever := raw[1].(string); ever && deleted == newest {
		exists = false
	}
	at, found, err := eventTime(raw[0])
	if err != nil || !found || !exists {
		return err
	}
	for i, place := range places {
		own := at
		column := slices.IndexFunc(p.columns, func(c viewColumn) bool { return c.name == p.feature(p.features[i]).Column })
		if guard, carried := guards[1+column].(string); carried {
			order, err := feature.ParseOrder(guard)
			if err != nil {
				return fmt.Errorf("its guard of column %s is not loam's: %w", p.columns[column].name, err)
			}
			own = order.EventTime
		}
		p.put(&row[place], raw[i+2], own, now)
	}
	return nil
}

// eventTime reads a hash's event time; without one there is no hash.
func eventTime(raw any) (at int64, found bool, err error) {
	text, found := raw.(string)
	if !found {
		return 0, false, nil
	}
	if at, err = strconv.ParseInt(text, 10, 64); err != nil {
		return 0, false, fmt.Errorf("its event time %q is not loam's: %w", text, err)
	}
	return at, true, nil
}

// put sets a feature of an entity that is there: raw is its value as HMGET gave it, of the event time at.
func (v *viewRead) put(f *Feature, raw any, at, now int64) {
	f.EventTime = time.UnixMicro(at).UTC()
	switch text, present := raw.(string); {
	case v.view.TTL > 0 && now-at > v.view.TTL.Microseconds():
		f.Status = OutsideMaxAge
	case !present:
		f.Status = NullValue
	default:
		f.Status, f.Value.Text, f.Value.Null = Present, text, false
	}
}

func (v *viewRead) feature(name string) feature.Feature {
	return v.view.Features[slices.IndexFunc(v.view.Features, func(f feature.Feature) bool { return f.Name == name })]
}
