package online

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// fullStore is a store on a Redis of the test's own, and what says how much memory that may take, 0 for all there is.
func fullStore(t *testing.T) (s *Store, maxmemory func(bytes string)) {
	t.Helper()
	s, err := Open(context.Background(), "test", startServer(t).address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, func(bytes string) {
		t.Helper()
		if err := s.redis.ConfigSet(context.Background(), "maxmemory", bytes).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// dumps are all keys with what they hold.
func dumps(t *testing.T, s *Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, key := range keys(t, s, "*") {
		text, err := s.redis.Dump(context.Background(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		all[key] = text
	}
	return all
}

// Where memory is short a write is refused whole, and what stands there is read as before; once there is room it is made. Tombstones of
// events that carry the whole state are taken.
func TestFullRedis(t *testing.T) {
	s, maxmemory := fullStore(t)
	ctx := context.Background()
	for _, layout := range []struct{ name, stream, views string }{
		{"states", testProject, testViews}, {"patches", patchProject, patchViews}, {"feast", testProject, feastViews},
	} {
		t.Run(layout.name, func(t *testing.T) {
			maxmemory("0")
			if err := s.redis.FlushAll(ctx).Err(); err != nil {
				t.Fatal(err)
			}
			p := loadFiles(t, layout.stream, layout.views)
			stream, l := p.Stream("thing"), openLake(t, p)
			before := batchOf(t, stream, 0, []string{event(0, "a", 1, 0, "updated", `,"n":1`), event(1, "b", 1, 0, "updated", `,"n":2`), event(2, "c", 1, 0, "updated", `,"n":3`)})
			defer before.Release()
			commitTo(t, l, before)
			w := writer(t, s, p, "all")
			number := []int64{built(t, s, w, l).Number}
			write := func(b *feature.Batch) error {
				_, err := w.Write(ctx, number, b.Rows)
				return err
			}
			served := func(when string, want ...string) {
				t.Helper()
				for i, a := range []string{"a", "b", "c", "d"} {
					if got := show(t, s, p, base, a, "1", "all:n"); got != "n="+want[i] {
						t.Errorf("%s: of %s is served %s, want %s", when, a, got, want[i])
					}
				}
			}
			was := dumps(t, s)
			maxmemory("1")
			update := batchOf(t, stream, 3, []string{event(3, "a", 1, 10, "updated", `,"n":10`), event(4, "d", 1, 10, "updated", `,"n":40`), event(5, "c", 1, 10, "updated", `,"n":null`)})
			defer update.Release()
			if err := write(update); err == nil || !strings.Contains(err.Error(), "OOM") {
				t.Errorf("a write to a full Redis: %v", err)
			}
			if now := dumps(t, s); !maps.Equal(now, was) {
				t.Errorf("a write that was refused has left\n%q\nof\n%q", now, was)
			}
			served("full", "1", "2", "3", "NOT_FOUND")
			deletion := batchOf(t, stream, 6, []string{event(6, "b", 1, 20, "deleted", "")})
			defer deletion.Release()
			switch err := write(deletion); {
			case layout.name != "patches" && err != nil:
				t.Errorf("a delete on a full Redis: %v", err)
			case layout.name == "patches" && (err == nil || !strings.Contains(err.Error(), "OOM")): // it would take more: guards go only after _d was set
				t.Errorf("a delete on a full Redis: %v", err)
			}
			maxmemory("0")
			for _, b := range []*feature.Batch{deletion, update} {
				if err := write(b); err != nil {
					t.Errorf("once there is room: %v", err)
				}
			}
			served("once there is room", "10", "NOT_FOUND", "NULL_VALUE", "40")
		})
	}
}

// The same of windows: an event that was refused counts once, when there is room.
func TestFullRedisOfTiles(t *testing.T) {
	s, maxmemory := fullStore(t)
	w := tileFaults(t, s, 100)
	live := w.open()
	was := dumps(t, s)
	maxmemory("1")
	b := w.batch(0, 50, 100)
	for range 3 {
		if _, err := live.Write(context.Background(), b, allKnown); err == nil || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("a write to a full Redis: %v", err)
		}
	}
	if now := dumps(t, s); !maps.Equal(now, was) {
		t.Errorf("a write that was refused has left\n%q\nof\n%q", now, was)
	}
	w.check("full", w.facts()[:50], w.now)
	maxmemory("0")
	for range 2 { // the second time it changes nothing
		w.write(live, b)
	}
	commitTo(t, w.lake, b)
	w.check("once there is room", w.facts(), w.now)
}
