package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// read reads all features of entities as a server does, and gives the rows that are logged of it. The marks are those at the read.
func (w *onlineWorld) read(view string, now time.Time, keys ...[2]string) []feature.ServedRow {
	w.t.Helper()
	ctx := context.Background()
	v := w.project.View(view)
	var refs []feature.Ref
	for _, name := range v.FeatureNames() {
		refs = append(refs, feature.Ref{View: view, Feature: name})
	}
	all, err := w.store.Generations(ctx, view)
	if err != nil {
		w.t.Fatal(err)
	}
	g, _ := w.store.Usable(all, w.project.ViewDefinition(v).Hash)
	plan, err := online.NewClient(w.store, w.project, func() time.Time { return now }).Plan(refs)
	if err != nil {
		w.t.Fatal(err)
	}
	e := online.Entities{Len: len(keys), Keys: map[string][]string{}}
	for _, k := range keys {
		e.Keys["a"], e.Keys["b"] = append(e.Keys["a"], k[0]), append(e.Keys["b"], k[1])
	}
	result, err := plan.Read(ctx, e, online.Ask{Seen: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var rows []feature.ServedRow
	for n, features := range result.Rows {
		r := feature.ServedRow{
			ServedAt: now.UnixMicro(), Request: fmt.Sprint(now.UnixNano()), View: view, Definition: w.project.ViewDefinition(v).Hash, Generation: g.Number,
			Entity: []string{keys[n][0], keys[n][1]}, Order: result.Seen[n][0].Order, Guards: result.Seen[n][0].Guards, Marks: g.Marks,
		}
		if v.Windowed() { // as the server logs it
			own := r.Guards
			r.Guards = map[string]string{"others": fmt.Sprint(g.Others)}
			for p, offset := range g.Base {
				r.Guards[p] = fmt.Sprint(offset)
			}
			maps.Copy(r.Guards, own)
		}
		for _, f := range features {
			r.Features, r.Statuses = append(r.Features, f.Ref.Feature), append(r.Statuses, string(f.Status))
			var value *string
			if !f.Value.Null {
				value = &f.Value.Text
			}
			r.Values = append(r.Values, value)
		}
		rows = append(rows, r)
	}
	return rows
}

func (w *onlineWorld) log(rows ...feature.ServedRow) {
	w.t.Helper()
	ctx := context.Background()
	l, err := w.lake.OpenFeatureLog(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := l.Append(ctx, rows); err != nil {
		w.t.Fatal(err)
	}
}

func (w *onlineWorld) verifyServed(view string, since time.Time) *ServedReport {
	w.t.Helper()
	r, err := Served(context.Background(), w.lake, w.project, w.project.View(view), since, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// Whatever is read while changes come, late ones and deletes too, is what the log makes of it at the position that it rests on.
func TestServedRandom(t *testing.T) {
	w := newOnlineWorld(t)
	r := random(t)
	changes := randomChanges(r, 200, false)
	w.take(true, false, changes[:40]...)
	views := []string{"all", "calc", "feast", "short"}
	for _, view := range views {
		w.build(view)
	}
	keys := [][2]string{{"nobody", "3"}}
	for _, c := range changes {
		keys = append(keys, [2]string{c.a, fmt.Sprint(c.b)})
	}
	count := map[string]int{}
	for i, left := 0, changes[40:]; len(left) > 0; i++ {
		n := min(1+r.IntN(30), len(left))
		w.take(true, true, left[:n]...)
		left = left[n:]
		for _, view := range views {
			read := w.read(view, time.Now(), keys[r.IntN(len(keys))], keys[r.IntN(len(keys))], keys[0])
			w.log(read...)
			count[view] += len(read)
		}
	}
	for _, view := range views {
		report := w.verifyServed(view, time.Time{})
		if !report.OK() || int(report.Rows) != count[view] || int(report.Values) != count[view]*len(w.project.View(view).Features) || report.Unmarked > 0 {
			t.Errorf("of %d rows: %+v\n%s", count[view], report, text(report.Findings))
		}
	}
	if report := w.verifyServed("all", time.Now().Add(time.Hour)); report.Rows != 0 || !report.OK() {
		t.Errorf("since a time to come: %+v", report)
	}
	w.project.View("all").Features = slices.Clone(w.project.View("all").Features[1:])
	if report := w.verifyServed("all", time.Time{}); report.Rows != 0 || int(report.Other) != count["all"] {
		t.Errorf("of another definition: %+v", report)
	}
}

// Every check finds what it is for, and says which entity, which feature, when and both values.
func TestServedTampered(t *testing.T) {
	w := newOnlineWorld(t)
	w.take(true, false,
		change{a: "k", b: 1, at: 1000, topic: "thing.v1", offset: 0, values: map[string]any{"s": "A", "x": 0.1}},
		change{a: "k", b: 1, at: 2000, topic: "thing.v1", offset: 1, values: map[string]any{"s": "B", "x": 0.2}},
		change{a: "gone", b: 1, at: 1000, topic: "thing.v1", offset: 2, deleted: true},
	)
	w.build("all")
	w.build("short")
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	order := func(at, offset int64) string {
		return feature.Order{EventTime: at * 1e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
	}
	value := func(s string) *string { return &s }
	for i, c := range []struct {
		what, view, entity string
		tamper             func(r *feature.ServedRow)
		differing          int64 // -1 where it is not settled
		text               string
	}{
		{"nothing", "all", "k", func(*feature.ServedRow) {}, 0, ""},
		{"nothing of a delete", "all", "gone", func(*feature.ServedRow) {}, 0, ""},
		{"nothing of an unknown entity", "all", "nobody", func(*feature.ServedRow) {}, 0, ""},
		{"a value", "all", "k", func(r *feature.ServedRow) { r.Values[0] = value("C") }, 1, `s was served as "C", and is "B"`},
		{"a value that is null", "all", "k", func(r *feature.ServedRow) { r.Values[2], r.Statuses[2] = value("1"), "PRESENT" }, 1, `m was served as "1", and is NULL_VALUE`},
		{"a null that is a value", "all", "k", func(r *feature.ServedRow) { r.Values[0], r.Statuses[0] = nil, "NULL_VALUE" }, 1, `s was served as NULL_VALUE, and is "B"`},
		{"a status", "all", "k", func(r *feature.ServedRow) { r.Statuses[0] = "OUTSIDE_MAX_AGE" }, 1, `s was served as OUTSIDE_MAX_AGE, and is "B"`},
		{"a value of a deleted entity", "all", "gone", func(r *feature.ServedRow) { r.Values[0], r.Statuses[0] = value("C"), "PRESENT" }, 1, `s was served as "C", and is NOT_FOUND`},
		{"a value of an unknown entity", "all", "nobody", func(r *feature.ServedRow) { r.Values[0], r.Statuses[0] = value("C"), "PRESENT" }, 1, `s was served as "C", and is NOT_FOUND`},
		{"an older change", "all", "k", func(r *feature.ServedRow) {
			r.Order, r.Values[0], r.Values[1] = order(1000, 0), value("A"), value("0.1")
		}, 6,
			"it rests on the change " + order(1000, 0) + ", and Redis had taken " + order(2000, 1) + " by then"},
		{"an older change that was all that Redis had", "all", "k", func(r *feature.ServedRow) {
			r.Order, r.Values[0], r.Values[1] = order(1000, 0), value("A"), value("0.1")
			r.Marks = map[feature.Partition]int64{{Topic: "thing.v1"}: 1}
		}, 0, ""},
		{"a lost entity", "all", "k", func(r *feature.ServedRow) {
			r.Order = ""
			for i := range r.Values {
				r.Values[i], r.Statuses[i] = nil, "NOT_FOUND"
			}
		}, 6, "it rests on no change, and Redis had taken " + order(2000, 1)},
		{"a change that there isn't", "all", "k", func(r *feature.ServedRow) { r.Order = order(3000, 0) }, 6, "the log has none such of the entity"},
		{"a guard that is none", "all", "k", func(r *feature.ServedRow) { r.Order = "z" }, 6, "the log has none such of the entity"},
		{"a change to come", "all", "k", func(r *feature.ServedRow) { r.Order = order(3000, 3) }, -1, ""},
		{"an age", "short", "k", func(r *feature.ServedRow) {
			r.Order, r.Values[0], r.Statuses[0] = order(2000, 1), value("B"), "PRESENT"
		}, 1,
			`s was served as "B", and is OUTSIDE_MAX_AGE`},
		{"an age that is told", "short", "k", func(r *feature.ServedRow) { r.Order, r.Statuses[0] = order(2000, 1), "OUTSIDE_MAX_AGE" }, 0, ""},
		{"an expired hash", "short", "k", func(r *feature.ServedRow) { r.Order, r.Values[0], r.Statuses[0] = "", nil, "NOT_FOUND" }, 0, ""},
		{"a hash that expired too soon", "short", "k", func(r *feature.ServedRow) {
			r.ServedAt, r.Order, r.Values[0], r.Statuses[0] = 2000e6+3600e6, "", nil, "NOT_FOUND"
		}, 1, "it rests on no change"},
	} {
		t.Run(c.what, func(t *testing.T) {
			at := now.Add(time.Duration(i) * time.Minute)
			r := w.read(c.view, at, [2]string{c.entity, "1"})[0]
			c.tamper(&r)
			w.log(r)
			// Each is looked at alone: those before differ, too.
			report := w.verifyServed(c.view, at)
			if r.ServedAt < at.UnixMicro() {
				report = w.verifyServed(c.view, time.Time{})
			}
			switch {
			case c.differing < 0:
				if report.NotSettled != 1 || report.Total != 0 {
					t.Errorf("%+v\n%s", report, text(report.Findings))
				}
			case report.Differing < c.differing || c.differing == 0 && !report.OK():
				t.Errorf("%+v\n%s", report, text(report.Findings))
			case c.differing > 0 && (report.Share == 0 || !slices.ContainsFunc(report.First, func(f Finding) bool {
				return f.Kind == WrongServed && f.Key == c.entity+"|1" && strings.Contains(f.Text, c.text) && strings.HasPrefix(f.Text, time.UnixMicro(r.ServedAt).UTC().Format(time.RFC3339Nano))
			})):
				t.Errorf("want %q in\n%s", c.text, text(report.Findings))
			}
		})
	}
}

func TestServedLeavesOut(t *testing.T) {
	w := newOnlineWorld(t)
	if _, err := Served(context.Background(), w.lake, w.project, w.project.View("all"), time.Time{}, Options{}); err == nil || !strings.Contains(err.Error(), "loam serve --log-features 1") {
		t.Errorf("nothing was logged: %v", err)
	}
	w.take(true, false, change{a: "k", b: 1, at: 1000, topic: "thing.v1", offset: 0})
	w.build("all")
	r := w.read("all", time.Now(), [2]string{"k", "1"})[0]
	r.Marks = nil
	w.log(r)
	if report := w.verifyServed("all", time.Time{}); report.Unmarked != 1 || !report.OK() {
		t.Errorf("without marks: %+v", report)
	}
	wrong := "another"
	r.Values[0], r.Statuses[0], r.Guards = &wrong, "PRESENT", map[string]string{"as_of": "2026-11-01T00:00:00Z"}
	w.log(r)
	if report := w.verifyServed("all", time.Time{}); report.AsOf != 1 || report.Rows != 1 || !report.OK() {
		t.Errorf("as of an instant: %+v", report)
	}
	if report := newHistoryWorld(t, feature.PatchPayload).verifyServed("past", time.Time{}); !strings.Contains(report.Skipped, "windows over history") {
		t.Errorf("windows over history: %+v", report)
	}

	// Events of windows may all be in what the generation was built from. Where that isn't known either, as right after a switch, nothing
	// says which they are.
	w = newTilesWorld(t)
	w.take(true, false, w.facts(random(t), "fact.v1", 60)...)
	w.build("every")
	r = w.read("every", time.Now(), [2]string{"a", "1"})[0]
	r.Marks, r.Guards = nil, map[string]string{}
	w.log(r)
	if report := w.verifyServed("every", time.Time{}); report.OtherBase != 1 || report.Unmarked != 0 || report.Values != 0 || !report.OK() {
		t.Errorf("windows without marks: %+v\n%s", report, text(report.Findings))
	}
}

// Windows that are read while events come are what loops over the log make of them; what is altered is named.
func TestServedWindows(t *testing.T) {
	w, r := newTilesWorld(t), random(t)
	w.take(true, false, w.facts(r, "fact.v1", 60)...)
	w.take(true, false, w.facts(r, "file:abc", 30)...)
	views := []string{"every", "one", "set"}
	for _, view := range views {
		w.build(view)
	}
	begun := time.Now()
	rows := map[string][]feature.ServedRow{}
	for range 5 {
		w.take(true, true, w.facts(r, "fact.v1", 20)...)
		for _, view := range views {
			for range 3 {
				key := [2]string{string(rune('a' + r.IntN(6))), fmt.Sprint(r.IntN(2))} // of which some have no events
				rows[view] = append(rows[view], w.read(view, time.Now(), key)...)
			}
			w.log(rows[view][len(rows[view])-3:]...)
		}
	}
	for _, view := range views {
		report := w.verifyServed(view, begun)
		if !report.OK() || report.Rows != 15 || int(report.Values) != 15*len(w.project.View(view).FeatureNames()) {
			t.Errorf("%s: %+v\n%s", view, report, text(report.Findings))
		}
	}

	const week = 1 // of the features of every: the count over 7 days
	for _, c := range []struct {
		what  string
		alter func(row *feature.ServedRow)
		text  string // "" where it is not settled
	}{
		{"a value", func(row *feature.ServedRow) { v := "999"; row.Values[week] = &v }, `was served as "999", and is `},
		{"a status", func(row *feature.ServedRow) { row.Values[week], row.Statuses[week] = nil, "NOT_FOUND" }, "was served as NOT_FOUND, and is "},
		{"guards and marks of before", func(row *feature.ServedRow) {
			row.Marks = nil
			row.Guards = map[string]string{"fact.v1:0": "0", "others": row.Guards["others"]}
		}, "was served as "},
		{"guards to come", func(row *feature.ServedRow) { row.Guards["fact.v1:0"] = "100000" }, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			var row feature.ServedRow
			for _, one := range rows["every"] { // one whose count isn't 0
				if *one.Values[week] != "0" {
					row = one
				}
			}
			row.Values, row.Statuses, row.Guards = slices.Clone(row.Values), slices.Clone(row.Statuses), maps.Clone(row.Guards)
			c.alter(&row)
			since := time.UnixMicro(row.ServedAt)
			row.Request = c.what
			w.log(row)
			report := w.verifyServed("every", since)
			if c.text == "" {
				if report.NotSettled != 1 {
					t.Errorf("%+v", report)
				}
				return
			}
			if !slices.ContainsFunc(report.First, func(f Finding) bool {
				return f.Kind == WrongServed && f.Key == strings.Join(row.Entity, "|") && strings.Contains(f.Text, "request "+c.what+":") && strings.Contains(f.Text, c.text)
			}) {
				t.Errorf("want %q in %+v\n%s", c.text, report, text(report.Findings))
			}
		})
	}
}

// A row of windows of which the generation's base isn't known, for it was new when it was read, can't be recomputed: it is counted once.
func TestServedWindowsWithoutBase(t *testing.T) {
	for _, topics := range [][]string{{"fact.v1"}, {"fact.v1", "file:abc"}} {
		w, r := newTilesWorld(t), random(t)
		for _, topic := range topics {
			w.take(true, false, w.facts(r, topic, 60)...)
		}
		w.build("every")
		var rows []feature.ServedRow
		for key := range 6 {
			row := w.read("every", time.Now(), [2]string{string(rune('a' + key)), "0"})[0]
			row.Marks, row.Guards = nil, map[string]string{} // all is in the base, and no entity has a guard of its own
			rows = append(rows, row)
		}
		w.log(rows...)
		if report := w.verifyServed("every", time.Time{}); !report.OK() || report.OtherBase != 6 || report.Unmarked != 0 || report.Values != 0 {
			t.Errorf("of %v: %+v\n%s", topics, report, text(report.Findings))
		}
	}
}

// A file that is backfilled later changes the base: what rested on another one can't be recomputed where the entity has events of files, and
// is left out; all else still is.
func TestServedWindowsOfAnotherBase(t *testing.T) {
	w, r := newTilesWorld(t), random(t)
	live := w.facts(r, "fact.v1", 30)
	for i := range live {
		live[i].a, live[i].b = "live", 0
	}
	filed := w.facts(r, "file:abc", 5)
	for i := range filed {
		filed[i].a, filed[i].b, filed[i].at = "filed", 0, time.Now().Unix()-60
	}
	w.take(true, false, live...)
	w.take(true, false, filed[:4]...)
	w.build("every")
	w.log(w.read("every", time.Now(), [2]string{"live", "0"}, [2]string{"filed", "0"})...)
	values := int64(len(w.project.View("every").FeatureNames()))
	if report := w.verifyServed("every", time.Time{}); !report.OK() || report.OtherBase != 0 || report.Values != 2*values {
		t.Errorf("before: %+v\n%s", report, text(report.Findings))
	}
	w.take(true, false, filed[4:]...)
	if report := w.verifyServed("every", time.Time{}); !report.OK() || report.OtherBase != 1 || report.Unmarked != 0 || report.Values != values {
		t.Errorf("after: %+v\n%s", report, text(report.Findings))
	}
}
