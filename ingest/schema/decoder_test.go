package schema

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

// rowAvro is a schema of a flat record with these fields besides the key and the event time.
func rowAvro(fields string) string {
	return `{"type": "record", "name": "Thing", "fields": [{"name": "thing_id", "type": "string"},
		{"name": "updated_at", "type": {"type": "long", "logicalType": "timestamp-millis"}}` + fields + `]}`
}

// rowEvent is an event of the key a at 1970, and what follows of it.
func rowEvent(more ...byte) []byte { return append([]byte{2, 'a', 0}, more...) }

// A value that can't be decoded is refused with its reason, and the text of no reason holds a value.
func TestRefused(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Schema: rowAvro(`, {"name": "n", "type": ["null", "int", {"type": "enum", "name": "E", "symbols": ["A"]}]}, {"name": "s", "type": {"type": "map", "values": "string"}}`)}
	s := streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n")
	d := NewDecoder(s, registry.open(t), time.Now)
	for _, c := range []struct {
		name   string
		value  []byte
		reason feature.Reason
		detail string
	}{
		{"good", framed(1, rowEvent(0, 0)), "", ""},
		{"no bytes", nil, feature.Undecodable, "not framed"},
		{"no frame", []byte(`{"thing_id": "a"}`), feature.Undecodable, "not framed"},
		{"half a frame", framed(1, nil)[:4], feature.Undecodable, "not framed"},
		{"no such schema", framed(2, rowEvent(0, 0)), feature.UnknownSchemaID, "schema id 2"},
		{"no possible schema", framed(1<<31, rowEvent(0, 0)), feature.UnknownSchemaID, "schema id 2147483648"},
		{"no event", framed(1, nil), feature.Undecodable, "thing_id: the bytes end"},
		{"half an event", framed(1, rowEvent(0)), feature.Undecodable, "s: the bytes end"},
		{"more than an event", framed(1, rowEvent(0, 0, 7)), feature.Undecodable, "1 bytes are left"},
		{"no such branch", framed(1, rowEvent(6, 0)), feature.Undecodable, "n: choice 3 of 3"},
		{"no such symbol", framed(1, rowEvent(4, 2, 0)), feature.Undecodable, "n: choice 1 of 1"},
		{"a longer int", framed(1, rowEvent(2, 0x80, 0x80, 0x80, 0x80, 0x20, 0)), feature.Undecodable, "n: an int of more than 32 bits"},
		{"a text of negative length", framed(1, rowEvent(0, 2, 1)), feature.Undecodable, "s: the bytes end"},
		{"a long text", framed(1, rowEvent(0, 2, 0xfe, 0xff, 0xff, 0xff, 0x0f)), feature.Undecodable, "s: the bytes end"},
		{"not UTF-8", framed(1, []byte{2, 0xff, 0, 0, 0}), feature.Undecodable, "thing_id: text that isn't UTF-8"},
	} {
		_, refusal, err := d.Decode(t.Context(), c.value)
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.reason == "" && refusal != nil:
			t.Errorf("%s: %+v", c.name, refusal)
		case c.reason != "" && (refusal == nil || refusal.Reason != c.reason || !strings.Contains(refusal.Detail, c.detail)):
			t.Errorf("%s: %+v, want %s, %s", c.name, refusal, c.reason, c.detail)
		}
	}
}

// A schema that doesn't fit is told before anything is decoded, once for each id, with field and remedy; one with more fields fits.
func TestFit(t *testing.T) {
	for _, c := range []struct {
		name, schema string
		want         []string // of each problem
	}{
		{"all columns are there", rowAvro(`, {"name": "amount", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 1}]}`), nil},
		{"no column is", rowAvro(``), nil},
		{"more than columns", rowAvro(`, {"name": "shoe", "type": {"type": "array", "items": "bytes"}}`), nil},
		{"an int is a decimal", rowAvro(`, {"name": "amount", "type": "int"}`), nil},
		{"always null", rowAvro(`, {"name": "amount", "type": "null"}`), nil},
		{"a map on the way", rowAvro(`, {"name": "born", "type": {"type": "map", "values": ["null", "string"]}}`), nil},
		{"a map of others on the way", rowAvro(`, {"name": "born", "type": {"type": "map", "values": "long"}}`), []string{"born.on: is a long, and column birthday is date"}},
		{"a map where text is", rowAvro(`, {"name": "name", "type": {"type": "map", "values": "string"}}`), []string{"name: is a map, and column name is string"}},
		{"text where a decimal is", rowAvro(`, {"name": "amount", "type": "string"}`),
			[]string{"amount: is a string, and column amount is decimal(6,2); have it written as bytes with logicalType decimal of precision 6 and scale 2 at most"}},
		{"text among what a decimal may be", rowAvro(`, {"name": "amount", "type": ["null", "int", "string"]}`), []string{"amount: is a string"}},
		{"a double where a decimal is", rowAvro(`, {"name": "amount", "type": "double"}`), []string{"amount: is a double"}},
		{"more digits", rowAvro(`, {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 7, "scale": 2}}`), []string{"amount: is a decimal(7,2)"}},
		{"a larger scale", rowAvro(`, {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 3}}`), []string{"amount: is a decimal(6,3)"}},
		{"a decimal that Avro takes for text", rowAvro(`, {"name": "amount", "type": {"type": "string", "logicalType": "decimal", "precision": 6}}`), []string{"amount: is a string"}},
		{"bytes where text is", rowAvro(`, {"name": "name", "type": "bytes"}`), []string{"name: is bytes"}},
		{"one where a list is", rowAvro(`, {"name": "scores", "type": "long"}`), []string{"scores: is a long, and column scores is list<int64>; have it written as an array of long"}},
		{"a list of others", rowAvro(`, {"name": "scores", "type": {"type": "array", "items": ["null", "double"]}}`), []string{"scores: is an array"}},
		{"text on the way", rowAvro(`, {"name": "born", "type": ["null", "string"]}`), []string{"born.on: born is a string, and column birthday is read inside of it"}},
		{"no key and no time", `{"type": "record", "name": "Thing", "fields": [{"name": "thing_id", "type": "null"}]}`,
			[]string{"thing_id: is always null, and no event can be read without column thing_id", "updated_at: the schema lacks it, and no event can be read without the stream's updated_at"}},
		{"no record", `"string"`, []string{"the schema: is a string, and an event is an object"}},
		{"no schema", `{"type": "record"}`, []string{"the schema: can't be read: "}},
	} {
		registry := newDouble(t)
		registry.schemas[3] = sr.Schema{Schema: c.schema}
		s := streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\nname string\namount decimal(6,2)\nbirthday date born.on\nscores list<int64>\n")
		d := NewDecoder(s, registry.open(t), time.Now)
		var incompatible *Incompatible
		for range 2 {
			_, refusal, err := d.Decode(t.Context(), framed(3, []byte("hunter2")))
			if errors.As(err, &incompatible) != (len(c.want) > 0) || (err == nil) != (refusal != nil) {
				t.Errorf("%s: %v, %+v", c.name, err, refusal)
			}
		}
		if len(registry.asked) != 1 {
			t.Errorf("%s: the registry was asked %v", c.name, registry.asked)
		}
		if len(c.want) == 0 {
			continue
		}
		if incompatible == nil || len(incompatible.Problems) != len(c.want) || !strings.Contains(incompatible.Error(), "schema id 3 does not fit stream thing") {
			t.Errorf("%s: %v", c.name, incompatible)
			continue
		}
		for i, want := range c.want {
			if got := incompatible.Problems[i].String(); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s, want %s", c.name, got, want)
			}
		}
	}
}

// A registry that can't be asked is away, whatever hinders it, and is asked again; one that doesn't have a schema isn't, for a while.
func TestAway(t *testing.T) {
	registry := newDouble(t)
	now := time.Now()
	d := NewDecoder(streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), func() time.Time { return now })
	decode := func() (*Refusal, error) {
		_, refusal, err := d.Decode(t.Context(), framed(1, rowEvent()))
		return refusal, err
	}
	for _, status := range []int{500, 502, 503, 429, 408, 404} {
		registry.with(func() { registry.broken = status })
		if refusal, err := decode(); refusal != nil || !errors.Is(err, ErrAway) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("HTTP %d: %+v, %v", status, refusal, err)
		}
	}
	registry.with(func() { registry.broken = 200 }) // of a proxy's page
	if refusal, err := decode(); refusal != nil || !errors.Is(err, ErrAway) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a page: %+v, %v", refusal, err)
	}
	for _, status := range []int{400, 401, 403} {
		registry.with(func() { registry.broken = status })
		if refusal, err := decode(); refusal != nil || err == nil || errors.Is(err, ErrAway) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("HTTP %d: %+v, %v", status, refusal, err)
		}
	}
	registry.with(func() { registry.broken = 0 })
	unknown := func() bool {
		refusal, err := decode()
		return err == nil && refusal != nil && refusal.Reason == feature.UnknownSchemaID
	}
	if !unknown() {
		t.Error("an unknown schema is known")
	}
	registry.with(func() { registry.schemas[1] = sr.Schema{Schema: rowAvro("")} })
	if !unknown() {
		t.Error("the registry was asked again at once")
	}
	now = now.Add(unknownFor)
	if refusal, err := decode(); refusal != nil || err != nil {
		t.Errorf("a schema that came: %+v, %v", refusal, err)
	}
	registry.Close()
	if refusal, err := decode(); refusal != nil || err != nil {
		t.Errorf("a schema that is known: %+v, %v", refusal, err)
	}
	if _, _, err := d.Decode(t.Context(), framed(9, nil)); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, _, err := d.Decode(ended, framed(9, nil)); !errors.Is(err, context.Canceled) || errors.Is(err, ErrAway) {
		t.Errorf("ended: %v", err)
	}
}

// What a schema refers to is fetched, and bounded; what lacks is told of the schema, and stops the stream.
func TestReferences(t *testing.T) {
	registry := newDouble(t)
	refers := func(schema, subject string) sr.Schema {
		return sr.Schema{Schema: schema, References: []sr.SchemaReference{{Name: subject, Subject: subject, Version: 1}}}
	}
	registry.schemas[1] = refers(rowAvro(`, {"name": "n", "type": "Lost"}`), "Lost")
	registry.schemas[2] = refers(rowAvro(``), "Loop")
	registry.versions["Loop/1"] = refers(`{"type": "enum", "name": "Loop", "symbols": ["A"]}`, "Loop")
	registry.schemas[3] = refers(rowAvro(`, {"name": "n", "type": "Many0"}`), "Many0")
	for i := range documentsMax + 1 {
		name := "Many" + strings.Repeat("0", i+1)
		registry.versions[name+"/1"] = refers(`{"type": "record", "name": "`+name+`", "fields": [{"name": "n", "type": "`+name+`0"}]}`, name+"0")
	}
	registry.schemas[4] = sr.Schema{Schema: rowAvro("") + strings.Repeat(" ", answerBytesMax)}
	d := NewDecoder(streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	for id, want := range map[int]string{1: "it refers to Lost", 2: "", 3: "it refers to 100 others", 4: "longer than"} {
		_, refusal, err := d.Decode(t.Context(), framed(id, rowEvent()))
		if (want == "") != (err == nil) || refusal != nil || (err != nil && (!errors.As(err, new(*Incompatible)) || !strings.Contains(err.Error(), want))) {
			t.Errorf("schema %d: %+v, %v, want %q", id, refusal, err, want)
		}
	}
}

// Credentials reach the registry, and nothing that is printed.
func TestCredentials(t *testing.T) {
	registry := newDouble(t)
	registry.user = "loam:hunter2"
	registry.schemas[1] = sr.Schema{Schema: rowAvro("")}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LOAM_TEST_PASSWORD", "hunter3")
	s := streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n")
	for _, c := range []struct {
		password feature.Credential
		want     string
	}{
		{feature.Credential{File: "secret"}, ""},
		{feature.Credential{Env: "LOAM_TEST_PASSWORD"}, "refuses loam's credentials (HTTP 401, error 40101)"},
	} {
		r, err := Open(feature.Registry{URL: registry.URL, Username: feature.Credential{Text: "loam"}, Password: c.password}, dir)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = NewDecoder(s, r, time.Now).Decode(t.Context(), framed(1, rowEvent()))
		if (err == nil) != (c.want == "") || (err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter"))) {
			t.Errorf("%v: %v", c.password, err)
		}
	}
	_, err := Open(feature.Registry{URL: registry.URL, Username: feature.Credential{Text: "loam"}, Password: feature.Credential{Env: "LOAM_TEST_NONE"}}, dir)
	if err == nil || !strings.Contains(err.Error(), "registry.password of loam.yaml: the environment variable LOAM_TEST_NONE is not set") {
		t.Error(err)
	}
}

// Few bytes become no more JSON than an event may have.
func TestBounded(t *testing.T) {
	registry := newDouble(t)
	registry.schemas[1] = sr.Schema{Schema: rowAvro(`, {"name": "n", "type": {"type": "array", "items": "null"}}`)}
	registry.schemas[2] = sr.Schema{Schema: rowAvro(`, {"name": "n", "type": ["null", {"type": "record", "name": "Next", "fields": [{"name": "n", "type": ["null", "Next"]}]}]}`)}
	d := NewDecoder(streamOf(feature.AvroEncoding, feature.RowFormat, "thing_id string\n"), registry.open(t), time.Now)
	for _, c := range []struct {
		value  []byte
		reason feature.Reason
	}{
		{framed(1, rowEvent(0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0)), feature.TooLarge},
		{framed(2, rowEvent(bytes.Repeat([]byte{2}, 1_000_000)...)), feature.Undecodable},
	} {
		event, refusal, err := d.Decode(t.Context(), c.value)
		if err != nil || refusal == nil || refusal.Reason != c.reason || event != nil {
			t.Errorf("%+v, %v, want %s", refusal, err, c.reason)
		}
	}
}
