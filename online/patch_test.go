package online

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
)

const patchProject = `stream: thing
kind: state
format: envelope
payload: patch
key: [b, a]
columns:
  - {name: a, type: string}
  - {name: b, type: int64}
  - {name: n, type: int64}
  - {name: s, type: string}
  - {name: m, type: int64}
`

const patchViews = `entities: [{name: thing, join_keys: [b, a]}]
views:
  - {name: all, entity: thing, stream: thing, features: [n, s, m, a]}
  - name: calc
    entity: thing
    stream: thing
    features: [n, {name: known, type: bool, sql: "s IS NOT NULL"}, {name: twice, type: int64, sql: "n + n"}, s]
  - {name: short, entity: thing, stream: thing, ttl: 1h, features: [n, s, {name: more, type: int64, sql: "n + 1"}]}
`

// patched is what a patch carries: its columns as JSON.
type patched map[string]string

// randomPatch carries some columns, few of them null; i is a value that no other has.
func randomPatch(r *rand.Rand, i int) patched {
	p := patched{}
	for _, column := range []string{"n", "m"} {
		switch r.IntN(5) {
		case 0, 1:
			p[column] = fmt.Sprint(i)
		case 2:
			p[column] = "null"
		}
	}
	switch r.IntN(4) {
	case 0:
		p["s"] = fmt.Sprintf(`"s%d"`, i)
	case 1:
		p["s"] = `""`
	case 2:
		p["s"] = "null"
	}
	return p
}

func (p patched) text() string {
	text := ""
	for _, column := range slices.Sorted(maps.Keys(p)) {
		text += fmt.Sprintf(`,%q:%s`, column, p[column])
	}
	return text
}

// patchChange is a change of the oracle.
type patchChange struct {
	a       string
	seconds int
	deleted bool
	carries patched
}

// patchState is what changes make, taken one by one in their order: nil where the entity does not exist.
type patchState struct {
	newest int
	fields map[string]patchField
}

type patchField struct {
	value   string // JSON
	seconds int
}

func stateOf(changes []patchChange, a string) *patchState {
	var state *patchState
	inOrder := slices.Clone(changes)
	slices.SortStableFunc(inOrder, func(x, y patchChange) int { return cmp.Compare(x.seconds, y.seconds) })
	for _, c := range inOrder {
		switch {
		case c.a != a:
		case c.deleted:
			state = nil
		default:
			if state == nil {
				state = &patchState{fields: map[string]patchField{}}
			}
			state.newest = c.seconds
			for column, value := range c.carries {
				state.fields[column] = patchField{value, c.seconds}
			}
		}
	}
	return state
}

// shown is a column as show writes it.
func (s *patchState) shown(column string) string {
	if s == nil {
		return column + "=NOT_FOUND"
	}
	f, carried := s.fields[column]
	if !carried || f.value == "null" {
		return column + "=NULL_VALUE"
	}
	return column + "=" + f.value
}

func randomPatches(r *rand.Rand, count, keys, seconds int) ([]patchChange, []string) {
	changes, events := make([]patchChange, count), make([]string, count)
	for i := range changes {
		c := patchChange{a: string(rune('a' + r.IntN(keys))), seconds: r.IntN(seconds), carries: randomPatch(r, i)}
		verb := "updated"
		if c.deleted = r.IntN(8) == 0; c.deleted {
			verb = "deleted"
		}
		changes[i], events[i] = c, event(i, c.a, 1, c.seconds, verb, c.carries.text())
	}
	return changes, events
}

// Whatever the order, the batches and the repetitions of writes, each column stays as it was last carried, on top of the
// snapshot or without it.
func TestPatchesInAnyOrder(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadFiles(t, patchProject, patchViews)
		ctx := context.Background()
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 7))
		w, calc := writer(t, s, p, "all"), writer(t, s, p, "calc")
		l := openLake(t, p)
		changes, events := randomPatches(r, 400, 26, 60)
		whole, half := batchOf(t, p.Stream("thing"), 0, events), batchOf(t, p.Stream("thing"), 0, events[:150])
		defer whole.Release()
		defer half.Release()
		commitTo(t, l, half)
		g, gCalc := built(t, s, w, l), built(t, s, calc, l)
		check := func(what string, changes []patchChange) {
			t.Helper()
			for k := range 26 {
				a := string(rune('a' + k))
				state := stateOf(changes, a)
				key := "a=NOT_FOUND"
				if state != nil {
					key = fmt.Sprintf("a=%q", a)
				}
				want := strings.Join([]string{state.shown("n"), state.shown("s"), state.shown("m"), key}, " ")
				if got := show(t, s, p, base, a, "1", "all"); got != want {
					t.Errorf("%s, %s: %s, want %s", what, a, got, want)
				}
			}
		}
		check("built", changes[:150])
		for range 30 {
			from := r.Int64N(400)
			part := whole.Rows[0].NewSlice(from, from+1+r.Int64N(min(20, 400-from)))
			if _, err := w.Write(ctx, []int64{g.Number}, []arrow.RecordBatch{part}); err != nil {
				t.Fatal(err)
			}
			part.Release()
		}
		for _, i := range r.Perm(400) {
			one := whole.Rows[0].NewSlice(int64(i), int64(i)+1)
			if _, err := w.Write(ctx, []int64{g.Number}, []arrow.RecordBatch{one}); err != nil {
				t.Fatal(err)
			}
			one.Release()
		}
		check("written", changes)
		if _, err := calc.Write(ctx, []int64{gCalc.Number}, whole.Rows); err != nil {
			t.Fatal(err)
		}
		for k := range 26 {
			a := string(rune('a' + k))
			state := stateOf(changes, a)
			want := []string{state.shown("n"), "known=NOT_FOUND", "twice=NOT_FOUND", state.shown("s")}
			if state != nil {
				want[1], want[2] = "known=NULL_VALUE", "twice=NULL_VALUE"
				if f, carried := state.fields["s"]; carried {
					want[1] = fmt.Sprintf("known=%v", f.value != "null")
				}
				var n int
				if _, err := fmt.Sscan(state.fields["n"].value, &n); err == nil {
					want[2] = fmt.Sprintf("twice=%d", 2*n)
				}
			}
			if got := show(t, s, p, base, a, "1", "calc"); got != strings.Join(want, " ") {
				t.Errorf("%s: %s, want %s", a, got, strings.Join(want, " "))
			}
		}
	})
}

// Each column is as old as the change that last carried it, whatever else was written, even where the hash expired in
// between; the hash goes by the newest change.
func TestPatchesTimeToLive(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadFiles(t, patchProject, patchViews)
		ctx := context.Background()
		r := rand.New(rand.NewPCG(11, 7))
		now := time.Now().UTC().Truncate(time.Second) // so that a real server keeps what is young
		seconds := int(now.Sub(base)/time.Second) - 9000
		w := writer(t, s, p, "short")
		g := built(t, s, w, openLake(t, p))
		changes, _ := randomPatches(r, 300, 12, 9000)
		var events []string
		for i := range changes {
			changes[i].seconds += seconds
			verb := "updated"
			if changes[i].deleted {
				verb = "deleted"
			}
			events = append(events, event(i, changes[i].a, 1, changes[i].seconds, verb, changes[i].carries.text()))
		}
		whole := batchOf(t, p.Stream("thing"), 0, events)
		defer whole.Release()
		for _, i := range r.Perm(300) {
			one := whole.Rows[0].NewSlice(int64(i), int64(i)+1)
			if _, err := w.Write(ctx, []int64{g.Number}, []arrow.RecordBatch{one}); err != nil {
				t.Fatal(err)
			}
			one.Release()
		}
		young := 0
		for k := range 12 {
			a := string(rune('a' + k))
			state := stateOf(changes, a)
			for _, later := range []int{0, 600, 3600} {
				at := now.Add(time.Duration(later) * time.Second)
				got := strings.Fields(show(t, s, p, at, a, "1", "short:n", "short:s"))
				for i, column := range []string{"n", "s"} {
					want := state.shown(column)
					old := state != nil && int(at.Sub(base)/time.Second)-state.fields[column].seconds > 3600
					switch _, value, _ := strings.Cut(got[i], "="); {
					case old && (value == "OUTSIDE_MAX_AGE" || value == "NULL_VALUE" || value == "NOT_FOUND"): // what is too old may be gone
					case old || got[i] != want:
						t.Errorf("%s after %d s: %s, want %s, too old: %v", a, later, got[i], want, old)
					case state != nil:
						young++
					}
				}
			}
		}
		if young == 0 {
			t.Error("nothing was young enough to be served")
		}
	})
}

// The layout is frozen: docs/redis.md.
func TestPatchLayout(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadFiles(t, patchProject, patchViews)
		ctx := context.Background()
		w := writer(t, s, p, "calc")
		g := built(t, s, w, openLake(t, p))
		b := batchOf(t, p.Stream("thing"), 0, []string{
			event(0, "k", 1, 0, "created", `,"n":7,"s":"x"`),
			event(1, "k", 1, 20, "updated", `,"s":null`),
			event(2, "k", 1, 10, "updated", `,"n":8,"s":"y"`), // late
			event(3, "g", 1, 0, "created", `,"n":7`),
			event(4, "g", 1, 30, "deleted", ``),
			event(5, "r", 1, 30, "deleted", ``),
			event(6, "r", 1, 40, "created", `,"m":1`),
		})
		defer b.Release()
		if _, err := w.Write(ctx, []int64{g.Number}, b.Rows); err != nil {
			t.Fatal(err)
		}
		order := func(offset int64, seconds int64) string {
			return feature.Order{EventTime: base.UnixMicro() + seconds*1e6, Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}.String()
		}
		for a, want := range map[string]map[string]string{
			"k": {"_v": order(1, 20), "_v:n": order(2, 10), "_v:s": order(1, 20), "0": "8", "2": "16", "1": "false"},
			"g": {"_v": order(4, 30), "_d": order(4, 30)},
			"r": {"_v": order(6, 40), "_d": order(5, 30)},
		} {
			got, err := s.redis.HGetAll(ctx, entityKey(keyPrefix(s.project, "calc", g.Number), "thing", []string{a, "1"})).Result()
			if err != nil || !maps.Equal(got, want) {
				t.Errorf("%s: %v, %v, want %v", a, got, err, want)
			}
		}
		if err := s.redis.HSet(ctx, entityKey(keyPrefix(s.project, "calc", g.Number), "thing", []string{"k", "1"}), "_v:n", "x").Err(); err != nil {
			t.Fatal(err)
		}
		refs, err := p.Resolve([]string{"calc:n"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewClient(s, p, time.Now).Read(ctx, refs, []map[string]string{{"a": "k", "b": "1"}})
		if err == nil || !strings.Contains(err.Error(), "guard of column n is not loam's") {
			t.Errorf("a guard that is none: %v", err)
		}
	})
}
