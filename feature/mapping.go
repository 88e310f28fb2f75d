package feature

import (
	"encoding/json"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// MappingColumns are what the expressions of a mapping read.
var MappingColumns = []Column{
	{Name: "record", Type: Type{Kind: JSON}}, {Name: "record_key", Type: Type{Kind: String}}, {Name: "record_time", Type: Type{Kind: Timestamp}},
}

// readMapping reads the expressions; their names are settled once all keys of the stream are read.
func (r *reader) readMapping(n *yaml.Node, field string, s *Stream) {
	s.Mapping = nil
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		r.problem(n, field, "want columns and their expressions", "write them as {email: \"record->>'$.contact.email'\"}")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(field, key.Value)
		if slices.ContainsFunc(s.Mapping, func(m Mapped) bool { return m.Name == key.Value }) {
			r.problem(key, at, "the key stands twice", "keep one of them")
			continue
		}
		if text, ok := r.text(value, at); ok {
			s.Mapping = append(s.Mapping, Mapped{Name: key.Value, SQL: text, At: r.place(value)})
		}
	}
}

// readExample reads a record and what it is to become.
func (r *reader) readExample(n *yaml.Node, field string, s *Stream) {
	e := Example{At: r.place(n)}
	document := func(dst *[]byte) func(*yaml.Node, string) {
		return func(n *yaml.Node, field string) {
			var v any
			err := n.Decode(&v)
			if err == nil {
				*dst, err = json.Marshal(v)
			}
			if err != nil {
				r.problem(n, field, "want a document as JSON writes it", "quote what YAML takes for something else, such as times and keys that are numbers")
			}
		}
	}
	seen := r.mapping(n, field, fields{"record": document(&e.Record), "key": r.str(&e.Key), "want": document(&e.Want), "refused": r.str(&e.Refused)})
	switch {
	case seen == nil:
	case seen["record"] == nil:
		r.problem(n, field+".record", "missing", "give the record as the topic holds it")
	case (seen["want"] == nil) == (seen["refused"] == nil):
		r.problem(n, field, "an example has want or refused, one of the two", "say want: {column: value}, or refused: with a part of the reason")
	default:
		s.Examples = append(s.Examples, e)
	}
}

// checkMapping settles what a mapping makes: every column, and the fields that the stream's keys name.
func (r *reader) checkMapping(s *Stream, seen map[string]*yaml.Node) {
	n := seen["mapping"]
	switch {
	case n == nil && seen["examples"] != nil:
		r.problem(seen["examples"], "examples", "there is no mapping that they are of", "remove them")
		return
	case n == nil || len(s.Mapping) == 0: // what is wrong with it was told
		return
	case s.Format != RowFormat:
		r.problem(n, "mapping", "a mapping makes rows", "say format: row; its event_time, id and delete_when read what the mapping makes")
		return
	case s.Framed():
		r.problem(n, "mapping", "a mapping reads JSON", "remove it, or encoding")
		return
	case s.Payload == PatchPayload:
		r.problem(n, "mapping", "a mapping makes whole rows, no patches", "remove it, or payload: patch")
		return
	}
	want := map[string]Type{}
	var names []string
	add := func(name string, t Type) {
		if _, known := want[name]; !known && name != "" {
			want[name] = t
			names = append(names, name)
		}
	}
	for _, c := range s.Columns {
		add(c.Path[0], c.Type)
		if len(c.Path) > 1 || c.Path[0] != c.Name {
			r.problem(n, "mapping", fmt.Sprintf("column %s has a path", c.Name), "remove it: the mapping says where its value comes from")
		}
	}
	add(s.EventTime, Type{Kind: Timestamp})
	add(s.ProcessedTime, Type{Kind: Timestamp})
	add(s.Sequence, Type{Kind: Int64})
	if s.ID != PositionID {
		add(s.ID, Type{Kind: String})
	}
	var known []Mapped
	for _, m := range s.Mapping {
		t, ok := want[m.Name]
		if !ok {
			r.problems.add(m.At, "mapping."+m.Name, fmt.Sprintf("stream %s has no column or field %q", s.Name, m.Name), didYouMean(m.Name, names))
			continue
		}
		m.Type = t
		known = append(known, m)
		delete(want, m.Name)
	}
	s.Mapping = known
	for _, name := range names {
		if _, left := want[name]; left {
			r.problem(n, "mapping."+name, "missing", "say what it is made of, or NULL")
		}
	}
}

// checkMapped checks the expressions of a mapping.
func (l *loader) checkMapped(s *Stream, expr CheckExpr) {
	for _, m := range s.Mapping {
		if _, err := expr(m.SQL, MappingColumns, m.Type); err != nil {
			l.problems.add(m.At, "mapping."+m.Name, err.Error(), "write an expression over record, record_key and record_time, such as record->>'$.name.first'")
		}
	}
}
