package feature

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// loadFeatures reads one file of features/: entities, views and services.
func (l *loader) loadFeatures(r *reader, root *yaml.Node) {
	r.mapping(root, "", fields{
		"entities": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readEntity(r, n, field) })
		},
		"views": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readView(r, n, field) })
		},
		"services": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readService(r, n, field) })
		},
	})
}

// named reads the name of something and reports whether it can be used.
func (r *reader) named(n *yaml.Node, field string, seen map[string]*yaml.Node, name, what string, taken func(string) *Place) bool {
	if seen == nil {
		return false
	}
	if seen["name"] == nil {
		r.problem(n, field+".name", "missing", "name the "+what)
		return false
	}
	if !r.name(seen["name"], field+".name", name) {
		return false
	}
	if first := taken(name); first != nil {
		r.problem(n, field+".name", fmt.Sprintf("%s %s is declared twice, first at %s", what, name, first), "remove or rename one of them")
		return false
	}
	return true
}

func (l *loader) readEntity(r *reader, n *yaml.Node, field string) {
	e := &Entity{At: r.place(n)}
	seen := r.mapping(n, field, fields{"name": r.str(&e.Name), "join_keys": r.strs(&e.JoinKeys)})
	ok := r.named(n, field, seen, e.Name, "entity", func(name string) *Place {
		if o := l.project.Entity(name); o != nil {
			return &o.At
		}
		return nil
	})
	if !ok {
		return
	}
	if len(e.JoinKeys) == 0 {
		r.problem(n, field+".join_keys", "missing", "name the columns that identify the entity, such as [contact_id]")
		return
	}
	l.project.Entities = append(l.project.Entities, e)
}

func (l *loader) readView(r *reader, n *yaml.Node, field string) {
	v := &View{At: r.place(n)}
	seen := r.mapping(n, field, fields{
		"name": r.str(&v.Name), "entity": r.str(&v.Entity), "stream": r.str(&v.Stream), "ttl": r.duration(&v.TTL),
		"layout": enum(r, &v.Layout, FeastLayout),
		"features": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readFeature(r, n, field, v) })
		},
		"aggregates": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readAggregate(r, n, field, v) })
		},
		"on_demand": func(n *yaml.Node, field string) { l.readOnDemand(r, n, field, v) },
	})
	ok := r.named(n, field, seen, v.Name, "feature view", func(name string) *Place {
		if o := l.project.View(name); o != nil {
			return &o.At
		}
		return nil
	})
	if !ok {
		return
	}
	switch hasFeatures, hasAggregates := seen["features"] != nil, seen["aggregates"] != nil; {
	case v.OnDemand != nil:
		r.onDemandKeys(n, field, seen)
	case hasFeatures && hasAggregates:
		r.problem(n, field, "a view has features or aggregates, not both", "make two views of it")
	case !hasFeatures && !hasAggregates:
		r.problem(n, field, "the view has no features", "list features (columns of a state stream) or aggregates (windows over events or history)")
	case hasAggregates && seen["ttl"] != nil:
		r.problem(seen["ttl"], field+".ttl", "a windowed view has no ttl: its windows end by themselves", "remove it")
	case hasAggregates && seen["layout"] != nil:
		r.problem(seen["layout"], field+".layout", "the values of a windowed view change without an event, which nothing in Feast's layout tells", "remove it")
	}
	// Kept in spite of problems, so that references to it don't cause more of them.
	l.project.Views = append(l.project.Views, v)
}

func (l *loader) readFeature(r *reader, n *yaml.Node, field string, v *View) {
	f := Feature{At: r.place(n)}
	if n.Kind == yaml.ScalarNode {
		f.Name = n.Value
		if r.name(n, field, f.Name) {
			l.addFeature(r, n, field, v, f)
		}
		return
	}
	var typeText string
	seen := r.mapping(n, field, fields{"name": r.str(&f.Name), "type": r.str(&typeText), "sql": r.str(&f.SQL)})
	if seen == nil {
		return
	}
	if seen["name"] == nil {
		r.problem(n, field+".name", "missing", "name the feature")
		return
	}
	if !r.name(seen["name"], field+".name", f.Name) {
		return
	}
	switch {
	case seen["sql"] == nil && seen["type"] != nil:
		r.problem(seen["type"], field+".type", "a feature that is a column has the column's type", "remove it, or add sql")
		return
	case seen["sql"] != nil && seen["type"] == nil:
		r.problem(n, field+".type", "missing", "give the type of the expression, such as int64")
		return
	case seen["type"] != nil:
		t, err := ParseType(typeText)
		if err != nil {
			r.problem(seen["type"], field+".type", err.Error(), "")
			return
		}
		f.Type = t
	}
	l.addFeature(r, n, field, v, f)
}

// ownName reports whether a name is one that tables of features have of loam's own, whatever its case.
func ownName(name string) bool {
	lower := strings.ToLower(name)
	return lower == "label_row" || strings.HasPrefix(lower, "loam_")
}

func (l *loader) addFeature(r *reader, n *yaml.Node, field string, v *View, f Feature) {
	if ownName(f.Name) {
		r.problem(n, field, fmt.Sprintf("feature %s has a name that loam uses itself", f.Name), "rename it")
		return
	}
	if slices.Contains(v.FeatureNames(), f.Name) {
		r.problem(n, field, fmt.Sprintf("feature %s stands twice in the view", f.Name), "remove or rename one of them")
		return
	}
	v.Features = append(v.Features, f)
}

func (l *loader) readAggregate(r *reader, n *yaml.Node, field string, v *View) {
	a := Aggregate{At: r.place(n)}
	var windows []string
	seen := r.mapping(n, field, fields{
		"name": r.str(&a.Name), "fn": enum(r, &a.Fn, append(fnsOf(EventStream), fnsOf(StateStream)...)...),
		"column": r.str(&a.Column), "where": r.str(&a.Where), "windows": r.strs(&windows),
	})
	if seen == nil {
		return
	}
	windowless := a.Fn == DaysSinceChange
	for _, key := range []string{"name", "fn", "windows"} {
		if seen[key] == nil && !(key == "windows" && windowless) {
			r.problem(n, field+"."+key, "missing", "an aggregate is {name, fn, column, where, windows}, such as {name: emails, fn: count, windows: [7d]}")
			return
		}
	}
	if !r.name(seen["name"], field+".name", a.Name) {
		return
	}
	if ownName(a.Name) {
		r.problem(n, field+".name", fmt.Sprintf("aggregate %s has a name that loam uses itself", a.Name), "rename it")
		return
	}
	switch {
	case a.Fn == TimeInState && a.Where == "":
		r.problem(n, field+".where", "missing", "say in which state, such as where: \"mkt_status = 'customer'\"")
	case a.Fn == TimeInState && a.Column != "":
		r.problem(seen["column"], field+".column", "the state is what where says", "remove it")
	case a.Column == "" && a.Fn != Count && slices.Contains(fnsOf(EventStream), a.Fn):
		r.problem(n, field+".column", "missing", fmt.Sprintf("name the column whose %s is taken", a.Fn))
	}
	switch {
	case windowless && seen["windows"] != nil:
		r.problem(seen["windows"], field+".windows", "days_since_change has no window", "remove it")
		return
	case !windowless && len(windows) == 0:
		r.problem(seen["windows"], field+".windows", "no window is named", "list some, such as [1d, 7d, 30d]")
	}
	for _, text := range windows {
		w, err := ParseDuration(text)
		switch {
		case err != nil:
			r.problem(seen["windows"], field+".windows", err.Error(), "")
		case w < WindowMin || w%Hop(w) != 0:
			r.problem(seen["windows"], field+".windows", fmt.Sprintf("a window of %s is not at least 5m and whole hops of %s", text, FormatDuration(Hop(max(w, 1)))),
				"windows below 12h move in steps of 5m, below 12d of 1h, else of 1d")
		case slices.Contains(a.Windows, w):
			r.problem(seen["windows"], field+".windows", text+" stands twice", "remove one of them")
		default:
			a.Windows = append(a.Windows, w)
		}
	}
	slices.Sort(a.Windows)
	for _, name := range a.FeatureNames() {
		if slices.Contains(v.FeatureNames(), name) {
			r.problem(n, field+".name", fmt.Sprintf("feature %s stands twice in the view", name), "rename one of the aggregates")
			return
		}
	}
	v.Aggregates = append(v.Aggregates, a)
}

func (l *loader) readService(r *reader, n *yaml.Node, field string) {
	s := &Service{At: r.place(n)}
	var features []string
	seen := r.mapping(n, field, fields{"name": r.str(&s.Name), "features": r.strs(&features)})
	ok := r.named(n, field, seen, s.Name, "feature service", func(name string) *Place {
		if o := l.project.Service(name); o != nil {
			return &o.At
		}
		return nil
	})
	if ok {
		l.project.Services = append(l.project.Services, s)
		l.services = append(l.services, service{s, features})
	}
}
