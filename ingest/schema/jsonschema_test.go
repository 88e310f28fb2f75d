package schema

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

const thingJSON = `{"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/schemas/event.json", "type": "object",
	"properties": {"envelope": {"$ref": "#/definitions/Envelope"}, "payload": {"allOf": [{"$ref": "#/definitions/Thing"}, {"required": ["thing_id"]}]}},
	"required": ["envelope", "payload"], "additionalProperties": false,
	"definitions": {
		"Envelope": {"type": "object", "properties": {"event_id": {"type": "string", "format": "uuid"}, "event_type": {"type": "string"}, "source": {"type": "string"},
			"occurred_at": {"type": "string", "format": "date-time"}, "delivery_attempt": {"type": "integer"}, "schema_version": {"type": "string"},
			"actor": {"oneOf": [{"type": "null"}, {"type": "string"}]}}},
		"Thing": {"type": "object", "properties": {
			"thing_id": {"type": "string"}, "name": {"type": "object", "properties": {"first": {"type": ["string", "null"]}}},
			"amount": {"oneOf": [{"type": "null"}, {"$ref": "amount.json"}]}, "seen": {"type": "string", "format": "date-time"},
			"born": {"type": "string", "format": "date"}, "active": {"type": ["boolean", "null"]}, "visits": {"type": "integer"}, "score": {"type": "number"},
			"rate": {"type": "number"}, "ref": {"type": "string"}, "level": {"enum": ["NONE", "SILVER", "GOLD"]},
			"tags": {"type": "array", "items": {"type": "string"}}, "prices": {"type": "array", "items": {"type": "number"}},
			"moments": {"type": "array", "items": {"type": "string", "format": "date-time"}}, "attributes": {"type": "object"}}}}}`

const amountJSON = `{"type": "object", "properties": {"value": {"type": "number"}, "unit": {"type": "string"}}}`

// Events by a JSON Schema are read as they are.
func TestJSONSchemaIsAsJSON(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[7] = sr.Schema{Schema: thingJSON, Type: sr.TypeJSON, References: []sr.SchemaReference{{Name: "amount.json", Subject: "amount", Version: 3}}}
	registry.versions["amount/3"] = sr.Schema{Schema: amountJSON, Type: sr.TypeJSON}
	s := streamOf(feature.JSONSchemaEncoding, feature.EnvelopeFormat, thingColumns)
	var values [][]byte
	for _, e := range thingEvents() {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, framed(7, text))
	}
	sameAsJSON(t, NewDecoder(s, registry.open(t), time.Now), s, thingEvents(), values)
}

// An event is held against its schema, and what is wrong with it is said without a value.
func TestJSONSchemaRefused(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Type: sr.TypeJSON, Schema: `{"type": "object", "required": ["thing_id"], "properties": {"thing_id": {"type": "string", "maxLength": 3},
		"updated_at": {"type": "string", "format": "date-time"}, "n": {"type": "array", "items": {"type": "integer", "multipleOf": 2}},
		"by": {"type": "object", "additionalProperties": {"type": "integer"}}}}`}
	d := NewDecoder(streamOf(feature.JSONSchemaEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	for _, c := range []struct {
		name, in string
		reason   feature.Reason
		detail   string
	}{
		{"good", `{"thing_id": "a", "updated_at": "2026-01-01T00:00:00Z", "n": [2, 4.0], "other": 1}`, "", ""},
		{"too long", `{"thing_id": "hunter2"}`, feature.BadValue, "thing_id: does not satisfy `maxLength` of the schema"},
		{"missing", `{}`, feature.BadValue, "does not satisfy `required` of the schema"},
		{"no time", `{"thing_id": "a", "updated_at": "hunter2"}`, feature.BadValue, "updated_at: does not satisfy `format`"},
		{"an item", `{"thing_id": "a", "n": [2, 3]}`, feature.BadValue, "n.1: does not satisfy `multipleOf`"},
		{"data as a name", `{"thing_id": "a", "by": {"hunter2": "x"}}`, feature.BadValue, "by: does not satisfy `type`"},
		{"a long number", `{"thing_id": "a", "n": [1e1000000000]}`, feature.BadValue, "a number with more digits"},
		{"not JSON", `{"thing_id": `, feature.Undecodable, "not of schema id 1: not one JSON value"},
		{"no bytes", ``, feature.Undecodable, "not one JSON value"},
		{"two", `{"thing_id": "a"} {}`, feature.Undecodable, "not one JSON value"},
		{"one name twice", `{"thing_id": "a", "thing_id": "b"}`, feature.Undecodable, "not one JSON value"},
		{"many values", `{"thing_id": "a", "n": [0` + strings.Repeat(",0", valuesMax) + `]}`, feature.TooLarge, ""},
		{"nested deeply", `{"thing_id": "a", "x": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, feature.Undecodable, ""},
	} {
		event, refusal, err := d.Decode(t.Context(), framed(1, []byte(c.in)))
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.reason == "" && (refusal != nil || string(event) != c.in):
			t.Errorf("%s: %s, %+v", c.name, event, refusal)
		case c.reason != "" && (refusal == nil || refusal.Reason != c.reason || !strings.Contains(refusal.Detail, c.detail) || strings.Contains(refusal.Detail, "hunter2")):
			t.Errorf("%s: %+v, want %s, %s", c.name, refusal, c.reason, c.detail)
		}
	}
}

// What a JSON Schema says of a column is found through references, combinations and schemas that hold themselves.
func TestJSONSchemaFit(t *testing.T) {
	row := func(more string) string {
		return `{"type": "object", "properties": {"thing_id": {"type": "string"}, "updated_at": {"type": "string"}` + more + `}}`
	}
	const ringed = `"definitions": {"B": {"type": "object", "properties": {"next": {"$ref": "#/definitions/B"}, "other": {"$ref": "#/definitions/B"}, "name": {"type": "integer"}}},
		"C": {"type": "object", "properties": {"next": {"$ref": "#/definitions/C"}, "other": {"$ref": "#/definitions/C"}, "name": {"type": ["integer", "string"]}}}}`
	for _, c := range []struct {
		name, schema, want string
	}{
		{"all columns are there", row(`, "amount": {"type": "number"}, "name": {"type": "string"}, "scores": {"type": "array", "items": {"type": "integer"}}`), ""},
		{"no column is", row(``), ""},
		{"anything", `true`, ""},
		{"any object", `{"type": "object"}`, ""},
		{"a map of text", `{"type": "object", "additionalProperties": {"type": "string"}}`, "amount: is a string"},
		{"a map of others", `{"type": "object", "additionalProperties": {"type": "boolean"}}`, "thing_id: is a boolean"},
		{"text where a decimal is", row(`, "amount": {"type": "string"}`), "amount: is a string, and column amount is decimal(6,2); have it written as number"},
		{"text among what a decimal may be", row(`, "amount": {"anyOf": [{"type": "number"}, {"type": "string"}]}`), "amount: is a string"},
		{"a constant", row(`, "amount": {"const": "x"}`), "amount: is a string"},
		{"values of an enum", row(`, "name": {"enum": ["a", null, 1]}`), "name: is a number"},
		{"two types of which one fits both", row(`, "amount": {"allOf": [{"type": ["string", "integer"]}, {"type": "number"}]}`), ""},
		{"types that exclude each other", row(`, "amount": {"allOf": [{"type": "string"}, {"type": "number"}]}`), ""},
		{"a list of others", row(`, "scores": {"type": "array", "items": {"type": "number"}}`), ""},
		{"a list of lists", row(`, "scores": {"type": "array", "items": {"type": "array"}}`), "scores: is an array"},
		{"a list of anything", row(`, "scores": {"type": "array"}`), ""},
		{"no key", `{"type": "object", "properties": {"updated_at": {"type": "string"}}}`, "thing_id: the schema lacks it"},
		{"no object", `{"type": "array"}`, "the schema: is an array, and an event is an object"},
		{"a ring", `{"allOf": [{"$ref": "#/definitions/B"}, {"$ref": "#/definitions/C"}, ` + row(``) + `], ` + ringed + `}`, "name: is an integer"},
		{"itself", row(`, "name": {"$ref": "#"}`), "name: is an object"},
		{"only itself", `{"$ref": "#"}`, ""},
		{"a choice of itself", `{"anyOf": [{"$ref": "#"}, ` + row(`, "amount": {"type": "boolean"}`) + `]}`, "amount: is a boolean"},
		{"what isn't there", row(`, "amount": {"$ref": "amount.json"}`), "the schema: can't be read: "},
		{"a file", row(`, "amount": {"$ref": "file:///etc/passwd"}`), "the schema: can't be read: "},
		{"no JSON", `{`, "the schema: can't be read: not one JSON value"},
		{"no schema", `{"type": "thing"}`, "the schema: can't be read: "},
	} {
		registry := newDouble(t)
		registry.schemas[1] = sr.Schema{Type: sr.TypeJSON, Schema: c.schema}
		s := streamOf(feature.JSONSchemaEncoding, feature.RowFormat, "thing_id string\nname string\namount decimal(6,2)\nscores list<int64>\n")
		_, _, err := NewDecoder(s, registry.open(t), time.Now).Decode(t.Context(), framed(1, []byte(`{`)))
		var incompatible *Incompatible
		if errors.As(err, &incompatible) != (c.want != "") || (incompatible != nil && !strings.HasPrefix(incompatible.Problems[0].String(), c.want)) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}
