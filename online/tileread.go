package online

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// tiled is the layout of a windowed view: one string an entity, whose tiles are put together as of the reader's clock. An
// entity without one is an entity without events, which is known to have none.
type tiled struct {
	*viewRead
	plan  *tilePlan
	reads []tiledFeature // by feature that is read
}

type tiledFeature struct {
	aggregate int
	window    time.Duration
}

func newTiled(v *viewRead) *tiled {
	t := &tiled{viewRead: v, plan: newTilePlan(v.view, v.stream, v.entity)}
	for _, name := range v.features {
		t.reads = append(t.reads, t.find(name))
	}
	return t
}

func (t *tiled) ask(ctx context.Context, p redis.Pipeliner, key string, _ int64, _ bool) redis.Cmder {
	return p.Get(ctx, key)
}

func (t *tiled) decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error) {
	text := answer.(*redis.StringCmd).Val()
	trace := Trace(text != "")
	e, err := t.plan.decode(text)
	if err != nil {
		return trace, err
	}
	if seen != nil {
		if seen.Guards, err = t.guards(text); err != nil {
			return trace, err
		}
	}
	recent := e.known && e.newest >= now-t.plan.widest
	for i, place := range t.places {
		f, of := &row[place], t.reads[i]
		f.Status = Present
		if f.Value.Text, f.Value.Null = t.plan.value(e, of.aggregate, of.window, now); f.Value.Null {
			f.Status, f.Value.Text = NullValue, ""
		}
		if recent {
			f.EventTime = time.UnixMicro(e.newest).UTC()
		}
	}
	return trace, nil
}

// find is the aggregate and window of a feature.
func (t *tiled) find(name string) tiledFeature {
	for i, a := range t.view.Aggregates {
		if n := slices.Index(a.FeatureNames(), name); n >= 0 {
			return tiledFeature{i, a.Windows[n]}
		}
	}
	panic(fmt.Sprintf("view %s has no feature %s", t.view.Name, name))
}

// guards are the entity's own guards, the offsets that its values go up to, by the partitions of its stream. Where it has none, they go
// up to the base of the generation.
func (t *tiled) guards(text string) (map[string]string, error) {
	own, err := readGuards(text)
	if err != nil {
		return nil, err
	}
	next := map[string]string{}
	topic := feature.TopicHash(t.stream.Topic)
	for _, g := range own {
		if g.topic == topic {
			next[partitionText(feature.Partition{Topic: t.stream.Topic, Index: g.partition})] = strconv.FormatInt(g.next, 10)
		}
	}
	return next, nil
}
