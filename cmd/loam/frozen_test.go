package main

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

const frozenStreams = phasesStream + `---
stream: plain
kind: state
format: row
key: [id]
event_time: at
columns: [{name: id, type: string}, {name: v, type: int64}]
---
stream: score
kind: state
format: row
payload: patch
key: [id]
event_time: at
processed_time: got
id: position
delete_when: gone
columns: [{name: id, type: string}, {name: churn, type: double}, {name: segment, type: string}, {name: gone, type: bool}]
---
stream: fact
kind: event
format: row
key: [fact_id]
event_time: at
processed_time: got
id: fact_id
cluster_by: id
columns: [{name: fact_id, type: string}, {name: id, type: string}, {name: n, type: int64}, {name: s, type: string}]
`

const frozenViews = `entities: [{name: phase, join_keys: [part, id]}, {name: who, join_keys: [id]}]
views:
  - name: past
    entity: phase
    stream: phase
    aggregates: [{name: changes, fn: changes, windows: [30d]}, {name: days, fn: days_since_change}]
  - {name: state, entity: phase, stream: phase, ttl: 12d, features: [v, x, {name: double_v, type: int64, sql: "v * 2"}]}
  - {name: kept, entity: who, stream: plain, layout: feast, features: [v]}
  - {name: scores, entity: who, stream: score, ttl: 12d, features: [churn, segment, {name: high, type: bool, sql: "churn > 0.5"}]}
  - name: moods
    entity: who
    stream: score
    aggregates:
      - {name: changes, fn: changes, windows: [30d]}
      - {name: churned, fn: changes, column: churn, where: "segment = 'x'", windows: [1d, 30d]}
      - {name: high, fn: time_in_state, where: "churn > 0.5 AND segment IS NULL", windows: [30d]}
      - {name: days, fn: days_since_change, column: segment}
  - name: facts
    entity: who
    stream: fact
    aggregates:
      - {name: rows, fn: count, windows: [1d, 30d]}
      - {name: n, fn: sum, column: n, windows: [30d]}
      - {name: s, fn: last, column: s, where: "n > 0", windows: [1d, 30d]}
      - {name: kinds, fn: distinct, column: s, windows: [30d]}
`

// frozenWorld is a project with views of every kind in a Redis, the one at LOAM_TEST_REDIS where that is set, and events of 40 days.
type frozenWorld struct {
	*app
	t    *testing.T
	r    *rand.Rand
	now  time.Time
	said *strings.Builder
	p    *feature.Project
}

func newFrozenWorld(t *testing.T) *frozenWorld {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	address := os.Getenv("LOAM_TEST_REDIS")
	if address == "" {
		address = miniredis.RunT(t).Addr()
	}
	w := &frozenWorld{t: t, r: rand.New(rand.NewPCG(seed, 5)), now: time.Now().UTC().Truncate(time.Second), said: &strings.Builder{}}
	w.app = &app{dir: t.TempDir(), out: w.said, err: io.Discard, now: time.Now}
	w.write("loam.yaml", fmt.Sprintf("project: test%d\nonline: {redis: %s}\n", time.Now().UnixNano(), address))
	for i, text := range strings.Split(frozenStreams, "---\n") {
		w.write(fmt.Sprintf("streams/s%d.yaml", i), text)
	}
	w.write("features/f.yaml", frozenViews)
	var err error
	w.p, err = w.load(t.Context())
	w.check(err)
	t.Cleanup(func() {
		c := redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
		defer c.Close()
		keys := c.Keys(t.Context(), w.p.Name+":*").Val()
		if len(keys) > 0 {
			c.Del(t.Context(), keys...)
		}
	})
	return w
}

func (w *frozenWorld) write(name, text string) {
	w.t.Helper()
	writeFile(w.t, filepath.Join(w.dir, name), text)
}

func (w *frozenWorld) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.said)
	}
}

// take backfills events of each stream, which happened within a span before now, and of which some came late.
func (w *frozenWorld) take(n int, span time.Duration) {
	w.t.Helper()
	pick := func(values ...string) string { return values[w.r.IntN(len(values))] }
	moments := func() string {
		at := w.now.Add(-time.Duration(w.r.Int64N(int64(span))))
		got := at
		if w.r.IntN(3) == 0 {
			got = at.Add(time.Duration(w.r.Int64N(int64(w.now.Sub(at)) + 1)))
		}
		return at.Format(time.RFC3339Nano) + "," + got.Format(time.RFC3339Nano)
	}
	phases, scores, facts := "id,part,at,got,v,x,gone,seq\n", "", "fact_id,id,at,got,n,s\n"
	for range n {
		phases += strings.Join([]string{pick("a", "b", "c", "d|e"), pick("0", "-1"), moments(), pick("", "1", "2"), pick("", "0", "1.5"),
			pick("true", "false", "false", "false"), pick("", "1", "2")}, ",") + "\n"
		at, got, _ := strings.Cut(moments(), ",")
		scores += fmt.Sprintf(`{"id":"%s","at":"%s","got":"%s"%s}`+"\n", pick("a", "b", "c", "d|e"), at, got,
			pick(`,"churn":0.25`, `,"churn":0.75`, `,"churn":null`, `,"segment":"x"`, `,"segment":null,"churn":1.0`, `,"gone":true`))
		facts += strings.Join([]string{fmt.Sprint(w.r.Uint64()), pick("a", "b", "c", "d|e"), moments(), pick("", "0", "1", "-7"), pick("", "p", "q", "r")}, ",") + "\n"
	}
	for stream, text := range map[string]string{"phase.csv": phases, "score.jsonl": scores, "fact.csv": facts} {
		w.write(stream, text)
		name, _, _ := strings.Cut(stream, ".")
		w.check(w.backfill(w.t.Context(), []string{filepath.Join(w.dir, stream)}, backfillOptions{stream: name}))
	}
}

// hold compares what is served of the views with a training set for labels at an instant.
func (w *frozenWorld) hold(what string, instant time.Time, views ...string) {
	w.t.Helper()
	ctx := w.t.Context()
	refs, err := w.p.Resolve(views)
	w.check(err)
	var entities []map[string]string
	for _, id := range []string{"a", "b", "c", "d|e", "nobody"} {
		for _, part := range []string{"0", "-1"} {
			entities = append(entities, map[string]string{"id": id, "part": part})
		}
	}
	out := w.offline(w.t, views, entities, instant)
	store, err := openStore(ctx, w.p)
	w.check(err)
	defer store.Close()
	result, err := online.NewClient(store, w.p, func() time.Time { return w.now }).Result(ctx, refs, entities)
	w.check(err)
	present := 0
	holdOffline(w.t, w.p, what, out, entities, result.Rows, func(f online.Feature) bool {
		if f.Status == online.Present {
			present++
		}
		return true
	})
	if present < 2*len(entities) {
		w.t.Errorf("%s: %d values are there", what, present)
	}
	for _, v := range views {
		if at, frozen := result.AsOf[v]; frozen != !instant.Equal(w.now) && !w.p.OverHistory(w.p.View(v)) || frozen && !at.Equal(instant) {
			w.t.Errorf("%s: %s is of %v, want %v", what, v, result.AsOf[v], instant)
		}
	}
}

// A view that is frozen says what a training set says for that time: with deletes, patches, windows, times to live and changes that came late.
// Neither what comes later nor a Redis that lost it makes another of it, until it is materialized as of now.
func TestFrozenAsInTrainingSets(t *testing.T) {
	w := newFrozenWorld(t)
	ctx, views := t.Context(), []string{"past", "state", "scores", "facts", "moods"}
	w.take(150, 40*24*time.Hour)
	w.check(w.materialize(ctx, nil, nil))
	w.hold("now", w.now, "state", "scores", "facts")
	var at time.Time
	for _, ago := range []time.Duration{23 * 24 * time.Hour, 3*time.Hour + 5*time.Microsecond, time.Duration(w.r.Int64N(int64(30 * 24 * time.Hour)))} {
		at = w.now.Add(-ago).Truncate(time.Microsecond)
		w.check(w.materialize(ctx, nil, &at))
		w.hold("frozen", at, views...)
		w.check(w.verifyOnline(ctx, nil, 2))
	}

	w.said.Reset()
	w.check(w.materialize(ctx, nil, &at))
	if want := "kept: left out, a view in Feast's layout can't be as of an instant"; !strings.Contains(w.said.String(), want) {
		t.Errorf("materialize says\n%s", w.said)
	}
	if err := w.materialize(ctx, []string{"kept"}, &at); err == nil || !strings.Contains(err.Error(), "feature view kept: a view in Feast's layout") {
		t.Errorf("a view in Feast's layout: %v", err)
	}

	// Later changes of these entities come to the lake alone.
	live := w.now
	w.now = live.Add(time.Second)
	w.take(30, time.Second)
	w.hold("frozen, and more came", at, views...)
	w.check(w.verifyOnline(ctx, nil, 0))

	l, err := openLake(ctx, w.p)
	w.check(err)
	defer l.Close()
	store, err := openStore(ctx, w.p)
	w.check(err)
	defer store.Close()
	loop := &onlineLoop{store: store, lake: l, project: w.p, now: time.Now}
	for _, v := range views {
		w.check(store.Forget(ctx, v))
		_, asOf, err := loop.rebuild(ctx, w.p.View(v))
		w.check(err)
		if asOf == nil || !asOf.Equal(at) {
			t.Errorf("%s was lost, and is of %v", v, asOf)
		}
	}
	w.hold("frozen, and lost", at, views...)
	frozen := func() map[string]time.Time {
		all := map[string]time.Time{}
		for _, s := range w.p.Streams {
			reading, err := l.Read(ctx, s)
			w.check(err)
			some, err := reading.Frozen()
			w.check(err)
			maps.Copy(all, some)
		}
		return all
	}
	if all := frozen(); len(all) != len(views) || !all["state"].Equal(at) {
		t.Errorf("frozen are %v", all)
	}
	w.said.Reset()
	w.check(w.status(ctx, nil))
	if want := "feature view state is frozen as of " + moment(at.UnixMicro()) + ": `loam materialize --view state` serves what is now again"; !strings.Contains(w.said.String(), want) {
		t.Errorf("status says\n%s", w.said)
	}
	w.said.Reset()
	w.check(w.get(ctx, []string{"state:v", "past:days"}, "", []map[string]string{{"id": "a", "part": "0"}}))
	if got := w.said.String(); strings.Count(got, "is frozen as of "+moment(at.UnixMicro())) != 1 {
		t.Errorf("get says\n%s", got)
	}

	w.check(w.materialize(ctx, nil, nil))
	if all := frozen(); len(all) > 0 {
		t.Errorf("frozen are %v", all)
	}
	w.hold("now again", w.now, "state", "scores", "facts")
	w.check(w.verifyOnline(ctx, nil, 0))
}
