package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/pit"
)

// newHistoryWorld is a world with a view windowed over history. What it takes was ingested 4000 s after 1970, a microsecond an
// offset, and recorded 1000 s later.
func newHistoryWorld(t *testing.T, payload feature.Payload) *onlineWorld {
	w := onlineWorldOf(t, payload)
	w.project.Views = append(w.project.Views, &feature.View{Name: "past", Entity: "thing", Stream: "thing", Aggregates: []feature.Aggregate{
		{Name: "changes", Fn: feature.Changes, Windows: []time.Duration{time.Hour, 24 * time.Hour}},
		{Name: "s_changes", Fn: feature.Changes, Column: "s", Windows: []time.Duration{time.Hour}},
		{Name: "in_b", Fn: feature.TimeInState, Where: "s = 'B'", Windows: []time.Duration{time.Hour}},
		{Name: "days", Fn: feature.DaysSinceChange},
		{Name: "b_days", Fn: feature.DaysSinceChange, Where: "s = 'B' AND m IS NULL"},
	}})
	w.restart()
	return w
}

// asOf builds the view as of microseconds after 4000 s.
func (w *onlineWorld) asOf(us int64) {
	w.t.Helper()
	w.buildAsOf("past", us)
}

func (w *onlineWorld) buildAsOf(name string, us int64) {
	w.t.Helper()
	ctx := context.Background()
	at := time.UnixMicro(4e9 + us).UTC()
	view, now := w.project.View(name), func() time.Time { return at }
	writer, err := online.NewViewWriter(ctx, w.store, w.project, view)
	if err != nil {
		w.t.Fatal(err)
	}
	defer writer.Close()
	o := online.BuildOptions{
		Now: now,
		Instant: func(ctx context.Context, r *lake.Reading, at time.Time, use func(arrow.RecordBatch, int64) error) error {
			return pit.Instant(ctx, w.project, view, r, at, pit.Options{Now: now, TempDir: w.t.TempDir()}, use)
		},
	}
	if !w.project.OverHistory(view) {
		o.AsOf, o.Now = &at, time.Now
	}
	g, err := writer.Build(ctx, w.lake, o)
	if err == nil {
		err = w.store.Switch(ctx, view.Name, g)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Whatever the changes, and as of whichever instant, Redis holds what loops over the log make.
func TestOnlineHistories(t *testing.T) {
	for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
		t.Run(string(payload), func(t *testing.T) { onlineHistories(t, payload) })
	}
}

func onlineHistories(t *testing.T, payload feature.Payload) {
	w, r := newHistoryWorld(t, payload), random(t)
	changes := randomChanges(r, 200, payload == feature.PatchPayload)
	w.take(true, false, changes...)
	for _, us := range []int64{-1, 0, r.Int64N(60), 1000} {
		w.asOf(us)
		known := map[string]bool{}
		for _, c := range changes {
			if c.offset <= us {
				known[fmt.Sprint(c.a, "|", c.b)] = true
			}
		}
		for _, buckets := range []int{0, 3} {
			report := w.verifyOnline("past", Options{Buckets: buckets})
			cleanOnline(t, report)
			if int(report.Entities) != len(known) || int(report.Values) != len(known)*6 || report.AsOf == nil || report.AsOf.UnixMicro() != 4e9+us {
				t.Errorf("as of %d: report %+v, want %d entities", us, report, len(known))
			}
		}
	}
}

// Whatever is altered by hand is named.
func TestOnlineHistoriesAltered(t *testing.T) {
	for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
		t.Run(string(payload), func(t *testing.T) { onlineHistoriesAltered(t, payload) })
	}
}

func onlineHistoriesAltered(t *testing.T, payload feature.Payload) {
	w := newHistoryWorld(t, payload)
	w.take(true, false,
		change{a: "k", b: 1, at: 3000, topic: "thing.v1", offset: 0, values: map[string]any{"s": "A"}},
		change{a: "k", b: 1, at: 3500, topic: "thing.v1", offset: 1, values: map[string]any{"s": "B"}},
		change{a: "o|{d}", b: -7, at: 3100, topic: "thing.v1", offset: 2, values: map[string]any{"s": "B"}},
		change{a: "gone", b: 1, at: 3100, topic: "thing.v1", offset: 3, deleted: true},
		change{a: "later", b: 1, at: 3100, topic: "thing.v1", offset: 50, values: map[string]any{"s": "B"}},
	)
	ctx := context.Background()
	field := func(name string) string {
		for i, n := range w.project.View("past").FeatureNames() {
			if n == name {
				return online.FeatureField(i)
			}
		}
		t.Fatalf("no feature %s", name)
		return ""
	}
	for name, c := range map[string]struct {
		tamper func(key func(a string, b int) string) error
		kind   Kind
		key    string
		text   string
	}{
		"nothing": {func(func(string, int) string) error { return nil }, "", "", ""},
		"a count": {func(key func(string, int) string) error {
			return w.redis.HIncrBy(ctx, key("k", 1), field("changes_1h"), 1).Err()
		},
			WrongValue, "k|1", "it differs in changes_1h; its last change is at thing.v1/0@1"},
		"a time in a state": {func(key func(string, int) string) error {
			return w.redis.HSet(ctx, key("k", 1), field("in_b_1h"), "500.00002").Err() // it is 500.00003
		}, WrongValue, "k|1", "it differs in in_b_1h"},
		"a value that is null": {func(key func(string, int) string) error {
			return w.redis.HSet(ctx, key("gone", 1), field("days"), "0").Err()
		},
			WrongValue, "gone|1", "it differs in days"},
		"a value that is gone": {func(key func(string, int) string) error {
			return w.redis.HDel(ctx, key("o%7C%7Bd%7D", -7), field("b_days")).Err()
		}, WrongValue, "o|{d}|-7", "it differs in b_days"},
		"the instant": {func(key func(string, int) string) error {
			return w.redis.HSet(ctx, key("k", 1), "_v", feature.Order{EventTime: 4e9 + 31}.String()).Err()
		}, WrongGuard, "k|1", "it differs in _v"},
		"a missing entity": {func(key func(string, int) string) error { return w.redis.Del(ctx, key("k", 1)).Err() },
			MissingEntity, "k|1", "Redis lacks it; its last change is at thing.v1/0@1"},
		"an entity that was not known by then": {func(key func(string, int) string) error {
			return w.redis.HSet(ctx, key("later", 1), "_v", feature.Order{EventTime: 4e9 + 30}.String(), field("changes_1h"), "0").Err()
		}, ExtraEntity, "later|1", "the lake doesn't know it"},
	} {
		t.Run(name, func(t *testing.T) {
			w.asOf(30)
			r := w.verifyOnline("past", Options{})
			cleanOnline(t, r)
			err := c.tamper(func(a string, b int) string {
				return fmt.Sprintf("%s:past:%d:{thing|%s|%d}", w.project.Name, r.Generation, a, b)
			})
			if err != nil {
				t.Fatal(err)
			}
			r = w.verifyOnline("past", Options{})
			if c.kind == "" {
				cleanOnline(t, r)
				return
			}
			if r.Total != 1 || r.NotSettled != 0 || r.First[0].Kind != c.kind || r.First[0].Key != c.key || !strings.Contains(r.First[0].Text, c.text) {
				t.Errorf("want %s of %q with %q, found %d, %d not settled:\n%s", c.kind, c.key, c.text, r.Total, r.NotSettled, text(r.Findings))
			}
		})
	}
}

// What the lake has taken since of before the instant is not settled, which no commit will mend, and no other entity is excused by it.
func TestOnlineHistoriesBehind(t *testing.T) {
	wait := func(context.Context) error { return errors.New("it was waited for") }
	for _, topic := range []string{"thing.v1", "other.v1", "file:abc"} {
		w := newHistoryWorld(t, feature.FullPayload)
		w.take(true, false,
			change{a: "k", b: 1, at: 3000, topic: "thing.v1", offset: 0, values: map[string]any{"s": "A"}},
			change{a: "l", b: 1, at: 3000, topic: "thing.v1", offset: 1, values: map[string]any{"s": "A"}},
			change{a: "k", b: 1, at: 3010, topic: "file:of before", offset: 0, values: map[string]any{"s": "B"}},
		)
		w.asOf(30)
		w.take(true, false, change{a: "k", b: 1, at: 3500, topic: topic, offset: 2, values: map[string]any{"s": "A"}},
			change{a: "m", b: 1, at: 3500, topic: topic, offset: 3, values: map[string]any{"s": "A"}})
		if r := w.verifyOnline("past", Options{Wait: wait}); r.Total != 0 || r.NotSettled != 2 || r.Compared != 1 {
			t.Errorf("%s: %d findings, %d not settled:\n%s", topic, r.Total, r.NotSettled, text(r.Findings))
		}
		key := fmt.Sprintf("%s:past:1:{thing|l|1}", w.project.Name)
		if err := w.redis.HSet(context.Background(), key, "0", "77").Err(); err != nil {
			t.Fatal(err)
		}
		if r := w.verifyOnline("past", Options{}); r.Total != 1 || r.NotSettled != 2 || r.First[0].Key != "l|1" {
			t.Errorf("%s: %d findings, %d not settled:\n%s", topic, r.Total, r.NotSettled, text(r.Findings))
		}
		w.asOf(30)
		cleanOnline(t, w.verifyOnline("past", Options{}))
	}
}

// Views that are frozen hold what the log had by the instant, whatever is written since.
func TestOnlineFrozen(t *testing.T) {
	for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
		w, r := onlineWorldOf(t, payload), random(t)
		changes := randomChanges(r, 200, payload == feature.PatchPayload)
		w.take(true, false, changes[:150]...)
		for _, us := range []int64{r.Int64N(40), 20} {
			for _, view := range []string{"all", "calc", "short"} {
				w.buildAsOf(view, us)
				known := map[string]bool{}
				for _, c := range changes[:150] {
					if c.offset <= us {
						known[fmt.Sprint(c.a, "|", c.b)] = true
					}
				}
				report := w.verifyOnline(view, Options{Buckets: r.IntN(3)})
				cleanOnline(t, report)
				if int(report.Entities) != len(known) || report.AsOf == nil {
					t.Errorf("%s of %s as of %d: %+v, want %d entities", view, payload, us, report, len(known))
				}
			}
		}
		w.take(true, true, changes[150:]...) // all of after it
		for _, view := range []string{"all", "calc", "short"} {
			cleanOnline(t, w.verifyOnline(view, Options{}))
		}
		g := w.verifyOnline("all", Options{}).Generation
		key := fmt.Sprintf("%s:all:%d:{thing|%s|%d}", w.project.Name, g, changes[0].a, changes[0].b)
		if err := w.redis.HSet(context.Background(), key, "0", "tampered").Err(); err != nil {
			t.Fatal(err)
		}
		if report := w.verifyOnline("all", Options{}); report.Total != 1 || report.NotSettled != 0 || report.ByKind[WrongValue] != 1 {
			t.Errorf("%s: %d findings, %d not settled:\n%s", payload, report.Total, report.NotSettled, text(report.Findings))
		}
	}
	w, r := newTilesWorld(t), random(t)
	w.take(true, false, w.facts(r, "fact.v1", 60)...)
	w.take(true, false, w.facts(r, "file:abc", 30)...)
	for _, us := range []int64{10, r.Int64N(60)} {
		w.buildAsOf("every", us)
		report := w.verifyOnline("every", Options{Buckets: 2})
		cleanOnline(t, report)
		w.take(true, true, w.facts(r, "fact.v1", 20)...)
		if again := w.verifyOnline("every", Options{}); !again.OK() || again.Entities != report.Entities {
			t.Errorf("as of %d: %+v, was %+v\n%s", us, again, report, text(again.Findings))
		}
	}
	if err := w.redis.Set(context.Background(), fmt.Sprintf("%s:every:2:{thing|x|0}", w.project.Name), "\x11", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if report := w.verifyOnline("every", Options{}); report.Total != 1 {
		t.Errorf("an entity too many: %+v\n%s", report, text(report.Findings))
	}
}

// What the lake takes later of before the instant is not settled, of a view that is frozen as well.
func TestOnlineFrozenBehind(t *testing.T) {
	for _, topic := range []string{"thing.v1", "other.v1", "file:abc"} {
		w := newOnlineWorld(t)
		w.take(true, false,
			change{a: "k", b: 1, at: 3000, topic: "thing.v1", offset: 0, values: map[string]any{"s": "A"}},
			change{a: "l", b: 1, at: 3000, topic: "thing.v1", offset: 1, values: map[string]any{"s": "A"}},
			change{a: "k", b: 1, at: 2900, topic: "file:of before", offset: 0, values: map[string]any{"s": "B"}},
		)
		w.buildAsOf("all", 30)
		w.take(true, true, change{a: "k", b: 1, at: 3500, topic: topic, offset: 2, values: map[string]any{"s": "C"}},
			change{a: "m", b: 1, at: 3500, topic: topic, offset: 3, values: map[string]any{"s": "C"}})
		r := w.verifyOnline("all", Options{Wait: func(context.Context) error { return errors.New("it was waited for") }})
		if r.Total != 0 || r.NotSettled != 2 {
			t.Errorf("%s: %d findings, %d not settled:\n%s", topic, r.Total, r.NotSettled, text(r.Findings))
		}
		w.buildAsOf("all", 30)
		cleanOnline(t, w.verifyOnline("all", Options{}))
	}
}
