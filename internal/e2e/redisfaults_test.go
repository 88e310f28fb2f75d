package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/internal/redisd"
	"github.com/loamdata/loam/internal/wire"
)

// A faulty project has a worker and a server that reach a Redis of its own through a wire, events that flow, and reads that go on. The n-th
// change of a contact gives it n open tickets, and beside it stands its n-th opened email: so whatever is served is right if it is no
// less than what was served before, and no more than what was written.
type faulty struct {
	t        *testing.T // of the part that runs
	whole    *testing.T
	dir, url string
	own      *redisd.Server
	redis    *redis.Client // past the wire, one connection
	wire     *wire.Wire
	worker   *worker
	lake     *reader
	begun    time.Time

	lines          int64                     // that were written, of both topics together
	written, floor [contactsMax]atomic.Int64 // changes of each contact, and the least that may be served of it
	opened         [contactsMax]atomic.Int64 // the least number of opened emails that may be served
	right, refused atomic.Int64              // answers
	most           atomic.Int64              // nanoseconds that one took
}

// contactsMax is how many contacts there are.
const contactsMax = 40

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	f := &faulty{t: t, whole: t, own: redisd.New(t), begun: time.Now().Add(-time.Hour)}
	f.redis = redis.NewClient(&redis.Options{Addr: f.own.Address, DisableIdentity: true, PoolSize: 1})
	t.Cleanup(func() { f.redis.Close() })
	f.wire = wire.Between(t, f.own.Address)
	f.dir = newProject(t, fmt.Sprintf("online: {redis: %q}", f.wire.Address()))
	run(t, f.dir, "apply")
	f.lake = openLake(t, f.dir)
	f.produce(2)
	f.worker = startWorker(t, f.dir, "--commit-every", "100ms")
	f.worker.awaitSaid("feature view profile is served")
	f.worker.awaitSaid("feature view activity is served")
	f.url = startServer(t, f.dir)
	f.read(3)
	f.settled(awaitMax)
	return f
}

// produce writes so many changes, and emails, of each contact.
func (f *faulty) produce(times int) {
	f.t.Helper()
	var contacts, emails strings.Builder
	for range times {
		for c := range contactsMax {
			n := f.written[c].Load() + 1
			f.lines += 2
			at := f.begun.Add(time.Duration(f.lines) * time.Millisecond)
			contacts.WriteString(tickets(f.lines, at, c, n))
			fmt.Fprintf(&emails, `{"envelope":{"event_id":"00000000-0000-4000-9000-%012d","event_type":"Engagement.created","source":"test","occurred_at":%q,"delivery_attempt":1,"schema_version":"1.0"},`+
				`"payload":{"engagement_id":"e%[1]d","contact_id":"c%[3]d","type":"email","outcome":"opened","occurred_at":%[2]q}}`+"\n", f.lines, at.UTC().Format(time.RFC3339Nano), c)
			f.written[c].Store(n)
		}
	}
	appendFile(f.t, filepath.Join(f.dir, ".loam", "topics", "contact.v1", "0.jsonl"), contacts.String())
	appendFile(f.t, filepath.Join(f.dir, ".loam", "topics", "engagement.v1", "0.jsonl"), emails.String())
}

// tickets is the event, and the line, of a contact that has so many open tickets.
func tickets(event int64, at time.Time, contact int, n int64) string {
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012d","event_type":"Contact.updated","source":"test","occurred_at":%q,"delivery_attempt":1,"schema_version":"1.0"},`+
		`"payload":{"contact_id":"c%d","mkt_status":"lead","attributes":{"open_tickets":%d},"updated_at":%[2]q}}`+"\n", event, at.UTC().Format(time.RFC3339Nano), contact, n)
}

// flow produces until the function that it gives is called.
func (f *faulty) flow() (end func()) {
	done := make(chan struct{})
	var flowing sync.WaitGroup
	flowing.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				f.produce(1)
			}
		}
	})
	end = sync.OnceFunc(func() {
		close(done)
		flowing.Wait()
	})
	f.t.Cleanup(end)
	return end
}

// ask asks for contacts, all of them at once, and holds what is served to what may be.
func (f *faulty) ask(ctx context.Context) error {
	ids, least, opened := make([]string, contactsMax), make([]int64, contactsMax), make([]int64, contactsMax)
	for c := range ids {
		ids[c], least[c], opened[c] = fmt.Sprintf("c%d", c), f.floor[c].Load(), f.opened[c].Load()
	}
	body, err := json.Marshal(map[string]any{"features": []string{"profile:open_tickets", "activity:emails_opened_7d"}, "entities": map[string]any{"contact_id": ids}})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/get-online-features", bytes.NewReader(body))
	if err != nil {
		return err
	}
	begun := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raise(&f.most, int64(time.Since(begun)))
	if response.StatusCode == http.StatusServiceUnavailable {
		f.refused.Add(1)
		return nil
	}
	var answer struct {
		Results []struct {
			Values   []json.RawMessage
			Statuses []string
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusOK || len(answer.Results) != 3 {
		return fmt.Errorf("it is answered with %d, %+v, %v", response.StatusCode, answer, err)
	}
	for c := range ids {
		for column, floor := range map[int][]int64{1: least, 2: opened} {
			var n int64 // a contact that isn't there yet has null
			if err := json.Unmarshal(answer.Results[column].Values[c], &n); err != nil {
				return err
			}
			if most := f.written[c].Load(); n < floor[c] || n > most {
				return fmt.Errorf("of %s is served %d %s in column %d, after %d, and %d were written", ids[c], n, answer.Results[column].Statuses[c], column, floor[c], most)
			}
			if column == 1 {
				raise(&f.floor[c], n)
			} else {
				raise(&f.opened[c], n)
			}
		}
	}
	f.right.Add(1)
	return nil
}

// raise sets a number to a greater one.
func raise(of *atomic.Int64, to int64) {
	for was := of.Load(); was < to && !of.CompareAndSwap(was, to); was = of.Load() {
	}
}

// read reads by so many callers until the test ends.
func (f *faulty) read(readers int) {
	ctx, stop := context.WithCancel(f.whole.Context())
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for ctx.Err() == nil {
				if err := f.ask(ctx); err != nil && ctx.Err() == nil {
					f.whole.Errorf("ask for features: %v", err)
					return
				}
				time.Sleep(time.Duration(rand.IntN(int(20 * time.Millisecond))))
			}
		})
	}
	f.whole.Cleanup(func() {
		stop()
		reading.Wait()
	})
}

// more waits until there are so many more answers of a kind.
func (f *faulty) more(of *atomic.Int64, n int64) {
	f.t.Helper()
	want := of.Load() + n
	f.worker.await(fmt.Sprintf("there were %d more answers, after %d values and %d refusals", n, f.right.Load(), f.refused.Load()),
		func() bool { return of.Load() >= want || f.whole.Failed() })
}

// goesOn waits until the lake has taken all that was written.
func (f *faulty) goesOn() {
	f.t.Helper()
	f.worker.await("the lake had all", func() bool {
		var n int64
		for _, name := range []string{"contact", "engagement"} {
			reading, err := f.lake.Read(f.t.Context(), f.lake.project.Stream(name))
			if err != nil {
				f.t.Fatal(err)
			}
			offsets, err := reading.Offsets()
			if err != nil {
				f.t.Fatal(err)
			}
			for _, at := range offsets.Partitions {
				n += at.Next
			}
		}
		return n == f.lines
	})
}

// settled waits until all that was written is served.
func (f *faulty) settled(most time.Duration) {
	f.t.Helper()
	begun := time.Now()
	f.worker.await("all was served", func() bool {
		for c := range contactsMax {
			if n := f.written[c].Load(); f.floor[c].Load() != n || f.opened[c].Load() != n {
				return f.whole.Failed()
			}
		}
		return true
	})
	if took := time.Since(begun); took > most {
		f.t.Errorf("it took %s until all was served, want %s at most", took, most)
	} else {
		f.t.Logf("all is served %s later; %d values, %d refusals, after %s at most", took.Round(time.Millisecond), f.right.Load(), f.refused.Load(),
			time.Duration(f.most.Swap(0)).Round(time.Millisecond))
	}
}

// says waits until the worker says something once more than it had.
func (f *faulty) says(text string, before int) {
	f.t.Helper()
	f.worker.await(fmt.Sprintf("it said %q", text), func() bool { return f.said(text) > before })
}

func (f *faulty) said(text string) int { return strings.Count(f.worker.stderr(), text) }

func (f *faulty) set(name string, value any) {
	f.t.Helper()
	if err := f.redis.ConfigSet(f.t.Context(), name, fmt.Sprint(value)).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// Times within which all is served after a fault, and a request is answered.
const (
	settledMax  = 10 * time.Second
	answeredMax = 4 * time.Second // serve.timeout is 2 s, and the machine has other things to do
)

const away, back = "the online store is away", "the online store is back"

// Events flow and reads go on while Redis is slow, cut off, full and takes no clients. The lake goes on, no wrong value is served, no
// request waits for long, and seconds after each fault all that was written is served. In the end Redis holds what the lake says.
func TestRedisFaults(t *testing.T) {
	f := newFaulty(t)
	fault := func(name string, happens func()) {
		t.Run(name, func(t *testing.T) {
			f.t, f.worker.t = t, t
			happens()
		})
		f.t, f.worker.t = t, t
	}
	fault("slow", func() { // each answer takes 200 ms
		end := f.flow()
		f.wire.Slow(200 * time.Millisecond)
		f.more(&f.right, 10)
		end()
		f.goesOn()
		f.settled(settledMax) // while it is slow
		f.wire.Mend()
	})
	fault("too slow", func() { // for any call
		end, told, returned := f.flow(), f.said(away), f.said(back)
		f.wire.Slow(6 * time.Second)
		f.more(&f.refused, 3)
		f.says(away, told)
		end()
		f.goesOn()
		if took := time.Duration(f.most.Load()); took > answeredMax {
			f.t.Errorf("a request was answered after %s", took)
		}
		f.wire.Mend()
		f.says(back, returned)
		f.settled(settledMax)
	})
	fault("cut", func() {
		for range 2 {
			end, told, returned := f.flow(), f.said(away), f.said(back)
			f.more(&f.right, 5)
			f.wire.Silence()
			f.more(&f.refused, 2)
			f.wire.Tear()
			f.says(away, told)
			f.more(&f.refused, 5)
			end()
			f.goesOn()
			f.wire.Mend()
			f.says(back, returned)
			f.settled(settledMax)
		}
	})
	fault("full", func() {
		end, told, returned := f.flow(), f.said(away), f.said(back)
		f.set("maxmemory", 1)
		f.says(away, told)
		refused := f.refused.Load()
		f.more(&f.right, 20)
		end()
		f.goesOn()
		if n := f.refused.Load() - refused; n > 0 {
			f.t.Errorf("%d requests were refused, though a full Redis can be read", n)
		}
		f.set("maxmemory", 0)
		f.says(back, returned)
		f.settled(settledMax)
	})
	fault("no clients", func() {
		end, told, returned := f.flow(), f.said(away), f.said(back)
		f.set("maxclients", 1)
		if err := f.redis.ClientKillByFilter(f.t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
			f.t.Fatal(err)
		}
		f.says(away, told)
		f.more(&f.refused, 10)
		end()
		f.goesOn()
		f.set("maxclients", 10_000)
		f.says(back, returned)
		f.settled(settledMax)
	})
	f.worker.stop()
	if values := onlineClean(t, f.dir); values < 2*contactsMax {
		t.Errorf("%d values were compared", values)
	}
	verifyClean(t, f.dir)
	if n := f.said("could not be built"); n > 0 {
		t.Errorf("views could not be built:\n%s", f.worker.stderr())
	}
}
