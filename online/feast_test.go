package online

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

const feastViews = `entities: [{name: thing, join_keys: [b, a]}]
views:
  - {name: all, entity: thing, stream: thing, layout: feast, features: [n, x, yes, day, j, a, {name: m, type: string, sql: "m::varchar"}]}
  - {name: short, entity: thing, stream: thing, layout: feast, ttl: 1h, features: [{name: n, type: int64, sql: "n + 1"}]}
  - {name: calc, entity: thing, stream: thing, layout: feast, features: [{name: n, type: int64, sql: "n + 1"}]}
`

// feastServed are the fields of a view in Feast's layout, without the generation, by key.
func feastServed(t *testing.T, s *Store, p *feature.Project, view string) map[string]string {
	t.Helper()
	v := p.View(view)
	f := newFeastView(s.project, v, p.Entity(v.Entity), p.Stream(v.Stream))
	hashes := map[string]string{}
	err := s.EachFeastHash(context.Background(), func(h Hash) error {
		var fields []string
		for _, name := range append([]string{f.guard}, f.all(view, nil)...) {
			value, there := h.Fields[name]
			if name == f.guard && there {
				value = value[:feature.OrderDigits]
			}
			if there {
				fields = append(fields, fmt.Sprintf("%q=%q", name, value))
			}
		}
		if len(fields) > 0 {
			hashes[h.Key] = strings.Join(fields, " ")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hashes
}

// Keys, fields and values are byte for byte what Feast 0.67 wrote.
func TestFeastBytes(t *testing.T) {
	for _, c := range []struct {
		project string
		names   []string
		kinds   []feature.Kind
		values  []string
		want    string
	}{
		{"crm", []string{"contact_id"}, []feature.Kind{feature.String}, []string{"c000001"},
			"01000000020000000a000000636f6e746163745f6964020000000700000063303030303031" + "63726d"},
		{"crm", []string{"driver_id"}, []feature.Kind{feature.Int64}, []string{"1001"},
			"0100000002000000090000006472697665725f69640400000008000000e903000000000000" + "63726d"},
		{"crm", []string{"contact_id", "tenant"}, []feature.Kind{feature.String, feature.Int64}, []string{"c1", "7"},
			"02000000020000000a000000636f6e746163745f69640200000006000000" + "74656e616e740200000002000000633104000000080000000700000000000000" + "63726d"},
	} {
		got := feastKey(c.project, c.names, c.kinds, c.values)
		if hex.EncodeToString([]byte(got)) != c.want {
			t.Errorf("%v: %x, want %s", c.values, got, c.want)
		}
		if !feastKeyOf(c.project, got) || feastKeyOf("rm", got) || feastKeyOf(c.project, got[1:]) || feastKeyOf(c.project, got+"x") {
			t.Errorf("%v is not told from others", c.values)
		}
	}
	for _, key := range []string{"", "crm", "crm:profile:generations", "\xff\xff\xff\xffcrm", strings.Repeat("\x01", 300) + "crm"} {
		if feastKeyOf("crm", key) {
			t.Errorf("%q is taken as a key of Feast", key)
		}
	}
	for ref, want := range map[string]string{"profile:f_age": "ddbf3949", "engagement:e_ctr": "2cc698cf"} {
		view, name, _ := strings.Cut(ref, ":")
		if got := hex.EncodeToString([]byte(feature.FeastField(view, name))); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	at := time.Date(2026, 10, 31, 12, 38, 18, 0, time.UTC)
	if got := hex.EncodeToString(appendFeastTime(nil, at.UnixMicro())); got != "08bac297d706" {
		t.Error(got)
	}
	for _, us := range []int64{0, 1, -1, -1_000_000, -1_000_001, at.UnixMicro() + 123456, math.MaxInt64 / 1000} {
		if back, err := feastTime(string(appendFeastTime(nil, us))); err != nil || back != us {
			t.Errorf("%d comes back as %d, %v", us, back, err)
		}
	}
	for _, bad := range []string{"\x08", "\x1a\x01", "\x18\x01", "x"} {
		if _, err := feastTime(bad); !errors.Is(err, errNotFeast) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestFeastValues(t *testing.T) {
	column := func(typ arrow.DataType, value string) arrow.Array {
		b := array.NewBuilder(memory.DefaultAllocator, typ)
		defer b.Release()
		if err := b.AppendValueFromString(value); err != nil {
			t.Fatal(err)
		}
		return b.NewArray()
	}
	of := func(k feature.Kind) feature.Type { return feature.Type{Kind: k} }
	for _, c := range []struct {
		typ         feature.Type
		value, want string
	}{
		{of(feature.Int64), "75", "204b"}, {of(feature.Int64), "281", "209902"}, {of(feature.Int64), "0", "2000"},
		{of(feature.Int64), "-1", "20ffffffffffffffffff01"}, {of(feature.Int64), "-9223372036854775808", "2080808080808080808001"},
		{of(feature.Double), "242.01", "29b81e85eb51406e40"}, {of(feature.Double), "0", "290000000000000000"}, {of(feature.Double), "NaN", "29010000000000f87f"},
		{of(feature.String), "enterprise", "120a656e7465727072697365"}, {of(feature.String), "", "1200"}, {of(feature.JSON), "{}", "12027b7d"},
		{of(feature.Bool), "true", "3801"}, {of(feature.Bool), "false", "3800"},
		{of(feature.Date), "2026-11-01", "4080829ad706"}, {of(feature.Date), "1969-12-31", "4080ddfaffffffffffff01"},
	} {
		a := column(c.typ.Arrow(), c.value)
		got := appendFeastValue(nil, a, 0)
		if hex.EncodeToString(got) != c.want {
			t.Errorf("%s %q: %x, want %s", c.typ, c.value, got, c.want)
		}
		if text, err := feastText(c.typ, string(got)); err != nil || text != string(appendValue(nil, a, 0)) {
			t.Errorf("%s %q comes back as %q, %v", c.typ, c.value, text, err)
		}
		for _, other := range []feature.Kind{feature.Int64, feature.Double, feature.String, feature.Bool, feature.Date} {
			if other != c.typ.Kind && c.typ.Kind != feature.JSON {
				if text, err := feastText(of(other), string(got)); !errors.Is(err, errNotFeast) {
					t.Errorf("%s %q is read as %s: %q", c.typ, c.value, of(other), text)
				}
			}
		}
		if text, err := feastText(c.typ, string(got[:len(got)-1])+"\xff"); c.typ.Kind != feature.Double && c.typ.Kind != feature.String && c.typ.Kind != feature.JSON && err == nil {
			t.Errorf("%s %q with a broken end is read as %q", c.typ, c.value, text)
		}
		a.Release()
	}
}

func FuzzFeastText(f *testing.F) {
	f.Add(uint8(feature.Int64), "\x20\x4b", "\x08\xba\xc2\x97\xd7\x06")
	f.Fuzz(func(t *testing.T, kind uint8, value, at string) {
		if value != "" {
			_, _ = feastText(feature.Type{Kind: feature.Kind(kind)}, value)
		}
		_, _ = feastTime(at)
		feastKeyOf("crm", value)
		_, _, _ = ParseFeastGuard(value)
	})
}

// Values come back as in loam's own layout, null apart from absent, and two views share a hash.
func TestFeastReads(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadFiles(t, testProject, feastViews)
		l := openLake(t, p)
		const full = `,"n":9223372036854775807,"x":0.1,"m":-12.5,"yes":true,"day":"1969-12-31","j":{"z":[1,null],"a":"ü"}`
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 7, 0, "created", full), event(2, "a", 8, 0, "created", ""), event(3, "gone", 7, 0, "deleted", "")})
		defer b.Release()
		commitTo(t, l, b)
		built(t, s, writer(t, s, p, "all"), l)
		built(t, s, writer(t, s, p, "short"), l)
		for _, c := range []struct{ a, b, want string }{
			{"a", "7", `n=9223372036854775807 x=0.1 yes=true day="1969-12-31" j={"a":"ü","z":[1,null]} a="a" m="-12.5000"`},
			{"a", "07", `n=9223372036854775807 x=0.1 yes=true day="1969-12-31" j={"a":"ü","z":[1,null]} a="a" m="-12.5000"`},
			{"a", "8", `n=NULL_VALUE x=NULL_VALUE yes=NULL_VALUE day=NULL_VALUE j=NULL_VALUE a="a" m=NULL_VALUE`},
			{"gone", "7", `n=NOT_FOUND x=NOT_FOUND yes=NOT_FOUND day=NOT_FOUND j=NOT_FOUND a=NOT_FOUND m=NOT_FOUND`},
			{"b", "7", `n=NOT_FOUND x=NOT_FOUND yes=NOT_FOUND day=NOT_FOUND j=NOT_FOUND a=NOT_FOUND m=NOT_FOUND`},
		} {
			if got := show(t, s, p, base, c.a, c.b, "all"); got != c.want {
				t.Errorf("%s, %s: got  %s\nwant %s", c.a, c.b, got, c.want)
			}
		}
		for later, want := range map[time.Duration]string{time.Hour: "n=NULL_VALUE", time.Hour + time.Microsecond: "n=OUTSIDE_MAX_AGE"} {
			if got := show(t, s, p, base.Add(later), "a", "8", "short:n"); got != want {
				t.Errorf("after %s: %s, want %s", later, got, want)
			}
		}
		if n := len(feastServed(t, s, p, "all")); n != 3 || !maps.Equal(keysOf(feastServed(t, s, p, "all")), keysOf(feastServed(t, s, p, "short"))) {
			t.Errorf("%d hashes, or not those of the other view", n)
		}
	})
}

func keysOf(m map[string]string) map[string]bool {
	keys := map[string]bool{}
	for k := range m {
		keys[k] = true
	}
	return keys
}

// Whatever the order, the batches, the generations and the repetitions of writes, what stays is the change that is last in the
// order, and of that what the newest generation makes.
func TestFeastInAnyOrder(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadFiles(t, testProject, feastViews)
		ctx := context.Background()
		r := rand.New(rand.NewPCG(11, 7))
		w := writer(t, s, p, "calc")
		other := writer(t, s, p, "all")
		var events []string
		last, seconds := map[string]int{}, map[string]int{}
		for i := range 300 {
			a, at, verb := string(rune('a'+r.IntN(5))), r.IntN(50), "updated"
			if r.IntN(6) == 0 {
				verb = "deleted"
			}
			events = append(events, event(i, a, 1, at, verb, fmt.Sprintf(`,"n":%d`, i)))
			if _, ok := last[a]; !ok || at >= seconds[a] {
				last[a], seconds[a] = i, at
			}
		}
		whole := batchOf(t, p.Stream("thing"), 0, events)
		defer whole.Release()
		l := openLake(t, p)
		generations := []int64{built(t, s, w, l).Number, built(t, s, w, l).Number}
		built(t, s, other, l)
		writes := append(slices.Repeat([]int{-1}, 20), 0, 1)
		r.Shuffle(len(writes), func(i, j int) { writes[i], writes[j] = writes[j], writes[i] })
		for _, all := range writes {
			rows, number := whole.Rows, max(all, 0)
			if all < 0 {
				from := r.Int64N(300)
				part := whole.Rows[0].NewSlice(from, from+1+r.Int64N(300-from))
				defer part.Release()
				rows, number = []arrow.RecordBatch{part}, r.IntN(2)
			}
			if _, err := w.Write(ctx, generations[number:number+1], rows); err != nil {
				t.Fatal(err)
			}
			if _, err := other.Write(ctx, generations[:1], rows); err != nil {
				t.Fatal(err)
			}
		}
		for a, i := range last {
			want := fmt.Sprintf("n=%d n=%d", i+1, i)
			if strings.Contains(events[i], "deleted") {
				want = "n=NOT_FOUND n=NOT_FOUND"
			}
			if got := show(t, s, p, base, a, "1", "calc:n", "all:n"); got != want {
				t.Errorf("%s: %s, want %s", a, got, want)
			}
		}
		for key, h := range mustHashes(t, s) {
			if _, generation, err := ParseFeastGuard(h["_v:calc"]); err != nil || generation != generations[1] {
				t.Errorf("%q has the guard of generation %d, %v", key, generation, err)
			}
		}
	})
}

func mustHashes(t *testing.T, s *Store) map[string]map[string]string {
	t.Helper()
	hashes := map[string]map[string]string{}
	if err := s.EachFeastHash(context.Background(), func(h Hash) error { hashes[h.Key] = h.Fields; return nil }); err != nil {
		t.Fatal(err)
	}
	return hashes
}

// A build mends what was altered, removes what the lake doesn't know and what the view had before, and leaves the rest of the
// hashes: other views', and what a writer has written since the snapshot.
func TestFeastBuildMends(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		p := loadFiles(t, testProject, feastViews)
		l := openLake(t, p)
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 1, 0, "created", `,"n":1`), event(2, "b", 1, 0, "created", `,"n":2`), event(3, "c", 1, 0, "deleted", "")})
		defer b.Release()
		commitTo(t, l, b)
		w := writer(t, s, p, "all")
		g := built(t, s, w, l)
		want := feastServed(t, s, p, "all")
		key := func(a string) string { return w.feast.key([]string{a, "1"}) }
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		order := func(offset int64, at time.Duration) string {
			return feastGuard(feature.Order{EventTime: base.Add(at).UnixMicro(), Live: true, TopicHash: feature.TopicHash("thing.v1"), Offset: offset}, g.Number)
		}
		must(s.redis.HSet(ctx, key("a"), w.feast.features["n"], "x", "foreign", "1").Err()) // a value
		must(s.redis.HSet(ctx, key("b"), w.feast.guard, order(2, time.Hour)).Err())         // a guard of a change that the lake has, and b hasn't
		must(s.redis.HDel(ctx, key("c"), w.feast.guard).Err())                              // a tombstone
		must(s.redis.HSet(ctx, key("c"), w.feast.time, "x").Err())
		must(s.redis.HSet(ctx, key("d"), w.feast.time, "x", w.feast.features["n"], "x").Err())         // what Feast wrote
		must(s.redis.HSet(ctx, key("e"), w.feast.guard, "z", w.feast.features["n"], "x").Err())        // no guard
		must(s.redis.HSet(ctx, key("f"), w.feast.guard, order(1, time.Hour), w.feast.time, "x").Err()) // an entity that the lake doesn't know
		must(s.redis.HSet(ctx, key("g"), w.feast.guard, order(3, 0), w.feast.time, "\x08\x01").Err())  // one that it will know
		foreign := "01" + key("a")
		must(s.redis.HSet(ctx, foreign, w.feast.guard, "z").Err())
		must(s.redis.HSet(ctx, key("d"), "_ts:other", "1").Err())
		built(t, s, w, l)
		got := feastServed(t, s, p, "all")
		if _, kept := got[key("g")]; !kept {
			t.Error("what a writer wrote since the snapshot is gone")
		}
		delete(got, key("g"))
		if !maps.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		hashes := mustHashes(t, s)
		if hashes[key("a")]["foreign"] != "1" || hashes[key("d")]["_ts:other"] != "1" || len(hashes[key("d")]) != 1 {
			t.Errorf("fields of others: %q, %q", hashes[key("a")], hashes[key("d")])
		}
		if n, err := s.redis.HLen(ctx, foreign).Result(); err != nil || n != 1 {
			t.Errorf("a key of others has %d fields, %v", n, err)
		}

		// Another definition: until it is built nothing is read, and the features of the one before go.
		was := w.feast.features["x"]
		p.View("all").Features = slices.Clone(p.View("all").Features)[:1]
		p.View("all").Features[0].SQL = "n * 10"
		changed := writer(t, s, p, "all")
		building, err := changed.Build(ctx, l, BuildOptions{Now: time.Now})
		must(err)
		if all, err := s.Generations(ctx, "all"); err != nil || all.Current != 0 {
			t.Errorf("while the hashes are written over generation %d is read, %v", all.Current, err)
		}
		must(s.Switch(ctx, "all", building))
		if got := show(t, s, p, base, "a", "1", "all"); got != "n=10" {
			t.Error(got)
		}
		for key, fields := range mustHashes(t, s) {
			if _, there := fields[was]; there {
				t.Errorf("%q still has a feature that the view has not", key)
			}
		}

		// In loam's own layout again nothing stays, and the other way round.
		p.View("all").Layout = feature.LoamLayout
		built(t, s, writer(t, s, p, "all"), l)
		if got := feastServed(t, s, p, "all"); len(got) != 0 || show(t, s, p, base, "b", "1", "all") != "n=20" {
			t.Errorf("in loam's layout: %q", got)
		}
		p.View("all").Layout = feature.FeastLayout
		built(t, s, writer(t, s, p, "all"), l)
		if keys, err := s.redis.Keys(ctx, globEscape(s.project)+":all:*{*").Result(); err != nil || len(keys) != 0 {
			t.Errorf("in Feast's layout: %q, %v", keys, err)
		}
		must(s.Forget(ctx, "all"))
		if got := feastServed(t, s, p, "all"); len(got) != 0 {
			t.Errorf("a view that was forgotten: %q", got)
		}
	})
}

// What isn't loam's is an error, and never a value.
func TestFeastForeign(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		p := loadFiles(t, testProject, feastViews)
		l := openLake(t, p)
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 1, 0, "created", `,"n":1`)})
		defer b.Release()
		commitTo(t, l, b)
		w := writer(t, s, p, "all")
		built(t, s, w, l)
		refs, err := p.Resolve([]string{"all:n"})
		if err != nil {
			t.Fatal(err)
		}
		for field, value := range map[string]string{w.feast.features["n"]: "\x12\x01x", w.feast.time: "x"} {
			was := s.redis.HGet(ctx, w.feast.key([]string{"a", "1"}), field).Val()
			s.redis.HSet(ctx, w.feast.key([]string{"a", "1"}), field, value)
			if _, err := NewClient(s, p, time.Now).Read(ctx, refs, []map[string]string{{"a": "a", "b": "1"}}); !errors.Is(err, errNotFeast) {
				t.Errorf("%q in %q: %v", value, field, err)
			}
			s.redis.HSet(ctx, w.feast.key([]string{"a", "1"}), field, was)
		}
	})
}

func TestFeastGenerationsEnd(t *testing.T) {
	s, err := InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := writer(t, s, loadFiles(t, testProject, feastViews), "all")
	if err := w.sendFeast(context.Background(), generationMax+1, []*entityWrite{{}}, nil); err == nil || !strings.Contains(err.Error(), "generation 65536") {
		t.Error(err)
	}
}
