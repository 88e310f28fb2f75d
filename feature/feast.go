package feature

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/twmb/murmur3"
)

// Layout is how the values of a view stand in Redis.
type Layout string

// Layouts of views. Both are frozen: docs/redis.md.
const (
	LoamLayout  Layout = ""      // loam's own
	FeastLayout Layout = "feast" // that of Feast's Redis online store, which a Feast deployment reads
)

// Fields of a hash in Feast's layout that tell of a view, which ends the name: the event time, which is Feast's, and the guard,
// which is loam's and which Feast doesn't read.
const (
	FeastTimePrefix  = "_ts:"
	FeastGuardPrefix = "_v:"
)

// FeastField is the field of a feature in Feast's layout: murmur3 of view:feature in 32 bits, little endian. The source is
// _mmh3 in feast/infra/online_stores/helpers.py.
func FeastField(view, name string) string {
	return string(binary.LittleEndian.AppendUint32(nil, murmur3.StringSum32(view+":"+name)))
}

// checkFeast refuses what Feast's layout can't hold.
func (l *loader) checkFeast(v *View, e *Entity, s *Stream) {
	field := "views." + v.Name
	if s.Payload == PatchPayload {
		l.problems.add(v.At, field+".layout", fmt.Sprintf("%s is a stream of patches, whose columns have an age each, and Feast's layout has one for the whole view", s.Name),
			"remove it, or use a stream whose events carry the whole state")
		return
	}
	for _, k := range e.JoinKeys {
		if c, ok := s.Column(k); ok && (c.Type.List || c.Type.Kind != String && c.Type.Kind != Int64) {
			l.problems.add(v.At, field+".layout", fmt.Sprintf("join key %s is %s, which loam does not write as a key of Feast", k, c.Type), "join by string or int64")
		}
	}
	for _, f := range v.Features {
		remedy := ""
		switch {
		case f.Type.List:
			remedy = "Feast's lists hold no nulls: write sql that gives a string or json, such as to_json(x)"
		case f.Type.Kind == Decimal:
			remedy = "Feast has no decimals to rely on: write sql that gives a string or a double, such as x::varchar"
		case f.Type.Kind == Timestamp:
			remedy = "Feast keeps whole seconds: write sql that gives an int64, such as epoch_us(x)"
		default:
			continue
		}
		l.problems.add(f.At, field+".features."+f.Name, fmt.Sprintf("it is %s, which Feast's layout can't hold", f.Type), remedy)
	}
}

// checkFeastFields refuses two fields of Feast's layout that are one: all views of a project share an entity's hash, and the
// features' names in it are hashes of 32 bits, which Feast doesn't check.
func (l *loader) checkFeastFields() {
	taken := map[string]string{}
	views := slices.DeleteFunc(slices.Clone(l.project.Views), func(v *View) bool { return v.Layout != FeastLayout })
	for _, v := range views { // a guard's name may have four bytes, too
		taken[FeastGuardPrefix+v.Name] = "the guard of " + v.Name
	}
	for _, v := range views {
		for _, f := range v.Features {
			ref, at := Ref{View: v.Name, Feature: f.Name}, FeastField(v.Name, f.Name)
			if other, collides := taken[at]; collides {
				l.problems.add(f.At, "views."+v.Name+".features."+f.Name,
					fmt.Sprintf("in Feast's layout %s has the field %x, and so has %s", ref, at, other), "rename one of them, or move one to a project of its own")
				continue
			}
			taken[at] = ref.String()
		}
	}
}
