package lake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// rests is what of its stream's definitions a log or a history rests on. It is kept with the table, in [propertyStream],
// since the newest definition doesn't tell of columns that it no longer has. Its JSON is frozen.
type rests struct {
	Kind      feature.StreamKind `json:"kind"`
	Payload   feature.Payload    `json:"payload,omitempty"` // of a state stream
	Key       []string           `json:"key"`
	ClusterBy string             `json:"cluster_by"`
	Columns   []restsColumn      `json:"columns"` // the stream's own, also those that it once had
}

type restsColumn struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Tracked bool   `json:"tracked,omitempty"`
}

// restsOn is what a table made for the stream now rests on.
func restsOn(s *feature.Stream) rests {
	r := rests{Kind: s.Kind, Key: s.Key, ClusterBy: s.ClusterBy}
	if s.Kind == feature.StateStream {
		r.Payload = s.Payload
	}
	for _, c := range s.Columns {
		r.Columns = append(r.Columns, restsColumn{c.Name, c.Type.String(), s.Kind == feature.StateStream && s.Tracked(c.Name)})
	}
	return r
}

// readRests reads what a table rests on; it is nil of a table that doesn't say.
func readRests(properties iceberg.Properties) (*rests, error) {
	text, ok := properties[propertyStream]
	if !ok {
		return nil, nil
	}
	r := &rests{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("read property %s: %w", propertyStream, err)
	}
	return r, nil
}

func (r rests) text() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // text and booleans always encode
	}
	return string(text)
}

func (r *rests) column(name string) *restsColumn {
	if i := slices.IndexFunc(r.Columns, func(c restsColumn) bool { return c.Name == name }); i >= 0 {
		return &r.Columns[i]
	}
	return nil
}

// renamed is what the table rests on after renames.
func (r *rests) renamed(names map[string]string) *rests {
	if r == nil {
		return nil
	}
	now := func(name string) string {
		if to, ok := names[name]; ok {
			return to
		}
		return name
	}
	after := &rests{Kind: r.Kind, Payload: r.Payload, ClusterBy: now(r.ClusterBy)}
	for _, k := range r.Key {
		after.Key = append(after.Key, now(k))
	}
	for _, c := range r.Columns {
		c.Name = now(c.Name)
		after.Columns = append(after.Columns, c)
	}
	return after
}

// withDropped gives the stream with the columns that its tables have of definitions before, in which later rows are null.
// A history is made of all of them, so that what they held stays.
func withDropped(s *feature.Stream, r *rests) (*feature.Stream, error) {
	if r == nil {
		return s, nil
	}
	var dropped []feature.Column
	var tracked []string
	for _, c := range r.Columns {
		if _, declared := s.Column(c.Name); declared {
			continue
		}
		t, err := feature.ParseType(c.Type)
		if err != nil {
			return nil, fmt.Errorf("read property %s: column %s: %w", propertyStream, c.Name, err)
		}
		dropped = append(dropped, feature.Column{Name: c.Name, Type: t, Path: []string{c.Name}})
		if c.Tracked {
			tracked = append(tracked, c.Name)
		}
	}
	if dropped == nil {
		return s, nil
	}
	whole := *s
	whole.Columns = append(slices.Clone(s.Columns), dropped...)
	if s.Kind == feature.StateStream {
		whole.Track = []string{}
		for _, c := range s.Columns {
			if s.Tracked(c.Name) {
				whole.Track = append(whole.Track, c.Name)
			}
		}
		whole.Track = append(whole.Track, tracked...)
	}
	return &whole, nil
}

// evolution is what brings a table to a stream's definition.
type evolution struct {
	rename map[string]string // new names by old ones
	widen  []feature.Column
	add    []feature.Column
	rests  string // the property that the table shall have
}

func (e *evolution) nameBefore(name string) string {
	for old, now := range e.rename {
		if now == name {
			return old
		}
	}
	return name
}

// evolutionOf finds what brings the table to the stream's definition and to these columns, the stream's own first; nil
// where it is there. What the table can't follow is an error that says what to do instead.
func evolutionOf(base *table.Table, s *feature.Stream, columns []feature.Column) (*evolution, error) {
	name := strings.Join(base.Identifier(), ".")
	e := &evolution{}
	var err error
	if e.rename, err = renamesOf(base, name, s); err != nil {
		return nil, err
	}
	was, err := readRests(base.Properties())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	was, wants := was.renamed(e.rename), restsOn(s)
	if err := was.carry(name, wants); err != nil {
		return nil, err
	}
	for _, c := range columns {
		id := 0
		want := icebergType(c.Type, func() int { id++; return id })
		field, ok := base.Schema().FindFieldByName(e.nameBefore(c.Name))
		switch {
		case !ok:
			e.add = append(e.add, c)
		case sameType(field.Type, want):
		case widerDecimal(field.Type, want):
			e.widen = append(e.widen, c)
		default:
			return nil, cantBecome(name, c.Name, field.Type.String(), want.String())
		}
	}
	if was != nil {
		// Columns that the stream no longer has keep their places, so that the text changes only with what it says. What is
		// tracked changes when the history is derived anew.
		all := was.Columns
		for _, c := range wants.Columns {
			if old := was.column(c.Name); old != nil {
				c.Tracked = old.Tracked
				*old = c
			} else {
				all = append(all, c)
			}
		}
		wants.Columns = all
	}
	e.rests = wants.text()
	if len(e.rename)+len(e.widen)+len(e.add) == 0 && e.rests == base.Properties()[propertyStream] {
		return nil, nil
	}
	return e, nil
}

// renamesOf are the renames that the table has not followed yet, new names by old ones.
func renamesOf(base *table.Table, name string, s *feature.Stream) (map[string]string, error) {
	renames := map[string]string{}
	for _, c := range s.Columns {
		if c.RenamedFrom == "" {
			continue
		}
		_, old := base.Schema().FindFieldByName(c.RenamedFrom)
		_, now := base.Schema().FindFieldByName(c.Name)
		switch {
		case old && now:
			return nil, fmt.Errorf("column %s is renamed from %s, and table %s has both: remove renamed_from, or give the column a name that the table lacks",
				c.Name, c.RenamedFrom, name)
		case old:
			renames[c.RenamedFrom] = c.Name
		case !now:
			return nil, fmt.Errorf("column %s is renamed from %s, and table %s has neither: name in renamed_from what the table calls it",
				c.Name, c.RenamedFrom, name)
		}
	}
	return renames, nil
}

// carry says why a table that rests on r can't be that of a stream that wants other things.
func (r *rests) carry(name string, wants rests) error {
	if r == nil {
		return nil
	}
	const otherwise = "declare a new stream under another name"
	switch {
	case r.Kind != wants.Kind:
		return fmt.Errorf("table %s is that of a stream of kind %s, which can't become %s: %s", name, r.Kind, wants.Kind, otherwise)
	case r.Payload != wants.Payload:
		return fmt.Errorf("table %s is that of a stream with payload %s, which can't become %s: %s", name, r.Payload, wants.Payload, otherwise)
	case !slices.Equal(r.Key, wants.Key):
		return fmt.Errorf("table %s has the key %s, which can't become %s: %s", name, strings.Join(r.Key, ", "), strings.Join(wants.Key, ", "), otherwise)
	case r.ClusterBy != wants.ClusterBy:
		return fmt.Errorf("table %s is clustered by %s, which can't become %s: %s", name, r.ClusterBy, wants.ClusterBy, otherwise)
	}
	for _, c := range wants.Columns {
		old := r.column(c.Name)
		if old == nil {
			continue
		}
		// The table tells less of a type: it has one for text and JSON.
		from, err1 := feature.ParseType(old.Type)
		to, err2 := feature.ParseType(c.Type)
		if err1 != nil || err2 != nil || from != to && !feature.Widens(from, to) {
			return cantBecome(name, c.Name, old.Type, c.Type)
		}
	}
	return nil
}

func cantBecome(table, column, from, to string) error {
	return fmt.Errorf("column %s of table %s is %s and can't become %s: declare a column under another name, with path: %s, or a new stream under another name",
		column, table, from, to, column)
}

// retracked names the columns that a history which rests on r tracks and the stream doesn't, or the other way round, in the
// stream's order.
func (r *rests) retracked(s *feature.Stream) []string {
	if r == nil {
		return nil
	}
	var names []string
	for _, c := range s.Columns {
		if old := r.column(c.Name); old != nil && old.Tracked != s.Tracked(c.Name) {
			names = append(names, c.Name)
		}
	}
	return names
}

// Retracked names the columns that the stream's definition tracks and its history doesn't, or the other way round. Where there
// are any, [Lake.Rebuild] brings the history to the definition.
func (l *Lake) Retracked(ctx context.Context, s *feature.Stream) ([]string, error) {
	if s.Kind != feature.StateStream {
		return nil, nil
	}
	t, err := l.openTable(ctx, HistoryName(s.Name))
	if errors.Is(err, ErrNoTable) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	r, err := readRests(t.tbl.Properties())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name(), err)
	}
	renames, err := renamesOf(t.tbl, t.Name(), s)
	if err != nil {
		return nil, err
	}
	return r.renamed(renames).retracked(s), nil
}

// tracking refuses a history that was derived by other tracked columns than those of the stream.
func (t *Table) tracking(s *feature.Stream) error {
	r, err := readRests(t.tbl.Properties())
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name(), err)
	}
	if names := r.retracked(s); names != nil {
		return fmt.Errorf("%s was derived while %s was tracked otherwise: run `loam rebuild %s`", t.Name(), strings.Join(names, ", "), s.Name)
	}
	return nil
}

// retrackedText is what a history rests on, as its property says it, once it is derived by what the stream tracks. The stream
// is one with all columns that the table has of it.
func retrackedText(base *table.Table, s *feature.Stream) (string, error) {
	r, err := readRests(base.Properties())
	if err != nil {
		return "", err
	}
	if r == nil {
		return restsOn(s).text(), nil
	}
	for i, c := range r.Columns {
		r.Columns[i].Tracked = s.Tracked(c.Name)
	}
	return r.text(), nil
}
