package verify

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// Every check of a view over a patch stream finds what it is for.
func TestOnlineTamperedPatches(t *testing.T) {
	w := onlineWorldOf(t, feature.PatchPayload)
	topic := func(offset, at int64) change { return change{a: "k", b: 1, at: at, topic: "thing.v1", offset: offset} }
	carrying := func(c change, present []string, values map[string]any) change {
		c.present, c.values = present, values
		return c
	}
	back := topic(4, 1003)
	back.a = "back"
	gone, goneBack := topic(2, 1001), topic(3, 1002)
	gone.a, gone.deleted = "gone", true
	goneBack.a, goneBack.deleted = "back", true
	w.take(true, false,
		carrying(topic(0, 1000), []string{"s", "x"}, map[string]any{"s": "A", "x": 0.5}),
		carrying(topic(1, 1001), []string{"x", "m"}, map[string]any{"x": nil, "m": "1.5"}),
		gone, goneBack, carrying(back, []string{"s"}, map[string]any{"s": "B"}),
	)
	order := func(offset, at int64) string {
		return feature.Order{EventTime: at * 1e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
	}
	ctx := context.Background()
	for name, c := range map[string]struct {
		tamper func(key func(a string) string) error
		kind   Kind
		key    string
		text   string
	}{
		"a value": {func(key func(string) string) error { return w.redis.HSet(ctx, key("k"), w.field("s"), "C").Err() },
			WrongValue, "k|1", "it differs in s; its last change is at thing.v1/0@1"},
		"a value that is null": {func(key func(string) string) error { return w.redis.HSet(ctx, key("k"), w.field("x"), "0.5").Err() },
			WrongValue, "k|1", "it differs in x"},
		"a value from before the delete": {func(key func(string) string) error { return w.redis.HSet(ctx, key("back"), w.field("x"), "0.5").Err() },
			WrongValue, "back|1", "it differs in x"},
		"a value that is gone": {func(key func(string) string) error { return w.redis.HDel(ctx, key("back"), w.field("s")).Err() },
			WrongValue, "back|1", "it differs in s"},
		"a guard of a column": {func(key func(string) string) error { return w.redis.HSet(ctx, key("k"), "_v:s", order(1, 1001)).Err() },
			WrongGuard, "k|1", "it differs in _v:s"},
		"a guard of a column that is gone": {func(key func(string) string) error { return w.redis.HDel(ctx, key("k"), "_v:x").Err() },
			WrongGuard, "k|1", "it differs in _v:x"},
		"a guard of a column that is none": {func(key func(string) string) error { return w.redis.HSet(ctx, key("k"), "_v:day", "x").Err() },
			WrongGuard, "k|1", "it differs in _v:day"},
		"a guard of no column": {func(key func(string) string) error {
			return w.redis.HSet(ctx, key("k"), "_v:other", order(1, 1001)).Err()
		},
			WrongGuard, "k|1", "it differs in _v:other"},
		"a delete": {func(key func(string) string) error { return w.redis.HDel(ctx, key("back"), "_d").Err() },
			WrongValue, "back|1", "it differs in _d"},
		"another delete": {func(key func(string) string) error { return w.redis.HSet(ctx, key("gone"), "_d", order(1, 1000)).Err() },
			WrongValue, "gone|1", "it differs in _d"},
		"the order": {func(key func(string) string) error { return w.redis.HSet(ctx, key("k"), "_v", order(0, 1000)).Err() },
			WrongGuard, "k|1", "its guard is " + order(0, 1000)},
		"a missing entity": {func(key func(string) string) error { return w.redis.Del(ctx, key("gone")).Err() },
			MissingEntity, "gone|1", "Redis lacks it; its last change is at thing.v1/0@2"},
	} {
		t.Run(name, func(t *testing.T) {
			w.build("all")
			r := w.verifyOnline("all", Options{})
			cleanOnline(t, r)
			if err := c.tamper(func(a string) string { return fmt.Sprintf("%s:all:%d:{thing|%s|1}", w.project.Name, r.Generation, a) }); err != nil {
				t.Fatal(err)
			}
			r = w.verifyOnline("all", Options{})
			if r.Total != 1 || r.NotSettled != 0 || r.First[0].Kind != c.kind || r.First[0].Key != c.key || !strings.Contains(r.First[0].Text, c.text) {
				t.Errorf("want %s of %q with %q, found %d, %d not settled:\n%s", c.kind, c.key, c.text, r.Total, r.NotSettled, text(r.Findings))
			}
		})
	}
}

// A patch that one side alone has taken may be older than the entity's newest, and gives columns all the same: it is
// compared again, too.
func TestOnlinePatchesSettle(t *testing.T) {
	w := onlineWorldOf(t, feature.PatchPayload)
	made := int64(0)
	next := func(at int64, column string) change {
		made++
		c := change{a: "a", b: 1, at: at, topic: "thing.v1", offset: made - 1, present: []string{column}, values: map[string]any{column: fmt.Sprint(made)}}
		if column == "" {
			c.deleted, c.present, c.values = true, nil, nil
		}
		return c
	}
	w.take(true, false, next(10, "s"))
	w.build("all")
	cleanOnline(t, w.verifyOnline("all", Options{}))
	for _, late := range []change{next(5, "m"), next(4, ""), next(6, "m")} {
		w.take(false, true, late)
		if r := w.verifyOnline("all", Options{}); r.NotSettled != 1 || r.Total != 0 {
			t.Errorf("%+v: Redis is ahead: %+v\n%s", late, r, text(r.Findings))
		}
		w.take(true, false, late)
		cleanOnline(t, w.verifyOnline("all", Options{}))
	}
	for _, late := range []change{next(7, "m"), next(8, ""), next(9, "m")} {
		w.take(true, false, late)
		if r := w.verifyOnline("all", Options{}); r.NotSettled != 1 || r.Total != 0 {
			t.Errorf("%+v: the lake is ahead: %+v\n%s", late, r, text(r.Findings))
		}
		if err := w.live.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		cleanOnline(t, w.verifyOnline("all", Options{}))
	}
}

// What is older than the time to live may be in a hash or have gone with one that expired; what is younger must be there.
func TestOnlinePatchesTimeToLive(t *testing.T) {
	w := onlineWorldOf(t, feature.PatchPayload)
	view := w.project.View("short")
	for _, name := range []string{"x", "m"} {
		c, _ := w.def.Column(name)
		view.Features = append(view.Features[:len(view.Features):len(view.Features)], feature.Feature{Name: name, Type: c.Type, Column: name})
	}
	w.restart()
	r := random(t)
	now := time.Now()
	changes := randomChanges(r, 200, true)
	for i := range changes {
		changes[i].at = now.Unix() - int64(r.IntN(9000))
	}
	w.take(true, false, changes[:80]...)
	w.build("short")
	for left := changes[80:]; len(left) > 0; {
		n := min(1+r.IntN(40), len(left))
		w.take(true, true, left[:n]...)
		left = left[n:]
	}
	for _, later := range []time.Duration{0, 20 * time.Minute, time.Hour, 3 * time.Hour} {
		cleanOnline(t, w.verifyOnline("short", Options{Now: func() time.Time { return now.Add(later) }}))
	}

	// Known by heart: s is old, x is young.
	offset := w.from["thing.v1"]
	w.take(true, true,
		change{a: "h", b: 9, at: now.Unix() - 7000, topic: "thing.v1", offset: offset, present: []string{"s"}, values: map[string]any{"s": "A"}},
		change{a: "h", b: 9, at: now.Unix() - 60, topic: "thing.v1", offset: offset + 1, present: []string{"x"}, values: map[string]any{"x": 1.5}},
	)
	report := w.verifyOnline("short", Options{})
	cleanOnline(t, report)
	ctx := context.Background()
	key := fmt.Sprintf("%s:short:%d:{thing|h|9}", w.project.Name, report.Generation)
	if err := w.redis.HDel(ctx, key, w.field("s"), "_v:s").Err(); err != nil {
		t.Fatal(err)
	}
	cleanOnline(t, w.verifyOnline("short", Options{}))
	if err := w.redis.HDel(ctx, key, w.field("x")).Err(); err != nil {
		t.Fatal(err)
	}
	if report = w.verifyOnline("short", Options{}); report.Total != 1 || report.ByKind[WrongValue] != 1 || !strings.Contains(report.First[0].Text, "differs in x;") {
		t.Errorf("report %+v\n%s", report, text(report.Findings))
	}
}
