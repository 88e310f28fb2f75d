package verify

import (
	"context"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
)

// histories recomputes a view over history: of the changes that the label sees the last of each event time, in order, is a
// state or a gap that lasts until the next; aggregates go over these. Of patches it is what they make together, of each label
// something else, so some labels are looked at after the other.
func (v *viewCheck) histories(ctx context.Context, labels []*label, changes map[string][]*logged) ([][]wanted, error) {
	patches := v.stream.Payload == feature.PatchPayload
	if !patches {
		if err := v.conditions(ctx, changes); err != nil {
			return nil, err
		}
	}
	want := make([][]wanted, 0, len(labels))
	for len(want) < len(labels) {
		var steps [][]*logged // by label
		var all []*logged
		for _, l := range labels[len(want):] {
			if len(all) > stepsMax {
				break
			}
			steps = append(steps, nil)
			if l.at != nil {
				steps[len(steps)-1] = v.steps(changes[l.key], *l.at)
				all = append(all, steps[len(steps)-1]...)
			}
		}
		if patches {
			for i, s := range all {
				s.number = i
			}
			if err := v.conditions(ctx, map[string][]*logged{"": all}); err != nil {
				return nil, err
			}
		}
		for _, of := range steps {
			want = append(want, v.historiesOf(of, labels[len(want)].at))
		}
	}
	return want, nil
}

// stepsMax is the number of steps beyond which no further label is looked at together with those before it.
const stepsMax = 1 << 16

// historiesOf recomputes the features of a label.
func (v *viewCheck) historiesOf(steps []*logged, at *int64) []wanted {
	want := make([]wanted, len(v.features))
	for n, f := range v.features {
		aggregate, window := v.historyAggregate(f.name)
		switch v.view.Aggregates[aggregate].Fn {
		case feature.Changes:
			want[n].value = v.changes(steps, aggregate, at, window)
		case feature.TimeInState:
			want[n].value = v.timeInState(steps, aggregate, at, window)
		case feature.DaysSinceChange:
			want[n].value = v.daysSince(steps, aggregate, at)
		}
	}
	return want
}

// historyAggregate finds the aggregate and the window of a feature; days since the last change have none.
func (v *viewCheck) historyAggregate(name string) (int, time.Duration) {
	for i, a := range v.view.Aggregates {
		if a.Fn == feature.DaysSinceChange && a.Name == name {
			return i, 0
		}
	}
	return v.aggregate(name)
}

// steps are the changes that a label sees, of each event time the last in the order, by event time; of patches what they and those
// before them make together.
func (v *viewCheck) steps(changes []*logged, at int64) []*logged {
	var seen []*logged
	for _, r := range changes {
		if v.sees(r, at) {
			seen = append(seen, r)
		}
	}
	slices.SortFunc(seen, inOrder)
	if v.stream.Payload == feature.PatchPayload {
		seen = v.whole(seen)
	}
	var steps []*logged
	for i, r := range seen {
		if i+1 == len(seen) || seen[i+1].at > r.at {
			steps = append(steps, r)
		}
	}
	return steps
}

// begins reports whether a version begins at a step that an aggregate counts: the entity is there, the condition holds, and
// before it was not there or what the aggregate looks at was another.
func (v *viewCheck) begins(steps []*logged, i, aggregate int) bool {
	if steps[i].deleted || steps[i].conditions[aggregate] != true {
		return false
	}
	if i == 0 || steps[i-1].deleted {
		return true
	}
	for n, c := range v.stream.Columns {
		looked := v.stream.Tracked(c.Name)
		if column := v.view.Aggregates[aggregate].Column; column != "" {
			looked = c.Name == column
		}
		if looked && !sameValue(steps[i].values[n], steps[i-1].values[n], 0) {
			return true
		}
	}
	return false
}

func (v *viewCheck) changes(steps []*logged, aggregate int, at *int64, window time.Duration) int64 {
	n := int64(0)
	for i, s := range steps {
		if s.at >= windowStart(*at, window) && v.begins(steps, i, aggregate) {
			n++
		}
	}
	return n
}

// timeInState is in seconds.
func (v *viewCheck) timeInState(steps []*logged, aggregate int, at *int64, window time.Duration) float64 {
	us := int64(0)
	for i, s := range steps {
		if s.deleted || s.conditions[aggregate] != true {
			continue
		}
		to := *at
		if i+1 < len(steps) {
			to = min(to, steps[i+1].at)
		}
		us += max(0, to-max(s.at, windowStart(*at, window)))
	}
	return float64(us) / 1e6
}

// daysSince is nil where no version has begun.
func (v *viewCheck) daysSince(steps []*logged, aggregate int, at *int64) any {
	for i := len(steps) - 1; i >= 0; i-- {
		if v.begins(steps, i, aggregate) {
			return float64(max(0, *at-steps[i].at)) / 86400e6
		}
	}
	return nil
}
