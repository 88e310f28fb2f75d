package ingest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// rowsTable is a stream of a table's changes, without a column that says when a row was changed.
func rowsTable() *feature.Stream {
	column := func(name string, kind feature.Kind) feature.Column {
		c := feature.Column{Name: name, Type: feature.Type{Kind: kind}, Path: []string{name}}
		if kind == feature.Decimal {
			c.Type.Precision, c.Type.Scale = 12, 2
		}
		return c
	}
	return &feature.Stream{
		Name: "client", Kind: feature.StateStream, Format: feature.DebeziumFormat, Topic: "crm.public.client", Key: []string{"id"}, ClusterBy: "id",
		Payload: feature.FullPayload, SnapshotAt: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC),
		Columns: []feature.Column{
			column("id", feature.String), column("stage", feature.String), column("amount", feature.Decimal), column("born", feature.Date),
			column("seen", feature.Timestamp), column("tags", feature.JSON),
		},
	}
}

// change is a change event of Postgres's connector; a zero ms or lsn is left out.
func change(op, before, after string, ms, lsn int64) string {
	source := `"version":"3.3.1.Final","connector":"postgresql","name":"crm","db":"postgres","schema":"public","table":"client","txId":7`
	if ms != 0 {
		source += fmt.Sprintf(`,"ts_ms":%d,"ts_us":%d`, ms, ms*1000+5)
	}
	if lsn != 0 {
		source += fmt.Sprintf(`,"lsn":%d`, lsn)
	}
	return fmt.Sprintf(`{"before":%s,"after":%s,"source":{%s},"transaction":null,"op":%q,"ts_ms":1793000000000}`, before, after, source, op)
}

const octoberMS = 1_793_000_000_000 // 2026-10-26

// debeziumRows are the accepted changes as "op id stage event_time sequence", and the reasons and details of the refused ones.
func debeziumRows(t *testing.T, s *feature.Stream, records []Record) (rows, refused []string, counts feature.Counts) {
	t.Helper()
	all, letters, counts := routed(t, s, records)
	for _, r := range all {
		rows = append(rows, fmt.Sprint(r["op"], " ", r["id"], " ", r["stage"], " ", r["event_time"], " ", r["sequence"]))
	}
	for _, l := range letters {
		refused = append(refused, fmt.Sprintf("%d %s: %s", l.Offset, l.Reason, l.Detail))
	}
	return rows, refused, counts
}

func TestDebeziumChanges(t *testing.T) {
	row := func(stage string) string { return fmt.Sprintf(`{"id":"a","stage":%q}`, stage) }
	values := []string{
		0:  change("r", "null", row("old"), octoberMS+900_000, 100),
		1:  change("c", "null", row("lead"), octoberMS, 101),
		2:  change("u", row("lead"), row("won"), octoberMS, 102), // of the same transaction
		3:  change("u", row("lead"), row("won"), octoberMS, 102), // delivered again
		4:  change("d", row("won"), "null", octoberMS+1000, 103),
		5:  "",
		6:  change("c", "null", row("back"), octoberMS+2000, 104),
		7:  change("d", "null", "null", octoberMS+3000, 105), // its key is the record's
		8:  change("t", "null", "null", octoberMS+4000, 106),
		9:  `{"op":"m","source":{"ts_ms":1},"message":{}}`,
		10: `{"id":"a"}`,
		11: change("u", "null", "7", octoberMS, 107),
		12: change("u", "null", row("x"), 0, 108),
		13: change("u", "null", `{"stage":"x"}`, octoberMS, 109),
		14: "what",
		15: change("u", "null", row("x"), octoberMS, 110) + "{}",
	}
	var records []Record
	for i, value := range values {
		r := record("crm.public.client", int64(i+1), value)
		r.Key = []byte(`{"id":"a"}`)
		if value == "" {
			r.Value = nil
		}
		records = append(records, r)
	}
	rows, refused, counts := debeziumRows(t, rowsTable(), records)
	if want := []string{
		"upsert a old 2026-10-01T00:00:00Z 100",
		"upsert a lead 2026-10-26T07:33:20.000005Z 101", "upsert a won 2026-10-26T07:33:20.000005Z 102",
		"delete a <nil> 2026-10-26T07:33:21.000005Z 103", "upsert a back 2026-10-26T07:33:22.000005Z 104", "delete a <nil> 2026-10-26T07:33:23.000005Z 105",
	}; !slices.Equal(rows, want) {
		t.Errorf("rows are\n%s\nwant\n%s", strings.Join(rows, "\n"), strings.Join(want, "\n"))
	}
	if counts.Duplicate != 2 {
		t.Errorf("%d duplicates, want a change delivered again and a tombstone", counts.Duplicate)
	}
	for i, want := range []string{
		"9 truncate: op: loam has no truncate", `10 unknown_event_type: op: "m" is no change of a row`, "11 bad_envelope: op: missing", "12 bad_envelope: after: want an object",
		"13 no_event_time: source.ts_ms: missing", "14 missing_key: id: missing", "15 not_json: ", "16 not_json: more than one JSON value",
	} {
		if i >= len(refused) || !strings.HasPrefix(refused[i], want) {
			t.Errorf("refused are\n%s\nwant %s", strings.Join(refused, "\n"), want)
			break
		}
	}
}

// A tombstone belongs to the delete right before it, read now or by whoever read before; one behind a gap is what a compaction has left.
func TestDebeziumTombstones(t *testing.T) {
	for _, c := range []struct {
		name    string
		start   int64
		offset  int64
		refused bool
	}{{"taken before", 5, 5, false}, {"compacted", 5, 7, true}, {"the first of all", 0, 0, true}} {
		s := rowsTable()
		r := NewRouter(RouterOptions{
			Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}),
			Starts: func(string, feature.Partition) int64 { return c.start },
		})
		r.Add(&Record{Position: feature.Position{Topic: s.Topic, Offset: c.offset}, Key: []byte(`{"id":"a"}`)}, testNow)
		batches, err := r.Flush(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		counts, _, refused := total(batches)
		if counts.Read != 1 || (len(refused) == 1) != c.refused || (counts.Duplicate == 1) == c.refused {
			t.Errorf("%s: %+v, refused %+v", c.name, counts, refused)
		}
	}
}

// Numbers and bytes mean what the schema around the event says; without one what is not sure is refused.
func TestDebeziumTypes(t *testing.T) {
	schema := `{"type":"struct","fields":[{"type":"struct","fields":[{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2"},"field":"amount"},` +
		`{"type":"int32","name":"io.debezium.time.Date","field":"born"},{"type":"int64","name":"io.debezium.time.MicroTimestamp","field":"seen"}],"field":"after"}]}`
	after := `{"id":"a","amount":"BNI=","born":20752,"seen":1793000000000001,"tags":"[\"vip\"]","more":1}`
	wrapped := func(after string) string {
		return `{"schema":` + schema + `,"payload":` + change("c", "null", after, octoberMS, 1) + `}`
	}
	rows, refused, _ := routed(t, rowsTable(), []Record{
		record("t", 0, wrapped(after)),
		record("t", 1, wrapped(`{"id":"b","amount":"/w==","seen":-1}`)),
		record("t", 2, wrapped(`{"id":"c","amount":"!"}`)),
		record("t", 3, change("c", "null", `{"id":"d","amount":12.5,"born":-1,"seen":"2026-11-01T00:00:00Z"}`, octoberMS, 1)),
		record("t", 4, change("c", "null", `{"id":"e","seen":1793000000000001}`, octoberMS, 1)),
	})
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprint(r["id"], " ", r["amount"], " ", r["born"], " ", r["seen"], " ", r["tags"], " ", r["extra"]))
	}
	if want := []string{
		`a 12.34 2026-10-26 2026-10-26T07:33:20.000001Z ["vip"] {"more":1}`, `b -0.01 <nil> 1969-12-31T23:59:59.999999Z <nil> <nil>`,
		`d 12.5 1969-12-31 2026-11-01T00:00:00Z <nil> <nil>`,
	}; !slices.Equal(got, want) {
		t.Errorf("rows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(refused) != 2 || !strings.Contains(refused[0].Detail, "amount: want a decimal's bytes") || !strings.Contains(refused[1].Detail, "seen: a number, of which only a schema says") {
		t.Errorf("refused are %+v", refused)
	}
}

// A value that the source has not sent is never taken for one: a patch leaves it as it was, a whole state is refused.
func TestDebeziumUnavailable(t *testing.T) {
	after := `{"id":"a","stage":"won","tags":"__debezium_unavailable_value"}`
	s := rowsTable()
	_, refused, _ := debeziumRows(t, s, []Record{record("t", 0, change("u", "null", after, octoberMS, 1))})
	if len(refused) != 1 || !strings.Contains(refused[0], "tags: the source has not sent the value") || !strings.Contains(refused[0], "REPLICA IDENTITY FULL") {
		t.Errorf("refused are %q", refused)
	}
	s.Payload = feature.PatchPayload
	rows, _, _ := routed(t, s, []Record{record("t", 0, change("u", "null", after, octoberMS, 1))})
	if len(rows) != 1 || fmt.Sprint(rows[0]["present"]) != "[id stage]" || rows[0]["tags"] != nil {
		t.Errorf("rows are %v", rows)
	}
}

// The rows of a snapshot are refused where nothing says since when they are so, and take it from their own column where there is one.
func TestDebeziumSnapshots(t *testing.T) {
	s := rowsTable()
	s.SnapshotAt = time.Time{}
	read := change("r", "null", `{"id":"a","stage":"x","seen":"2026-09-01T00:00:00Z"}`, octoberMS, 1)
	_, refused, _ := debeziumRows(t, s, []Record{record("t", 0, read)})
	if len(refused) != 1 || !strings.Contains(refused[0], "no_event_time: a snapshot doesn't say since when its rows are so") {
		t.Errorf("refused are %q", refused)
	}
	s.EventTime = "seen"
	rows, _, _ := debeziumRows(t, s, []Record{record("t", 0, read)})
	if want := []string{"upsert a x 2026-09-01T00:00:00Z 1"}; !slices.Equal(rows, want) {
		t.Errorf("rows are %q, want %q", rows, want)
	}
}

// What Postgres's connector wrote (3.3.1, JsonConverter without schemas) of rows that were inserted, changed twice in a transaction, deleted,
// inserted again, given another key, and stored out of line; it was killed, and delivered all but its snapshot again.
func TestDebeziumOfPostgres(t *testing.T) {
	text, err := os.ReadFile("testdata/debezium.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	s := rowsTable()
	s.Key, s.ClusterBy = []string{"contact_id"}, "contact_id"
	s.Columns = []feature.Column{
		{Name: "contact_id", Type: feature.Type{Kind: feature.String}, Path: []string{"contact_id"}},
		{Name: "mkt_status", Type: feature.Type{Kind: feature.String}, Path: []string{"mkt_status"}},
		{Name: "born", Type: feature.Type{Kind: feature.Date}, Path: []string{"born"}},
		{Name: "seen", Type: feature.Type{Kind: feature.Timestamp}, Path: []string{"seen"}},
		{Name: "tags", Type: feature.Type{Kind: feature.JSON}, Path: []string{"tags"}},
	}
	var records []Record
	for line := range strings.Lines(string(text)) {
		var one struct {
			Partition         int32
			Offset, Timestamp int64
			Key               string
			Value             *string
		}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		r := Record{Position: feature.Position{Topic: s.Topic, Partition: one.Partition, Offset: one.Offset}, Key: []byte(one.Key), Timestamp: one.Timestamp * 1000}
		if one.Value != nil {
			r.Value = []byte(*one.Value)
		}
		records = append(records, r)
	}
	s.MaxClockSkew = 365 * 24 * time.Hour // testNow is before they were made
	rows, refused, counts := routed(t, s, records)
	got := map[string][]string{}
	for _, r := range rows {
		state := fmt.Sprint(r["mkt_status"])
		if r["op"] == feature.OpDelete {
			state = "gone"
		}
		if r["tags"] != nil {
			state += fmt.Sprint(" ", r["born"], " ", r["seen"], " ", r["tags"])
		}
		id := r["contact_id"].(string)
		got[id] = append(got[id], state)
	}
	const rich = ` 1990-02-03 2026-11-01T01:02:03.456789Z ["vip"]`
	want := map[string][]string{
		"c-1": {"subscribed", "unsubscribed", "gone", "subscribed"},
		"c-2": {"lead" + rich, "opportunity" + rich, "customer" + rich, "gone", "lead"},
		"c-3": {"lead", "customer", "gone"},
		"c-4": {"lead", "customer", "lead"},
		"c-9": {"unsubscribed"},
	}
	if len(refused) > 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, refused %+v\nwant %v", got, refused, want)
	}
	if counts.Read != int64(len(records)) || counts.Accepted != 16 {
		t.Errorf("counts are %+v of %d records", counts, len(records))
	}

	// A column whose values are bytes without a scale, and one that is not always sent.
	s.Columns = append(s.Columns, feature.Column{Name: "amount", Type: feature.Type{Kind: feature.Decimal, Precision: 12, Scale: 2}, Path: []string{"amount"}},
		feature.Column{Name: "story", Type: feature.Type{Kind: feature.String}, Path: []string{"story"}})
	_, letters, _ := routed(t, s, records)
	reasons := map[string]int{}
	for _, l := range letters {
		name, _, _ := strings.Cut(l.Detail, ":")
		reasons[name]++
	}
	if want := map[string]int{"amount": 6, "story": 2}; !maps.Equal(reasons, want) {
		t.Errorf("refused are %v, want %v", reasons, want)
	}
}

// The events of both carry the same row.
func BenchmarkDebezium(b *testing.B) {
	canonical := rowsTable()
	canonical.Format, canonical.EventTypes = feature.EnvelopeFormat, []string{"Client.*"}
	const row = `{"id":"a","stage":"won","amount":12.5,"seen":"2026-10-20T00:00:00Z"}`
	for name, c := range map[string]struct {
		stream *feature.Stream
		value  string
	}{
		"canonical": {canonical, `{"envelope":{"event_id":"00000000-0000-4000-8000-000000000001","event_type":"Client.updated","source":"crm",` +
			`"occurred_at":"2026-10-26T07:33:20Z","delivery_attempt":1,"schema_version":"1.0"},"payload":` + row + `}`},
		"change": {rowsTable(), change("u", "null", row, octoberMS, 1)},
	} {
		b.Run(name, func(b *testing.B) {
			r := NewRouter(RouterOptions{
				Streams: []*feature.Stream{c.stream}, Only: c.stream, Dedups: map[string]*Dedup{c.stream.Name: NewDedup(1<<20, nil)},
				Starts: func(string, feature.Partition) int64 { return 0 },
			})
			for i := 0; b.Loop(); i++ {
				r.Add(&Record{Position: feature.Position{Topic: c.stream.Topic, Offset: int64(i)}, Value: []byte(c.value)}, testNow)
			}
			if rows, _ := r.Pending(); rows == 0 {
				b.Fatal("nothing was accepted")
			}
		})
	}
}

// FuzzDebezium holds that no bytes make the decoder panic, that each record becomes exactly one thing, and that one which is delivered
// again is a duplicate of the first, or refused as that was.
func FuzzDebezium(f *testing.F) {
	f.Add([]byte(change("u", `{"id":"a"}`, `{"id":"a","stage":"won","amount":"1.5","born":3,"seen":null,"tags":"[1]"}`, octoberMS, 7)), []byte(`{"id":"a"}`))
	f.Add([]byte(change("d", "null", "null", octoberMS, 7)), []byte(`{"schema":{},"payload":{"id":"a"}}`))
	f.Add([]byte(`{"schema":{"fields":[{"field":"after","fields":[{"field":"amount","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2"}},`+
		`{"field":"seen","name":"io.debezium.time.NanoTimestamp"}]}]},"payload":`+change("r", "null", `{"id":"a","amount":"BNI=","seen":1}`, octoberMS, 0)+`}`), []byte("a"))
	f.Add([]byte(`{"op":"c","after":{"id":"a","amount":{"scale":-3,"value":"/w=="}},"source":{"ts_ns":1793000000000000001,"file":"b.3","pos":4}}`), []byte(nil))
	f.Add([]byte(change("u", "null", `{"id":"a","tags":"__debezium_unavailable_value"}`, octoberMS, 1)), []byte(nil))
	f.Fuzz(func(t *testing.T, value, key []byte) {
		for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
			s := rowsTable()
			s.Payload = payload
			first := Record{Position: feature.Position{Topic: s.Topic, Offset: 1}, Key: key, Value: value}
			again := first
			again.Offset = 2
			_, refused, counts := routed(t, s, []Record{first, again})
			if counts.Read != 2 || len(refused) != int(counts.Refused) || counts.Refused != 2 && (counts.Accepted != 1 || counts.Duplicate != 1) {
				t.Fatalf("%q: %+v, refused %+v", value, counts, refused)
			}
		}
	})
}
