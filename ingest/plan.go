package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// node is one member of the payload or record that a stream reads, or leads to some that it does.
type node struct {
	name     string
	children map[string]*node
	column   int  // index of the stream's column, or -1
	role     role // what else the value is
}

// role says what a field is besides a column.
type role uint8

const (
	eventTimeRole role = 1 << iota
	sequenceRole
	processedRole
	idRole
)

// fields are the values of one record by the stream's schema.
type fields struct {
	columns   []cell
	eventTime cell
	sequence  cell
	processed cell
	id        []byte
	extra     []extraField
	bad       string // the first field whose value doesn't fit, and why; "" for none
	badKey    bool   // whether that field is part of the key
}

// extraField is a field outside the schema.
type extraField struct {
	path []string
	raw  []byte
}

// plan reads records of one stream.
type plan struct {
	stream *feature.Stream
	root   *node
	key    []int // columns of the key, in its order
	path   []string
}

func newPlan(s *feature.Stream) *plan {
	p := &plan{stream: s, root: &node{column: -1}}
	for i, c := range s.Columns {
		n := p.root.at(c.Path)
		n.column = i
	}
	for _, k := range s.Key {
		p.key = append(p.key, slices.IndexFunc(s.Columns, func(c feature.Column) bool { return c.Name == k }))
	}
	for _, f := range []struct {
		name string
		role role
	}{{s.EventTime, eventTimeRole}, {s.Sequence, sequenceRole}, {s.ProcessedTime, processedRole}, {s.ID, idRole}} {
		if f.name == "" || (f.role == idRole && f.name == feature.PositionID) {
			continue
		}
		path := strings.Split(f.name, ".")
		if c, ok := s.Column(f.name); ok {
			path = c.Path
		}
		p.root.at(path).role |= f.role
	}
	return p
}

// at gives the node of a path, making those that lead to it.
func (n *node) at(path []string) *node {
	for _, name := range path {
		child := n.children[name]
		if child == nil {
			child = &node{name: name, column: -1}
			if n.children == nil {
				n.children = map[string]*node{}
			}
			n.children[name] = child
		}
		n = child
	}
	return n
}

func (f *fields) reset(columns int) {
	if cap(f.columns) < columns {
		f.columns = make([]cell, columns)
	}
	f.columns = f.columns[:columns]
	for i := range f.columns {
		f.columns[i] = cell{list: emptied(f.columns[i].list)}
	}
	f.eventTime, f.sequence, f.processed = cell{}, cell{}, cell{}
	f.id, f.extra, f.bad, f.badKey = nil, emptied(f.extra), "", false
}

// emptied keeps the memory of a list for the next record, unless it was an unusual one that needed much.
func emptied[T any](list []T) []T {
	if cap(list) > 1<<10 {
		return nil
	}
	return list[:0]
}

// errSyntax marks errors of the JSON itself, as against values that don't fit.
var errSyntax = errors.New("not JSON")

func syntax(err error) error {
	text := strings.TrimPrefix(err.Error(), "jsontext: ")
	if i := strings.Index(text, " within "); i >= 0 {
		text = text[:i] // what follows quotes the document
	}
	return fmt.Errorf("%w: %s", errSyntax, text)
}

// object reads the object that comes next in d, whose bytes are all, into f. It returns an error only for bad syntax.
func (p *plan) object(d *jsontext.Decoder, all []byte, n *node, f *fields, text bool) error {
	if _, err := d.ReadToken(); err != nil {
		return syntax(err)
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadValue()
		if err != nil {
			return syntax(err)
		}
		child, err := n.child(name)
		if err != nil {
			return syntax(err)
		}
		if child == nil {
			if err := p.extra(d, all, name, f); err != nil {
				return err
			}
			continue
		}
		p.path = append(p.path, child.name)
		err = p.member(d, all, child, f, text)
		p.path = p.path[:len(p.path)-1]
		if err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	if err != nil {
		return syntax(err)
	}
	return nil
}

func (n *node) child(quoted []byte) (*node, error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return n.children[string(quoted[1:len(quoted)-1])], nil
	}
	name, err := jsontext.AppendUnquote(nil, quoted)
	return n.children[string(name)], err
}

// member reads the value of a member that the stream reads.
func (p *plan) member(d *jsontext.Decoder, all []byte, n *node, f *fields, text bool) error {
	if n.children != nil && n.column < 0 && n.role == 0 {
		switch d.PeekKind() {
		case '{':
			return p.object(d, all, n, f, text)
		case 'n':
			if err := d.SkipValue(); err != nil {
				return syntax(err)
			}
		default:
			if err := d.SkipValue(); err != nil {
				return syntax(err)
			}
			p.refuse(f, errors.New("want an object"), false)
		}
		return nil
	}
	raw, err := value(d, all)
	if err != nil {
		return err
	}
	p.assign(n, raw, f, text)
	if n.children != nil && raw[0] == '{' {
		inner := jsontext.NewDecoder(bytes.NewBuffer(raw))
		return p.object(inner, raw, n, f, text)
	}
	return nil
}

// value reads the next value and gives its bytes inside all, which stay as long as the record does.
func value(d *jsontext.Decoder, all []byte) ([]byte, error) {
	v, err := d.ReadValue()
	if err != nil {
		return nil, syntax(err)
	}
	end := d.InputOffset()
	return all[end-int64(len(v)) : end : end], nil
}

// assign parses a value for the column and the roles of its node.
func (p *plan) assign(n *node, raw []byte, f *fields, text bool) {
	if n.column >= 0 {
		column := &p.stream.Columns[n.column]
		if err := f.columns[n.column].parse(raw, column, text); err != nil {
			p.refuse(f, err, p.isKey(n.column))
		}
	}
	if n.role&eventTimeRole != 0 {
		p.assignTyped(&f.eventTime, feature.Timestamp, raw, f, text)
	}
	if n.role&processedRole != 0 {
		p.assignTyped(&f.processed, feature.Timestamp, raw, f, text)
	}
	if n.role&sequenceRole != 0 {
		p.assignTyped(&f.sequence, p.sequenceKind(n, raw, text), raw, f, text)
	}
	if n.role&idRole != 0 {
		id, err := idText(raw)
		if err != nil {
			p.refuse(f, err, false)
		}
		f.id = id
	}
}

func (p *plan) assignTyped(c *cell, kind feature.Kind, raw []byte, f *fields, text bool) {
	*c = cell{state: present}
	if err := c.parseScalar(raw, feature.Type{Kind: kind}, text); err != nil {
		p.refuse(f, err, false)
	}
}

// sequenceKind is the column's kind, or for a sequence that is no column what its text says.
func (p *plan) sequenceKind(n *node, raw []byte, text bool) feature.Kind {
	if n.column >= 0 {
		return p.stream.Columns[n.column].Type.Kind
	}
	if raw[0] == '"' && len(raw) > 10 {
		if _, err := parseTime(raw[1:len(raw)-1], text); err == nil {
			return feature.Timestamp
		}
	}
	return feature.Int64
}

// idText is an event id as text: a string as it is, a number as it is written.
func idText(raw []byte) ([]byte, error) {
	switch {
	case raw[0] == 'n':
		return nil, nil
	case raw[0] == '"':
		return unquote(raw)
	case raw[0] == '-' || (raw[0] >= '0' && raw[0] <= '9'):
		return raw, nil
	default:
		return nil, errors.New("want a string or a number")
	}
}

func (p *plan) isKey(column int) bool {
	for _, k := range p.key {
		if k == column {
			return true
		}
	}
	return false
}

// refuse notes that the value at the current path doesn't fit. A key that doesn't outweighs the rest.
func (p *plan) refuse(f *fields, why error, key bool) {
	if f.bad == "" || (key && !f.badKey) {
		f.bad, f.badKey = strings.Join(p.path, ".")+": "+why.Error(), key
	}
}

// extra keeps a member outside the schema.
func (p *plan) extra(d *jsontext.Decoder, all, quotedName []byte, f *fields) error {
	name, err := unquote(bytes.Clone(quotedName))
	if err != nil {
		return syntax(err)
	}
	raw, err := value(d, all)
	if err != nil {
		return err
	}
	f.extra = append(f.extra, extraField{path: append(append([]string(nil), p.path...), string(name)), raw: raw})
	return nil
}

// extraJSON renders the fields outside the schema as one JSON object, members sorted, or nil without any.
func extraJSON(extra []extraField) ([]byte, error) {
	if len(extra) == 0 {
		return nil, nil
	}
	tree := map[string]any{}
	for _, e := range extra {
		m := tree
		for _, name := range e.path[:len(e.path)-1] {
			inner, ok := m[name].(map[string]any)
			if !ok {
				inner = map[string]any{}
				m[name] = inner
			}
			m = inner
		}
		m[e.path[len(e.path)-1]] = jsontext.Value(e.raw)
	}
	text := appendTree(nil, tree)
	v := jsontext.Value(text)
	if err := v.Format(jsontext.ReorderRawObjects(true)); err != nil {
		return nil, err
	}
	return v, nil
}

func appendTree(b []byte, tree map[string]any) []byte {
	b = append(b, '{')
	first := true
	for name, v := range tree {
		if !first {
			b = append(b, ',')
		}
		first = false
		b, _ = jsontext.AppendQuote(b, name)
		b = append(b, ':')
		switch v := v.(type) {
		case map[string]any:
			b = appendTree(b, v)
		case jsontext.Value:
			b = append(b, v...)
		}
	}
	return append(b, '}')
}
