package verify

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// onlineWorld is a world with views in a Redis.
type onlineWorld struct {
	*world
	project *feature.Project
	store   *online.Store
	redis   *redis.Client // the same one, to tamper with
	live    *online.Live
}

func newOnlineWorld(t *testing.T) *onlineWorld {
	t.Helper()
	return onlineWorldOf(t, feature.FullPayload)
}

// onlineWorldOf uses the Redis at LOAM_TEST_REDIS where that is set, else one in this process.
func onlineWorldOf(t *testing.T, payload feature.Payload) *onlineWorld {
	t.Helper()
	ctx := context.Background()
	w := &onlineWorld{world: newWorld(t, testStream(payload))}
	patches := payload == feature.PatchPayload
	of := func(column string, f feature.Feature) feature.Feature {
		if patches {
			f.Column = column
		}
		return f
	}
	typed := func(name string) feature.Feature {
		c, _ := w.def.Column(name)
		return of(name, feature.Feature{Name: name, Type: c.Type})
	}
	plain := []feature.Feature{typed("s"), typed("x"), typed("m"), typed("l"), typed("day"), typed("yes")}
	w.project = &feature.Project{
		Name:     fmt.Sprintf("test%d", time.Now().UnixNano()),
		Streams:  []*feature.Stream{w.def},
		Entities: []*feature.Entity{{Name: "thing", JoinKeys: w.def.Key}},
		Views: []*feature.View{
			{Name: "all", Entity: "thing", Stream: "thing", Features: plain},
			{Name: "calc", Entity: "thing", Stream: "thing", Features: append(slices.Clone(plain),
				of("x", feature.Feature{Name: "half", Type: feature.Type{Kind: feature.Double}, SQL: "x / 2"}),
				// An error on a row is null.
				of("s", feature.Feature{Name: "fails", Type: feature.Type{Kind: feature.Int64}, SQL: "CASE WHEN s = 'B' THEN s ELSE '7' END"}),
				of("b", feature.Feature{Name: "times", Type: feature.Type{Kind: feature.Timestamp, List: true}, SQL: "[make_timestamptz(b * 500001), NULL]"}),
				of("s", feature.Feature{Name: "words", Type: feature.Type{Kind: feature.String, List: true}, SQL: `['<a & "b">', s]`}),
			)},
			{Name: "short", Entity: "thing", Stream: "thing", TTL: time.Hour, Features: plain[:1]},
		},
	}
	if !patches {
		w.project.Views = append(w.project.Views, &feature.View{Name: "feast", Entity: "thing", Stream: "thing", Layout: feature.FeastLayout, Features: []feature.Feature{
			typed("s"), typed("x"), typed("day"), typed("yes"), typed("u"), typed("j"), {Name: "m", Type: feature.Type{Kind: feature.String}, SQL: "m::VARCHAR"},
		}})
	}
	address := os.Getenv("LOAM_TEST_REDIS")
	if address == "" {
		m := miniredis.RunT(t)
		address = m.Addr()
	}
	var err error
	if w.store, err = online.Open(ctx, w.project.Name, address); err != nil {
		t.Fatal(err)
	}
	w.redis = redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
	w.restart()
	t.Cleanup(func() { w.live.Close(); w.redis.Close(); w.store.Close() })
	return w
}

// restart opens the writer of Redis anew.
func (w *onlineWorld) restart() {
	w.t.Helper()
	if w.live != nil {
		w.live.Close()
	}
	var err error
	if w.live, err = online.NewLive(context.Background(), w.store, w.lake, w.project); err != nil {
		w.t.Fatal(err)
	}
}

// build builds a generation of a view from the lake, and switches to it.
func (w *onlineWorld) build(view string) {
	w.t.Helper()
	ctx := context.Background()
	writer, err := online.NewViewWriter(ctx, w.store, w.project, w.project.View(view))
	if err != nil {
		w.t.Fatal(err)
	}
	defer writer.Close()
	g, err := writer.Build(ctx, w.lake, online.BuildOptions{Now: time.Now})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Switch(ctx, view, g); err != nil {
		w.t.Fatal(err)
	}
}

// take gives changes to the lake, to Redis, or to both.
func (w *onlineWorld) take(toLake, toRedis bool, changes ...change) {
	w.t.Helper()
	ctx := context.Background()
	b := w.batch(changes)
	defer b.Release()
	if toRedis {
		if _, err := w.live.Write(ctx, b, w.stream.Head()); err != nil {
			w.t.Fatal(err)
		}
	}
	if toLake {
		if _, err := w.stream.Commit(ctx, b, w.stream.Head()); err != nil {
			w.t.Fatal(err)
		}
	} else {
		for _, s := range b.Spans {
			w.from[s.Topic] = s.From // the lake will take them later
		}
	}
}

func (w *onlineWorld) verifyOnline(view string, o Options) *OnlineReport {
	w.t.Helper()
	r, err := Online(context.Background(), w.lake, w.store, w.project, w.project.View(view), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func cleanOnline(t *testing.T, r *OnlineReport) {
	t.Helper()
	if !r.OK() {
		t.Fatalf("%d differences, %d not settled:\n%s", r.Total, r.NotSettled, text(r.Findings))
	}
}

// Whatever the changes, and whether they come by a build or live, Redis holds what the statements say is served.
func TestOnlineRandom(t *testing.T) {
	for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
		t.Run(string(payload), func(t *testing.T) { onlineRandom(t, onlineWorldOf(t, payload), payload == feature.PatchPayload) })
	}
}

func onlineRandom(t *testing.T, w *onlineWorld, patches bool) {
	r := random(t)
	changes := randomChanges(r, 200, patches)
	w.take(true, false, changes[:80]...)
	views := []string{"all", "calc"}
	if !patches {
		views = append(views, "feast")
	}
	for _, view := range views {
		w.build(view)
	}
	for left := changes[80:]; len(left) > 0; {
		n := min(1+r.IntN(60), len(left))
		w.take(true, true, left[:n]...)
		left = left[n:]
	}
	entities := map[string]bool{}
	for _, c := range changes {
		entities[fmt.Sprint(c.a, "|", c.b)] = true
	}
	for _, view := range views {
		for _, buckets := range []int{0, 3} {
			report := w.verifyOnline(view, Options{Buckets: buckets})
			cleanOnline(t, report)
			if int(report.Entities) != len(entities) || int(report.Values) != len(entities)*len(w.project.View(view).Features) {
				t.Errorf("report %+v, want %d entities", report, len(entities))
			}
		}
	}
}

// Every check finds what it is for.
// field is where a feature of the view all stands in hashes; the features of the view short stand first in it.
func (w *onlineWorld) field(name string) string {
	return online.FeatureField(slices.IndexFunc(w.project.View("all").Features, func(f feature.Feature) bool { return f.Name == name }))
}

func TestOnlineTampered(t *testing.T) {
	w := newOnlineWorld(t)
	odd := `o|{d} 100%`
	w.take(true, false,
		change{a: "k", b: 1, at: 1000, topic: "thing.v1", offset: 0, values: map[string]any{
			"s": "A", "x": 0.1, "m": "-0.5", "l": []any{1.5, nil, math.NaN(), math.Inf(-1)}, "day": "1969-12-31", "yes": false}},
		change{a: odd, b: -7, at: 1001, topic: "thing.v1", offset: 1, sequence: -3, values: map[string]any{"s": "B", "x": 1e300}},
		change{a: "gone", b: 1, at: 1002, topic: "thing.v1", offset: 2, deleted: true},
		change{a: "file", b: 1, at: 1003, topic: "file:abc", offset: 0, values: map[string]any{"m": "12345678901234.5678"}},
	)
	order := func(offset int64) string {
		return feature.Order{EventTime: 1000e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
	}
	for name, c := range map[string]struct {
		tamper func(key func(a string, b int) string) error
		kind   Kind
		key    string
		text   string
	}{
		"a value": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("k", 1), w.field("m"), "-0.5001").Err()
		}, WrongValue, "k|1", "it differs in m; its last change is at thing.v1/0@0"},
		"a value that is null": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("gone", 1), w.field("s"), "").Err()
		}, WrongValue, "gone|1", "it differs in s"},
		"a value that is gone": {func(key func(string, int) string) error {
			return w.redis.HDel(context.Background(), key("o%7C%7Bd%7D 100%25", -7), w.field("x")).Err()
		}, WrongValue, odd + "|-7", "it differs in x; its last change is at thing.v1/0@1"},
		"a field of no feature": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("k", 1), "other", "1").Err()
		}, WrongValue, "k|1", "it differs in other"},
		"a tombstone": {func(key func(string, int) string) error {
			return w.redis.HDel(context.Background(), key("gone", 1), "_d").Err()
		}, WrongValue, "gone|1", "it differs in _d"},
		"a guard": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("k", 1), "_v", order(1)).Err()
		}, WrongGuard, "k|1", "its guard is " + order(1) + ", and that of its last change, at thing.v1/0@0, is " + order(0) + "; it differs in _v"},
		"a guard that is no order": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("k", 1), "_v", "x").Err()
		}, WrongGuard, "k|1", "its guard is x"},
		"a missing entity": {func(key func(string, int) string) error {
			return w.redis.Del(context.Background(), key("file", 1)).Err()
		}, MissingEntity, "file|1", "Redis lacks it; its last change is at file:abc/0@0"},
		"an extra entity": {func(key func(string, int) string) error {
			return w.redis.HSet(context.Background(), key("new", 1), "_v", order(0)).Err()
		}, ExtraEntity, "new|1", "the lake doesn't know it"},
	} {
		t.Run(name, func(t *testing.T) {
			w.build("all")
			r := w.verifyOnline("all", Options{})
			cleanOnline(t, r)
			err := c.tamper(func(a string, b int) string {
				return fmt.Sprintf("%s:all:%d:{thing|%s|%d}", w.project.Name, r.Generation, a, b)
			})
			if err != nil {
				t.Fatal(err)
			}
			r = w.verifyOnline("all", Options{})
			if r.Total != 1 || r.NotSettled != 0 || r.First[0].Kind != c.kind || r.First[0].Key != c.key || !strings.Contains(r.First[0].Text, c.text) {
				t.Errorf("want %s of %q with %q, found %d, %d not settled:\n%s", c.kind, c.key, c.text, r.Total, r.NotSettled, text(r.Findings))
			}
		})
	}
	// The guard that the lake has not come to is not told from a change that is on its way, and never settles.
	w.build("all")
	g := w.verifyOnline("all", Options{}).Generation
	if err := w.redis.HSet(context.Background(), fmt.Sprintf("%s:all:%d:{thing|k|1}", w.project.Name, g), "_v", order(3)).Err(); err != nil {
		t.Fatal(err)
	}
	waits := 0
	r := w.verifyOnline("all", Options{Wait: func(context.Context) error { waits++; return nil }})
	if r.OK() || r.Total != 0 || r.NotSettled != 1 || waits != 3 || r.Compared != 4 {
		t.Errorf("after %d waits: %+v", waits, r)
	}
}

// What one side alone has taken is compared again after the next commit.
func TestOnlineSettles(t *testing.T) {
	w := newOnlineWorld(t)
	made := int64(0)
	next := func(a string, at int64) change {
		made++
		return change{a: a, b: 1, at: at, topic: "thing.v1", offset: made - 1, values: map[string]any{"s": fmt.Sprint(made)}}
	}
	w.take(true, false, next("a", 10), next("b", 10), next("c", 10))
	w.build("all")
	cleanOnline(t, w.verifyOnline("all", Options{}))
	both := []change{next("a", 20), next("new", 20), next("b", 5)} // the last one is late, and changes nothing

	w.take(false, true, both...)
	if r := w.verifyOnline("all", Options{}); r.NotSettled != 2 || r.Total != 0 || r.OK() {
		t.Errorf("Redis is ahead: %+v\n%s", r, text(r.Findings))
	}
	r := w.verifyOnline("all", Options{Wait: func(context.Context) error { w.take(true, false, both...); return nil }})
	cleanOnline(t, r)
	if r.Compared != 2 || r.Entities != 3 {
		t.Errorf("report %+v", r)
	}

	both = []change{next("a", 30), next("newer", 30), next("b", 6)}
	w.take(true, false, both...)
	if r := w.verifyOnline("all", Options{}); r.NotSettled != 2 || r.Total != 0 {
		t.Errorf("the lake is ahead: %+v\n%s", r, text(r.Findings))
	}
	waits := 0
	r = w.verifyOnline("all", Options{Wait: func(context.Context) error {
		if waits++; waits == 2 {
			return w.live.Settle(context.Background())
		}
		return nil
	}})
	cleanOnline(t, r)
	if r.Compared != 3 {
		t.Errorf("report %+v", r)
	}

	// What is on its way doesn't hide what is wrong.
	w.take(false, true, next("a", 40))
	key := fmt.Sprintf("%s:all:%d:{thing|%s|1}", w.project.Name, r.Generation, "c")
	if err := w.redis.HSet(context.Background(), key, w.field("s"), "x").Err(); err != nil {
		t.Fatal(err)
	}
	if r = w.verifyOnline("all", Options{}); r.NotSettled != 1 || r.ByKind[WrongValue] != 1 || r.Total != 1 {
		t.Errorf("report %+v\n%s", r, text(r.Findings))
	}
	gone := errors.New("gone")
	_, err := Online(context.Background(), w.lake, w.store, w.project, w.project.View("all"), Options{Wait: func(context.Context) error { return gone }})
	if !errors.Is(err, gone) {
		t.Errorf("the wait failed: %v", err)
	}
}

// A hash may be gone once its time to live is over, and not before.
func TestOnlineTimeToLive(t *testing.T) {
	w := newOnlineWorld(t)
	now := time.Now()
	w.take(true, false,
		change{a: "young", b: 1, at: now.Unix() - 60, topic: "thing.v1", offset: 0, values: map[string]any{"s": "A"}},
		change{a: "old", b: 1, at: now.Unix() - 7200, topic: "thing.v1", offset: 1, values: map[string]any{"s": "A"}},
		change{a: "deleted", b: 1, at: now.Unix() - 7200, topic: "thing.v1", offset: 2, deleted: true},
	)
	w.build("short")
	r := w.verifyOnline("short", Options{})
	cleanOnline(t, r)
	key := func(a string) string { return fmt.Sprintf("%s:short:%d:{thing|%s|1}", w.project.Name, r.Generation, a) }
	ctx := context.Background()
	if err := w.redis.Del(ctx, key("old"), key("deleted"), key("young")).Err(); err != nil {
		t.Fatal(err)
	}
	if r = w.verifyOnline("short", Options{}); r.Total != 1 || r.ByKind[MissingEntity] != 1 || r.First[0].Key != "young|1" {
		t.Errorf("report %+v\n%s", r, text(r.Findings))
	}
	cleanOnline(t, w.verifyOnline("short", Options{Now: func() time.Time { return now.Add(time.Hour) }}))
}

func TestOnlineUnavailable(t *testing.T) {
	w := newOnlineWorld(t)
	view := w.project.View("all")
	_, err := Online(context.Background(), w.lake, w.store, w.project, view, Options{})
	if !errors.Is(err, online.ErrUnavailable) || !strings.Contains(err.Error(), "loam materialize --view all") {
		t.Errorf("no generation: %v", err)
	}
	w.build("all")
	view.Features = view.Features[1:]
	if _, err = Online(context.Background(), w.lake, w.store, w.project, view, Options{}); !errors.Is(err, online.ErrUnavailable) {
		t.Errorf("another definition: %v", err)
	}
	view.OnDemand = &feature.OnDemand{}
	if _, err = Online(context.Background(), w.lake, w.store, w.project, view, Options{}); err == nil || !strings.Contains(err.Error(), "a view on demand") {
		t.Errorf("a view on demand: %v", err)
	}
}

func TestDecimalText(t *testing.T) {
	for _, c := range []struct {
		digits string
		scale  int
		want   string
	}{
		{"0", 0, "0"}, {"-12", 0, "-12"}, {"0", 4, "0.0000"}, {"5", 4, "0.0005"}, {"-5", 4, "-0.0005"}, {"-50000", 4, "-5.0000"}, {"123456", 2, "1234.56"},
	} {
		if got := decimalText(c.digits, c.scale); got != c.want {
			t.Errorf("%s with scale %d: %s, want %s", c.digits, c.scale, got, c.want)
		}
	}
}

// More entities than go to DuckDB at once are compared, too.
func TestOnlineManyEntities(t *testing.T) {
	w := newOnlineWorld(t)
	var changes []change
	for i := range textRowsPart + 100 {
		changes = append(changes, change{a: fmt.Sprint("k", i), b: 1, at: 1000, topic: "thing.v1", offset: int64(i), values: map[string]any{"s": "A"}})
	}
	w.take(true, false, changes...)
	w.build("all")
	r := w.verifyOnline("all", Options{})
	cleanOnline(t, r)
	if r.Entities != textRowsPart+100 {
		t.Errorf("%d entities", r.Entities)
	}
}
