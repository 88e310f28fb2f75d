package schema

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/loamdata/loam/feature"
)

// fuzzedAvro has a field of each type, and a record within itself.
const fuzzedAvro = `{"type": "record", "name": "R", "fields": [
	{"name": "choice", "type": ["null", "boolean", "int", "long", "float", "double", "bytes", "string", {"type": "map", "values": "R"}, {"type": "array", "items": ["null", "R"]}]},
	{"name": "decimals", "type": {"type": "array", "items": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 4}}},
	{"name": "fixed", "type": {"type": "fixed", "name": "F", "size": 2}}, {"name": "level", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
	{"name": "times", "type": {"type": "array", "items": [{"type": "int", "logicalType": "date"}, {"type": "long", "logicalType": "timestamp-micros"}]}},
	{"name": "of_day", "type": ["null", {"type": "int", "logicalType": "time-millis"}]}]}`

// No bytes make the reader of Avro panic, write what is no JSON or more than an event may be, or take what the library refuses.
func FuzzAvro(f *testing.F) {
	library := avro.MustParse(fuzzedAvro)
	w, err := parseAvro(&source{text: fuzzedAvro})
	if err != nil {
		f.Fatal(err)
	}
	for _, v := range []map[string]any{
		{"choice": nil, "decimals": []any{}, "fixed": []byte("ab"), "level": "B", "times": []any{}, "of_day": nil},
		{"choice": "text", "decimals": []any{json.Number("-1.5")}, "fixed": []byte("ab"), "level": "A", "times": []any{}, "of_day": 5},
	} {
		b, err := library.Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		inner := bytes.Clone(b)
		f.Add(append(append([]byte{18, 2, 2}, inner...), append([]byte{0}, b[1:]...)...)) // a list with itself
	}
	f.Add([]byte{18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0})
	f.Fuzz(func(t *testing.T, event []byte) {
		out, err := w.json(nil, event)
		if err != nil {
			return
		}
		if !jsontext.Value(out).IsValid() && !bytes.Contains(out, []byte(`"R":`)) && len(out) <= jsonBytesMax {
			// What is left is a map with a name twice, which the router refuses.
			if d := jsontext.NewDecoder(bytes.NewReader(out), jsontext.AllowDuplicateNames(true)); d.SkipValue() != nil {
				t.Fatalf("no JSON: %s", out)
			}
		}
		if len(out) > jsonBytesMax {
			t.Fatalf("%d bytes", len(out))
		}
		var v any
		if rest, err := library.Decode(event, &v); err != nil || len(rest) > 0 {
			t.Fatalf("the library refuses what became %s: %v, %d bytes left", out, err, len(rest))
		}
	})
}

// No bytes make the reader of Protobuf panic, write what is no JSON or more than an event may be; what the library takes it
// takes, unless a value has no meaning.
func FuzzProtobuf(f *testing.F) {
	m := messageOf(f, &source{text: rowProto}, "Outer")
	s := streamOf(feature.ProtobufEncoding, feature.RowFormat, "thing_id string\n")
	file, err := parseProtobuf(f.Context(), s, &source{kind: sr.TypeProtobuf, text: rowProto})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{4, 0, 0, 0x0a, 1, 'a', 0x12, 2, 8, 1})
	f.Add([]byte{4, 0, 0, 0x52, 4, 0x52, 2, 0x0a, 0, 0x4a, 4, 1, 2, 3, 4})
	f.Add([]byte{4, 0, 0, 0x32, 6, 0x0a, 1, 0xff, 0x18, 3, 0, 0x2a, 3, 0x0a, 1, '5', 0x1a, 4, 0x0a, 2, 0x12, 0})
	f.Add([]byte{4, 0, 0, 0x42, 7, 8, 1, 0x0a, 1, 'a', 0x12, 0})
	f.Add([]byte{0, 0x42, 4, 8, 1, 0x12, 0, 0x5a, 4, 0x0a, 2, 0x20, 1})
	f.Fuzz(func(t *testing.T, event []byte) {
		w, event, err := file.writer(event)
		if err != nil {
			return
		}
		out, err := w.json(nil, event)
		if err != nil {
			return
		}
		if len(out) > jsonBytesMax || !jsontext.Value(out).IsValid() {
			t.Fatalf("%d bytes: %.1000s", len(out), out)
		}
		message := m
		if w != file.of(m) {
			message = m.Messages().Get(0)
		}
		if err := proto.Unmarshal(event, dynamicpb.NewMessage(message)); err != nil {
			t.Fatalf("the library refuses what became %s: %v", out, err)
		}
	})
}

// No schema and no event make the reader of JSON Schema panic.
func FuzzJSONSchema(f *testing.F) {
	f.Add(amountJSON, []byte(`{"value": 1.5, "unit": "EUR"}`))
	f.Add(thingJSON, []byte(`{"envelope": {}, "payload": {}}`))
	f.Add(`{"anyOf": [{"$ref": "#"}, {"type": "object", "properties": {"thing_id": {"enum": ["a", 1]}}}], "definitions": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#/definitions/a"}]}}}`, []byte(`{}`))
	s := streamOf(feature.JSONSchemaEncoding, feature.EnvelopeFormat, thingColumns)
	f.Fuzz(func(t *testing.T, text string, event []byte) {
		if len(text) > 10_000 || len(event) > 10_000 {
			return
		}
		w, err := parseJSONSchema(&source{text: text})
		if err != nil {
			return
		}
		_ = fit(s, w.shape())
		if out, err := w.json(nil, event); err == nil && !bytes.Equal(out, event) {
			t.Fatalf("%s became %s", event, out)
		}
	})
}

// No schema makes what reads it or judges it panic, of whatever language it is said to be.
func FuzzSchema(f *testing.F) {
	for i, text := range []string{thingAvro, amountAvro, fuzzedAvro, rowAvro(""), rowProto, amountProto, amountJSON} {
		f.Add(byte(i), text)
	}
	f.Fuzz(func(t *testing.T, which byte, text string) {
		if len(text) > 10_000 {
			return
		}
		e := []feature.Encoding{feature.AvroEncoding, feature.ProtobufEncoding, feature.JSONSchemaEncoding}[which%3]
		s := streamOf(e, feature.RowFormat, thingColumns)
		l, err := parse(t.Context(), s, &source{kind: schemaType(e), text: text})
		if err != nil {
			return
		}
		if w, err := l.named(""); err == nil {
			_ = fit(s, w.shape())
		}
	})
}
