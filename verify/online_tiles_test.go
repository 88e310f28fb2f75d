package verify

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// newTilesWorld is a world of an event stream with windowed views: one with every aggregate, and two of which each entity's
// string is known by heart.
func newTilesWorld(t *testing.T) *onlineWorld {
	t.Helper()
	w := onlineWorldOf(t, feature.FullPayload)
	def := testStream(feature.FullPayload)
	def.Name, def.Topic, def.Kind, def.Track, def.Keyed = "fact", "fact.v1", feature.EventStream, nil, true
	w.def, w.from = def, map[string]int64{}
	w.open()
	hour, day := time.Hour, 24*time.Hour
	every := &feature.View{Name: "every", Entity: "thing", Stream: "fact"}
	for _, column := range []string{"u", "x", "m", "s", "day", "yes"} {
		for _, fn := range []feature.Fn{feature.Count, feature.Sum, feature.Avg, feature.Min, feature.Max, feature.First, feature.Last, feature.Distinct} {
			if (fn == feature.Sum || fn == feature.Avg) && !strings.Contains("uxm", column) {
				continue
			}
			every.Aggregates = append(every.Aggregates, feature.Aggregate{
				Name: fmt.Sprintf("%s_%s", fn, column), Fn: fn, Column: column, Windows: []time.Duration{hour, 7 * day, 30 * day},
			})
		}
	}
	every.Aggregates[0].Where = "s <> 'B'"
	w.project = &feature.Project{
		Name: w.project.Name, Streams: []*feature.Stream{def}, Entities: w.project.Entities,
		Views: []*feature.View{
			every,
			{Name: "one", Entity: "thing", Stream: "fact", Aggregates: []feature.Aggregate{{Name: "n", Fn: feature.Count, Windows: []time.Duration{day}}}},
			{Name: "set", Entity: "thing", Stream: "fact", Aggregates: []feature.Aggregate{{Name: "n", Fn: feature.Distinct, Column: "s", Windows: []time.Duration{day}}}},
		},
	}
	w.restart()
	return w
}

// facts makes events of some entities in a topic.
func (w *onlineWorld) facts(r *rand.Rand, topic string, n int) []change {
	var all []change
	for i := range n {
		values := map[string]any{}
		for column, from := range map[string][]any{
			"u": {nil, 0, 1, -1, 128, int64(9223372036854775807), int64(-9223372036854775808)},
			"x": {nil, 0.0, -2.5, 0.1, 1e300, 3.0},
			"m": {nil, "0", "-0.0001", "12.5", "99999999999999.9999"},
			"s": {nil, "", "A", "B", "é", strings.Repeat("long ", 30)}, "day": {nil, "2026-02-28", "1969-12-31"}, "yes": {nil, true, false},
		} {
			if v := from[r.IntN(len(from))]; v != nil {
				values[column] = v
			}
		}
		c := change{
			a: string(rune('a' + r.IntN(5))), b: int64(r.IntN(2)), at: time.Now().Unix() - r.Int64N(40*86400), topic: topic,
			offset: w.from[topic] + int64(i), values: values,
		}
		if r.IntN(2) == 0 {
			c.at, c.sequence = time.Now().Unix()-r.Int64N(3)*3600, r.IntN(3)
		}
		all = append(all, c)
	}
	return all
}

// What writers and builds make of random events has no difference, live, rebuilt and of files.
func TestOnlineTiles(t *testing.T) {
	w, r := newTilesWorld(t), random(t)
	w.take(true, false, w.facts(r, "fact.v1", 60)...)
	w.take(true, false, w.facts(r, "file:abc", 30)...)
	for _, view := range []string{"every", "one", "set"} {
		w.build(view)
	}
	for range 4 {
		w.take(true, true, w.facts(r, "fact.v1", 30)...)
		for _, view := range []string{"every", "one", "set"} {
			report := w.verifyOnline(view, Options{Buckets: 1 + r.IntN(3)})
			cleanOnline(t, report)
			if report.Entities < 8 || report.Values != report.Entities*int64(len(w.project.View(view).FeatureNames())) {
				t.Errorf("report %+v", report)
			}
		}
	}
	w.build("every")
	cleanOnline(t, w.verifyOnline("every", Options{}))
}

// Whatever is altered by hand is named: a tile, a guard, a value, the newest time, an entity too few or too many.
func TestOnlineTilesAltered(t *testing.T) {
	w := newTilesWorld(t)
	ctx := context.Background()
	for _, view := range []string{"one", "set"} {
		w.build(view)
	}
	at := time.Now().Unix() - 100
	w.take(true, true, change{a: "k", b: 1, at: at, topic: "fact.v1", offset: 0, values: map[string]any{"s": "A"}})
	for _, c := range []struct {
		name, view string
		alter      func(text []byte) []byte
		want       Kind
		says       string
	}{
		{"a tile", "one", func(b []byte) []byte { b[len(b)-1]++; return b }, WrongTile, "the tile of 1h at 20"},
		{"a tile's time", "one", func(b []byte) []byte { b[len(b)-4] ^= 2; return b }, WrongTile, "the tile of 1h at 20"},
		{"a guard", "one", func(b []byte) []byte { b[7] = 0; return b }, WrongGuard, "its guard of "},
		{"no guard", "one", func(b []byte) []byte { b[1] = 0; return slices.Delete(b, 2, 8) }, WrongGuard, "its guard of "},
		{"a guard of another topic", "one", func(b []byte) []byte { b[2] ^= 1; b[7] = 0; return b }, WrongGuard, "its guard of "},
		{"a value", "set", func(b []byte) []byte { return []byte(strings.Replace(string(b), "A", "B", 1)) }, WrongTile, "the values of n"},
		{"the newest time", "one", func(b []byte) []byte { b[8] ^= 2; return b }, WrongValue, "its newest event time"},
		{"all of it", "one", func([]byte) []byte { return []byte("x") }, WrongValue, "none of loam's"},
		{"cut off", "one", func(b []byte) []byte { return b[:len(b)-1] }, WrongValue, "none of loam's"},
	} {
		g := w.verifyOnline(c.view, Options{})
		cleanOnline(t, g)
		key := fmt.Sprintf("%s:%s:%d:{thing|k|1}", w.project.Name, c.view, g.Generation)
		was, err := w.redis.Get(ctx, key).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.redis.Set(ctx, key, c.alter(slices.Clone(was)), 0).Err(); err != nil {
			t.Fatal(err)
		}
		r := w.verifyOnline(c.view, Options{})
		if r.NotSettled != 0 || r.ByKind[c.want] == 0 || r.First[0].Key != "k|1" || !strings.Contains(text(r.Findings), c.says) {
			t.Errorf("%s: %+v\n%s", c.name, r, text(r.Findings))
		}
		if err := w.redis.Set(ctx, key, was, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	g := w.verifyOnline("one", Options{}).Generation
	key := func(a string) string { return fmt.Sprintf("%s:one:%d:{thing|%s|1}", w.project.Name, g, a) }
	if err := w.redis.Rename(ctx, key("k"), key("other")).Err(); err != nil {
		t.Fatal(err)
	}
	r := w.verifyOnline("one", Options{})
	if r.Total != 2 || r.ByKind[MissingEntity] != 1 || r.ByKind[ExtraEntity] != 1 {
		t.Errorf("%+v\n%s", r, text(r.Findings))
	}
	// After its windows are over the entity may be gone.
	later := w.verifyOnline("one", Options{Now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	if later.ByKind[MissingEntity] != 0 {
		t.Errorf("%+v", later)
	}
}

// What one side alone has taken is not settled, and compared again after the next commit; so is what a file brought until
// a generation is built that holds it.
func TestOnlineTilesSettle(t *testing.T) {
	w := newTilesWorld(t)
	w.build("one")
	offset := int64(0)
	next := func(a string) change {
		offset++
		return change{a: a, b: 1, at: time.Now().Unix() - 50, topic: "fact.v1", offset: offset - 1}
	}
	w.take(true, true, next("a"), next("b"))
	cleanOnline(t, w.verifyOnline("one", Options{}))

	ahead := []change{next("a"), next("new")}
	w.take(false, true, ahead...)
	if r := w.verifyOnline("one", Options{}); r.Total != 0 || r.NotSettled != 2 {
		t.Errorf("Redis is ahead: %+v\n%s", r, text(r.Findings))
	}
	cleanOnline(t, w.verifyOnline("one", Options{Wait: func(context.Context) error { w.take(true, false, ahead...); return nil }}))

	behind := []change{next("a"), next("newer")}
	w.take(true, false, behind...)
	if r := w.verifyOnline("one", Options{}); r.Total != 0 || r.NotSettled != 2 {
		t.Errorf("the lake is ahead: %+v\n%s", r, text(r.Findings))
	}
	if err := w.live.Settle(context.Background()); err != nil {
		t.Fatal(err)
	}
	cleanOnline(t, w.verifyOnline("one", Options{}))

	w.take(true, false, change{a: "b", b: 1, at: time.Now().Unix() - 60, topic: "file:abc", offset: 0})
	if r := w.verifyOnline("one", Options{}); r.Total != 0 || r.NotSettled != 1 {
		t.Errorf("a file was taken: %+v\n%s", r, text(r.Findings))
	}
	// What is not settled doesn't hide what is wrong.
	g := w.verifyOnline("one", Options{}).Generation
	if err := w.redis.Del(context.Background(), fmt.Sprintf("%s:one:%d:{thing|a|1}", w.project.Name, g)).Err(); err != nil {
		t.Fatal(err)
	}
	if r := w.verifyOnline("one", Options{}); r.Total != 1 || r.ByKind[MissingEntity] != 1 || r.NotSettled != 1 {
		t.Errorf("%+v\n%s", r, text(r.Findings))
	}
	w.build("one")
	cleanOnline(t, w.verifyOnline("one", Options{}))
}
