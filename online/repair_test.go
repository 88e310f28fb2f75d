package online

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// repair repairs entities of the stream thing, given by their key a, of partition 0.
func (w *liveWorld) repair(view string, names ...string) Repaired {
	w.t.Helper()
	var keys [][]string
	for _, name := range names {
		keys = append(keys, []string{name, "0"})
	}
	r, err := writer(w.t, w.store, w.project, view).Repair(context.Background(), w.lake, keys, RepairOptions{Now: time.Now})
	w.fatal(err)
	return r
}

// key is the key of an entity's hash in the generation that is read.
func (w *liveWorld) key(view, name string) string {
	w.t.Helper()
	v := writer(w.t, w.store, w.project, view)
	if v.feast != nil {
		return v.feast.key([]string{name, "0"})
	}
	all, err := w.store.Generations(context.Background(), view)
	w.fatal(err)
	return keyPrefix(w.store.project, view, all.Current) + v.entityOf([]string{name, "0"})
}

// letters are the names of all entities.
func letters() []string {
	var names []string
	for name := 'a'; name < 'u'; name++ {
		names = append(names, string(name))
	}
	return names
}

// Whatever was altered by hand is as the lake has it again, and nothing else is written.
func TestRepair(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.commit(w.batch(w.topic(0), 200, false))
		w.build("all")
		want := w.served("all")
		guard, value, deleted := fieldOrder, featureField(0), fieldDeleted
		v := writer(t, s, w.project, "all")
		if v.feast != nil {
			guard, value, deleted = v.feast.guard, v.feast.fields[0], v.feast.time
		}
		alter := func(name string, fields ...any) { w.fatal(s.redis.HSet(ctx, w.key("all", name), fields...).Err()) }
		fields, err := s.redis.HGetAll(ctx, w.key("all", "a")).Result() // which the lake knows, and the other one not
		w.fatal(err)
		for name, text := range fields {
			alter("nobody", name, text)
		}
		alter("a", value, "altered", featureField(9), "what no view has")
		w.fatal(s.redis.Del(ctx, w.key("all", "b")).Err())
		alter("c", guard, "no guard"+strings.Repeat(" ", 60), value, "altered")
		alter("d", deleted, "altered")
		order, err := s.redis.HGet(ctx, w.key("all", "e"), guard).Result()
		w.fatal(err)
		alter("e", guard, "9"+order[1:], value, "altered") // of an event time to come, at an offset that the lake has
		w.fatal(s.redis.HDel(ctx, w.key("all", "f"), value).Err())
		alter("h", value, "altered") // and isn't asked for
		h := strings.TrimPrefix(w.key("all", "h"), keyPrefix(s.project, "all", 1))
		other := w.served("all")[h]

		r := w.repair("all", "a", "b", "c", "d", "e", "f", "g", "nobody", "a", "nor this one")
		if r != (Repaired{Generation: 1, Written: 7, Removed: 2}) {
			t.Errorf("did %+v", r)
		}
		got := w.served("all")
		if got[h] != other {
			t.Error("an entity that wasn't asked for is written")
		}
		got[h] = want[h]
		if !maps.Equal(got, want) {
			for key := range want {
				if got[key] != want[key] {
					t.Errorf("%s is\n%s\nwant\n%s", key, got[key], want[key])
				}
			}
			t.Errorf("there are %d entities, want %d", len(got), len(want))
		}
		if left := keys(t, s, globEscape(w.key("all", "nobody"))); v.feast == nil && len(left) > 0 {
			t.Errorf("left are %v", left)
		}
	})
}

// A hash that is repaired expires as one that is written does.
func TestRepairedExpires(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := newLiveWorld(t, s), context.Background()
		built(t, s, writer(t, s, w.project, "short"), w.lake)
		w.commit(batchOf(t, w.project.Stream("thing"), 0, []string{event(1, "a", 0, int(time.Since(base)/time.Second)-10, "updated", `,"n":1`)}))
		if r := w.repair("short", "a"); r.Written != 1 {
			t.Fatalf("did %+v", r)
		}
		left, err := s.redis.PTTL(ctx, w.key("short", "a")).Result()
		w.fatal(err)
		if left < 59*time.Minute || left > time.Hour {
			t.Errorf("it expires in %s, want an hour less ten seconds", left)
		}
	})
}

// What a worker has written of changes that the lake doesn't have yet stays.
func TestRepairBesideWorker(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.commit(w.batch(w.topic(0), 200, false))
		w.build("all")
		ahead := w.batch(w.topic(0), 60, false)
		w.write(w.live, ahead) // without a lease: nobody is waited for
		names := letters()
		before := w.served("all")
		r := w.repair("all", names...)
		if r.Written+r.Ahead != int64(len(names)) || !w.patches && r.Ahead == 0 {
			t.Errorf("did %+v", r)
		}
		if now := w.served("all"); !maps.Equal(now, before) {
			t.Errorf("what a worker wrote has changed: %v\nwant %v", now, before)
		}
		// Of a worker that commits what was lost is made up for as well.
		w.fatal(s.Lease(ctx, "worker"))
		w.fatal(s.redis.Del(ctx, w.key("all", "a")).Err())
		go func() {
			time.Sleep(10 * poll)
			w.commit(ahead)
		}()
		if r := w.repair("all", names...); r.Written != int64(len(names)) {
			t.Errorf("did %+v", r)
		}
		w.fatal(s.Release(ctx, "worker"))
		w.check("repaired beside a worker", "all")
	})
}

// Entities are repaired while a worker writes them on.
func TestRepairWhileWritten(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.commit(w.batch(w.topic(0), 200, false))
		w.build("all")
		w.fatal(s.Lease(ctx, "worker"))
		value := featureField(0)
		if v := writer(t, s, w.project, "all"); v.feast != nil {
			value = v.feast.fields[0]
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 12 {
				b := w.batch(w.topic(0), 10, false)
				w.write(w.live, b)
				w.commit(b)
				w.fatal(s.Lease(ctx, "worker"))
			}
		}()
		names := letters()
		for i, writing := 0, true; writing; i++ {
			select {
			case <-done:
				writing = false
			default:
				name := names[i%len(names)]
				w.fatal(s.redis.HSet(ctx, w.key("all", name), value, "altered").Err())
				w.repair("all", name, names[(i+1)%len(names)])
			}
		}
		if r := w.repair("all", names...); r.Ahead != 0 {
			t.Errorf("did %+v", r)
		}
		w.fatal(s.Release(ctx, "worker"))
		w.check("repaired while it was written", "all")
	})
}

// Entities of a generation that is built beside, or was left unfinished, are right once that is read.
func TestRepairBesideBuild(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		w.name = func() string { return fmt.Sprintf("k%d", w.events) }
		w.commit(w.batch(w.topic(0), 3000, false))
		w.build("all")
		view := writer(t, s, w.project, "all")
		g := killed(t, s, view, w.lake, time.Now)
		abandon(t, s, "all", g)
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprintf("k%d", i))
			w.fatal(s.redis.Del(ctx, w.key("all", names[i])).Err())
		}
		w.repair("all", names...)
		var r resumed
		next, err := view.Build(ctx, w.lake, r.options(time.Now, func() { w.repair("all", names...) }))
		w.fatal(err)
		w.fatal(s.Switch(ctx, "all", next))
		w.check("built on", "all")
	})
}

// An entity of a windowed view is made anew of the events that the lake has, and those that a worker brings count once.
func TestRepairTiles(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		t.Run(fmt.Sprint("keyed ", keyed), func(t *testing.T) {
			eachStore(t, func(t *testing.T, s *Store) {
				w, ctx := newTileWorld(t, s, keyed, 3), context.Background()
				live := w.open()
				produce := func(events int) *feature.Batch {
					from := len(w.topics[0])
					for range events {
						w.produceAny(0)
					}
					return w.batch(0, from, len(w.topics[0]))
				}
				follow := func() {
					at := map[feature.Partition]int64{w.partition(0): int64(len(w.topics[0]))}
					w.fatal(live.Follow(ctx, map[string]map[feature.Partition]int64{"thing": at}, true))
				}
				repair := func() Repaired {
					var asked [][]string
					for who := 'a'; who < 'h'; who++ {
						asked = append(asked, []string{string(who)})
					}
					r, err := writer(t, s, w.project, "all").Repair(ctx, w.lake, asked, RepairOptions{Now: w.clock})
					w.fatal(err)
					return r
				}
				commitTo(t, w.lake, produce(80))
				w.build("all")
				w.build("few")
				b := produce(60)
				commitTo(t, w.lake, b)
				w.write(live, b)
				follow()
				key := func(who string) string { return keyPrefix(s.project, "all", 1) + entityText("who", []string{who}) }
				text, err := s.redis.Get(ctx, key("b")).Result()
				w.fatal(err)
				header, _ := headerOf(text)
				another, err := s.redis.Get(ctx, key("c")).Result()
				w.fatal(err)
				w.fatal(s.redis.Del(ctx, key("a")).Err())
				w.fatal(s.redis.Set(ctx, key("b"), header+another[len(another)/2:], 0).Err())
				w.fatal(s.redis.Set(ctx, key("c"), "something else", 0).Err())
				w.fatal(s.redis.Set(ctx, key("d"), another, time.Hour).Err())
				w.fatal(s.redis.Set(ctx, key("g"), text, time.Hour).Err()) // which has no events
				if r := repair(); r != (Repaired{Generation: 1, Written: 6, Removed: 1}) {
					t.Errorf("did %+v", r)
				}
				w.check("repaired", w.facts(), w.now)
				for _, again := range []int{80, 100, 0} { // a worker that comes again to events that are in the strings
					w.write(live, w.batch(0, again, len(w.topics[0])))
				}
				w.check("and written again", w.facts(), w.now)

				// A worker is ahead of the lake: without a lease what it wrote is left, and else its commit is waited for.
				b = produce(30)
				w.write(live, b)
				if r := repair(); keyed && r.Ahead == 0 {
					t.Errorf("did %+v", r)
				}
				w.fatal(s.Lease(ctx, "worker"))
				w.fatal(s.redis.Del(ctx, key("a")).Err())
				go func() {
					time.Sleep(10 * poll)
					commitTo(t, w.lake, b)
				}()
				if r := repair(); keyed && r != (Repaired{Generation: 1, Written: 6, Removed: 1}) {
					t.Errorf("did %+v", r)
				}
				follow()
				w.check("beside a worker", w.facts(), w.now)
				done := make(chan struct{})
				go func() {
					defer close(done)
					for range 8 {
						b := produce(10)
						w.write(live, b)
						commitTo(t, w.lake, b)
						follow()
						w.fatal(s.Lease(ctx, "worker"))
					}
				}()
				for writing := true; writing; {
					select {
					case <-done:
						writing = false
					default:
					}
					repair()
				}
				w.fatal(s.Release(ctx, "worker"))
				w.check("while it was written", w.facts(), w.now)
				all, err := s.Generations(ctx, "all")
				if err != nil || !slices.ContainsFunc(all.All, func(g Generation) bool { return g.Number == 1 }) {
					t.Errorf("another generation is read: %v, %v", all, err)
				}
			})
		})
	}
}
