package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

// builder stands for the lake: what a build does is the test's.
type builder struct {
	mu       sync.Mutex
	building int
	most     int
	unpinned []string
	build    func(ctx context.Context, labels io.Reader, out io.Writer) error
}

func (b *builder) datasets(t *testing.T) *Datasets {
	card := func(tag string, features ...string) *pit.Card {
		return &pit.Card{Tag: tag, Rows: 2, Request: pit.CardRequest{Features: features}}
	}
	return &Datasets{
		TempDir: t.TempDir(),
		Request: func(p *feature.Project, parameters url.Values) (*feature.DatasetRequest, error) {
			refs, err := p.Resolve(parameters["features"])
			return &feature.DatasetRequest{Features: refs}, err
		},
		Build: func(ctx context.Context, _ *feature.DatasetRequest, labels io.Reader, _ int64, out io.Writer) (*pit.Card, error) {
			b.mu.Lock()
			b.building++
			b.most = max(b.most, b.building)
			b.mu.Unlock()
			defer func() {
				b.mu.Lock()
				b.building--
				b.mu.Unlock()
			}()
			return card("dataset-new", "short:n"), b.build(ctx, labels, out)
		},
		Cards: func(context.Context) ([]*pit.Card, error) {
			return []*pit.Card{card("dataset-2", "all:n", "short:n"), card("dataset-1", "short:n")}, nil
		},
		Unpin: func(_ context.Context, card *pit.Card) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.unpinned = append(b.unpinned, card.Tag)
			return nil
		},
	}
}

func echo(_ context.Context, labels io.Reader, out io.Writer) error {
	_, err := io.Copy(out, labels)
	return err
}

func TestDatasets(t *testing.T) {
	b := &builder{build: echo}
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) {
		o.Datasets, o.Limits.LabelBytes = b.datasets(t), 10
		o.Keys = []Key{{"all", "s3cret", []string{"*"}, nil}, {"some", "other", []string{"short"}, nil}}
	})
	ask := func(method, path, body, key string, headers ...string) (int, string, http.Header) {
		w := f.ask(method, path, body, append([]string{"Authorization", "Bearer " + key, "Content-Type", arrowType}, headers...)...)
		return w.Code, w.Body.String(), w.Header()
	}
	status, got, header := ask("POST", "/v1/datasets?features=short:n", "labels", "other")
	if status != http.StatusOK || got != "labels" || header.Get(datasetHeader) != "dataset-new" || header.Get(rowsHeader) != "2" || header.Get("Content-Type") != arrowType {
		t.Errorf("%d %s %v", status, got, header)
	}
	schema := answerSchema(t, "Error")
	for _, c := range []struct {
		name, method, path, body, key string
		err                           error // of the build
		status                        int
		code                          string
	}{
		{"no features", "POST", "/v1/datasets", "x", "s3cret", nil, 400, codeDataset},
		{"a view that the key may not read", "POST", "/v1/datasets?features=all:n", "x", "other", nil, 403, codeForbidden},
		{"too large", "POST", "/v1/datasets?features=all:n", "12345678901", "s3cret", nil, 413, codeTooLarge},
		{"labels that are at fault", "POST", "/v1/datasets?features=all:n", "x", "s3cret", fmt.Errorf("no time column: %w", pit.ErrRequest), 422, codeDataset},
		{"labels that spread", "POST", "/v1/datasets?features=all:n", "x", "s3cret", fmt.Errorf("%w: %w", pit.ErrRequest, sql.ErrStreamTooLong), 413, codeTooLarge},
		{"labels after the watermark", "POST", "/v1/datasets?features=all:n", "x", "s3cret", fmt.Errorf("3 labels: %w", pit.ErrIncomplete), 422, codeIncomplete},
		{"a lake that is away", "POST", "/v1/datasets?features=all:n", "x", "s3cret", errors.New("10.0.0.1"), 500, codeInternal},
		{"no card", "GET", "/v1/datasets/dataset-3", "", "s3cret", nil, 404, codeNoDataset},
		{"another's card", "GET", "/v1/datasets/dataset-2", "", "other", nil, 404, codeNoDataset},
		{"snapshots that the key may read of, and not unpin", "DELETE", "/v1/datasets/dataset-1", "", "other", nil, 403, codeForbidden},
		{"another's snapshots", "DELETE", "/v1/datasets/dataset-2", "", "other", nil, 404, codeNoDataset},
	} {
		b.build = echo
		if c.err != nil {
			b.build = func(context.Context, io.Reader, io.Writer) error { return c.err }
		}
		status, got, _ := ask(c.method, c.path, c.body, c.key)
		if status != c.status || !strings.Contains(got, `"code":"`+c.code+`"`) || strings.Contains(got, "10.0.0.1") {
			t.Errorf("%s: %d %s", c.name, status, got)
		}
		valid(t, schema, got)
	}
	if w := f.ask("POST", "/v1/datasets?features=all:n", "{}", "Authorization", "Bearer s3cret", "Content-Type", "application/json"); w.Code != http.StatusUnsupportedMediaType {
		t.Errorf("labels that are JSON: %d %s", w.Code, w.Body)
	}
	_, list, _ := ask("GET", "/v1/datasets", "", "s3cret")
	valid(t, answerSchema(t, "Datasets"), list)
	if _, few, _ := ask("GET", "/v1/datasets", "", "other"); !strings.Contains(list, "dataset-2") || strings.Contains(few, "dataset-2") || !strings.Contains(few, "dataset-1") {
		t.Errorf("all see %s\nsome see %s", list, few)
	}
	if status, card, _ := ask("GET", "/v1/datasets/dataset-1", "", "other"); status != http.StatusOK || !strings.Contains(card, `"tag":"dataset-1"`) {
		t.Errorf("%d %s", status, card)
	}
	if len(b.unpinned) != 0 {
		t.Errorf("unpinned %v by who may read some views alone", b.unpinned)
	}
	if status, _, _ := ask("DELETE", "/v1/datasets/dataset-1", "", "s3cret"); status != http.StatusNoContent || len(b.unpinned) != 1 || b.unpinned[0] != "dataset-1" {
		t.Errorf("%d, unpinned %v", status, b.unpinned)
	}
	for key, want := range map[string]string{"s3cret": "known: all, derived, short, windows", "other": "known: short"} {
		if _, got, _ := ask("POST", "/v1/datasets?features=nosuch:n", "x", key); !strings.Contains(got, want+`"`) {
			t.Errorf("want %q in %s", want, got)
		}
	}
	none := newFixture(t, miniredis.RunT(t).Addr(), nil)
	for _, c := range [][2]string{{"POST", "/v1/datasets"}, {"GET", "/v1/datasets"}, {"GET", "/v1/datasets/x"}, {"DELETE", "/v1/datasets/x"}} {
		if w := none.ask(c[0], c[1], ""); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), codeNotOffered) {
			t.Errorf("a server without a lake: %s %s: %d %s", c[0], c[1], w.Code, w.Body)
		}
	}
}

// One build works at a time, some wait, and the next is refused. One whose caller has gone makes way.
func TestBuildsWait(t *testing.T) {
	begun, end := make(chan struct{}, 100), make(chan struct{})
	b := &builder{build: func(ctx context.Context, _ io.Reader, _ io.Writer) error {
		begun <- struct{}{}
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) { o.Datasets = b.datasets(t) })
	ask := func(ctx context.Context) int {
		r, err := http.NewRequestWithContext(ctx, "POST", "/v1/datasets?features=short:n", strings.NewReader("x"))
		if err != nil {
			t.Error(err)
		}
		r.Header.Set("Content-Type", arrowType)
		w := &status{header: http.Header{}}
		f.server.ServeHTTP(w, r)
		return w.code
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan int, 1)
	go func() { left <- ask(ctx) }()
	<-begun
	var waiting sync.WaitGroup
	for range buildsWaiting {
		waiting.Go(func() {
			if code := ask(t.Context()); code != http.StatusOK {
				t.Errorf("one that waited: %d", code)
			}
		})
	}
	for len(f.server.builds.places) < 1+buildsWaiting { // until all are in line
		if t.Context().Err() != nil {
			t.Fatal("they never came")
		}
	}
	if code := ask(t.Context()); code != http.StatusTooManyRequests {
		t.Errorf("one too many: %d", code)
	}
	leave()
	if code := <-left; code == http.StatusOK {
		t.Error("a build whose caller has gone was answered")
	}
	close(end)
	waiting.Wait()
	if b.most != 1 {
		t.Errorf("%d builds worked at once", b.most)
	}
	if n := len(f.server.builds.places); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}

// A build takes as long as it takes: the times of the server are for requests that are answered at once.
func TestBuildsTakeLonger(t *testing.T) {
	b := &builder{}
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) {
		o.Datasets = b.datasets(t)
		o.Limits.Body, o.Limits.Write, o.Limits.Header, o.Limits.Transfer = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, 5*time.Second
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.server.Run(ctx, l) }()
	for want, result := range map[int]error{http.StatusOK: nil, http.StatusUnprocessableEntity: pit.ErrRequest} {
		b.build = func(ctx context.Context, labels io.Reader, out io.Writer) error {
			select {
			case <-ctx.Done(): // as it is once a time to read has passed
				return ctx.Err()
			case <-time.After(300 * time.Millisecond):
			}
			return errors.Join(echo(ctx, labels, out), result)
		}
		answer, err := http.Post("http://"+l.Addr().String()+"/v1/datasets?features=short:n", arrowType, strings.NewReader("labels"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != want || err != nil || want == http.StatusOK && string(text) != "labels" {
			t.Errorf("%d %s %v, want %d", answer.StatusCode, text, err, want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// status is a response of which only the status is kept.
type status struct {
	header http.Header
	code   int
}

func (s *status) Header() http.Header         { return s.header }
func (s *status) WriteHeader(code int)        { s.code = code }
func (s *status) Write(b []byte) (int, error) { return len(b), nil }
