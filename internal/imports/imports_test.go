// Package imports holds who may import whom. It has no code of its own.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/loamdata/loam"

// allowed are the packages of loam that each may import; cmd and internal may import all.
var allowed = map[string][]string{
	"feature": {}, "sql": {}, "examples": {}, "scd": {"feature"},
	"lake":          {"scd", "feature", "sql"},
	"ingest":        {"feature", "sql"},
	"ingest/schema": {"feature"},
	"pit":           {"feature", "lake", "sql"},
	"online":        {"feature", "lake", "sql"},
	"verify":        {"feature", "lake", "online", "sql"},
	"quality":       {"feature", "lake", "sql"},
	"serve":         {"feature", "ingest", "online", "pit", "sql"},
}

// steps is imported by whoever has steps at which a test may end the process, and numbers by whoever aggregates but verify; they
// import nothing of loam.
const (
	steps   = "internal/step"
	numbers = "internal/numeric"
)

// vague are names of packages that say nothing of what is in them.
var vague = []string{"util", "utils", "common", "helpers", "types", "models", "base", "config"}

// check tells what is wrong with a package that imports these, "" for nothing.
func check(name string, imports []string) string {
	if slices.Contains(vague, path.Base(name)) {
		return name + " says nothing of what is in it"
	}
	free := strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "internal/")
	if _, known := allowed[name]; !known && !free {
		return name + " is not in the table of who may import whom"
	}
	for _, i := range imports {
		own, isOwn := strings.CutPrefix(i, module+"/")
		switch {
		case isOwn && !free && own != steps && (own != numbers || name == "verify") && !slices.Contains(allowed[name], own):
			return name + " may not import " + own
		case strings.HasPrefix(i, "github.com/duckdb/") && name != "sql":
			return name + " may not import the DuckDB driver: sql wraps it"
		case strings.HasPrefix(i, "github.com/apache/iceberg-go/io/gocloud") && i != "github.com/apache/iceberg-go/io/gocloud/s3":
			return name + " imports clouds besides S3, which double the binary"
		}
	}
	return ""
}

func TestWhoImportsWhom(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags=duckdb_arrow", "-json=ImportPath,Imports", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; packages++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if wrong := check(strings.TrimPrefix(p.ImportPath, module+"/"), p.Imports); wrong != "" {
			t.Error(wrong)
		}
	}
	if packages < len(allowed) {
		t.Errorf("%d packages were checked, want %d at least", packages, len(allowed))
	}
}

// The check fails on what it is there to refuse.
func TestForbiddenImports(t *testing.T) {
	for _, c := range []struct {
		name     string
		imported string
	}{
		{"scd", module + "/lake"}, {"pit", module + "/online"}, {"online", module + "/pit"}, {"ingest", module + "/lake"},
		{"verify", module + "/scd"}, {"quality", module + "/verify"}, {"lake", "github.com/duckdb/duckdb-go/v2"}, {"cmd/loam", "github.com/apache/iceberg-go/io/gocloud"},
		{"other", "fmt"}, {"internal/util", "fmt"},
	} {
		if check(c.name, []string{c.imported}) == "" {
			t.Errorf("%s may import %s", c.name, c.imported)
		}
	}
}
