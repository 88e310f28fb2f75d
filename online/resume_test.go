package online

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// killed builds a view until it has noted that some parts are whole, and ends there as a process that is killed. It gives the
// generation that it leaves.
func killed(t *testing.T, s *Store, w *ViewWriter, l *lake.Lake, now func() time.Time) Generation {
	t.Helper()
	ctx := context.Background()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := w.Build(ctx, l, BuildOptions{Now: now, Progress: func(done, of int64) {
			if done >= of {
				t.Errorf("%d of %d entities are written at once: nothing can be left", done, of)
			}
			runtime.Goexit()
		}})
		t.Errorf("the build came to an end: %v", err)
	}()
	<-ended
	all, err := s.Generations(ctx, w.view.Name)
	if err != nil {
		t.Fatal(err)
	}
	g := all.All[len(all.All)-1]
	if g.State != Building || g.lease.parts == 0 || g.lease.parts >= buildParts {
		t.Fatalf("left is generation %d, %s, of which %d parts are whole", g.Number, g.State, g.lease.parts)
	}
	return g
}

// abandon has the lease of a generation run out.
func abandon(t *testing.T, s *Store, view string, g Generation) {
	t.Helper()
	text := fmt.Sprintf("%s %d 1", g.lease.by, g.lease.parts)
	if err := s.redis.HSet(context.Background(), generationsKey(s.project, view), leaseField(g.Number), text).Err(); err != nil {
		t.Fatal(err)
	}
}

// seldom are the keys of entities beyond the thousandth, of which no event comes after the build was killed.
var seldom = regexp.MustCompile(`k\d{4}`)

// A resumed build is one that goes on, and what it was told.
type resumed struct {
	said  []string
	first int64 // entities that were written when it first told
	of    int64
}

func (r *resumed) options(now func() time.Time, beside func()) BuildOptions {
	r.first = -1
	return BuildOptions{
		Now: now, Say: func(format string, args ...any) { r.said = append(r.said, fmt.Sprintf(format, args...)) },
		Progress: func(done, of int64) {
			if r.first < 0 {
				r.first, r.of = done, of
				if beside != nil {
					beside()
				}
			}
		},
	}
}

// A build that was killed is gone on with: what is written isn't written again, and what came meanwhile is there, whether a worker
// wrote it or nobody did.
func TestResume(t *testing.T) {
	eachWorld(t, func(t *testing.T, s *Store, w *liveWorld) {
		ctx := context.Background()
		const entities = 5000
		w.name = func() string { return fmt.Sprintf("k%d", w.random.IntN(entities)) }
		w.commit(w.batch(w.topic(0), 9000, false))
		view := writer(t, s, w.project, "all")
		g := killed(t, s, view, w.lake, time.Now)
		abandon(t, s, "all", g)

		// Of those that are written one goes, by which it is seen that it isn't written again.
		w.name = func() string { return fmt.Sprintf("k%d", w.random.IntN(800)) }
		pattern := globEscape(keyPrefix(s.project, "all", g.Number)) + "*"
		if g.Layout == feature.FeastLayout {
			pattern = "*" + globEscape(s.project)
		}
		there := keys(t, s, pattern)
		gone := there[slices.IndexFunc(there, seldom.MatchString)]
		w.fatal(s.redis.Del(ctx, gone).Err())
		lost, written := w.batch(w.topic(0), 500, false), w.batch(w.topic(1), 500, false)
		w.write(w.live, written)
		w.commit(lost, written)
		if now := keys(t, s, pattern); g.Layout != feature.FeastLayout && len(now) != len(there)-1 {
			t.Errorf("what was abandoned is written: %d keys, and then %d", len(there), len(now))
		}

		var r resumed
		w.fatal(s.Lease(ctx, "worker"))
		joins := make(chan struct{})
		go func() { // as the worker's loop does
			for range 2 {
				at := map[feature.Partition]int64{w.topic(0): w.next[w.topic(0)], w.topic(1): w.next[w.topic(1)]}
				for joined := false; !joined; time.Sleep(time.Millisecond) {
					w.fatal(w.live.Join(ctx, "worker", map[string]map[feature.Partition]int64{"thing": at}))
					now, err := s.generation(ctx, "all", g.Number)
					w.fatal(err)
					joined = slices.Contains(now.Joined, "worker")
				}
				joins <- struct{}{}
			}
		}()
		go func() { <-joins }()
		next, err := view.Build(ctx, w.lake, r.options(time.Now, func() {
			<-joins
			b := w.batch(w.topic(1), 300, false)
			w.write(w.live, b)
			w.commit(b)
		}))
		w.fatal(err)
		w.fatal(s.Switch(ctx, "all", next))
		w.fatal(s.Release(ctx, "worker"))
		if next.Number != g.Number || len(r.said) != 1 || !strings.Contains(r.said[0], "goes on with generation") {
			t.Errorf("generation %d follows %d: %q", next.Number, g.Number, r.said)
		}
		if r.first < int64(len(there))/2 {
			t.Errorf("it begins with %d of %d entities, where %d were written", r.first, r.of, len(there))
		}
		got := w.served("all")
		w.build("all")
		want := w.served("all")
		missing := 0
		for key, fields := range want {
			switch there, ok := got[key]; {
			case !ok:
				missing++
			case there != fields:
				t.Fatalf("%s is\n%s\nwant\n%s", key, there, fields)
			}
		}
		if missing != 1 || len(got) != len(want)-1 {
			t.Errorf("%d entities are missing of %d, want the one that was removed", missing, len(want))
		}
		if fields, err := s.redis.HKeys(ctx, generationsKey(s.project, "all")).Result(); err != nil || slices.ContainsFunc(fields, func(f string) bool {
			return strings.HasSuffix(f, leaseSuffix)
		}) {
			t.Errorf("leases are left: %v, %v", fields, err)
		}
	})
}

// Of tiles the base goes into each entity once, and is what it was when the build began.
func TestResumeTiles(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		t.Run(fmt.Sprint("keyed ", keyed), func(t *testing.T) {
			eachStore(t, func(t *testing.T, s *Store) {
				w, ctx := newTileWorld(t, s, keyed, 7), context.Background()
				name := func(n int) string { return fmt.Sprintf("k%d", w.random.IntN(n)) }
				produce := func(events, of int) {
					from := len(w.topics[0])
					for range events {
						w.produceAny(0)
						w.topics[0][len(w.topics[0])-1].who = name(of)
					}
					commitTo(t, w.lake, w.batch(0, from, len(w.topics[0])))
				}
				produce(6000, 4000)
				v := writer(t, s, w.project, "all")
				v.clock = w.clock
				g := killed(t, s, v, w.lake, w.clock)
				abandon(t, s, "all", g)
				there := keys(t, s, globEscape(keyPrefix(s.project, "all", g.Number))+"*")
				gone := there[slices.IndexFunc(there, seldom.MatchString)]
				w.fatal(s.redis.Del(ctx, gone).Err())
				live := w.open()
				from := len(w.topics[0])
				produce(300, 800)
				w.write(live, w.batch(0, from, len(w.topics[0])))
				var r resumed
				next, err := v.Build(ctx, w.lake, r.options(w.clock, func() {
					from := len(w.topics[0])
					produce(100, 800)
					w.write(live, w.batch(0, from, len(w.topics[0])))
				}))
				w.fatal(err)
				w.fatal(s.Switch(ctx, "all", next))
				w.fatal(live.Follow(ctx, map[string]map[feature.Partition]int64{"thing": {w.partition(0): int64(len(w.topics[0]))}}, true))
				if next.Number != g.Number || len(r.said) != 1 || r.first < int64(len(there))/2 {
					t.Errorf("generation %d follows %d with %d of %d entities: %q", next.Number, g.Number, r.first, r.of, r.said)
				}
				if keys := keys(t, s, gone); len(keys) > 0 {
					t.Error("what was written is written again")
				}
				facts := w.facts()
				for i := range 120 {
					who := fmt.Sprintf("k%d", i*7)
					if strings.Contains(gone, "|"+who+"}") {
						continue
					}
					of := slices.DeleteFunc(slices.Clone(facts), func(f tileFact) bool { return f.who != who })
					w.compare("resumed", "all", map[string]string{"who": who}, of, w.now)
				}
			})
		})
	}
}

// What can't be gone on with is begun anew, in a line that says why, and goes.
func TestNotResumed(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		w := newLiveWorld(t, s)
		w.name = func() string { return fmt.Sprintf("k%d", w.events) }
		w.commit(w.batch(w.topic(0), 3000, false))
		view := writer(t, s, w.project, "all")
		key := generationsKey(s.project, "all")
		alter := func(g Generation, what, by string) {
			text := strings.Replace(g.text, what, by, 1)
			if text == g.text {
				t.Fatalf("%s has no %s", text, what)
			}
			w.fatal(s.redis.HSet(ctx, key, fmt.Sprint(g.Number), text).Err())
		}
		for _, c := range []struct {
			why   string
			since func(g Generation)
		}{
			{"the view's definition has changed", func(g Generation) { alter(g, view.hash, "0123456789abcdef") }},
			{"the online store restarted", func(g Generation) { alter(g, `"runs":["`, `"runs":["another`) }},
			{"a newer one was begun", func(g Generation) { w.fatal(s.redis.HIncrBy(ctx, key, "next", 1).Err()) }},
			{"it doesn't tell how far it is", func(g Generation) { w.fatal(s.redis.HDel(ctx, key, leaseField(g.Number)).Err()) }},
			{"the log was made anew", func(g Generation) { alter(g, `"log":"`, `"log":"1`) }},
			{"the log has gone back since", func(g Generation) { alter(g, `:0":`, `:0":9`) }},
			{"files or redrives have brought rows since", func(Generation) {
				w.commit(w.batch(feature.Partition{Topic: feature.FileTopicPrefix + strings.Repeat("ab", 32)}, 20, true))
			}},
		} {
			g := killed(t, s, view, w.lake, time.Now)
			abandon(t, s, "all", g)
			c.since(g)
			var r resumed
			next, err := view.Build(ctx, w.lake, r.options(time.Now, nil))
			w.fatal(err)
			if next.Number == g.Number || len(r.said) != 1 || !strings.Contains(r.said[0], c.why) {
				t.Errorf("%s: generation %d follows %d: %q", c.why, next.Number, g.Number, r.said)
			}
			if left := keys(t, s, globEscape(keyPrefix(s.project, "all", g.Number))+"*"); len(left) > 0 {
				t.Errorf("%s: %d keys are left", c.why, len(left))
			}
			w.fatal(s.Switch(ctx, "all", next))
		}
		w.check("begun anew", "all")
	})
}

// A generation that a build holds is another's to leave alone; one that it has lost it leaves alone itself.
func TestTwoBuilds(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		w := newLiveWorld(t, s)
		w.name = func() string { return fmt.Sprintf("k%d", w.events) }
		w.commit(w.batch(w.topic(0), 3000, false))
		first, second := writer(t, s, w.project, "all"), writer(t, s, w.project, "all")
		both := func(lost bool) (a, b Generation, err error) {
			at, on := make(chan struct{}), make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				stopped := false
				a, err = first.Build(ctx, w.lake, BuildOptions{Now: time.Now, Progress: func(int64, int64) {
					if !stopped {
						stopped = true
						close(at)
						<-on
					}
				}})
			}()
			<-at
			if lost {
				all, err := s.Generations(ctx, "all")
				w.fatal(err)
				abandon(t, s, "all", all.All[len(all.All)-1])
			}
			var failed error
			b, failed = second.Build(ctx, w.lake, BuildOptions{Now: time.Now})
			w.fatal(failed)
			close(on)
			<-ended
			return a, b, err
		}
		a, b, err := both(false)
		if err != nil || b.Number != a.Number+1 {
			t.Errorf("beside generation %d another build makes %d: %v", a.Number, b.Number, err)
		}
		w.fatal(s.Switch(ctx, "all", a))
		w.fatal(s.Switch(ctx, "all", b))
		w.check("two builds", "all")

		a, b, err = both(true)
		if !errors.Is(err, errTakenOver) || b.Number != a.Number {
			t.Errorf("of generation %d, which the build of %d has lost: %v", b.Number, a.Number, err)
		}
		w.fatal(s.Switch(ctx, "all", b))
		w.check("one that stalled", "all")
	})
}

// A generation that nobody can go on with is removed without a build; one that somebody can, or that is being built, is not.
func TestAbandoned(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		w := newLiveWorld(t, s)
		w.name = func() string { return fmt.Sprintf("k%d", w.events) }
		w.commit(w.batch(w.topic(0), 3000, false))
		w.build("all")
		view := writer(t, s, w.project, "all")
		abandoned := func() []Generation {
			t.Helper()
			all, err := w.live.Abandoned(ctx)
			w.fatal(err)
			return all["all"]
		}
		g := killed(t, s, view, w.lake, time.Now)
		if left := abandoned(); len(left) > 0 {
			t.Errorf("while its lease runs: %v", left)
		}
		abandon(t, s, "all", g)
		if left := abandoned(); len(left) > 0 {
			t.Errorf("though it can be gone on with: %v", left)
		}
		w.fatal(s.redis.HSet(ctx, generationsKey(s.project, "all"), fmt.Sprint(g.Number), strings.Replace(g.text, view.hash, "0123456789abcdef", 1)).Err())
		left := abandoned()
		if len(left) != 1 || left[0].Number != g.Number {
			t.Fatalf("abandoned are %v, want generation %d", left, g.Number)
		}
		s.Discard(ctx, "all", left)
		if keys := keys(t, s, globEscape(keyPrefix(s.project, "all", g.Number))+"*"); len(keys) > 0 {
			t.Errorf("%d keys are left", len(keys))
		}
		all, err := s.Generations(ctx, "all")
		if err != nil || len(all.All) != 1 || all.All[0].Number != all.Current {
			t.Errorf("left are %+v, %v", all.All, err)
		}
		w.check("discarded", "all")
	})
}

// The part of an entity is the ninth byte of an MD5, whatever DuckDB it is computed by: docs/redis.md.
func TestPartOf(t *testing.T) {
	db, err := sql.Open(context.Background(), sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, key := range []struct {
		b int64
		a string
	}{{7, "c1"}, {-1, "x|y"}, {0, ""}} {
		var part int
		statement := sql.Render("SELECT {part} FROM (SELECT $1::VARCHAR AS a, $2::BIGINT AS b)", sql.Args{"part": partOf([]string{"a", "b"})})
		if err := db.QueryRow(context.Background(), statement, []any{key.a, key.b}, &part); err != nil {
			t.Fatal(err)
		}
		if sum := md5.Sum(fmt.Appendf(nil, "%s|%d", key.a, key.b)); part != int(sum[8]) {
			t.Errorf("%v is in part %d, want %d", key, part, sum[8])
		}
	}
}
