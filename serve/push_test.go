package serve

import (
	"bytes"
	"context"
	"errors"

	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// pushFixture is a server whose topics are folders.
func pushFixture(t *testing.T, change func(*Options)) (f *fixture, topics string) {
	t.Helper()
	topics = t.TempDir()
	return newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) {
		o.Producer = ingest.NewFolderProducer(func(topic string) string { return filepath.Join(topics, topic) })
		if change != nil {
			change(o)
		}
	}), topics
}

// frame is the columns of a row of the stream thing, but for its key.
const frame = `"n":[9223372036854775807],"x":[0.5],"m":[12345678901234.5678],"yes":[true],"at":[null],"j":[{"a":
 1}],"l":[[1.5]],"event_timestamp":["2026-11-01T00:00:00Z"]`

func TestPush(t *testing.T) {
	f, topics := pushFixture(t, nil)
	for _, name := range []string{"thing", "thing_push", "all", "all_push"} {
		w := f.ask("POST", "/push", `{"push_source_name":"`+name+`","df":{"a":["k"],"b":[1],`+frame+`},"to":"online_and_offline","allow_registry_cache":true,"transform_on_write":true}`,
			"Idempotency-Key", "one")
		if w.Code != http.StatusOK || w.Body.String() != `{"accepted":1,"stream":"thing"}`+"\n" {
			t.Fatalf("%s: %d %s", name, w.Code, w.Body)
		}
		valid(t, answerSchema(t, "Pushed"), w.Body.String())
	}
	text, err := os.ReadFile(filepath.Join(topics, "thing.v1", "0.jsonl"))
	if err != nil {
		text, err = os.ReadFile(filepath.Join(topics, "thing", "0.jsonl"))
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(strings.Lines(string(text)))
	if len(lines) != 4 || lines[0] != lines[3] || !strings.Contains(lines[0], `"payload":{"a":"k","b":1,"n":9223372036854775807,"x":0.5,"m":12345678901234.5678,"yes":true,"at":null,"j":{"a":1},"l":[1.5]}`) {
		t.Errorf("the topic has %q", lines)
	}
}

// Every refusal of a push has its status, its code and its place, and the topic has nothing of it.
func TestPushErrors(t *testing.T) {
	f, topics := pushFixture(t, func(o *Options) {
		o.Limits.PushRows = 2
		o.Keys = []Key{{"all", "s3cret", []string{"*"}, []string{"*"}}, {"reads", "other", []string{"*"}, nil}, {"few", "few", []string{"short"}, []string{"thing"}}}
	})
	row := `{"push_source_name":"thing","df":{"a":["k"],"b":[1],` + frame + `}`
	schema := answerSchema(t, "Error")
	for _, c := range []struct {
		name, body string
		status     int
		want       string // in the answer
	}{
		{"no JSON", `{"df":`, 400, `"code":"malformed_json"`},
		{"no object", `[]`, 400, `"code":"wrong_type"`},
		{"more behind it", row + `} {}`, 400, `there is more behind the object`},
		{"no source", `{"df":{"a":["k"]}}`, 400, `"code":"missing_push_source"`},
		{"an unknown source", strings.Replace(row, "thing", "things", 1) + `}`, 404, `"known":["all","contact","engagement","opportunity","short","thing","windows"]`},
		{"a view on demand", strings.Replace(row, "thing", "derived", 1) + `}`, 400, `"code":"not_pushable","message":"feature view derived is computed when it is read"`},
		{"an unknown member", row + `,"too":"online"}`, 400, `"code":"unknown_field"`},
		{"online alone", row + `,"to":"online"}`, 400, `"code":"one_line","message":"rows can't be pushed online alone`},
		{"offline alone", row + `,"to":"offline"}`, 400, `"code":"one_line","message":"rows can't be pushed offline alone`},
		{"elsewhere", row + `,"to":"moon"}`, 400, `"field":"to"`},
		{"no columns", `{"push_source_name":"thing","df":[]}`, 400, `"field":"df"`},
		{"no list", `{"push_source_name":"thing","df":{"a":"k"}}`, 400, `"field":"df.a"`},
		{"ragged", `{"push_source_name":"thing","df":{"a":["k"],"b":[1,2]}}`, 400, `"code":"ragged_columns","message":"column b has 2 values, and a has 1"`},
		{"a column too few", `{"push_source_name":"thing","df":{"a":["k"],"b":[1]}}`, 422, `"code":"unknown_column","message":"column n: missing: an event of thing carries the whole state`},
		{"a column too many", strings.Replace(row, `"a":`, `"ltv":[1],"a":`, 1) + `}`, 422, `"field":"df.ltv"`},
		{"a value", strings.Replace(row, "0.5", `"0.5"`, 1) + `}`, 422,
			`"code":"rows_refused","message":"row 0: x: want a number","remedy":"mend the rows that are named; none was taken","field":"df.x[0]","rows":[{"row":0,"column":"x","reason":"bad_value","detail":"want a number"}]`},
		{"a time to come", strings.Replace(row, "2026", "2926", 1) + `}`, 422, `"reason":"future_event_time"`},
		{"too many rows", `{"push_source_name":"thing","df":{"a":["k","l","m"]}}`, 413, `"code":"too_many_rows"`},
	} {
		w := f.ask("POST", "/push", c.body, "Authorization", "Bearer s3cret")
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		valid(t, schema, w.Body.String())
	}
	for _, c := range []struct {
		name    string
		headers []string
		status  int
		code    string
	}{
		{"no API key", nil, 401, codeNoKey},
		{"a key that only reads", []string{"Authorization", "Bearer other"}, 403, codeForbidden},
		{"a long idempotency key", []string{"Authorization", "Bearer s3cret", "Idempotency-Key", strings.Repeat("k", 257)}, 400, codeIdempotency},
		{"a form", []string{"Authorization", "Bearer s3cret", "Content-Type", "application/x-www-form-urlencoded"}, 415, codeMedia},
		{"Arrow that is none", []string{"Authorization", "Bearer s3cret", "Content-Type", arrowType}, 400, codeSource},
	} {
		if w := f.ask("POST", "/push", row+"}", c.headers...); w.Code != c.status || !strings.Contains(w.Body.String(), `"code":"`+c.code+`"`) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
	unknown := f.ask("POST", "/push", strings.Replace(row, "thing", "things", 1)+"}", "Authorization", "Bearer few")
	if !strings.Contains(unknown.Body.String(), `"known":["short","thing"]`) {
		t.Errorf("a key that may push to one stream and read one view is told of %s", unknown.Body)
	}
	if there, _ := filepath.Glob(filepath.Join(topics, "*")); len(there) > 0 {
		t.Errorf("something was produced: %v", there)
	}
	none := newFixture(t, miniredis.RunT(t).Addr(), nil)
	if w := none.ask("POST", "/push", row+"}"); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), codeNotOffered) {
		t.Errorf("a server without topics: %d %s", w.Code, w.Body)
	}
}

// arrowRows writes rows of the stream thing as an Arrow stream.
func arrowRows(t *testing.T, f *fixture, rows int) string {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.BinaryTypes.String}, {Name: "b", Type: arrow.PrimitiveTypes.Int64}, {Name: "n", Type: arrow.PrimitiveTypes.Int64},
		{Name: "x", Type: arrow.PrimitiveTypes.Float64}, {Name: "m", Type: &arrow.Decimal128Type{Precision: 18, Scale: 4}}, {Name: "yes", Type: arrow.FixedWidthTypes.Boolean},
		{Name: "at", Type: arrow.FixedWidthTypes.Timestamp_us}, {Name: "j", Type: arrow.BinaryTypes.String}, {Name: "l", Type: arrow.ListOf(arrow.PrimitiveTypes.Float64)},
		{Name: "event_timestamp", Type: arrow.FixedWidthTypes.Timestamp_us}}, nil)
	row := `{"a":"k","b":1,"n":9223372036854775807,"x":0.5,"m":"1.5000","yes":true,"at":"2026-10-01T00:00:00Z","j":"{\"a\": 1}","l":[1.5],"event_timestamp":"2026-11-01T00:00:00Z"}`
	batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader("["+strings.Repeat(row+",", rows-1)+row+"]"), array.WithUseNumber())
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Release()
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(schema))
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPushArrowStream(t *testing.T) {
	f, topics := pushFixture(t, func(o *Options) { o.Limits.PushRows, o.Limits.BodyBytes = 3, 4<<10 })
	ask := func(path, body string) (int, string) {
		w := f.ask("POST", path, body, "Content-Type", arrowType)
		return w.Code, w.Body.String()
	}
	rows := arrowRows(t, f, 2)
	if status, got := ask("/push?push_source_name=all&to=online_and_offline", rows); status != http.StatusOK || !strings.HasPrefix(got, `{"accepted":2,`) {
		t.Fatalf("%d %s", status, got)
	}
	paths, _ := filepath.Glob(filepath.Join(topics, "*", "0.jsonl"))
	text, _ := os.ReadFile(paths[0])
	if want := `"payload":{"a":"k","b":1,"n":9223372036854775807,"x":0.5,"m":1.5000,"yes":true,"at":"2026-10-01T00:00:00Z","j":{"a": 1},"l":[1.5]}`; strings.Count(string(text), want) != 2 {
		t.Errorf("the topic has %s", text)
	}
	for name, c := range map[string]struct {
		path, body string
		status     int
		code       string
	}{
		"no source":             {"/push", rows, 400, codeSource},
		"another parameter":     {"/push?push_source_name=all&df=x", rows, 400, codeUnknownField},
		"online alone":          {"/push?push_source_name=all&to=online", rows, 400, codeOneLine},
		"no Arrow":              {"/push?push_source_name=all", "{}", 400, codeArrow},
		"cut off":               {"/push?push_source_name=all", rows[:len(rows)/2], 400, codeArrow},
		"too many rows":         {"/push?push_source_name=all", arrowRows(t, f, 4), 413, codeManyRows},
		"more bytes than bytes": {"/push?push_source_name=all", arrowRows(t, f, 100), 413, codeTooLarge},
	} {
		if status, got := ask(c.path, c.body); status != c.status || !strings.Contains(got, `"code":"`+c.code+`"`) {
			t.Errorf("%s: %d %s", name, status, got)
		}
	}
	if again, _ := os.ReadFile(paths[0]); !bytes.Equal(text, again) {
		t.Error("something that was refused was produced")
	}
}

// away is a topic that takes some of what it is given.
type away struct {
	takes int
	err   error
}

func (a away) Produce(context.Context, string, []ingest.Event) (int, error) { return a.takes, a.err }

func TestPushToABrokerThatIsAway(t *testing.T) {
	body := `{"push_source_name":"thing","df":{"a":["k"],"b":[1],` + frame + `}}`
	for _, c := range []struct {
		name    string
		topic   away
		key     string
		status  int
		message []string
	}{
		{"with a key", away{0, errors.New("refused by 10.0.0.1")}, "k", 503, []string{codeBroker, "0 of 1 rows are acknowledged", "under the same Idempotency-Key: each counts once"}},
		{"without one", away{0, errors.New("refused by 10.0.0.1")}, "", 503, []string{codeBroker, "may count twice"}},
		{"too large", away{0, ingest.ErrTooLarge}, "k", 413, []string{codeEventLarge}},
	} {
		f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) { o.Producer = c.topic })
		w := f.ask("POST", "/push", body, "Idempotency-Key", c.key)
		for _, part := range c.message {
			if w.Code != c.status || !strings.Contains(w.Body.String(), part) {
				t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
			}
		}
		if strings.Contains(w.Body.String(), "10.0.0.1") {
			t.Errorf("%s: callers are told where the brokers are: %s", c.name, w.Body)
		}
		if c.status == 503 && (w.Header().Get("Retry-After") == "" || !strings.Contains(f.said.String(), "10.0.0.1")) {
			t.Errorf("%s: the operator was told %q", c.name, f.said)
		}
	}
}

// Pushes of many callers at once are each whole in the topic.
func TestPushesAtOnce(t *testing.T) {
	f, topics := pushFixture(t, nil)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if w := f.ask("POST", "/push", `{"push_source_name":"thing","df":{"a":["k"],"b":[1],`+frame+`}}`); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	all.Wait()
	source, err := ingest.OpenFolder("t", filepath.Dir(glob(t, topics)), func(feature.Partition) int64 { return 0 }, true)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	poll, err := source.Poll(t.Context())
	if err != nil || len(poll.Records) != 32 {
		t.Fatalf("%d records, %v", len(poll.Records), err)
	}
	ids := map[string]bool{}
	for _, r := range poll.Records {
		ids[regexp.MustCompile(`"event_id":"([^"]+)"`).FindString(string(r.Value))] = true
	}
	if len(ids) != 32 {
		t.Errorf("32 events have %d ids", len(ids))
	}
}

func glob(t *testing.T, topics string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(topics, "*", "0.jsonl"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	return paths[0]
}
