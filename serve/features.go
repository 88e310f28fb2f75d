package serve

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// prepared is what is known of a list of features before entities come.
type prepared struct {
	plan    *online.Plan
	keys    []online.JoinKey
	request []online.RequestColumn
	names   [2][]byte // as JSON, without brackets: of the feature, and in full
	views   []string  // that the features are of
	clash   string    // a name that two features have where names aren't in full, "" for none
}

// plans are those of features that were asked for.
type plans struct {
	mu         sync.RWMutex
	byFeatures map[string]*prepared
}

// Bounds of the plans that are kept: beyond plansMax all are made anew, and lists of features of more than planKeyMax bytes, which a
// caller may make up without an end, are prepared for each request.
const (
	plansMax   = 1024
	planKeyMax = 16 << 10
)

// getOnlineFeatures answers a request for features.
func (s *Server) getOnlineFeatures(w http.ResponseWriter, r *http.Request, c *caller) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.Limits.Timeout)
	defer cancel()
	asked, err := s.asked(w, r)
	if err != nil {
		return err
	}
	p, err := s.prepare(asked, c)
	if err != nil {
		return err
	}
	if err := c.mayRead(p.views); err != nil {
		return err
	}
	if p.clash != "" && !asked.fullNames {
		return wrong(codeCollision, "features", `set "full_feature_names": true, which names them view__feature`, "two of the features are called %s", p.clash)
	}
	entities, echoed, err := s.entities(p, asked)
	if err != nil {
		return err
	}
	var take func(Served)
	if s.Log != nil {
		take = s.Log.Sample()
	}
	result, err := p.plan.Read(ctx, entities, online.Ask{Seen: take != nil})
	if err != nil {
		return err
	}
	s.metrics.served(result)
	names := p.names[0]
	if asked.fullNames {
		names = p.names[1]
	}
	if result.AsOf != nil {
		w.Header().Set("Loam-As-Of", asOfText(result.AsOf))
	}
	b := answers.Get().(*[]byte)
	*b = appendAnswer((*b)[:0], echoed, names, result, len(p.plan.Features()))
	writeJSON(w, http.StatusOK, *b)
	if cap(*b) <= answerBytes {
		answers.Put(b)
	}
	if take != nil {
		take(Served{Service: asked.service, Plan: p.plan, Keys: entities, Result: result})
	}
	return nil
}

// asOfText tells the views whose values are as of an instant, and those.
func asOfText(views map[string]time.Time) string {
	var parts []string
	for _, view := range slices.Sorted(maps.Keys(views)) {
		parts = append(parts, view+"="+views[view].Format(time.RFC3339Nano))
	}
	return strings.Join(parts, ", ")
}

// asked reads the request.
func (s *Server) asked(w http.ResponseWriter, r *http.Request) (*request, error) {
	body, err := s.body(w, r)
	if err != nil {
		return nil, err
	}
	defer buffers.Put(body)
	return parse(body)
}

// parse reads a body.
func parse(body *bytes.Buffer) (*request, error) {
	d := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(d)
	d.Reset(body)
	return readRequest(d)
}

// prepare finds the features that a request names.
func (s *Server) prepare(r *request, c *caller) (*prepared, error) {
	key := planKey(r)
	s.plans.mu.RLock()
	p := s.plans.byFeatures[key]
	s.plans.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	refs, err := s.resolve(r, c)
	if err != nil {
		return nil, err
	}
	if p, err = s.prepareRefs(refs); err != nil {
		return nil, err
	}
	if len(key) > planKeyMax {
		return p, nil
	}
	s.plans.mu.Lock()
	defer s.plans.mu.Unlock()
	if len(s.plans.byFeatures) >= plansMax {
		clear(s.plans.byFeatures)
	}
	s.plans.byFeatures[key] = p
	return p, nil
}

// planKey tells what a request asks for from all else that one may ask for, whatever bytes its names hold.
func planKey(r *request) string {
	if r.service != "" {
		return "service " + r.service
	}
	var b strings.Builder
	b.WriteString("features")
	for _, f := range r.features {
		b.WriteByte(' ')
		b.WriteString(strconv.Itoa(len(f)))
		b.WriteByte(' ')
		b.WriteString(f)
	}
	return b.String()
}

func (s *Server) prepareRefs(refs []feature.Ref) (*prepared, error) {
	plan, err := s.Client.Plan(refs)
	if err != nil {
		return nil, err
	}
	p := &prepared{plan: plan, keys: plan.JoinKeys(), request: plan.RequestColumns()}
	seen := map[string]bool{}
	for i, r := range refs {
		for n, name := range []string{r.Feature, r.Column()} {
			if i > 0 {
				p.names[n] = append(p.names[n], ',')
			}
			p.names[n] = appendQuoted(p.names[n], name)
		}
		if seen[r.Feature] && p.clash == "" {
			p.clash = r.Feature
		}
		seen[r.Feature] = true
		if !slices.Contains(p.views, r.View) {
			p.views = append(p.views, r.View)
		}
	}
	return p, nil
}

// resolve turns the names of a request into features that there are. A caller is told of no others than it may read.
func (s *Server) resolve(r *request, c *caller) ([]feature.Ref, error) {
	p := s.Project
	if r.service != "" {
		if found := p.Service(r.service); found != nil {
			return found.Features, nil
		}
		known := []string{}
		for _, o := range c.sees(p).Services {
			known = append(known, o.Name)
		}
		return nil, unknown(codeNoService, "feature_service", "feature service", r.service, known)
	}
	for i, text := range r.features {
		field := fmt.Sprintf("features[%d]", i)
		ref, err := feature.ParseRef(strings.TrimSpace(text))
		if err != nil {
			return nil, wrong(codeFeatures, field, "write view:feature, or view:* for all of a view", "%q is not a feature", text)
		}
		view := p.View(ref.View)
		if view == nil {
			known := []string{}
			for _, o := range c.sees(p).Views {
				known = append(known, o.Name)
			}
			return nil, unknown(codeNoView, field, "feature view", ref.View, known)
		}
		if err := c.mayRead([]string{ref.View}); err != nil {
			return nil, err
		}
		if names := view.FeatureNames(); ref.Feature != "*" && !slices.Contains(names, ref.Feature) {
			return nil, unknown(codeNoFeature, field, "feature of view "+ref.View, ref.Feature, names)
		}
	}
	return p.Resolve(r.features)
}

// entities gives the entities of a request as they are read, and the columns that are answered with them: join keys.
func (s *Server) entities(p *prepared, r *request) (online.Entities, []column, error) {
	e := online.Entities{Len: r.len(), Keys: make(map[string][]string, len(p.keys))}
	if e.Len > s.Limits.Entities {
		return e, nil, wrong(codeManyEntities, "entities", "ask for fewer at once, or raise serve.entities in loam.yaml",
			"%d entities are asked for, and %d are taken at once", e.Len, s.Limits.Entities)
	}
	for _, k := range p.keys {
		c := named(r.entities, k.Name)
		if c == nil {
			return e, nil, &online.EntityError{View: k.View, JoinKey: k.Name}
		}
		values := make([]string, e.Len)
		for n, given := range c.cells {
			var ok bool
			if values[n], ok = keyText(k.Type, given); !ok {
				return e, nil, wrong(codeWrongType, place("entities", k.Name, n), "give "+forms[k.Type.Kind], "the join key %s is %s", k.Name, k.Type)
			}
		}
		e.Keys[k.Name] = values
	}
	if len(p.request) > 0 {
		var err error
		if e.Request, err = requestColumns(p, r); err != nil {
			return e, nil, err
		}
	}
	for _, c := range r.requestData {
		if !s.requestColumns[c.name] {
			return e, nil, wrong(codeColumn, "request_data."+c.name, "remove it, or mend its name", "no view on demand takes the column %q", c.name)
		}
	}
	echoed := make([]column, 0, len(r.entities))
	for _, c := range r.entities {
		switch {
		case s.joinKeys[c.name]:
			echoed = append(echoed, c)
		case !s.requestColumns[c.name]:
			return e, nil, wrong(codeColumn, "entities."+c.name, "remove it, or mend its name", "no entity has the join key %q, and no view on demand takes such a column", c.name)
		}
	}
	return e, echoed, nil
}

// requestColumns are the columns of the request that the features need, from request_data, or else from entities.
func requestColumns(p *prepared, r *request) (map[string][]online.Value, error) {
	all := make(map[string][]online.Value, len(p.request))
	for _, k := range p.request {
		from, c := "request_data", named(r.requestData, k.Name)
		if c == nil {
			from, c = "entities", named(r.entities, k.Name)
		}
		if c == nil {
			return nil, &online.RequestError{View: k.View, Column: k.Name, Type: k.Type, Entity: -1}
		}
		values := make([]online.Value, len(c.cells))
		for n, given := range c.cells {
			var ok bool
			if values[n], ok = valueOf(k.Type, given); !ok {
				return nil, wrong(codeWrongType, place(from, k.Name, n), "give "+form(k.Type)+", or null", "feature view %s takes the column %s as %s", k.View, k.Name, k.Type)
			}
		}
		all[k.Name] = values
	}
	return all, nil
}

// place is where a value of a column stands in the body.
func place(member, name string, n int) string {
	return member + "." + name + "[" + strconv.Itoa(n) + "]"
}

// forms are how values are written, by the kind of their type.
var forms = map[feature.Kind]string{
	feature.Bool: "true or false", feature.Int64: "a whole number, or its digits as text", feature.Double: "a number", feature.String: "text",
	feature.Decimal: "a number with no more digits than that, or its digits as text", feature.Date: "text such as 2026-11-01",
	feature.Timestamp: "text such as 2026-11-01T12:00:00Z", feature.JSON: "JSON",
}

func form(t feature.Type) string {
	if t.List {
		return "a list of these: " + forms[t.Kind]
	}
	return forms[t.Kind]
}

// keyText is a value of the body as a join key's text, if it is one that the type may have; whether it is one is seen when it is read.
func keyText(t feature.Type, c cell) (string, bool) {
	return c.text, c.kind == '"' || c.kind == '0' && t.Kind == feature.Int64
}

// valueOf is a value of the body as one of a type. A number must stay what it is: 1.5 is no int64.
func valueOf(t feature.Type, c cell) (online.Value, bool) {
	text, ok := c.text, false
	switch {
	case c.kind == 'n':
		return online.Value{Type: t, Null: true}, true
	case t.List:
		ok = c.kind == '['
	case t.Kind == feature.JSON:
		if ok = true; c.kind == '"' {
			text = string(appendQuoted(nil, text))
		}
	case t.Kind == feature.Bool:
		ok = c.kind == 't' || c.kind == 'f'
	case t.Kind == feature.Int64, t.Kind == feature.Double, t.Kind == feature.Decimal:
		if ok = c.kind == '0' || c.kind == '"'; t.Kind == feature.Int64 {
			if whole, part, found := strings.Cut(text, "."); found && part != "" && strings.Trim(part, "0") == "" {
				text = whole // 2.0, as languages without whole numbers write it
			}
		}
	default:
		ok = c.kind == '"'
	}
	if !ok {
		return online.Value{}, false
	}
	return online.ParseValue(t, text)
}
