package feature

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// OnDemand is what the features of an on-demand view are made of when they are asked for: features of other views, and
// columns that come with the request, which is the label's row in a training set.
type OnDemand struct {
	Inputs  []Ref    // resolved: no wildcards, no repeats; none is on demand itself
	Request []Column // name and type alone
}

// Input is a column that the expressions of an on-demand view may read.
type Input struct {
	Name string
	Type Type
	From Ref // the feature that it is; zero for a column of the request
}

// Inputs are the columns that the expressions of an on-demand view may read. A feature is called <view>__<feature>, and
// <feature> as well where that is the name of no other input.
func (p *Project) Inputs(v *View) []Input {
	named := map[string]int{}
	for _, r := range v.OnDemand.Inputs {
		named[r.Feature]++
	}
	var inputs []Input
	for _, r := range v.OnDemand.Inputs {
		t := p.FeatureType(r)
		inputs = append(inputs, Input{Name: r.Column(), Type: t, From: r})
		if named[r.Feature] == 1 {
			inputs = append(inputs, Input{Name: r.Feature, Type: t, From: r})
		}
	}
	for _, c := range v.OnDemand.Request {
		inputs = append(inputs, Input{Name: c.Name, Type: c.Type})
	}
	return inputs
}

// FeatureType is the type of a feature of the project.
func (p *Project) FeatureType(r Ref) Type {
	v := p.View(r.View)
	return v.FeatureType(p.Stream(v.Stream), r.Feature)
}

// readOnDemand reads what an on-demand view is made of; its inputs are resolved once all views are read.
func (l *loader) readOnDemand(r *reader, n *yaml.Node, field string, v *View) {
	v.OnDemand = &OnDemand{}
	var inputs []string
	seen := r.mapping(n, field, fields{
		"inputs": r.strs(&inputs),
		"request": func(n *yaml.Node, field string) {
			r.sequence(n, field, func(n *yaml.Node, field string) { l.readRequestColumn(r, n, field, v.OnDemand) })
		},
	})
	if seen != nil && seen["inputs"] == nil && seen["request"] == nil {
		r.problem(n, field, "it is made of nothing", "name inputs, such as [\"profile:open_tickets\"], or columns of the request")
	}
	if seen["inputs"] != nil {
		l.onDemand[v] = inputs
	}
}

func (l *loader) readRequestColumn(r *reader, n *yaml.Node, field string, o *OnDemand) {
	var name, typeText string
	seen := r.mapping(n, field, fields{"name": r.str(&name), "type": r.str(&typeText)})
	if seen == nil {
		return
	}
	for _, key := range []string{"name", "type"} {
		if seen[key] == nil {
			r.problem(n, field+"."+key, "missing", "a column of the request is {name, type}, such as {name: cart_value, type: double}")
			return
		}
	}
	if !r.name(seen["name"], field+".name", name) {
		return
	}
	t, err := ParseType(typeText)
	if err != nil {
		r.problem(seen["type"], field+".type", err.Error(), "")
		return
	}
	if slices.ContainsFunc(o.Request, func(c Column) bool { return c.Name == name }) {
		r.problem(n, field, fmt.Sprintf("column %s stands twice in the request", name), "remove or rename one of them")
		return
	}
	o.Request = append(o.Request, Column{Name: name, Type: t})
}

// onDemandKeys holds the other keys of an on-demand view to what it can have.
func (r *reader) onDemandKeys(n *yaml.Node, field string, seen map[string]*yaml.Node) {
	for _, key := range []string{"entity", "stream", "ttl", "layout", "aggregates"} {
		if seen[key] != nil {
			r.problem(seen[key], field+"."+key, "a view on demand has none of its own: what it needs are the entities of its inputs", "remove it")
		}
	}
	if seen["features"] == nil {
		r.problem(n, field, "the view has no features", "list expressions over its inputs, such as {name: big_cart, type: bool, sql: \"cart_value > 100\"}")
	}
}

// checkOnDemand resolves the inputs of an on-demand view and checks its expressions. The other views have been checked.
func (l *loader) checkOnDemand(v *View, expr CheckExpr) {
	p, field := l.project, "views."+v.Name
	if texts, ok := l.onDemand[v]; ok {
		refs, err := p.Resolve(texts)
		if err != nil {
			l.problems.add(v.At, field+".on_demand.inputs", err.Error(), "")
			return
		}
		v.OnDemand.Inputs = refs
	}
	for _, r := range v.OnDemand.Inputs {
		input := p.View(r.View)
		switch {
		case input.OnDemand != nil:
			l.problems.add(v.At, field+".on_demand.inputs", fmt.Sprintf("%s is on demand itself", r), "name what it is made of, and write its expression here")
			return
		case p.Stream(input.Stream) == nil || p.FeatureType(r) == Type{}:
			return // a problem of that view, which is told there
		}
		if slices.ContainsFunc(v.OnDemand.Request, func(c Column) bool { return c.Name == r.Feature }) {
			l.problems.add(v.At, field+".on_demand.request", fmt.Sprintf("column %s has the name of the input %s", r.Feature, r), "rename the column")
			return
		}
	}
	var columns []Column
	var names []string
	for _, in := range p.Inputs(v) {
		columns = append(columns, Column{Name: in.Name, Type: in.Type})
		names = append(names, in.Name)
	}
	for i := range v.Features {
		f := &v.Features[i]
		if f.SQL == "" {
			l.problems.add(f.At, field+".features."+f.Name, "a feature on demand is an expression", "write {name, type, sql}")
			continue
		}
		var err error
		if f.Reads, err = expr(f.SQL, columns, f.Type); err != nil {
			l.problems.add(f.At, field+".features."+f.Name+".sql", err.Error(), "its inputs are "+strings.Join(names, ", "))
		}
	}
}
