package schema

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

// Bounds of what is taken from a registry.
const (
	requestTimeout = 10 * time.Second
	answerBytesMax = 4 << 20 // of one answer
	documentsMax   = 100     // of one schema: itself and all that it refers to
	documentBytes  = 4 << 20 // of all of them
)

// ErrAway marks errors of a registry that can't be asked now: it may be asked again, and nothing is lost until then.
var ErrAway = errors.New("the registry is away")

// errUnknown is what the registry says of a schema, a subject or a version that it doesn't have.
var errUnknown = errors.New("the registry doesn't have it")

// Registry is a client of a schema registry. It is safe for concurrent use.
type Registry struct {
	url    string
	client *sr.Client
}

// Open makes a client of the project's registry. It reads the credentials, and asks the registry nothing. dir is the
// project folder.
func Open(r feature.Registry, dir string) (*Registry, error) {
	options := []sr.ClientOpt{
		sr.URLs(r.URL), sr.UserAgent("loam"),
		sr.HTTPClient(&http.Client{Timeout: requestTimeout, Transport: bounded{http.DefaultTransport}}),
	}
	if r.Username.Given() {
		name, err := r.Username.Read(dir)
		if err != nil {
			return nil, fmt.Errorf("read registry.username of %s: %w", feature.ProjectFile, err)
		}
		password, err := r.Password.Read(dir)
		if err != nil {
			return nil, fmt.Errorf("read registry.password of %s: %w", feature.ProjectFile, err)
		}
		options = append(options, sr.BasicAuth(name, password))
	}
	client, err := sr.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("make a client of the registry at %s: %w", r.URL, err)
	}
	return &Registry{url: r.URL, client: client}, nil
}

// bounded cuts answers that are longer than any schema may be.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = &boundedBody{response.Body, answerBytesMax}
	}
	return response, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

var errTooLong = fmt.Errorf("an answer is longer than %d bytes", answerBytesMax)

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// document is a schema's text under the name by which others refer to it.
type document struct {
	name string
	text string
}

// source is a schema as the registry has it, and all that it refers to, each behind what it refers to itself.
type source struct {
	kind       sr.SchemaType
	text       string
	references []document
}

// schema gives the schema with this id.
func (r *Registry) schema(ctx context.Context, id int) (*source, error) {
	s, err := r.client.SchemaByID(ctx, id)
	if err != nil {
		return nil, r.classify(fmt.Sprintf("look schema id %d up", id), err)
	}
	return r.resolve(ctx, s)
}

// resolve fetches all that a schema refers to.
func (r *Registry) resolve(ctx context.Context, s sr.Schema) (*source, error) {
	f := &fetching{Registry: r, seen: map[string]bool{}, bytes: len(s.Schema)}
	if err := f.references(ctx, s.References); err != nil {
		return nil, err
	}
	return &source{kind: s.Type, text: s.Schema, references: f.documents}, nil
}

// fetching gathers what one schema refers to.
type fetching struct {
	*Registry
	seen      map[string]bool // by name, subject and version
	documents []document
	bytes     int
}

func (f *fetching) references(ctx context.Context, references []sr.SchemaReference) error {
	for _, ref := range references {
		key := fmt.Sprintf("%s\x00%s\x00%d", ref.Name, ref.Subject, ref.Version)
		if f.seen[key] {
			continue
		}
		f.seen[key] = true
		if len(f.seen) >= documentsMax {
			return unreadable{fmt.Errorf("it refers to %d others and more", documentsMax), ""}
		}
		s, err := f.client.SchemaByVersion(ctx, ref.Subject, ref.Version)
		if err != nil {
			err = f.classify(fmt.Sprintf("look version %d of subject %s up", ref.Version, ref.Subject), err)
			if errors.Is(err, errUnknown) {
				err = unreadable{fmt.Errorf("it refers to %s: %w", ref.Name, err), ""}
			}
			return err
		}
		if f.bytes += len(s.Schema.Schema); f.bytes > documentBytes {
			return unreadable{fmt.Errorf("with all that it refers to it is longer than %d bytes", documentBytes), ""}
		}
		if err := f.references(ctx, s.References); err != nil {
			return err
		}
		f.documents = append(f.documents, document{ref.Name, s.Schema.Schema})
	}
	return nil
}

// classify tells what an error of the registry means. It quotes no answer: anything may stand there.
func (r *Registry) classify(what string, err error) error {
	var answer *sr.ResponseError
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, errTooLong):
		return unreadable{fmt.Errorf("%s: %w", what, errTooLong), ""}
	case !errors.As(err, &answer):
		// No answer, or one that isn't a registry's.
		return fmt.Errorf("%s at %s: %w: %s", what, r.url, ErrAway, transport(err))
	}
	said := fmt.Sprintf("HTTP %d", answer.StatusCode)
	if answer.ErrorCode != 0 {
		said += fmt.Sprintf(", error %d", answer.ErrorCode)
	}
	switch code := answer.StatusCode; {
	case code == http.StatusNotFound && answer.ErrorCode/100 == http.StatusNotFound:
		return fmt.Errorf("%s at %s: %w (%s)", what, r.url, errUnknown, said)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%s: the registry at %s refuses loam's credentials (%s); mend registry.username and registry.password in %s, "+
			"or have the registry let it read", what, r.url, said, feature.ProjectFile)
	case code == http.StatusNotFound, code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		// Not found without the registry's own code is what a proxy says of a registry that it doesn't reach.
		return fmt.Errorf("%s at %s: %w: it answers %s", what, r.url, ErrAway, said)
	default:
		return fmt.Errorf("%s: the registry at %s answers %s; mend registry.url in %s", what, r.url, said, feature.ProjectFile)
	}
}

// transport is what hindered a request, without the request.
func transport(err error) string {
	var timeout net.Error
	var operation *net.OpError
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &operation):
		return operation.Error()
	case strings.Contains(err.Error(), "decode ok response"):
		return "what answers is no registry"
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err.Error()
}
