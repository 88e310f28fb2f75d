package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
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
	silent, address := between(t, m.Addr())
	f := newFixture(t, address, func(o *Options) { o.Limits.Timeout = 200 * time.Millisecond }).filled()
	const body = `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`
	if status, answer := f.post("/get-online-features", body); status != http.StatusOK {
		t.Fatal(answer)
	}
	silent.Store(true)
	begun := time.Now()
	status, answer := f.post("/get-online-features", body)
	if status != http.StatusServiceUnavailable || !strings.Contains(answer, codeTimeout) {
		t.Errorf("silent: %d %s", status, answer)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it was waited for %s", took)
	}
	silent.Store(false)
	if status, answer := f.post("/get-online-features", body); status != http.StatusOK {
		t.Errorf("after: %d %s", status, answer)
	}
}

// between stands between a client and a server, and swallows what the server says while it is silent.
func between(t *testing.T, server string) (silent *atomic.Bool, address string) {
	silent = &atomic.Bool{}
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(to, client)
				to.Close()
			}()
			go func() {
				defer client.Close()
				for b := make([]byte, 4096); ; {
					n, err := to.Read(b)
					if err != nil {
						return
					}
					if !silent.Load() {
						if _, err := client.Write(b[:n]); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return silent, l.Addr().String()
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
