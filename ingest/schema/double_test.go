package schema

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

// double is a registry that speaks what loam uses of Confluent's API.
type double struct {
	*httptest.Server
	mu       sync.Mutex
	schemas  map[int]sr.Schema
	versions map[string]sr.Schema // by <subject>/<version>
	breaks   map[string][]string  // by subject: why nothing is compatible with it
	broken   int                  // the status that every request is answered with, 0 for none
	user     string               // and password, of who may ask; "" for all
	asked    []string
}

func newDouble(t testing.TB) *double {
	d := &double{schemas: map[int]sr.Schema{}, versions: map[string]sr.Schema{}, breaks: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /schemas/ids/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, _ := strconv.Atoi(r.PathValue("id"))
		s, ok := d.schemas[id]
		d.answer(w, s, ok, 40403)
	})
	mux.HandleFunc("GET /subjects/{subject}/versions/{version}", func(w http.ResponseWriter, r *http.Request) {
		s, ok := d.versions[r.PathValue("subject")+"/"+r.PathValue("version")]
		d.answer(w, sr.SubjectSchema{Subject: r.PathValue("subject"), Schema: s}, ok, 40402)
	})
	mux.HandleFunc("POST /compatibility/subjects/{subject}/versions", func(w http.ResponseWriter, r *http.Request) {
		why, ok := d.breaks[r.PathValue("subject")]
		d.answer(w, sr.CheckCompatibilityResult{Is: len(why) == 0, Messages: why}, ok, 40401)
	})
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asked = append(d.asked, r.URL.Path)
		name, password, _ := r.BasicAuth()
		switch {
		case d.broken != 0:
			w.WriteHeader(d.broken)
			fmt.Fprint(w, "<html>hunter2</html>")
		case d.user != "" && name+":"+password != d.user:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error_code": 40101, "message": "%s:%s is not known"}`, name, password)
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *double) answer(w http.ResponseWriter, v any, found bool, code int) {
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	if !found {
		w.WriteHeader(http.StatusNotFound)
		v = map[string]any{"error_code": code, "message": "not found"}
	}
	_ = json.NewEncoder(w).Encode(v)
}

// with runs a change of the double that no request sees the half of.
func (d *double) with(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *double) open(t testing.TB) *Registry {
	t.Helper()
	r, err := Open(feature.Registry{URL: d.URL}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// framed puts a schema's id before an event.
func framed(id int, event []byte, index ...int) []byte {
	b, err := new(sr.ConfluentHeader).AppendEncode(nil, id, index)
	if err != nil {
		panic(err)
	}
	return append(b, event...)
}

// streamOf makes a stream of columns written as name type path, a line each.
func streamOf(e feature.Encoding, format feature.Format, columns string) *feature.Stream {
	s := &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: format, Encoding: e, Topic: "thing.v1", Key: []string{"thing_id"}, ClusterBy: "thing_id",
		Payload: feature.FullPayload, EventTypes: []string{"Thing.*"},
	}
	if format == feature.RowFormat {
		s.EventTime = "updated_at"
	}
	for line := range strings.Lines(columns) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		t, err := feature.ParseType(words[1])
		if err != nil {
			panic(err)
		}
		c := feature.Column{Name: words[0], Type: t, Path: []string{words[0]}}
		if len(words) > 2 {
			c.Path = strings.Split(words[2], ".")
		}
		s.Columns = append(s.Columns, c)
	}
	return s
}
