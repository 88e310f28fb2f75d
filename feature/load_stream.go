package feature

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

var nameText = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// name notes a problem unless text can name a stream, a column, an entity, a view, a feature or a service.
func (r *reader) name(n *yaml.Node, field, text string) bool {
	switch {
	case !nameText.MatchString(text):
		r.problem(n, field, fmt.Sprintf("%q is not a name", text), "use lower-case letters, digits and _, starting with a letter, 63 at most")
	case strings.Contains(text, "__"):
		r.problem(n, field, fmt.Sprintf("%q has a double underscore", text), "use single ones: <view>__<feature> names the columns of training sets")
	default:
		return true
	}
	return false
}

func newStream(at Place) *Stream {
	return &Stream{At: at, Encoding: JSONEncoding, Payload: FullPayload, Load: ChangesLoad, MaxClockSkew: 5 * time.Minute, Keyed: true}
}

// loadStream reads one file of streams/: a declared stream, a replacement of a built-in, or an extension of one.
func (l *loader) loadStream(r *reader, root *yaml.Node) {
	var name string
	var extend bool
	keys := map[string]*yaml.Node{}
	if root.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(root.Content); i += 2 {
			keys[root.Content[i].Value] = root.Content[i+1]
		}
	}
	if n := keys["stream"]; n != nil {
		name = n.Value
	}
	if n := keys["extend"]; n != nil {
		r.boolean(&extend)(n, "extend")
	}
	builtin := l.builtins[name]
	if first, twice := l.declared[name]; twice && name != "" {
		r.problem(root, "stream", fmt.Sprintf("stream %s is declared twice, first in %s", name, first), "keep one file a stream")
		return
	}
	s := newStream(r.place(root))
	switch {
	case extend && builtin == nil:
		r.problem(keys["extend"], "extend", fmt.Sprintf("%q is not a built-in stream", name),
			"extend one of "+strings.Join(l.builtinNames(), ", ")+", or declare kind and format instead")
		return
	case extend:
		for _, fixed := range []string{"kind", "format", "key"} {
			if n := keys[fixed]; n != nil {
				r.problem(n, fixed, "an extension can't change it", "remove the line, or remove extend to replace the stream whole")
			}
		}
		copied := *builtin
		copied.Columns = slices.Clone(builtin.Columns)
		copied.At = s.At
		s = &copied
	case builtin != nil && (keys["kind"] == nil || keys["format"] == nil):
		r.problem(root, "stream", fmt.Sprintf("%s is a built-in stream", name),
			"add extend: true to add columns to it, or kind, format, key and columns to replace it whole")
		return
	}
	l.readStream(r, root, s)
	l.declared[s.Name] = s.At
	if i := slices.IndexFunc(l.project.Streams, func(o *Stream) bool { return o.Name == s.Name }); i >= 0 {
		l.project.Streams[i] = s
	} else {
		l.project.Streams = append(l.project.Streams, s)
	}
}

// readStream reads a stream's keys over what s holds already and checks what one file can tell.
func (l *loader) readStream(r *reader, root *yaml.Node, s *Stream) {
	inherited := len(s.Columns)
	var extend bool
	seen := r.mapping(root, "", fields{
		"stream":           r.str(&s.Name),
		"extend":           r.boolean(&extend),
		"kind":             enum(r, &s.Kind, StateStream, EventStream),
		"format":           enum(r, &s.Format, EnvelopeFormat, RowFormat, DebeziumFormat),
		"encoding":         enum(r, &s.Encoding, JSONEncoding, AvroEncoding, ProtobufEncoding, JSONSchemaEncoding),
		"topic":            r.str(&s.Topic),
		"key":              r.strs(&s.Key),
		"event_time":       r.str(&s.EventTime),
		"sequence":         r.str(&s.Sequence),
		"processed_time":   r.str(&s.ProcessedTime),
		"id":               r.str(&s.ID),
		"cluster_by":       r.str(&s.ClusterBy),
		"track":            r.strs(&s.Track),
		"payload":          enum(r, &s.Payload, FullPayload, PatchPayload),
		"event_types":      r.strs(&s.EventTypes),
		"allowed_lateness": r.duration(&s.AllowedLateness),
		"max_clock_skew":   r.duration(&s.MaxClockSkew),
		"keyed":            r.boolean(&s.Keyed),
		"delete_when": func(n *yaml.Node, field string) {
			if text, ok := r.text(n, field); ok {
				s.DeleteWhen, s.deleteAt = text, r.place(n)
			}
		},
		"snapshot_at": func(n *yaml.Node, field string) {
			text, ok := r.text(n, field)
			if !ok {
				return
			}
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				r.problem(n, field, fmt.Sprintf("%q is no time", text), "write it as 2026-11-01T00:00:00Z")
			}
			s.SnapshotAt = at.UTC()
		},
		"load":    enum(r, &s.Load, ChangesLoad, FullLoad),
		"mapping": func(n *yaml.Node, field string) { r.readMapping(n, field, s) },
		"examples": func(n *yaml.Node, field string) {
			s.Examples = nil
			r.sequence(n, field, func(n *yaml.Node, field string) { r.readExample(n, field, s) })
		},
		"dead_letter_topic": func(n *yaml.Node, field string) {
			text, ok := r.text(n, field)
			if s.DeadLetterTopic, s.deadLetterTopic = text, r.place(n); ok && !topicText.MatchString(text) {
				r.problem(n, field, fmt.Sprintf("%q is not a topic's name", text), "use letters, digits, ., _ and -, 249 at most")
			}
		},
		"columns": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readColumn(r, n, field, s) })
		},
	})
	if seen == nil {
		return
	}
	at := func(key string) *yaml.Node {
		if n := seen[key]; n != nil {
			return n
		}
		return root
	}
	missing := func(key, remedy string) { r.problem(root, key, "missing", remedy) }
	if seen["stream"] == nil {
		missing("stream", "name the stream, such as stream: profile")
		return
	}
	if !r.name(seen["stream"], "stream", s.Name) {
		return
	}
	if s.Name == "feature" {
		r.problem(seen["stream"], "stream", "the log of a stream feature would be the table feature_log, which is that of what was served",
			"name it otherwise, and say topic: feature.v1 if that is its topic")
		return
	}
	if s.Kind == "" && seen["kind"] == nil {
		missing("kind", "say kind: state (each event carries the state of its entity) or kind: event (each event is a fact)")
	}
	if s.Format == "" && seen["format"] == nil {
		missing("format", "say format: envelope (canonical events), row (flat records) or debezium (its change events)")
	}
	if s.Topic == "" {
		s.Topic = s.Name + ".v1"
	}
	if !topicText.MatchString(s.Topic) {
		r.problem(at("topic"), "topic", fmt.Sprintf("%q is not a topic's name", s.Topic), "use letters, digits, ., _ and -, 249 at most")
	}
	if len(s.Columns) == inherited && !extend {
		missing("columns", "list the columns, such as {name: score, type: double}")
		return
	}
	if len(s.Key) == 0 {
		missing("key", "name the columns that identify an entity, such as key: [contact_id]")
	}
	for _, k := range s.Key {
		switch c, ok := s.Column(k); {
		case !ok:
			r.problem(at("key"), "key", fmt.Sprintf("stream %s has no column %q", s.Name, k), didYouMean(k, ColumnNames(s.Columns)))
		case !c.Type.Key():
			r.problem(at("key"), "key", fmt.Sprintf("column %s is %s, which can't be part of a key", k, c.Type),
				"use columns of string, int64, date or timestamp")
		}
	}
	if s.ClusterBy == "" && len(s.Key) > 0 {
		s.ClusterBy = s.Key[0]
	}
	if c, ok := s.Column(s.ClusterBy); s.ClusterBy != "" && !slices.Contains(s.Key, s.ClusterBy) {
		switch {
		case !ok:
			r.problem(at("cluster_by"), "cluster_by", fmt.Sprintf("stream %s has no column %q", s.Name, s.ClusterBy), didYouMean(s.ClusterBy, ColumnNames(s.Columns)))
		case !c.Type.Key():
			r.problem(at("cluster_by"), "cluster_by", fmt.Sprintf("column %s is %s", s.ClusterBy, c.Type), "use a column of string, int64, date or timestamp")
		case s.Kind == StateStream:
			r.problem(at("cluster_by"), "cluster_by", "a state stream is clustered by its key", "remove it")
		}
	}
	r.checkRenames(s, at)
	l.readStreamTime(r, s, seen, root)
	l.readStreamFormat(r, s, seen, root)
	if s.Full() {
		l.readFullLoad(r, s, seen)
	}
	if n := seen["encoding"]; n != nil && s.Framed() {
		l.readEncoding(r, s, n)
	}
	for _, t := range s.Track {
		switch _, ok := s.Column(t); {
		case !ok:
			r.problem(at("track"), "track", fmt.Sprintf("stream %s has no column %q", s.Name, t), didYouMean(t, ColumnNames(s.Columns)))
		case !s.trackable(t):
			r.problem(at("track"), "track", fmt.Sprintf("%s is part of the key, the event time or the sequence, which are never tracked", t), "remove it from track")
		}
	}
	if s.Kind == EventStream {
		for _, key := range []string{"track", "payload"} {
			if n := seen[key]; n != nil {
				r.problem(n, key, "an event stream has no versions", "remove it")
			}
		}
		if n := seen["delete_when"]; n != nil && s.Format == RowFormat {
			r.problem(n, "delete_when", "events are facts, which aren't deleted", "remove it, or declare kind: state")
		}
	}
}

var topicText = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// readStreamTime checks the fields that hold times and order.
func (l *loader) readStreamTime(r *reader, s *Stream, seen map[string]*yaml.Node, root *yaml.Node) {
	if s.EventTime == "" && s.Format == RowFormat {
		r.problem(root, "event_time", "missing", "name the field that says when the row was true, such as event_time: event_timestamp")
	}
	for _, f := range []struct {
		key, column string
		kinds       []Kind
		want        string
	}{
		{"event_time", s.EventTime, []Kind{Timestamp}, "timestamp"},
		{"processed_time", s.ProcessedTime, []Kind{Timestamp}, "timestamp"},
		{"sequence", s.Sequence, []Kind{Int64, Timestamp}, "int64 or timestamp"},
	} {
		c, ok := s.Column(f.column)
		if n := seen[f.key]; ok && n != nil && (c.Type.List || !slices.Contains(f.kinds, c.Type.Kind)) {
			r.problem(n, f.key, fmt.Sprintf("column %s is %s, not %s", c.Name, c.Type, f.want), "declare its type as "+f.want)
		}
	}
}

// readStreamFormat checks the keys that only one format has.
func (l *loader) readStreamFormat(r *reader, s *Stream, seen map[string]*yaml.Node, root *yaml.Node) {
	switch s.Format {
	case EnvelopeFormat:
		if s.EventTypes == nil {
			s.EventTypes = []string{camelCase(s.Name) + ".*"}
		}
		for _, t := range s.EventTypes {
			if Truncates(t) {
				r.problem(seen["event_types"], "event_types", t+" is refused: loam has no truncate", "remove it")
			}
		}
		if n := seen["id"]; n != nil {
			r.problem(n, "id", "an envelope brings its own event_id", "remove it")
		}
		if n := seen["processed_time"]; n != nil {
			r.problem(n, "processed_time", "an envelope says it in received_at", "remove it")
		}
		if n := seen["delete_when"]; n != nil {
			r.problem(n, "delete_when", "an envelope says it by its event type, <Name>.deleted", "remove it")
		}
	case RowFormat:
		if n := seen["event_types"]; n != nil {
			r.problem(n, "event_types", "rows have no event type", "remove it")
		}
		if s.ID == "" && s.Kind == EventStream {
			r.problem(root, "id", "missing", "say id: position (every row is an event of its own) or name the column with the event's id")
		}
	}
	if s.Format == DebeziumFormat {
		r.debeziumKeys(seen)
	} else if n := seen["snapshot_at"]; n != nil {
		r.problem(n, "snapshot_at", "only change events of Debezium come from snapshots", "remove it")
	}
	r.checkMapping(s, seen)
	if s.Payload == PatchPayload && s.Format == RowFormat && seen["payload"] != nil && len(s.Key) > 0 && s.ID == "" {
		// Two equal patches of a row are the same event unless something tells them apart.
		r.problem(seen["payload"], "payload", "a patch stream of rows needs an id", "name the column with the event's id, or say id: position")
	}
}

// debeziumKeys refuses what change events of Debezium say by themselves.
func (r *reader) debeziumKeys(seen map[string]*yaml.Node) {
	for _, key := range []struct{ name, problem, remedy string }{
		{"id", "the place in the source's log is a change's id", "remove it"},
		{"event_types", "op says what a change is", "remove it"},
		{"processed_time", "a change says when it was committed", "remove it"},
		{"delete_when", "op says what a delete is", "remove it"},
		{"keyed", "a change's record key is an object", "remove it"},
		{"load", "change events are changes", "remove it"},
		{"encoding", "change events are read as JSON", "have Connect write them by its JsonConverter, and remove it"},
	} {
		if n := seen[key.name]; n != nil {
			r.problem(n, key.name, key.problem, key.remedy)
		}
	}
}

// readFullLoad checks what a stream of full extracts can't be. It has no topic: only files have an end.
func (l *loader) readFullLoad(r *reader, s *Stream, seen map[string]*yaml.Node) {
	switch {
	case s.Kind == EventStream:
		r.problem(seen["load"], "load", "events are facts, which an extract can't take back", "remove it, or declare kind: state")
	case s.Format == EnvelopeFormat:
		r.problem(seen["load"], "load", "canonical events are changes", "remove it, or declare format: row")
	case s.Payload == PatchPayload:
		r.problem(seen["load"], "load", "a full extract has whole rows, no patches", "remove it, or payload: patch")
	case seen["topic"] != nil:
		r.problem(seen["topic"], "topic", "a stream with load: full has no topic", "remove it: `loam backfill` alone feeds the stream")
	}
}

// readEncoding checks that there is what a framed topic is read with.
func (l *loader) readEncoding(r *reader, s *Stream, n *yaml.Node) {
	switch {
	case s.Full():
		r.problem(n, "encoding", "a stream with load: full has no topic, and files are JSON, CSV or Parquet", "remove it")
	case l.project.Registry.URL == "":
		r.problem(n, "encoding", fmt.Sprintf("%s needs a registry, and the project has none", s.Encoding),
			"say where it is in "+ProjectFile+", such as registry: {url: https://registry.example.com}")
	case len(l.project.Broker.Seeds) == 0:
		r.problem(n, "encoding", fmt.Sprintf("%s is read from a broker, and topic folders hold JSON", s.Encoding),
			"name the brokers in "+ProjectFile+", such as broker: {seeds: [127.0.0.1:9092]}, or remove it")
	}
}

func (l *loader) readColumn(r *reader, n *yaml.Node, field string, s *Stream) {
	var c Column
	var typeText, pathText string
	var least, greatest string
	seen := r.mapping(n, field, fields{
		"name": r.str(&c.Name), "type": r.str(&typeText), "path": r.str(&pathText), "enum": r.strs(&c.Enum),
		"min": r.str(&least), "max": r.str(&greatest), "renamed_from": r.str(&c.RenamedFrom), "pii": nil,
	})
	if seen == nil {
		return
	}
	if seen["name"] == nil {
		r.problem(n, field+".name", "missing", "name the column")
		return
	}
	if !r.name(seen["name"], field+".name", c.Name) {
		return
	}
	if _, twice := s.Column(c.Name); twice {
		r.problem(n, field+".name", fmt.Sprintf("column %s stands twice in stream %s", c.Name, s.Name), "remove one of them")
		return
	}
	if !r.nameIsFree(seen["name"], field+".name", c.Name, s) {
		return
	}
	if reserved(c.Name) {
		r.problem(n, field+".name", fmt.Sprintf("loam itself uses the name %s", c.Name),
			fmt.Sprintf("name it otherwise and say where it is: {name: my_%s, path: %s, …}", c.Name, c.Name))
		return
	}
	if seen["type"] == nil {
		r.problem(n, field+".type", "missing", "give the column's type, such as string")
		return
	}
	t, err := ParseType(typeText)
	if err != nil {
		r.problem(seen["type"], field+".type", err.Error(), "")
		t = Type{Kind: String} // kept, so that references to the column cause no more problems
	}
	c.Type = t
	if n := seen["renamed_from"]; n != nil && !r.renamed(n, field+".renamed_from", c, s) {
		c.RenamedFrom = ""
	}
	if pathText == "" {
		pathText = c.Name
	}
	c.Path = strings.Split(pathText, ".")
	if slices.Contains(c.Path, "") {
		r.problem(seen["path"], field+".path", fmt.Sprintf("%q has an empty part", pathText), "write a path such as name.first")
	}
	if c.Enum != nil && t.Kind != String {
		r.problem(seen["enum"], field+".enum", fmt.Sprintf("column %s is %s", c.Name, t), "only strings have an enum")
	}
	for _, bound := range []struct {
		key, text string
		dst       **float64
	}{{"min", least, &c.Min}, {"max", greatest, &c.Max}} {
		if seen[bound.key] == nil {
			continue
		}
		v, err := strconv.ParseFloat(bound.text, 64)
		if err != nil || t.List || (t.Kind != Int64 && t.Kind != Double && t.Kind != Decimal) {
			r.problem(seen[bound.key], field+"."+bound.key, fmt.Sprintf("column %s is %s and the bound %q", c.Name, t, bound.text), "only numbers have bounds, and they are numbers")
			continue
		}
		*bound.dst = &v
	}
	s.Columns = append(s.Columns, c)
}
