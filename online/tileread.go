package online

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// tiled is the layout of a windowed view: one string an entity, whose tiles are put together as of the reader's clock. An
// entity without one is an entity without events, which is known to have none.
type tiled struct {
	*viewRead
	plan     *tilePlan
	base     map[string]int64 // of the generation
	features []tiledFeature   // that are read
}

type tiledFeature struct {
	aggregate int
	window    time.Duration
}

// newTiled makes the layout of a view of which all features are known when the first entity is decoded.
func newTiled(p *feature.Project, v *viewRead, g Generation) *tiled {
	return &tiled{viewRead: v, plan: newTilePlan(p, v.view), base: g.Base}
}

func (t *tiled) ask(ctx context.Context, p redis.Pipeliner, key string) redis.Cmder {
	return p.MGet(ctx, key) // of a key that isn't there GET would be an error
}

func (t *tiled) decode(answer redis.Cmder, now int64, places []int, row []Feature) error {
	text, _ := answer.(*redis.SliceCmd).Val()[0].(string)
	e, err := t.plan.decode(text)
	if err != nil {
		return err
	}
	for len(t.features) < len(t.viewRead.features) {
		t.features = append(t.features, t.find(t.viewRead.features[len(t.features)]))
	}
	seen := e.known && e.newest >= now-t.plan.widest
	for i, place := range places {
		f, of := &row[place], t.features[i]
		f.Status = Present
		if f.Value.Text, f.Value.Null = t.plan.value(e, of.aggregate, of.window, now); f.Value.Null {
			f.Status, f.Value.Text = NullValue, ""
		}
		if seen {
			f.EventTime = time.UnixMicro(e.newest).UTC()
		}
	}
	return nil
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

// guards are the offsets that an entity's values went up to when it was read, by the partitions of its stream: its own guards,
// and the generation's base where it has none. A partition that neither knows had no events.
func (t *tiled) guards(answer redis.Cmder) (map[feature.Partition]int64, error) {
	text, _ := answer.(*redis.SliceCmd).Val()[0].(string)
	own, err := readGuards(text)
	if err != nil {
		return nil, err
	}
	next := map[feature.Partition]int64{}
	for text, offset := range t.base {
		if p, ok := parsePartition(text); ok {
			next[p] = offset
		}
	}
	topic := feature.TopicHash(t.stream.Topic)
	for _, g := range own {
		if g.topic == topic {
			next[feature.Partition{Topic: t.stream.Topic, Index: g.partition}] = g.next
		}
	}
	return next, nil
}
