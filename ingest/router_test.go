package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
)

// testNow is when records are read in these tests: 2026-11-01T00:00:00Z.
const testNow = 1793491200000000

// wide is a row stream with a column of every type.
func wide() *feature.Stream {
	typ := func(text string) feature.Type {
		t, err := feature.ParseType(text)
		if err != nil {
			panic(err)
		}
		return t
	}
	half := 0.5
	return &feature.Stream{
		Name: "wide", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "wide.v1", Key: []string{"id"}, ClusterBy: "id",
		EventTime: "at", Sequence: "seq", ProcessedTime: "loaded", Payload: feature.FullPayload, Keyed: true,
		Columns: []feature.Column{
			{Name: "id", Type: typ("string"), Path: []string{"id"}}, {Name: "b", Type: typ("bool"), Path: []string{"b"}},
			{Name: "n", Type: typ("int64"), Path: []string{"n"}}, {Name: "x", Type: typ("double"), Path: []string{"x"}, Max: &half},
			{Name: "money", Type: typ("decimal(6,2)"), Path: []string{"amount", "value"}}, {Name: "t", Type: typ("timestamp"), Path: []string{"t"}},
			{Name: "day", Type: typ("date"), Path: []string{"day"}}, {Name: "j", Type: typ("json"), Path: []string{"j"}},
			{Name: "tags", Type: typ("list<string>"), Path: []string{"tags"}}, {Name: "kind", Type: typ("string"), Path: []string{"kind"}, Enum: []string{"a", "b"}},
		},
	}
}

// routed reads records through a router for one stream and gives the rows as JSON and the dead letters.
func routed(t *testing.T, s *feature.Stream, records []Record) ([]map[string]any, []feature.DeadLetter, feature.Counts) {
	t.Helper()
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}), JobID: "job",
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	for i := range records {
		r.Add(&records[i], testNow)
	}
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rows := jsonRows(t, batches)
	counts, _, refused := total(batches)
	if counts.Read != counts.Accepted+counts.Refused+counts.Duplicate {
		t.Errorf("counts don't add up: %+v", counts)
	}
	return rows, refused, counts
}

// jsonRows are the rows of batches.
func jsonRows(t *testing.T, batches []*feature.Batch) []map[string]any {
	t.Helper()
	var rows []map[string]any
	for _, b := range batches {
		for _, batch := range b.Rows {
			text, err := batch.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			var part []map[string]any
			if err := json.Unmarshal(text, &part); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, part...)
		}
	}
	return rows
}

func record(topic string, offset int64, value string) Record {
	return Record{Position: feature.Position{Topic: topic, Offset: offset}, Value: []byte(value)}
}

func TestRowValues(t *testing.T) {
	const fixed = `"id":"k","at":"2026-10-01T00:00:00Z"`
	for _, c := range []struct{ in, column, want string }{
		{`"b":true`, "b", `true`}, {`"b":null`, "b", `null`}, {`"b":1`, "b", "bad_value"}, {`"b":"true"`, "b", "bad_value"},
		{`"n":9223372036854775807`, "n", `9223372036854775807`}, {`"n":5.0`, "n", `5`}, {`"n":5e2`, "n", `500`}, {`"n":5.5`, "n", "bad_value"},
		{`"n":9223372036854775808`, "n", "bad_value"}, {`"n":1e999`, "n", "bad_value"}, {`"n":"5"`, "n", "bad_value"}, {`"n":[5]`, "n", "bad_value"},
		{`"x":0.25`, "x", `0.25`}, {`"x":1`, "x", "bad_value"}, {`"x":-1e999`, "x", "bad_value"}, {`"x":"0.1"`, "x", "bad_value"},
		{`"amount":{"value":12.5}`, "money", `"12.5"`}, {`"amount":{"value":"-9999.99"}`, "money", `"-9999.99"`}, {`"amount":{"value":12.500}`, "money", `"12.5"`},
		{`"amount":{"value":12.345}`, "money", "bad_value"}, {`"amount":{"value":10000}`, "money", "bad_value"}, {`"amount":{"value":"1 2"}`, "money", "bad_value"},
		{`"amount":{"value":1e3}`, "money", `"1000"`}, {`"amount":{"value":1e-2}`, "money", `"0.01"`}, {`"amount":{"value":-0.00}`, "money", `"0"`},
		{`"amount":{"value":1e99999}`, "money", "bad_value"}, {`"amount":null`, "money", `null`}, {`"amount":3`, "money", "bad_value"}, {`"amount":{}`, "money", `null`},
		{`"t":"2026-10-01T02:00:00+02:00"`, "t", `"2026-10-01T00:00:00Z"`}, {`"t":"2026-10-01T00:00:00.0000001Z"`, "t", `"2026-10-01T00:00:00.000001Z"`},
		{`"t":"2026-10-01T00:00:00.12345678901Z"`, "t", `"2026-10-01T00:00:00.123457Z"`},
		{`"t":"2026-10-01T00:00:00"`, "t", "bad_value"}, {`"t":"2026-02-30T00:00:00Z"`, "t", "bad_value"}, {`"t":1793491200`, "t", "bad_value"},
		{`"day":"1969-12-31"`, "day", `"1969-12-31"`}, {`"day":"2026-13-01"`, "day", "bad_value"}, {`"day":"2026-10-01T00:00:00Z"`, "day", "bad_value"},
		{`"j":{"b":1,"a":[{"z":1.10,"y":null}]}`, "j", `"{\"a\":[{\"y\":null,\"z\":1.10}],\"b\":1}"`}, {`"j":9007199254740993`, "j", `"9007199254740993"`}, {`"j":null`, "j", `null`},
		{`"tags":["a",null,"ü\n"]`, "tags", `["a",null,"ü\n"]`}, {`"tags":[]`, "tags", `[]`}, {`"tags":"a"`, "tags", "bad_value"}, {`"tags":[1]`, "tags", "bad_value"},
		{`"kind":"a"`, "kind", `"a"`}, {`"kind":"c"`, "kind", "bad_value"}, {`"kind":null`, "kind", `null`}, {`"k\u0069nd":"b"`, "kind", `"b"`},
		{`"other":{"b":[1],"a":1},"amount":{"unit":"EUR"}`, "extra", `"{\"amount\":{\"unit\":\"EUR\"},\"other\":{\"a\":1,\"b\":[1]}}"`},
		{`"seq":7`, "sequence", `7`}, {`"seq":"2026-10-01T00:00:00Z"`, "sequence", `1790812800000000`}, {`"seq":"x"`, "sequence", "bad_value"}, {`"seq":null`, "sequence", `null`},
		{`"loaded":"2026-10-02T00:00:00Z"`, "ingested_at", `"2026-10-02T00:00:00Z"`}, {`"n":1`, "ingested_assumed", `true`}, {`"n":1`, "op", `"upsert"`},
		{`"n":1,"n":2`, "n", "not_json"}, {`"n":NaN`, "n", "not_json"}, {`"n":01`, "n", "not_json"}, {"\"kind\":\"\xff\"", "kind", "not_json"}, {`"n":1} {`, "n", "not_json"},
		{`"j":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "j", "not_json"},
	} {
		rows, refused, _ := routed(t, wide(), []Record{record("file:x", 0, "{"+fixed+","+c.in+"}")})
		got := ""
		switch {
		case len(refused) == 1:
			got = string(refused[0].Reason)
		case len(rows) == 1:
			text, _ := json.Marshal(rows[0][c.column])
			got = string(text)
			if c.column == "n" || c.column == "sequence" { // beyond what float64 holds
				got = fmt.Sprintf("%.0f", rows[0][c.column])
				if rows[0][c.column] == nil {
					got = "null"
				}
			}
		}
		want := c.want
		if want == "9223372036854775807" {
			want = "9223372036854775808" // as float64
		}
		if got != want {
			t.Errorf("%.60s: %s is %s, want %s", c.in, c.column, got, want)
		}
	}
}

func TestRowsRefused(t *testing.T) {
	for in, want := range map[string]feature.Reason{
		`{"at":"2026-10-01T00:00:00Z"}`:              feature.MissingKey,
		`{"id":null,"at":"2026-10-01T00:00:00Z"}`:    feature.MissingKey,
		`{"id":{"a":1},"at":"2026-10-01T00:00:00Z"}`: feature.BadValue,
		`{"id":"k"}`:                            feature.NoEventTime,
		`{"id":"k","at":null}`:                  feature.NoEventTime,
		`{"id":"k","at":"yesterday"}`:           feature.BadValue,
		``:                                      feature.NotJSON,
		`null`:                                  feature.NotJSON,
		`[]`:                                    feature.NotJSON,
		`"text"`:                                feature.NotJSON,
		`{"id":"k","at":"2026-10-01T00:00:00Z"`: feature.NotJSON,
		`{"id":"k","at":"2026-10-01T00:00:00Z"},`: feature.NotJSON,
		"\ufeff{\"id\":\"k\"}":                    feature.NotJSON,
	} {
		_, refused, _ := routed(t, wide(), []Record{record("file:x", 3, in)})
		if len(refused) != 1 || refused[0].Reason != want || string(refused[0].Body) != in || refused[0].Offset != 3 || refused[0].Detail == "" {
			t.Errorf("%s: %+v, want %s", in, refused, want)
		}
	}
	// Live events from the future are refused, backfilled ones counted.
	soon, late := `{"id":"k","at":"2026-11-01T00:05:00Z"}`, `{"id":"l","at":"2026-11-01T00:05:00.000001Z"}`
	s := wide()
	s.MaxClockSkew = 5 * 60e9
	if rows, refused, _ := routed(t, s, []Record{record("wide.v1", 0, soon), record("wide.v1", 1, late)}); len(rows) != 1 || refused[0].Reason != feature.FutureEventTime {
		t.Errorf("live: %d rows, %+v", len(rows), refused)
	}
	if rows, _, counts := routed(t, s, []Record{record("file:x", 0, soon), record("file:x", 1, late)}); len(rows) != 2 || counts.Ahead != 2 {
		t.Errorf("file: %d rows, %+v", len(rows), counts)
	}
	cut := record("file:x", 0, "{")
	cut.Cut = true
	if _, refused, _ := routed(t, s, []Record{cut}); refused[0].Reason != feature.TooLarge {
		t.Errorf("cut: %+v", refused)
	}
}

const goodEnvelope = `{"event_id":"00000000-0000-4000-8000-00000000000A","event_type":"Contact.updated","source":"crm","occurred_at":"2026-10-01T00:00:00Z","delivery_attempt":1,"schema_version":"1.2"}`

func contactStream(t *testing.T) *feature.Stream {
	t.Helper()
	for _, s := range builtins(t) {
		if s.Name == "contact" {
			return s
		}
	}
	panic("no contact")
}

func TestEvents(t *testing.T) {
	s := contactStream(t)
	with := func(old, new string) string { return strings.Replace(goodEnvelope, old, new, 1) }
	event := func(envelope, payload string) string {
		return `{"envelope":` + envelope + `,"payload":` + payload + `}`
	}
	for _, c := range []struct{ name, in, column, want string }{
		{"id in lower case", event(goodEnvelope, `{"contact_id":"c"}`), "event_id", "00000000-0000-4000-8000-00000000000a"},
		{"time of the envelope", event(goodEnvelope, `{"contact_id":"c"}`), "event_time", "2026-10-01T00:00:00Z"},
		{"time of the payload", event(goodEnvelope, `{"contact_id":"c","updated_at":"2026-09-01T00:00:00Z"}`), "event_time", "2026-09-01T00:00:00Z"},
		{"delete at the envelope's time", event(with("updated", "deleted"), `{"contact_id":"c","updated_at":"2026-09-01T00:00:00Z","mkt_status":"nonsense"}`), "event_time", "2026-10-01T00:00:00Z"},
		{"delete has no columns", event(with("updated", "deleted"), `{"contact_id":"c","email":"x@example.com"}`), "email", "<nil>"},
		{"delete has its key", event(with("updated", "deleted"), `{"contact_id":"c","email":"x@example.com"}`), "contact_id", "c"},
		{"any verb", event(with("updated", "merged"), `{"contact_id":"c"}`), "op", "upsert"},
		{"payload first", `{"payload":{"contact_id":"c","name":{"first":"A"}},"envelope":` + goodEnvelope + `}`, "first_name", "A"},
		{"actor", event(with(`"source"`, `"actor":"ann","reason":"merge","source"`), `{"contact_id":"c"}`), "actor", "ann"},
		{"envelope field outside the schema", event(with(`"source"`, `"trace":{"b":1,"a":2},"source"`), `{"contact_id":"c"}`), "extra", `{"envelope":{"trace":{"a":2,"b":1}}}`},
		{"live time of ingestion", event(with(`"source"`, `"received_at":"2026-10-02T00:00:00Z","source"`), `{"contact_id":"c"}`), "ingested_at", "2026-11-01T00:00:00Z"},
		{"no envelope", `{"payload":{"contact_id":"c"}}`, "", "bad_envelope"},
		{"empty", `{}`, "", "bad_envelope"},
		{"no payload", `{"envelope":` + goodEnvelope + `}`, "", "bad_envelope"},
		{"payload of text", event(goodEnvelope, `"x"`), "", "bad_envelope"},
		{"envelope of text", event(`"x"`, `{}`), "", "bad_envelope"},
		{"no id", event(with(`"event_id"`, `"id"`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"id is no UUID", event(with(`0000000A`, `0000000G`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"time without a zone", event(with(`00:00Z"`, `00:00"`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"attempt 0", event(with(`"delivery_attempt":1`, `"delivery_attempt":0`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"type without a verb", event(with(`Contact.updated`, `Contact`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"type of another stream", event(with(`Contact`, `Engagement`), `{"contact_id":"c"}`), "", "unknown_event_type"},
		{"version 2", event(with(`1.2`, `2.0`), `{"contact_id":"c"}`), "", "unknown_schema_version"},
		{"version of text", event(with(`1.2`, `new`), `{"contact_id":"c"}`), "", "bad_envelope"},
		{"no key", event(goodEnvelope, `{"email":"x@example.com"}`), "", "missing_key"},
		{"delete without its key", event(with("updated", "deleted"), `{"email":"x@example.com"}`), "", "missing_key"},
		{"truncated", event(with("updated", "truncated"), `{"contact_id":"c"}`), "", "truncate"},
		{"truncate without a payload", `{"envelope":` + with("updated", "truncate") + `}`, "", "truncate"},
		{"truncate with a null payload first", `{"payload":null,"envelope":` + with("updated", "truncate") + `}`, "", "truncate"},
		{"truncate with a broken envelope", event(strings.Replace(with("updated", "truncate"), `"source"`, `"origin"`, 1), `{}`), "", "bad_envelope"},
		{"truncate of another stream", event(with("Contact.updated", "Engagement.truncate"), `{}`), "", "unknown_event_type"},
		{"truncate of another version", event(strings.Replace(with("updated", "truncate"), "1.2", "2.0", 1), `{}`), "", "unknown_schema_version"},
		{"a verb that only begins so", event(with("updated", "truncated_name"), `{"contact_id":"c"}`), "op", "upsert"},
		{"truncate and bad syntax", `{"envelope":` + with("updated", "truncate") + `,"payload":{"contact_id":}}`, "", "not_json"},
		{"bad syntax behind all", event(goodEnvelope, `{"contact_id":"c"}`) + "x", "", "not_json"},
	} {
		rows, refused, _ := routed(t, s, []Record{record("contact.v1", 0, c.in)})
		got := ""
		switch {
		case len(refused) == 1:
			got = string(refused[0].Reason)
		case len(rows) == 1:
			got = fmt.Sprint(rows[0][c.column])
		}
		if got != c.want {
			t.Errorf("%s: %s %+v, want %s", c.name, got, refused, c.want)
		}
	}
}

func TestTombstones(t *testing.T) {
	s := contactStream(t)
	tombstone := Record{Position: feature.Position{Topic: "contact.v1", Offset: 4}, Key: []byte("c1"), Timestamp: testNow - 1e6}
	rows, refused, counts := routed(t, s, []Record{tombstone})
	if len(rows) != 1 || rows[0]["contact_id"] != "c1" || rows[0]["op"] != "delete" || rows[0]["event_time"] != "2026-10-31T23:59:59Z" {
		t.Errorf("rows %v, refused %v", rows, refused)
	}
	if again, _, _ := routed(t, s, []Record{tombstone}); again[0]["event_id"] != rows[0]["event_id"] {
		t.Error("a tombstone's id is not a function of its position")
	}
	if counts.Unkeyed != 0 {
		t.Errorf("counts %+v", counts)
	}
	noTime := tombstone
	noTime.Timestamp = -1000 // how a producer without a clock is read
	if _, refused, _ := routed(t, s, []Record{noTime}); len(refused) != 1 || refused[0].Reason != feature.NoEventTime {
		t.Errorf("refused %+v", refused)
	}
	noKey := tombstone
	noKey.Key = nil
	if _, refused, _ := routed(t, s, []Record{noKey}); refused[0].Reason != feature.MissingKey {
		t.Errorf("refused %+v", refused)
	}
}

func TestUnkeyedIsCounted(t *testing.T) {
	other := record("contact.v1", 0, `{"envelope":`+goodEnvelope+`,"payload":{"contact_id":"c"}}`)
	other.Key = []byte("somebody else")
	if _, _, counts := routed(t, contactStream(t), []Record{other}); counts.Unkeyed != 1 || counts.Accepted != 1 {
		t.Errorf("counts %+v", counts)
	}
}

// A re-delivery is a duplicate at any position but its own; another key or time under the same id is another event.
func TestDuplicates(t *testing.T) {
	event := func(key, at string) string {
		return `{"envelope":` + goodEnvelope + `,"payload":{"contact_id":"` + key + `","updated_at":"` + at + `"}}`
	}
	const at, later = "2026-09-01T00:00:00Z", "2026-09-02T00:00:00Z"
	rows, _, counts := routed(t, contactStream(t), []Record{
		record("contact.v1", 0, event("c", at)),
		record("contact.v1", 0, event("c", at)), // its own replay
		record("contact.v1", 1, event("c", at)),
		record("other", 0, event("c", at)),
		record("contact.v1", 2, event("d", at)),
		record("contact.v1", 3, event("c", later)),
		record("contact.v1", 4, event("c", later)),
	})
	if counts.Duplicate != 3 || counts.IDReuse != 2 || len(rows) != 4 {
		t.Errorf("%d rows, %+v", len(rows), counts)
	}
}

// The key of an identity has its parts in the order of the key, as the log gives them, not in that of the columns.
func TestDuplicatesOfCompositeKeys(t *testing.T) {
	s := wide()
	s.Key = []string{"kind", "n", "id"}
	line := `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"a","n":7}`
	rows, _, _ := routed(t, s, []Record{record("file:x", 0, line)})
	at, err := time.Parse(time.RFC3339, rows[0]["event_time"].(string))
	if err != nil {
		t.Fatal(err)
	}
	dedups := newDedups(t, []*feature.Stream{s})
	dedups[s.Name].Remember(feature.Identity{EventID: rows[0]["event_id"].(string), Key: "a\x1f7\x1fk", EventTime: at.UnixMicro()},
		feature.Position{Topic: "file:x"})
	r := NewRouter(RouterOptions{Streams: []*feature.Stream{s}, Only: s, Dedups: dedups, Starts: func(string, feature.Partition) int64 { return 0 }})
	again := record("file:y", 0, line)
	r.Add(&again, testNow)
	batches, err := r.Flush(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if counts, _, _ := total(batches); counts.Duplicate != 1 {
		t.Errorf("counts %+v", counts)
	}
}

// Events older than the resident window are looked up in the log.
func TestDuplicatesOlderThanTheWindow(t *testing.T) {
	s := wide()
	logged := map[feature.Identity]feature.Position{}
	asked := 0
	d := NewDedup(100, func(_ context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error) {
		asked += len(ids)
		found := map[feature.Identity]feature.Position{}
		for _, id := range ids {
			if p, ok := logged[id]; ok {
				found[id] = p
			}
		}
		return found, nil
	})
	r := NewRouter(RouterOptions{Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*Dedup{"wide": d}, Starts: func(string, feature.Partition) int64 { return 0 }})
	read := func(topic string, from, n int) feature.Counts {
		for i := range n {
			rec := record(topic, int64(from+i), fmt.Sprintf(`{"id":"k%d","at":"2026-10-01T00:00:%02d.%03dZ"}`, from+i, (from+i)/1000, (from+i)%1000))
			r.Add(&rec, testNow)
		}
		batches, err := r.Flush(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for _, rows := range b.Rows {
				ids := rows.Column(rows.Schema().FieldIndices(feature.ColEventID)[0]).(*array.String)
				offsets := rows.Column(rows.Schema().FieldIndices(feature.ColOffset)[0]).(*array.Int64)
				times := rows.Column(rows.Schema().FieldIndices(feature.ColEventTime)[0]).(*array.Timestamp)
				keys := rows.Column(0).(*array.String)
				for i := range ids.Len() {
					id := feature.Identity{EventID: strings.Clone(ids.Value(i)), Key: strings.Clone(keys.Value(i)), EventTime: int64(times.Value(i))}
					logged[id] = feature.Position{Topic: topic, Offset: offsets.Value(i)}
				}
			}
		}
		counts, _, _ := total(batches)
		return counts
	}
	if c := read("wide.v1", 0, 1000); c.Accepted != 1000 || asked != 0 {
		t.Fatalf("%+v, %d asked", c, asked)
	}
	if c := read("file:again", 0, 1000); c.Duplicate != 1000 || asked == 0 {
		t.Fatalf("%+v, %d asked", c, asked)
	}
	if c := read("wide.v1", 1000, 500); c.Accepted != 500 {
		t.Fatalf("%+v", c)
	}
}

// An event that is on its way to the log is known, however old it is: the log can't tell of it yet.
func TestDuplicatesOfWhatIsOnItsWay(t *testing.T) {
	s := wide()
	d := NewDedup(100, func(context.Context, []feature.Identity) (map[feature.Identity]feature.Position, error) {
		return nil, nil
	})
	r := NewRouter(RouterOptions{Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*Dedup{"wide": d}, Starts: func(string, feature.Partition) int64 { return 0 }})
	offset := int64(0)
	add := func(key, at string) {
		rec := record("wide.v1", offset, fmt.Sprintf(`{"id":%q,"at":%q}`, key, at))
		r.Add(&rec, testNow)
		offset++
	}
	for round := range 20 {
		old := fmt.Sprintf("2026-09-01T00:00:%02dZ", round)
		add("old", old)
		for i := range 40 {
			add("new", fmt.Sprintf("2026-10-01T00:%02d:%02dZ", round, i))
		}
		add("old", old)
	}
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if counts, _, _ := total(batches); counts.Accepted != 20*41 || counts.Duplicate != 20 {
		t.Errorf("%+v", counts)
	}
}

// A span that only moves a watermark names the broker's topic as any other does.
func TestIdleSpansNameTheirTopic(t *testing.T) {
	s := contactStream(t)
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}),
		Starts: func(string, feature.Partition) int64 { return 0 }, TopicID: func(string) string { return "id" },
	})
	rec := record("contact.v1", 0, `{}`)
	r.Add(&rec, testNow)
	for range 2 {
		batches, err := r.Flush(context.Background(), []End{{Partition: feature.Partition{Topic: "contact.v1"}, At: testNow, Idle: true}})
		if err != nil || len(batches) != 1 || batches[0].Spans[0].TopicID != "id" {
			t.Fatalf("%+v, %v", batches, err)
		}
	}
}

// recorded_at never decreases, whatever the clock does.
func TestRecordedAtNeverDecreases(t *testing.T) {
	s := wide()
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}), Starts: func(string, feature.Partition) int64 { return 0 },
		RecordedAt: func(feature.Partition) int64 { return testNow + 5 },
	})
	for i, now := range []int64{testNow, testNow + 10, testNow + 7} {
		rec := record("wide.v1", int64(i), fmt.Sprintf(`{"id":"k%d","at":"2026-10-01T00:00:00Z"}`, i))
		r.Add(&rec, now)
	}
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	times := batches[0].Rows[0].Column(batches[0].Rows[0].Schema().FieldIndices(feature.ColRecordedAt)[0]).(*array.Timestamp)
	for i, want := range []int64{testNow + 5, testNow + 10, testNow + 10} {
		if int64(times.Value(i)) != want {
			t.Errorf("row %d: %d, want %d", i, times.Value(i), want)
		}
	}
}

// What is a dead letter stays one when it is read again, though it would fit now.
func TestRefusedBefore(t *testing.T) {
	s := wide()
	at := feature.Position{Topic: "wide.v1", Offset: 1}
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}), JobID: "job",
		Starts:  func(string, feature.Partition) int64 { return 0 },
		Refused: map[feature.Position]feature.Reason{at: feature.BadValue},
	})
	for offset := range int64(3) {
		rec := record("wide.v1", offset, fmt.Sprintf(`{"id":"a%d","at":"2025-01-01T00:00:00Z","seq":1,"loaded":"2025-01-01T00:00:00Z"}`, offset))
		r.Add(&rec, testNow)
	}
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	counts, _, refused := total(batches)
	if counts.Accepted != 2 || counts.Refused != 1 || refused[0].Position != at || refused[0].Reason != feature.BadValue {
		t.Errorf("%+v, %+v", counts, refused)
	}
}
