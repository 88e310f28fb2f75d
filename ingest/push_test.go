package ingest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// pushed are columns of one row.
func pushed(values ...string) []PushColumn {
	var columns []PushColumn
	for i := 0; i < len(values); i += 2 {
		columns = append(columns, PushColumn{Name: values[i], Values: [][]byte{[]byte(values[i+1])}})
	}
	return columns
}

// with is a row of columns of which some have other values; "" leaves one out.
func with(columns []PushColumn, values ...string) []PushColumn {
	all := slices.Clone(columns)
	for _, c := range pushed(values...) {
		i := slices.IndexFunc(all, func(other PushColumn) bool { return other.Name == c.Name })
		switch {
		case i < 0:
			all = append(all, c)
		case len(c.Values[0]) == 0:
			all = slices.Delete(all, i, i+1)
		default:
			all[i] = c
		}
	}
	return all
}

// wideRow is a row of the stream wide, with every column.
func wideRow() []PushColumn {
	return pushed("id", `"c1"`, "b", "true", "n", "9007199254740993", "x", "0.25", "money", `1234.50`, "t", `"2026-10-01T00:00:00.123456Z"`,
		"day", `"2026-10-02"`, "j", `{"b":1,"a":[1.10]}`, "tags", `["x","y"]`, "kind", `"a"`, "at", `"2026-10-31T12:00:00Z"`)
}

func contactRow() []PushColumn {
	return pushed("contact_id", `"c1"`, "email", `"a@example.org"`, "phone", "null", "first_name", `"Ada"`, "last_name", "null", "mkt_status", `"lead"`,
		"segments", `["vip"]`, "attributes", `{"open":2}`, "event_timestamp", `"2026-10-31T12:00:00Z"`)
}

// What is made of rows, in full: a person can hold it against the reference.
func TestPushedEvents(t *testing.T) {
	engagement := builtin(t, "engagement")
	patch := wide()
	patch.Payload = feature.PatchPayload
	identified := wide()
	identified.ID = "row_id"
	composite := wide()
	composite.Keyed, composite.Key = false, []string{"id", "n"}
	composite.ClusterBy = "id"
	exact := builtin(t, "engagement")
	exact.EventTypes = []string{"Engagement.deleted", "Engagement.logged"}
	for name, c := range map[string]struct {
		stream    *feature.Stream
		key       string // of idempotency
		columns   []PushColumn
		recordKey string
		value     string
	}{
		"row": {wide(), "", wideRow(), "c1", `{"id":"c1","b":true,"n":9007199254740993,"x":0.25,"amount":{"value":1234.50},"t":"2026-10-01T00:00:00.123456Z",` +
			`"day":"2026-10-02","j":{"b":1,"a":[1.10]},"tags":["x","y"],"kind":"a","at":"2026-10-31T12:00:00Z"}`},
		"by Feast's name of the time, and by a path": {patch, "", pushed("event_timestamp", `"2026-10-31T12:00:00Z"`, "id", `"c1"`, "amount.value", "1"), "c1",
			`{"at":"2026-10-31T12:00:00Z","id":"c1","amount":{"value":1}}`},
		"of a composite key that isn't promised": {composite, "", with(wideRow(), "n", "7"), "c1\x1f7", ""},
		"envelope": {contactStream(t), "push 7", contactRow(), "c1",
			`{"envelope":{"event_id":"bc409249-1844-56b8-b8cd-c38c72f5836e","event_type":"Contact.updated","source":"test","occurred_at":"2026-10-31T12:00:00Z",` +
				`"delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":"c1","email":"a@example.org","phone":null,"name":{"first":"Ada","last":null},` +
				`"mkt_status":"lead","segments":["vip"],"attributes":{"open":2},"updated_at":"2026-10-31T12:00:00Z"}}`},
		"a fact, with members of its envelope": {engagement, "", pushed("engagement_id", `"e1"`, "contact_id", `"c9"`, "type", `"call"`, "outcome", "null",
			"occurred_at", `"2026-10-31T12:00:00Z"`, "event_id", `"6F6D1F5E-7F0C-5F2E-9A43-6C6F616D0009"`, "actor", `"batch"`, "source", "null"), "c9",
			`{"envelope":{"event_id":"6F6D1F5E-7F0C-5F2E-9A43-6C6F616D0009","event_type":"Engagement.created","source":"test","occurred_at":"2026-10-31T12:00:00Z",` +
				`"actor":"batch","delivery_attempt":1,"schema_version":"1.0"},"payload":{"engagement_id":"e1","contact_id":"c9","type":"call","outcome":null,` +
				`"occurred_at":"2026-10-31T12:00:00Z"}}`},
		"a delete": {contactStream(t), "k", pushed("contact_id", `"c1"`, "event_timestamp", `"2026-10-31T12:00:00Z"`, "event_type", `"Contact.deleted"`), "c1",
			`{"envelope":{"event_id":"1c83a543-97bf-54e7-838d-41aa1bbd7a19","event_type":"Contact.deleted","source":"test","occurred_at":"2026-10-31T12:00:00Z",` +
				`"delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":"c1","updated_at":"2026-10-31T12:00:00Z"}}`},
		"an exact event type": {exact, "k", pushed("engagement_id", `"e1"`, "occurred_at", `"2026-10-31T12:00:00Z"`), "",
			`{"envelope":{"event_id":"d7f583d8-c671-557b-9f63-ad7e4f86854b","event_type":"Engagement.logged","source":"test","occurred_at":"2026-10-31T12:00:00Z",` +
				`"delivery_attempt":1,"schema_version":"1.0"},"payload":{"engagement_id":"e1","occurred_at":"2026-10-31T12:00:00Z"}}`},
		"an id that the rows lack": {identified, "k", with(wideRow(), "j", "null"), "c1",
			`{"row_id":"786ea872-bd9b-500e-a11f-becdb801878d","id":"c1","b":true,"n":9007199254740993,"x":0.25,"amount":{"value":1234.50},"t":"2026-10-01T00:00:00.123456Z",` +
				`"day":"2026-10-02","j":null,"tags":["x","y"],"kind":"a","at":"2026-10-31T12:00:00Z"}`},
	} {
		events, err := (&Push{Stream: c.stream, Source: "test", IdempotencyKey: c.key}).Events(t.Context(), c.columns, time.UnixMicro(testNow))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := string(events[0].Value); c.value != "" && got != c.value {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.value)
		}
		if got := string(events[0].Key); got != c.recordKey {
			t.Errorf("%s: record key %q, want %q", name, got, c.recordKey)
		}
		// Whoever reads the topic takes it, keyed as it is promised.
		_, letters, counts := routed(t, c.stream, []Record{{Position: feature.Position{Topic: c.stream.Topic}, Key: events[0].Key, Value: events[0].Value}})
		if counts.Accepted != 1 || counts.Unkeyed != 0 || counts.Extra != 0 {
			t.Errorf("%s: %+v %v", name, counts, letters)
		}
	}
}

// builtin is a stream that every project has.
func builtin(t *testing.T, name string) *feature.Stream {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, feature.ProjectFile), []byte("project: p\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := feature.Load(dir, func(string, []feature.Column, feature.Type) ([]string, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return p.Stream(name)
}

func TestPushIsRefused(t *testing.T) {
	contact, engagement := builtin(t, "contact"), builtin(t, "engagement")
	for name, c := range map[string]struct {
		stream  *feature.Stream
		columns []PushColumn
		column  string
		reason  feature.Reason // "" where the columns are at fault
		detail  string
	}{
		"a type":                {wide(), with(wideRow(), "n", `"7"`), "n", feature.BadValue, "want a whole number of 64 bits"},
		"a fraction":            {wide(), with(wideRow(), "n", `7.5`), "n", feature.BadValue, "want a whole number of 64 bits"},
		"beyond 64 bits":        {wide(), with(wideRow(), "n", `9223372036854775808`), "n", feature.BadValue, "want a whole number of 64 bits"},
		"too many digits":       {wide(), with(wideRow(), "money", `1.005`), "money", feature.BadValue, "does not fit the decimal's precision and scale"},
		"a bound":               {wide(), with(wideRow(), "x", `0.75`), "x", feature.BadValue, "outside the bounds"},
		"an enum":               {wide(), with(wideRow(), "kind", `"c"`), "kind", feature.BadValue, "not one of the values it may have"},
		"a list":                {wide(), with(wideRow(), "tags", `"x"`), "tags", feature.BadValue, "want a list"},
		"no key":                {wide(), with(wideRow(), "id", "null"), "id", feature.MissingKey, "missing"},
		"no key column":         {engagement, pushed("contact_id", `"c1"`, "occurred_at", `"2026-10-31T12:00:00Z"`), "engagement_id", feature.MissingKey, "missing"},
		"no time":               {wide(), with(wideRow(), "at", "null"), "at", feature.NoEventTime, "missing"},
		"no time column":        {wide(), with(wideRow(), "at", ""), "at", feature.NoEventTime, "missing"},
		"a time without a zone": {wide(), with(wideRow(), "at", `"2026-10-31T12:00:00"`), "at", feature.BadValue, "want an RFC 3339 time with a zone"},
		"a time to come":        {wide(), with(wideRow(), "at", `"2026-11-01T00:00:00.000001Z"`), "at", feature.FutureEventTime, "event time is more than 0 ahead of the time it was read"},
		"an envelope's time": {contact, with(contactRow(), "event_timestamp", `"yesterday"`), "event_timestamp", feature.BadEnvelope,
			"want an RFC 3339 time with a zone"},
		"an envelope's id": {contact, with(contactRow(), "event_id", `"7"`), "event_id", feature.BadEnvelope, "want a UUID"},
		"another's type":   {contact, with(contactRow(), "event_type", `"Deal.updated"`), "event_type", feature.UnknownType, "does not belong to stream contact"},
		"a deleted fact": {engagement, pushed("engagement_id", `"e"`, "occurred_at", `"2026-10-31T12:00:00Z"`, "event_type", `"Engagement.deleted"`), "",
			feature.DeletedEvent, "events are facts, which aren't deleted"},
		"a long one":       {wide(), with(wideRow(), "j", `"`+strings.Repeat("x", PushBytesMax)+`"`), "", feature.TooLarge, "its event is longer than 900000 bytes"},
		"a column of none": {wide(), with(wideRow(), "ltv", "1"), "ltv", "", "stream wide has no such column; it has id, b, n, x, money, t, day, j, tags, kind, at, seq, loaded"},
		"a column that lacks": {wide(), with(wideRow(), "x", ""), "x", "", "missing: an event of wide carries the whole state, so it would become null; " +
			"push it, with null where there is nothing, or give the stream `payload: patch`"},
		"one place twice": {wide(), with(wideRow(), "event_timestamp", `"2026-10-31T12:00:00Z"`), "event_timestamp", "", "another column stands in its place: leave one of them out"},
	} {
		good := c.columns
		for i := range good { // a good row stands before it
			good[i].Values = [][]byte{good[i].Values[0], good[i].Values[0]}
		}
		_, err := (&Push{Stream: c.stream, Source: "test"}).Events(t.Context(), good, time.UnixMicro(testNow))
		var columns *ColumnError
		var rows *RowsError
		switch {
		case c.reason == "" && errors.As(err, &columns):
			if columns.Column != c.column || columns.What != c.detail {
				t.Errorf("%s: %+v", name, columns)
			}
		case c.reason != "" && errors.As(err, &rows):
			if want := []RefusedRow{{0, c.column, c.reason, c.detail}, {1, c.column, c.reason, c.detail}}; !slices.Equal(rows.Rows, want) {
				t.Errorf("%s: %+v", name, rows.Rows)
			}
		default:
			t.Errorf("%s: %v", name, err)
		}
	}
	position := wide()
	position.ID = feature.PositionID
	if _, err := (&Push{Stream: position, IdempotencyKey: "k"}).Events(t.Context(), wideRow(), time.UnixMicro(testNow)); !errors.Is(err, ErrNotIdempotent) {
		t.Errorf("an idempotency key was promised of positions: %v", err)
	}
}

// A push that is repeated under its key makes the same events; another row, another key or no key makes others.
func TestPushIDs(t *testing.T) {
	ids := func(key string, columns []PushColumn) []string {
		events, err := (&Push{Stream: contactStream(t), Source: "test", IdempotencyKey: key}).Events(t.Context(), columns, time.UnixMicro(testNow))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range events {
			_, rest, _ := strings.Cut(string(e.Value), `"event_id":"`)
			id, _, _ := strings.Cut(rest, `"`)
			if _, err := uuid.Parse(id); err != nil {
				t.Errorf("%q is no UUID", id)
			}
			all = append(all, id)
		}
		return all
	}
	two := contactRow()
	for i := range two {
		two[i].Values = append(two[i].Values, two[i].Values[0])
	}
	first := ids("k", two)
	if first[0] == first[1] {
		t.Error("two equal rows of a push are one event")
	}
	if again := ids("k", two); !slices.Equal(first, again) {
		t.Errorf("repeated, %v became %v", first, again)
	}
	others := map[string]bool{}
	for _, id := range slices.Concat(first, ids("other", contactRow()), ids("k", with(contactRow(), "email", "null")),
		ids("k", with(contactRow(), "event_timestamp", `"2026-10-31T12:00:01Z"`)), ids("", contactRow()), ids("", contactRow())) {
		others[id] = true
	}
	if len(others) != 7 {
		t.Errorf("of 7 events %d have ids of their own", len(others))
	}
}

// Arrow's values become the events that JSON's do.
func TestPushArrow(t *testing.T) {
	s := wide()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}},
		{Name: "b", Type: arrow.FixedWidthTypes.Boolean}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "x", Type: arrow.PrimitiveTypes.Float64},
		{Name: "money", Type: &arrow.Decimal128Type{Precision: 9, Scale: 3}}, {Name: "t", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "Europe/Berlin"}},
		{Name: "day", Type: arrow.FixedWidthTypes.Date32}, {Name: "j", Type: arrow.BinaryTypes.StringView}, {Name: "tags", Type: arrow.LargeListOf(arrow.BinaryTypes.String)},
		{Name: "kind", Type: arrow.BinaryTypes.LargeString, Nullable: true}, {Name: "at", Type: &arrow.TimestampType{Unit: arrow.Millisecond}},
	}, nil)
	batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(
		`[{"id": "c1", "b": true, "n": 9007199254740993, "x": 0.25, "money": "1234.500", "t": "2026-10-01T00:00:00.123456Z", "day": "2026-10-02",
		"j": "{\"b\":1,\"a\":[1.10]}", "tags": ["x", "y"], "kind": null, "at": "2026-10-31T12:00:00"}]`), array.WithUseNumber())
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Release()
	columns, err := ArrowColumns(s, nil, batch)
	if err != nil {
		t.Fatal(err)
	}
	if columns, err = ArrowColumns(s, columns, batch); err != nil { // a second batch goes on
		t.Fatal(err)
	}
	events, err := (&Push{Stream: s}).Events(t.Context(), columns, time.UnixMicro(testNow))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"c1","b":true,"n":9007199254740993,"x":0.25,"amount":{"value":1234.500},"t":"2026-10-01T00:00:00.123456Z",` +
		`"day":"2026-10-02","j":{"b":1,"a":[1.10]},"tags":["x","y"],"kind":null,"at":"2026-10-31T12:00:00Z"}`
	for i, e := range events {
		if string(e.Value) != want {
			t.Errorf("row %d:\n got %s\nwant %s", i, e.Value, want)
		}
	}
	odd := array.NewRecordBatch(arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.FixedWidthTypes.Duration_s}}, nil), []arrow.Array{oneDuration()}, 1)
	defer odd.Release()
	var column *ColumnError
	if _, err := ArrowColumns(s, nil, odd); !errors.As(err, &column) || column.Column != "id" {
		t.Errorf("a duration was pushed: %v", err)
	}
}

func oneDuration() arrow.Array {
	b := array.NewDurationBuilder(memory.DefaultAllocator, &arrow.DurationType{Unit: arrow.Second})
	b.Append(1)
	return b.NewArray()
}

// pushEvents are so many events of different keys.
func pushEvents(n int) []Event {
	events := make([]Event, n)
	for i := range events {
		events[i] = Event{Key: fmt.Appendf(nil, "c%d", i), Value: fmt.Appendf(nil, `{"id":"c%d"}`, i)}
	}
	return events
}

func TestFolderProducer(t *testing.T) {
	dir := t.TempDir()
	topic := filepath.Join(dir, "t")
	f := NewFolderProducer(func(topic string) string { return filepath.Join(dir, topic) })
	if n, err := f.Produce(t.Context(), "t", pushEvents(3)); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got := lines(t, topic); !maps.Equal(got, map[string]int{"0.jsonl": 3}) {
		t.Errorf("a new topic has %v", got)
	}
	// Of more partitions each key has the one that Kafka gives it.
	for _, name := range []string{"1.jsonl", "2.jsonl", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(topic, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.Produce(t.Context(), "t", pushEvents(300)); n != 300 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	want := map[string]int{"0.jsonl": 3}
	for _, e := range pushEvents(300) {
		want[fmt.Sprintf("%d.jsonl", kafkaPartition(e.Key, 3))]++
	}
	if got := lines(t, topic); !maps.Equal(got, want) {
		t.Errorf("partitions have %v, want %v", got, want)
	}
	// A line that was cut off is ended, not continued.
	path := filepath.Join(dir, "cut", "0.jsonl")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(`{"id":"c`), 0o644)); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Produce(t.Context(), "cut", pushEvents(1)); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got, _ := os.ReadFile(path); string(got) != "{\"id\":\"c\n{\"id\":\"c0\"}\n" {
		t.Errorf("behind a line that was cut off: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Produce(t.Context(), "file", pushEvents(1)); n != 0 || err == nil {
		t.Errorf("a topic that is a file took %d events", n)
	}
}

// lines counts those of a topic's files.
func lines(t *testing.T, dir string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		counts[filepath.Base(path)] = strings.Count(string(text), "\n")
	}
	return counts
}

// kafkaPartition is Kafka's default partitioner: murmur2 of the key, as org.apache.kafka.common.utils.Utils has it.
func kafkaPartition(key []byte, partitions int32) int32 {
	const m, r = 0x5bd1e995, 24
	h := uint32(0x9747b28c) ^ uint32(len(key))
	i := 0
	for ; i+4 <= len(key); i += 4 {
		k := uint32(key[i]) | uint32(key[i+1])<<8 | uint32(key[i+2])<<16 | uint32(key[i+3])<<24
		k *= m
		k ^= k >> r
		h = h*m ^ k*m
	}
	switch rest := key[i:]; len(rest) {
	case 3:
		h ^= uint32(rest[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(rest[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(rest[0])) * m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return int32(h&0x7fffffff) % partitions
}

func TestKafkaProducer(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	k, err := OpenKafkaProducer(KafkaOptions{Seeds: cluster.ListenAddrs()})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if n, err := k.Produce(t.Context(), "t", pushEvents(100)); n != 100 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for seen := 0; seen < 100; {
		fetches := reader.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			seen++
			if want := kafkaPartition(r.Key, 3); r.Partition != want {
				t.Errorf("key %s is in partition %d, and Kafka's own clients put it into %d", r.Key, r.Partition, want)
			}
		})
	}
	if n, err := k.Produce(t.Context(), "none", pushEvents(1)); n != 0 || err == nil || !strings.Contains(err.Error(), "the broker has no topic none") {
		t.Errorf("a topic that isn't there took %d: %v", n, err)
	}
	cluster.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begun := time.Now()
	if n, err := k.Produce(ctx, "t", pushEvents(1)); n != 0 || err == nil {
		t.Errorf("a broker that is gone took %d events", n)
	}
	if took := time.Since(begun); took > ProduceTimeout {
		t.Errorf("it took %s to say so", took)
	}
}

func TestPushable(t *testing.T) {
	for want, change := range map[string]func(*feature.Stream){
		"its load is full":      func(s *feature.Stream) { s.Load = feature.FullLoad },
		"Debezium":              func(s *feature.Stream) { s.Format = feature.DebeziumFormat },
		"mapping":               func(s *feature.Stream) { s.Mapping = []feature.Mapped{{Name: "id"}} },
		"schemas of a registry": func(s *feature.Stream) { s.Encoding = feature.AvroEncoding },
	} {
		s := wide()
		if err := Pushable(s); err != nil {
			t.Fatal(err)
		}
		change(s)
		if err := Pushable(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
