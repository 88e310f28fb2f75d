package feature

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// renamed notes a problem unless a column may have been renamed from what it says, as far as the columns before it tell.
func (r *reader) renamed(n *yaml.Node, field string, c Column, s *Stream) bool {
	if n.Kind != yaml.ScalarNode || !r.name(n, field, c.RenamedFrom) {
		return false // what is no text was told
	}
	if c.RenamedFrom == c.Name {
		r.problem(n, field, fmt.Sprintf("column %s is renamed from its own name", c.Name), "name what it was called before, or remove the line")
		return false
	}
	if reserved(c.RenamedFrom) {
		r.problem(n, field, fmt.Sprintf("loam itself uses the name %s, so no column was called that", c.RenamedFrom),
			"name what the column was called before")
		return false
	}
	for _, o := range s.Columns {
		switch {
		case o.Name == c.RenamedFrom:
			r.problem(n, field, fmt.Sprintf("stream %s has a column %s, too", s.Name, o.Name),
				"remove renamed_from once the rename has been applied, or the column")
			return false
		case o.RenamedFrom == c.RenamedFrom:
			r.problem(n, field, fmt.Sprintf("column %s is renamed from %s already", o.Name, o.RenamedFrom), "remove one of the two")
			return false
		}
	}
	return true
}

// nameIsFree notes a problem where a column before says that it was renamed from this name.
func (r *reader) nameIsFree(n *yaml.Node, field, name string, s *Stream) bool {
	for _, o := range s.Columns {
		if o.RenamedFrom == name {
			r.problem(n, field, fmt.Sprintf("column %s is renamed from %s", o.Name, name),
				fmt.Sprintf("remove renamed_from of %s once the rename has been applied, or this column", o.Name))
			return false
		}
	}
	return true
}

// checkRenames refuses renames that a stream can't follow, and keys of the stream that still say an old name. Those that
// must name a column are found for naming none; these may name any field.
func (r *reader) checkRenames(s *Stream, at func(key string) *yaml.Node) {
	for _, c := range s.Columns {
		if c.RenamedFrom == "" {
			continue
		}
		if s.Payload == PatchPayload && s.Kind == StateStream {
			r.problem(at("columns"), "columns", fmt.Sprintf("column %s is renamed, and the log of a patch stream holds the names that its events carried", c.Name),
				fmt.Sprintf("keep the name and say where it stands now: {name: %s, path: %s, …}", c.RenamedFrom, c.Name))
		}
		for _, f := range []struct{ key, field string }{
			{"event_time", s.EventTime}, {"sequence", s.Sequence}, {"processed_time", s.ProcessedTime}, {"id", s.ID},
		} {
			if f.field == c.RenamedFrom {
				r.problem(at(f.key), f.key, fmt.Sprintf("column %s is renamed to %s", c.RenamedFrom, c.Name), fmt.Sprintf("say %s: %s", f.key, c.Name))
			}
		}
	}
}
