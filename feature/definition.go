package feature

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// DefinitionKind says what a definition defines.
type DefinitionKind string

// Kinds of definitions, in the order in which they are applied.
const (
	StreamDefinition  DefinitionKind = "stream"
	EntityDefinition  DefinitionKind = "entity"
	ViewDefinition    DefinitionKind = "view"
	ServiceDefinition DefinitionKind = "service"
)

// Definition is one declared thing as text that is the same whatever file, order, comments or defaults it was written
// with. Applied definitions are kept in <ns>.definitions and in every dataset's card.
type Definition struct {
	Kind DefinitionKind `json:"kind"`
	Name string         `json:"name"`
	Text string         `json:"text"` // JSON, members sorted
	Hash string         `json:"hash"` // the first 16 hexadecimal digits of the text's SHA-256
}

// Definitions are those of everything in the project, sorted by kind in the order of application and by name.
func (p *Project) Definitions() []Definition {
	var all []Definition
	for _, s := range p.Streams {
		all = append(all, s.Definition())
	}
	for _, e := range p.Entities {
		all = append(all, define(EntityDefinition, e.Name, map[string]any{"name": e.Name, "join_keys": e.JoinKeys}))
	}
	for _, v := range p.Views {
		all = append(all, p.ViewDefinition(v))
	}
	for _, s := range p.Services {
		all = append(all, define(ServiceDefinition, s.Name, map[string]any{"name": s.Name, "features": refTexts(s.Features)}))
	}
	return all
}

func define(kind DefinitionKind, name string, body map[string]any) Definition {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(body); err != nil {
		panic(err) // maps of strings, numbers and lists of them always encode
	}
	line := bytes.TrimRight(text.Bytes(), "\n")
	sum := sha256.Sum256(line)
	return Definition{Kind: kind, Name: name, Text: string(line), Hash: hex.EncodeToString(sum[:8])}
}

// Definition is the stream's definition.
func (s *Stream) Definition() Definition {
	columns := make([]any, len(s.Columns))
	for i, c := range s.Columns {
		m := map[string]any{"name": c.Name, "type": c.Type.String(), "path": c.Path}
		put(m, "renamed_from", c.RenamedFrom, c.RenamedFrom != "")
		put(m, "enum", c.Enum, c.Enum != nil)
		put(m, "min", c.Min, c.Min != nil)
		put(m, "max", c.Max, c.Max != nil)
		columns[i] = m
	}
	body := map[string]any{
		"stream": s.Name, "kind": s.Kind, "format": s.Format, "topic": s.Topic, "key": s.Key, "columns": columns,
		"cluster_by": s.ClusterBy, "keyed": s.Keyed, "max_clock_skew": FormatDuration(s.MaxClockSkew),
		"allowed_lateness": FormatDuration(s.AllowedLateness),
	}
	put(body, "event_time", s.EventTime, s.EventTime != "")
	put(body, "sequence", s.Sequence, s.Sequence != "")
	put(body, "processed_time", s.ProcessedTime, s.ProcessedTime != "")
	put(body, "id", s.ID, s.ID != "")
	put(body, "load", s.Load, s.Full())
	put(body, "encoding", s.Encoding, s.Framed())
	put(body, "delete_when", s.DeleteWhen, s.DeleteWhen != "")
	if len(s.Mapping) > 0 {
		mapping := map[string]string{}
		for _, m := range s.Mapping {
			mapping[m.Name] = m.SQL
		}
		body["mapping"] = mapping
	}
	put(body, "snapshot_at", s.SnapshotAt, !s.SnapshotAt.IsZero())
	put(body, "dead_letter_topic", s.DeadLetterTopic, s.DeadLetterTopic != "")
	put(body, "event_types", s.EventTypes, s.Format == EnvelopeFormat)
	if s.Kind == StateStream {
		body["track"], body["payload"] = s.trackedColumns(), s.Payload
	}
	return define(StreamDefinition, s.Name, body)
}

func (s *Stream) trackedColumns() []string {
	var tracked []string
	for _, c := range s.Columns {
		if s.Tracked(c.Name) {
			tracked = append(tracked, c.Name)
		}
	}
	return tracked
}

// ViewDefinition is the view's definition together with what it means: the entity's keys and the parts of the stream
// that its values depend on. A changed hash makes the online values of the view invalid.
func (p *Project) ViewDefinition(v *View) Definition {
	if v.OnDemand != nil {
		return p.onDemandDefinition(v)
	}
	body := map[string]any{"name": v.Name, "entity": v.Entity, "stream": v.Stream, "ttl": FormatDuration(v.TTL)}
	put(body, "layout", v.Layout, v.Layout != LoamLayout)
	if e := p.Entity(v.Entity); e != nil {
		body["join_keys"] = e.JoinKeys
	}
	if s := p.Stream(v.Stream); s != nil {
		source := map[string]any{"key": s.Key, "kind": s.Kind, "event_time": s.EventTime, "sequence": s.Sequence, "payload": s.Payload}
		types := map[string]string{}
		for _, c := range s.Columns {
			types[c.Name] = c.Type.String()
		}
		source["columns"] = types
		if v.OverHistory(s) {
			source["track"] = s.trackedColumns() // a change of another column begins no version
		}
		body["source"] = source
	}
	if len(v.Features) > 0 {
		body["features"] = featureTexts(v)
	}
	if len(v.Aggregates) > 0 {
		list := make([]any, len(v.Aggregates))
		for i, a := range v.Aggregates {
			m := map[string]any{"name": a.Name, "fn": a.Fn, "windows": durationTexts(a.Windows)}
			put(m, "column", a.Column, a.Column != "")
			put(m, "where", a.Where, a.Where != "")
			list[i] = m
		}
		body["aggregates"] = list
	}
	return define(ViewDefinition, v.Name, body)
}

// onDemandDefinition is the definition of a view on demand, with the types of what it is made of.
func (p *Project) onDemandDefinition(v *View) Definition {
	inputs, request := []any{}, []any{}
	for _, r := range v.OnDemand.Inputs {
		inputs = append(inputs, map[string]any{"feature": r.String(), "type": p.FeatureType(r).String()})
	}
	for _, c := range v.OnDemand.Request {
		request = append(request, map[string]any{"name": c.Name, "type": c.Type.String()})
	}
	return define(ViewDefinition, v.Name, map[string]any{
		"name": v.Name, "on_demand": map[string]any{"inputs": inputs, "request": request}, "features": featureTexts(v),
	})
}

func featureTexts(v *View) []any {
	list := make([]any, len(v.Features))
	for i, f := range v.Features {
		list[i] = map[string]any{"name": f.Name, "type": f.Type.String(), "sql": f.Expr()}
	}
	return list
}

func put(m map[string]any, key string, value any, present bool) {
	if present {
		m[key] = value
	}
}

func refTexts(refs []Ref) []string {
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return texts
}

func durationTexts(ds []time.Duration) []string {
	texts := make([]string, len(ds))
	for i, d := range ds {
		texts[i] = FormatDuration(d)
	}
	return texts
}
