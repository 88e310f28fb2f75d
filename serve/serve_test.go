package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

const testStreams = `stream: thing
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
  - {name: j, type: json}
  - {name: l, type: list<double>}
`

const testViews = `entities: [{name: thing, join_keys: [b, a]}]
views:
  - {name: all, entity: thing, stream: thing, features: [n, x, m, yes, at, j, l]}
  - {name: short, entity: thing, stream: thing, ttl: 1h, features: [n, x]}
  - {name: windows, entity: thing, stream: thing, aggregates: [{name: quiet, fn: days_since_change}, {name: changes, fn: changes, windows: [1d]}]}
  - name: derived
    on_demand: {inputs: ["short:n", "all:x"], request: [{name: cart, type: "decimal(6,2)"}, {name: tags, type: list<string>}, {name: moment, type: timestamp}]}
    features:
      - {name: big, type: bool, sql: "cart > 100 + coalesce(n, 0)"}
      - {name: sum, type: "decimal(10,2)", sql: "cart + n"}
      - {name: tagged, type: list<string>, sql: "list_reverse(tags)"}
      - {name: day, type: date, sql: "moment::DATE"}
      - {name: x2, type: double, sql: "x * 2"}
services:
  - {name: both, features: ["short:n", "all:m"]}
`

// base is the event time of what the tests write; now is what the server takes for now.
var (
	base = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	now  = base.Add(2 * time.Hour)
)

// fixture is a server on a Redis of its own, or a part of one.
type fixture struct {
	t       *testing.T
	project *feature.Project
	redis   *redis.Client
	store   *online.Store
	server  *Server
	run     string
	said    *said
}

// said is what the operator was told.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.text, format+"\n", args...)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// eachRedis runs a test on a Redis in this process, and on the real one at LOAM_TEST_REDIS where that is set.
func eachRedis(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("in process", func(t *testing.T) { test(t, miniredis.RunT(t).Addr()) })
	if address := os.Getenv("LOAM_TEST_REDIS"); address != "" {
		t.Run("real", func(t *testing.T) { test(t, address) })
	} else {
		t.Log("LOAM_TEST_REDIS is not set: no run on a real Redis")
	}
}

func newFixture(t *testing.T, address string, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, said: &said{}}
	f.project = loadProject(t, testStreams, testViews)
	f.redis = redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
	t.Cleanup(func() { f.redis.Close() })
	var err error
	if f.store, err = online.Open(t.Context(), f.project.Name, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.store.Close() })
	f.run = runID(t, f.redis)
	o := Options{Project: f.project, Client: online.NewClient(f.store, f.project, func() time.Time { return now }), Say: f.said.say}
	t.Cleanup(func() { o.Client.Close() })
	o.Limits.Ready = time.Nanosecond // readiness is asked for each time
	if change != nil {
		change(&o)
	}
	f.server = New(o)
	return f
}

// runID is the run id of a server, "" where it tells none.
func runID(t *testing.T, c *redis.Client) string {
	info, err := c.Info(t.Context(), "server").Result()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return id
		}
	}
	return ""
}

func loadProject(t *testing.T, streams, views string) *feature.Project {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"loam.yaml": fmt.Sprintf("project: t%d", time.Now().UnixNano()), "streams/t.yaml": streams, "features/f.yaml": views} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	words := regexp.MustCompile(`\w+`)
	p, err := feature.Load(dir, func(expr string, columns []feature.Column, _ feature.Type) ([]string, error) {
		var reads []string
		for _, c := range columns {
			if slices.Contains(words.FindAllString(expr, -1), c.Name) {
				reads = append(reads, c.Name)
			}
		}
		return reads, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// switchTo makes a generation of a view the one that is read, as loam writes it.
func (f *fixture) switchTo(view string, number int) {
	f.t.Helper()
	g := map[string]any{
		"definition": f.project.ViewDefinition(f.project.View(view)).Hash, "state": "ready", "base": map[string]int{}, "runs": []string{f.run}, "built_at": base,
	}
	if view == "windows" {
		g["as_of"] = base.Add(time.Hour)
	}
	text, err := json.Marshal(g)
	if err != nil {
		f.t.Fatal(err)
	}
	key := f.project.Name + ":" + view + ":generations"
	if err := f.redis.HSet(f.t.Context(), key, fmt.Sprint(number), text, "current", number).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// key is the key of an entity of a view.
func (f *fixture) key(view string, number int, a string, b int) string {
	return fmt.Sprintf("%s:%s:%d:{thing|%s|%d}", f.project.Name, view, number, a, b)
}

// put writes an entity as loam does: its event time in seconds after base, and names and values of features.
func (f *fixture) put(view string, number int, a string, b, seconds int, values ...any) {
	f.t.Helper()
	at := base.Add(time.Duration(seconds) * time.Second).UnixMicro()
	order := feature.Order{EventTime: at, Live: true}
	fields := slices.Clone(values)
	for i := 0; i < len(fields); i += 2 {
		fields[i] = online.FeatureField(slices.Index(f.project.View(view).FeatureNames(), fields[i].(string)))
	}
	if err := f.redis.HSet(f.t.Context(), f.key(view, number, a, b), append([]any{"_v", order.String()}, fields...)...).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// filled writes some entities of both views.
func (f *fixture) filled() *fixture {
	f.put("all", 1, "x", 1, 0, "n", "9223372036854775807", "x", "0.1", "m", "12.5000", "yes", "true", "at", "2026-10-01T00:03:04.000005Z", "j", `{"a":"ü"}`, "l", "[1.5,null]")
	f.put("all", 1, "null", 1, 1)
	f.put("short", 1, "x", 1, 7000, "n", "-3", "x", "1e+21")
	f.put("short", 1, "old", 1, 0, "n", "1")
	f.put("windows", 1, "x", 1, 3600, "quiet", "2.5", "changes_1d", "4")
	f.switchTo("all", 1)
	f.switchTo("short", 1)
	f.switchTo("windows", 1)
	return f
}

// post sends a body, and gives status and answer.
func (f *fixture) post(path, body string) (int, string) {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestGetOnlineFeatures(t *testing.T) {
	eachRedis(t, func(t *testing.T, address string) {
		f := newFixture(t, address, nil).filled()
		for _, c := range []struct{ name, body, want string }{
			{"every type", `{"features":["all:*"],"entities":{"a":["x"],"b":[1]}}`,
				`{"metadata":{"feature_names":["a","b","n","x","m","yes","at","j","l"]},"results":[` +
					`{"values":["x"],"statuses":["PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z"]},` +
					`{"values":[1],"statuses":["PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z"]},` +
					`{"values":[9223372036854775807],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":[0.1],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":["12.5000"],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":[true],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":["2026-10-01T00:03:04.000005Z"],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":[{"a":"ü"}],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]},` +
					`{"values":[[1.5,null]],"statuses":["PRESENT"],"event_timestamps":["2026-11-01T00:00:00Z"]}]}`},
			{"statuses, a service, full names", `{"feature_service":"both","entities":{"b":["01",1,1,2],"a":["x","null","old","x"]},"full_feature_names":true}`,
				`{"metadata":{"feature_names":["b","a","short__n","all__m"]},"results":[` +
					`{"values":["01",1,1,2],"statuses":["PRESENT","PRESENT","PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":["x","null","old","x"],"statuses":["PRESENT","PRESENT","PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":[-3,null,null,null],"statuses":["PRESENT","NOT_FOUND","OUTSIDE_MAX_AGE","NOT_FOUND"],"event_timestamps":["2026-11-01T01:56:40Z","1970-01-01T00:00:00Z","2026-11-01T00:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":["12.5000",null,null,null],"statuses":["PRESENT","NULL_VALUE","NOT_FOUND","NOT_FOUND"],"event_timestamps":["2026-11-01T00:00:00Z","2026-11-01T00:00:01Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]}]}`},
			{"windows over history, beside what is now", `{"features":["windows:*","short:n"],"entities":{"a":["x","nobody"],"b":[1,1]}}`,
				`{"metadata":{"feature_names":["a","b","quiet","changes_1d","n"]},"results":[` +
					`{"values":["x","nobody"],"statuses":["PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":[1,1],"statuses":["PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":[2.5,null],"statuses":["PRESENT","NOT_FOUND"],"event_timestamps":["2026-11-01T01:00:00Z","1970-01-01T00:00:00Z"]},` +
					`{"values":[4,0],"statuses":["PRESENT","PRESENT"],"event_timestamps":["2026-11-01T01:00:00Z","2026-11-01T01:00:00Z"]},` +
					`{"values":[-3,null],"statuses":["PRESENT","NOT_FOUND"],"event_timestamps":["2026-11-01T01:56:40Z","1970-01-01T00:00:00Z"]}]}`},
		} {
			if status, got := f.post("/get-online-features", c.body); status != http.StatusOK || got != c.want {
				t.Errorf("%s: %d\ngot  %s\nwant %s", c.name, status, got, c.want)
			}
		}
	})
}

// What isn't as of now says so in a header.
func TestAsOfHeader(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), nil).filled()
	for features, want := range map[string]string{`"windows:quiet","all:n"`: "windows=2026-11-01T01:00:00Z", `"all:n"`: ""} {
		w := f.ask("POST", "/get-online-features", `{"features":[`+features+`],"entities":{"a":["x"],"b":[1]}}`)
		if got := w.Header().Get("Loam-As-Of"); w.Code != http.StatusOK || got != want {
			t.Errorf("%s: %d, %q, want %q", features, w.Code, got, want)
		}
	}
}

// A view without a generation is 503, in /ready as well.
func TestReady(t *testing.T) {
	eachRedis(t, func(t *testing.T, address string) {
		f := newFixture(t, address, nil)
		get := func(path string) (int, string) {
			w := httptest.NewRecorder()
			f.server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			return w.Code, w.Body.String()
		}
		if status, got := get("/health"); status != http.StatusOK || got != `{"status":"ok"}`+"\n" {
			t.Errorf("health: %d %s", status, got)
		}
		f.switchTo("short", 1)
		f.switchTo("windows", 1)
		if status, got := get("/ready"); status != http.StatusServiceUnavailable || !strings.Contains(got, `{"name":"all","ready":false,"code":"not_ready"`) || !strings.Contains(got, `{"name":"short","ready":true}`) {
			t.Errorf("not ready: %d %s", status, got)
		}
		if status, got := f.post("/get-online-features", `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`); status != http.StatusServiceUnavailable || !strings.Contains(got, `"code":"not_ready"`) {
			t.Errorf("a read: %d %s", status, got)
		}
		f.switchTo("all", 1)
		if status, got := get("/ready"); status != http.StatusOK || !strings.HasPrefix(got, `{"status":"ready"`) {
			t.Errorf("ready: %d %s", status, got)
		}
	})
}

// However many ask whether views can be read, Redis is asked of each once in a while.
func TestReadyAsksOnce(t *testing.T) {
	m := miniredis.RunT(t)
	f := newFixture(t, m.Addr(), func(o *Options) { o.Limits.Ready = time.Minute }).filled()
	before := m.CommandCount()
	var asking sync.WaitGroup
	for range 200 {
		asking.Go(func() {
			if w := f.ask("GET", "/ready", ""); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	asking.Wait()
	// HELLO, CLIENT and INFO of a connection a view, and HGETALL of each.
	if asked := m.CommandCount() - before; asked < 2 || asked > 20 {
		t.Errorf("Redis was asked %d times", asked)
	}
	m.Close()
	if w := f.ask("GET", "/ready", ""); w.Code != http.StatusOK {
		t.Errorf("within the time for which it is good: %d %s", w.Code, w.Body)
	}
	f.server.readiness.until = time.Time{}
	if w := f.ask("GET", "/ready", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("after it: %d %s", w.Code, w.Body)
	}
	close(f.server.stopping)
	if w := f.ask("GET", "/ready", ""); !strings.Contains(w.Body.String(), `"status":"stopping"`) {
		t.Errorf("once it is to end: %s", w.Body)
	}
}

// A server ends once it is told to, and not before the requests on their way are answered.
func TestGracefulStop(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), nil).filled()
	begun, end := make(chan struct{}), make(chan struct{})
	f.server.mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-end
		fmt.Fprint(w, "done")
	})
	l := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.server.Run(ctx, l) }()
	got := make(chan string, 1)
	go func() {
		r, err := http.Get("http://" + l.Addr().String() + "/slow")
		if err != nil {
			got <- err.Error()
			return
		}
		defer r.Body.Close()
		b := make([]byte, 4)
		_, _ = r.Body.Read(b)
		got <- string(b)
	}()
	<-begun
	stop()
	<-f.server.stopping
	select {
	case err := <-ended:
		t.Fatalf("it ended with a request on its way: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(end)
	if text := <-got; text != "done" {
		t.Errorf("the request got %q", text)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := http.Get("http://" + l.Addr().String() + "/health"); err == nil {
		t.Error("it still listens")
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
