package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// Plan reads the same features again and again. It is safe for concurrent use.
type Plan struct {
	client  *Client
	refs    []feature.Ref
	row     []Feature // what a row of the features that are in Redis is before it is read
	views   []*planView
	demands []*demand
	request []RequestColumn // that demands read
	given   []Feature       // where features are on demand: what a row that is given is before it is computed
	places  []int           // by its column: that of the row that is read, -1 for what is computed
}

// planView is what is read of one view.
type planView struct {
	*viewRead
	*servedView
	layout layout
	keys   []feature.Column // join keys in the order in which they stand in keys
}

// Plan prepares reads of features, which are given in this order. Each is once in it, and of a view that is served, or on
// demand with inputs that are.
func (c *Client) Plan(refs []feature.Ref) (*Plan, error) {
	p := &Plan{client: c, refs: refs}
	stored := refs
	if slices.ContainsFunc(refs, func(r feature.Ref) bool { v := c.project.View(r.View); return v != nil && v.OnDemand != nil }) {
		stored = p.planDemands(c.project)
	}
	p.row = make([]Feature, len(stored))
	for column, ref := range stored {
		i := slices.IndexFunc(p.views, func(v *planView) bool { return v.view.Name == ref.View })
		if i < 0 {
			v, err := c.planView(ref.View)
			if err != nil {
				return nil, err
			}
			i = len(p.views)
			p.views = append(p.views, v)
		}
		v := p.views[i]
		v.features, v.places = append(v.features, ref.Feature), append(v.places, column)
		p.row[column] = unread(c.project, ref)
	}
	if err := p.planRequest(); err != nil {
		return nil, err
	}
	for _, v := range p.views {
		v.layout = layoutOf(v.viewRead)
	}
	return p, nil
}

// unread is a feature before it is read.
func unread(p *feature.Project, ref feature.Ref) Feature {
	return Feature{Ref: ref, Value: Value{Type: p.FeatureType(ref), Null: true}, Status: NotFound}
}

// planDemands plans features on demand. It gives the features that are read for the plan: those asked for, and inputs.
func (p *Plan) planDemands(project *feature.Project) []feature.Ref {
	var stored []feature.Ref
	read := func(r feature.Ref) int {
		i := slices.Index(stored, r)
		if i < 0 {
			i, stored = len(stored), append(stored, r)
		}
		return i
	}
	p.given, p.places = make([]Feature, len(p.refs)), make([]int, len(p.refs))
	for column, ref := range p.refs {
		view := project.View(ref.View)
		if view == nil || view.OnDemand == nil {
			p.places[column] = read(ref)
			continue
		}
		p.given[column], p.places[column] = unread(project, ref), -1
		i := slices.IndexFunc(p.demands, func(d *demand) bool { return d.view == view })
		if i < 0 {
			i, p.demands = len(p.demands), append(p.demands, &demand{view: view})
		}
		d := p.demands[i]
		f := view.Features[slices.IndexFunc(view.Features, func(f feature.Feature) bool { return f.Name == ref.Feature })]
		d.features, d.places = append(d.features, f), append(d.places, column)
		for _, in := range project.Inputs(view) {
			if !slices.Contains(f.Reads, in.Name) || slices.ContainsFunc(d.inputs, func(o demandInput) bool { return o.Input == in }) {
				continue
			}
			place := -1
			if in.From != (feature.Ref{}) {
				place = read(in.From)
			}
			d.inputs = append(d.inputs, demandInput{in, place})
		}
	}
	for _, d := range p.demands {
		d.plan()
	}
	return stored
}

// compute makes the rows that are given of those that were read.
func (p *Plan) compute(ctx context.Context, r *Result, request map[string][]Value) error {
	values := make([]Feature, len(r.Rows)*len(p.refs))
	rows := make([][]Feature, len(r.Rows))
	for n, stored := range r.Rows {
		rows[n] = values[n*len(p.refs) : (n+1)*len(p.refs) : (n+1)*len(p.refs)]
		for column, place := range p.places {
			if place >= 0 {
				rows[n][column] = stored[place]
			} else {
				rows[n][column] = p.given[column]
			}
		}
	}
	for _, d := range p.demands {
		if err := d.compute(ctx, p.client.engines, r.Rows, rows, request); err != nil {
			return err
		}
	}
	r.Rows = rows
	return nil
}

func (c *Client) planView(name string) (*planView, error) {
	if err := c.unserved(name); err != nil {
		return nil, err
	}
	view := c.project.View(name)
	v := &planView{
		viewRead:   &viewRead{project: c.store.project, view: view, entity: c.project.Entity(view.Entity), stream: c.project.Stream(view.Stream)},
		servedView: c.views[name],
	}
	for _, k := range joinKeys(v.entity) {
		column, _ := v.stream.Column(k)
		v.keys = append(v.keys, column)
	}
	return v, nil
}

// Features are the features that are read, in the order of a row.
func (p *Plan) Features() []feature.Ref { return p.refs }

// JoinKey is a join key that a plan needs of each entity.
type JoinKey struct {
	Name string
	View string // one that needs it
	Type feature.Type
}

// JoinKeys are the join keys that are needed, each once, by the views in the order asked.
func (p *Plan) JoinKeys() []JoinKey {
	var all []JoinKey
	for _, v := range p.views {
		for _, k := range v.keys {
			if !slices.ContainsFunc(all, func(o JoinKey) bool { return o.Name == k.Name }) {
				all = append(all, JoinKey{Name: k.Name, View: v.view.Name, Type: k.Type})
			}
		}
	}
	return all
}

// Entities are entities by their join keys, column by column.
type Entities struct {
	Len  int
	Keys map[string][]string // by join key the values as text, Len each; others than those needed are ignored
	// Request are the columns of the request that views on demand take, Len values each, by name; others are ignored.
	Request map[string][]Value
}

// Ask says what a read gives besides the values.
type Ask struct {
	Seen bool // what the values rest on
}

// Result is what was read.
type Result struct {
	At   time.Time   // the instant that the values are of, but for those of a generation with its own: ages are taken to it, and windows end there
	Rows [][]Feature // by entity as asked, the features as planned
	Seen [][]Seen    // where asked for: by entity, of each view that was read
	// AsOf are the instants of views that were read whose values are as of one, and not as of now.
	AsOf map[string]time.Time
}

// readsMax bounds how often a read is made again because a view was switched to another generation meanwhile.
const readsMax = 3

// Read reads the features of the entities. The error is an [*EntityError] or [*KeyError] where the entities can't be asked for,
// a [*RequestError] where the request lacks what a view on demand takes of it, [ErrUnavailable] where a view has no generation that can be read, [ErrAway] where Redis doesn't answer, a [*ForeignError] where it
// holds what loam has not written, and that of the context where it ended.
func (p *Plan) Read(ctx context.Context, e Entities, ask Ask) (*Result, error) {
	keys, err := p.canonical(e)
	if err != nil {
		return nil, err
	}
	if err := p.checkRequest(e); err != nil {
		return nil, err
	}
	for range readsMax {
		r, err := p.read(ctx, e.Len, keys, ask)
		switch {
		case err != nil:
			return nil, err
		case r == nil:
			continue
		case len(p.demands) > 0:
			if err := p.compute(ctx, r, e.Request); err != nil {
				return nil, err
			}
		}
		return r, nil
	}
	return nil, fmt.Errorf("read features: %w: views were switched to other generations again and again", ErrUnavailable)
}

// canonical gives of each view and each of its join keys the values as they stand in keys.
func (p *Plan) canonical(e Entities) ([][][]string, error) {
	all := make([][][]string, len(p.views))
	for i, v := range p.views {
		for _, k := range v.keys {
			given, ok := e.Keys[k.Name]
			if !ok || len(given) != e.Len {
				return nil, &EntityError{v.view.Name, k.Name}
			}
			values := given
			if k.Type.Kind != feature.String {
				values = make([]string, len(given))
				for n, text := range given {
					if values[n], ok = canonical(k.Type, text); !ok {
						return nil, &KeyError{View: v.view.Name, JoinKey: k.Name, Entity: n, Type: k.Type}
					}
				}
			}
			all[i] = append(all[i], values)
		}
	}
	return all, nil
}

// read reads once. It gives nothing where a view was switched to another generation meanwhile.
func (p *Plan) read(ctx context.Context, entities int, keys [][][]string, ask Ask) (*Result, error) {
	store := p.client.store
	if err := store.acquainted(ctx); err != nil {
		return nil, err
	}
	generations := make([]*standing, len(p.views))
	for i, v := range p.views {
		var err error
		if generations[i], err = v.current(ctx, store); err != nil {
			return nil, err
		}
	}
	result := &Result{At: p.client.now()}
	for i, v := range p.views {
		if at := generations[i].AsOf; at != nil {
			if result.AsOf == nil {
				result.AsOf = map[string]time.Time{}
			}
			result.AsOf[v.view.Name] = *at
		}
	}
	now := result.At.UnixMicro()
	answers := make([]redis.Cmder, 0, len(p.views)*entities)
	standings := make([]*redis.SliceCmd, len(p.views))
	pipe := store.redis.Pipeline()
	key := make([]string, 0, 4)
	for i, v := range p.views {
		for n := range entities {
			key = key[:0]
			for _, column := range keys[i] {
				key = append(key, column[n])
			}
			answers = append(answers, v.layout.ask(ctx, pipe, v.layout.key(generations[i].prefix, key), generations[i].instant(now), ask.Seen))
		}
	}
	for i, v := range p.views { // behind all else: see Client
		standings[i] = v.servedView.ask(ctx, pipe, generations[i])
	}
	if _, err := pipe.Exec(ctx); err != nil {
		if err := p.failed(ctx, answers, standings, entities); err != nil {
			return nil, err
		}
	}
	for i, v := range p.views {
		if !v.stands(store, generations[i], standings[i]) {
			return nil, nil
		}
	}
	trace, err := p.decode(result, entities, now, answers, generations, ask)
	if err != nil {
		return nil, err
	}
	if trace == Nothing && store.sharded() {
		if stand, err := p.standAfter(ctx, generations); err != nil || !stand {
			return nil, err
		}
	}
	return result, nil
}

// standAfter reports whether generations are still those that are read.
func (p *Plan) standAfter(ctx context.Context, generations []*standing) (bool, error) {
	standings := make([]*redis.SliceCmd, len(p.views))
	pipe := p.client.store.redis.Pipeline()
	for i, v := range p.views {
		standings[i] = v.servedView.ask(ctx, pipe, generations[i])
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return false, fmt.Errorf("read features: %w", away(ctx, err))
	}
	for i, v := range p.views {
		if !v.stands(p.client.store, generations[i], standings[i]) {
			return false, nil
		}
	}
	return true, nil
}

// failed gives the error of a pipeline of which a command has one.
func (p *Plan) failed(ctx context.Context, answers []redis.Cmder, standings []*redis.SliceCmd, entities int) error {
	for i, a := range answers {
		switch err := a.Err(); {
		case err == nil, errors.Is(err, redis.Nil):
		case redis.HasErrorPrefix(err, "WRONGTYPE"):
			return &ForeignError{View: p.views[i/entities].view.Name, Entity: i % entities, Err: err}
		default:
			return fmt.Errorf("read features: %w", away(ctx, err))
		}
	}
	for _, s := range standings {
		if err := s.Err(); err != nil {
			return fmt.Errorf("read features: %w", away(ctx, err))
		}
	}
	return nil
}

// decode makes rows of what was answered. Where Redis holds nothing of an entity it is [Nothing].
func (p *Plan) decode(r *Result, entities int, now int64, answers []redis.Cmder, generations []*standing, ask Ask) (Trace, error) {
	all := Something
	values := make([]Feature, entities*len(p.row))
	r.Rows = make([][]Feature, entities)
	if ask.Seen {
		r.Seen = make([][]Seen, entities)
	}
	for n := range entities {
		row := values[n*len(p.row) : (n+1)*len(p.row) : (n+1)*len(p.row)]
		copy(row, p.row)
		r.Rows[n] = row
		if ask.Seen {
			r.Seen[n] = make([]Seen, len(p.views))
		}
		for i, v := range p.views {
			var seen *Seen
			if ask.Seen {
				seen = &r.Seen[n][i]
				seen.View, seen.Generation, seen.Of = v.view.Name, generations[i].Number, &generations[i].Generation
			}
			trace, err := v.layout.decode(answers[i*entities+n], generations[i].instant(now), row, seen)
			if err != nil {
				return Nothing, &ForeignError{View: v.view.Name, Entity: n, Err: err}
			}
			all = all && trace
		}
	}
	return all, nil
}

// Read gives the features, in the order asked, of each of the entities, which are given by their join keys, and columns of the request, as text. Errors are
// those of [Plan.Read].
func (c *Client) Read(ctx context.Context, refs []feature.Ref, entities []map[string]string) ([][]Feature, error) {
	r, err := c.Result(ctx, refs, entities)
	if err != nil {
		return nil, err
	}
	return r.Rows, nil
}

// Result is [Client.Read] with what else is known of a read.
func (c *Client) Result(ctx context.Context, refs []feature.Ref, entities []map[string]string) (*Result, error) {
	p, err := c.Plan(refs)
	if err != nil {
		return nil, err
	}
	e := Entities{Len: len(entities), Keys: map[string][]string{}}
	for _, k := range p.JoinKeys() {
		values := make([]string, len(entities))
		for n, entity := range entities {
			var ok bool
			if values[n], ok = entity[k.Name]; !ok {
				return nil, &EntityError{k.View, k.Name}
			}
		}
		e.Keys[k.Name] = values
	}
	for _, k := range p.RequestColumns() {
		values := make([]Value, len(entities))
		for n, entity := range entities {
			text, ok := entity[k.Name]
			if !ok {
				return nil, &RequestError{View: k.View, Column: k.Name, Type: k.Type, Entity: -1}
			}
			if values[n], ok = ParseValue(k.Type, text); !ok {
				return nil, &RequestError{View: k.View, Column: k.Name, Type: k.Type, Entity: n}
			}
		}
		if e.Request == nil {
			e.Request = map[string][]Value{}
		}
		e.Request[k.Name] = values
	}
	return p.Read(ctx, e, Ask{})
}

// Entity gives the join keys of entities in a view that is read, in the order of their names: of each the values, as they stand
// in keys.
func (p *Plan) Entity(view string, e Entities) [][]string {
	i := slices.IndexFunc(p.views, func(v *planView) bool { return v.view.Name == view })
	keys, err := p.canonical(e)
	if i < 0 || err != nil {
		return nil // they have not been read
	}
	return keys[i]
}
