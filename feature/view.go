package feature

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Entity is something features describe, found by its join keys.
type Entity struct {
	Name     string
	JoinKeys []string // column names, in declared order
	At       Place
}

// Feature is one value of an attribute view.
type Feature struct {
	Name string
	Type Type   // of the column, or as declared beside sql
	SQL  string // a checked scalar expression over the stream's columns, or an on-demand view's inputs; "" means the column of this name
	// Column is the one column that the feature reads, where the stream is one of patches: state and freshness are that
	// column's own. "" where events carry the whole state.
	Column string
	Reads  []string // of a view on demand: the names of the inputs that the expression reads
	At     Place
}

// Expr is the expression of the feature: its sql, or its column quoted.
func (f Feature) Expr() string {
	if f.SQL != "" {
		return f.SQL
	}
	return `"` + strings.ReplaceAll(f.Name, `"`, `""`) + `"`
}

// Fn is an aggregate function.
type Fn string

// Aggregate functions of windowed views.
const (
	Count    Fn = "count" // rows, or the non-nulls of a column
	Sum      Fn = "sum"
	Avg      Fn = "avg"
	Min      Fn = "min"
	Max      Fn = "max"
	First    Fn = "first" // by the order
	Last     Fn = "last"
	Distinct Fn = "distinct" // exact, at most DistinctMax values a window
)

// Aggregate functions of windowed views over the history of a state stream. A version
// begins where a tracked column changes, or the one column that the aggregate names, and where the entity comes into being.
const (
	Changes         Fn = "changes"           // versions that began in the window
	TimeInState     Fn = "time_in_state"     // seconds of the window in which the condition held
	DaysSinceChange Fn = "days_since_change" // since the last version began; it has no window
)

// fnsOf are the functions that aggregates of a stream of this kind may have.
func fnsOf(k StreamKind) []Fn {
	if k == StateStream {
		return []Fn{Changes, TimeInState, DaysSinceChange}
	}
	return []Fn{Count, Sum, Avg, Min, Max, First, Last, Distinct}
}

// DistinctMax bounds the values a distinct aggregate counts in a window; beyond it the feature is null on both sides.
const DistinctMax = 10_000

// Aggregate is one aggregate of a windowed view; each of its windows gives a feature <name>_<window>, and one without windows
// the feature <name>.
type Aggregate struct {
	Name    string
	Fn      Fn
	Column  string          // "" only for count and over history
	Where   string          // a checked boolean expression over the stream's columns, or ""
	Windows []time.Duration // ascending, each at least WindowMin and whole hops; none for DaysSinceChange
	At      Place
}

// WindowMin is the shortest window.
const WindowMin = 5 * time.Minute

// Hop is the step in which the tail of a window moves: 5 minutes below 12 hours, 1 hour below 12 days, else 1 day.
func Hop(window time.Duration) time.Duration {
	switch {
	case window < 12*time.Hour:
		return 5 * time.Minute
	case window < 12*24*time.Hour:
		return time.Hour
	default:
		return 24 * time.Hour
	}
}

// FeatureName is the name of the aggregate's feature over one of its windows.
func (a Aggregate) FeatureName(window time.Duration) string {
	return a.Name + "_" + FormatDuration(window)
}

// FeatureNames are the names of the aggregate's features.
func (a Aggregate) FeatureNames() []string {
	if a.Fn == DaysSinceChange {
		return []string{a.Name}
	}
	names := make([]string, len(a.Windows))
	for i, w := range a.Windows {
		names[i] = a.FeatureName(w)
	}
	return names
}

// View is a feature view: the features of one entity that come from one stream. It has either features (an attribute
// view, over the state of a state stream) or aggregates (a windowed view, over the events of an event stream, or over the
// history of a state stream). A view on demand has features, too, and neither entity nor stream: they are made of features of other views.
type View struct {
	Name       string
	Entity     string
	Stream     string
	TTL        time.Duration // a value is served at most this long after the change that confirmed it; 0 for ever
	Features   []Feature
	Aggregates []Aggregate
	OnDemand   *OnDemand // nil but for views on demand
	Layout     Layout    // of its values in Redis
	At         Place
}

// Windowed reports whether the view has aggregates, over windows of events or of history.
func (v *View) Windowed() bool { return len(v.Aggregates) > 0 }

// FeatureNames are the names of all features of the view, in declared order.
func (v *View) FeatureNames() []string {
	var names []string
	for _, f := range v.Features {
		names = append(names, f.Name)
	}
	for _, a := range v.Aggregates {
		names = append(names, a.FeatureNames()...)
	}
	return names
}

// Ref names a feature of a view, written view:feature.
type Ref struct{ View, Feature string }

// ParseRef reads view:feature; view:* or view alone mean every feature of the view.
func ParseRef(text string) (Ref, error) {
	view, name, found := strings.Cut(text, ":")
	if !found {
		name = "*"
	}
	if view == "" || name == "" || strings.Contains(name, ":") {
		return Ref{}, fmt.Errorf("%q is not a feature; write view:feature, or view:* for all of a view", text)
	}
	return Ref{View: view, Feature: name}, nil
}

func (r Ref) String() string { return r.View + ":" + r.Feature }

// Column is the feature's column in a training set: view__feature.
func (r Ref) Column() string { return r.View + "__" + r.Feature }

// Service is a named list of features that a model uses.
type Service struct {
	Name     string
	Features []Ref // resolved: no wildcards, no repeats
	At       Place
}

// FeatureType is the type of one of the view's features, given the stream it comes from; nil for a view on demand.
func (v *View) FeatureType(s *Stream, name string) Type {
	for _, f := range v.Features {
		if f.Name == name {
			return f.Type
		}
	}
	for _, a := range v.Aggregates {
		if slices.Contains(a.FeatureNames(), name) {
			return a.Type(s)
		}
	}
	panic("view " + v.Name + " has no feature " + name)
}

// Type is the type of the aggregate's features: counts are whole numbers, averages and times doubles, a decimal's sum has all
// digits there are, everything else has the column's type.
func (a Aggregate) Type(s *Stream) Type {
	c, _ := s.Column(a.Column)
	switch a.Fn {
	case Count, Distinct, Changes:
		return Type{Kind: Int64}
	case Avg, TimeInState, DaysSinceChange:
		return Type{Kind: Double}
	case Sum:
		if c.Type.Kind == Decimal {
			return Type{Kind: Decimal, Precision: 38, Scale: c.Type.Scale}
		}
	}
	return c.Type
}

// Unserved says why there are no values of a view in the online store, such as "a view on demand has no values of its own"; "" where
// it has some.
func (p *Project) Unserved(v *View) string {
	if v.OnDemand != nil {
		return "a view on demand has no values of its own, they are computed when they are asked for"
	}
	return ""
}

// OverHistory reports whether a view of the stream is windowed over its history, which a state stream has. Its values are materialized as
// of an instant, and no change is written to them as it comes.
func (v *View) OverHistory(s *Stream) bool { return v.Windowed() && s.Kind == StateStream }

// OverHistory is [View.OverHistory] of a view of the project.
func (p *Project) OverHistory(v *View) bool { return v.OverHistory(p.Stream(v.Stream)) }

// ZeroWithoutEvents reports whether a feature is 0 for an entity that nothing is known of: counts and distincts, and over history changes
// and times in a state.
func (v *View) ZeroWithoutEvents(name string) bool {
	for _, a := range v.Aggregates {
		if slices.Contains(a.FeatureNames(), name) {
			return slices.Contains([]Fn{Count, Distinct, Changes, TimeInState}, a.Fn)
		}
	}
	return false
}
