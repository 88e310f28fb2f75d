package online

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// lossy is a connection that loses answers: the calls of a pipeline are done, and their caller isn't told.
type lossy struct {
	random *rand.Rand
	lost   int
}

var errLost = errors.New("the answer was lost")

func (l *lossy) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (l *lossy) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (l *lossy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := next(ctx, cmds); err != nil || l.random.IntN(3) > 0 {
			return err
		}
		l.lost++
		for _, c := range cmds {
			c.SetErr(errLost)
		}
		return errLost
	}
}

// tileFaults is a world whose view "all" is built, with events in partition 0 that are in the lake up to the first half.
func tileFaults(t *testing.T, s *Store, events int) *tileWorld {
	w := newTileWorld(t, s, true, 11)
	for range events {
		w.produceAny(0)
	}
	commitTo(t, w.lake, w.batch(0, 0, events/2))
	w.build("all")
	w.build("few")
	return w
}

// A write of which nobody knows whether it was done is repeated until it is, and counts once.
func TestTilesLostAnswers(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w := tileFaults(t, s, 200)
		live, l := w.open(), &lossy{random: rand.New(rand.NewPCG(5, 5))}
		commitTo(t, w.lake, w.batch(0, 100, 200))
		s.redis.AddHook(l)
		for from := 100; from < 200; from += 20 {
			b := w.batch(0, from, from+20)
			for tries := 0; ; tries++ {
				if _, err := live.Write(context.Background(), b, allKnown); err == nil {
					break
				} else if !errors.Is(err, errLost) || tries > 200 {
					t.Fatal(err)
				}
			}
		}
		lost := l.lost
		l.random = rand.New(noLoss{})
		if lost < 5 {
			t.Errorf("%d answers were lost", lost)
		}
		w.check("after lost answers", w.facts(), w.now)
	})
}

// noLoss is a source of ones.
type noLoss struct{}

func (noLoss) Uint64() uint64 { return 1<<63 | 1<<62 }

// The base goes into an entity once, however often it is filled and whatever was written meanwhile.
func TestTilesFilledAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := tileFaults(t, s, 120), context.Background()
		v := writer(t, s, w.project, "all")
		v.clock = w.clock
		g, reading, err := v.beginTiles(ctx, w.lake, BuildOptions{Now: w.clock})
		w.fatal(err)
		for from := 60; from < 120; from += 20 {
			_, err = v.writeTiles(ctx, g, w.batch(0, from, from+20).Rows) // before and after it
			w.fatal(err)
			err = v.fillTiles(ctx, &g, reading, BuildOptions{Now: w.clock})
			w.fatal(err)
		}
		w.fatal(s.Mark(ctx, "all", g.Number, map[feature.Partition]int64{w.partition(0): 120}))
		w.fatal(s.Switch(ctx, "all", g))
		commitTo(t, w.lake, w.batch(0, 60, 120))
		w.build("few")
		w.check("filled three times", w.facts(), w.now)
	})
}

// A store that is emptied while a generation is built makes the build fail; the next one is whole.
func TestTilesEmptiedStore(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := tileFaults(t, s, 100), context.Background()
		commitTo(t, w.lake, w.batch(0, 50, 100))
		empty := func(done, of int64) {
			for _, key := range keys(t, s, s.project+":*") {
				w.fatal(s.redis.Del(ctx, key).Err())
			}
		}
		_, err := writer(t, s, w.project, "all").Build(ctx, w.lake, BuildOptions{Now: w.clock, Progress: empty})
		if err == nil || !strings.Contains(err.Error(), "the online store has lost generation") {
			t.Fatalf("the store was emptied: %v", err)
		}
		refs, err := w.project.Resolve([]string{"all:*"})
		w.fatal(err)
		if _, err := NewClient(s, w.project, w.clock).Read(ctx, refs, []map[string]string{{"who": "a"}}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("an emptied store: %v", err)
		}
		live := w.open()
		w.write(live, w.batch(0, 50, 100)) // there is nothing to write to
		w.build("all")
		w.build("few")
		w.check("built anew", w.facts(), w.now)
	})
}

// Scripts that the server lost are loaded again, and a key that holds something else is an error of its reads, and named by writes, which leave it as it is.
func TestTilesLostScriptsAndForeignKeys(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := tileFaults(t, s, 40), context.Background()
		live := w.open()
		commitTo(t, w.lake, w.batch(0, 20, 40))
		for from := 20; from < 40; from += 5 {
			w.fatal(s.redis.ScriptFlush(ctx).Err())
			w.write(live, w.batch(0, from, from+5))
		}
		w.check("after lost scripts", w.facts(), w.now)
		all, err := s.Generations(ctx, "all")
		w.fatal(err)
		key := entityKey(keyPrefix(s.project, "all", all.Current), "who", []string{"a"})
		refs, err := w.project.Resolve([]string{"all:rows_1d"})
		w.fatal(err)
		for _, put := range []func() error{
			func() error { return s.redis.Set(ctx, key, "something else", 0).Err() },
			func() error { return s.redis.Set(ctx, key, "\x10\xff\xff\xff\xff\xff\xff\xff", 0).Err() },
		} {
			w.fatal(put())
			if _, err := NewClient(s, w.project, w.clock).Read(ctx, refs, []map[string]string{{"who": "a"}}); err == nil || !strings.Contains(err.Error(), "not loam's") {
				t.Errorf("a foreign string is read: %v", err)
			}
			w.produce(0, "a", 0, nil)
			n := len(w.topics[0])
			if _, err := live.Write(ctx, w.batch(0, n-1, n), allKnown); err != nil {
				t.Errorf("a foreign string holds others up: %v", err)
			}
			if got := live.Foreign()["all"]; !slices.Equal(got, []string{key}) {
				t.Errorf("foreign are %v, want %s", got, key)
			}
			commitTo(t, w.lake, w.batch(0, n-1, n))
		}
	})
}

// A worker that joins in the middle of a build, further than its base, reads from the log what lies between, and one whose
// partition another has taken writes nothing twice, however late it goes on.
func TestTilesJoinAndStall(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := tileFaults(t, s, 60), context.Background()
		v := writer(t, s, w.project, "all")
		v.clock = w.clock
		g, reading, err := v.beginTiles(ctx, w.lake, BuildOptions{Now: w.clock}) // at 30
		w.fatal(err)
		commitTo(t, w.lake, w.batch(0, 30, 45))
		first, second := w.open(), w.open()
		w.write(first, w.batch(0, 45, 50)) // lacks 30 to 45
		stalled := w.batch(0, 45, 60)
		commitTo(t, w.lake, w.batch(0, 45, 60))
		w.write(second, w.batch(0, 50, 60))
		err = v.fillTiles(ctx, &g, reading, BuildOptions{Now: w.clock})
		w.fatal(err)
		w.fatal(s.Switch(ctx, "all", g))
		w.write(first, stalled)
		w.build("few")
		w.check("joined and stalled", w.facts(), w.now)
		now, err := s.generation(ctx, "all", g.Number)
		w.fatal(err)
		if now.Marks[w.partition(0)] != 60 {
			t.Errorf("marks %v", now.Marks)
		}
	})
}

// An entity's string goes when no window can hold its newest event, tiles go before, and nothing is written that is too old.
func TestTilesExpire(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := newTileWorld(t, s, true, 1), context.Background()
		g := w.build("all")
		w.build("few")
		live := w.open()
		w.produce(0, "a", 29*24*time.Hour, nil)
		w.produce(0, "a", 2*time.Hour, nil)
		w.produce(0, "b", 33*24*time.Hour, nil)
		w.write(live, w.batch(0, 0, 3))
		key := func(who string) string { return entityKey(keyPrefix(s.project, "all", g.Number), "who", []string{who}) }
		if n := s.redis.Exists(ctx, key("b")).Val(); n != 0 {
			t.Error("an event that no window needs was written")
		}
		left := s.redis.PTTL(ctx, key("a")).Val()
		want := w.now.Add(-2*time.Hour + 31*24*time.Hour + time.Second).Sub(time.Now())
		if (left - want).Abs() > 2*time.Second {
			t.Errorf("expires in %s, want %s", left, want)
		}
		size := s.redis.StrLen(ctx, key("a")).Val()
		w.now = w.now.Add(3 * 24 * time.Hour)
		w.produce(0, "a", 0, nil)
		w.write(live, w.batch(0, 3, 4))
		text := s.redis.Get(ctx, key("a")).Val()
		e, err := live.views["thing"][0].tiles.decode(text)
		w.fatal(err)
		if n := len(e.levels[2]); n != 2 { // today's and that of three days ago, not that of 32 days ago
			t.Errorf("%d tiles of a day, of %d bytes before", n, size)
		}
		w.check("later", w.facts(), w.now)
		guards, err := readGuards(text)
		if err != nil || len(guards) != 1 || guards[0].next != 4 || guards[0].topic != feature.TopicHash(w.partition(0).Topic) {
			t.Errorf("guards %v, %v", guards, err)
		}
	})
}

// A read tells the guards that it saw, the entity's own; where it has none, the base of the generation holds.
func TestTilesGuardsOfARead(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := newTileWorld(t, s, true, 1), context.Background()
		w.produce(0, "a", time.Hour, nil)
		w.produce(1, "b", time.Hour, nil)
		commitTo(t, w.lake, w.batch(0, 0, 1))
		commitTo(t, w.lake, w.batch(1, 0, 1))
		g := w.build("all")
		live := w.open()
		w.produce(0, "a", time.Hour, nil)
		w.produce(0, "c", time.Hour, nil)
		w.write(live, w.batch(0, 1, 3))
		view := w.project.View("all")
		v := newTiled(&viewRead{project: s.project, view: view, entity: w.project.Entity(view.Entity), stream: w.project.Stream(view.Stream)})
		own := partitionText(w.partition(0))
		for who, want := range map[string]string{"a": "map[" + own + ":2]", "b": "map[]", "c": "map[" + own + ":3]", "nobody": "map[]"} {
			got, err := v.guards(s.redis.Get(ctx, v.key(keyPrefix(s.project, "all", g.Number), []string{who})).Val())
			w.fatal(err)
			if fmt.Sprint(got) != want {
				t.Errorf("%s: %v, want %s", who, got, want)
			}
		}
		if g.Base[own] != 1 || g.Base[partitionText(w.partition(1))] != 1 {
			t.Errorf("base %v", g.Base)
		}
	})
}

// What the log has of files and a generation lacks is known until one is built that has it.
func TestTilesOwed(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		w, ctx := tileFaults(t, s, 10), context.Background()
		live := w.open()
		owing := func(want ...string) {
			t.Helper()
			if views, err := live.Owing(ctx); err != nil || !slices.Equal(views, want) {
				t.Errorf("owing %v, %v, want %v", views, err, want)
			}
		}
		owing()
		commitTo(t, w.lake, w.file("ab", 0))
		owing() // for no row of it
		commitTo(t, w.lake, w.file("cd", 3))
		owing("all", "few")
		after := w.open()
		w.fatal(after.Settle(ctx))
		missing := func(want ...string) {
			t.Helper()
			if views, err := after.Missing(ctx); err != nil || !slices.Equal(views, want) {
				t.Errorf("a worker that starts builds %v, %v, want %v", views, err, want)
			}
		}
		missing("all", "few")
		w.build("few")
		owing("all")
		missing("all")
		w.build("all")
		owing()
		missing()
	})
}
