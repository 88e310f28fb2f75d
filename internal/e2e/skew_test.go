package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// Views that the skew is taken of, besides deal and those of patches: attributes in both layouts, and windows.
const skewDefinitions = `entities:
  - {name: contact, join_keys: [contact_id]}
views:
  - {name: profile, entity: contact, stream: contact, ttl: 90d, features: [mkt_status, {name: open_tickets, type: int64, sql: "attributes->>'open_tickets'"}]}
  - name: wide
    entity: contact
    stream: contact
    features:
      - mkt_status
      - segments
      - email
      - attributes
      - {name: size, type: int64, sql: "length(attributes::varchar)"}
      - {name: ratio, type: double, sql: "length(email) / 7"}
      - {name: lead, type: bool, sql: "mkt_status = 'lead'"}
      - {name: stamp, type: timestamp, sql: "make_timestamptz(length(contact_id) * 1000001)"}
      - {name: price, type: "decimal(12,3)", sql: "length(email) / 3"}
  - name: feast
    entity: contact
    stream: contact
    layout: feast
    features: [mkt_status, email, attributes, {name: size, type: int64, sql: "length(attributes::varchar)"}, {name: lead, type: bool, sql: "mkt_status = 'lead'"}]
`

// skewWindows are a windowed view.
const skewWindows = `views:
  - name: activity
    entity: contact
    stream: engagement
    aggregates:
      - {name: emails_opened, fn: count, where: "type = 'email' AND outcome = 'opened'", windows: [1d, 7d, 30d]}
      - {name: channels, fn: distinct, column: channel, windows: [7d]}
      - {name: outcome, fn: last, column: outcome, windows: [30d]}
`

// skewValues is how many values there are to compare, at least.
const skewValues = 100_000

// skew is a project whose topics are folders, on a Redis of its own.
type skew struct {
	t           *testing.T
	dir         string
	kill, start func() // of Redis
	data        string // its folder
	redis       *redis.Client
	lake        *reader
	patches     *patchesMade
}

// skewStreams are the streams of the project.
var skewStreams = append(slices.Clone(streamNames), "score")

func newSkew(t *testing.T) *skew {
	t.Helper()
	service(t, "LOAM_TEST_REDIS") // told of one, a machine can start another
	s := &skew{t: t, data: t.TempDir(), patches: &patchesMade{random: rand.New(rand.NewPCG(1, 9)), now: time.Now().UTC().Truncate(time.Second)}}
	port := freePort(t)
	s.kill, s.start = daemonOf(t, "redis.sh", s.data, port, "REDIS_PORT="+port, "REDIS_DATA="+s.data)
	s.dir = newProject(t, fmt.Sprintf("online: {redis: %q}", "127.0.0.1:"+port))
	if err := os.Remove(filepath.Join(s.dir, "datasets", "churn.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "features", "contact.yaml"), skewDefinitions)
	write(t, filepath.Join(s.dir, "features", "deal.yaml"), deals)
	write(t, filepath.Join(s.dir, "features", "activity.yaml"), skewWindows)
	write(t, filepath.Join(s.dir, "streams", "score.yaml"), patchedStream)
	write(t, filepath.Join(s.dir, "features", "score.yaml"), patchedViews)
	s.redis = redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, DisableIdentity: true})
	t.Cleanup(func() { s.redis.Close() })
	run(t, s.dir, "apply")
	s.lake = openLake(t, s.dir)
	return s
}

func (s *skew) topic(name string, partition int) string {
	return filepath.Join(s.dir, ".loam", "topics", name+".v1", strconv.Itoa(partition)+".jsonl")
}

// simulate adds made-up events to the topics: duplicates, late ones and deletes among them.
func (s *skew) simulate(seed int) {
	s.t.Helper()
	run(s.t, s.dir, "simulate", "--topics", "--partitions", "2", "--days", "30", "--seed", strconv.Itoa(seed), "--contacts", "6500",
		"--events", "16000", "--duplicates", "0.02", "--late", "0.05", "--deletes", "0.01")
	for partition := range 2 {
		appendFile(s.t, s.topic("score", partition), s.patches.lines(400))
	}
}

// helpdesk adds a part of the help desk's real events, of so many parts.
func (s *skew) helpdesk(lines [][]byte, part, of int) {
	s.t.Helper()
	texts := map[string]*strings.Builder{"contact": {}, "engagement": {}, "opportunity": {}}
	for _, line := range lines[len(lines)*part/of : len(lines)*(part+1)/of] {
		var e struct {
			Envelope struct {
				Type string `json:"event_type"`
			}
		}
		if err := json.Unmarshal(line, &e); err != nil {
			continue // it is a dirty one
		}
		kind, _, _ := strings.Cut(strings.ToLower(e.Envelope.Type), ".")
		if b := texts[kind]; b != nil {
			b.Write(line)
			b.WriteByte('\n')
		}
	}
	for name, b := range texts {
		appendFile(s.t, s.topic(name, part%2), b.String())
	}
}

// lines is how many records the topics have.
func (s *skew) lines() (n int64) {
	s.t.Helper()
	for _, name := range skewStreams {
		files, err := filepath.Glob(s.topic(name, 0)[:len(s.topic(name, 0))-len("0.jsonl")] + "*.jsonl")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				s.t.Fatal(err)
			}
			n += int64(bytes.Count(text, []byte("\n")))
		}
	}
	return n
}

// committed is how many of them the logs have taken.
func (s *skew) committed() (n int64) {
	s.t.Helper()
	for _, name := range skewStreams {
		reading, err := s.lake.Read(s.t.Context(), s.lake.project.Stream(name))
		if err != nil {
			s.t.Fatal(err)
		}
		offsets, err := reading.Offsets()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, at := range offsets.Partitions {
			n += at.Next
		}
	}
	return n
}

func (s *skew) whole() bool { return s.committed() == s.lines() }

// reads asks for features again and again until it is ended, and gives how many answers there were.
func (s *skew) reads(url string, contacts []string) (end func() (answered, refused int64)) {
	ctx, stop := context.WithCancel(s.t.Context())
	var wait sync.WaitGroup
	var answered, refused atomic.Int64
	for i := range 2 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for ctx.Err() == nil {
				features, key, ids := []string{"profile:*", "wide:*", "feast:*", "activity:*"}, "contact_id", make([]string, 10)
				for n := range ids {
					ids[n] = contacts[r.IntN(len(contacts))]
				}
				if r.IntN(2) == 0 {
					features, key = []string{"scores:*", "fresh:*"}, "id"
					for n := range ids {
						ids[n] = fmt.Sprint("s", r.IntN(61)) // of which one is unknown
					}
				}
				body, err := json.Marshal(map[string]any{"features": features, "entities": map[string]any{key: ids}, "full_feature_names": true})
				if err != nil {
					s.t.Error(err)
					return
				}
				request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/get-online-features", bytes.NewReader(body))
				if err != nil {
					s.t.Error(err)
					return
				}
				request.Header.Set("Content-Type", "application/json")
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					if ctx.Err() == nil {
						s.t.Errorf("ask for features: %v", err)
					}
					return
				}
				text, _ := io.ReadAll(response.Body)
				response.Body.Close()
				switch response.StatusCode {
				case http.StatusOK:
					answered.Add(1)
				case http.StatusServiceUnavailable: // Redis is away, or its views are being built
					refused.Add(1)
				default:
					s.t.Errorf("ask for features: %d, %s", response.StatusCode, text)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	return func() (int64, int64) {
		stop()
		wait.Wait()
		return answered.Load(), refused.Load()
	}
}

// served is what verify --served tells of a view.
type served struct {
	View       string `json:"view"`
	Rows       int64  `json:"rows"`
	Values     int64  `json:"values"`
	Differing  int64  `json:"differing"`
	NotSettled int64  `json:"not_settled"`
	Unmarked   int64  `json:"unmarked"`
	Findings   []struct{ Kind, Key, Text string }
}

// Whatever happens to the worker and to Redis, what is in Redis at the end, and all that was served on the way, is what the log
// makes of it: 0 differences, 0 not settled. What is altered by hand is named.
func TestSkew(t *testing.T) {
	s := newSkew(t)
	var lines [][]byte
	if path := filepath.Join(root, "..", "shared", "data", "helpdesk_dirty.jsonl.gz"); !errors.Is(stat(path), fs.ErrNotExist) {
		lines = helpdeskLines(t, "helpdesk_dirty.jsonl.gz")
	} else {
		t.Log("../shared/data is not beside this repository: without the help desk's real events")
	}
	begun := time.Now()
	at := func(what string) { t.Logf("%6.1f s  %s", time.Since(begun).Seconds(), what) }

	s.simulate(1)
	s.helpdesk(lines, 0, 4)
	arguments := []string{"--commit-every", "300ms"}
	w := startWorker(t, s.dir, arguments...)
	for _, view := range []string{"activity", "deal", "feast", "fresh", "profile", "scores", "wide"} {
		w.awaitSaid("feature view " + view + " is served")
	}
	w.await("all was committed", s.whole)
	at("the first events are in")

	port := freePort(t)
	server := command(t, s.dir, "serve", "--addr", "127.0.0.1:"+port, "--log-features", "1")
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	url := "http://127.0.0.1:" + port
	w.await("features were served", func() bool { return healthy(url) })
	endReads := s.reads(url, s.contacts())

	s.simulate(2)
	w.await("some was committed", func() bool { return s.committed() < s.lines() })
	w.signal(syscall.SIGKILL)
	w = startWorker(t, s.dir, arguments...)
	s.helpdesk(lines, 1, 4)
	w.await("all was committed", s.whole)
	at("the worker was killed, and is back")

	if err := s.redis.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.simulate(3)
	s.helpdesk(lines, 2, 4)
	w.await("all was committed", s.whole)
	s.kill()
	s.start()
	w.await("the views were served again", func() bool { return s.ready(url) })
	at("Redis was back from an old dump")

	s.simulate(4)
	run(t, s.dir, "materialize")
	s.helpdesk(lines, 3, 4)
	w.await("all was committed", s.whole)
	at("views were built beside the worker")

	s.kill()
	if err := os.Remove(filepath.Join(s.data, "dump.rdb")); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.simulate(5)
	w.await("the views were served again", func() bool { return s.ready(url) })
	onlineClean(t, s.dir) // beside the worker
	w.await("all was committed", s.whole)
	at("Redis was back, empty")

	answered, refused := endReads()
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("serve: %v\n%s", err, said.String())
	}
	w.stop()
	s.simulate(6) // it is written event by event, so that entities have guards of their own
	run(t, s.dir, "run", "--until-end")
	values := onlineClean(t, s.dir)
	at(fmt.Sprintf("0 differences in %d values online", values))
	if values < skewValues {
		t.Errorf("%d values were compared, want %d", values, skewValues)
	}
	out, stderr, code := runErr(t, s.dir, "verify", "--served", "--json")
	var all []served
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("verify --served: %v in %q, %s", err, out, stderr)
	}
	var recomputed int64
	for _, r := range all {
		recomputed += r.Values
		if r.Differing != 0 || len(r.Findings) != 0 || r.NotSettled != 0 || r.Rows == 0 && r.View != "deal" {
			t.Errorf("verify --served: %+v", r)
		}
		if r.Unmarked > r.Rows/2 {
			t.Errorf("verify --served: of %d rows of %s %d don't tell how far Redis was written", r.Rows, r.View, r.Unmarked)
		}
	}
	if code != 0 || strings.Contains(said.String(), "were not logged") {
		t.Errorf("verify --served ends with %d: %s\n%s", code, stderr, said.Bytes()[max(0, said.Len()-1000):])
	}
	at(fmt.Sprintf("0 differences in %d values served; %d answers, %d refusals", recomputed, answered, refused))
	if said := run(t, s.dir, "maintain"); !strings.Contains(said, "\nfeature_log: ") || strings.Contains(said, "\nfeature_log: nothing") {
		t.Errorf("maintain says %s", said)
	}
	if again, _, _ := runErr(t, s.dir, "verify", "--served", "--json"); again != out {
		t.Errorf("once maintained, verify --served says %s\nbefore: %s", again, out)
	}
	at("the log of what was served was compacted")
	s.tamper()
	at("what was altered by hand is named")
}

func stat(path string) error {
	_, err := os.Stat(path)
	return err
}

func healthy(url string) bool {
	r, err := http.Get(url + "/health")
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// ready reports whether all views can be read.
func (s *skew) ready(url string) bool {
	r, err := http.Get(url + "/ready")
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// contacts are some that there are, and one that there is not.
func (s *skew) contacts() []string {
	s.t.Helper()
	reading, err := s.lake.Read(s.t.Context(), s.lake.project.Stream("contact"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := reading.LogView(s.t.Context(), s.lake.db, "contacts", nil, false); err != nil {
		s.t.Fatal(err)
	}
	return append(s.lake.texts(s.t, "SELECT DISTINCT contact_id FROM contacts ORDER BY contact_id LIMIT 3000"), "nobody")
}

// tamper alters one thing after the other by hand, and holds verify to naming it.
func (s *skew) tamper() {
	t, ctx := s.t, s.t.Context()
	t.Helper()
	current := s.redis.HGet(ctx, "crm:wide:generations", "current").Val()
	keys := s.redis.Keys(ctx, "crm:wide:"+current+":{*").Val()
	slices.Sort(keys)
	const status = "0" // mkt_status, by its place in the view
	i := slices.IndexFunc(keys, func(k string) bool { return s.redis.HExists(ctx, k, status).Val() })
	gone := slices.IndexFunc(keys, func(k string) bool { return s.redis.HExists(ctx, k, "_d").Val() })
	if i < 0 || gone < 0 {
		t.Fatalf("of %d entities none has a status, or none is gone", len(keys))
	}
	id := strings.TrimSuffix(keys[i][strings.Index(keys[i], "|")+1:], "}")
	order := s.redis.HGet(ctx, keys[i], "_v").Val()
	feastKey := fmt.Sprintf("\x01\x00\x00\x00\x02\x00\x00\x00\x0a\x00\x00\x00contact_id\x02\x00\x00\x00%c\x00\x00\x00%scrm", len(id), id)
	for _, c := range []struct {
		what, view, key, field, value, kind, entity string
	}{
		{"a value", "wide", keys[i], status, "nonsense", "wrong_value", id},
		{"a guard", "wide", keys[i], "_v", order[:len(order)-1] + "z", "wrong_guard", id},
		{"a tombstone", "wide", keys[gone], "_d", "", "wrong_value", strings.TrimSuffix(keys[gone][strings.Index(keys[gone], "|")+1:], "}")},
		{"a value in Feast's layout", "feast", feastKey, feature.FeastField("feast", "mkt_status"), "\x12\x01x", "wrong_value", id},
		{"an event time in Feast's layout", "feast", feastKey, "_ts:feast", "\x08\x01", "wrong_value", id},
		{"a guard in Feast's layout", "feast", feastKey, "_v:feast", "0", "wrong_guard", id},
	} {
		was := s.redis.HGet(ctx, c.key, c.field).Val()
		if was == "" {
			t.Fatalf("%s: %q has no %s", c.what, c.key, c.field)
		}
		if c.value == "" {
			s.redis.HDel(ctx, c.key, c.field)
		} else {
			s.redis.HSet(ctx, c.key, c.field, c.value)
		}
		out, _, code := runErr(t, s.dir, "verify", "--online", "--view", c.view, "--json")
		var found []compared
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err)
		}
		if r := found[0]; code != 1 || r.Differences != 1 || len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || r.Findings[0].Key != c.entity {
			t.Errorf("%s of %s was altered, and verify ends with %d: %+v", c.what, c.entity, code, r)
		}
		s.redis.HSet(ctx, c.key, c.field, was)
	}
	s.tamperTile()
	onlineClean(t, s.dir)
}

// tamperTile alters one count in one tile and one guard of a windowed view, and holds verify to naming it.
func (s *skew) tamperTile() {
	t, ctx := s.t, s.t.Context()
	t.Helper()
	current := s.redis.HGet(ctx, "crm:activity:generations", "current").Val()
	keys := s.redis.Keys(ctx, "crm:activity:"+current+":{*").Val()
	slices.Sort(keys)
	recent := time.Now().Add(-6*24*time.Hour).Unix() / 3600 // hours since 1970, within the window of 7d
	guardKey, guardAt, tileKey, tileAt := "", 0, "", 0
	for _, key := range keys {
		next, tile, number := tileParts(s.redis.Get(ctx, key).Bytes())
		if next > 0 && guardKey == "" {
			guardKey, guardAt = key, next
		}
		if tile > 0 && number > recent && tileKey == "" {
			tileKey, tileAt = key, tile
		}
	}
	for _, c := range []struct {
		what, key  string
		at         int
		kind, text string
	}{
		{"a tile", tileKey, tileAt, "wrong_tile", "the tile of 1h at "},
		{"a guard", guardKey, guardAt, "wrong_guard", "its guard of "},
	} {
		if c.key == "" {
			t.Errorf("of %d entities none has %s", len(keys), c.what)
			continue
		}
		was := s.redis.Get(ctx, c.key).Val()
		altered := []byte(was)
		altered[c.at] ^= 1
		s.redis.SetArgs(ctx, c.key, altered, redis.SetArgs{KeepTTL: true})
		out, _, code := runErr(t, s.dir, "verify", "--online", "--view", "activity", "--json")
		s.redis.SetArgs(ctx, c.key, was, redis.SetArgs{KeepTTL: true})
		var found []compared
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err)
		}
		r, id := found[0], strings.TrimSuffix(c.key[strings.Index(c.key, "|")+1:], "}")
		if code != 1 || r.Differences != 1 || len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || r.Findings[0].Key != id ||
			!strings.HasPrefix(r.Findings[0].Text, c.text) {
			t.Errorf("%s of %s was altered, and verify ends with %d: %+v", c.what, id, code, r)
		}
	}
}

// tileParts finds, in an entity's string, an even next offset of a guard and the count in the first tile of an hour, 0 where there is none;
// and the number of that tile. See docs/redis.md.
func tileParts(text []byte, err error) (next, count int, number int64) {
	if err != nil {
		return 0, 0, 0
	}
	at := 1
	unsigned := func() uint64 {
		v, n := binary.Uvarint(text[at:])
		at += n
		return v
	}
	signed := func() int64 {
		v, n := binary.Varint(text[at:])
		at += n
		return v
	}
	for range unsigned() {
		at += 4
		unsigned()
		if text[at]%2 == 0 {
			next = at
		}
		unsigned()
	}
	signed() // the newest event time
	if unsigned() > 0 {
		number = signed()
		count = at
	}
	return next, count, number
}
