package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// apply tells of a catalog that has no views, and does not fail for it.
func TestCatalogWithoutViews(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/config" { // that lists no endpoint of views
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"defaults": {}, "overrides": {}}`)
			return
		}
		_, _ = io.WriteString(w, `{"namespace": ["crm"], "properties": {}}`)
	}))
	defer server.Close()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	text := "project: crm\nlake: {catalog: " + server.URL + ", warehouse: 's3://bucket/w'}\n"
	if err := os.WriteFile(filepath.Join(dir, "loam.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	a := &app{dir: dir, out: io.Discard, err: &said}
	p, l, err := a.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := a.keepViews(t.Context(), p, l); err != nil || said.String() != "the catalog has no views: crm.contact_current is not made, nor are those of other streams\n" {
		t.Errorf("%v\n%s", err, &said)
	}
}
