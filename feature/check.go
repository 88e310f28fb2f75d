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
	l.expr = expr
	for _, s := range p.Streams {
		l.checkDeleteWhen(s, expr)
		l.checkMapped(s, expr)
	}
	for _, v := range p.Views {
		if v.OnDemand == nil {
			l.checkView(v, expr)
		}
	}
	for _, v := range p.Views {
		if v.OnDemand != nil {
			l.checkOnDemand(v, expr)
		}
	}
	l.checkFeastFields()
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
	l.checkServe()
	l.checkEventTypes()
	l.checkTopics()
	sort.Slice(p.Streams, func(i, j int) bool { return p.Streams[i].Name < p.Streams[j].Name })
	sort.Slice(p.Entities, func(i, j int) bool { return p.Entities[i].Name < p.Entities[j].Name })
	sort.Slice(p.Views, func(i, j int) bool { return p.Views[i].Name < p.Views[j].Name })
	sort.Slice(p.Services, func(i, j int) bool { return p.Services[i].Name < p.Services[j].Name })
	sort.Slice(p.Datasets, func(i, j int) bool { return p.Datasets[i].Name < p.Datasets[j].Name })
}

// checkDeleteWhen checks the condition under which a record of the stream is a delete. One that reads no column would be
// the same of every record.
func (l *loader) checkDeleteWhen(s *Stream, expr CheckExpr) {
	if s.deleteAt.Line == 0 || s.Kind != StateStream || s.Format != RowFormat {
		return
	}
	const remedy = "write a condition on the stream's columns, such as is_deleted, or op_code = 'd'"
	reads, err := expr(s.DeleteWhen, s.Columns, Type{Kind: Bool})
	switch {
	case err != nil:
		l.problems.add(s.deleteAt, "delete_when", err.Error(), remedy)
	case len(reads) == 0:
		l.problems.add(s.deleteAt, "delete_when", "it reads no column", remedy)
	}
	s.DeleteReads = reads
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
		for i := range v.Aggregates {
			l.checkAggregate(v, &v.Aggregates[i], stream, expr)
		}
		return
	}
	if stream.Kind != StateStream && len(v.Features) > 0 {
		l.problems.add(v.At, field+".stream", fmt.Sprintf("%s is an event stream, which has no state", stream.Name), "use a state stream, or aggregates")
		return
	}
	for i := range v.Features {
		l.checkFeature(v, &v.Features[i], stream, expr)
	}
	if v.Layout == FeastLayout && entity != nil {
		l.checkFeast(v, entity, stream)
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
			l.problems.add(v.At, field, fmt.Sprintf("entity %s is joined by %s, which stream %s lacks", e.Name, k, s.Name), didYouMean(k, ColumnNames(s.Columns)))
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
			l.problems.add(f.At, field, fmt.Sprintf("stream %s has no column %q", s.Name, f.Name), didYouMean(f.Name, ColumnNames(s.Columns)))
			return
		}
		f.Type = c.Type
		l.checkTracked(f.At, field, s, []string{f.Name})
		l.checkPatched(field, f, s, []string{f.Name})
		return
	}
	reads, err := expr(f.SQL, s.Columns, f.Type)
	if err != nil {
		l.problems.add(f.At, field+".sql", err.Error(), "")
		return
	}
	l.checkTracked(f.At, field+".sql", s, reads)
	l.checkPatched(field+".sql", f, s, reads)
}

// checkPatched holds a feature of a patch stream to one column, whose state and freshness are the feature's. Of two
// columns a patch may carry one alone: a writer that sees that patch could not evaluate the feature, and it would have
// two ages.
func (l *loader) checkPatched(field string, f *Feature, s *Stream, reads []string) {
	if s.Payload != PatchPayload {
		return
	}
	switch len(reads) {
	case 0:
		l.problems.add(f.At, field, fmt.Sprintf("it reads no column of the patch stream %s, so no patch carries it", s.Name), "read one column")
	case 1:
		f.Column = reads[0]
	default:
		sorted := slices.Sorted(slices.Values(reads))
		last := len(sorted) - 1
		l.problems.add(f.At, field, fmt.Sprintf("it reads the columns %s and %s of the patch stream %s, and a patch may carry one without the other",
			strings.Join(sorted[:last], ", "), sorted[last], s.Name), "make a feature of each")
	}
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
	if fns := fnsOf(s.Kind); a.Fn != "" && !slices.Contains(fns, a.Fn) {
		l.problems.add(a.At, field+".fn", fmt.Sprintf("%s is not for %s streams, and %s is one", a.Fn, s.Kind, s.Name), "use "+fnTexts(fns))
		return
	}
	if s.Kind == StateStream {
		l.checkHistoryAggregate(field, a, s, expr)
		return
	}
	if a.Column != "" {
		c, ok := s.Column(a.Column)
		switch {
		case !ok:
			l.problems.add(a.At, field+".column", fmt.Sprintf("stream %s has no column %q", s.Name, a.Column), didYouMean(a.Column, ColumnNames(s.Columns)))
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

// checkHistoryAggregate checks an aggregate over the history of a stream: what it reads may not change inside a version.
func (l *loader) checkHistoryAggregate(field string, a *Aggregate, s *Stream, expr CheckExpr) {
	if a.Column != "" {
		if _, ok := s.Column(a.Column); !ok {
			l.problems.add(a.At, field+".column", fmt.Sprintf("stream %s has no column %q", s.Name, a.Column), didYouMean(a.Column, ColumnNames(s.Columns)))
		} else {
			l.checkTracked(a.At, field+".column", s, []string{a.Column})
		}
	}
	if a.Where == "" {
		return
	}
	reads, err := expr(a.Where, s.Columns, Type{Kind: Bool})
	if err != nil {
		l.problems.add(a.At, field+".where", err.Error(), "")
		return
	}
	l.checkTracked(a.At, field+".where", s, reads)
}

func fnTexts(fns []Fn) string {
	texts := make([]string, len(fns))
	for i, fn := range fns {
		texts[i] = string(fn)
	}
	last := len(texts) - 1
	return strings.Join(texts[:last], ", ") + " or " + texts[last]
}

func (t Type) numeric() bool {
	return !t.List && (t.Kind == Int64 || t.Kind == Double || t.Kind == Decimal)
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

// checkTopics refuses a topic that two streams would read, for an event belongs to one stream, and dead letters where they would be
// read again or can't be produced.
func (l *loader) checkTopics() {
	readers := map[string]*Stream{}
	for _, s := range l.project.Streams {
		if s.Full() {
			continue
		}
		if o := readers[s.Topic]; o != nil {
			l.problems.add(s.At, "topic", fmt.Sprintf("%s is read by stream %s already", s.Topic, o.Name), "name another topic")
		}
		readers[s.Topic] = s
	}
	for _, s := range l.project.Streams {
		if s.DeadLetterTopic == "" {
			continue
		}
		const field = "dead_letter_topic"
		if o := readers[s.DeadLetterTopic]; o != nil {
			l.problems.add(s.deadLetterTopic, field, fmt.Sprintf("stream %s reads %s, and would take its dead letters as events", o.Name, s.DeadLetterTopic), "name a topic that no stream reads")
		}
		if len(l.project.Broker.Seeds) == 0 {
			l.problems.add(s.deadLetterTopic, field, "there is no broker to produce to", "name broker.seeds in "+ProjectFile+", or remove the line: `loam dlq list` has the letters")
		}
	}
}
