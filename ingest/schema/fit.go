package schema

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
)

// Problem is one thing in which a schema doesn't fit a stream.
type Problem struct {
	Field  string `json:"field"` // as the schema has it, such as payload.amount.value
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

func (p Problem) String() string { return p.Field + ": " + p.What + "; " + p.Remedy }

// Incompatible is a writer's schema by which values of a stream can't be read.
type Incompatible struct {
	Stream   string
	ID       int
	Problems []Problem
}

func (e *Incompatible) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return fmt.Sprintf("schema id %d does not fit stream %s, and nothing that is written by it has been taken: %s", e.ID, e.Stream, strings.Join(lines, "\n  "))
}

// envelopeFields are what an envelope is read for, which of it must be there, and of what type it is.
var envelopeFields = []struct {
	name     string
	required bool
	kind     feature.Kind
}{
	{"event_id", true, feature.String}, {"event_type", true, feature.String}, {"source", true, feature.String},
	{"occurred_at", true, feature.Timestamp}, {"delivery_attempt", true, feature.Int64}, {"schema_version", true, feature.String},
	{"received_at", false, feature.Timestamp}, {"actor", false, feature.String}, {"reason", false, feature.String},
}

// fit tells in what a schema doesn't fit a stream, in the order in which the stream is declared. A column that the schema
// lacks is null, unless events can't be read without it; a field that no column reads is none of its business.
func fit(s *feature.Stream, root *shape) []Problem {
	f := &fitting{stream: s, root: root}
	if slices.ContainsFunc(root.alternatives(), func(a *shape) bool { return a.kind != record && a.kind != mapping && a.kind != anything }) {
		return []Problem{{Field: "the schema", What: "is " + article(root.alternatives()[0].name) + ", and an event is an object",
			Remedy: "have the topic written by the schema of a " + objectWord(s.Encoding)}}
	}
	if s.Format == feature.EnvelopeFormat {
		for _, e := range envelopeFields {
			f.field([]string{"envelope", e.name}, feature.Type{Kind: e.kind}, e.required, "the envelope's "+e.name, false)
		}
		f.prefix = []string{"payload"}
	}
	for _, c := range s.Columns {
		key := slices.Contains(s.Key, c.Name)
		if f.field(c.Path, c.Type, key || f.decisive(c.Name), "column "+c.Name, true) && s.Payload == feature.PatchPayload && !key {
			f.presence(c)
		}
	}
	for _, role := range []struct {
		name string
		t    feature.Type
	}{{s.EventTime, feature.Type{Kind: feature.Timestamp}}, {s.ProcessedTime, feature.Type{Kind: feature.Timestamp}}} {
		if role.name == "" {
			continue
		}
		path := strings.Split(role.name, ".")
		c, column := s.Column(role.name)
		if column {
			path = c.Path
		}
		if !column || c.Type != role.t {
			f.field(path, role.t, f.decisive(role.name), "the stream's "+role.name, false)
		}
	}
	if _, column := s.Column(s.Sequence); s.Sequence != "" && !column {
		f.sequence(strings.Split(s.Sequence, "."))
	}
	if s.ID != "" && s.ID != feature.PositionID {
		if _, column := s.Column(s.ID); !column && f.lacks(strings.Split(s.ID, ".")) {
			f.missing(strings.Split(s.ID, "."), "the stream's id", false)
		}
	}
	return f.problems
}

// fitting holds a schema against a stream.
type fitting struct {
	stream   *feature.Stream
	root     *shape
	prefix   []string
	problems []Problem
}

// decisive reports whether no event can be read without the field: a row's event time or id.
func (f *fitting) decisive(name string) bool {
	s := f.stream
	return s.Format == feature.RowFormat && (name == s.EventTime || (name == s.ID && s.ID != feature.PositionID))
}

func (f *fitting) lacks(path []string) bool {
	r := f.root.find(append(slices.Clone(f.prefix), path...))
	return len(r.found) == 0 && !r.open
}

func (f *fitting) missing(path []string, what string, column bool) {
	remedy := "add the field to the schema"
	if column {
		remedy += ", or say where else it stands with `path`"
	}
	f.problem(path, "the schema lacks it, and no event can be read without "+what, remedy)
}

func (f *fitting) problem(path []string, what, remedy string) {
	f.problems = append(f.problems, Problem{strings.Join(append(slices.Clone(f.prefix), path...), "."), what, remedy})
}

// field checks what stands at a path, of a column or of something else that is read, and reports whether it fits.
func (f *fitting) field(path []string, t feature.Type, required bool, what string, column bool) bool {
	r := f.root.find(append(slices.Clone(f.prefix), path...))
	switch {
	case r.blocked != "":
		at := strings.Join(append(slices.Clone(f.prefix), path...)[:r.at], ".")
		f.problem(path, fmt.Sprintf("%s is %s, and %s is read inside of it", at, article(r.blocked), what),
			fmt.Sprintf("have %s written as a %s", at, objectWord(f.stream.Encoding)))
		return false
	case len(r.found) == 0 && !r.open && required && r.null:
		f.problem(path, "is always null, and no event can be read without "+what, "give the field a type: "+wanted(f.stream.Encoding, t))
		return false
	case len(r.found) == 0 && !r.open && required:
		f.missing(path, what, column)
		return false
	}
	for _, s := range r.found {
		if !takes(t, s) {
			remedy := "have it written as " + wanted(f.stream.Encoding, t)
			if column {
				remedy += fmt.Sprintf(", or replace the column by one of another name that takes it, with `path: %s`", strings.Join(path, "."))
			}
			f.problem(path, fmt.Sprintf("is %s, and %s is %s", article(s.name), what, t), remedy)
			return false
		}
	}
	return true
}

// sequence checks a sequence that is no column: a whole number or a time.
func (f *fitting) sequence(path []string) {
	for _, s := range f.root.find(append(slices.Clone(f.prefix), path...)).found {
		if !takes(feature.Type{Kind: feature.Int64}, s) && !takes(feature.Type{Kind: feature.Timestamp}, s) {
			f.problem(path, fmt.Sprintf("is %s, and the stream's sequence is a whole number or a time", article(s.name)),
				"have it written as "+wanted(f.stream.Encoding, feature.Type{Kind: feature.Int64})+", or name another field as the sequence")
		}
	}
}

// presence checks that a patch can leave the column out.
func (f *fitting) presence(c feature.Column) {
	for _, s := range f.root.find(append(slices.Clone(f.prefix), c.Path...)).found {
		if s.implicit && s.kind != list && s.kind != mapping {
			f.problem(c.Path, "has no presence, so that a patch can't leave it unchanged", "declare the field optional in the schema")
			return
		}
	}
}

// takes reports whether values of a shape are values of a column's type, or may be: what depends on the value is refused
// event by event.
func takes(t feature.Type, s *shape) bool {
	if s.kind == anything || (t.Kind == feature.JSON && !t.List) {
		return true
	}
	if t.List {
		if s.kind != list {
			return false
		}
		for _, e := range s.elem.find(nil).found {
			if !takes(t.Elem(), e) {
				return false
			}
		}
		return true
	}
	switch t.Kind {
	case feature.Bool:
		return s.kind == flag
	case feature.Int64:
		return s.kind == whole || s.kind == number || (s.kind == decimal && s.scale == 0)
	case feature.Double:
		return s.kind == whole || s.kind == float || s.kind == number || s.kind == decimal
	case feature.Decimal:
		return s.kind == whole || s.kind == number ||
			(s.kind == decimal && (s.precision == 0 || (s.scale <= int(t.Scale) && s.precision-s.scale <= int(t.Precision-t.Scale))))
	case feature.Timestamp:
		return s.kind == moment || s.kind == text
	case feature.Date:
		return s.kind == date || s.kind == text
	default:
		return s.kind == text || s.kind == word
	}
}

// objectWord is what a schema language calls the type of an object.
func objectWord(e feature.Encoding) string {
	switch e {
	case feature.AvroEncoding:
		return "record"
	case feature.ProtobufEncoding:
		return "message"
	default:
		return "object"
	}
}

// wanted is what a schema language calls the values of a column's type.
func wanted(e feature.Encoding, t feature.Type) string {
	if t.List {
		inner := wanted(e, t.Elem())
		switch e {
		case feature.AvroEncoding:
			return "an array of " + inner
		case feature.ProtobufEncoding:
			return "repeated " + inner
		default:
			return "an array whose items are " + inner
		}
	}
	precision := fmt.Sprintf(" of precision %d and scale %d at most", t.Precision, t.Scale)
	words := map[feature.Kind][3]string{
		feature.Bool:      {"boolean", "bool", "boolean"},
		feature.Int64:     {"long", "int64", "integer"},
		feature.Double:    {"double", "double", "number"},
		feature.Decimal:   {"bytes with logicalType decimal" + precision, "confluent.type.Decimal" + precision, "number"},
		feature.Timestamp: {"long with logicalType timestamp-micros", "google.protobuf.Timestamp", "string with format date-time"},
		feature.Date:      {"int with logicalType date", "google.type.Date", "string with format date"},
		feature.JSON:      {"a record", "google.protobuf.Struct", "an object"},
		feature.String:    {"string", "string", "string"},
	}[t.Kind]
	switch e {
	case feature.AvroEncoding:
		return words[0]
	case feature.ProtobufEncoding:
		return words[1]
	default:
		return words[2]
	}
}

// article puts a or an before the name of a type, where it takes one.
func article(name string) string {
	if strings.HasPrefix(name, "bytes") {
		return name
	}
	if strings.ContainsRune("aeiou", rune(name[0])) {
		return "an " + name
	}
	return "a " + name
}
