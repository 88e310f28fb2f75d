package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/ingest/schema"
)

// framedProject is a project whose stream score is written in Avro, and whose stream contact in JSON; produce writes to their
// topics. The registry gives the schemas, and answers the first away requests that it is away.
type framedProject struct {
	app     *app
	out     *strings.Builder
	said    *lockedText
	client  *kgo.Client
	schemas map[string]string // by id
	away    atomic.Int32
}

const scoreSchema = `{"type": "record", "name": "Score", "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
	{"name": "score", "type": %s}]}`

func newFramedProject(t *testing.T) *framedProject {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "contact.v1", "score.v1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	p := &framedProject{out: &strings.Builder{}, said: &lockedText{}, client: client, schemas: map[string]string{}}
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		text, ok := p.schemas[strings.TrimPrefix(r.URL.Path, "/schemas/ids/")]
		switch {
		case name != "loam" || password != "hunter2":
			w.WriteHeader(http.StatusUnauthorized)
		case p.away.Add(-1) >= 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error_code": 40403}`)
		default:
			_ = json.NewEncoder(w).Encode(map[string]string{"schema": text})
		}
	}))
	t.Cleanup(registry.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"loam.yaml": "project: crm\nbroker: {seeds: [" + strings.Join(cluster.ListenAddrs(), ", ") + "]}\nregistry: {url: \"" + registry.URL +
			"\", username: loam, password: {file: secret}}\n",
		"secret":             "hunter2\n",
		"streams/score.yaml": "stream: score\nkind: state\nformat: row\nencoding: avro\nkey: [id]\nevent_time: at\ncolumns: [{name: id, type: string}, {name: score, type: \"decimal(6,2)\"}]\n",
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	p.app = &app{dir: dir, out: p.out, err: p.said, json: true, now: time.Now}
	return p
}

func (p *framedProject) produce(t *testing.T, topic, key string, value []byte) {
	t.Helper()
	if err := p.client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte(key), Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// score is an event by the schema with this id, whose score is of this type.
func (p *framedProject) score(t *testing.T, id uint32, key, typ string, score any) {
	t.Helper()
	text := fmt.Sprintf(scoreSchema, typ)
	p.schemas[fmt.Sprint(id)] = text
	event, err := avro.MustParse(text).Encode(map[string]any{"id": key, "at": time.UnixMilli(1), "score": score})
	if err != nil {
		t.Fatal(err)
	}
	p.produce(t, "score.v1", key, append(binary.BigEndian.AppendUint32([]byte{0}, id), event...))
}

// run takes what is in the topics.
func (p *framedProject) run(ctx context.Context, t *testing.T) (report, error) {
	t.Helper()
	p.out.Reset()
	err := p.app.run(ctx, workerOptions{untilEnd: true, commitEvery: time.Second, commitRows: 1000, commitBytes: 1 << 20}, []string{"contact", "score"})
	var r report
	if text := p.out.String(); text != "" {
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	if strings.Contains(p.said.String()+p.out.String()+fmt.Sprint(err), "hunter2") {
		t.Errorf("the password is told: %s, %v", p.said, err)
	}
	return r, err
}

// A worker takes framed topics beside others: it waits for a registry that is away, refuses what names no schema that is known,
// and by a schema that doesn't fit it takes nothing, until that is mended.
func TestFramedTopics(t *testing.T) {
	p := newFramedProject(t)
	p.away.Store(3)
	p.score(t, 1, "a", `{"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}`, json.Number("1.5"))
	p.produce(t, "score.v1", "b", []byte("{}"))
	p.produce(t, "score.v1", "b", []byte{0, 0, 0, 0, 77, 1})
	p.produce(t, "score.v1", "a", nil) // a tombstone
	p.produce(t, "contact.v1", "c", []byte(change(1, "c", "lead")))
	r, err := p.run(t.Context(), t)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.said)
	}
	if s := r.Streams["score"]; s.Accepted != 2 || s.Refused != 2 || r.Streams["contact"].Accepted != 1 {
		t.Errorf("%+v", r)
	}
	if said := p.said.String(); !strings.Contains(said, "waiting for the registry: look schema id 1 up at") || !strings.Contains(said, "the registry answers again") {
		t.Error(said)
	}
	p.out.Reset()
	if err := p.app.listLetters(t.Context(), letterFilter{stream: "score"}, "true", 10); err != nil || !strings.Contains(p.out.String(), `"unknown_schema_id"`) || !strings.Contains(p.out.String(), `"undecodable"`) {
		t.Errorf("%s, %v", p.out, err)
	}
	// By another schema the same field is text. Nothing from there on is taken, however often it is tried.
	p.score(t, 1, "d", `{"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}`, json.Number("2"))
	p.score(t, 2, "e", `"string"`, "3.25")
	p.produce(t, "score.v1", "a", nil) // what comes behind it stays, too
	for i := range 2 {
		p.produce(t, "contact.v1", "c", []byte(change(2+i, "c", "lead")))
		r, err = p.run(t.Context(), t)
		var incompatible *schema.Incompatible
		if !errors.As(err, &incompatible) || incompatible.ID != 2 || !strings.HasPrefix(err.Error(),
			"read offset 5 of partition 0 of score.v1: schema id 2 does not fit stream score, and nothing that is written by it has been taken: score: is a string, and column score is decimal(6,2); have it written as ") {
			t.Fatal(err)
		}
		// The other stream goes on, and what came before is taken.
		if r.Streams["contact"].Accepted != 1 || r.Streams["score"].Read != int64(1-i) {
			t.Errorf("%+v", r)
		}
		if said := p.said.String(); strings.Count(said, "topic score.v1 has stopped, and what else there is goes on") != i+1 {
			t.Error(said)
		}
	}
	// A column that takes both goes on with all of it.
	path := filepath.Join(p.app.dir, "streams", "score.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`{name: score, type: "decimal(6,2)"}`), []byte(`{name: score_as_written, type: json, path: score}`), 1)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	project, l, err := p.app.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.app.apply(t.Context(), project, l)
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	if r, err = p.run(t.Context(), t); err != nil || r.Streams["score"].Accepted != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A worker that goes on does so without a stream whose schema doesn't fit, and fails for it once it is asked to end.
func TestStoppedStream(t *testing.T) {
	p := newFramedProject(t)
	p.score(t, 1, "a", `"string"`, "1.5")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- p.app.run(ctx, workerOptions{commitEvery: 50 * time.Millisecond, commitRows: 1000, commitBytes: 1 << 20}, []string{"contact", "score"})
	}()
	await := func(what string, is func() bool) {
		t.Helper()
		for begun := time.Now(); !is(); time.Sleep(20 * time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("it ended before %s: %v", what, err)
			default:
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s: not within a minute\n%s", what, p.said)
			}
		}
	}
	await("the stream stopped", func() bool { return strings.Contains(p.said.String(), "topic score.v1 has stopped") })
	p.produce(t, "contact.v1", "c", []byte(change(1, "c", "lead")))
	await("the other took an event", func() bool {
		other := &app{dir: p.app.dir, out: io.Discard, err: io.Discard, now: time.Now}
		project, l, err := other.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all, err := statusOf(t.Context(), l, []*feature.Stream{project.Stream("contact"), project.Stream("score")})
		if err != nil {
			t.Fatal(err)
		}
		return all.Streams[0].Counts.Accepted == 1 && all.Streams[1].Counts.Read == 0
	})
	stop()
	var incompatible *schema.Incompatible
	if err := <-ended; !errors.As(err, &incompatible) || incompatible.Stream != "score" {
		t.Errorf("%v", err)
	}
}

// Letters of a framed topic are taken again by their schemas, once the registry has them, or repaired, as JSON or framed.
func TestRedriveFramedTopics(t *testing.T) {
	p := newFramedProject(t)
	p.score(t, 7, "a", `{"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}`, json.Number("1.5"))
	known := p.schemas["7"]
	delete(p.schemas, "7")
	p.produce(t, "score.v1", "b", []byte(`{"id": "b", "at": "2026-01-01T00:00:00Z", "score": 2}`)) // not framed
	p.produce(t, "score.v1", "c", []byte{0, 0, 0, 0, 7})
	if r, err := p.run(t.Context(), t); err != nil || r.Streams["score"].Refused != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	redrive := func(o redriveOptions) (redriveReport, error) {
		t.Helper()
		o.by = "me"
		r, done, err := p.app.openRedrive(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		err = r.run(t.Context(), o, time.Now)
		return r.report, err
	}
	p.schemas["7"] = known
	p.away.Store(1)
	if _, err := redrive(redriveOptions{}); !errors.Is(err, schema.ErrAway) || !strings.Contains(err.Error(), "read the letter at score.v1/0@0: ") {
		t.Errorf("without the registry: %v", err)
	}
	p.away.Store(0)
	r, err := redrive(redriveOptions{})
	if err != nil || *r.Streams["score"] != (redriveCount{Letters: 3, Accepted: 1, Refused: 2}) {
		t.Errorf("%+v, %v", r.Streams["score"], err)
	}
	event, err := avro.MustParse(known).Encode(map[string]any{"id": "c", "at": time.UnixMilli(3), "score": json.Number("3.5")})
	if err != nil {
		t.Fatal(err)
	}
	repaired := filepath.Join(p.app.dir, "repaired.jsonl")
	text := fmt.Sprintf(`{"position": "score.v1/0@1", "body": {"id": "b", "at": "2026-01-01T00:00:00Z", "score": 2}}
{"position": "score.v1/0@2", "base64": true, "body": %q}
`, base64.StdEncoding.EncodeToString(append([]byte{0, 0, 0, 0, 7}, event...)))
	if err := os.WriteFile(repaired, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err = redrive(redriveOptions{with: repaired}); err != nil || *r.Streams["score"] != (redriveCount{Letters: 2, Accepted: 2}) {
		t.Errorf("%+v, %v", r.Streams["score"], err)
	}
	dir := p.app.dir
	for key, want := range map[string]string{"a": "1.5", "b": "2.0", "c": "3.5"} {
		p.out.Reset()
		root := p.app.root()
		root.SetArgs([]string{"history", "score", key, "-C", dir})
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(p.out.String(), want) {
			t.Errorf("%s: %s, %v", key, p.out, err)
		}
	}
}

// A worker that is to end gives up on a registry that stays away, one that isn't waits until it is ended, and what would be too much
// JSON to hold at once is decoded in parts.
func TestDecodeWaitsAndBounds(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	s := &feature.Stream{Name: "wide", Kind: feature.StateStream, Format: feature.RowFormat, Encoding: feature.AvroEncoding, Topic: "wide.v1",
		Key: []string{"id"}, EventTime: "at", Columns: []feature.Column{{Name: "id", Type: feature.Type{Kind: feature.String}, Path: []string{"id"}}}}
	var away atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"schema": `{"type": "record", "name": "Wide", "fields": [{"name": "id", "type": "string"}, ` +
			`{"name": "at", "type": "string"}, {"name": "` + long + `", "type": "null"}]}`})
	}))
	defer server.Close()
	clock := time.Unix(1_800_000_000, 0)
	said := &lockedText{}
	w := &worker{options: workerOptions{untilEnd: true}, say: func(format string, args ...any) { fmt.Fprintf(said, format, args...) }, now: func() time.Time {
		clock = clock.Add(registryPatience / 2)
		return clock
	}}
	decoders, err := openDecoders(&feature.Project{Registry: feature.Registry{URL: server.URL}}, []*openStream{{def: s}}, w.now)
	if err != nil {
		t.Fatal(err)
	}
	var records []ingest.Record
	for i := range 100 {
		records = append(records, ingest.Record{Position: feature.Position{Topic: s.Topic, Offset: int64(i)}, Value: []byte{0, 0, 0, 0, 1, 2, 'a', 0}})
	}
	from := &source{decoders: decoders}
	away.Store(true)
	if _, err := w.decode(t.Context(), from, records); !errors.Is(err, schema.ErrAway) || !strings.Contains(err.Error(), "nothing is lost") {
		t.Error(err)
	}
	w.options.untilEnd = false
	ended, end := context.WithTimeout(t.Context(), 3*registryWaitMin)
	defer end()
	if _, err := w.decode(ended, from, records); err == nil || ended.Err() == nil {
		t.Errorf("it gave up: %v", err)
	}
	away.Store(false)
	n, err := w.decode(t.Context(), from, records)
	if err != nil || n < decodedBytesMax>>20 || n > decodedBytesMax>>20+1 {
		t.Errorf("%d records were decoded at once, %v", n, err)
	}
	if rest, err := w.decode(t.Context(), from, records[n:]); err != nil || n+rest != len(records) || records[99].JSON == nil {
		t.Errorf("%d and %d records, %v", n, rest, err)
	}
}

// Made-up events, which are JSON, go to no topic that is written otherwise.
func TestSimulateIntoFramedTopics(t *testing.T) {
	p := newFramedProject(t)
	path := filepath.Join(p.app.dir, "streams", "contact.yaml")
	if err := os.WriteFile(path, []byte("stream: contact\nextend: true\nencoding: avro\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.app.openEventWriter(t.Context(), simulateFlags{topics: true}); err == nil || !strings.Contains(err.Error(), "topic contact.v1 is written in avro") {
		t.Error(err)
	}
}

// lockedText is what several goroutines say.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
