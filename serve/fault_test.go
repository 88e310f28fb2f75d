package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/internal/redisd"
	"github.com/loamdata/loam/internal/wire"
	"github.com/loamdata/loam/online"
)

// listening starts the server, and gives its address. It ends with the test.
func (f *fixture) listening() string {
	l := listen(f.t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.server.Run(ctx, l) }()
	f.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

// While Redis is away the answer is 503; once it is back, and empty, it is 503 until the views are built again.
func TestRedisAway(t *testing.T) {
	m := miniredis.RunT(t)
	f := newFixture(t, m.Addr(), nil).filled()
	const body = `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`
	expect := func(why string, status int, text string) {
		t.Helper()
		if got, answer := f.post("/get-online-features", body); got != status || !strings.Contains(answer, text) {
			t.Errorf("%s: %d %s, want %d with %s", why, got, answer, status, text)
		}
	}
	expect("at first", http.StatusOK, "9223372036854775807")
	m.Close()
	expect("away", http.StatusServiceUnavailable, codeAway)
	if w := f.ask("GET", "/ready", ""); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), codeAway) {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
	if w := f.ask("GET", "/health", ""); w.Code != http.StatusOK {
		t.Errorf("health: %d", w.Code)
	}
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	expect("back with its data", http.StatusOK, "9223372036854775807")
	m.FlushAll()
	expect("empty", http.StatusServiceUnavailable, codeNotReady)
	f.filled()
	expect("built again", http.StatusOK, "9223372036854775807")
}

// A Redis that falls silent, as where the network is cut, is given up on after the timeout; once it answers again reads go on.
func TestRedisSilent(t *testing.T) {
	m := miniredis.RunT(t)
	w := wire.Between(t, m.Addr())
	f := newFixture(t, w.Address(), func(o *Options) { o.Limits.Timeout = 200 * time.Millisecond }).filled()
	const body = `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`
	if status, answer := f.post("/get-online-features", body); status != http.StatusOK {
		t.Fatal(answer)
	}
	w.Silence()
	begun := time.Now()
	status, answer := f.post("/get-online-features", body)
	if status != http.StatusServiceUnavailable || !strings.Contains(answer, codeTimeout) {
		t.Errorf("silent: %d %s", status, answer)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it was waited for %s", took)
	}
	w.Mend()
	if status, answer := f.post("/get-online-features", body); status != http.StatusOK {
		t.Errorf("after: %d %s", status, answer)
	}
}

// oneEntity asks for a feature of an entity, and reads the number that is given.
const oneEntity = `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`

// number is the value of an answer to [oneEntity].
func number(answer string) (int64, error) {
	var got struct {
		Results []struct {
			Values   []json.RawMessage
			Statuses []string
		}
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil {
		return 0, err
	}
	last := got.Results[len(got.Results)-1]
	if last.Statuses[0] != "PRESENT" {
		return 0, fmt.Errorf("it is %s", last.Statuses[0])
	}
	var n int64
	return n, json.Unmarshal(last.Values[0], &n)
}

// faulty are reads, and writes of a value that grows, which go on while something happens to Redis.
type faulty struct {
	*fixture
	written        atomic.Int64 // the value that Redis has
	right, refused atomic.Int64 // answers
	most           atomic.Int64 // nanoseconds that one took
	end            func()
}

// beside reads by so many callers, and writes by the fixture's own connection, until end is called. A value that is older than what
// was written before it was asked for, or anything but values and 503, fails the test.
func beside(f *fixture, readers int) *faulty {
	b := &faulty{fixture: f}
	f.switchTo("all", 1)
	done := make(chan struct{})
	var working sync.WaitGroup
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	working.Go(func() {
		for n := 1; !ended(); n++ {
			f.put("all", 1, "x", 1, n, "n", n)
			b.written.Store(int64(n))
			time.Sleep(time.Millisecond)
		}
	})
	for b.written.Load() == 0 && !f.t.Failed() {
		time.Sleep(time.Millisecond)
	}
	for range readers {
		working.Go(func() {
			for !ended() {
				least, begun := b.written.Load(), time.Now()
				status, answer := f.post("/get-online-features", oneEntity)
				for took := int64(time.Since(begun)); ; {
					if most := b.most.Load(); took <= most || b.most.CompareAndSwap(most, took) {
						break
					}
				}
				switch status {
				case http.StatusOK:
					if n, err := number(answer); err != nil || n < least {
						f.t.Errorf("%d was written before this was asked for: %v %s", least, err, answer)
						return
					}
					b.right.Add(1)
				case http.StatusServiceUnavailable:
					b.refused.Add(1)
					time.Sleep(time.Duration(rand.IntN(int(2 * time.Millisecond))))
				default:
					f.t.Errorf("%d %s", status, answer)
					return
				}
			}
		})
	}
	b.end = sync.OnceFunc(func() {
		close(done)
		working.Wait()
	})
	f.t.Cleanup(b.end)
	return b
}

// await waits until there are so many more answers of a kind.
func (b *faulty) await(of *atomic.Int64, more int64) {
	b.t.Helper()
	want, end := of.Load()+more, time.Now().Add(20*time.Second)
	for of.Load() < want {
		if b.t.Failed() {
			b.t.FailNow()
		}
		if time.Now().After(end) {
			b.t.Fatalf("%d right answers and %d refusals are all that there are", b.right.Load(), b.refused.Load())
		}
		time.Sleep(time.Millisecond)
	}
}

// connectionsMax is how many connections to Redis a process has.
func connectionsMax() int { return 10 * runtime.GOMAXPROCS(0) }

// asking is how many goroutines are in the Redis client, in calls or on behalf of them.
func asking() (n int) {
	stacks := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, "go-redis/v9.(*") {
			n++
		}
	}
	return n
}

// A slow Redis is waited for, no longer than the timeout: values are right or refused in bounded time, requests and connections
// don't pile up, and nothing of it is left once Redis is fast again.
func TestRedisSlow(t *testing.T) {
	eachRedis(t, func(t *testing.T, address string) {
		w := wire.Between(t, address)
		f := newFixture(t, w.Address(), func(o *Options) { o.Limits.Timeout, o.Limits.Concurrent = time.Second, 64 })
		f.redis = plainRedis(t, address)
		b := beside(f, 4)
		b.await(&b.right, 20)

		w.Slow(200 * time.Millisecond)
		b.await(&b.right, 8)
		w.Slow(5 * time.Second) // more than the timeout
		b.await(&b.refused, 8)
		if asking() == 0 {
			t.Error("nothing is asked of Redis while it is slow")
		}
		b.most.Store(0)
		w.Most()
		var flood sync.WaitGroup
		var overloaded atomic.Int64
		for range 500 {
			flood.Go(func() {
				begun := time.Now()
				status, answer := f.post("/get-online-features", oneEntity)
				if status != http.StatusServiceUnavailable {
					t.Errorf("Redis answers after 5 s: %d %s", status, answer)
				}
				if strings.Contains(answer, codeOverload) {
					overloaded.Add(1)
				}
				if took := time.Since(begun); took > 3*time.Second {
					t.Errorf("it was refused after %s: %s", took, answer)
				}
			})
		}
		flood.Wait()
		if overloaded.Load() < 300 {
			t.Errorf("%d of 500 requests were refused at once, though 64 are answered at once", overloaded.Load())
		}
		if most := w.Most(); most > 2*connectionsMax() {
			t.Errorf("there were %d connections to Redis, want %d at most", most, 2*connectionsMax())
		}

		w.Mend()
		b.await(&b.right, 100)
		b.end()
		if n := len(f.server.inFlight); n != 0 {
			t.Errorf("%d requests are still being answered", n)
		}
		for end := time.Now().Add(10 * time.Second); asking() > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines still ask Redis for something", asking())
			}
		}
		t.Logf("%d right, %d refused, after %s at most", b.right.Load(), b.refused.Load(), time.Duration(b.most.Load()).Round(time.Millisecond))
	})
}

// A network that is cut in the middle of answers, is silent, then resets connections, and comes back: what was written meanwhile by
// others is what is read then, and never what was read before.
func TestNetworkCut(t *testing.T) {
	eachRedis(t, func(t *testing.T, address string) {
		w := wire.Between(t, address)
		f := newFixture(t, w.Address(), func(o *Options) { o.Limits.Timeout = 200 * time.Millisecond })
		f.redis = plainRedis(t, address)
		b := beside(f, 4)
		for range 3 {
			b.await(&b.right, 20)
			w.Silence()
			b.await(&b.refused, 4)
			w.Tear()
			b.await(&b.refused, 20)
			if r := f.ask("GET", "/ready", ""); r.Code != http.StatusServiceUnavailable || !strings.Contains(r.Body.String(), codeAway) {
				t.Errorf("ready while it is cut: %d %s", r.Code, r.Body)
			}
			w.Mend()
		}
		b.await(&b.right, 20)
		b.end()
		t.Logf("%d right, %d refused, after %s at most", b.right.Load(), b.refused.Load(), time.Duration(b.most.Load()).Round(time.Millisecond))
	})
}

// A Redis that takes no more clients is away to those that have no connection yet; those that have one go on.
func TestMaxClients(t *testing.T) {
	r := redisd.New(t)
	f := newFixture(t, r.Address, func(o *Options) { o.Limits.Timeout = 2 * time.Second })
	b := beside(f, 1)
	b.await(&b.right, 20)
	f.put("short", 1, "x", 1, 0, "n", 1)
	f.switchTo("short", 1)
	set := func(n int) {
		t.Helper()
		if err := f.redis.ConfigSet(t.Context(), "maxclients", fmt.Sprint(n)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set(1) // those that are connected stay
	if other, err := online.Open(t.Context(), f.project.Name, r.Address); err == nil || !strings.Contains(err.Error(), "maxclients") {
		t.Errorf("one that comes new: %v, %v", other, err)
	}
	b.await(&b.right, 100)
	var flood sync.WaitGroup
	var away atomic.Int64
	for range 200 {
		flood.Go(func() {
			switch status, answer := f.post("/get-online-features", oneEntity); {
			case status == http.StatusOK:
			case status == http.StatusServiceUnavailable && strings.Contains(answer, codeAway):
				away.Add(1)
			default:
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	flood.Wait()
	if away.Load() == 0 {
		t.Error("all of 200 requests at once found a connection, though Redis takes no more")
	}
	set(10_000)
	b.await(&b.right, 20)
	for range 50 {
		flood.Go(func() {
			if status, answer := f.post("/get-online-features", oneEntity); status != http.StatusOK {
				t.Errorf("once there is room: %d %s", status, answer)
			}
		})
	}
	flood.Wait()
}

// plainRedis is a connection past what a test puts between.
func plainRedis(t *testing.T, address string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
	t.Cleanup(func() { c.Close() })
	return c
}

// While generations are switched, and the old ones removed at once, reads give values of one that was current: none is
// wrong, and no entity that is there is unknown.
func TestSwitchUnderReads(t *testing.T) {
	eachRedis(t, func(t *testing.T, address string) {
		f := newFixture(t, address, func(o *Options) { o.Limits.Concurrent = 64 })
		const entities, generations = 8, 30
		write := func(g int) {
			for i := range entities {
				f.put("all", g, fmt.Sprintf("e%d", i), 1, 0, "n", g)
			}
		}
		write(1)
		f.switchTo("all", 1)
		f.switchTo("short", 1)
		var least atomic.Int64 // the newest generation that was switched to before a read began
		least.Store(1)
		var names, keys []string
		for i := range entities {
			names, keys = append(names, fmt.Sprintf(`"e%d"`, i)), append(keys, "1")
		}
		body := `{"features":["all:n"],"entities":{"a":[` + strings.Join(names, ",") + `],"b":[` + strings.Join(keys, ",") + `]}}`
		done := make(chan struct{})
		var readers sync.WaitGroup
		var reads atomic.Int64
		for range 4 {
			readers.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					from := least.Load()
					status, answer := f.post("/get-online-features", body)
					var got struct {
						Results []struct {
							Values   []json.Number
							Statuses []string
						}
					}
					if status == http.StatusServiceUnavailable && strings.Contains(answer, "again and again") {
						continue // it says that it doesn't know, which is no wrong value
					}
					if status != http.StatusOK {
						t.Errorf("%d %s", status, answer)
						return
					}
					answer = strings.Replace(answer, `"e`, `"`, -1)
					answer = answer[strings.LastIndex(answer, `{"values"`):]
					if err := json.Unmarshal([]byte(`{"results":[`+answer), &got); err != nil {
						t.Errorf("%v: %s", err, answer)
						return
					}
					for i, v := range got.Results[0].Values {
						n, err := v.Int64()
						if got.Results[0].Statuses[i] != "PRESENT" || err != nil || n < from || n != mustInt(got.Results[0].Values[0]) {
							t.Errorf("entity %d is %s %s after generation %d was switched to: %s", i, got.Results[0].Statuses[i], v, from, answer)
							return
						}
					}
					reads.Add(1)
				}
			})
		}
		for g := 2; g <= generations; g++ {
			write(g)
			f.switchTo("all", g)
			least.Store(int64(g))
			for i := range entities {
				f.redis.Unlink(t.Context(), f.key("all", g-1, fmt.Sprintf("e%d", i), 1))
			}
			f.redis.HDel(t.Context(), f.project.Name+":all:generations", fmt.Sprint(g-1))
		}
		close(done)
		readers.Wait()
		if reads.Load() == 0 {
			t.Error("nothing was read")
		}
	})
}

func mustInt(n json.Number) int64 {
	v, err := n.Int64()
	if err != nil {
		panic(err)
	}
	return v
}
