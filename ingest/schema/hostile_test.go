package schema

import (
	"bytes"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loamdata/loam/feature"
)

// Bounds of what a value may make its decoder allocate.
const (
	timesItsBytes = 16 // and those of the JSON that it becomes
	bytesAValue   = 1024
	bytesAtLeast  = 1 << 20
)

// hostile is a value of a topic, and the reason for which it is refused; "" where it is decoded.
type hostile struct {
	name   string
	value  []byte
	values int // that it has more than a few
	reason feature.Reason
}

// decodeAll decodes values by schema id 1, and holds that each becomes JSON or is refused for the reason that it should be, by memory in
// proportion to its bytes and values. A value of few bytes may be as much JSON as an event may, before it is refused.
func decodeAll(t *testing.T, e feature.Encoding, schema string, cases []hostile) {
	t.Helper()
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Type: schemaType(e), Schema: schema}
	d := NewDecoder(streamOf(e, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	var warm []byte
	if e == feature.ProtobufEncoding {
		warm = framed(1, nil, 0)
	} else {
		warm = framed(1, nil)
	}
	if _, _, err := d.Decode(t.Context(), warm); err != nil { // the schema is read once
		t.Fatal(err)
	}
	for _, c := range cases {
		var event []byte
		var refusal *Refusal
		var err error
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		event, refusal, err = d.Decode(t.Context(), c.value)
		runtime.ReadMemStats(&after)
		took := int(after.TotalAlloc - before.TotalAlloc)
		most := bytesAtLeast + timesItsBytes*(len(c.value)+len(event)) + bytesAValue*c.values
		if c.reason == feature.TooLarge {
			most += 6 * jsonBytesMax
		}
		why := feature.Reason("")
		if refusal != nil {
			why = refusal.Reason
		}
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case why != c.reason || refusal != nil && (refusal.Detail == "" || len(refusal.Detail) > 300):
			t.Errorf("%s: %.400v, want %q", c.name, refusal, c.reason)
		case refusal == nil && !jsontext.Value(event).IsValid():
			t.Errorf("%s: no JSON: %.200s", c.name, event)
		case took > most && !underRace:
			t.Errorf("%s: %d bytes allocated for a value of %d and JSON of %d, want at most %d", c.name, took, len(c.value), len(event), most)
		}
	}
}

// long is a number as Avro and Protobuf's sint64 write it.
func long(v int64) []byte { return protowire.AppendVarint(nil, protowire.EncodeZigZag(v)) }

func TestHostileAvro(t *testing.T) {
	const mib = 1 << 20
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, of := range []struct {
		typ   string // of the field n
		cases []hostile
	}{
		{`{"type": "array", "items": "null"}`, []hostile{
			{name: "2^62 items of no bytes", value: cat(long(1<<62), long(0)), reason: feature.TooLarge},
			{name: "-2^62 items of no bytes", value: cat(long(-1<<62), long(0), long(0)), reason: feature.TooLarge},
			{name: "the least count", value: cat(long(math.MinInt64), long(0)), reason: feature.Undecodable},
			{name: "the greatest count", value: cat(long(math.MaxInt64)), reason: feature.TooLarge},
			{name: "a negative count", value: cat(long(-2), long(math.MaxInt64), long(0))},
			{name: "many blocks", value: cat(bytes.Repeat(long(1), mib), long(0)), values: mib},
			{name: "blocks without an end", value: bytes.Repeat(long(1), mib), values: mib, reason: feature.Undecodable},
			{name: "a count of many bytes", value: bytes.Repeat([]byte{0xff}, mib), reason: feature.Undecodable},
		}},
		{`{"type": "array", "items": {"type": "array", "items": {"type": "record", "name": "None", "fields": []}}}`, []hostile{
			{name: "records of no bytes", value: cat(long(1), long(1<<62)), reason: feature.TooLarge},
			{name: "lists of no items", value: bytes.Repeat([]byte{2, 0}, mib/2), reason: feature.Undecodable},
			{name: "many lists", value: cat(bytes.Repeat([]byte{2, 0}, mib/2), long(0)), values: mib / 2},
		}},
		{`{"type": "map", "values": "null"}`, []hostile{
			{name: "2^62 names", value: long(1 << 62), reason: feature.Undecodable},
			{name: "many names", value: cat(long(mib/8), manyNames(mib/8), long(0)), values: mib / 8},
			{name: "a name of 2^62 bytes", value: cat(long(1), long(1<<62)), reason: feature.Undecodable},
			{name: "a name of -1 bytes", value: cat(long(1), long(-1)), reason: feature.Undecodable},
		}},
		{`"string"`, []hostile{
			{name: "a text of 2^62 bytes", value: long(1 << 62), reason: feature.Undecodable},
			{name: "a text of -2^63 bytes", value: long(math.MinInt64), reason: feature.Undecodable},
			{name: "10 MiB of text", value: cat(long(10*mib), bytes.Repeat([]byte("x"), 10*mib))},
			{name: "10 MiB of NUL", value: cat(long(10*mib), make([]byte, 10*mib)), reason: feature.TooLarge}, // as JSON it is six times that
			{name: "1 MiB of NUL", value: cat(long(mib), make([]byte, mib))},
			{name: "no UTF-8", value: cat(long(3), []byte{0xed, 0xa0, 0x80}), reason: feature.Undecodable},
			{name: "MBs behind it", value: cat(long(0), make([]byte, 10*mib)), reason: feature.Undecodable},
		}},
		{`["null", {"type": "record", "name": "Next", "fields": [{"name": "n", "type": ["null", "Next"]}]}]`, []hostile{
			{name: "a record within itself without end", value: bytes.Repeat([]byte{2}, 10*mib), reason: feature.Undecodable},
			{name: "a record within itself, deep", value: cat(bytes.Repeat([]byte{2}, 40), []byte{0})},
			{name: "a choice that isn't there", value: long(2), reason: feature.Undecodable},
			{name: "choice -1", value: long(-1), reason: feature.Undecodable},
			{name: "choice 2^62", value: long(1 << 62), reason: feature.Undecodable},
		}},
		{`{"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}`, []hostile{
			{name: "a decimal of many digits", value: cat(long(mib), bytes.Repeat([]byte{0x7f}, mib)), reason: feature.Undecodable},
			{name: "a decimal of 256 bytes", value: cat(long(256), bytes.Repeat([]byte{0x80}, 256))},
			{name: "a decimal of none", value: long(0)},
		}},
		{`"double"`, []hostile{
			{name: "NaN", value: []byte{1, 0, 0, 0, 0, 0, 0xf8, 0xff}},
			{name: "-Infinity", value: []byte{0, 0, 0, 0, 0, 0, 0xf0, 0xff}},
			{name: "-0", value: []byte{0, 0, 0, 0, 0, 0, 0, 0x80}},
			{name: "seven bytes", value: make([]byte, 7), reason: feature.Undecodable},
		}},
		{`{"type": "long", "logicalType": "timestamp-micros"}`, []hostile{
			{name: "the greatest time", value: long(math.MaxInt64)},
			{name: "the least time", value: long(math.MinInt64)},
			{name: "a long of 11 bytes", value: cat(bytes.Repeat([]byte{0x80}, 10), []byte{1}), reason: feature.Undecodable},
		}},
	} {
		for i := range of.cases {
			of.cases[i].value = framed(1, rowEvent(of.cases[i].value...))
		}
		decodeAll(t, feature.AvroEncoding, rowAvro(fmt.Sprintf(`, {"name": "n", "type": %s}`, of.typ)), of.cases)
	}
}

// manyNames are names of a map, without values.
func manyNames(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, 12)
		b = fmt.Appendf(b, "%06x", i)
	}
	return b
}

func TestHostileFrames(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Schema: rowAvro("")}
	d := NewDecoder(streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	for _, c := range []hostile{
		{name: "no bytes", value: []byte{}, reason: feature.Undecodable},
		{name: "one byte", value: []byte{0}, reason: feature.Undecodable},
		{name: "half an id", value: []byte{0, 0, 0, 1}, reason: feature.Undecodable},
		{name: "another first byte", value: append([]byte{1}, framed(1, rowEvent())[1:]...), reason: feature.Undecodable},
		{name: "JSON", value: []byte(`{"thing_id": "a"}`), reason: feature.Undecodable},
		{name: "10 MiB without a frame", value: bytes.Repeat([]byte{0xff}, 10<<20), reason: feature.Undecodable},
		{name: "an id that isn't there", value: framed(2, rowEvent()), reason: feature.UnknownSchemaID},
		{name: "the greatest id", value: append([]byte{0, 0xff, 0xff, 0xff, 0xff}, rowEvent()...), reason: feature.UnknownSchemaID},
		{name: "id 0", value: framed(0, rowEvent()), reason: feature.UnknownSchemaID},
		{name: "no event", value: framed(1, nil), reason: feature.Undecodable},
		{name: "half an event", value: framed(1, rowEvent()[:2]), reason: feature.Undecodable},
		{name: "an event", value: framed(1, rowEvent())},
	} {
		event, refusal, err := d.Decode(t.Context(), c.value)
		why := feature.Reason("")
		if refusal != nil {
			why = refusal.Reason
		}
		if err != nil || why != c.reason || (event == nil) == (why == "") {
			t.Errorf("%s: %s, %+v, %v, want %q", c.name, event, refusal, err, c.reason)
		}
	}
}

const hostileProto = `syntax = "proto2";
import "google/protobuf/timestamp.proto";
message Thing {
	optional string thing_id = 1;
	optional google.protobuf.Timestamp updated_at = 2;
	repeated int32 numbers = 3 [packed = true];
	repeated Thing next = 4;
	map<string, string> parts = 5;
	repeated group Part = 6 { repeated group Part2 = 7 { optional Thing thing = 8; } }
	repeated bool flags = 9;
	optional bytes blob = 10;
}`

func TestHostileProtobuf(t *testing.T) {
	const mib = 1 << 20
	field := func(number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	nested := func(n int, wrap func([]byte) []byte) []byte {
		var b []byte
		for range n {
			b = wrap(b)
		}
		return b
	}
	group := func(number protowire.Number) func([]byte) []byte {
		return func(b []byte) []byte {
			return protowire.AppendTag(append(protowire.AppendTag(nil, number, protowire.StartGroupType), b...), number, protowire.EndGroupType)
		}
	}
	starts := bytes.Repeat(protowire.AppendTag(nil, 100, protowire.StartGroupType), mib)
	entries := func(n int) []byte {
		var b []byte
		for i := range n {
			b = append(b, field(5, field(1, fmt.Appendf(nil, "%06x", i)))...)
		}
		return b
	}
	cases := []hostile{
		{name: "a length of 2^63", value: protowire.AppendVarint([]byte{0x0a}, 1<<63), reason: feature.Undecodable},
		{name: "a length of 2^31", value: protowire.AppendVarint([]byte{0x0a}, 1<<31), reason: feature.Undecodable},
		{name: "a length of 11 bytes", value: append([]byte{0x0a}, bytes.Repeat([]byte{0xff}, 11)...), reason: feature.Undecodable},
		{name: "field 0", value: []byte{0, 1}, reason: feature.Undecodable},
		{name: "a wire type that is none", value: []byte{0x0f, 1}, reason: feature.Undecodable},
		{name: "groups without end", value: starts, reason: feature.Undecodable},
		{name: "an end without a group", value: protowire.AppendTag(nil, 100, protowire.EndGroupType), reason: feature.Undecodable},
		{name: "unknown groups, deep", value: nested(9_000, group(100))},
		{name: "unknown groups, deeper", value: nested(20_000, group(100)), reason: feature.Undecodable},
		{name: "groups of the schema, deep", value: nested(100, func(b []byte) []byte { return group(6)(group(7)(field(8, b))) })},
		{name: "groups of the schema, deeper", value: nested(1_000, func(b []byte) []byte { return group(6)(group(7)(field(8, b))) }), reason: feature.Undecodable},
		{name: "messages, deeper", value: nested(20_000, func(b []byte) []byte { return field(4, b) }), reason: feature.Undecodable},
		{name: "packed numbers", value: field(3, make([]byte, valuesMax-10)), values: valuesMax},
		{name: "too many packed numbers", value: field(3, make([]byte, valuesMax+1)), reason: feature.TooLarge},
		{name: "10 MiB of packed numbers", value: field(9, make([]byte, 10*mib)), reason: feature.TooLarge},
		{name: "packed numbers that end within one", value: field(3, []byte{1, 0x80}), reason: feature.Undecodable},
		{name: "numbers that aren't packed", value: bytes.Repeat([]byte{0x18, 1}, valuesMax-10), values: valuesMax},
		{name: "messages of no bytes", value: bytes.Repeat([]byte{0x22, 0}, valuesMax-10), values: valuesMax},
		{name: "too many messages of no bytes", value: bytes.Repeat([]byte{0x22, 0}, valuesMax+1), reason: feature.TooLarge},
		{name: "entries of a map", value: entries(valuesMax / 3), values: valuesMax},
		{name: "one entry again and again", value: bytes.Repeat(field(5, field(1, []byte("k"))), valuesMax/3), values: valuesMax},
		{name: "a field again and again", value: bytes.Repeat(field(1, []byte("k")), valuesMax-10), values: valuesMax},
		{name: "10 MiB of unknown fields", value: field(100, make([]byte, 10*mib))},
		{name: "many unknown fields", value: bytes.Repeat([]byte{0xa0, 0x06, 1}, valuesMax-10)},
		{name: "10 MiB of bytes", value: field(10, make([]byte, 10*mib))},
		{name: "30 MiB of bytes", value: field(10, make([]byte, 30*mib)), reason: feature.TooLarge},
		{name: "text that isn't UTF-8", value: field(5, append(field(1, []byte("k")), field(2, []byte{0xff})...)), reason: feature.Undecodable},
	}
	for i := range cases {
		cases[i].value = framed(1, append(field(1, []byte("a")), cases[i].value...), 0)
	}
	decodeAll(t, feature.ProtobufEncoding, hostileProto, cases)
}

func TestHostileJSONSchema(t *testing.T) {
	const mib = 1 << 20
	nest := func(open, end string, n int) string { return strings.Repeat(open, n) + "1" + strings.Repeat(end, n) }
	items := func(item string, n int) string { return "[" + strings.Repeat(item+",", n) + item + "]" }
	distinct := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `{"a":[%d]},`, i)
		}
		return "[" + b.String() + "0]"
	}
	var cases []hostile
	for _, c := range []struct {
		name, rest string
		values     int
		reason     feature.Reason
	}{
		{name: "10 MiB of text", rest: `"z":"` + strings.Repeat("x", 10*mib) + `"`},
		{name: "items that are wrong", rest: `"even":` + items("1", valuesMax/2), values: valuesMax / 2, reason: feature.BadValue},
		{name: "items that are right", rest: `"even":` + items("2", valuesMax/2), values: valuesMax / 2},
		{name: "too many items", rest: `"even":` + items("2", valuesMax), reason: feature.TooLarge},
		{name: "unique items", rest: `"unique":` + distinct(valuesMax/8), values: valuesMax},
		{name: "items that are the same", rest: `"unique":` + items(`"x"`, valuesMax/2), values: valuesMax / 2, reason: feature.BadValue},
		{name: "a schema within itself", rest: `"tree":` + nest("[", "]", jsonDepthMax-1), values: 20 * jsonDepthMax}, // each of its errors names all above it
		{name: "a schema within itself, deeper", rest: `"tree":` + nest("[", "]", 9_000), reason: feature.Undecodable},
		{name: "deeper than JSON may be", rest: `"tree":` + nest("[", "]", 100_000), reason: feature.Undecodable},
		{name: "a pattern", rest: `"pattern":"` + strings.Repeat("a", mib) + `!"`, reason: feature.BadValue},
		{name: "a number of many digits", rest: `"even":[` + strings.Repeat("9", mib) + `]`, reason: feature.BadValue},
		{name: "a number of a great exponent", rest: `"even":[1e999999]`, reason: feature.BadValue},
		{name: "a key twice", rest: `"z":{"a":1,"a":2}`, reason: feature.Undecodable},
		{name: "a lone surrogate", rest: `"z":"\ud800"`, reason: feature.Undecodable},
		{name: "NaN", rest: `"z":NaN`, reason: feature.Undecodable},
	} {
		cases = append(cases, hostile{c.name, framed(1, []byte(`{"thing_id":"a","updated_at":"2026-01-01T00:00:00Z",`+c.rest+"}")), c.values, c.reason})
	}
	decodeAll(t, feature.JSONSchemaEncoding, `{"type": "object", "properties": {"thing_id": {"type": "string"}, "updated_at": {"type": "string"},
		"even": {"type": "array", "items": {"type": "integer", "multipleOf": 2}}, "unique": {"type": "array", "uniqueItems": true},
		"tree": {"$ref": "#/definitions/tree"}, "pattern": {"type": "string", "pattern": "^(a+)+$"}},
		"definitions": {"tree": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/definitions/tree"}}]}}}`, cases)
}
