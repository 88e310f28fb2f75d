package online

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// ErrAway: Redis doesn't answer, or can't serve now.
var ErrAway = errors.New("the online store does not answer")

// Client reads feature values. It is safe for concurrent use.
//
// A read is one round trip. What generation of a view is read is known from the read before, and asked for again in the same
// pipeline, behind the entities: generations are removed only once `current` names another, so values and unknown entities are of
// a generation that was still there after they had been read. Where it was another one all is read again. Masters of a cluster
// answer beside each other, so there an entity that is unknown is one only where `current` stands after that, too, which
// is a round trip more. Whether Redis restarted is known of each connection from when it was made ([Store.meet]), and a process
// ends with its connections. So no read gives a value of another definition, of an old dump or of a Redis that restarted empty.
type Client struct {
	store   *Store
	project *feature.Project
	now     func() time.Time
	views   map[string]*servedView // of views that are in Redis
	engines *engines
}

// NewClient makes a client of the project's views.
func NewClient(s *Store, p *feature.Project, now func() time.Time) *Client {
	c := &Client{store: s, project: p, now: now, views: map[string]*servedView{}, engines: newEngines()}
	for _, v := range p.Views {
		if p.Unserved(v) == "" {
			c.views[v.Name] = &servedView{name: v.Name, definition: p.ViewDefinition(v).Hash, key: generationsKey(s.project, v.Name)}
		}
	}
	return c
}

// Close frees what the client holds, once no read is on its way. The store stays open.
func (c *Client) Close() error { return c.engines.close() }

// Views are the names of the views that can be read once they have a generation, sorted.
func (c *Client) Views() []string { return slices.Sorted(maps.Keys(c.views)) }

// Ready asks Redis whether a view can be read: nil, [ErrUnavailable] or [ErrAway].
func (c *Client) Ready(ctx context.Context, view string) error {
	if why := c.unserved(view); why != nil {
		return why
	}
	_, err := c.views[view].read(ctx, c.store)
	return err
}

// unserved says why a view has no online values, nil where it has.
func (c *Client) unserved(view string) error {
	v := c.project.View(view)
	if v == nil {
		return fmt.Errorf("there is no feature view %s", view)
	}
	if why := c.project.Unserved(v); why != "" {
		return fmt.Errorf("feature view %s: %s", view, why)
	}
	return nil
}

// servedView knows which generation of a view is read.
type servedView struct {
	name       string
	definition string                   // hash of the view's definition
	key        string                   // of the hash that tells of its generations
	last       atomic.Pointer[standing] // nil where it is not known
}

// standing is a generation that can be read.
type standing struct {
	Generation
	field  string // its field in the hash of generations
	prefix string // of its keys
}

// current gives the generation as it was last known, and asks where it isn't.
func (v *servedView) current(ctx context.Context, s *Store) (*standing, error) {
	if g := v.last.Load(); g != nil {
		return g, nil
	}
	return v.read(ctx, s)
}

// read asks which generation is read.
func (v *servedView) read(ctx context.Context, s *Store) (*standing, error) {
	unavailable := fmt.Errorf("feature view %s: %w: run `loam materialize --view %s`, or the worker", v.name, ErrUnavailable, v.name)
	all, err := s.Generations(ctx, v.name)
	if err != nil {
		return nil, err
	}
	one, ok := s.Usable(all, v.definition)
	if !ok {
		return nil, unavailable
	}
	g := &standing{Generation: one, field: strconv.FormatInt(one.Number, 10), prefix: keyPrefix(s.project, v.name, one.Number)}
	v.last.Store(g)
	return g, nil
}

// ask adds to a pipeline what tells whether a generation is the one that is read.
func (v *servedView) ask(ctx context.Context, p redis.Pipeliner, g *standing) *redis.SliceCmd {
	return p.HMGet(ctx, v.key, fieldCurrent, g.field)
}

// stands reports whether a generation was the one that is read, by what was answered after it was read.
func (v *servedView) stands(s *Store, g *standing, answer *redis.SliceCmd) bool {
	raw := answer.Val()
	if answer.Err() == nil && len(raw) == 2 && raw[0] == g.field && raw[1] == g.text && s.holds(g.Generation) {
		return true
	}
	v.last.CompareAndSwap(g, nil)
	return false
}

// awayError is [ErrAway] in words of its own.
type awayError struct{ error }

func (e awayError) Unwrap() error        { return e.error }
func (e awayError) Is(target error) bool { return target == ErrAway }

// away makes [ErrAway] of an error of Redis that another try may not meet, and leaves others.
func away(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var timeout net.Error
	switch {
	case errors.Is(err, ErrAway):
		return err
	case errors.Is(err, errReplica), errors.As(err, &timeout), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, redis.ErrClosed), errors.Is(err, redis.ErrPoolTimeout):
	case redis.HasErrorPrefix(err, "LOADING"), redis.HasErrorPrefix(err, "MASTERDOWN"), redis.HasErrorPrefix(err, "CLUSTERDOWN"),
		redis.HasErrorPrefix(err, "TRYAGAIN"), redis.HasErrorPrefix(err, "MOVED"), redis.HasErrorPrefix(err, "ASK"), redis.HasErrorPrefix(err, "READONLY"), redis.HasErrorPrefix(err, "BUSY"):
	case redis.HasErrorPrefix(err, "ERR max number of clients"):
	case redis.HasErrorPrefix(err, "NOAUTH"), redis.HasErrorPrefix(err, "WRONGPASS"), redis.HasErrorPrefix(err, "NOPERM"):
		return awayError{unusable(err)} // it does answer
	default:
		return err
	}
	return fmt.Errorf("%w: %w", ErrAway, err)
}
