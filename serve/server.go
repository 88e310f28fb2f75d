package serve

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed" // openapi.json
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// Limits bound what a server takes. Those that are 0 are set to their defaults by [New].
type Limits struct {
	BodyBytes  int64         // of a request; beyond it 413. Default 1 MiB
	Entities   int           // of a request; beyond them 400. Default 1,000
	PushRows   int           // of a push; beyond them 413. Default 10,000
	LabelBytes int64         // of the labels of a training set; beyond them 413. Default 256 MiB
	Transfer   time.Duration // within which labels are to come, and a training set is to be taken. Default 5 min
	Concurrent int           // requests that are answered at once; beyond them 503. Default 512
	Timeout    time.Duration // of a request, Redis included; beyond it 503. Default 2 s
	Header     time.Duration // within which a header is to come. Default 5 s
	Body       time.Duration // within which header and body are to come. Default 10 s
	Write      time.Duration // within which an answer is to be taken, from the end of the header on. Default 15 s
	Idle       time.Duration // after which a connection without requests is ended. Default 2 min
	Ready      time.Duration // for which /ready answers what it has found. Default 1 s
	Drain      time.Duration // for which requests that are on their way are waited for at the end. Default 10 s
}

// headerBytes bounds the header of a request.
const headerBytes = 16 << 10

func (l *Limits) setDefaults() {
	set(&l.BodyBytes, 1<<20)
	set(&l.Entities, 1000)
	set(&l.PushRows, 10_000)
	set(&l.LabelBytes, 256<<20)
	set(&l.Transfer, 5*time.Minute)
	set(&l.Concurrent, 512)
	set(&l.Timeout, 2*time.Second)
	set(&l.Header, 5*time.Second)
	set(&l.Body, 10*time.Second)
	set(&l.Write, 15*time.Second)
	set(&l.Idle, 2*time.Minute)
	set(&l.Ready, time.Second)
	set(&l.Drain, 10*time.Second)
}

func set[T comparable](at *T, value T) {
	var zero T
	if *at == zero {
		*at = value
	}
}

// Options are what a server is made of.
type Options struct {
	Project *feature.Project
	Client  *online.Client
	Limits  Limits
	TLS     *tls.Config                      // nil for plain HTTP
	Keys    []Key                            // none lets whoever reaches the server do all
	Say     func(format string, args ...any) // tells the operator of what callers aren't told
	// Producer takes what is pushed; nil refuses pushes.
	Producer Producer
	// Datasets builds training sets; nil refuses to.
	Datasets *Datasets
	// Log takes what is served; nil logs nothing.
	Log *FeatureLog
}

// Served is what was answered to a request for features.
type Served struct {
	Service string       // "" where features were asked for by name
	Plan    *online.Plan // the features, in the order of the rows
	Keys    online.Entities
	Result  *online.Result // with what the values rest on
}

// Server answers requests. It is safe for concurrent use.
type Server struct {
	Options
	mux      *http.ServeMux
	routes   []route
	inFlight chan struct{}
	plans    plans
	callers  []caller
	// joinKeys are those of the project's entities, requestColumns the columns that its views on demand take of requests.
	joinKeys, requestColumns map[string]bool
	metrics                  metrics
	builds                   builds
	readiness                readiness
	stopping                 chan struct{} // closed once the server is to end
}

// route is what a path answers.
type route struct {
	method, path string
	// open routes need no API key, and are answered however many requests there are.
	open bool
	// handle answers; an error is answered as explain says. The caller is nil where there are no keys, and on open routes.
	handle func(w http.ResponseWriter, r *http.Request, c *caller) error
}

// routesOf are all routes. Those of other parts are added here.
func (s *Server) routesOf() []route {
	return []route{
		{method: http.MethodPost, path: "/get-online-features", handle: s.getOnlineFeatures},
		{method: http.MethodPost, path: "/push", handle: s.push},
		{method: http.MethodPost, path: "/v1/datasets", handle: s.buildDataset},
		{method: http.MethodGet, path: "/v1/datasets", handle: s.listDatasets},
		{method: http.MethodGet, path: "/v1/datasets/{id}", handle: s.showDataset},
		{method: http.MethodDelete, path: "/v1/datasets/{id}", handle: s.unpinDataset},
		{method: http.MethodGet, path: "/health", open: true, handle: s.health},
		{method: http.MethodGet, path: "/ready", open: true, handle: s.ready},
		{method: http.MethodGet, path: "/metrics", open: true, handle: s.metricsText},
		{method: http.MethodGet, path: "/openapi.json", open: true, handle: s.openAPI},
	}
}

// New makes a server.
func New(o Options) *Server {
	o.Limits.setDefaults()
	s := &Server{Options: o, mux: http.NewServeMux(), inFlight: make(chan struct{}, o.Limits.Concurrent), builds: newBuilds(), stopping: make(chan struct{})}
	s.plans.byFeatures = map[string]*prepared{}
	s.joinKeys, s.requestColumns = map[string]bool{}, map[string]bool{}
	for _, e := range o.Project.Entities {
		for _, k := range e.JoinKeys {
			s.joinKeys[k] = true
		}
	}
	for _, v := range o.Project.Views {
		if v.OnDemand != nil {
			for _, c := range v.OnDemand.Request {
				s.requestColumns[c.Name] = true
			}
		}
	}
	s.callers = callersOf(o.Keys)
	s.routes = s.routesOf()
	s.metrics.routes = make([]routeMetrics, len(s.routes)+1)
	for i, r := range s.routes {
		s.mux.Handle(r.method+" "+r.path, s.serve(r, &s.metrics.routes[i]))
	}
	s.mux.Handle("/", s.serve(route{open: true, handle: s.noRoute}, &s.metrics.routes[len(s.routes)]))
	return s
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// serve makes a handler of a route.
func (s *Server) serve(of route, m *routeMetrics) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		noted := &noting{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			if broken := recover(); broken != nil {
				s.Say("%s %s: panic: %v\n%s", r.Method, r.URL.Path, broken, debug.Stack())
				s.fail(noted, r, fmt.Errorf("panic: %v", broken))
			}
			m.took(noted.status, time.Since(begun))
		}()
		if err := s.answer(of, noted, r); err != nil {
			s.fail(noted, r, err)
		}
	})
}

// noting notes the status of an answer.
type noting struct {
	http.ResponseWriter
	status int
}

func (n *noting) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (n *noting) Unwrap() http.ResponseWriter { return n.ResponseWriter }

func (s *Server) answer(of route, w http.ResponseWriter, r *http.Request) error {
	if of.open {
		return of.handle(w, r, nil)
	}
	select {
	case s.inFlight <- struct{}{}:
		defer func() { <-s.inFlight }()
	default:
		return &Error{Status: http.StatusServiceUnavailable, Code: codeOverload, Offset: -1, RetryAfter: 1,
			Message: fmt.Sprintf("%d requests are being answered, and no more are taken at once", s.Limits.Concurrent),
			Remedy:  "try again later, or raise serve.concurrent in loam.yaml"}
	}
	c, err := s.caller(r)
	if err != nil {
		return err
	}
	return of.handle(w, r, c)
}

// fail answers with an error, and tells the operator of what the caller isn't told.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := explain(err)
	if e.Status >= http.StatusInternalServerError && e.Code != codeOverload && r.Context().Err() == nil {
		s.Say("%s %s: %v", r.Method, r.URL.Path, err)
	}
	s.metrics.failed(e.Code)
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	if e.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	writeJSON(w, e.Status, e.append(nil))
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // whoever asked has gone
}

var jsonType = []string{"application/json"}

// noRoute answers what no route does.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request, _ *caller) error {
	var methods, paths []string
	for _, of := range s.routes {
		paths = append(paths, of.path)
		asked := *r
		asked.Method = of.method
		if _, pattern := s.mux.Handler(&asked); pattern == of.method+" "+of.path {
			methods = append(methods, of.method)
		}
	}
	if len(methods) > 0 {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		return &Error{Status: http.StatusMethodNotAllowed, Code: codeMethod, Offset: -1,
			Message: fmt.Sprintf("%s doesn't take %s", r.URL.Path, r.Method), Remedy: "use " + strings.Join(methods, " or ")}
	}
	slices.Sort(paths)
	return unknown(codeNoRoute, "", "route", r.URL.Path, slices.Compact(paths))
}

// body reads the body of a request that is to be JSON into a buffer, which the caller gives back to buffers.
func (s *Server) body(w http.ResponseWriter, r *http.Request) (*bytes.Buffer, error) {
	if given := r.Header.Get("Content-Type"); given != "" && given != jsonType[0] {
		if media, _, err := mime.ParseMediaType(given); err != nil || media != jsonType[0] {
			return nil, &Error{Status: http.StatusUnsupportedMediaType, Code: codeMedia, Offset: -1,
				Message: fmt.Sprintf("the body is %q", given), Remedy: "send JSON, with the header Content-Type: application/json"}
		}
	}
	b := buffers.Get().(*bytes.Buffer)
	b.Reset()
	if n, ok := w.(*noting); ok {
		w = n.ResponseWriter // which ends the connection where a body is too large
	}
	if _, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, s.Limits.BodyBytes)); err != nil {
		buffers.Put(b)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil, &Error{Status: http.StatusRequestTimeout, Code: codeSlow, Offset: -1,
				Message: fmt.Sprintf("the body did not come within %s", s.Limits.Body), Remedy: "send it at once"}
		}
		return nil, fmt.Errorf("read the body: %w", err)
	}
	return b, nil
}

// Buffers and decoders that requests use one after the other.
var (
	buffers  = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}
	answers  = sync.Pool{New: func() any { return new([]byte) }}
)

// answerBytes bounds the answers whose memory is kept for the next one.
const answerBytes = 1 << 20

// openAPIFile says what the server takes and answers, for machines. A test holds it against the routes.
//
//go:embed openapi.json
var openAPIFile []byte

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request, _ *caller) error {
	writeJSON(w, http.StatusOK, openAPIFile)
	return nil
}

// health answers that the process lives.
func (s *Server) health(w http.ResponseWriter, _ *http.Request, _ *caller) error {
	writeJSON(w, http.StatusOK, []byte(`{"status":"ok"}`+"\n"))
	return nil
}

// readiness is what /ready has found last. Whoever asks while Redis is asked waits for what that gives, so that however many ask,
// Redis is asked once in a while.
type readiness struct {
	mu    sync.Mutex
	until time.Time // it is good for
	ready bool
	views []byte // as JSON
}

// ready answers whether every view can be read.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, _ *caller) error {
	ready, views := s.askReady(context.WithoutCancel(r.Context())) // others are answered the same
	status, state := http.StatusOK, "ready"
	if !ready {
		status, state = http.StatusServiceUnavailable, "not ready"
	}
	select {
	case <-s.stopping:
		status, state = http.StatusServiceUnavailable, "stopping"
	default:
	}
	writeJSON(w, status, slices.Concat(appendQuoted([]byte(`{"status":`), state), []byte(`,"views":[`), views, []byte("]}\n")))
	return nil
}

// askReady asks of all views at once whether they can be read, unless that is known.
func (s *Server) askReady(ctx context.Context) (ready bool, views []byte) {
	known := &s.readiness
	known.mu.Lock()
	defer known.mu.Unlock()
	if time.Now().Before(known.until) {
		return known.ready, known.views
	}
	ctx, cancel := context.WithTimeout(ctx, s.Limits.Timeout)
	defer cancel()
	names := s.Client.Views()
	failed := make([]error, len(names))
	var asking sync.WaitGroup
	for i, v := range names {
		asking.Go(func() { failed[i] = s.Client.Ready(ctx, v) })
	}
	asking.Wait()
	ready = true
	for i, v := range names {
		if i > 0 {
			views = append(views, ',')
		}
		views = append(appendQuoted(append(views, `{"name":`...), v), `,"ready":`...)
		views = strconv.AppendBool(views, failed[i] == nil)
		if failed[i] != nil {
			ready = false
			e := explain(failed[i])
			views = appendQuoted(append(views, `,"code":`...), e.Code)
			views = appendQuoted(append(views, `,"message":`...), e.Message)
		}
		views = append(views, '}')
	}
	known.until, known.ready, known.views = time.Now().Add(s.Limits.Ready), ready, views
	return ready, views
}

// Run serves what a listener accepts until ctx is done; then it takes no new connections, and waits for the requests that are on
// their way, no longer than Limits.Drain.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: s.Limits.Header, ReadTimeout: s.Limits.Body, WriteTimeout: s.Limits.Write, IdleTimeout: s.Limits.Idle,
		MaxHeaderBytes: headerBytes, TLSConfig: s.TLS,
		ErrorLog: log.New(io.Discard, "", 0), // what clients do to their connections is theirs
	}
	ended := make(chan error, 1)
	go func() {
		if s.TLS != nil {
			ended <- server.ServeTLS(l, "", "")
			return
		}
		ended <- server.Serve(l)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serve at %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	close(s.stopping)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Limits.Drain)
	defer cancel()
	err := server.Shutdown(drain)
	<-ended
	if err != nil {
		return errors.Join(fmt.Errorf("requests were still on their way %s after the server was to end: %w", s.Limits.Drain, err), server.Close())
	}
	return nil
}
