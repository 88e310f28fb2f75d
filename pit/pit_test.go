package pit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// world is a project with a lake in a folder of its own.
type world struct {
	t       testing.TB
	dir     string
	project *feature.Project
	lake    *lake.Lake
	offsets map[string]int64
	later   func() // brings the tables to the vector's definition; see evolvedTables
}

func newWorld(t testing.TB, files map[string]string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), offsets: map[string]int64{}}
	for name, text := range files {
		path := filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.load()
	var err error
	w.lake, err = lake.Open(context.Background(), lake.Config{Lake: w.project.Lake, Namespace: w.project.Name, Dir: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.lake.Close() })
	w.apply()
	return w
}

// load reads the project folder.
func (w *world) load() {
	w.t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	w.project, err = feature.Load(w.dir, func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		var list []sql.Column
		for _, c := range columns {
			list = append(list, sql.Column{Name: c.Name, Type: c.Type.SQL()})
		}
		return db.CheckScalar(ctx, expr, list, want.SQL())
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// apply brings the tables to the project's definitions.
func (w *world) apply() {
	w.t.Helper()
	for _, s := range w.project.Streams {
		if err := w.lake.CreateStream(context.Background(), s); err != nil {
			w.t.Fatal(err)
		}
	}
}

// take gives rows to a stream as one batch from a topic, read at the time now.
func (w *world) take(stream, topic string, now int64, rows []string) {
	w.t.Helper()
	w.takeEach(stream, topic, now, [][]string{rows})
}

// takeEach gives rows to a stream, a batch for each list of them.
func (w *world) takeEach(stream, topic string, now int64, lists [][]string) {
	w.t.Helper()
	ctx := context.Background()
	def := w.project.Stream(stream)
	s, err := w.lake.OpenStream(ctx, def, lake.StreamOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	dedup := ingest.NewDedup(1<<20, s.LookUp)
	if _, err := s.Recent(ctx, 1<<20, func(a lake.Accepted) { dedup.Remember(a.Identity, a.Position) }); err != nil {
		w.t.Fatal(err)
	}
	for _, rows := range lists {
		r := ingest.NewRouter(ingest.RouterOptions{
			Streams: []*feature.Stream{def}, Only: def, Dedups: map[string]*ingest.Dedup{stream: dedup}, JobID: "test",
			Starts: func(string, feature.Partition) int64 { return w.offsets[topic] },
		})
		for _, row := range rows {
			r.Add(&ingest.Record{Position: feature.Position{Topic: topic, Offset: w.offsets[topic]}, Value: []byte(row)}, now)
			w.offsets[topic]++
		}
		batches, err := r.Flush(ctx, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, b := range batches {
			if len(b.Refused) > 0 && !strings.Contains(b.Refused[0].Detail, "missing") {
				w.t.Fatalf("refused: %+v", b.Refused[0])
			}
			if _, err := s.Commit(ctx, b, s.Head()); err != nil {
				w.t.Fatal(err)
			}
			b.Release()
		}
	}
}

func (w *world) build(request feature.DatasetRequest, loosen int64) (*Card, error) {
	w.t.Helper()
	return w.buildBy(request, Options{loosenUS: loosen})
}

func (w *world) buildBy(request feature.DatasetRequest, o Options) (*Card, error) {
	if request.Features == nil {
		var all []string
		for _, v := range w.project.Views {
			all = append(all, v.Name)
		}
		var err error
		if request.Features, err = w.project.Resolve(all); err != nil {
			w.t.Fatal(err)
		}
	}
	if request.TimeColumn == "" {
		request.TimeColumn = feature.DefaultTimeColumn
	}
	if request.AsOf == "" {
		request.AsOf = feature.ServedClock
	}
	if request.Out == "" {
		request.Out = "out.parquet"
	}
	o.Now, o.Version = time.Now, "test"
	return Build(context.Background(), w.lake, w.project, request, o)
}

// texts gives the rows of the built file as JSON.
func (w *world) texts() []string {
	w.t.Helper()
	return w.query(fmt.Sprintf("SELECT to_json(t)::VARCHAR FROM '%s' t", filepath.Join(w.dir, "out.parquet")))
}

// query gives the values of a statement's one column.
func (w *world) query(statement string) []string {
	w.t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(ctx, statement)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, text)
	}
	return all
}

// read gives the rows of the built file as maps.
func (w *world) read() []map[string]any {
	w.t.Helper()
	var all []map[string]any
	for _, text := range w.texts() {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var row map[string]any
		if err := d.Decode(&row); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, row)
	}
	return all
}

const vectors = "../../shared/vectors/"

func loadVectors(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(vectors + name)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s is absent", vectors+name)
	} else if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

// typeOf guesses the type of a column from the values a vector has in it.
func typeOf(values []any) string {
	typ := "string"
	for _, v := range values {
		switch v := v.(type) {
		case json.Number:
			if strings.ContainsAny(v.String(), ".eE") {
				return "double"
			}
			typ = "int64"
		case bool:
			typ = "bool"
		}
	}
	return typ
}

// viewOf is the project of one view over a row stream.
func viewOf(keys map[string]string, keyOrder []string, columns map[string]string, ttl string, extra string) map[string]string {
	var b strings.Builder
	fmt.Fprintf(&b, "stream: s\nkind: state\nformat: row\nkey: [%s]\nevent_time: at\n%scolumns:\n", strings.Join(keyOrder, ", "), extra)
	for _, k := range keyOrder {
		fmt.Fprintf(&b, "  - {name: %s, type: %s}\n", k, keys[k])
	}
	var names []string
	for _, c := range slices.Sorted(mapsKeys(columns)) {
		fmt.Fprintf(&b, "  - {name: %s, type: %s}\n", c, columns[c])
		names = append(names, c)
	}
	return map[string]string{
		"loam.yaml":       "project: vectors",
		"streams/s.yaml":  b.String(),
		"features/f.yaml": fmt.Sprintf("entities: [{name: e, join_keys: [%s]}]\nviews: [{name: v, entity: e, stream: s, ttl: %s, features: [%s]}]", strings.Join(keyOrder, ", "), ttl, strings.Join(names, ", ")),
	}
}

func mapsKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func jsonOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// TestAsOfVectors runs the cases that other tools' tests have for as-of joins, on the clock event.
func TestAsOfVectors(t *testing.T) { asOfVectors(t, plainTables) }

func asOfVectors(t *testing.T, tables vectorTables) {
	var cases []struct {
		Name       string
		ToleranceS *json.Number `json:"tolerance_s"`
		History    []struct {
			Key    any
			TS     *string
			Seq    json.Number
			Values map[string]any
		}
		Labels []struct {
			LabelID json.Number `json:"label_id"`
			Key     any
			TS      *string
		}
		Expected []struct {
			LabelID json.Number `json:"label_id"`
			Matched bool
			Values  map[string]any
		}
	}
	loadVectors(t, "asof.json", &cases)
	for i, c := range cases {
		if i%tables.every != 0 && os.Getenv("LOAM_CI") != "1" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			parts := func(key any) []any {
				if list, ok := key.([]any); ok {
					return list
				}
				return []any{key}
			}
			keys, columns := map[string]string{}, map[string]string{}
			var order []string
			values := map[string][]any{}
			var first any
			for _, h := range c.History {
				if h.Key != nil {
					first = h.Key
				}
				for name, v := range h.Values {
					values["c_"+strings.ToLower(name)] = append(values["c_"+strings.ToLower(name)], v)
				}
			}
			for i, p := range parts(first) {
				name := fmt.Sprintf("k%d", i)
				order, keys[name] = append(order, name), typeOf([]any{p})
			}
			for name, vs := range values {
				columns[name] = typeOf(vs)
			}
			ttl := "0"
			if c.ToleranceS != nil {
				f, _ := c.ToleranceS.Float64()
				ttl = feature.FormatDuration(time.Duration(f * 1e9))
			}
			w := tables.world(t, viewOf(keys, order, columns, ttl, "sequence: seq\nid: position\n"))
			var rows []string
			for _, h := range c.History {
				row := map[string]any{"at": h.TS, "seq": h.Seq}
				for i, p := range parts(h.Key) {
					row[order[min(i, len(order)-1)]] = p
				}
				for name, v := range h.Values {
					row["c_"+strings.ToLower(name)] = v
				}
				rows = append(rows, jsonOf(row))
			}
			tables.fill(w, rows)
			csv := "label_id," + strings.Join(order, ",") + ",event_timestamp\n"
			for _, l := range c.Labels {
				csv += l.LabelID.String() + ","
				for i := range order {
					if l.Key != nil {
						csv += fmt.Sprint(parts(l.Key)[i])
					}
					csv += ","
				}
				if l.TS != nil {
					csv += *l.TS
				}
				csv += "\n"
			}
			w.put("labels.csv", csv)
			if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: feature.EventClock}, 0); err != nil {
				t.Fatal(err)
			}
			got := w.read()
			if len(got) != len(c.Expected) {
				t.Fatalf("%d rows, want %d", len(got), len(c.Expected))
			}
			for i, e := range c.Expected {
				for name := range columns {
					want := any(nil)
					for n, v := range e.Values {
						if "c_"+strings.ToLower(n) == name && e.Matched {
							want = v
						}
					}
					compare(t, fmt.Sprintf("label %s, %s", e.LabelID, name), got[i]["v__"+name], want)
				}
				if fmt.Sprint(got[i]["label_id"]) != e.LabelID.String() {
					t.Errorf("row %d is label %v, want %s", i, got[i]["label_id"], e.LabelID)
				}
			}
		})
	}
}

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func (w *world) put(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func compare(t *testing.T, what string, got, want any) {
	t.Helper()
	g, gok := got.(json.Number)
	w, wok := want.(json.Number)
	if gok && wok {
		gf, _ := g.Float64()
		wf, _ := w.Float64()
		if g.String() == w.String() || (strings.Contains(g.String()+w.String(), ".") && gf == wf) {
			return
		}
	} else if jsonOf(got) == jsonOf(want) {
		return
	}
	t.Errorf("%s: got %v, want %v", what, got, want)
}

// TestPITVectors runs the cases of point-in-time retrieval on both clocks.
func TestPITVectors(t *testing.T) { pitVectors(t, plainTables) }

func pitVectors(t *testing.T, tables vectorTables) {
	var cases []struct {
		Name    string
		History []struct {
			Entity    *string
			EventTS   *string `json:"event_ts"`
			CreatedTS *string `json:"created_ts"`
			Values    map[string]any
		}
		Labels []struct {
			Entity *string
			TS     *string
			Row    json.Number
		}
		TTL       json.Number `json:"ttl_s"`
		Types     map[string]string
		LabelTZ   string `json:"label_tz"`
		NoCreated bool   `json:"no_created"`
		Expected  []struct {
			Row    json.Number
			Values map[string]any
		}
		ExpectedCutoff []struct {
			Row    json.Number
			Values map[string]any
		} `json:"expected_created_cutoff"`
	}
	loadVectors(t, "pit.json", &cases)
	for i, c := range cases {
		if i%tables.every != 0 && os.Getenv("LOAM_CI") != "1" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			columns := map[string]string{}
			for name, typ := range c.Types {
				columns[name] = map[string]string{"int64": "int64", "float64": "double", "double": "double", "string": "string", "bool": "bool"}[typ]
			}
			f, _ := c.TTL.Float64()
			extra := "sequence: created\nprocessed_time: created\nid: position\n"
			if c.NoCreated {
				extra = "id: position\n"
			}
			w := tables.world(t, viewOf(map[string]string{"entity": "string"}, []string{"entity"}, columns, feature.FormatDuration(time.Duration(f*1e9)), extra))
			var rows []string
			definitionsDiffer := false
			for _, h := range c.History {
				row := map[string]any{"entity": h.Entity, "at": h.EventTS, "created": h.CreatedTS}
				if h.CreatedTS == nil || (h.EventTS != nil && moment(t, *h.CreatedTS).Before(moment(t, *h.EventTS))) {
					definitionsDiffer = true
				}
				for name, v := range h.Values {
					row[name] = v
				}
				rows = append(rows, jsonOf(row))
			}
			tables.fill(w, rows)
			csv := "row,entity,event_timestamp\n"
			for _, l := range c.Labels {
				entity, at := "", ""
				if l.Entity != nil {
					entity = *l.Entity
				}
				if l.TS != nil {
					at = *l.TS
				}
				csv += l.Row.String() + ",\"" + entity + "\"," + at + "\n"
			}
			w.put("labels.csv", csv)
			for _, clock := range []feature.Clock{feature.EventClock, feature.ServedClock} {
				expected := c.Expected
				if clock == feature.ServedClock {
					if expected = c.ExpectedCutoff; definitionsDiffer || expected == nil {
						continue
					}
				}
				card, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock}, 0)
				if err != nil {
					t.Fatal(err)
				}
				if card.Audit.MaxUS != nil && *card.Audit.MaxUS > 0 {
					t.Errorf("%s: audit %d", clock, *card.Audit.MaxUS)
				}
				got := w.read()
				if len(got) != len(expected) {
					t.Fatalf("%s: %d rows, want %d", clock, len(got), len(expected))
				}
				for i, e := range expected {
					if fmt.Sprint(got[i]["row"]) != e.Row.String() {
						t.Errorf("%s: row %d is %v, want %s", clock, i, got[i]["row"], e.Row)
					}
					for name := range columns {
						compare(t, fmt.Sprintf("%s, row %s, %s", clock, e.Row, name), got[i]["v__"+name], e.Values[name])
					}
				}
			}
		})
	}
}
