package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// OnlineOptions say what look-ups are measured.
type OnlineOptions struct {
	Loam        string // the binary, which makes the project, fills Redis and serves
	Load        func(dir string) (*feature.Project, error)
	Dir         string        // an empty folder for the project
	Redis       string        // host:port
	Feast       string        // address of a running Feast server with the same features, "" for none
	Contacts    int           // that Redis is filled with
	Events      int           // that their windows are made of
	Lookups     int           // of each way in each cell
	Seconds     time.Duration // after which a way's part of a cell ends all the same
	Entities    []int         // of a request
	Concurrency []int
	Rounds      int // in which the ways take turns
	Seed        uint64
	Progress    io.Writer
}

// Way is a path to the same values.
type Way string

// Ways that are measured side by side.
const (
	Raw     Way = "go-redis HMGET"
	Package Way = "online.Client"
	HTTP    Way = "loam serve"
	Feast   Way = "Feast"
)

// Cell is what one way took in one setting.
type Cell struct {
	Shape       string        `json:"shape"`
	Entities    int           `json:"entities"`
	Concurrency int           `json:"concurrency"`
	Way         Way           `json:"way"`
	Lookups     int           `json:"lookups"`
	Failed      int           `json:"failed"`
	P50         time.Duration `json:"p50_ns"`
	P95         time.Duration `json:"p95_ns"`
	P99         time.Duration `json:"p99_ns"`
	Rate        float64       `json:"per_second"`
}

// OnlineReport is what look-ups took.
type OnlineReport struct {
	Cells   []Cell   `json:"cells"`
	Skipped []string `json:"skipped,omitempty"` // shapes that are not measured, and why
}

// shape is what is asked for.
type shape struct {
	name     string
	features []string
	feast    []string
}

var shapes = []shape{
	{"10 attributes", []string{"profile:f_age", "profile:f_orders", "profile:f_ltv", "profile:f_avg_basket", "profile:f_churn_score", "profile:f_country",
		"profile:f_tier", "profile:f_lang", "profile:f_opted_in", "profile:f_is_business"}, nil},
	{"5 attributes, 5 windows", []string{"profile:f_age", "profile:f_orders", "profile:f_ltv", "profile:f_country", "profile:f_tier",
		"activity:opens_1d", "activity:opens_7d", "activity:opens_30d", "activity:spent_7d", "activity:spent_30d"},
		[]string{"profile:f_age", "profile:f_orders", "profile:f_ltv", "profile:f_country", "profile:f_tier",
			"engagement:e_opens_7d", "engagement:e_clicks_7d", "engagement:e_sends_30d", "engagement:e_ctr", "engagement:e_dwell_s"}},
}

// onlineProject is the project's files. The names are those of the Feast project that it is held against.
var onlineProject = map[string]string{
	"streams/person.yaml": `stream: person
kind: state
format: row
key: [contact_id]
event_time: event_timestamp
columns:
  - {name: contact_id, type: string}
  - {name: f_age, type: int64}
  - {name: f_orders, type: int64}
  - {name: f_ltv, type: double}
  - {name: f_avg_basket, type: double}
  - {name: f_churn_score, type: double}
  - {name: f_country, type: string}
  - {name: f_tier, type: string}
  - {name: f_lang, type: string}
  - {name: f_opted_in, type: bool}
  - {name: f_is_business, type: bool}
`,
	"streams/mail.yaml": `stream: mail
kind: event
format: row
key: [contact_id]
id: position
event_time: event_timestamp
columns:
  - {name: contact_id, type: string}
  - {name: kind, type: string}
  - {name: amount, type: double}
`,
	"features/bench.yaml": `entities: [{name: contact, join_keys: [contact_id]}]
views:
  - {name: profile, entity: contact, stream: person, ttl: 3650d, features: [f_age, f_orders, f_ltv, f_avg_basket, f_churn_score, f_country, f_tier, f_lang, f_opted_in, f_is_business]}
  - name: activity
    entity: contact
    stream: mail
    aggregates:
      - {name: opens, fn: count, where: "kind = 'open'", windows: [1d, 7d, 30d]}
      - {name: spent, fn: sum, column: amount, windows: [7d, 30d]}
`,
}

// Online fills Redis by the path that a project's values take, and measures look-ups: of Redis itself, through the package, over
// HTTP, and from Feast's server where one is named. The ways take turns in each cell, so that they meet the same machine.
func Online(ctx context.Context, o OnlineOptions) (*OnlineReport, error) {
	name := fmt.Sprintf("bench_%d", time.Now().UnixNano())
	if err := o.fill(ctx, name); err != nil {
		return nil, err
	}
	p, err := o.Load(o.Dir)
	if err != nil {
		return nil, err
	}
	store, err := online.Open(ctx, p.Name, o.Redis)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	raw := redis.NewClient(&redis.Options{Addr: o.Redis, DisableIdentity: true})
	defer raw.Close()
	defer emptyRedis(context.WithoutCancel(ctx), raw, name)
	address, stop, err := o.serve(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	client := online.NewClient(store, p, time.Now)
	defer client.Close()
	r := &OnlineReport{}
	for _, s := range shapes {
		if why := s.unserved(p); why != "" {
			r.Skipped = append(r.Skipped, s.name+": "+why)
			continue
		}
		for _, k := range o.Entities {
			for _, c := range o.Concurrency {
				cells, err := o.cell(ctx, s, k, c, p, raw, client, address)
				if err != nil {
					return nil, err
				}
				r.Cells = append(r.Cells, cells...)
			}
		}
	}
	return r, nil
}

// unserved says why a shape can't be read online, "" where it can.
func (s shape) unserved(p *feature.Project) string {
	refs, err := p.Resolve(s.features)
	if err != nil {
		return err.Error()
	}
	for _, r := range refs {
		if why := p.Unserved(p.View(r.View)); why != "" {
			return why
		}
	}
	return ""
}

// fill makes the project and its events, and builds its views in Redis.
func (o OnlineOptions) fill(ctx context.Context, name string) error {
	if err := writeProject(o.Dir, name, o.Redis, onlineProject); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(o.Seed, 1))
	now := time.Now().UTC().Truncate(time.Second)
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	err := writeLines(filepath.Join(o.Dir, "person.jsonl.gz"), o.Contacts, func(b []byte, i int) []byte {
		return fmt.Appendf(b, `{"contact_id":"c%06d","event_timestamp":%q,"f_age":%d,"f_orders":%d,"f_ltv":%.2f,"f_avg_basket":%.4f,"f_churn_score":%g,"f_country":%q,"f_tier":%q,"f_lang":%q,"f_opted_in":%t,"f_is_business":%t}`,
			i, now.Add(-time.Duration(random.IntN(90*86400))*time.Second).Format(time.RFC3339), 18+random.IntN(72), random.IntN(500), random.ExpFloat64()*300, random.ExpFloat64()*60,
			random.Float64(), pick("US", "DE", "FR", "GB", "IN", "BR"), pick("free", "basic", "pro", "enterprise"), pick("en", "de", "fr", "pt"), random.IntN(10) < 7, random.IntN(10) < 2)
	})
	if err != nil {
		return err
	}
	err = writeLines(filepath.Join(o.Dir, "mail.jsonl.gz"), o.Events, func(b []byte, _ int) []byte {
		return fmt.Appendf(b, `{"contact_id":"c%06d","event_timestamp":%q,"kind":%q,"amount":%.2f}`,
			random.IntN(o.Contacts), now.Add(-time.Duration(random.IntN(30*86400))*time.Second).Format(time.RFC3339), pick("open", "click", "send"), random.ExpFloat64()*20)
	})
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply"}, {"backfill", "--no-online", "--stream", "person", filepath.Join(o.Dir, "person.jsonl.gz")},
		{"backfill", "--no-online", "--stream", "mail", filepath.Join(o.Dir, "mail.jsonl.gz")}, {"materialize"},
	} {
		c := exec.CommandContext(ctx, o.Loam, append([]string{"-C", o.Dir}, args...)...)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("loam %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// writeProject writes a project's files into a folder.
func writeProject(dir, name, address string, files map[string]string) error {
	files = maps.Clone(files)
	files["loam.yaml"] = fmt.Sprintf("project: %s\nonline: {redis: %s}\n", name, address)
	for file, text := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the project: %w", err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("make the project: %w", err)
		}
	}
	return nil
}

func writeLines(file string, n int, line func(b []byte, i int) []byte) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("make events: %w", err)
	}
	z := gzip.NewWriter(f)
	var b []byte
	for i := range n {
		b = append(line(b[:0], i), '\n')
		if _, err := z.Write(b); err != nil {
			return errors.Join(fmt.Errorf("make events: %w", err), f.Close())
		}
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		return fmt.Errorf("make events: %w", err)
	}
	return nil
}

// emptyRedis removes what a measurement wrote.
func emptyRedis(ctx context.Context, r *redis.Client, name string) {
	for keys := r.Scan(ctx, 0, name+":*", 1000).Iterator(); keys.Next(ctx); {
		r.Unlink(ctx, keys.Val())
	}
}

// serve starts loam serve, as a process of its own.
func (o OnlineOptions) serve(ctx context.Context) (address string, stop func(), err error) {
	c := exec.CommandContext(ctx, o.Loam, "-C", o.Dir, "serve", "--addr", "127.0.0.1:0")
	out, err := c.StderrPipe()
	if err != nil {
		return "", nil, fmt.Errorf("start loam serve: %w", err)
	}
	if err := c.Start(); err != nil {
		return "", nil, fmt.Errorf("start loam serve: %w", err)
	}
	stop = func() {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	}
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if _, rest, ok := strings.Cut(lines.Text(), "http://"); ok {
			go func() {
				_, _ = io.Copy(io.Discard, out)
			}()
			return rest[:strings.IndexAny(rest+",;", ",;")], stop, nil
		}
	}
	stop()
	return "", nil, fmt.Errorf("loam serve did not start: %s", strings.Join(said, "; "))
}

// cell measures all ways in one setting, in turns.
func (o OnlineOptions) cell(ctx context.Context, s shape, k, c int, p *feature.Project, raw *redis.Client, client *online.Client, address string) ([]Cell, error) {
	refs, err := p.Resolve(s.features)
	if err != nil {
		return nil, err
	}
	plan, err := client.Plan(refs)
	if err != nil {
		return nil, err
	}
	number, err := raw.HGet(ctx, p.Name+":profile:generations", "current").Result()
	if err != nil {
		return nil, fmt.Errorf("find the generation in Redis: %w", err)
	}
	var fields []string
	for _, r := range refs {
		fields = append(fields, online.FeatureField(slices.Index(p.View(r.View).FeatureNames(), r.Feature)))
	}
	prefix := p.Name + ":profile:" + number + ":{contact|"
	ways := []struct {
		way  Way
		open func() (func(ids []string) error, func(), error)
	}{
		{Raw, func() (func([]string) error, func(), error) {
			return func(ids []string) error { return rawRead(ctx, raw, prefix, ids, fields) }, func() {}, nil
		}},
		{Package, func() (func([]string) error, func(), error) {
			return func(ids []string) error {
				r, err := plan.Read(ctx, online.Entities{Len: len(ids), Keys: map[string][]string{"contact_id": ids}}, online.Ask{})
				if err == nil && r.Rows[0][0].Status != online.Present {
					return fmt.Errorf("contact %s is %s", ids[0], r.Rows[0][0].Status)
				}
				return err
			}, func() {}, nil
		}},
		{HTTP, func() (func([]string) error, func(), error) { return overHTTP(ctx, address, s.features) }},
		{Feast, func() (func([]string) error, func(), error) {
			u, err := url.Parse(o.Feast)
			if err != nil {
				return nil, nil, fmt.Errorf("read the address of Feast: %w", err)
			}
			names := s.feast
			if names == nil {
				names = s.features
			}
			return overHTTP(ctx, u.Host, names)
		}},
	}
	if o.Feast == "" {
		ways = ways[:3]
	}
	cells := make([]Cell, len(ways))
	took := make([][]time.Duration, len(ways))
	spent := make([]time.Duration, len(ways))
	for range o.Rounds {
		for i, w := range ways {
			d, failed, wall, err := o.run(w.open, k, c, o.Lookups/o.Rounds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.way, err)
			}
			took[i], spent[i] = append(took[i], d...), spent[i]+wall
			cells[i].Failed += failed
		}
	}
	for i, w := range ways {
		if len(took[i]) == 0 {
			return nil, fmt.Errorf("%s: none of its look-ups was answered", w.way)
		}
		slices.Sort(took[i])
		at := func(share float64) time.Duration { return took[i][int(share*float64(len(took[i])-1))] }
		cells[i].Shape, cells[i].Entities, cells[i].Concurrency, cells[i].Way, cells[i].Lookups = s.name, k, c, w.way, len(took[i])
		cells[i].P50, cells[i].P95, cells[i].P99, cells[i].Rate = at(.5), at(.95), at(.99), float64(len(took[i]))/spent[i].Seconds()
		fmt.Fprintln(o.Progress, cells[i])
	}
	return cells, nil
}

func (c Cell) String() string {
	return fmt.Sprintf("%-24s %3d entities, %2d at once: %-14s p50 %7.3f ms  p95 %7.3f  p99 %7.3f  %8.0f/s  of %d, %d failed",
		c.Shape, c.Entities, c.Concurrency, c.Way, ms(c.P50), ms(c.P95), ms(c.P99), c.Rate, c.Lookups, c.Failed)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// run makes look-ups from c callers, each of which asks again once it is answered.
func (o OnlineOptions) run(open func() (func([]string) error, func(), error), k, c, lookups int) (took []time.Duration, failed int, wall time.Duration, err error) {
	type caller struct {
		read func([]string) error
		took []time.Duration
		bad  int
	}
	callers := make([]caller, c)
	for i := range callers {
		read, end, err := open()
		if err != nil {
			return nil, 0, 0, err
		}
		defer end()
		callers[i].read = read
		for range 20 { // connections are made, caches filled
			if err := read(o.ids(rand.New(rand.NewPCG(o.Seed, 99)), k)); err != nil {
				return nil, 0, 0, err
			}
		}
	}
	var all sync.WaitGroup
	begun := time.Now()
	for i := range callers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(o.Seed, uint64(i)))
			for range lookups / c {
				ids := o.ids(random, k)
				at := time.Now()
				err := callers[i].read(ids)
				end := time.Now()
				if err != nil {
					callers[i].bad++ // which is no look-up, however fast it was
				} else {
					callers[i].took = append(callers[i].took, end.Sub(at))
				}
				if end.Sub(begun) > o.Seconds/time.Duration(o.Rounds) {
					return
				}
			}
		})
	}
	all.Wait()
	wall = time.Since(begun)
	for _, one := range callers {
		took, failed = append(took, one.took...), failed+one.bad
	}
	return took, failed, wall, nil
}

func (o OnlineOptions) ids(random *rand.Rand, k int) []string {
	ids := make([]string, k)
	for i := range ids {
		ids[i] = contactID(random.IntN(o.Contacts))
	}
	return ids
}

func contactID(contact int) string {
	n := strconv.Itoa(contact)
	return "c" + "000000"[:6-len(n)] + n
}

// rawRead reads hashes as who knows the keys would.
func rawRead(ctx context.Context, r *redis.Client, prefix string, ids, fields []string) error {
	if len(ids) == 1 {
		return held(r.HMGet(ctx, prefix+ids[0]+"}", fields...))
	}
	p := r.Pipeline()
	var first *redis.SliceCmd
	for i, id := range ids {
		if c := p.HMGet(ctx, prefix+id+"}", fields...); i == 0 {
			first = c
		}
	}
	if _, err := p.Exec(ctx); err != nil {
		return err
	}
	return held(first)
}

// held fails where Redis had nothing, which is read faster than values are.
func held(c *redis.SliceCmd) error {
	if c.Err() == nil && c.Val()[0] == nil {
		return errors.New("Redis has no values under the key")
	}
	return c.Err()
}

// overHTTP makes requests over a connection of its own, with little work besides, so that the server is what is measured. Where the
// server ends the connection the next request makes another one.
func overHTTP(ctx context.Context, address string, features []string) (func([]string) error, func(), error) {
	h := &httpCaller{ctx: ctx, address: address, features: `{"features":["` + strings.Join(features, `","`) + `"],"entities":{"contact_id":["`}
	if err := h.connect(); err != nil {
		return nil, nil, err
	}
	return h.read, h.close, nil
}

// httpCaller asks a feature server, one request after the other.
type httpCaller struct {
	ctx      context.Context
	address  string
	features string   // the body up to the ids
	c        net.Conn // nil once it has ended
	in       *bufio.Reader
	body     bytes.Buffer
	out      bytes.Buffer
	answer   bytes.Buffer
	checked  bool // whether an answer was held to have values
}

func (h *httpCaller) connect() (err error) {
	if h.c, err = (&net.Dialer{}).DialContext(h.ctx, "tcp", h.address); err != nil {
		h.c = nil
		return fmt.Errorf("connect: %w", err)
	}
	h.in = bufio.NewReaderSize(h.c, 64<<10)
	return nil
}

func (h *httpCaller) close() {
	if h.c != nil {
		h.c.Close()
		h.c = nil
	}
}

func (h *httpCaller) read(ids []string) error {
	if h.c == nil {
		if err := h.connect(); err != nil {
			return err
		}
	}
	h.body.Reset()
	h.out.Reset()
	h.answer.Reset()
	h.body.WriteString(h.features)
	for i, id := range ids {
		if i > 0 {
			h.body.WriteString(`","`)
		}
		h.body.WriteString(id)
	}
	h.body.WriteString(`"]}}`)
	fmt.Fprintf(&h.out, "POST /get-online-features HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", h.address, h.body.Len())
	h.out.Write(h.body.Bytes())
	again, err := h.exchange()
	if err != nil || !again {
		h.close()
	}
	if err != nil || h.checked {
		return err
	}
	h.checked = true
	if text := h.answer.String(); strings.Contains(text, "NOT_FOUND") || !strings.Contains(text, "PRESENT") {
		return fmt.Errorf("%s doesn't have the values that are measured: %.200s", h.address, text)
	}
	return nil
}

// exchange sends the request and reads the answer, and reports whether the connection may be used again.
func (h *httpCaller) exchange() (again bool, err error) {
	if err := h.c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return false, err
	}
	if _, err := h.c.Write(h.out.Bytes()); err != nil {
		return false, err
	}
	answer, err := http.ReadResponse(h.in, nil)
	if err != nil {
		return false, err
	}
	if _, err := h.answer.ReadFrom(answer.Body); err != nil {
		return false, err
	}
	if answer.StatusCode != http.StatusOK {
		return false, fmt.Errorf("it answered %s: %.200s", answer.Status, h.answer.String())
	}
	return !answer.Close, nil
}
