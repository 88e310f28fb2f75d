package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/online"
)

const phasesStream = `stream: phase
kind: state
format: row
key: [id, part]
event_time: at
sequence: seq
processed_time: got
id: position
delete_when: gone
columns: [{name: id, type: string}, {name: part, type: int64}, {name: v, type: int64}, {name: x, type: double}, {name: gone, type: bool}, {name: seq, type: int64}]
`

const phasesViews = `entities: [{name: phase, join_keys: [part, id]}]
views:
  - name: past
    entity: phase
    stream: phase
    aggregates:
      - {name: changes, fn: changes, windows: [15m, 1d, 30d]}
      - {name: v_changes, fn: changes, column: v, where: "x > 0", windows: [30d]}
      - {name: in_two, fn: time_in_state, where: "v = 2", windows: [15m, 1d, 30d]}
      - {name: days, fn: days_since_change}
      - {name: two_days, fn: days_since_change, where: "v = 2"}
  - {name: now, entity: phase, stream: phase, features: [v, {name: double_v, type: int64, sql: "v * 2"}]}
  - name: both
    on_demand: {inputs: ["past:changes_30d", "past:days", "now:v"]}
    features: [{name: share, type: double, sql: "v / changes_30d"}, {name: quiet, type: bool, sql: "days IS NULL OR days > 10"}]
`

// What windows over history say online is what a training set says for the instant that they are as of: with deletes, gaps, ties and
// changes that came late, of entities that are known, gone and unknown.
func TestHistoryOnlineAsInTrainingSets(t *testing.T) {
	ctx, dir, seed := t.Context(), t.TempDir(), uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	write := func(name, text string) {
		t.Helper()
		writeFile(t, filepath.Join(dir, name), text)
	}
	write("loam.yaml", "project: test\n")
	write("streams/phase.yaml", phasesStream)
	write("features/f.yaml", phasesViews)
	now := time.Now().UTC().Truncate(time.Second)
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	file := "id,part,at,got,v,x,gone,seq\n"
	for range 500 {
		at := now.Add(-time.Duration(r.Int64N(int64(40 * 24 * time.Hour))))
		if r.IntN(3) == 0 { // ties
			at = now.Add(-time.Duration(r.IntN(40)) * 24 * time.Hour)
		}
		got := at
		if r.IntN(3) == 0 {
			got = at.Add(time.Duration(r.Int64N(int64(20 * 24 * time.Hour))))
		}
		file += strings.Join([]string{
			pick("a", "b", "c", "d|e", "f"), pick("0", "-1"), at.Format(time.RFC3339Nano), got.Format(time.RFC3339Nano),
			pick("", "1", "2", "2"), pick("", "0", "1.5", "NaN"), pick("true", "false", "false", "false", "false"), pick("", "", "1", "2"),
		}, ",") + "\n"
	}
	write("phases.csv", file)

	var told strings.Builder
	a := &app{dir: dir, out: &told, err: io.Discard, now: func() time.Time { return now }}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, &told)
		}
	}
	check(a.backfill(ctx, []string{filepath.Join(dir, "phases.csv")}, backfillOptions{stream: "phase"}))
	p, err := a.load(ctx)
	check(err)
	refs, err := p.Resolve([]string{"past:*", "now:*", "both:*"})
	check(err)
	values, statuses := 0, map[online.Status]int{}
	for _, later := range []time.Duration{0, 7*time.Minute + time.Microsecond, 11 * 24 * time.Hour, 60 * 24 * time.Hour, -20 * 24 * time.Hour} {
		instant := now.Add(later)
		var entities []map[string]string
		for _, id := range []string{"a", "b", "c", "d|e", "f", "nobody"} {
			for _, part := range []string{"0", "-1"} {
				entities = append(entities, map[string]string{"id": id, "part": part})
			}
		}
		out := a.offline(t, []string{"past", "now", "both"}, entities, instant)
		a.now = func() time.Time { return instant }
		store, err := a.fromLake(ctx, p, stored(p, refs))
		check(err)
		a.now = time.Now
		rows, err := online.NewClient(store, p, a.now).Read(ctx, refs, entities)
		check(err)
		check(store.Close())
		what := fmt.Sprintf("after %s", later)
		holdOffline(t, p, what, out, entities, rows, func(f online.Feature) bool {
			if later < 60*24*time.Hour && f.Ref.View != "past" { // what the lake has, be it ingested by then or not
				return false
			}
			values++
			statuses[f.Status]++
			if f.Ref.View == "past" && f.Status == online.Present && !f.EventTime.Equal(instant) {
				t.Errorf("%s: %s is of %s", what, f.Ref, f.EventTime)
			}
			return true
		})
	}
	if values < 500 || statuses[online.NotFound] == 0 || statuses[online.Present] < 200 || statuses[online.NullValue] == 0 {
		t.Errorf("%d values, %v", values, statuses)
	}
}
