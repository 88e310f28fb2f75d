package verify

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// patchedWorld is a world over a patch stream, whose view short has three features.
func patchedWorld(t *testing.T) *onlineWorld {
	t.Helper()
	w := onlineWorldOf(t, feature.PatchPayload)
	all, short := w.project.View("all"), w.project.View("short")
	short.Features = slices.Clone(all.Features[:3])
	w.restart()
	return w
}

// asked leaves of a row what a request for some features of its view sees.
func (w *onlineWorld) asked(row feature.ServedRow, names ...string) feature.ServedRow {
	one := row
	one.Features, one.Values, one.Statuses, one.Guards = nil, nil, nil, map[string]string{}
	read := []string{"_d"}
	for _, f := range w.project.View(row.View).Features {
		if slices.Contains(names, f.Name) {
			read = append(read, f.Column)
		}
	}
	for _, name := range read {
		if order, was := row.Guards[name]; was {
			one.Guards[name] = order
		}
	}
	for i, name := range row.Features {
		if slices.Contains(names, name) {
			one.Features, one.Values, one.Statuses = append(one.Features, name), append(one.Values, row.Values[i]), append(one.Statuses, row.Statuses[i])
		}
	}
	return one
}

// Whatever is read while patches come, late ones, deletes and those of files too, is what the log makes of it column by column.
func TestServedRandomPatches(t *testing.T) {
	w, r := patchedWorld(t), random(t)
	now := time.Now()
	changes := randomChanges(r, 260, true)
	for i := range changes {
		age := 3600 + r.IntN(3600) // older than short's time to live
		if r.IntN(4) == 0 {
			age = r.IntN(3600)
		}
		changes[i].at = now.Unix() - int64(age)
	}
	w.take(true, false, changes[:40]...)
	views := []string{"all", "calc", "short"}
	for _, view := range views {
		w.build(view)
	}
	keys := [][2]string{{"nobody", "3"}}
	for _, c := range changes {
		keys = append(keys, [2]string{c.a, fmt.Sprint(c.b)})
	}
	rows, values, statuses := map[string]int{}, map[string]int{}, map[string]int{}
	var last feature.ServedRow
	for left := changes[40:]; len(left) > 0; {
		n := min(1+r.IntN(30), len(left))
		w.take(true, true, left[:n]...)
		left = left[n:]
		var logged []feature.ServedRow
		for _, view := range views {
			read := w.read(view, time.Now(), keys[r.IntN(len(keys))], keys[r.IntN(len(keys))], keys[0])
			read = append(read, w.asked(read[0], "x", "m"))
			logged = append(logged, read...)
			rows[view] += len(read)
			for _, one := range read {
				values[view] += len(one.Features)
				for _, s := range one.Statuses {
					statuses[s]++
				}
			}
			if read[1].Order != "" {
				last = read[1]
			}
		}
		w.log(logged...)
	}
	for _, s := range []string{"PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"} {
		if statuses[s] == 0 {
			t.Errorf("no value was %s: %v", s, statuses)
		}
	}
	for _, view := range views {
		report := w.verifyServed(view, time.Time{})
		if !report.OK() || int(report.Rows) != rows[view] || int(report.Values) != values[view] || report.Unmarked > 0 {
			t.Errorf("%s, of %d rows: %+v\n%s", view, rows[view], report, text(report.Findings))
		}
	}

	// A change that Redis has and the lake doesn't is waited for, whichever guard it is.
	offset := w.from["thing.v1"]
	w.take(false, true, change{
		a: last.Entity[0], b: int64(last.Entity[1][0] - '0'), at: now.Unix(), topic: "thing.v1", offset: offset, present: []string{"x"}, values: map[string]any{"x": 7.0},
	})
	since := time.Now()
	w.log(w.read("all", since, [2]string{last.Entity[0], last.Entity[1]})...)
	if report := w.verifyServed("all", since); report.NotSettled != 1 || report.Total != 0 {
		t.Errorf("Redis is ahead: %+v\n%s", report, text(report.Findings))
	}
}

// What is altered by hand in a value, a status, a column's guard, a delete or the order is named, and nothing else is.
func TestServedTamperedPatches(t *testing.T) {
	w := patchedWorld(t)
	next := int64(0)
	make := func(a string, at int64, values map[string]any) change {
		next++
		c := change{a: a, b: 1, at: at, topic: "thing.v1", offset: next - 1, values: values, deleted: values == nil}
		if values != nil {
			c.present = slices.Sorted(maps.Keys(values))
		}
		return c
	}
	w.take(true, false,
		make("k", 1000, map[string]any{"s": "A", "x": 0.5}),
		make("k", 1001, map[string]any{"x": nil, "m": "1.5"}),
		make("gone", 1001, nil),
		make("back", 1002, nil),
		make("back", 1003, map[string]any{"s": "B"}),
		make("back", 900, map[string]any{"m": "2"}), // it is late, and was deleted before it came
		make("old", 2000, map[string]any{"s": "A"}),
		make("old", 9000, map[string]any{"x": 1.5}),
		make("again", 1000, nil),
		make("again", 9000, map[string]any{"x": 1.5}),
	)
	w.build("all")
	order := func(offset, at int64) string {
		return feature.Order{EventTime: at * 1e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
	}
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	// young are rows of short at an hour and a second after what is older than 9000 s, by heart: their hashes expire on a Redis of today.
	young := func(entity string, newest int64, guards map[string]string, values ...string) feature.ServedRow {
		view := w.project.View("short")
		r := feature.ServedRow{
			ServedAt: 9060e6, View: "short", Definition: w.project.ViewDefinition(view).Hash, Entity: []string{entity, "1"}, Features: view.FeatureNames(),
			Guards: guards, Marks: map[feature.Partition]int64{{Topic: "thing.v1"}: next}, Values: []*string{nil, nil, nil}, Statuses: values,
		}
		if newest >= 0 {
			r.Order = order(newest, 9000)
		}
		for i, v := range values {
			if v == strings.ToLower(v) {
				r.Values[i], r.Statuses[i] = &v, "PRESENT"
			}
		}
		return r
	}
	read := func(entity string, alter func(r *feature.ServedRow)) feature.ServedRow {
		r := w.read("all", at, [2]string{entity, "1"})[0]
		if alter != nil {
			alter(&r)
		}
		return r
	}
	set := func(r *feature.ServedRow, i int, value, status string) {
		r.Values[i], r.Statuses[i] = nil, status
		if status == "PRESENT" {
			r.Values[i] = &value
		}
	}
	const s, x, m = 0, 1, 2 // features of both views
	old := map[string]string{"s": order(6, 2000), "x": order(7, 9000)}
	before := map[string]*ServedReport{"all": {}, "short": {}}
	for i, c := range []struct {
		what      string
		row       feature.ServedRow
		differing int64 // -1 where it is not settled
		text      string
	}{
		{"nothing", read("k", nil), 0, ""},
		{"nothing of a delete", read("gone", nil), 0, ""},
		{"nothing of an entity that is back", read("back", nil), 0, ""},
		{"nothing of an unknown entity", read("nobody", nil), 0, ""},
		{"nothing of two features", w.asked(read("k", nil), "x", "yes"), 0, ""},
		{"a value", read("k", func(r *feature.ServedRow) { set(r, s, "C", "PRESENT") }), 1, `s was served as "C", and is "A"`},
		{"a null", read("k", func(r *feature.ServedRow) { set(r, x, "0.5", "PRESENT") }), 1, `x was served as "0.5", and is NULL_VALUE`},
		{"a status", read("k", func(r *feature.ServedRow) { set(r, m, "", "NOT_FOUND") }), 1, `m was served as NOT_FOUND, and is "1.5000"`},
		{"a column that no change carried", read("k", func(r *feature.ServedRow) { set(r, 5, "true", "PRESENT") }), 1, `yes was served as "true", and is NULL_VALUE`},
		{"a value of a deleted entity", read("gone", func(r *feature.ServedRow) { set(r, s, "A", "PRESENT") }), 1, `s was served as "A", and is NOT_FOUND`},
		{"a guard of a change that carries another column", read("k", func(r *feature.ServedRow) { r.Guards["s"] = order(1, 1001) }), 1,
			"s rests on the change " + order(1, 1001) + ", and the log has none such of the entity that carries s"},
		{"a guard of a change that there isn't", read("k", func(r *feature.ServedRow) { r.Guards["s"] = order(0, 1002) }), 1,
			"s rests on the change " + order(0, 1002) + ", and the log has none such of the entity that carries s"},
		{"a guard of another entity", read("k", func(r *feature.ServedRow) { r.Guards["s"] = order(4, 1003) }), 1, "s rests on the change " + order(4, 1003)},
		{"an older guard", read("k", func(r *feature.ServedRow) { r.Guards["x"] = order(0, 1000); set(r, x, "0.5", "PRESENT") }), 1,
			"x rests on the change " + order(0, 1000) + ", and Redis had taken " + order(1, 1001)},
		{"an older guard, where nothing but the others tells what was taken", read("k", func(r *feature.ServedRow) {
			r.Marks, r.Guards["x"] = nil, order(0, 1000)
			set(r, x, "0.5", "PRESENT")
		}), 1, "x rests on the change " + order(0, 1000) + ", and Redis had taken " + order(1, 1001)},
		{"a lost column", read("k", func(r *feature.ServedRow) { delete(r.Guards, "m"); set(r, m, "", "NULL_VALUE") }), 1,
			"m rests on no change, and Redis had taken " + order(1, 1001)},
		{"a guard to come", read("k", func(r *feature.ServedRow) { r.Guards["s"] = order(next, 1000) }), -1, ""},
		{"a column from before the delete", read("back", func(r *feature.ServedRow) { r.Guards["m"] = order(5, 900); set(r, m, "2", "PRESENT") }), 1,
			"m rests on the change " + order(5, 900) + ", which the delete " + order(3, 1002) + " has taken away"},
		{"a lost delete", read("back", func(r *feature.ServedRow) { delete(r.Guards, "_d") }), 6, "it rests on no delete, and Redis had taken " + order(3, 1002)},
		{"a lost tombstone", read("gone", func(r *feature.ServedRow) {
			r.Marks = nil
			delete(r.Guards, "_d")
		}), 6, "it rests on no delete, and Redis had taken " + order(2, 1001)},
		{"a delete that there isn't", read("k", func(r *feature.ServedRow) { r.Guards["_d"] = order(0, 900) }), 6,
			"it rests on the delete " + order(0, 900) + ", and the log has none such of the entity"},
		{"a delete that is none", read("k", func(r *feature.ServedRow) { r.Guards["_d"] = order(1, 1001) }), 6, "it rests on the delete " + order(1, 1001)},
		{"a delete to come", read("k", func(r *feature.ServedRow) { r.Guards["_d"] = order(next, 900) }), -1, ""},
		{"an older order", read("k", func(r *feature.ServedRow) { r.Order = order(0, 1000) }), 6,
			"it rests on the change " + order(0, 1000) + ", and Redis had taken " + order(1, 1001) + " by then"},
		{"an older order that was all that Redis had", read("k", func(r *feature.ServedRow) {
			r.Order, r.Marks, r.Guards = order(0, 1000), map[feature.Partition]int64{{Topic: "thing.v1"}: 1}, map[string]string{"s": order(0, 1000), "x": order(0, 1000)}
			set(r, x, "0.5", "PRESENT")
			set(r, m, "", "NULL_VALUE")
		}), 0, ""},
		{"an order that is none", read("k", func(r *feature.ServedRow) { r.Order = "z" }), 6, "it rests on the change z, and the log has none such"},
		{"an order to come", read("k", func(r *feature.ServedRow) { r.Order = order(next, 2000) }), -1, ""},
		{"a lost entity", read("k", func(r *feature.ServedRow) {
			r.Order, r.Guards = "", map[string]string{}
			for i := range r.Values {
				set(r, i, "", "NOT_FOUND")
			}
		}), 6, "it rests on no change, and Redis had taken " + order(1, 1001)},

		{"nothing of ages", young("old", 7, old, "OUTSIDE_MAX_AGE", "1.5", "NULL_VALUE"), 0, ""},
		{"an age", young("old", 7, map[string]string{"s": order(6, 2000), "x": order(7, 9000)}, "a", "1.5", "NULL_VALUE"), 1, `s was served as "a", and is OUTSIDE_MAX_AGE`},
		{"an age of the entity", young("old", 7, old, "OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE", "NULL_VALUE"), 1, `x was served as OUTSIDE_MAX_AGE, and is "1.5"`},
		{"what is too old and went with a hash that expired", young("old", 7, map[string]string{"x": order(7, 9000)}, "NULL_VALUE", "1.5", "NULL_VALUE"), 0, ""},
		{"what is young and is lost", young("old", 7, map[string]string{"s": order(6, 2000)}, "OUTSIDE_MAX_AGE", "NULL_VALUE", "NULL_VALUE"), 1,
			"x rests on no change, and Redis had taken " + order(7, 9000)},
		{"a hash that expired too soon", young("old", -1, nil, "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"), 3, "it rests on no change, and Redis had taken " + order(7, 9000)},
		{"a hash that expired", func() feature.ServedRow {
			r := young("old", -1, nil, "NOT_FOUND", "NOT_FOUND", "NOT_FOUND")
			r.ServedAt = 9000e6 + 3600e6 + 1
			return r
		}(), 0, ""},
		{"a delete that is too old and went with a hash that expired", young("again", 9, map[string]string{"x": order(9, 9000)}, "NULL_VALUE", "1.5", "NULL_VALUE"), 0, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.row.Request = fmt.Sprintf("number %d", i)
			w.log(c.row)
			report := w.verifyServed(c.row.View, time.Time{})
			was := before[c.row.View]
			before[c.row.View] = report
			unsettled := int64(0)
			if c.differing < 0 {
				unsettled, c.differing = 1, 0
			}
			if report.Differing-was.Differing != c.differing || report.NotSettled-was.NotSettled != unsettled || report.Rows != was.Rows+1 {
				t.Errorf("of %+v\n%+v\n%s", c.row, report, text(report.Findings))
			}
			told := slices.ContainsFunc(report.First, func(f Finding) bool {
				return f.Kind == WrongServed && f.Key == c.row.Entity[0]+"|1" && strings.Contains(f.Text, "request "+c.row.Request+": "+c.text)
			})
			if told != (c.differing > 0) {
				t.Errorf("want %q in\n%s", c.text, text(report.Findings))
			}
		})
	}

	// Maintenance changes nothing of it.
	ctx := context.Background()
	keeper, err := w.lake.OpenFeatureLogMaintainer(ctx, lake.MaintainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	if done, due, err := keeper.Compact(ctx, true); err != nil || !due || done.FilesAfter != 2 { // of two days
		t.Errorf("compacted %+v, %t, %v", done, due, err)
	}
	if _, err := keeper.Expire(ctx, 0); err != nil {
		t.Fatal(err)
	}
	for _, view := range []string{"all", "short"} {
		if report := w.verifyServed(view, time.Time{}); !reflect.DeepEqual(report, before[view]) {
			t.Errorf("%s, once it was maintained: %+v\nbefore: %+v", view, report, before[view])
		}
	}
}
