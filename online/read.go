package online

import (
	"context"
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

// EntityError says that an entity lacks a join key.
type EntityError struct{ View, JoinKey string }

func (e *EntityError) Error() string {
	return fmt.Sprintf("feature view %s needs the join key %s", e.View, e.JoinKey)
}

// KeyError says that a join key of an entity is not of its type. It doesn't say what it is: keys may be personal data.
type KeyError struct {
	View, JoinKey string
	Entity        int // which of the entities that were asked for, from 0
	Type          feature.Type
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("feature view %s takes the join key %s as %s, and that of entity %d is none", e.View, e.JoinKey, e.Type, e.Entity)
}

// ForeignError says that what stands under an entity's key is not what loam writes.
type ForeignError struct {
	View   string
	Entity int // which of the entities that were asked for, from 0
	Err    error
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("feature view %s: what Redis holds of entity %d was not written by loam: %s; remove the key, and `loam materialize --view %s` builds the view anew",
		e.View, e.Entity, e.Err, e.View)
}

func (e *ForeignError) Unwrap() error { return e.Err }

// Seen is what the values of an entity in a view rest on, for a log of what was served.
type Seen struct {
	View       string
	Generation int64
	Of         *Generation       // what the generation says of itself, without marks; it isn't changed
	Order      string            // _v as it stands in the hash, "" without one
	Guards     map[string]string // other guards as they stand there: of a patch stream by column, and _d; of a windowed view by partition, the next offset
}

// viewRead is a view of which features are read.
type viewRead struct {
	project  string
	view     *feature.View
	entity   *feature.Entity
	stream   *feature.Stream
	features []string // that are read
	places   []int    // by feature: the column that it fills
}

// layout is how the values of a view stand in Redis. One is made for the features that are read of a view, and serves many
// requests at once.
type layout interface {
	// key is the key of an entity in the generation whose keys begin with prefix. keys are its join keys as text, in the order of
	// their names.
	key(prefix string, keys []string) string
	// ask adds to a pipeline what reads a key, as of now in microseconds since 1970 or the generation's own instant, with what [Seen] tells where that is asked for.
	ask(ctx context.Context, p redis.Pipeliner, key string, now int64, seen bool) redis.Cmder
	// decode fills the places of a row by what was answered, as of now. They come as [NotFound]. seen is nil where it was not asked for.
	decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error)
}

// Trace says whether Redis holds anything under a key.
type Trace bool

// What Redis holds under a key. Where it holds nothing, the entity is unknown or the generation was removed.
const (
	Nothing   Trace = false
	Something Trace = true
)

// layoutOf is the layout of a view.
func layoutOf(v *viewRead) layout {
	if v.view.Layout == feature.FeastLayout {
		return newFeastHashes(v, newFeastView(v.project, v.view, v.entity, v.stream))
	}
	if v.view.OverHistory(v.stream) {
		return newHistories(v)
	}
	if v.view.Windowed() {
		return newTiled(v)
	}
	if columns := viewColumns(v.view, v.stream); columns != nil {
		return newPatches(v, columns)
	}
	return newStates(v)
}

// key is the key of an entity's hash.
func (v *viewRead) key(prefix string, keys []string) string {
	return entityKey(prefix, v.entity.Name, keys)
}

// canonical writes a join key's value as the writer does, so that 07 finds the number 7 and a time in any zone is found. It fails
// on what is not of the key's type.
func canonical(t feature.Type, value string) (string, bool) {
	switch t.Kind {
	case feature.Int64:
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		return strconv.FormatInt(n, 10), err == nil
	case feature.Timestamp:
		at, err := time.Parse(time.RFC3339Nano, value)
		return at.UTC().Format(timeFormat), err == nil
	case feature.Date:
		at, err := time.Parse(dateFormat, value)
		return at.Format(dateFormat), err == nil
	}
	return value, true
}

// hmget asks for fields of a hash, whose command comes with room for the key.
func hmget(ctx context.Context, p redis.Pipeliner, command []any, key string) redis.Cmder {
	args := slices.Clone(command)
	args[1] = key
	c := redis.NewSliceCmd(ctx, args...)
	_ = p.Process(ctx, c) // a pipeline only queues it
	return c
}

// hmgetOf is the command that asks for fields.
func hmgetOf(fields ...string) []any {
	command := []any{"hmget", ""}
	for _, f := range fields {
		command = append(command, f)
	}
	return command
}

// states is the layout of a view whose events carry the whole state: a hash of features, order and tombstone.
type states struct {
	*viewRead
	command []any
}

func newStates(v *viewRead) *states {
	return &states{v, hmgetOf(append([]string{fieldOrder, fieldDeleted}, v.fields()...)...)}
}

func (s *states) ask(ctx context.Context, p redis.Pipeliner, key string, _ int64, _ bool) redis.Cmder {
	return hmget(ctx, p, s.command, key)
}

func (s *states) decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error) {
	raw := answer.(*redis.SliceCmd).Val()
	_, deleted := raw[1].(string)
	at, found, err := eventTime(raw[0])
	if seen != nil {
		seen.Order, _ = raw[0].(string)
	}
	if err != nil || !found || deleted {
		return Trace(found), err
	}
	for i, place := range s.places {
		if err := s.put(&row[place], raw[i+2], at, now); err != nil {
			return Something, err
		}
	}
	return Something, nil
}

// patches is the layout of a view over a patch stream, where each feature is as old as its column. What no change has
// carried is null, and as old as the newest change.
type patches struct {
	*viewRead
	columns []viewColumn
	of      []int // by feature that is read: its column
	command []any
}

func newPatches(v *viewRead, columns []viewColumn) *patches {
	p := &patches{viewRead: v, columns: columns}
	fields := append([]string{fieldOrder, fieldDeleted}, v.fields()...)
	for _, c := range columns {
		fields = append(fields, fieldGuard+c.name)
	}
	p.command = hmgetOf(fields...)
	for _, name := range v.features {
		p.of = append(p.of, slices.IndexFunc(columns, func(c viewColumn) bool { return c.name == v.feature(name).Column }))
	}
	return p
}

func (p *patches) ask(ctx context.Context, pipe redis.Pipeliner, key string, _ int64, _ bool) redis.Cmder {
	return hmget(ctx, pipe, p.command, key)
}

func (p *patches) decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error) {
	raw := answer.(*redis.SliceCmd).Val()
	guards := raw[len(p.places)+2:]
	newest, exists := raw[0].(string)
	if seen != nil {
		p.see(seen, raw[0], raw[1], guards)
	}
	if deleted, ever := raw[1].(string); ever && deleted == newest {
		exists = false
	}
	at, found, err := eventTime(raw[0])
	if err != nil || !found || !exists {
		return Trace(found), err
	}
	for i, place := range p.places {
		own, column := at, p.of[i]
		if guard, carried := guards[column].(string); carried {
			order, err := feature.ParseOrder(guard)
			if err != nil {
				return Something, fmt.Errorf("its guard of column %s is not loam's: %w", p.columns[column].name, err)
			}
			own = order.EventTime
		}
		if err := p.put(&row[place], raw[i+2], own, now); err != nil {
			return Something, err
		}
	}
	return Something, nil
}

// see notes the guards that were read: _v, _d and those of the columns.
func (p *patches) see(seen *Seen, newest, deleted any, guards []any) {
	seen.Order, _ = newest.(string)
	seen.Guards = map[string]string{}
	if d, ok := deleted.(string); ok {
		seen.Guards[fieldDeleted] = d
	}
	for i, c := range p.columns {
		if g, ok := guards[i].(string); ok {
			seen.Guards[c.name] = g
		}
	}
}

// eventTime reads a hash's event time off its order; without one there is no hash.
func eventTime(raw any) (at int64, found bool, err error) {
	text, found := raw.(string)
	if !found {
		return 0, false, nil
	}
	order, err := feature.ParseOrder(text)
	if err != nil {
		return 0, false, fmt.Errorf("its order is not loam's: %w", err)
	}
	return order.EventTime, true, nil
}

// put sets a feature of an entity that is there: raw is its value as HMGET gave it, of the event time at.
func (v *viewRead) put(f *Feature, raw any, at, now int64) error {
	f.EventTime = time.UnixMicro(at).UTC()
	switch text, present := raw.(string); {
	case v.view.TTL > 0 && now-at > v.view.TTL.Microseconds():
		f.Status = OutsideMaxAge
	case !present:
		f.Status = NullValue
	case !fits(f.Value.Type, text):
		return fmt.Errorf("its feature %s is no %s", f.Ref.Feature, f.Value.Type)
	default:
		f.Status, f.Value.Text, f.Value.Null = Present, text, false
	}
	return nil
}

func (v *viewRead) feature(name string) feature.Feature { return v.view.Features[v.number(name)] }

// fields are where the features that are read stand.
func (v *viewRead) fields() []string {
	fields := make([]string, len(v.features))
	for i, name := range v.features {
		fields[i] = featureField(v.number(name))
	}
	return fields
}

// number is the place of a feature in the view.
func (v *viewRead) number(name string) int { return slices.Index(v.view.FeatureNames(), name) }
