package feature

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Recall makes a project of definitions as they were kept, such as those of a training set's card: of the streams and the
// views with their entities, whatever the project's files say today. Where the tables are, and all else, is today's. The
// streams hold what readers of their tables need, and nothing of how events are read.
func Recall(today *Project, definitions []Definition, check CheckExpr) (*Project, error) {
	p := *today
	p.Streams, p.Entities, p.Views, p.Services, p.Datasets = nil, nil, nil, nil, nil
	var problems Problems
	l := &loader{project: &p, problems: &problems, onDemand: map[*View][]string{}}
	for _, d := range definitions {
		if d.Kind != StreamDefinition || p.Stream(d.Name) != nil {
			continue
		}
		s, err := recallStream(d)
		if err != nil {
			return nil, fmt.Errorf("read the kept definition of stream %s: %w", d.Name, err)
		}
		p.Streams = append(p.Streams, s)
	}
	for _, d := range definitions {
		if d.Kind != ViewDefinition || p.View(d.Name) != nil {
			continue
		}
		if err := l.recallView(d); err != nil {
			return nil, fmt.Errorf("read the kept definition of view %s: %w", d.Name, err)
		}
	}
	for _, v := range p.Views {
		if v.OnDemand == nil {
			l.checkView(v, check)
		}
	}
	for _, v := range p.Views {
		if v.OnDemand != nil {
			l.checkOnDemand(v, check)
		}
	}
	if err := problems.err(); err != nil {
		return nil, fmt.Errorf("read kept definitions: %w", err)
	}
	return &p, nil
}

func recallStream(d Definition) (*Stream, error) {
	var text struct {
		Kind      StreamKind `json:"kind"`
		Format    Format     `json:"format"`
		Topic     string     `json:"topic"`
		Key       []string   `json:"key"`
		ClusterBy string     `json:"cluster_by"`
		EventTime string     `json:"event_time"`
		Sequence  string     `json:"sequence"`
		Track     []string   `json:"track"`
		Payload   Payload    `json:"payload"`
		Columns   []struct {
			Name string   `json:"name"`
			Type string   `json:"type"`
			Path []string `json:"path"`
		} `json:"columns"`
	}
	if err := json.Unmarshal([]byte(d.Text), &text); err != nil {
		return nil, err
	}
	s := newStream(Place{File: "card"})
	s.Name, s.Kind, s.Format, s.Topic, s.Key, s.ClusterBy = d.Name, text.Kind, text.Format, text.Topic, text.Key, text.ClusterBy
	s.EventTime, s.Sequence = text.EventTime, text.Sequence
	if s.Kind == StateStream {
		s.Track, s.Payload = text.Track, text.Payload
		if s.Track == nil {
			s.Track = []string{}
		}
	}
	for _, c := range text.Columns {
		t, err := ParseType(c.Type)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", c.Name, err)
		}
		s.Columns = append(s.Columns, Column{Name: c.Name, Type: t, Path: c.Path})
	}
	return s, nil
}

// recallView reads a view's definition as if it stood in a file: its members are those of the file, but for what it says
// of its entity and its stream.
func (l *loader) recallView(d Definition) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(d.Text), &members); err != nil {
		return err
	}
	if members["on_demand"] == nil {
		if err := l.recallEntity(members["entity"], members["join_keys"]); err != nil {
			return err
		}
	} else if err := recallInputs(members); err != nil {
		return fmt.Errorf("on_demand: %w", err)
	}
	delete(members, "source")
	delete(members, "join_keys")
	if members["aggregates"] != nil {
		delete(members, "ttl") // which a windowed view doesn't have
		if err := recallAggregates(members); err != nil {
			return fmt.Errorf("aggregates: %w", err)
		}
	}
	text, err := json.Marshal(members)
	if err != nil {
		return err
	}
	r := l.reader("card, view " + d.Name)
	if root := r.document(text); root != nil {
		l.readView(r, root, "")
	}
	return nil
}

// recallEntity reads what a view's definition says of its entity.
func (l *loader) recallEntity(name, keys json.RawMessage) error {
	var entity string
	var joinKeys []string
	if err := json.Unmarshal(name, &entity); err != nil {
		return fmt.Errorf("entity: %w", err)
	}
	if err := json.Unmarshal(keys, &joinKeys); err != nil {
		return fmt.Errorf("join_keys: %w", err)
	}
	if e := l.project.Entity(entity); e == nil {
		l.project.Entities = append(l.project.Entities, &Entity{Name: entity, JoinKeys: joinKeys})
	} else if !slices.Equal(e.JoinKeys, joinKeys) {
		return fmt.Errorf("entity %s has the join keys %v there, and %v elsewhere", entity, joinKeys, e.JoinKeys)
	}
	return nil
}

// recallInputs leaves the types of a view on demand's inputs out, which a file doesn't say.
func recallInputs(members map[string]json.RawMessage) error {
	var onDemand struct {
		Inputs []struct {
			Feature Ref `json:"feature"`
		} `json:"inputs"`
		Request json.RawMessage `json:"request"`
	}
	if err := json.Unmarshal(members["on_demand"], &onDemand); err != nil {
		return err
	}
	inputs := []Ref{}
	for _, in := range onDemand.Inputs {
		inputs = append(inputs, in.Feature)
	}
	parts := map[string]any{"request": onDemand.Request}
	if len(inputs) > 0 {
		parts["inputs"] = inputs
	}
	text, err := json.Marshal(parts)
	members["on_demand"] = text
	return err
}

// recallAggregates leaves out the windows of aggregates that have none.
func recallAggregates(members map[string]json.RawMessage) error {
	var aggregates []map[string]any
	if err := json.Unmarshal(members["aggregates"], &aggregates); err != nil {
		return err
	}
	for _, a := range aggregates {
		if windows, ok := a["windows"].([]any); ok && len(windows) == 0 {
			delete(a, "windows")
		}
	}
	text, err := json.Marshal(aggregates)
	members["aggregates"] = text
	return err
}
