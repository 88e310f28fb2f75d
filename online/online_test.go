package online

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// eachStore runs a test on an in-process Redis, and on the real one at LOAM_TEST_REDIS and the cluster at
// LOAM_TEST_REDIS_CLUSTER where those are set.
func eachStore(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Run("in process", func(t *testing.T) {
		s, err := InProcess("test")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		test(t, s)
	})
	eachRealStore(t, test)
}

// eachRealStore runs a test on the real Redis and the real cluster, where they are.
func eachRealStore(t *testing.T, test func(t *testing.T, s *Store)) {
	for name, variable := range map[string]string{"real": "LOAM_TEST_REDIS", "cluster": "LOAM_TEST_REDIS_CLUSTER"} {
		address := os.Getenv(variable)
		if address == "" {
			t.Logf("%s is not set: no such run", variable)
			continue
		}
		t.Run(name, func(t *testing.T) {
			test(t, openStore(t, address))
		})
	}
}

// openStore opens a store of a project of its own.
func openStore(t *testing.T, address string) *Store {
	t.Helper()
	s, err := Open(context.Background(), fmt.Sprintf("test%d", time.Now().UnixNano()), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// keys are the keys of a pattern, of all servers.
func keys(t *testing.T, s *Store, pattern string) []string {
	t.Helper()
	var mu sync.Mutex
	var all []string
	err := s.masters(context.Background(), func(ctx context.Context, c *redis.Client) error {
		found, err := c.Keys(ctx, pattern).Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const testProject = `stream: thing
kind: state
format: envelope
key: [b, a]
columns:
  - {name: a, type: string}
  - {name: b, type: int64}
  - {name: n, type: int64}
  - {name: x, type: double}
  - {name: m, type: "decimal(18,4)"}
  - {name: yes, type: bool}
  - {name: at, type: timestamp}
  - {name: day, type: date}
  - {name: j, type: json}
  - {name: l, type: list<double>}
`

const testViews = `entities: [{name: thing, join_keys: [b, a]}]
views:
  - {name: all, entity: thing, stream: thing, features: [n, x, m, yes, at, day, j, l]}
  - {name: short, entity: thing, stream: thing, ttl: 1h, features: [{name: n, type: int64, sql: "n + 1"}]}
  - {name: calc, entity: thing, stream: thing, features: [{name: n, type: int64, sql: "n + 1"}]}
`

func loadProject(t *testing.T) *feature.Project {
	t.Helper()
	return loadFiles(t, testProject, testViews)
}

func loadFiles(t *testing.T, stream, views string) *feature.Project {
	t.Helper()
	ctx := context.Background()
	dir := t.TempDir()
	for name, text := range map[string]string{"loam.yaml": "project: test", "streams/t.yaml": stream, "features/f.yaml": views} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open(ctx, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p, err := feature.Load(dir, func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		var list []sql.Column
		for _, c := range columns {
			list = append(list, sql.Column{Name: c.Name, Type: c.Type.SQL()})
		}
		return db.CheckScalar(ctx, expr, list, want.SQL())
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var base = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// event is a canonical event of the stream thing, seconds after base.
func event(n int, a string, b int64, seconds int, verb, payload string) string {
	at := base.Add(time.Duration(seconds) * time.Second).Format(time.RFC3339)
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Thing.%s","source":"x","occurred_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"a":%q,"b":%d%s}}`,
		n, verb, at, a, b, payload)
}

// batchOf decodes events from a live topic, with offsets from first on.
func batchOf(t *testing.T, s *feature.Stream, first int64, events []string) *feature.Batch {
	t.Helper()
	r := ingest.NewRouter(ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: ingest.NewDedup(1<<20, nil)},
		Starts: func(string, feature.Partition) int64 { return first },
	})
	for i, e := range events {
		r.Add(&ingest.Record{Position: feature.Position{Topic: s.Topic, Offset: first + int64(i)}, Value: []byte(e)}, time.Now().UnixMicro())
	}
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(batches[0].Refused) > 0 {
		t.Fatalf("refused: %+v", batches[0].Refused[0])
	}
	return batches[0]
}

func openLake(t *testing.T, p *feature.Project) *lake.Lake {
	t.Helper()
	l, err := lake.Open(context.Background(), lake.Config{Lake: p.Lake, Namespace: p.Name, Dir: p.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.CreateStream(context.Background(), p.Stream("thing")); err != nil {
		t.Fatal(err)
	}
	return l
}

func commitTo(t *testing.T, l *lake.Lake, b *feature.Batch) {
	t.Helper()
	s, err := l.OpenStream(context.Background(), b.Stream, lake.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(context.Background(), b, s.Head()); err != nil {
		t.Fatal(err)
	}
}

// allKnown is what the maker of a batch knows that no other has made a twin of.
var allKnown = lake.Head{SequenceNumber: math.MaxInt64}

func writer(t *testing.T, s *Store, p *feature.Project, view string) *ViewWriter {
	t.Helper()
	w, err := NewViewWriter(context.Background(), s, p, p.View(view))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// built builds a generation from the lake and switches to it.
func built(t *testing.T, s *Store, w *ViewWriter, l *lake.Lake) Generation {
	t.Helper()
	ctx := context.Background()
	g, err := w.Build(ctx, l, BuildOptions{Now: func() time.Time { return base }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Switch(ctx, w.view.Name, g); err != nil {
		t.Fatal(err)
	}
	return g
}

// show reads features of one entity as "view:feature status value".
func show(t *testing.T, s *Store, p *feature.Project, now time.Time, a, b string, features ...string) string {
	t.Helper()
	refs, err := p.Resolve(features)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := NewClient(s, p, func() time.Time { return now }).Read(context.Background(), refs, []map[string]string{{"a": a, "b": b}})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range rows[0] {
		text := string(f.Status)
		if f.Status == Present {
			text = string(f.Value.JSON())
		}
		out = append(out, f.Ref.Feature+"="+text)
	}
	return strings.Join(out, " ")
}

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		values []string
		want   string
	}{
		{[]string{"c1"}, "crm:profile:3:{contact|c1}"},
		{[]string{"a|b", "{%}"}, "crm:profile:3:{contact|a%7Cb|%7B%25%7D}"},
		{[]string{""}, "crm:profile:3:{contact|}"},
		{[]string{"ü \x00"}, "crm:profile:3:{contact|ü \x00}"},
	} {
		if got := entityKey(keyPrefix("crm", "profile", 3), "contact", c.values); got != c.want {
			t.Errorf("%q: %q, want %q", c.values, got, c.want)
		}
	}
	if got := generationsKey("crm", "profile"); got != "crm:profile:generations" {
		t.Error(got)
	}
}

// Values of every type come back as they were, null apart from absent.
func TestValues(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		l := openLake(t, p)
		w := writer(t, s, p, "all")
		const full = `,"n":9223372036854775807,"x":0.1,"m":-12.5,"yes":true,"at":"2026-10-01T02:03:04.000005+02:00","day":"1969-12-31","j":{"z":[1,null],"a":"ü"},"l":[1.5,null,-3]`
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 7, 0, "created", full), event(2, "a", 8, 0, "created", "")})
		defer b.Release()
		commitTo(t, l, b)
		built(t, s, w, l)
		const want = `n=9223372036854775807 x=0.1 m="-12.5000" yes=true at="2026-10-01T00:03:04.000005Z" day="1969-12-31" j={"a":"ü","z":[1,null]} l=[1.5,null,-3]`
		if got := show(t, s, p, base, "a", "7", "all"); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if got := show(t, s, p, base, "a", "07", "all:n"); got != "n=9223372036854775807" {
			t.Errorf("07: %s", got)
		}
		if got := show(t, s, p, base, "a", "8", "all:n", "all:j"); got != "n=NULL_VALUE j=NULL_VALUE" {
			t.Errorf("nulls: %s", got)
		}
		if got := show(t, s, p, base, "b", "7", "all:n"); got != "n=NOT_FOUND" {
			t.Errorf("unknown: %s", got)
		}
	})
}

func TestDoubles(t *testing.T) {
	b := array.NewFloat64Builder(memory.DefaultAllocator)
	defer b.Release()
	values := []float64{0, math.Copysign(0, -1), 0.1, 1e300, 5e-324, math.MaxFloat64, -1.5, math.NaN(), math.Inf(1)}
	b.AppendValues(values, nil)
	column := b.NewArray()
	defer column.Release()
	for i, v := range values {
		var back float64
		if _, err := fmt.Sscan(string(appendValue(nil, column, i)), &back); err != nil || math.Float64bits(back) != math.Float64bits(v) && v == v {
			t.Errorf("%v comes back as %v, %v", v, back, err)
		}
	}
}

// Whatever the order, the batches and the repetitions of writes, what stays is the change that is last in the order, on
// top of the snapshot or without it.
func TestGuardedWritesInAnyOrder(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		ctx := context.Background()
		r := rand.New(rand.NewPCG(7, 7))
		w := writer(t, s, p, "calc")
		l := openLake(t, p)
		var events []string
		last := map[string]int{}
		seconds := map[string]int{}
		for i := range 300 {
			a, at, verb := string(rune('a'+r.IntN(5))), r.IntN(50), "updated"
			if r.IntN(6) == 0 {
				verb = "deleted"
			}
			payload := fmt.Sprintf(`,"n":%d`, i)
			if i%3 == 0 {
				payload = "" // null, which has to take the place of a value
			}
			events = append(events, event(i, a, 1, at, verb, payload))
			if _, ok := last[a]; !ok || at >= seconds[a] {
				last[a], seconds[a] = i, at
			}
		}
		whole := batchOf(t, p.Stream("thing"), 0, events)
		defer whole.Release()
		half := batchOf(t, p.Stream("thing"), 0, events[:150])
		defer half.Release()
		commitTo(t, l, half)
		g := built(t, s, w, l)
		for range 20 {
			from := r.Int64N(300)
			part := whole.Rows[0].NewSlice(from, from+1+r.Int64N(300-from))
			if _, err := w.Write(ctx, []int64{g.Number}, []arrow.RecordBatch{part}); err != nil {
				t.Fatal(err)
			}
			part.Release()
		}
		if _, err := w.Write(ctx, []int64{g.Number}, whole.Rows); err != nil {
			t.Fatal(err)
		}
		for a, i := range last {
			want := fmt.Sprintf("n=%d", i+1)
			if i%3 == 0 {
				want = "n=NULL_VALUE"
			}
			if strings.Contains(events[i], "deleted") {
				want = "n=NOT_FOUND"
			}
			if got := show(t, s, p, base, a, "1", "calc:n"); got != want {
				t.Errorf("%s: %s, want %s", a, got, want)
			}
		}
	})
}

func TestTimeToLive(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		ctx := context.Background()
		// Close to now, so that a real server keeps the hash.
		now := time.Now().UTC().Truncate(time.Second)
		seconds := int(now.Sub(base) / time.Second)
		w := writer(t, s, p, "short")
		g := built(t, s, w, openLake(t, p))
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 1, seconds, "updated", `,"n":1`), event(2, "old", 1, seconds-7200, "updated", `,"n":1`)})
		defer b.Release()
		for range 2 { // a repeated write changes nothing
			if _, err := w.Write(ctx, []int64{g.Number}, b.Rows); err != nil {
				t.Fatal(err)
			}
		}
		for later, want := range map[time.Duration]string{0: "n=2", time.Hour: "n=2", time.Hour + time.Microsecond: "n=OUTSIDE_MAX_AGE"} {
			if got := show(t, s, p, now.Add(later), "a", "1", "short:n"); got != want {
				t.Errorf("after %s: %s, want %s", later, got, want)
			}
		}
		if got := show(t, s, p, now, "old", "1", "short:n"); got == "n=2" {
			t.Errorf("a value beyond its time to live is served: %s", got)
		}
	})
}

// A view is unavailable until a generation is ready, of its definition, on a Redis that has not restarted; switching to a
// new one removes the old.
func TestGenerations(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		ctx := context.Background()
		l := openLake(t, p)
		b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 1, 0, "updated", `,"n":1`)})
		defer b.Release()
		commitTo(t, l, b)
		refs, err := p.Resolve([]string{"all:n"})
		if err != nil {
			t.Fatal(err)
		}
		reader := NewClient(s, p, time.Now)
		unavailable := func(why string) {
			t.Helper()
			if _, err := reader.Read(ctx, refs, []map[string]string{{"a": "a", "b": "1"}}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "loam materialize") {
				t.Errorf("%s: %v, want %v", why, err, ErrUnavailable)
			}
		}
		unavailable("nothing was built")
		w := writer(t, s, p, "all")
		first, err := w.Build(ctx, l, BuildOptions{Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		if first.Base["thing.v1:0"] != 1 || first.Marks[feature.Partition{Topic: "thing.v1"}] != 1 {
			t.Errorf("base %v, marks %v", first.Base, first.Marks)
		}
		unavailable("it is building")
		if err := s.Switch(ctx, "all", first); err != nil {
			t.Fatal(err)
		}
		if got := show(t, s, p, base, "a", "1", "all:n"); got != "n=1" {
			t.Error(got)
		}
		second := built(t, s, w, l)
		if second.Number != first.Number+1 {
			t.Errorf("generation %d follows %d", second.Number, first.Number)
		}
		all, err := s.Generations(ctx, "all")
		if err != nil || len(all.All) != 1 || all.Current != second.Number {
			t.Errorf("generations %+v, %v", all, err)
		}
		if left := keys(t, s, keyPrefix(s.project, "all", first.Number)+"*"); len(left) != 0 {
			t.Errorf("the old generation left %v", left)
		}
		if err := s.Mark(ctx, "all", second.Number, map[feature.Partition]int64{{Topic: "thing.v1"}: 9}); err != nil {
			t.Fatal(err)
		}
		all, _ = s.Generations(ctx, "all")
		if all.All[0].Marks[feature.Partition{Topic: "thing.v1"}] != 9 {
			t.Errorf("marks %v", all.All[0].Marks)
		}
		was := s.servers.runs
		s.servers.runs = []string{"another run"}
		unavailable("Redis restarted")
		s.servers.runs = was
		p.View("all").Features = slices.Clone(p.View("all").Features)
		p.View("all").Features[0].SQL = "n + 1"
		reader = NewClient(s, p, time.Now)
		unavailable("the definition changed")
	})
}

// Scripts that the server lost are loaded again.
func TestLostScripts(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		ctx := context.Background()
		w := writer(t, s, p, "all")
		g := built(t, s, w, openLake(t, p))
		for i := range 2 {
			err := s.masters(ctx, func(ctx context.Context, c *redis.Client) error { return c.ScriptFlush(ctx).Err() })
			if err != nil {
				t.Fatal(err)
			}
			b := batchOf(t, p.Stream("thing"), int64(i), []string{event(i, "a", 1, i, "updated", fmt.Sprintf(`,"n":%d`, i))})
			if _, err := w.Write(ctx, []int64{g.Number}, b.Rows); err != nil {
				t.Fatal(err)
			}
			b.Release()
		}
		if got := show(t, s, p, base, "a", "1", "all:n"); got != "n=1" {
			t.Error(got)
		}
	})
}

func TestOpenProblems(t *testing.T) {
	if _, err := Open(context.Background(), "p", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("no server: %v", err)
	}
	s, err := InProcess("p")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := loadProject(t)
	refs, err := p.Resolve([]string{"all:n"})
	if err != nil {
		t.Fatal(err)
	}
	built(t, s, writer(t, s, p, "all"), openLake(t, p))
	var missing *EntityError
	if _, err := NewClient(s, p, time.Now).Read(context.Background(), refs, []map[string]string{{"a": "x"}}); !errors.As(err, &missing) || missing.JoinKey != "b" {
		t.Errorf("a missing join key: %v", err)
	}
	s.process.Close()
	if _, err := NewClient(s, p, time.Now).Read(context.Background(), refs, []map[string]string{{"a": "x", "b": "1"}}); err == nil {
		t.Error("a server that is gone gives no error")
	}
}

// A Redis that refuses who asks is away to reads, in its own words: it does answer.
func TestRefusedUser(t *testing.T) {
	m := miniredis.RunT(t)
	s, err := Open(context.Background(), "test", m.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m.RequireAuth("secret")
	_, err = s.Generations(context.Background(), "all")
	if !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "it doesn't know this user and password") || strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v", err)
	}
}

// A key that holds another type than loam writes is named and left as it is, reads of it are errors, and all other writes
// are made; a new generation has other keys.
func TestForeignKeys(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p, ctx := loadProject(t), context.Background()
		l := openLake(t, p)
		w := writer(t, s, p, "all")
		var events []string
		for i := range 5 {
			events = append(events, event(i, string(rune('a'+i)), 1, i, "updated", fmt.Sprintf(`,"n":%d`, i)))
		}
		b := batchOf(t, p.Stream("thing"), 0, events)
		defer b.Release()
		commitTo(t, l, b)
		g := built(t, s, w, l)
		key := entityKey(keyPrefix(s.project, "all", g.Number), "thing", []string{"c", "1"})
		if err := s.redis.Set(ctx, key, "not loam's", 0).Err(); err != nil {
			t.Fatal(err)
		}
		later := batchOf(t, p.Stream("thing"), 5, []string{
			event(5, "c", 1, 1, "updated", `,"n":50`), event(6, "d", 1, 60, "updated", `,"n":60`), // the first one is late
		})
		defer later.Release()
		commitTo(t, l, later)
		if _, err := w.Write(ctx, []int64{g.Number}, later.Rows); err != nil {
			t.Fatal(err)
		}
		if got := w.Foreign(); !slices.Equal(got, []string{key}) || w.Foreign() != nil {
			t.Errorf("foreign are %v, want %s, once", got, key)
		}
		if text, err := s.redis.Get(ctx, key).Result(); err != nil || text != "not loam's" {
			t.Errorf("it holds %q, %v", text, err)
		}
		if got := show(t, s, p, base, "d", "1", "all:n"); got != "n=60" {
			t.Errorf("another entity: %s", got)
		}
		refs, err := p.Resolve([]string{"all:n"})
		if err != nil {
			t.Fatal(err)
		}
		var foreign *ForeignError
		if _, err := NewClient(s, p, time.Now).Read(ctx, refs, []map[string]string{{"a": "c", "b": "1"}}); !errors.As(err, &foreign) {
			t.Errorf("it is read: %v", err)
		}
		built(t, s, w, l)
		if got := show(t, s, p, base, "c", "1", "all:n"); got != "n=2" {
			t.Errorf("built anew: %s", got)
		}
		if left := keys(t, s, keyPrefix(s.project, "all", g.Number)+"*"); len(left) != 0 {
			t.Errorf("left are %v", left)
		}
	})
}
