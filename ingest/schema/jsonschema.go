package schema

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemaURL is where a schema without an $id stands, and what it refers to by name.
const schemaURL = "loam:///schema"

// jsonWriter takes events as they are, where their schema allows them.
type jsonWriter struct {
	schema *jsonschema.Schema
	shaped *shape
}

// parseJSONSchema reads a JSON Schema. What it refers to is found by the names of the registry's references, and nowhere else.
func parseJSONSchema(s *source) (*jsonWriter, error) {
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	loader := referenceLoader{}
	for _, d := range s.references {
		doc, err := readJSON([]byte(d.text))
		if err != nil {
			return nil, fmt.Errorf("%s, which it refers to: %w", d.name, err)
		}
		loader[d.name] = doc
	}
	c.UseLoader(loader)
	doc, err := readJSON([]byte(s.text))
	if err != nil {
		return nil, err
	}
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, err
	}
	compiled, err := c.Compile(schemaURL)
	if err != nil {
		return nil, err
	}
	return &jsonWriter{compiled, jsonShapes{map[*jsonschema.Schema]*shape{}, map[[2]*shape]*shape{}}.of(compiled)}, nil
}

// referenceLoader gives what a schema refers to, by the names of the references.
type referenceLoader map[string]any

// Load gives the document at an address: the one whose name the address is, or ends in.
func (l referenceLoader) Load(address string) (any, error) {
	plain, err := url.PathUnescape(address)
	if err != nil {
		plain = address
	}
	for name, doc := range l {
		if plain == name || strings.HasSuffix(plain, "/"+strings.TrimPrefix(name, "/")) {
			return doc, nil
		}
	}
	return nil, errors.New("the registry has no reference of this name")
}

// numberBytesMax and exponentDigitsMax bound numbers: what computes with them exactly must not be made to write them out.
const (
	numberBytesMax    = 1000
	exponentDigitsMax = 3
)

// jsonDepthMax bounds how deep JSON may be nested: what is wrong with a value is said by all that it stands in, also where another branch of the schema
// then takes it, so that memory is the square of the depth.
const jsonDepthMax = 1000

var (
	errNotJSON  = errors.New("not one JSON value")
	errDeepJSON = fmt.Errorf("it is nested deeper than %d", jsonDepthMax)
)

// readJSON reads JSON of at most valuesMax values, as the library for schemas wants it.
func readJSON(text []byte) (any, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(text))
	depth := 0
	for values := 0; ; values++ {
		token, err := d.ReadToken()
		if err != nil {
			return nil, errNotJSON
		}
		switch kind := token.Kind(); {
		case values > valuesMax:
			return nil, errTooLarge
		case kind == '0':
			number := strings.ToLower(token.String())
			_, exponent, _ := strings.Cut(number, "e")
			if len(number) > numberBytesMax || len(strings.TrimLeft(exponent, "+-0")) > exponentDigitsMax {
				return nil, badValue{errors.New("a number with more digits than any column has")}
			}
		}
		if depth = d.StackDepth(); depth == 0 {
			break
		} else if depth > jsonDepthMax {
			return nil, errDeepJSON
		}
	}
	if len(bytes.TrimLeft(text[d.InputOffset():], " \t\r\n")) > 0 {
		return nil, errNotJSON
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(text))
}

func (w *jsonWriter) writer(event []byte) (writer, []byte, error) { return w, event, nil }

func (w *jsonWriter) named(string) (writer, error) { return w, nil }

func (w *jsonWriter) shape() *shape { return w.shaped }

func (w *jsonWriter) json(_, event []byte) ([]byte, error) {
	instance, err := readJSON(event)
	if err != nil {
		return nil, err
	}
	if err := w.schema.Validate(instance); err != nil {
		var invalid *jsonschema.ValidationError
		if !errors.As(err, &invalid) {
			return nil, errors.New("it can't be held against the schema")
		}
		return nil, badValue{w.violation(invalid)}
	}
	return event[:len(event):len(event)], nil
}

// violation names a field and the keyword of the schema that it doesn't satisfy, without a value.
func (w *jsonWriter) violation(e *jsonschema.ValidationError) error {
	for len(e.Causes) > 0 {
		e = e.Causes[0]
	}
	keyword := "of the schema"
	if path := e.ErrorKind.KeywordPath(); len(path) > 0 {
		keyword = "`" + path[0] + "` of the schema"
	}
	wrong := fmt.Errorf("does not satisfy %s", keyword)
	if field := w.declared(e.InstanceLocation); field != "" {
		return fieldError{field, wrong}
	}
	return wrong
}

// declared is a location as far as the schema itself has its names: what else is in it is data.
func (w *jsonWriter) declared(location []string) string {
	var names []string
	at := w.shaped
	for _, name := range location {
		var next *shape
		for _, a := range at.alternatives() {
			switch {
			case a.kind == record && a.fields[name] != nil:
				next = a.fields[name]
			case a.kind == list:
				next = a.elem
			}
		}
		if next == nil {
			break
		}
		names, at = append(names, name), next
	}
	return strings.Join(names, ".")
}

// jsonShapes are the shapes of schemas that were read. What a schema says by conditions is left out, so that a shape allows
// what its schema does, and more.
type jsonShapes struct {
	built map[*jsonschema.Schema]*shape
	pairs map[[2]*shape]*shape // what has two shapes
}

// choicesMax bounds the alternatives of one value, and pairsMax what is told of values that have two shapes: beyond, a value may
// be anything.
const (
	choicesMax = 64
	pairsMax   = 10_000
)

// of gives a schema's shape, which is not filled in yet, and so anything, where the schema is inside of itself.
func (j jsonShapes) of(s *jsonschema.Schema) *shape {
	if known := j.built[s]; known != nil {
		return known
	}
	result := &shape{}
	j.built[s] = result
	all := j.own(s)
	if s.Ref != nil && all.kind == anything && len(all.choices)+len(s.AllOf)+len(s.AnyOf)+len(s.OneOf) == 0 {
		j.built[s] = j.of(s.Ref) // the very shape, which may be one that this is inside of
		return j.built[s]
	}
	if s.Ref != nil {
		all = j.both(all, j.of(s.Ref))
	}
	for _, part := range s.AllOf {
		all = j.both(all, j.of(part))
	}
	for _, choices := range [][]*jsonschema.Schema{s.AnyOf, s.OneOf} {
		if len(choices) > 0 {
			var any []*shape
			for _, c := range choices {
				any = append(any, j.of(c))
			}
			all = j.both(all, oneOf(any))
		}
	}
	*result = *all
	return result
}

// own is the shape by a schema's own keywords.
func (j jsonShapes) own(s *jsonschema.Schema) *shape {
	if s.Bool != nil {
		if !*s.Bool {
			return impossible()
		}
		return free()
	}
	var types []string
	switch {
	case s.Types != nil:
		types = s.Types.ToStrings()
	case s.Enum != nil:
		for _, v := range s.Enum.Values {
			types = append(types, typeOf(v))
		}
	case s.Const != nil:
		types = []string{typeOf(*s.Const)}
	case s.Properties != nil:
		types = []string{"object"}
	default:
		return free()
	}
	var all []*shape
	seen := map[string]bool{}
	for _, t := range types {
		if !seen[t] {
			seen[t] = true
			all = append(all, j.typed(s, t))
		}
	}
	return oneOf(all)
}

// typeOf is the type of a value that a schema lists.
func typeOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	default:
		return "number"
	}
}

// typed is the shape of a schema's values of one type.
func (j jsonShapes) typed(s *jsonschema.Schema, t string) *shape {
	switch t {
	case "null":
		return &shape{kind: nothing, name: t}
	case "boolean":
		return &shape{kind: flag, name: t}
	case "integer":
		return &shape{kind: whole, name: t}
	case "number":
		return &shape{kind: number, name: t}
	case "string":
		return &shape{kind: text, name: t}
	case "array":
		elem := free()
		if items, ok := s.Items.(*jsonschema.Schema); ok {
			elem = j.of(items)
		} else if s.Items2020 != nil && len(s.PrefixItems) == 0 {
			elem = j.of(s.Items2020)
		}
		return &shape{kind: list, name: t, elem: elem}
	default:
		r := &shape{kind: record, name: t, fields: map[string]*shape{}, open: s.AdditionalProperties != false || len(s.PatternProperties) > 0}
		for name, p := range s.Properties {
			r.fields[name] = j.of(p)
		}
		if values, ok := s.AdditionalProperties.(*jsonschema.Schema); ok && len(r.fields) == 0 && len(s.PatternProperties) == 0 {
			return &shape{kind: mapping, name: t, elem: j.of(values)}
		}
		return r
	}
}

func free() *shape { return &shape{kind: anything, name: "value of any type"} }

// oneOf is the shape of what has one of these.
func oneOf(all []*shape) *shape {
	switch {
	case len(all) == 1:
		return all[0]
	case len(all) == 0, len(all) > choicesMax:
		return free()
	}
	return &shape{choices: all, name: "choice"}
}

// both is the shape of what has two shapes, or more than that where it would take long to tell.
func (j jsonShapes) both(a, b *shape) *shape {
	pair := [2]*shape{a, b}
	if known := j.pairs[pair]; known != nil {
		return known // itself filled in yet or not
	}
	if len(j.pairs) > pairsMax {
		return free()
	}
	result := &shape{}
	j.pairs[pair] = result
	*result = *j.overlap(a, b)
	return result
}

func (j jsonShapes) overlap(a, b *shape) *shape {
	blank := func(s *shape) bool { return s.kind == anything && len(s.choices) == 0 } // also where it isn't filled in yet
	switch {
	case blank(a):
		return b
	case blank(b):
		return a
	case len(a.choices) > 0 || len(b.choices) > 0:
		return j.product(a, b)
	case a.kind == record && b.kind == record:
		return j.merged(a, b)
	case a.kind == list && b.kind == list:
		return &shape{kind: list, name: a.name, elem: j.both(a.elem, b.elem)}
	case a.kind == b.kind, a.kind == whole && b.kind == number, a.kind == record && b.kind == mapping:
		return a
	case a.kind == number && b.kind == whole, a.kind == mapping && b.kind == record:
		return b
	default:
		return impossible()
	}
}

// impossible is the shape of no value; null aside, which columns take.
func impossible() *shape { return &shape{kind: nothing, name: "value that its schema rules out"} }

// product are the shapes that one choice of each may have.
func (j jsonShapes) product(a, b *shape) *shape {
	left, right := a.alternatives(), b.alternatives()
	if len(left)*len(right) > choicesMax {
		return free()
	}
	var all []*shape
	for _, l := range left {
		for _, r := range right {
			null := l.kind == nothing && (r.kind == nothing || r.kind == anything) || r.kind == nothing && l.kind == anything
			if s := j.both(l, r); null || s.kind != nothing {
				all = append(all, s)
			}
		}
	}
	if len(all) == 0 {
		return impossible()
	}
	return oneOf(all)
}

// merged is a record with the fields of both.
func (j jsonShapes) merged(a, b *shape) *shape {
	m := &shape{kind: record, name: a.name, fields: map[string]*shape{}, open: a.open && b.open}
	for name, f := range a.fields {
		m.fields[name] = f
	}
	for name, f := range b.fields {
		if of := m.fields[name]; of != nil {
			f = j.both(of, f)
		}
		m.fields[name] = f
	}
	return m
}
