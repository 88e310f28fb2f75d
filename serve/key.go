package serve

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
)

// Key lets who presents it read some views.
type Key struct {
	Name   string
	Secret string
	Views  []string // their names, or "*" for all there are
	Push   []string // streams that it may push to, or "*" for all there are
}

// caller is who asks. nil may do all: the server has no keys.
type caller struct {
	name  string
	sum   [sha256.Size]byte // of the secret: sums are compared, in a time that tells nothing of them
	views []string
	push  []string
}

func callersOf(keys []Key) []caller {
	all := make([]caller, len(keys))
	for i, k := range keys {
		all[i] = caller{name: k.Name, sum: sha256.Sum256([]byte(k.Secret)), views: k.Views, push: k.Push}
	}
	return all
}

// caller tells by the header Authorization: Bearer <key> who asks.
func (s *Server) caller(r *http.Request) (*caller, error) {
	if len(s.callers) == 0 {
		return nil, nil
	}
	refused := &Error{Status: http.StatusUnauthorized, Code: codeNoKey, Offset: -1,
		Message: "the request has no API key", Remedy: "send the header Authorization: Bearer <key>"}
	scheme, secret, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil, refused
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(secret)))
	var found *caller
	for i := range s.callers { // all of them, whichever it is
		if subtle.ConstantTimeCompare(sum[:], s.callers[i].sum[:]) == 1 {
			found = &s.callers[i]
		}
	}
	if found == nil {
		refused.Message, refused.Remedy = "the API key is none of those that the server knows", "use one of serve.keys in loam.yaml"
		return nil, refused
	}
	return found, nil
}

// mayRead refuses views that the caller may not read.
func (c *caller) mayRead(views []string) error {
	if c.readsAll() {
		return nil
	}
	for _, v := range views {
		if !slices.Contains(c.views, v) {
			return &Error{Status: http.StatusForbidden, Code: codeForbidden, Offset: -1,
				Message: fmt.Sprintf("the API key %s may not read feature view %s", c.name, v), Remedy: "use another key, or add the view to it in serve.keys of loam.yaml"}
		}
	}
	return nil
}

// readsAll reports whether the caller may read whatever there is.
func (c *caller) readsAll() bool { return c == nil || slices.Contains(c.views, "*") }

// sees is what of a project the caller is told of: the views that it may read, and the services that are of those alone.
func (c *caller) sees(p *feature.Project) *feature.Project {
	if c.readsAll() {
		return p
	}
	seen := *p
	hidden := func(view string) bool { return !slices.Contains(c.views, view) }
	seen.Views = slices.DeleteFunc(slices.Clone(p.Views), func(v *feature.View) bool { return hidden(v.Name) })
	seen.Services = slices.DeleteFunc(slices.Clone(p.Services), func(s *feature.Service) bool {
		return slices.ContainsFunc(s.Features, func(r feature.Ref) bool { return hidden(r.View) })
	})
	return &seen
}

// mayReadAll refuses callers that may read some views alone.
func (c *caller) mayReadAll() error {
	return c.mayAll("outcomes are of any stream", "use a key that may read all, or ask without outcomes")
}

// mayUnpin refuses callers that may read some views alone: the snapshots of a training set are of whole streams, and others may need them.
func (c *caller) mayUnpin() error {
	return c.mayAll("so may not unpin training sets", `use a key with views: ["*"]`)
}

// mayAll refuses callers that may read some views alone, and says why that isn't enough.
func (c *caller) mayAll(why, remedy string) error {
	if c.readsAll() {
		return nil
	}
	return &Error{Status: http.StatusForbidden, Code: codeForbidden, Offset: -1,
		Message: fmt.Sprintf("the API key %s may read some views alone, and %s", c.name, why), Remedy: remedy}
}

// mayPush refuses streams that the caller may not push to.
func (c *caller) mayPush(stream string) error {
	if c == nil || slices.Contains(c.push, "*") || slices.Contains(c.push, stream) {
		return nil
	}
	return &Error{Status: http.StatusForbidden, Code: codeForbidden, Offset: -1,
		Message: fmt.Sprintf("the API key %s may not push to stream %s", c.name, stream), Remedy: "use another key, or add the stream to its `push` in serve.keys of loam.yaml"}
}
