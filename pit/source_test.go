package pit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// buildWith builds what the request asks for with options of the test.
func (w *world) buildWith(request feature.DatasetRequest, o Options) (*Card, error) {
	w.t.Helper()
	var err error
	if request.Features == nil {
		var all []string
		for _, v := range w.project.Views {
			all = append(all, v.Name)
		}
		if request.Features, err = w.project.Resolve(all); err != nil {
			w.t.Fatal(err)
		}
	}
	request.TimeColumn = cmpOr(request.TimeColumn, feature.DefaultTimeColumn)
	request.Out = cmpOr(request.Out, "out.parquet")
	request.AsOf = feature.Clock(cmpOr(string(request.AsOf), string(feature.EventClock)))
	o.Now, o.Version = time.Now, "test"
	return Build(context.Background(), w.lake, w.project, request, o)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// rows gives the result of a query over files of the world's folder, a text a row.
func (w *world) rows(query string) []string {
	w.t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(ctx, "SELECT to_json(whole)::VARCHAR FROM ("+strings.ReplaceAll(query, "$DIR", w.dir)+") whole")
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

// exec runs a statement over files of the world's folder.
func (w *world) exec(statement string) {
	w.t.Helper()
	db, err := sql.Open(context.Background(), sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if err := db.Exec(context.Background(), strings.ReplaceAll(statement, "$DIR", w.dir)); err != nil {
		w.t.Fatal(err)
	}
}

// arrowOf gives the result of a query as Arrow IPC, as a file or a stream, in several batches.
func arrowOf(t *testing.T, query string, file bool) []byte {
	t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var out bytes.Buffer
	err = db.Arrow(ctx, query, func(r array.RecordReader) error {
		var w batchWriter = ipc.NewWriter(&out, ipc.WithSchema(r.Schema()))
		if file {
			out.Reset()
			if w, err = ipc.NewFileWriter(&out, ipc.WithSchema(r.Schema())); err != nil {
				return err
			}
		}
		for r.Next() {
			if err := w.Write(r.RecordBatch()); err != nil {
				return err
			}
		}
		return w.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Labels of every kind of source give the same training set, in the order that the source has.
func TestSources(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{
		`{"k":"07","at":"2026-01-01T00:00:00Z","v":1}`, `{"k":"8","at":"2026-01-02T00:00:00Z","v":2}`, `{"k":"07","at":"2026-01-03T00:00:00Z","v":3}`,
	})
	const labels = `SELECT CASE WHEN i % 3 = 0 THEN '07' ELSE '8' END AS k, TIMESTAMPTZ '2026-01-01' + i * INTERVAL 1 minute AS event_timestamp, 20000 - i AS n FROM range(5000) r(i)`
	for name, options := range map[string]string{"labels.csv": "HEADER", "labels.csv.gz": "HEADER, COMPRESSION gzip", "labels.parquet": "FORMAT parquet"} {
		w.exec("COPY (" + labels + ") TO '$DIR/" + name + "' (" + options + ")")
	}
	w.put("file.arrow", string(arrowOf(t, labels, true)))
	w.put("stream.ipc", string(arrowOf(t, labels, false)))
	var want []string
	for _, c := range []struct {
		request feature.DatasetRequest
		kind    string
		in      []byte
	}{
		{feature.DatasetRequest{Labels: "labels.parquet"}, "file", nil},
		{feature.DatasetRequest{Labels: "labels.csv"}, "file", nil},
		{feature.DatasetRequest{Labels: "labels.csv.gz"}, "file", nil},
		{feature.DatasetRequest{Labels: "file.arrow"}, "file", nil},
		{feature.DatasetRequest{Labels: "stream.ipc"}, "file", nil},
		{feature.DatasetRequest{Labels: feature.Standard}, "stream", arrowOf(t, labels, false)},
		{feature.DatasetRequest{LabelsSQL: labels + " ORDER BY n DESC"}, "sql", nil},
	} {
		card, err := w.buildWith(c.request, Options{In: bytes.NewReader(c.in)})
		if err != nil {
			t.Errorf("%+v: %v", c.request, err)
			continue
		}
		got := w.rows("SELECT k, epoch_us(event_timestamp) AS t, n, v__v FROM '$DIR/out.parquet'")
		if want == nil {
			want = got
		}
		if len(got) != 5000 || !slices.Equal(got, want) {
			t.Errorf("%+v: %d rows, beginning %v, want %v", c.request, len(got), got[:2], want[:2])
		}
		if card.Labels.Kind != c.kind || len(card.Labels.SHA256) != 64 || card.Labels.Rows != 5000 {
			t.Errorf("%+v: card %+v", c.request, card.Labels)
		}
	}
	if want[0] != `{"k":"07","t":1767225600000000,"n":20000,"v__v":1}` || want[4999] != `{"k":"8","t":1767525540000000,"n":15001,"v__v":2}` {
		t.Errorf("%s, %s", want[0], want[4999])
	}
	for _, c := range []struct{ name, text, err string }{
		{"broken.arrow", "ARROW1 and no more", "are no Arrow IPC file"},
		{"broken.ipc", "no stream", "are neither an Arrow IPC file nor a stream"},
		{"empty.arrow", "", "are neither an Arrow IPC file nor a stream"},
		{"cut.ipc", string(arrowOf(t, labels, false)[:20000]), "read labels"},
		{"labels.json", "[]", "can't tell what the file holds"},
	} {
		w.put(c.name, c.text)
		if _, err := w.buildWith(feature.DatasetRequest{Labels: c.name}, Options{}); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}

// A query reads the streams' tables as the features do, with deletes and cut to one moment; its hash and rows are the same
// after later commits at other places, and a table is read in the order of its columns.
func TestLabelsFromTheLake(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: lakes", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	var rows []string
	for i := range 40 {
		h := happening{id: string(rune('a' + i%4)), at: int64(i), received: int64(i), v: i, deleted: i == 38}
		rows = append(rows, h.event("Thing", i))
	}
	w.take("thing", "file:things", 1, rows[:20])
	w.take("thing", "file:more", 2, rows[20:]) // which deletes rows of the history's files
	for _, c := range []struct {
		name, query, err string
		want             int
	}{
		{"log", "SELECT id, event_time AS event_timestamp, v FROM thing_log WHERE v IS NOT NULL", "", 39},
		{"current", "SELECT id, valid_from AS event_timestamp FROM thing_current", "", 3},
		{"history", "SELECT id, valid_from AS event_timestamp, count(*) OVER (PARTITION BY id) AS n FROM thing_history ORDER BY n, id, 2", "", 39},
		{"joined", "WITH c AS (SELECT id, max(v) AS v FROM thing_log GROUP BY id) SELECT h.id, valid_from AS event_timestamp FROM thing_history h JOIN c USING (id) WHERE is_current", "", 3},
		{"none", "SELECT id, valid_from AS event_timestamp FROM thing_history WHERE false", "", 0},
		{"quoted", `SELECT id, "localtime" AS event_timestamp, "user" FROM (SELECT id, event_time AS "localtime", v AS "user" FROM thing_log)`, "", 40},
		{"quoted and none", `SELECT id, event_time AS event_timestamp, "user" FROM thing_log`, `labels by sql: there is no column "user"`, 0},
		{"files", "SELECT * FROM read_csv('labels.csv')", "labels by sql: function read_csv is not allowed", 0},
		{"other", "SELECT * FROM nosuch_log", "it may read contact_current", 0},
		{"unbound", "SELECT nosuch FROM thing_log", `"nosuch" not found`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			request := feature.DatasetRequest{LabelsSQL: c.query}
			card, err := w.buildWith(request, Options{})
			if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if err != nil {
				return
			}
			got := w.rows("SELECT * FROM '$DIR/out.parquet'")
			if len(got) != c.want || card.Labels.SQL != c.query {
				t.Errorf("%d rows, want %d; card %+v", len(got), c.want, card.Labels)
			}
			again, err := w.buildWith(request, Options{})
			if err != nil || again.Labels.SHA256 != card.Labels.SHA256 || !slices.Equal(w.rows("SELECT * FROM '$DIR/out.parquet'"), got) {
				t.Errorf("another time: %+v, %v", again.Labels, err)
			}
		})
	}
	known := epochTime(1)
	card, err := w.buildWith(feature.DatasetRequest{LabelsSQL: "SELECT id, event_time AS event_timestamp FROM thing_log", KnownAt: &known}, Options{})
	if err != nil || card.Rows != 20 {
		t.Errorf("known at: %+v, %v", card, err)
	}
	if _, err := w.buildWith(feature.DatasetRequest{LabelsSQL: "SELECT * FROM thing_history", KnownAt: &known}, Options{}); err == nil || !strings.Contains(err.Error(), "with known_at the logs alone") {
		t.Errorf("known at: %v", err)
	}
	for _, name := range []string{"thing_history", "lakes.thing_history"} {
		card, err := w.buildWith(feature.DatasetRequest{LabelsTable: name, TimeColumn: "valid_from"}, Options{})
		if err != nil || card.Rows != 39 || card.Labels.Kind != "table" || card.Labels.Table != "lakes.thing_history" || card.Snapshots["lakes.thing_history"] == 0 || strings.Contains(fmt.Sprint(card.Warnings), "tagged") {
			t.Errorf("%s: %+v, %v, %v", name, card.Labels, card.Warnings, err)
		}
	}
	if got := w.rows("SELECT count(*) FILTER (WHERE plain__v IS DISTINCT FROM v) AS bad, count(*) FILTER (WHERE id < before) AS unsorted FROM (SELECT *, lag(id) OVER () AS before FROM '$DIR/out.parquet')"); got[0] != `{"bad":0,"unsorted":0}` {
		t.Errorf("rows of a table: %v", got)
	}
	if _, err := w.buildWith(feature.DatasetRequest{LabelsTable: "nosuch"}, Options{}); err == nil || !strings.Contains(err.Error(), "the catalog has no lakes.nosuch") {
		t.Errorf("no table: %v", err)
	}
}

func epochTime(us int64) time.Time { return time.UnixMicro(us).UTC() }

// A label row may have keys of several entities, some of several columns, and under other names.
func TestSeveralEntities(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml":            "project: several",
		"streams/person.yaml":  "stream: person\nkind: state\nformat: row\nkey: [contact_id]\nevent_time: at\ncolumns: [{name: contact_id, type: string}, {name: name, type: string}]\n",
		"streams/deal.yaml":    "stream: deal\nkind: state\nformat: row\nkey: [opportunity_id]\nevent_time: at\ncolumns: [{name: opportunity_id, type: int64}, {name: amount, type: int64}]\n",
		"streams/account.yaml": "stream: account\nkind: state\nformat: row\nkey: [region, account_id]\nevent_time: at\ncolumns: [{name: region, type: string}, {name: account_id, type: string}, {name: tier, type: string}]\n",
		"streams/visit.yaml":   "stream: visit\nkind: event\nformat: row\nkey: [visit_id]\ncluster_by: contact_id\nid: visit_id\nevent_time: at\ncolumns: [{name: visit_id, type: string}, {name: contact_id, type: string}, {name: region, type: string}]\n",
		"features/f.yaml": `entities: [{name: contact, join_keys: [contact_id]}, {name: opportunity, join_keys: [opportunity_id]}, {name: account, join_keys: [account_id, region]},
  {name: place, join_keys: [contact_id, region]}]
views:
  - {name: person, entity: contact, stream: person, features: [name]}
  - {name: deal, entity: opportunity, stream: deal, features: [amount]}
  - {name: account, entity: account, stream: account, features: [tier]}
  - {name: visits, entity: place, stream: visit, aggregates: [{name: n, fn: count, windows: [30d]}]}
`,
	})
	w.take("person", "file:p", 1, []string{`{"contact_id":"1","at":"2026-01-01T00:00:00Z","name":"ann"}`, `{"contact_id":"2","at":"2026-01-01T00:00:00Z","name":"bob"}`})
	w.take("deal", "file:d", 1, []string{`{"opportunity_id":1,"at":"2026-01-01T00:00:00Z","amount":10}`, `{"opportunity_id":2,"at":"2026-01-05T00:00:00Z","amount":20}`})
	w.take("account", "file:a", 1, []string{
		`{"region":"eu","account_id":"1","at":"2026-01-01T00:00:00Z","tier":"gold"}`, `{"region":"us","account_id":"1","at":"2026-01-01T00:00:00Z","tier":"tin"}`,
	})
	w.take("visit", "file:v", 1, []string{
		`{"visit_id":"v1","contact_id":"1","region":"eu","at":"2026-01-01T00:00:00Z"}`, `{"visit_id":"v2","contact_id":"1","region":"us","at":"2026-01-01T00:00:00Z"}`,
		`{"visit_id":"v3","contact_id":"1","region":"eu","at":"2026-01-01T00:00:00Z"}`,
	})
	w.put("labels.csv", "customer_id,opportunity_id,account,region,event_timestamp\n1,1,1,eu,2026-01-03\n2,2,1,us,2026-01-03\n1,2,,eu,2026-01-06\n,1,1,us,2026-01-06\n9,9,9,xx,2026-01-06\n")
	joinKeys := map[string]string{"contact_id": "customer_id", "account_id": "account"}
	card, err := w.buildWith(feature.DatasetRequest{Labels: "labels.csv", JoinKeys: joinKeys}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(card.Request.JoinKeys) != fmt.Sprint(joinKeys) {
		t.Errorf("card %v", card.Request.JoinKeys)
	}
	want := []string{
		`{"customer_id":"1","opportunity_id":1,"account":"1","region":"eu","event_timestamp":"2026-01-03","account__tier":"gold","deal__amount":10,"person__name":"ann","visits__n_30d":2}`,
		`{"customer_id":"2","opportunity_id":2,"account":"1","region":"us","event_timestamp":"2026-01-03","account__tier":"tin","deal__amount":null,"person__name":"bob","visits__n_30d":0}`,
		`{"customer_id":"1","opportunity_id":2,"account":null,"region":"eu","event_timestamp":"2026-01-06","account__tier":null,"deal__amount":20,"person__name":"ann","visits__n_30d":2}`,
		`{"customer_id":null,"opportunity_id":1,"account":"1","region":"us","event_timestamp":"2026-01-06","account__tier":"tin","deal__amount":10,"person__name":null,"visits__n_30d":0}`,
		`{"customer_id":"9","opportunity_id":9,"account":"9","region":"xx","event_timestamp":"2026-01-06","account__tier":null,"deal__amount":null,"person__name":null,"visits__n_30d":0}`,
	}
	if got := w.rows("SELECT * FROM '$DIR/out.parquet'"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	w.put("both.csv", "customer_id,contact_id,opportunity_id,account,region,event_timestamp\n")
	for _, c := range []struct {
		request feature.DatasetRequest
		err     string
	}{
		{feature.DatasetRequest{Labels: "labels.csv", JoinKeys: map[string]string{"contact_id": "person", "account_id": "account"}}, "have no column person, which is to hold the join key contact_id"},
		{feature.DatasetRequest{Labels: "both.csv", JoinKeys: joinKeys}, "have a column contact_id, and the join key contact_id is to be taken from customer_id"},
		{feature.DatasetRequest{Labels: "labels.csv", JoinKeys: map[string]string{"contact": "customer_id"}}, "join_keys.contact: it is no join key; did you mean contact_id?"},
	} {
		if _, err := w.buildWith(c.request, Options{}); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %v, want %q", c.request, err, c.err)
		}
	}
}

// Whole numbers beyond 64 bits, as sums are, keep all their digits as keys and columns, in every format; what a training set can't hold
// is refused.
func TestWideNumbersOfAQuery(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "int64"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":9007199254740993,"at":"2026-01-15T00:00:00Z","v":1}`, `{"k":9007199254740992,"at":"2026-01-15T00:00:00Z","v":2}`})
	const most = "99999999999999999999999999999999999999" // of 38 digits
	query := func(column string) string {
		return "SELECT sum(k) AS k, event_time AS event_timestamp, " + column + " AS wide FROM s_log GROUP BY event_time, v ORDER BY k"
	}
	for _, c := range []struct{ column, err string }{
		{most + "::HUGEINT", ""},
		{"-(" + most + "::HUGEINT)", ""},
		{most + "::HUGEINT + 1", "labels by sql: column wide has whole numbers of more than 38 digits, which a training set can't hold: cast it, to VARCHAR or another type"},
		{"-(" + most + "::HUGEINT) - 1", "of more than 38 digits"},
		{"1::UHUGEINT", "labels by sql: column wide is UHUGEINT, which a training set can't hold: cast it, to VARCHAR or another type"},
		{"INTERVAL 1 microsecond", "column wide is INTERVAL"}, {"'101'::BIT", "column wide is BIT"}, {"TIMETZ '10:00:00+01'", "column wide is TIME WITH TIME ZONE"},
	} {
		for _, out := range []string{"out.parquet", "out.csv"} {
			_, err := w.buildWith(feature.DatasetRequest{LabelsSQL: query(c.column), AsOf: feature.EventClock, Out: out}, Options{})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s: %v, want %q", c.column, err, c.err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", c.column, err)
				continue
			}
			got := w.rows("SELECT k::VARCHAR AS k, wide::VARCHAR AS wide, v__v::VARCHAR AS v FROM " + map[string]string{
				"out.parquet": "'$DIR/out.parquet'", "out.csv": "read_csv('$DIR/out.csv', all_varchar = true)",
			}[out])
			wide := strings.NewReplacer("::HUGEINT", "", "(", "", ")", "").Replace(c.column)
			want := []string{`{"k":"9007199254740992","wide":"` + wide + `","v":"2"}`, `{"k":"9007199254740993","wide":"` + wide + `","v":"1"}`}
			if !slices.Equal(got, want) {
				t.Errorf("%s in %s: %v, want %v", c.column, out, got, want)
			}
		}
	}
}

// A training set is the same in every format, and rows keep their order in files and streams.
func TestOutputs(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`, `{"k":"b","at":"2026-01-02T00:00:00Z","v":2}`})
	const labels = `SELECT CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END AS k, TIMESTAMPTZ '2026-01-01' + i * INTERVAL 1 minute AS event_timestamp, 'x' || i % 3 AS part FROM range(4000) r(i)`
	request := func(out string, partition ...string) feature.DatasetRequest {
		return feature.DatasetRequest{LabelsSQL: labels + " ORDER BY 2", Out: out, PartitionBy: partition}
	}
	build := func(r feature.DatasetRequest) *Card {
		t.Helper()
		card, err := w.buildWith(r, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return card
	}
	all := "SELECT k, epoch_us(event_timestamp) AS t, part, v__v FROM "
	build(request("out.parquet"))
	want := w.rows(all + "'$DIR/out.parquet'")
	for _, name := range []string{"out.csv", "out.csv.gz"} {
		card := build(request(name))
		if got := w.rows(all + "'$DIR/" + name + "'"); !slices.Equal(got, want) {
			t.Errorf("%s: %d rows", name, len(got))
		}
		if read, err := ReadCard(filepath.Join(w.dir, "out.card.json")); err != nil || read.Out != card.Out {
			t.Errorf("%s: card %v", name, err)
		}
	}
	build(request("out.arrow"))
	f, err := os.Open(filepath.Join(w.dir, "out.arrow"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewFileReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var batches []arrow.RecordBatch
	for i := range r.NumRecords() {
		batch, err := r.RecordBatchAt(i)
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, batch)
	}
	sameBatches(t, "file", batches, want)
	build(request("out.arrows"))
	kept, err := os.ReadFile(filepath.Join(w.dir, "out.arrows"))
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	card, err := w.buildWith(request(feature.Standard), Options{Stream: &stream})
	if err != nil || card.Out != "-" {
		t.Fatalf("%+v, %v", card, err)
	}
	for what, written := range map[string][]byte{"out.arrows": kept, "stream": stream.Bytes()} {
		reader, err := ipc.NewReader(bytes.NewReader(written))
		if err != nil {
			t.Fatal(err)
		}
		batches = nil
		for reader.Next() {
			reader.RecordBatch().Retain()
			batches = append(batches, reader.RecordBatch())
		}
		sameBatches(t, what, batches, want)
	}

	sorted := "SELECT * FROM (" + all
	slices.Sort(want)
	for range 2 { // the second takes the place of the first
		build(request("folder", "part", "k"))
		got := w.rows(sorted + "read_parquet('$DIR/folder/*/*/*.parquet', hive_partitioning = true))")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("folder: %d rows, %v", len(got), got[:1])
		}
	}
	if _, err := os.Stat(filepath.Join(w.dir, "folder", "part=x1", "k=b")); err != nil {
		t.Error(err)
	}
	if _, err := ReadCard(filepath.Join(w.dir, "folder.card.json")); err != nil {
		t.Error(err)
	}
	apart := request("apart.parquet")
	apart.Card = "cards/one.json"
	build(apart)
	if _, err := ReadCard(filepath.Join(w.dir, "cards", "one.json")); err != nil {
		t.Error(err)
	}
	w.put("mine/notes.txt", "mine")
	w.put("afile", "mine")
	none := request("none", "part")
	none.LabelsSQL = "SELECT * FROM (" + labels + ") WHERE false"
	build(none)
	before := w.files()
	for _, c := range []struct {
		request feature.DatasetRequest
		err     string
	}{
		{request("mine", "part"), "is not empty, and no card beside it says"},
		{request("afile", "part"), "afile is a file, and a folder is to be written"},
		{request("new", "nosuch"), "partition_by: the training set has no column nosuch"},
		{request("new", "part", "part"), `column "part" stands twice`},
		{request("new.csv", "part"), "new.csv\" is the name of a file, and with partition_by a folder is written; name a folder, such as new"},
		{request("new.txt"), "names no format"},
		{request("-", "part"), "a stream has no folders"},
		{request("-"), "there is no standard output"},
		{feature.DatasetRequest{Labels: feature.Standard}, "there is no standard input"},
		{feature.DatasetRequest{}, "want labels from one place"},
	} {
		if _, err := w.buildWith(c.request, Options{}); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.request.Out, err, c.err)
		}
	}
	if after := w.files(); !slices.Equal(after, before) {
		t.Errorf("what failed left %v, was %v", after, before)
	}
	// A reader that goes away leaves no card.
	gone := request(feature.Standard)
	gone.Card = "gone.json"
	if _, err := w.buildWith(gone, Options{Stream: shut{}}); err == nil || !strings.Contains(err.Error(), "write the training set to standard output: arrow/ipc") {
		t.Errorf("%v", err)
	}
	if after := w.files(); !slices.Equal(after, before) {
		t.Errorf("what failed left %v, was %v", after, before)
	}
}

type shut struct{}

func (shut) Write([]byte) (int, error) { return 0, fmt.Errorf("shut") }

// files are the names in the world's folder.
func (w *world) files() []string {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// sameBatches holds batches against rows as [world.rows] gives them.
func sameBatches(t *testing.T, what string, batches []arrow.RecordBatch, want []string) {
	t.Helper()
	var got []string
	for _, b := range batches {
		k, at, part, v := b.Column(0).(*array.String), b.Column(1).(*array.Timestamp), b.Column(2).(*array.String), b.Column(3).(*array.Int64)
		for i := range int(b.NumRows()) {
			value := "null"
			if v.IsValid(i) {
				value = fmt.Sprint(v.Value(i))
			}
			got = append(got, fmt.Sprintf(`{"k":%q,"t":%d,"part":%q,"v__v":%s}`, k.Value(i), int64(at.Value(i)), part.Value(i), value))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %d rows, want %d; beginning %v, want %v", what, len(got), len(want), got[:2], want[:2])
	}
}

// A build keeps to its memory, and spills; with too little it says what to do.
func TestMemory(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`})
	request := feature.DatasetRequest{LabelsSQL: "SELECT 'a' AS k, TIMESTAMPTZ '2026-01-02' AS event_timestamp, md5(i::VARCHAR) AS m FROM range(800000) r(i) ORDER BY m"}
	card, err := w.buildWith(request, Options{MemoryBytes: 112 << 20, TempDir: filepath.Join(w.dir, "tmp")})
	if err != nil || card.Rows != 800000 {
		t.Fatalf("%v", err)
	}
	if got := w.rows("SELECT count(*) FILTER (m < before OR v__v <> 1) AS bad FROM (SELECT *, lag(m) OVER () AS before FROM '$DIR/out.parquet')"); got[0] != `{"bad":0}` {
		t.Errorf("%v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "tmp", "*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	killed := filepath.Join(w.dir, "tmp", "dataset-killed", "spill")
	if err := os.MkdirAll(killed, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(killed, time.Now().Add(-72*time.Hour), time.Now().Add(-72*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.buildWith(request, Options{MemoryBytes: 16 << 20, TempDir: filepath.Join(w.dir, "tmp")}); err == nil || !strings.Contains(err.Error(), "set more by `memory` in loam.yaml, or --memory") {
		t.Errorf("too little: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "tmp", "*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
