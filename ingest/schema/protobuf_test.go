package schema

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/loamdata/loam/feature"
)

const thingProto = `syntax = "proto3";
package example;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/type/date.proto";
import "google/type/decimal.proto";
import "example/amount.proto";

message Before {}
message Event {
  message Envelope {
    string event_id = 1;
    string event_type = 2;
    string source = 3;
    google.protobuf.Timestamp occurred_at = 4;
    int32 delivery_attempt = 5;
    string schema_version = 6;
    string actor = 7;
  }
  Envelope envelope = 1;
  Thing payload = 2;
}
message Thing {
  message Name { optional string first = 1; }
  message Step { string stage = 1; int32 days = 2; }
  message Attributes { string tier = 1; google.protobuf.Timestamp since = 2; }
  enum Level { NONE = 0; SILVER = 1; GOLD = 2; }
  string thing_id = 1;
  Name name = 2;
  Amount amount = 3;
  google.protobuf.Timestamp seen = 4;
  google.type.Date born = 5;
  google.protobuf.BoolValue active = 6;
  int64 visits = 7;
  double score = 8;
  float rate = 9;
  string ref = 10;
  Level level = 11;
  repeated string tags = 12;
  repeated google.type.Decimal prices = 13;
  repeated google.protobuf.Timestamp moments = 14;
  Attributes attributes = 15;
  repeated Step steps = 16;
  oneof footwear { string shoe = 17; string boot = 18; }
}`

const amountProto = `syntax = "proto3";
package example;
import "confluent/meta.proto";
import "confluent/type/decimal.proto";
message Amount {
  confluent.type.Decimal value = 1 [(confluent.field_meta) = { params: [{ key: "precision", value: "18" }] }];
  string unit = 2;
}`

// protobuf is the event as the library writes it.
func (e thing) protobuf(t *testing.T, m protoreflect.MessageDescriptor) []byte {
	t.Helper()
	event := e.json()
	payload := event["payload"].(map[string]any)
	born, err := time.Parse(time.DateOnly, e.born)
	if err != nil {
		t.Fatal(err)
	}
	payload["born"] = map[string]any{"year": born.Year(), "month": int(born.Month()), "day": born.Day()}
	prices := []any{}
	for _, p := range e.prices {
		prices = append(prices, map[string]any{"value": p})
	}
	payload["prices"] = prices
	if e.amount != nil {
		r, _ := new(big.Rat).SetString(*e.amount)
		unscaled := r.Mul(r, big.NewRat(10000, 1)).Num()
		value := unscaled.Bytes()
		if unscaled.Sign() < 0 {
			value = new(big.Int).Add(unscaled, new(big.Int).Lsh(big.NewInt(1), 16)).Bytes() // in two bytes
		}
		payload["amount"].(map[string]any)["value"] = map[string]any{"value": base64.StdEncoding.EncodeToString(value), "precision": 18, "scale": 4}
	}
	text, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	message := dynamicpb.NewMessage(m)
	if err := protojson.Unmarshal(text, message); err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// messageOf compiles a schema and gives one of its messages.
func messageOf(t testing.TB, s *source, name protoreflect.Name) protoreflect.MessageDescriptor {
	t.Helper()
	s.kind = sr.TypeProtobuf
	f, err := parseProtobuf(t.Context(), &feature.Stream{}, s)
	if err != nil {
		t.Fatal(err)
	}
	return f.file.Messages().ByName(name)
}

// The rows of Protobuf events are those of the same events in JSON.
func TestProtobufIsAsJSON(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[7] = sr.Schema{Schema: thingProto, Type: sr.TypeProtobuf, References: []sr.SchemaReference{{Name: "example/amount.proto", Subject: "amount", Version: 3}}}
	registry.versions["amount/3"] = sr.Schema{Schema: amountProto, Type: sr.TypeProtobuf}
	m := messageOf(t, &source{text: thingProto, references: []document{{"example/amount.proto", amountProto}}}, "Event")
	s := streamOf(feature.ProtobufEncoding, feature.EnvelopeFormat, thingColumns)
	var values [][]byte
	for _, e := range things {
		values = append(values, framed(7, e.protobuf(t, m), 1))
	}
	sameAsJSON(t, NewDecoder(s, registry.open(t), time.Now), s, thingEvents(), values)
}

const rowProto = `syntax = "proto3";
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/type/date.proto";
import "google/type/decimal.proto";
import "confluent/type/decimal.proto";
message Outer {
  message Thing {
    string thing_id = 1;
    google.protobuf.Timestamp updated_at = 2;
    google.protobuf.Struct about = 3;
    google.protobuf.Duration took = 4;
    google.type.Decimal price = 5;
    confluent.type.Decimal amount = 6;
    google.type.Date day = 7;
    map<int64, google.protobuf.BytesValue> parts = 8;
    repeated fixed32 numbers = 9;
    Thing next = 10;
    google.protobuf.ListValue list = 11;
    uint64 large = 12;
    Level level = 13;
  }
  enum Level { ZERO = 0; }
}`

// Messages whose meaning is known are written as what they mean, and others as objects; what is wrong is refused.
func TestProtobufValues(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Schema: rowProto, Type: sr.TypeProtobuf}
	m := messageOf(t, &source{text: rowProto}, "Outer").Messages().ByName("Thing")
	d := NewDecoder(streamOf(feature.ProtobufEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	event := func(text string) []byte {
		message := dynamicpb.NewMessage(m)
		if err := protojson.Unmarshal([]byte(`{"thing_id":"a"`+text+`}`), message); err != nil {
			t.Fatal(err)
		}
		b, err := proto.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		return framed(1, b, 0, 0)
	}
	const zeros = `"parts":{},"numbers":[],"large":0,"level":"ZERO"}`
	for _, c := range []struct{ name, in, want, reason string }{
		{"zeros", ``, `{"thing_id":"a",` + zeros, ""},
		{"anything", `,"about":{"b":[1,null,{"c":2.5e30}],"a":"x"}`, `{"thing_id":"a","about":{"a":"x","b":[1,null,{"c":2.5e+30}]},` + zeros, ""},
		{"list", `,"list":[true,[]]`, `{"thing_id":"a","parts":{},"numbers":[],"list":[true,[]],"large":0,"level":"ZERO"}`, ""},
		{"duration", `,"took":"-1.500s"`, `{"thing_id":"a","took":"-1.5s",` + zeros, ""},
		{"whole duration", `,"took":"100s"`, `{"thing_id":"a","took":"100s",` + zeros, ""},
		{"decimal", `,"price":{"value":"+007.50e-1"}`, `{"thing_id":"a","price":7.50e-1,` + zeros, ""},
		{"short decimal", `,"price":{"value":"-.5"}`, `{"thing_id":"a","price":-0.5,` + zeros, ""},
		{"point", `,"price":{"value":"5."}`, `{"thing_id":"a","price":5,` + zeros, ""},
		{"no decimal at all", `,"price":{}`, `{"thing_id":"a","price":0,` + zeros, ""},
		{"negative scale", `,"amount":{"value":"AQ==","scale":-2}`, `{"thing_id":"a","amount":100,` + zeros, ""},
		{"map", `,"parts":{"-2":"AAE=","1":"","10":"Ag=="}`, `{"thing_id":"a","parts":{"-2":"AAE=","1":"","10":"Ag=="},"numbers":[],"large":0,"level":"ZERO"}`, ""},
		{"inner", `,"next":{"thing_id":"b","numbers":[4294967295]}`,
			`{"thing_id":"a","parts":{},"numbers":[],"next":{"thing_id":"b","parts":{},"numbers":[4294967295],"large":0,"level":"ZERO"},"large":0,"level":"ZERO"}`, ""},
		{"large", `,"large":"18446744073709551615","level":7`, `{"thing_id":"a","parts":{},"numbers":[],"large":18446744073709551615,"level":7}`, ""},
		{"not a decimal", `,"price":{"value":"12 €"}`, "price: no decimal", "bad_value"},
		{"not a day", `,"day":{"year":2026,"month":2,"day":30}`, "day: no day", "bad_value"},
		{"a decimal of any scale", `,"amount":{"value":"AQ==","scale":2147483647}`, "amount: a decimal of more digits", "bad_value"},
	} {
		got, refusal, err := d.Decode(t.Context(), event(c.in))
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.reason != "":
			if refusal == nil || string(refusal.Reason) != c.reason || !strings.HasPrefix(refusal.Detail, c.want) {
				t.Errorf("%s: %s, %+v", c.name, got, refusal)
			}
		case refusal != nil || string(got) != c.want:
			t.Errorf("%s: %s, %+v\nwant %s", c.name, got, refusal, c.want)
		}
	}
	deep := []byte{0x0a, 1, 'a'}
	for range 2 * messagesMax {
		deep = protowire.AppendBytes([]byte{0x52}, deep)
	}
	for _, c := range []struct {
		name   string
		value  []byte
		reason feature.Reason
	}{
		{"no index", framed(1, nil), feature.Undecodable},
		{"another message", framed(1, nil, 0, 1), feature.Undecodable},
		{"a negative index", framed(1, nil, 0, -1), feature.Undecodable},
		{"a long index", framed(1, nil, make([]int, 1000)...), feature.Undecodable},
		{"half a field", framed(1, []byte{0x0a, 5, 'a'}, 0, 0), feature.Undecodable},
		{"a group that doesn't end", framed(1, []byte{0x0b}, 0, 0), feature.Undecodable},
		{"not UTF-8", framed(1, []byte{0x0a, 1, 0xff}, 0, 0), feature.Undecodable},
		{"a time beyond all", framed(1, append([]byte{0x12, 10, 0x08}, protowire.AppendVarint(nil, 1<<62)...), 0, 0), feature.BadValue},
		{"nested without end", framed(1, deep, 0, 0), feature.Undecodable},
		{"a map's key that comes again, of another type", framed(1, []byte{0x42, 7, 8, 1, 0x0a, 1, 'a', 0x12, 0}, 0, 0), feature.Undecodable},
		{"many messages", framed(1, bytes.Repeat([]byte{0x52, 0}, valuesMax+1), 0, 0), feature.TooLarge},
		{"many numbers", framed(1, protowire.AppendBytes([]byte{0x4a}, make([]byte, 4*valuesMax+4)), 0, 0), feature.TooLarge},
	} {
		got, refusal, err := d.Decode(t.Context(), c.value)
		if err != nil || refusal == nil || refusal.Reason != c.reason {
			t.Errorf("%s: %s, %+v, %v", c.name, got, refusal, err)
		}
	}
	unknown, refusal, err := d.Decode(t.Context(), framed(1, []byte{0x0a, 1, 'a', 0xa0, 0x1f, 5}, 0, 0))
	if err != nil || refusal != nil || !strings.Contains(string(unknown), `,"unknown fields":"oB8F"}`) {
		t.Errorf("%s, %+v, %v", unknown, refusal, err)
	}
}

// Whether a schema fits is decided message by message, and by what a message of a known name really is.
func TestProtobufFit(t *testing.T) {
	registry := newDouble(t)
	schema := func(id int, text string) {
		registry.schemas[id] = sr.Schema{Schema: "syntax = \"proto3\";\nimport \"google/protobuf/timestamp.proto\";\n" + text, Type: sr.TypeProtobuf}
	}
	const fixed = "string thing_id = 1; google.protobuf.Timestamp updated_at = 2; "
	schema(1, "message Thing { "+fixed+"double amount = 3; }\nmessage Fits { "+fixed+"int32 amount = 3; }")
	schema(2, "message Thing { "+fixed+"repeated string name = 3; }")
	schema(3, "message Thing { "+fixed+"string name = 3; repeated int64 scores = 4; }")
	schema(4, "message Thing { int64 thing_id = 1; }")
	schema(5, "import \"nosuch.proto\";")
	registry.schemas[6] = sr.Schema{Schema: rowAvro("")}
	registry.schemas[7] = sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; package google.protobuf; message Timestamp { string text = 1; }
		message Thing { string thing_id = 1; Timestamp updated_at = 2; }`}
	full := streamOf(feature.ProtobufEncoding, feature.RowFormat, "thing_id string\nname string\namount decimal(6,2)\nscores list<int64>\n")
	patch := *full
	patch.Payload = feature.PatchPayload
	for _, c := range []struct {
		name  string
		s     *feature.Stream
		id    int
		index []int
		want  string
	}{
		{"a double where a decimal is", full, 1, []int{0}, "amount: is a double, and column amount is decimal(6,2); have it written as confluent.type.Decimal of precision 6"},
		{"the other message", full, 1, []int{1}, ""},
		{"many where one is", full, 2, []int{0}, "name: is a repeated string, and column name is string; have it written as string"},
		{"no presence", full, 3, []int{0}, ""},
		{"no presence in a patch", &patch, 3, []int{0}, "name: has no presence, so that a patch can't leave it unchanged; declare the field optional in the schema"},
		{"another key", full, 4, []int{0}, "thing_id: is an int64, and column thing_id is string"},
		{"a file that isn't there", full, 5, []int{0}, "the schema: can't be read: "},
		{"another encoding", full, 6, []int{0}, "the schema: can't be read: it is of type AVRO, and the stream's encoding is protobuf"},
		{"a name that means something else", full, 7, []int{1}, "updated_at: is a google.protobuf.Timestamp, and the stream's updated_at is timestamp"},
	} {
		_, _, err := NewDecoder(c.s, registry.open(t), time.Now).Decode(t.Context(), framed(c.id, nil, c.index...))
		var incompatible *Incompatible
		if errors.As(err, &incompatible) != (c.want != "") || (incompatible != nil && !strings.HasPrefix(incompatible.Problems[0].String(), c.want)) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}
