package verify

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// Every check of a view in Feast's layout finds what it is for.
func TestFeastTampered(t *testing.T) {
	ctx := context.Background()
	w := newOnlineWorld(t)
	odd := `o|{d} 100%`
	w.take(true, false,
		change{a: "k", b: 1, at: 1000, topic: "thing.v1", offset: 0, values: map[string]any{
			"s": "A", "x": 0.1, "m": "-0.5", "day": "1969-12-31", "yes": false, "u": -1, "j": `{"a":1}`}},
		change{a: odd, b: -7, at: 1001, topic: "thing.v1", offset: 1, sequence: -3, values: map[string]any{"s": "B", "x": 1e300}},
		change{a: "gone", b: 1, at: 1002, topic: "thing.v1", offset: 2, deleted: true},
		change{a: "file", b: 1, at: 1003, topic: "file:abc", offset: 0, values: map[string]any{"m": "12345678901234.5678"}},
	)
	key := func(a string, b int64) string { // byte by byte, as docs/redis.md has it
		k := "\x02\x00\x00\x00" + "\x02\x00\x00\x00\x01\x00\x00\x00a" + "\x02\x00\x00\x00\x01\x00\x00\x00b"
		k += "\x02\x00\x00\x00" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(a)))) + a
		k += "\x04\x00\x00\x00\x08\x00\x00\x00" + string(binary.LittleEndian.AppendUint64(nil, uint64(b)))
		return k + w.project.Name
	}
	order := func(offset int64) string {
		return feature.Order{EventTime: 1000e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
	}
	field := func(name string) string { return feature.FeastField("feast", name) }
	set := func(key string, values ...any) func() error {
		return func() error { return w.redis.HSet(ctx, key, values...).Err() }
	}
	drop := func(key string, fields ...string) func() error {
		return func() error { return w.redis.HDel(ctx, key, fields...).Err() }
	}
	for name, c := range map[string]struct {
		tamper func() error
		kind   Kind
		key    string
		text   string
	}{
		"a value":                    {set(key("k", 1), field("u"), "\x20\x01"), WrongValue, "k|1", "it differs in u; its last change is at thing.v1/0@0"},
		"a value of another type":    {set(key("k", 1), field("u"), "\x12\x02-1"), WrongValue, "k|1", "it differs in u"},
		"a value that is null":       {set(key("file", 1), field("s"), "\x12\x00"), WrongValue, "file|1", "it differs in s"},
		"a value that is gone":       {set(key(odd, -7), field("x"), ""), WrongValue, odd + "|-7", "it differs in x; its last change is at thing.v1/0@1"},
		"a value of a tombstone":     {set(key("gone", 1), field("x"), "\x29\x00\x00\x00\x00\x00\x00\x00\x00"), WrongValue, "gone|1", "it differs in x"},
		"an event time":              {set(key("k", 1), "_ts:feast", "\x08\x01"), WrongValue, "k|1", "it differs in _ts:feast"},
		"an event time that is none": {set(key("k", 1), "_ts:feast", "x"), WrongValue, "k|1", "it differs in _ts:feast"},
		"a tombstone":                {set(key("gone", 1), "_ts:feast", "\x08\x01"), WrongValue, "gone|1", "it differs in _ts:feast, _d"},
		"a guard":                    {set(key("k", 1), "_v:feast", order(1)+"0001"), WrongGuard, "k|1", "its guard is " + order(1) + ", and that of its last change, at thing.v1/0@0, is " + order(0)},
		"a guard of no generation":   {set(key("k", 1), "_v:feast", order(0)+"ffff"), WrongGuard, "k|1", "its guard is " + order(0) + "ffff"},
		"a guard that is no order":   {set(key("k", 1), "_v:feast", "x"), WrongGuard, "k|1", "its guard is x"},
		"a guard that is gone":       {drop(key("k", 1), "_v:feast"), WrongGuard, "k|1", "its guard is missing"},
		"a missing entity":           {func() error { return w.redis.Del(ctx, key("file", 1)).Err() }, MissingEntity, "file|1", "Redis lacks it; its last change is at file:abc/0@0"},
		"an extra entity":            {set(key("new", 1), "_v:feast", order(0)+"0001", "_ts:feast", "\x08\x01"), ExtraEntity, "new|1", "the lake doesn't know it"},
		"an entity that Feast wrote": {set(key("new", 1), "_ts:feast", "\x08\x01"), ExtraEntity, "new|1", "the lake doesn't know it"},
		"a hash of other join keys":  {set("\x01\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00a\x02\x00\x00\x00\x01\x00\x00\x00x"+w.project.Name, "_ts:feast", "\x08\x01"), ExtraEntity, "", "the lake doesn't know it"},
	} {
		t.Run(name, func(t *testing.T) {
			w.build("feast")
			cleanOnline(t, w.verifyOnline("feast", Options{}))
			if err := set(key("new", 1), "_ts:other", "\x08\x01", feature.FeastField("other", "x"), "\x20\x01")(); err != nil {
				t.Fatal(err) // another view of the project
			}
			cleanOnline(t, w.verifyOnline("feast", Options{}))
			if err := c.tamper(); err != nil {
				t.Fatal(err)
			}
			r := w.verifyOnline("feast", Options{})
			if r.Total != 1 || r.NotSettled != 0 || r.First[0].Kind != c.kind || c.key != "" && r.First[0].Key != c.key || !strings.Contains(r.First[0].Text, c.text) {
				t.Errorf("want %s of %q with %q, found %d, %d not settled:\n%s", c.kind, c.key, c.text, r.Total, r.NotSettled, text(r.Findings))
			}
		})
	}
	// What one side alone has is compared again.
	w.build("feast")
	b := change{a: "k", b: 1, at: 2000, topic: "thing.v1", offset: 3, values: map[string]any{"s": "Z"}}
	w.take(false, true, b)
	if r := w.verifyOnline("feast", Options{}); r.NotSettled != 1 || r.Total != 0 {
		t.Errorf("Redis is ahead: %+v\n%s", r, text(r.Findings))
	}
	r := w.verifyOnline("feast", Options{Wait: func(context.Context) error { w.take(true, false, b); return nil }})
	cleanOnline(t, r)
	if r.Compared != 2 {
		t.Errorf("report %+v", r)
	}
}
