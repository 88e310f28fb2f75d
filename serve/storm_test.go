package serve

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/loamdata/loam/internal/redisd"
)

// While generations are switched and removed, and Redis is killed and comes back empty or from an old dump, what is answered is what
// was current: never an older value, never an entity unknown that is there. All else is 503.
func TestStorm(t *testing.T) {
	r := redisd.New(t)
	f := newFixture(t, r.Address, nil)
	const entities, rounds, switches = 8, 6, 5
	generation := 0
	var least atomic.Int64 // the newest generation that was switched to before a read began
	build := func() {
		generation++
		for i := range entities {
			f.put("all", generation, fmt.Sprintf("e%d", i), 1, 0, "n", generation)
		}
		f.switchTo("all", generation)
		least.Store(int64(generation))
		for i := range entities {
			f.redis.Unlink(t.Context(), f.key("all", generation-1, fmt.Sprintf("e%d", i), 1))
		}
		f.redis.HDel(t.Context(), f.project.Name+":all:generations", fmt.Sprint(generation-1))
	}
	build()

	var names, keys []string
	for i := range entities {
		names, keys = append(names, fmt.Sprintf(`"e%d"`, i)), append(keys, "1")
	}
	body := `{"features":["all:n"],"entities":{"a":[` + strings.Join(names, ",") + `],"b":[` + strings.Join(keys, ",") + `]}}`
	done := make(chan struct{})
	var readers sync.WaitGroup
	var reads, refused atomic.Int64
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
				switch status {
				case http.StatusServiceUnavailable:
					refused.Add(1)
					time.Sleep(time.Millisecond)
					continue
				case http.StatusOK:
				default:
					t.Errorf("%d %s", status, answer)
					return
				}
				var got struct {
					Results []struct {
						Values   []json.RawMessage
						Statuses []string
					}
				}
				if err := json.Unmarshal([]byte(answer), &got); err != nil || len(got.Results) != 3 {
					t.Errorf("%v: %s", err, answer)
					return
				}
				n := got.Results[2]
				for i, v := range n.Values {
					var value int64
					if err := json.Unmarshal(v, &value); err != nil || n.Statuses[i] != "PRESENT" || value < from || string(v) != string(n.Values[0]) {
						t.Errorf("entity %d is %s %s after generation %d was switched to: %s", i, n.Statuses[i], v, from, answer)
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	for round := range rounds {
		if err := f.redis.Do(t.Context(), "SAVE").Err(); err != nil { // what it comes back with in odd rounds
			t.Fatal(err)
		}
		for range switches {
			build()
		}
		before := refused.Load()
		r.Kill()
		if round%2 == 0 {
			r.Forget()
		}
		r.Start()
		for refused.Load() < before+20 && !t.Failed() { // reads go on while it has nothing, or what is old
			time.Sleep(time.Millisecond)
		}
		f.run = runID(t, f.redis)
		before = reads.Load()
		build()
		for reads.Load() < before+20 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	readers.Wait()
	t.Logf("%d reads, %d refused, %d generations", reads.Load(), refused.Load(), generation)
}
