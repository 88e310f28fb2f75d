package feature

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// OutcomeLabel is a label column that a build makes: whether, within a time after the label's, something came true of the label's
// entity. It looks into the future on purpose, and no feature may.
type OutcomeLabel struct {
	Name   string // of the column
	Stream string
	When   string        // a checked boolean expression over the stream's columns
	Within time.Duration // the horizon: (t, t + Within] by event time
	At     Place
}

// Keys are the columns of a stream that identify the entity that outcomes over it are of: the key of a state stream, the
// column that an event stream is clustered by.
func (s *Stream) Keys() []string {
	if s.Kind == StateStream {
		return s.Key
	}
	return []string{s.ClusterBy}
}

// ParseOutcome reads name=stream:within:when, such as won_30d=opportunity:30d:stage = 'won'.
func ParseOutcome(text string) (OutcomeLabel, error) {
	name, rest, ok := strings.Cut(text, "=")
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) != 3 {
		return OutcomeLabel{}, fmt.Errorf("%q is not name=stream:within:expression, such as won_30d=opportunity:30d:stage = 'won'", text)
	}
	within, err := ParseDuration(parts[1])
	if err != nil {
		return OutcomeLabel{}, err
	}
	return OutcomeLabel{Name: strings.TrimSpace(name), Stream: parts[0], When: parts[2], Within: within}, nil
}

// String is the outcome as [ParseOutcome] reads it.
func (o OutcomeLabel) String() string {
	return fmt.Sprintf("%s=%s:%s:%s", o.Name, o.Stream, FormatDuration(o.Within), o.When)
}

// outcomes reads the list of outcomes.
func (r *reader) outcomes(dst *[]OutcomeLabel) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		r.sequence(n, field, func(n *yaml.Node, field string) {
			o, noted := OutcomeLabel{At: r.place(n)}, len(*r.problems)
			seen := r.mapping(n, field, fields{"name": r.str(&o.Name), "stream": r.str(&o.Stream), "when": r.str(&o.When), "within": r.duration(&o.Within)})
			if seen == nil {
				return
			}
			for _, key := range []string{"name", "stream", "when", "within"} {
				if seen[key] == nil {
					r.problem(n, field+"."+key, "missing", "an outcome is {name, stream, when, within}, such as {name: won_30d, stream: opportunity, when: \"stage = 'won'\", within: 30d}")
					return
				}
			}
			if len(*r.problems) == noted {
				*dst = append(*dst, o)
			}
		})
	}
}

// checkOutcomes holds the outcomes against the streams, by the check that features' expressions have.
func (d *DatasetRequest) checkOutcomes(p *Project, expr CheckExpr, problems *Problems) {
	var names []string
	for _, o := range d.Outcomes {
		field := "outcomes." + o.Name
		add := func(key, what, remedy string) { problems.add(o.At, field+"."+key, what, remedy) }
		if !nameText.MatchString(o.Name) || strings.Contains(o.Name, "__") || strings.HasPrefix(o.Name, "loam_") || o.Name == SplitColumn && d.Split.Given() {
			add("name", fmt.Sprintf("%q can't name a label column", o.Name), "use lower-case letters, digits and single _, such as won_30d")
		} else if slices.Contains(names, o.Name) || o.Name == d.TimeColumn {
			add("name", fmt.Sprintf("column %s stands twice", o.Name), "rename one of them")
		}
		names = append(names, o.Name)
		if o.Within <= 0 {
			add("within", "an outcome takes a time to come true", "write how long after the label's time, such as 30d")
		}
		s := p.Stream(o.Stream)
		if s == nil {
			var known []string
			for _, s := range p.Streams {
				known = append(known, s.Name)
			}
			add("stream", fmt.Sprintf("there is no stream %q", o.Stream), didYouMean(o.Stream, known))
			continue
		}
		reads, err := expr(o.When, s.Columns, Type{Kind: Bool})
		switch {
		case err != nil:
			add("when", err.Error(), "write a condition on the columns of stream "+s.Name)
		case len(reads) == 0:
			add("when", "it reads no column", "write a condition on the columns of stream "+s.Name)
		}
	}
}
