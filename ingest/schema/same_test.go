package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// thing is an event of the stream that is written in every encoding. Nil pointers are null.
type thing struct {
	number     int
	verb       string
	first      *string
	amount     *string // decimal(18,4)
	seen       time.Time
	born       string
	active     *bool
	visits     int64
	score      float64
	rate       float32
	ref        string
	level      string
	tags       []string
	prices     []string // decimal(10,2)
	moments    []time.Time
	tier       string
	since      time.Time
	steps      []string
	undeclared string
}

const thingColumns = `
	thing_id string
	first string name.first
	amount decimal(18,4) amount.value
	seen timestamp
	born date
	active bool
	visits int64
	score double
	rate double
	ref string
	level string
	tags list<string>
	prices list<decimal(10,2)>
	moments list<timestamp>
	attributes json
	steps json
`

func ptr[T any](v T) *T { return &v }

var things = []thing{
	{
		number: 1, verb: "created", first: ptr("Zoë \"Z\" \x00"), amount: ptr("12345678901234.5678"), seen: time.Date(2026, 9, 26, 0, 18, 17, 326001000, time.UTC),
		born: "1969-12-31", active: ptr(true), visits: 9223372036854775807, score: 0.1, rate: 0.1, ref: "f1ebf61d-4916-43f2-b59e-953c502dfa7c", level: "GOLD",
		tags: []string{"a", "", "ü"}, prices: []string{"-0.01", "10.00"}, moments: []time.Time{time.Date(1969, 12, 31, 23, 59, 59, 999000000, time.UTC)},
		tier: "gold", since: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), steps: []string{"lead", "won"}, undeclared: "kept",
	},
	{
		number: 2, verb: "updated", seen: time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC), born: "0001-01-01", visits: -1, score: -1e300, rate: 3,
		ref: "00000000-0000-0000-0000-000000000000", level: "NONE", tags: []string{}, prices: []string{}, moments: []time.Time{}, tier: "", undeclared: "x",
		since: time.Date(2020, 1, 1, 0, 0, 0, 120000000, time.UTC), steps: []string{},
	},
	{
		number: 3, verb: "deleted", amount: ptr("-0.0001"), seen: time.Unix(0, 0).UTC(), born: "2026-11-01", active: ptr(false), level: "SILVER", tags: []string{},
		ref: "f1ebf61d-4916-43f2-b59e-953c502dfa7c", undeclared: "gone", since: time.Unix(0, 0).UTC(),
	},
}

func (e thing) id() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", e.number) }

func (e thing) occurredAt() time.Time {
	return time.Date(2026, 10, e.number, 1, 2, 3, 450000000, time.UTC)
}

// json is the canonical event, as a map that the tests of other encodings go by.
func (e thing) json() map[string]any {
	instants := func(ts []time.Time) []any {
		list := []any{}
		for _, t := range ts {
			list = append(list, t.Format(time.RFC3339Nano))
		}
		return list
	}
	numbers := []any{}
	for _, p := range e.prices {
		numbers = append(numbers, json.Number(p))
	}
	steps := []any{}
	for i, s := range e.steps {
		steps = append(steps, map[string]any{"stage": s, "days": i})
	}
	payload := map[string]any{
		"thing_id": fmt.Sprintf("t%d", e.number), "name": map[string]any{"first": e.first}, "seen": e.seen.Format(time.RFC3339Nano), "born": e.born,
		"active": e.active, "visits": e.visits, "score": e.score, "rate": float64(e.rate), "ref": e.ref, "level": e.level, "tags": e.tags,
		"prices": numbers, "moments": instants(e.moments), "steps": steps, "shoe": e.undeclared,
		"attributes": map[string]any{"tier": e.tier, "since": e.since.Format(time.RFC3339Nano)},
	}
	if e.amount != nil {
		payload["amount"] = map[string]any{"value": json.Number(*e.amount), "unit": "EUR"}
	} else {
		payload["amount"] = nil
	}
	return map[string]any{
		"envelope": map[string]any{
			"event_id": e.id(), "event_type": "Thing." + e.verb, "source": "test", "occurred_at": e.occurredAt().Format(time.RFC3339Nano),
			"delivery_attempt": 1, "schema_version": "1.2", "actor": nil,
		},
		"payload": payload,
	}
}

const thingAvro = `{"type": "record", "name": "Event", "namespace": "com.example", "fields": [
	{"name": "envelope", "type": {"type": "record", "name": "Envelope", "fields": [
		{"name": "event_id", "type": {"type": "string", "logicalType": "uuid"}}, {"name": "event_type", "type": "string"},
		{"name": "source", "type": "string"}, {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
		{"name": "delivery_attempt", "type": "int"}, {"name": "schema_version", "type": "string"}, {"name": "actor", "type": ["null", "string"], "default": null}]}},
	{"name": "payload", "type": {"type": "record", "name": "Thing", "fields": [
		{"name": "thing_id", "type": "string"},
		{"name": "name", "type": {"type": "record", "name": "Name", "fields": [{"name": "first", "type": ["null", "string"]}]}},
		{"name": "amount", "type": ["null", "com.example.Amount"]},
		{"name": "seen", "type": {"type": "long", "logicalType": "timestamp-micros"}},
		{"name": "born", "type": {"type": "int", "logicalType": "date"}},
		{"name": "active", "type": ["boolean", "null"]},
		{"name": "visits", "type": "long"}, {"name": "score", "type": "double"}, {"name": "rate", "type": "float"},
		{"name": "ref", "type": {"type": "fixed", "size": 16, "name": "Ref", "logicalType": "uuid"}},
		{"name": "level", "type": {"type": "enum", "name": "Level", "symbols": ["NONE", "SILVER", "GOLD"]}},
		{"name": "tags", "type": {"type": "array", "items": "string"}},
		{"name": "prices", "type": {"type": "array", "items": {"type": "fixed", "size": 6, "name": "Price", "logicalType": "decimal", "precision": 10, "scale": 2}}},
		{"name": "moments", "type": {"type": "array", "items": ["null", {"type": "long", "logicalType": "timestamp-millis"}]}},
		{"name": "attributes", "type": {"type": "record", "name": "Attributes", "fields": [
			{"name": "tier", "type": "string"}, {"name": "since", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}},
		{"name": "steps", "type": {"type": "array", "items": {"type": "record", "name": "Step", "fields": [{"name": "stage", "type": "string"}, {"name": "days", "type": "int"}]}}},
		{"name": "shoe", "type": "string"}]}}]}`

const amountAvro = `{"type": "record", "name": "Amount", "namespace": "com.example", "fields": [
	{"name": "value", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}}, {"name": "unit", "type": "string"}]}`

// avro is the event as the library writes it.
func (e thing) avro(t *testing.T, schema *avro.Schema) []byte {
	t.Helper()
	rat := func(s string) *big.Rat { r, _ := new(big.Rat).SetString(s); return r }
	event := e.json()
	envelope, payload := event["envelope"].(map[string]any), event["payload"].(map[string]any)
	envelope["occurred_at"] = e.occurredAt()
	born, err := time.Parse(time.DateOnly, e.born)
	if err != nil {
		t.Fatal(err)
	}
	payload["seen"], payload["born"], payload["rate"] = e.seen, born, e.rate
	prices, moments := []any{}, []any{}
	for _, p := range e.prices {
		prices = append(prices, rat(p))
	}
	for _, m := range e.moments {
		moments = append(moments, m)
	}
	payload["prices"], payload["moments"] = prices, moments
	payload["attributes"].(map[string]any)["since"] = e.since
	if e.amount != nil {
		payload["amount"].(map[string]any)["value"] = rat(*e.amount)
	}
	b, err := schema.Encode(event)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rows are what comes of records in the log.
func rows(t *testing.T, s *feature.Stream, records []ingest.Record) (arrow.RecordBatch, feature.Counts) {
	t.Helper()
	dedup := ingest.NewDedup(1<<20, func(context.Context, []feature.Identity) (map[feature.Identity]feature.Position, error) {
		return nil, nil
	})
	r := ingest.NewRouter(ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: dedup}, JobID: "job",
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	for i := range records {
		records[i].Position = feature.Position{Topic: s.Topic, Offset: int64(i)}
		r.Add(&records[i], time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	}
	batches, err := r.Flush(t.Context(), nil)
	if err != nil || len(batches) != 1 {
		t.Fatalf("%d batches, %v", len(batches), err)
	}
	for _, l := range batches[0].Refused {
		t.Errorf("refused: %s, %s\n%s", l.Reason, l.Detail, records[l.Offset].JSON)
	}
	return batches[0].Rows[0], batches[0].Spans[0].Counts
}

// sameAsJSON decodes values and holds what comes of them against what comes of the canonical JSON events.
func sameAsJSON(t *testing.T, d *Decoder, s *feature.Stream, events []map[string]any, values [][]byte) {
	t.Helper()
	var decoded, plain []ingest.Record
	for i, value := range values {
		event, refusal, err := d.Decode(t.Context(), value)
		if err != nil || refusal != nil {
			t.Fatalf("event %d: %v, %+v", i, err, refusal)
		}
		decoded = append(decoded, ingest.Record{Value: value, JSON: event})
		text, err := json.Marshal(events[i])
		if err != nil {
			t.Fatal(err)
		}
		plain = append(plain, ingest.Record{Value: text})
	}
	want, wantCounts := rows(t, s, plain)
	got, gotCounts := rows(t, s, decoded)
	if gotCounts != wantCounts || wantCounts.Accepted != int64(len(values)) {
		t.Errorf("counts %+v, of JSON %+v", gotCounts, wantCounts)
	}
	if !array.RecordEqual(got, want) {
		a, _ := got.MarshalJSON()
		b, _ := want.MarshalJSON()
		t.Errorf("rows\n%s\nof JSON\n%s", a, b)
	}
}

func thingEvents() []map[string]any {
	var events []map[string]any
	for _, e := range things {
		events = append(events, e.json())
	}
	return events
}

// The rows of Avro events are those of the same events in JSON, whose types, nulls, lists and fields outside of the schema they have.
func TestAvroIsAsJSON(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[7] = sr.Schema{Schema: thingAvro, References: []sr.SchemaReference{{Name: "com.example.Amount", Subject: "amount", Version: 3}}}
	registry.versions["amount/3"] = sr.Schema{Schema: amountAvro}
	var cache avro.SchemaCache
	if _, err := cache.Parse(amountAvro); err != nil {
		t.Fatal(err)
	}
	schema, err := cache.Parse(thingAvro)
	if err != nil {
		t.Fatal(err)
	}
	s := streamOf(feature.AvroEncoding, feature.EnvelopeFormat, thingColumns)
	var values [][]byte
	for _, e := range things {
		values = append(values, framed(7, e.avro(t, schema)))
	}
	sameAsJSON(t, NewDecoder(s, registry.open(t), time.Now), s, thingEvents(), values)
	if asked := fmt.Sprint(registry.asked); asked != "[/schemas/ids/7 /subjects/amount/versions/3]" {
		t.Errorf("the registry was asked %s", asked)
	}
}
