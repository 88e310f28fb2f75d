package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

// datasetWorld is a project with a lake, of which training sets are built.
type datasetWorld struct {
	t       *testing.T
	dir     string
	project *feature.Project
	lake    *lake.Lake
	check   feature.CheckExpr
	offsets map[string]int64
	step    int // seconds that times of random rows are apart
}

// Streams of all kinds that training sets are built of: full states, patches, and events, with columns of every type.
var datasetFiles = map[string]string{
	"loam.yaml": "project: sets",
	"streams/thing.yaml": `stream: thing
kind: state
format: row
key: [id, part]
event_time: at
sequence: seq
processed_time: got
id: position
delete_when: gone
columns: [{name: id, type: string}, {name: part, type: int64}, {name: n, type: int64}, {name: x, type: double}, {name: m, type: "decimal(18,4)"},
  {name: s, type: string}, {name: l, type: list<double>}, {name: day, type: date}, {name: yes, type: bool}, {name: gone, type: bool}]
`,
	"streams/patch.yaml": `stream: patch
kind: state
format: row
payload: patch
key: [id]
event_time: at
processed_time: got
id: position
delete_when: gone
columns: [{name: id, type: string}, {name: n, type: int64}, {name: s, type: string}, {name: gone, type: bool}]
`,
	"streams/fact.yaml": `stream: fact
kind: event
format: row
key: [fact]
cluster_by: id
event_time: at
processed_time: got
id: position
columns: [{name: fact, type: int64}, {name: id, type: string}, {name: n, type: int64}, {name: x, type: double}, {name: m, type: "decimal(9,2)"}, {name: s, type: string}]
`,
	"features/f.yaml": `entities: [{name: thing, join_keys: [id, part]}, {name: one, join_keys: [id]}]
views:
  - {name: plain, entity: thing, stream: thing, features: [n, x, m, s, l, day, yes, {name: part_n, type: double, sql: "n / part"}]}
  - {name: short, entity: thing, stream: thing, ttl: 300s, features: [n, s]}
  - {name: patched, entity: one, stream: patch, ttl: 20m, features: [n, {name: twice, type: string, sql: "s || s"}]}
  - name: recent
    entity: one
    stream: fact
    aggregates:
      - {name: c, fn: count, windows: [5m, 1h]}
      - {name: big, fn: count, where: "n > 2 AND s <> 'a'", windows: [30m]}
      - {name: ns, fn: count, column: n, windows: [30m]}
      - {name: sn, fn: sum, column: n, windows: [30m]}
      - {name: sx, fn: sum, column: x, windows: [30m]}
      - {name: sm, fn: sum, column: m, windows: [30m]}
      - {name: an, fn: avg, column: n, windows: [30m]}
      - {name: ax, fn: avg, column: x, windows: [30m]}
      - {name: am, fn: avg, column: m, windows: [30m]}
      - {name: least, fn: min, column: x, windows: [30m]}
      - {name: most, fn: max, column: s, windows: [30m]}
      - {name: f, fn: first, column: s, windows: [30m]}
      - {name: l, fn: last, column: m, windows: [30m]}
      - {name: d, fn: distinct, column: x, windows: [30m]}
  - name: past
    entity: thing
    stream: thing
    aggregates:
      - {name: moves, fn: changes, windows: [30m, 1h]}
      - {name: jumps, fn: changes, column: n, where: "n > 1", windows: [1h]}
      - {name: on, fn: time_in_state, where: "yes", windows: [1h]}
      - {name: quiet, fn: days_since_change}
      - {name: same, fn: days_since_change, column: s}
  - name: drift
    entity: one
    stream: patch
    aggregates:
      - {name: moves, fn: changes, windows: [30m, 1h]}
      - {name: jumps, fn: changes, column: n, where: "s > 'a'", windows: [1h]}
      - {name: on, fn: time_in_state, where: "n > 1 AND s <> 'b'", windows: [1h]}
      - {name: quiet, fn: days_since_change}
      - {name: same, fn: days_since_change, column: s, where: "id <> 'c'"}
  - name: made
    on_demand: {inputs: ["plain:n", "recent:sn_30m", "recent:sx_30m", "past:moves_1h", "patched:twice"], request: [{name: y, type: int64}]}
    features: [{name: sum, type: int64, sql: "n + y + moves_1h"}, {name: rate, type: double, sql: "sx_30m / nullif(sn_30m, 0)"}, {name: twice, type: string, sql: "twice"}]
`,
}

func newDatasetWorld(t *testing.T) *datasetWorld {
	t.Helper()
	ctx := context.Background()
	w := &datasetWorld{t: t, dir: t.TempDir(), offsets: map[string]int64{}, step: 1}
	for name, text := range datasetFiles {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		w.put(name, text)
	}
	db, err := sql.Open(ctx, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w.check = func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		var list []sql.Column
		for _, c := range columns {
			list = append(list, sql.Column{Name: c.Name, Type: c.Type.SQL()})
		}
		return db.CheckScalar(ctx, expr, list, want.SQL())
	}
	if w.project, err = feature.Load(w.dir, w.check); err != nil {
		t.Fatal(err)
	}
	if w.lake, err = lake.Open(ctx, lake.Config{Lake: w.project.Lake, Namespace: w.project.Name, Dir: w.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.lake.Close() })
	for _, s := range w.project.Streams {
		if err := w.lake.CreateStream(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *datasetWorld) put(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// take gives rows to a stream from a topic, a commit for every 40.
func (w *datasetWorld) take(stream, topic string, recorded int64, rows []string) {
	w.t.Helper()
	ctx := context.Background()
	def := w.project.Stream(stream)
	s, err := w.lake.OpenStream(ctx, def, lake.StreamOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	deletes := map[string]ingest.Condition{}
	if def.DeleteWhen != "" {
		c, err := sql.OpenCondition(ctx, def.DeleteWhen, def.DeleteReads)
		if err != nil {
			w.t.Fatal(err)
		}
		defer c.Close()
		deletes[stream] = c.True
	}
	for part := range slices.Chunk(rows, 40) {
		r := ingest.NewRouter(ingest.RouterOptions{
			Streams: []*feature.Stream{def}, Only: def, Dedups: map[string]*ingest.Dedup{stream: ingest.NewDedup(1<<20, s.LookUp)}, JobID: "test",
			Deletes: deletes, Starts: func(string, feature.Partition) int64 { return w.offsets[topic] },
		})
		for _, row := range part {
			r.Add(&ingest.Record{Position: feature.Position{Topic: topic, Offset: w.offsets[topic]}, Value: []byte(row)}, recorded)
			w.offsets[topic]++
		}
		batches, err := r.Flush(ctx, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, b := range batches {
			if len(b.Refused) > 0 {
				w.t.Fatalf("refused: %+v", b.Refused[0])
			}
			if _, err := s.Commit(ctx, b, s.Head()); err != nil {
				w.t.Fatal(err)
			}
			b.Release()
		}
	}
}

func (w *datasetWorld) build(request feature.DatasetRequest) *pit.Card {
	w.t.Helper()
	return w.buildOf("labels.csv", request)
}

func (w *datasetWorld) buildOf(labels string, request feature.DatasetRequest) *pit.Card {
	w.t.Helper()
	var err error
	if request.Features, err = w.project.Resolve([]string{"plain", "short", "patched", "recent", "past", "drift", "made"}); err != nil {
		w.t.Fatal(err)
	}
	request.Labels, request.TimeColumn, request.Out = labels, "when", "out.parquet"
	card, err := pit.Build(context.Background(), w.lake, w.project, request, pit.Options{Now: time.Now, Version: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	return card
}

func (w *datasetWorld) verify(o DatasetOptions) *DatasetReport {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "out.card.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	o.File, o.Check = filepath.Join(w.dir, "out.parquet"), w.check
	report, err := Dataset(context.Background(), w.lake, &feature.Project{Name: w.project.Name, Dir: w.dir}, text, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// alter puts the result of a query over {rows} in the place of the training set.
func (w *datasetWorld) alter(query string) {
	w.t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	out := filepath.Join(w.dir, "out.parquet")
	query = strings.ReplaceAll(query, "{rows}", "read_parquet('"+out+"', file_row_number = true)")
	if err := db.Exec(ctx, fmt.Sprintf("COPY (SELECT * EXCLUDE (file_row_number) FROM (%s) ORDER BY file_row_number) TO '%s.new' (FORMAT parquet)", query, out)); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(out+".new", out); err != nil {
		w.t.Fatal(err)
	}
}

// fill takes random rows into all streams, and writes labels.
func (w *datasetWorld) fill(r *rand.Rand) {
	at := func(most int) (event, got string) {
		s := int64(r.IntN(most) / w.step * w.step)
		late := s + int64(r.IntN(3)*r.IntN(900)) - int64(r.IntN(2)*r.IntN(5))
		text := func(s int64) string { return time.Unix(1767225600+s, 0).UTC().Format(time.RFC3339) }
		return text(s), text(late)
	}
	some := func(v any) any {
		if r.IntN(6) == 0 {
			return nil
		}
		return v
	}
	most := 7200
	rows := func(n int, make func(i int, row map[string]any)) []string {
		var all []string
		for i := range n {
			row := map[string]any{}
			row["at"], row["got"] = at(most)
			make(i, row)
			text, err := json.Marshal(row)
			if err != nil {
				panic(err)
			}
			all = append(all, string(text))
		}
		return all
	}
	id := func() string { return string(rune('a' + r.IntN(4))) }
	thing := func(_ int, row map[string]any) {
		row["id"], row["part"], row["seq"] = id(), r.IntN(2), some(r.IntN(3))
		row["n"], row["x"], row["m"], row["s"] = some(r.IntN(5)), some(r.NormFloat64()), some(fmt.Sprintf("%d.%04d", r.IntN(100)-50, r.IntN(10000))), some(id())
		row["l"] = some([]any{r.Float64(), some(1.5), r.Float64()}[:r.IntN(4)])
		row["day"], row["yes"], row["gone"] = some(fmt.Sprintf("2026-01-%02d", 1+r.IntN(28))), some(r.IntN(2) == 0), r.IntN(7) == 0
	}
	w.take("thing", "file:things", 1e15, rows(150, thing))
	w.take("patch", "file:patches", 2e15, rows(150, func(_ int, row map[string]any) {
		row["id"], row["gone"] = id(), r.IntN(8) == 0
		for name, v := range map[string]any{"n": some(r.IntN(5)), "s": some(id())} {
			if r.IntN(2) == 0 {
				row[name] = v
			}
		}
	}))
	w.take("fact", "file:facts", 2e15, rows(400, func(i int, row map[string]any) {
		row["fact"], row["id"], row["n"], row["x"], row["s"] = i, some(id()), some(r.IntN(5)), some(r.NormFloat64()*1e3), some(id())
		row["m"] = some(fmt.Sprintf("%d.%02d", r.IntN(100), r.IntN(100)))
	}))
	most = 3600 // of a topic what was recorded could be served
	w.take("thing", "thing.v1", (1767225600+3700)*1e6, rows(100, thing))
	labels := "id,part,when,y\n"
	for i := range 200 {
		when, _ := at(9000)
		if i%50 == 0 {
			when = ""
		}
		labels += fmt.Sprintf("%s,%d,%s,%d\n", string(rune('a'+r.IntN(5))), r.IntN(3), when, i)
	}
	w.put("labels.csv", labels)
}

// Training sets of random histories are what the slow path makes of the logs: both clocks, with known_at, and without the
// label's own time; over files, topics, deletes, patches and windows, and when the tables have gone on since.
func TestDatasetOfRandomWorlds(t *testing.T) {
	r := random(t)
	w := newDatasetWorld(t)
	w.fill(r)
	known := time.UnixMicro(15e14)
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		for _, request := range []feature.DatasetRequest{{}, {ExcludeLabelTime: true}, {KnownAt: &known}} {
			request.AsOf = clock
			card := w.build(request)
			report := w.verify(DatasetOptions{All: true})
			if !report.OK() {
				t.Fatalf("%+v: %d differences, the first %s", request, report.Total, shown(report))
			}
			if want := int64(200 * len(card.Features)); report.Checked != 200 || report.Cells != want || report.Skipped != nil || report.Notes != nil {
				t.Errorf("report %+v, want 200 rows and %d values", report, want)
			}
			for _, f := range card.Features {
				if f.NullRate == 1 && request.KnownAt == nil {
					t.Errorf("%s, %+v: %s is always null", clock, request, f.Column)
				}
			}
		}
	}
	// What comes later is not seen.
	w.take("thing", "thing.v1", 3e15, []string{`{"id":"a","part":0,"n":77,"at":"2026-01-01T00:30:00Z","got":"2026-01-01T00:30:00Z"}`})
	w.take("fact", "file:facts", 3e15, []string{`{"fact":9999,"id":"a","n":77,"at":"2026-01-01T00:30:00Z","got":"2026-01-01T00:30:00Z"}`})
	if report := w.verify(DatasetOptions{Rows: 50, Seed: 3}); !report.OK() || report.Checked != 50 {
		t.Errorf("after later commits: %+v", report)
	}
}

func shown(r *DatasetReport) string {
	text, _ := json.Marshal(r.First)
	return string(text)
}

// What the slow path doesn't make again, a column of labels that are gone, or a row that it doesn't look at, shows in the hash of all
// rows.
func TestDatasetHash(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(random(t))
	w.build(feature.DatasetRequest{AsOf: feature.ServedClock})
	if err := os.Remove(filepath.Join(w.dir, "labels.csv")); err != nil {
		t.Fatal(err)
	}
	if report := w.verify(DatasetOptions{Rows: 1}); !report.OK() {
		t.Fatalf("nothing was altered, found %s", shown(report))
	}
	good, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{
		"SELECT * REPLACE (CASE WHEN file_row_number = 199 THEN -1 ELSE y END AS y) FROM {rows}",
		"SELECT * REPLACE (CASE WHEN file_row_number = 199 THEN 1e9 ELSE plain__x END AS plain__x) FROM {rows}",
	} {
		w.put("out.parquet", string(good))
		w.alter(query)
		if report := w.verify(DatasetOptions{Rows: 1}); report.Total != 1 || !strings.Contains(report.First[0].Text, "the hash of all rows") {
			t.Errorf("%s: found %s", query, shown(report))
		}
	}
}

// Whatever is wrong with a training set is found, and named.
func TestDatasetFindings(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(rand.New(rand.NewPCG(11, 3)))
	w.build(feature.DatasetRequest{AsOf: feature.ServedClock})
	good, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"plain__n": "coalesce(plain__n, 0) + 1", "plain__x": "coalesce(plain__x, 0) + 1e-9", "plain__m": "coalesce(plain__m, 0) + 0.0001", "plain__s": "coalesce(plain__s, '') || 'x'",
		"plain__l": "coalesce(plain__l, []) || [2.5]", "plain__day": "coalesce(plain__day, DATE '2020-01-01') + 1", "plain__yes": "plain__yes IS NULL",
		"short__n": "coalesce(short__n, 0) + 1", "patched__twice": "coalesce(patched__twice, '') || 'x'", "recent__c_1h": "recent__c_1h + 1",
		"recent__sx_30m": "coalesce(recent__sx_30m, 0) + 1e-6", "recent__sm_30m": "coalesce(recent__sm_30m, 0) + 0.01", "recent__am_30m": "coalesce(recent__am_30m, 0) + 1e-6",
		"recent__d_30m": "recent__d_30m + 1", "recent__f_30m": "coalesce(recent__f_30m, '') || 'x'",
		"past__moves_1h": "past__moves_1h + 1", "past__on_1h": "past__on_1h + 1e-6", "past__quiet": "coalesce(past__quiet, 0) + 1e-9",
		"drift__on_1h": "drift__on_1h + 1e-6", "drift__same": "coalesce(drift__same, 0) + 1e-9", "made__sum": "coalesce(made__sum, 0) + 1",
	} {
		w.put("out.parquet", string(good))
		w.alter(fmt.Sprintf("SELECT * REPLACE (CASE WHEN file_row_number = 123 THEN %s ELSE %s END AS %s) FROM {rows}", value, name, name))
		report := w.verify(DatasetOptions{All: true})
		if report.Total != 1 || report.First[0].Row == nil || *report.First[0].Row != 123 || report.First[0].Column != name || report.First[0].Want == report.First[0].Got ||
			!strings.HasPrefix(name, "made") && (len(report.First[0].Keys) == 0 || report.First[0].Keys[0] != "id") {
			t.Errorf("%s of row 123 was altered, found %s", name, shown(report))
		}
	}
	w.put("out.parquet", string(good))
	w.alter("SELECT * FROM {rows} WHERE file_row_number <> 57")
	if report := w.verify(DatasetOptions{All: true}); report.OK() || report.First[0].Text != "the number of rows" || report.First[0].Want != "200" || report.First[0].Got != "199" ||
		report.First[1].Column != "id" && report.First[1].Column != "y" && report.First[1].Column != "part" && report.First[1].Column != "when" {
		t.Errorf("a row is missing, found %s", shown(report))
	}
	w.put("out.parquet", string(good))
	w.alter("SELECT * REPLACE (CASE WHEN file_row_number = 9 THEN y + 1 ELSE y END AS y) FROM {rows}")
	if report := w.verify(DatasetOptions{All: true}); report.Total != 1 || report.First[0].Column != "y" || report.First[0].Want != "9" || report.First[0].Got != "10" {
		t.Errorf("a label was altered, found %s", shown(report))
	}
	w.put("out.parquet", string(good))
	labels, err := os.ReadFile(filepath.Join(w.dir, "labels.csv"))
	if err != nil {
		t.Fatal(err)
	}
	w.put("labels.csv", strings.Replace(string(labels), ",199\n", ",1990\n", 1))
	if report := w.verify(DatasetOptions{Rows: 10}); report.OK() || !strings.Contains(report.First[0].Text, "have changed") {
		t.Errorf("labels have changed, found %s", shown(report))
	}
	w.put("labels.csv", string(labels)+"a,1,,200\n")
	if report := w.verify(DatasetOptions{Rows: 10}); report.Total != 1 || len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "there are 201 labels") {
		t.Errorf("there is one more label, found %+v", report)
	}
	// A label column that holds a join key by another name.
	w.put("labels.csv", string(labels))
	w.alter("SELECT * RENAME (id AS who) FROM {rows}")
	card, err := os.ReadFile(filepath.Join(w.dir, "out.card.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.put("out.card.json", strings.Replace(string(card), `"time_column"`, `"join_keys": {"id": "who"}, "time_column"`, 1))
	if report := w.verify(DatasetOptions{All: true}); report.Total != 1 || report.First[0].Text != "the training set lacks a column of the labels" || report.Checked != 200 {
		t.Errorf("a renamed column, found %s", shown(report))
	}
	w.put("out.card.json", string(card))
	w.put("out.parquet", string(good))
	if err := os.Remove(filepath.Join(w.dir, "labels.csv")); err != nil {
		t.Fatal(err)
	}
	if report := w.verify(DatasetOptions{Rows: 10}); !report.OK() || len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "labels are gone") {
		t.Errorf("labels are gone, found %+v", report)
	}
}

// Loosened by a microsecond, the slow path's own bound is another: it can tell the two apart.
func TestDatasetSeesAMicrosecond(t *testing.T) {
	w := newDatasetWorld(t)
	w.take("thing", "file:things", 2e15, []string{
		`{"id":"a","part":1,"n":1,"at":"2026-01-01T00:00:00Z","got":"2026-01-01T00:00:00Z"}`,
		`{"id":"a","part":1,"n":2,"at":"2026-01-01T00:05:00.000001Z","got":"2026-01-01T00:05:00.000001Z"}`,
	})
	w.take("fact", "file:facts", 2e15, []string{
		`{"fact":1,"id":"a","n":1,"at":"2025-12-31T23:55:00Z","got":"2025-12-31T23:55:00Z"}`, `{"fact":2,"id":"a","n":1,"at":"2025-12-31T23:54:59.999999Z","got":"2025-12-31T23:55:00Z"}`,
	})
	w.put("labels.csv", "id,part,when,y\na,1,2026-01-01T00:05:00Z,1\na,1,2026-01-01T00:05:00.000001Z,2\na,1,2026-01-01T00:04:59.999999Z,3\n")
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		w.build(feature.DatasetRequest{AsOf: clock})
		if report := w.verify(DatasetOptions{All: true}); !report.OK() {
			t.Errorf("%s: %s", clock, shown(report))
		}
		w.alter("SELECT * REPLACE (CASE WHEN file_row_number = 0 THEN 2 ELSE plain__n END AS plain__n) FROM {rows}")
		if report := w.verify(DatasetOptions{All: true}); report.Total != 1 || report.First[0].Column != "plain__n" || report.First[0].Want != "1" {
			t.Errorf("%s: a join that is loose by 1 us gave %s", clock, shown(report))
		}
	}
}

// A history is made of columns that the stream's definition has no more, too, and so is what is recomputed.
func TestDatasetOfFormerColumns(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(random(t))
	var rows []string // that differ in the day alone
	for i := range 24 {
		at := fmt.Sprintf("2026-01-01T01:5%d:%02dZ", i%3, i)
		rows = append(rows, fmt.Sprintf(`{"id":"%c","part":%d,"n":1,"day":"2026-02-%02d","at":"%s","got":"%s"}`, 'a'+i%4, i%2, 1+i, at, at))
	}
	w.take("thing", "file:days", 2e15, rows)
	w.put("streams/thing.yaml", strings.Replace(datasetFiles["streams/thing.yaml"], "{name: day, type: date}, ", "", 1))
	w.put("features/f.yaml", strings.Replace(datasetFiles["features/f.yaml"], "day, ", "", 1))
	var err error
	if w.project, err = feature.Load(w.dir, w.check); err != nil {
		t.Fatal(err)
	}
	if err := w.lake.CreateStream(t.Context(), w.project.Stream("thing")); err != nil {
		t.Fatal(err)
	}
	w.build(feature.DatasetRequest{AsOf: feature.EventClock})
	if report := w.verify(DatasetOptions{All: true}); !report.OK() {
		t.Errorf("%d differences, the first %s", report.Total, shown(report))
	}
}

// Nanoseconds before 1970 are cut as the build cuts them, to the microsecond before.
func TestDatasetOfNanoseconds(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(random(t))
	type row struct {
		ID   string `parquet:"id"`
		Part int64  `parquet:"part"`
		When int64  `parquet:"when,timestamp(nanosecond)"`
		Y    int64  `parquet:"y"`
	}
	if err := parquet.WriteFile(filepath.Join(w.dir, "labels.parquet"), []row{{"a", 1, -1, 0}, {"a", 1, -1001, 1}, {"b", 1, 999, 2}}); err != nil {
		t.Fatal(err)
	}
	w.buildOf("labels.parquet", feature.DatasetRequest{AsOf: feature.ServedClock})
	if report := w.verify(DatasetOptions{All: true}); !report.OK() || report.Checked != 3 || report.Notes != nil {
		t.Errorf("found %s, %v", shown(report), report.Notes)
	}
	w.alter("SELECT * REPLACE (CASE WHEN file_row_number = 1 THEN make_timestamptz(-1) ELSE \"when\" END AS \"when\") FROM {rows}")
	if report := w.verify(DatasetOptions{All: true}); report.OK() || report.First[0].Column != "when" || report.First[0].Want != "1969-12-31 23:59:59.999998+00" {
		t.Errorf("a time was altered, found %s", shown(report))
	}
}

// Dates of a CSV file that are not written as ISO 8601 does are what the build read, and keys that can't be a stream's match nothing.
func TestDatasetOfLabelsWrittenOtherwise(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(random(t))
	w.put("labels.csv", "id,part,when,y,seen,wide\na,1,2026-01-01T01:00:00Z,1,25/12/2025,12345678901234567890\nb,x,2026-01-01T01:00:00Z,2,26/12/2025,9007199254740993\n")
	w.build(feature.DatasetRequest{AsOf: feature.ServedClock})
	if report := w.verify(DatasetOptions{All: true}); !report.OK() || report.Checked != 2 {
		t.Errorf("found %s", shown(report))
	}
}
