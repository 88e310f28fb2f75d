package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Whatever a body is, it is read, or refused with an error of the caller's; what is read is what another decoder reads.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"features":["all:n"],"entities":{"a":["x",1,null,true,{"b":[1]},[2]]},"full_feature_names":true}`,
		`{"feature_service":"s","entities":{"a":[]},"request_data":null,"include_feature_view_version_metadata":false}`, `{"features":null}`, `[`, `{"entities":{"a":1}}`, "", "{}x", `{"a":`, `{"features":n`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parse(bytes.NewBuffer(bytes.Clone(body)))
		if err != nil {
			var own *Error
			if !errors.As(err, &own) || own.Status != 400 || own.Message == "" || own.Remedy == "" {
				t.Fatalf("%q: %v", body, err)
			}
			if !json.Valid(own.append(nil)) {
				t.Fatalf("%q: the error is no JSON: %s", body, own.append(nil))
			}
			return
		}
		var other struct {
			Features []string         `json:"features"`
			Service  *string          `json:"feature_service"`
			Entities map[string][]any `json:"entities"`
		}
		if err := json.Unmarshal(body, &other); err != nil {
			t.Fatalf("%q was read, and is %v", body, err)
		}
		if len(other.Features) != len(r.features) || len(other.Entities) != len(r.entities) || other.Service != nil && *other.Service != r.service {
			t.Fatalf("%q was read as %+v", body, r)
		}
		for _, c := range r.entities {
			if len(other.Entities[c.name]) != len(c.cells) {
				t.Fatalf("%q: column %s was read as %+v", body, c.name, c.cells)
			}
			if text := appendKeys(nil, c); !json.Valid(text) {
				t.Fatalf("%q: column %s is answered as %s", body, c.name, text)
			}
		}
	})
}

func TestAppendTime(t *testing.T) {
	for _, c := range []struct {
		us   int64
		want string
	}{
		{0, "1970-01-01T00:00:00Z"}, {1793577600000000, "2026-11-02T00:00:00Z"}, {1793577600120000, "2026-11-02T00:00:00.120Z"},
		{-1, "1969-12-31T23:59:59.999999Z"}, {1793491200123457, "2026-11-01T00:00:00.123457Z"}, {-62135596800000000, "0001-01-01T00:00:00Z"},
	} {
		if got := string(appendTime(nil, time.UnixMicro(c.us))); got != c.want {
			t.Errorf("%d: %s, want %s", c.us, got, c.want)
		}
	}
}

// What one request has prepared is not taken for what another asks for, whatever bytes names hold, and what is kept of requests is bounded.
func TestPlansAreApart(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), nil).filled()
	ask := func(what string) int {
		status, _ := f.post("/get-online-features", `{`+what+`,"full_feature_names":true,"entities":{"a":["x"],"b":[1]}}`)
		return status
	}
	for _, c := range []struct {
		asks string
		want int
	}{
		{`"feature_service":"both"`, 200}, {`"features":["","both"]`, 400},
		{`"features":["short:n","all:m"]`, 200}, {`"features":["short:n\u0000all:m"]`, 400},
	} {
		if got := ask(c.asks); got != c.want {
			t.Errorf("%s: %d, want %d", c.asks, got, c.want)
		}
	}
	for i := range 10 { // the same features, each time written as no request has
		if got := ask(fmt.Sprintf(`"features":["short:n"%s]`, strings.Repeat(`,"`+strings.Repeat(" ", i)+`short:n"`, 4000))); got != 200 {
			t.Errorf("a long list: %d", got)
		}
	}
	kept := 0
	for key := range f.server.plans.byFeatures {
		kept += len(key)
	}
	if kept > 1000 {
		t.Errorf("%d bytes of requests are kept", kept)
	}
}
