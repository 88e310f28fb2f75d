package feature

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// check resolves the references between files, and checks what takes more than one of them to see.
func (l *loader) check(expr CheckExpr) {
	p := l.project
	for _, v := range p.Views {
		l.checkView(v, expr)
	}
	for _, s := range l.services {
		refs, err := p.Resolve(s.features)
		if err != nil {
			l.problems.add(s.At, "services."+s.Name+".features", err.Error(), "")
		}
		s.Service.Features = refs
	}
	for _, d := range l.requests {
		l.checkRequest(d)
	}
	l.checkEventTypes()
	l.checkTopics()
	sort.Slice(p.Streams, func(i, j int) bool { return p.Streams[i].Name < p.Streams[j].Name })
	sort.Slice(p.Entities, func(i, j int) bool { return p.Entities[i].Name < p.Entities[j].Name })
	sort.Slice(p.Views, func(i, j int) bool { return p.Views[i].Name < p.Views[j].Name })
	sort.Slice(p.Services, func(i, j int) bool { return p.Services[i].Name < p.Services[j].Name })
	sort.Slice(p.Datasets, func(i, j int) bool { return p.Datasets[i].Name < p.Datasets[j].Name })
}

func (l *loader) checkView(v *View, expr CheckExpr) {
	p, field := l.project, "views."+v.Name
	entity, stream := p.Entity(v.Entity), p.Stream(v.Stream)
	if entity == nil {
		var known []string
		for _, e := range p.Entities {
			known = append(known, e.Name)
		}
		what := fmt.Sprintf("there is no entity %q", v.Entity)
		if v.Entity == "" {
			what = "missing"
		}
		l.problems.add(v.At, field+".entity", what, didYouMean(v.Entity, known))
	}
	if stream == nil {
		var known []string
		for _, s := range p.Streams {
			known = append(known, s.Name)
		}
		what := fmt.Sprintf("there is no stream %q", v.Stream)
		if v.Stream == "" {
			what = "missing"
		}
		l.problems.add(v.At, field+".stream", what, didYouMean(v.Stream, known))
		return
	}
	if entity != nil {
		l.checkJoinKeys(v, entity, stream)
	}
	if v.Windowed() {
		if stream.Kind != EventStream {
			l.problems.add(v.At, field+".stream", fmt.Sprintf("%s is a state stream, and aggregates are over events", stream.Name),
				"use an event stream, or features")
			return
		}
		for i := range v.Aggregates {
			l.checkAggregate(v, &v.Aggregates[i], stream, expr)
		}
		return
	}
	if stream.Kind != StateStream && len(v.Features) > 0 {
		l.problems.add(v.At, field+".stream", fmt.Sprintf("%s is an event stream, which has no state", stream.Name), "use a state stream, or aggregates")
		return
	}
	if stream.Payload == PatchPayload {
		l.problems.add(v.At, field+".stream", fmt.Sprintf("%s is a patch stream, and views over those are not supported yet", stream.Name),
			"use a stream whose events carry the full payload")
		return
	}
	for i := range v.Features {
		l.checkFeature(v, &v.Features[i], stream, expr)
	}
}

// checkJoinKeys holds the entity's join keys against the stream: its key for state, columns of it for events.
func (l *loader) checkJoinKeys(v *View, e *Entity, s *Stream) {
	field := "views." + v.Name + ".entity"
	if s.Kind == StateStream {
		a, b := slices.Sorted(slices.Values(e.JoinKeys)), slices.Sorted(slices.Values(s.Key))
		if !slices.Equal(a, b) {
			l.problems.add(v.At, field, fmt.Sprintf("entity %s is joined by %s, stream %s has the key %s",
				e.Name, strings.Join(a, ", "), s.Name, strings.Join(b, ", ")), "use the entity whose join keys are the stream's key")
		}
		return
	}
	for _, k := range e.JoinKeys {
		switch c, ok := s.Column(k); {
		case !ok:
			l.problems.add(v.At, field, fmt.Sprintf("entity %s is joined by %s, which stream %s lacks", e.Name, k, s.Name), didYouMean(k, s.columnNames()))
		case !c.Type.Key():
			l.problems.add(v.At, field, fmt.Sprintf("join key %s is %s in stream %s", k, c.Type, s.Name), "join by string, int64, date or timestamp")
		}
	}
}

func (l *loader) checkFeature(v *View, f *Feature, s *Stream, expr CheckExpr) {
	field := "views." + v.Name + ".features." + f.Name
	if f.SQL == "" {
		c, ok := s.Column(f.Name)
		if !ok {
			l.problems.add(f.At, field, fmt.Sprintf("stream %s has no column %q", s.Name, f.Name), didYouMean(f.Name, s.columnNames()))
			return
		}
		f.Type = c.Type
		l.checkTracked(f.At, field, s, []string{f.Name})
		return
	}
	reads, err := expr(f.SQL, s.Columns, f.Type)
	if err != nil {
		l.problems.add(f.At, field+".sql", err.Error(), "")
		return
	}
	l.checkTracked(f.At, field+".sql", s, reads)
}

// checkTracked refuses columns that may change inside a version. The key never does.
func (l *loader) checkTracked(at Place, field string, s *Stream, columns []string) {
	for _, c := range columns {
		if !s.Tracked(c) && !slices.Contains(s.Key, c) {
			l.problems.add(at, field, fmt.Sprintf("column %s of stream %s is not tracked, so it may change inside a version", c, s.Name),
				"use tracked columns, or track it")
		}
	}
}

func (l *loader) checkAggregate(v *View, a *Aggregate, s *Stream, expr CheckExpr) {
	field := "views." + v.Name + ".aggregates." + a.Name
	if a.Column != "" {
		c, ok := s.Column(a.Column)
		switch {
		case !ok:
			l.problems.add(a.At, field+".column", fmt.Sprintf("stream %s has no column %q", s.Name, a.Column), didYouMean(a.Column, s.columnNames()))
		case (a.Fn == Sum || a.Fn == Avg) && !c.Type.numeric():
			l.problems.add(a.At, field+".column", fmt.Sprintf("the %s of column %s, which is %s, is not defined", a.Fn, c.Name, c.Type), "use a number")
		case a.Fn != Count && (c.Type.List || c.Type.Kind == JSON):
			l.problems.add(a.At, field+".column", fmt.Sprintf("the %s of column %s, which is %s, is not defined", a.Fn, c.Name, c.Type), "use a scalar column")
		}
	}
	if a.Where != "" {
		if _, err := expr(a.Where, s.Columns, Type{Kind: Bool}); err != nil {
			l.problems.add(a.At, field+".where", err.Error(), "")
		}
	}
}

func (t Type) numeric() bool {
	return !t.List && (t.Kind == Int64 || t.Kind == Double || t.Kind == Decimal)
}

func (l *loader) checkRequest(d request) {
	p := l.project
	if d.Service != "" {
		s := p.Service(d.Service)
		if s == nil {
			var known []string
			for _, s := range p.Services {
				known = append(known, s.Name)
			}
			l.problems.add(d.At, "service", fmt.Sprintf("there is no feature service %q", d.Service), didYouMean(d.Service, known))
			return
		}
		d.DatasetRequest.Features = s.Features
		return
	}
	if d.features == nil {
		return
	}
	refs, err := p.Resolve(d.features)
	if err != nil {
		l.problems.add(d.At, "features", err.Error(), "")
	}
	d.DatasetRequest.Features = refs
}

// checkEventTypes refuses an event type that two streams would take.
func (l *loader) checkEventTypes() {
	overlap := func(a, b string) bool {
		nameA, verbA, _ := strings.Cut(a, ".")
		nameB, verbB, _ := strings.Cut(b, ".")
		return nameA == nameB && (verbA == verbB || verbA == "*" || verbB == "*")
	}
	for i, s := range l.project.Streams {
		for _, o := range l.project.Streams[:i] {
			for _, t := range s.EventTypes {
				if slices.ContainsFunc(o.EventTypes, func(u string) bool { return overlap(t, u) }) {
					l.problems.add(s.At, "event_types", fmt.Sprintf("%s is taken by stream %s already", t, o.Name), "let one stream take it")
				}
			}
		}
	}
}

// checkTopics refuses a topic that two streams would read: an event belongs to one stream.
func (l *loader) checkTopics() {
	readers := map[string]*Stream{}
	for _, s := range l.project.Streams {
		if o := readers[s.Topic]; o != nil {
			l.problems.add(s.At, "topic", fmt.Sprintf("%s is read by stream %s already", s.Topic, o.Name), "name another topic")
		}
		readers[s.Topic] = s
	}
}
