package serve

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// prepared is what is known of a list of features before entities come.
type prepared struct {
	plan  *online.Plan
	keys  []online.JoinKey
	names [2][]byte // as JSON, without brackets: of the feature, and in full
	clash string    // a name that two features have where names aren't in full, "" for none
}

// plans are those of features that were asked for.
type plans struct {
	mu         sync.RWMutex
	byFeatures map[string]*prepared
}

// plansMax bounds the plans that are kept. Beyond them all are made anew.
const plansMax = 1024

// getOnlineFeatures answers a request for features.
func (s *Server) getOnlineFeatures(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.Limits.Timeout)
	defer cancel()
	asked, err := s.asked(w, r)
	if err != nil {
		return err
	}
	p, err := s.prepare(asked)
	if err != nil {
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
		take = s.Log()
	}
	result, err := p.plan.Read(ctx, entities, online.Ask{Seen: take != nil})
	if err != nil {
		return err
	}
	names := p.names[0]
	if asked.fullNames {
		names = p.names[1]
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
func (s *Server) prepare(r *request) (*prepared, error) {
	key := "\x00" + r.service
	if r.service == "" {
		key = strings.Join(r.features, "\x00")
	}
	s.plans.mu.RLock()
	p := s.plans.byFeatures[key]
	s.plans.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	refs, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	if p, err = s.prepareRefs(refs); err != nil {
		return nil, err
	}
	s.plans.mu.Lock()
	defer s.plans.mu.Unlock()
	if len(s.plans.byFeatures) >= plansMax {
		clear(s.plans.byFeatures)
	}
	s.plans.byFeatures[key] = p
	return p, nil
}

func (s *Server) prepareRefs(refs []feature.Ref) (*prepared, error) {
	plan, err := s.Client.Plan(refs)
	if err != nil {
		e := wrong(codeNotServed, "features", "ask for other features; training sets have these", "%s", err)
		return nil, e
	}
	p := &prepared{plan: plan, keys: plan.JoinKeys()}
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
	}
	return p, nil
}

// resolve turns the names of a request into features that there are.
func (s *Server) resolve(r *request) ([]feature.Ref, error) {
	p := s.Project
	if r.service != "" {
		if found := p.Service(r.service); found != nil {
			return found.Features, nil
		}
		known := make([]string, len(p.Services))
		for i, o := range p.Services {
			known[i] = o.Name
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
			known := make([]string, len(p.Views))
			for i, o := range p.Views {
				known[i] = o.Name
			}
			return nil, unknown(codeNoView, field, "feature view", ref.View, known)
		}
		if names := view.FeatureNames(); ref.Feature != "*" && !slices.Contains(names, ref.Feature) {
			return nil, unknown(codeNoFeature, field, "feature of view "+ref.View, ref.Feature, names)
		}
	}
	return p.Resolve(r.features)
}

// entities gives the entities of a request as they are read, and the columns that are answered with them: join keys.
func (s *Server) entities(p *prepared, r *request) (online.Entities, []column, error) {
	e := online.Entities{Len: len(r.entities[0].cells), Keys: make(map[string][]string, len(p.keys))}
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
				return e, nil, wrong(codeWrongType, "entities."+k.Name+"["+strconv.Itoa(n)+"]", "give "+keyForms[k.Type.Kind], "the join key %s is %s", k.Name, k.Type)
			}
		}
		e.Keys[k.Name] = values
	}
	echoed := r.entities[:0:0]
	for _, c := range r.entities {
		if !s.isJoinKey(c.name) {
			return e, nil, wrong(codeColumn, "entities."+c.name, "remove it, or mend its name", "no entity has the join key %q", c.name)
		}
		echoed = append(echoed, c)
	}
	return e, echoed, nil
}

// isJoinKey reports whether an entity of the project has a join key of this name.
func (s *Server) isJoinKey(name string) bool {
	return slices.ContainsFunc(s.Project.Entities, func(e *feature.Entity) bool { return slices.Contains(e.JoinKeys, name) })
}

// keyForms are how join keys are written, by the kind of their type.
var keyForms = map[feature.Kind]string{
	feature.String: "text", feature.Int64: "a whole number, or its digits as text", feature.Date: "text such as 2026-11-01",
	feature.Timestamp: "text such as 2026-11-01T12:00:00Z",
}

// keyText is a value of the body as a join key's text, if it is one of the type.
func keyText(t feature.Type, c cell) (string, bool) {
	switch t.Kind {
	case feature.Int64:
		return c.text, c.kind == '"' || c.kind == '0'
	default:
		return c.text, c.kind == '"'
	}
}
