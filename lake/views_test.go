package lake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog/rest"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/view"

	"github.com/loamdata/loam/feature"
)

var currentIdent = table.Identifier{"test", "thing_current"}

// loadView loads the view of testStream as another program does.
func loadView(t *testing.T, l *Lake) view.Metadata {
	t.Helper()
	switch c := l.catalog.(type) {
	case *rest.Catalog:
		v, err := c.LoadView(t.Context(), currentIdent)
		if err != nil {
			t.Fatal(err)
		}
		return v.Metadata()
	case *sqlcatalog.Catalog:
		v, err := c.LoadView(t.Context(), currentIdent)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	panic("no such catalog")
}

// statements are a view's by dialect.
func statements(v view.Metadata) map[string]string {
	byDialect := map[string]string{}
	for _, r := range v.CurrentVersion().Representations {
		byDialect[r.Dialect] = r.Sql
	}
	return byDialect
}

// The view of what is current, loaded from the catalog and run in DuckDB over the history, has the open versions that the
// changes make. It is replaced when columns are added, and stays as it is otherwise.
func TestCurrentView(t *testing.T) {
	ctx := context.Background()
	l, def := openLake(t), testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	var rows []row
	for i := range int64(60) {
		r := row{id: fmt.Sprint("k", i%17), v: fmt.Sprint("v", i%5), u: i, at: 100 + i*7%40, topic: "t", offset: i, deleted: i%11 == 0}
		rows = append(rows, r)
	}
	commit(t, s, rows[:30], from)
	commit(t, s, rows[30:], from)
	made := loadView(t, l)
	by := statements(made)
	want := `SELECT "id", "v", "u", "valid_from" FROM "test"."thing_history" WHERE "is_current"`
	if len(by) != 2 || by["trino"] != want || by["spark"] != strings.ReplaceAll(want, `"`, "`") {
		t.Errorf("statements %q", by)
	}
	if v := made.CurrentVersion(); v.DefaultCatalog != "" || !slices.Equal(v.DefaultNamespace, table.Identifier{"test"}) {
		t.Errorf("version %+v", v)
	}
	compare(t, current(t, l, def, by["trino"]), open(rows))

	l.config.ViewCatalog = "lake"
	if err := l.KeepView(ctx, def); err != nil {
		t.Fatal(err)
	}
	if v := loadView(t, l); v.CurrentVersionID() != 2 || v.CurrentVersion().DefaultCatalog != "lake" || len(v.Schemas()) != 1 {
		t.Errorf("version %+v", v.CurrentVersion())
	}
	l.config.ViewCatalog = ""
	if err := l.KeepView(ctx, def); err != nil {
		t.Fatal(err)
	}
	made = loadView(t, l)
	if made.CurrentVersionID() != 1 {
		t.Errorf("version %d", made.CurrentVersionID())
	}
	if err := l.CreateStream(ctx, def); err != nil {
		t.Fatal(err)
	}
	if again := loadView(t, l); !again.Equals(made) {
		t.Error("a view that was right was replaced")
	}
	wider := testStream()
	wider.Columns = append(wider.Columns, feature.Column{Name: "w", Type: feature.Type{Kind: feature.String, List: true}})
	if err := l.CreateStream(ctx, wider); err != nil {
		t.Fatal(err)
	}
	replaced := loadView(t, l)
	if replaced.ViewUUID() != made.ViewUUID() || replaced.CurrentVersionID() != 3 || len(replaced.VersionLog()) != 4 {
		t.Errorf("version %d of view %s after version 1 of %s", replaced.CurrentVersionID(), replaced.ViewUUID(), made.ViewUUID())
	}
	if text := statements(replaced)["spark"]; !strings.Contains(text, "`u`, `w`, `valid_from`") {
		t.Errorf("the new column isn't in %s", text)
	}
	if names := replaced.CurrentSchema().Fields(); len(names) != 5 || names[3].Name != "w" {
		t.Errorf("schema %v", names)
	}
	compare(t, current(t, l, wider, statements(replaced)["trino"]), open(rows))
}

// current runs a view's statement in DuckDB over the history, and gives its rows as open gives them.
func current(t *testing.T, l *Lake, def *feature.Stream, statement string) []string {
	t.Helper()
	ctx, db := context.Background(), openDB(t)
	reading, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.HistoryView(ctx, db, "thing_history", nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Exec(ctx, `CREATE SCHEMA test; CREATE VIEW test.thing_history AS FROM main.thing_history`); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(ctx, "SELECT id, v, u, epoch(valid_from)::BIGINT FROM ("+statement+")")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var id, v string
		var u, from int64
		if err := rows.Scan(&id, &v, &u, &from); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s/%d [%06d", id, v, u, from))
	}
	slices.Sort(lines)
	return lines
}

// open gives the open versions that the rows make.
func open(rows []row) []string {
	var lines []string
	for _, line := range want(rows) {
		if line, _, ok := strings.Cut(line, ",)"); ok {
			lines = append(lines, line)
		}
	}
	return lines
}

// Processes that keep a view at the same time agree, and none of them fails.
func TestViewKeptTwice(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	if err := l.CreateStream(ctx, testStream()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.sqlite.Exec("DELETE FROM iceberg_tables WHERE table_name = 'thing_current'"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			other, err := Open(ctx, l.config)
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			if err := other.KeepView(ctx, testStream()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if v := loadView(t, l); v.CurrentVersionID() != 1 {
		t.Errorf("version %d", v.CurrentVersionID())
	}
	// Metadata of those that came too late is not left behind.
	files, err := filepath.Glob(filepath.Join(l.config.Dir, "warehouse", "*", "thing_current", "metadata", "*"))
	if err != nil || len(files) != 2 { // the first one was forgotten above
		t.Errorf("files %v, %v", files, err)
	}
}

// A table that has the view's name, and a catalog of the layout without views, are told.
func TestNoPlaceForAView(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	if err := l.createTable(ctx, "thing_current", icebergSchema(testStream().Columns), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.CreateStream(ctx, testStream()); err == nil || !strings.Contains(err.Error(), "keep view test.thing_current: a table has its name") {
		t.Errorf("error %v", err)
	}
	old := openLake(t)
	if _, err := old.sqlite.Exec("ALTER TABLE iceberg_tables DROP COLUMN iceberg_type"); err != nil {
		t.Fatal(err)
	}
	reopened, err := Open(ctx, old.config)
	if err != nil {
		t.Fatal(err)
	}
	defer reopened.Close()
	if err := reopened.CreateStream(ctx, testStream()); err != nil {
		t.Error(err)
	}
	if err := reopened.KeepView(ctx, testStream()); !errors.Is(err, ErrNoViews) {
		t.Errorf("error %v, want no views", err)
	}
}

// viewServer is the part of a REST catalog that keeps one view.
type viewServer struct {
	views     bool // whether it says that it keeps views
	metadata  view.Metadata
	conflicts int // of how many updates it says that another came first
}

func (s *viewServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	failed := func(code int, kind string) {
		answer(code, map[string]any{"error": map[string]any{"code": code, "type": kind, "message": kind}})
	}
	built := func(m view.Metadata, err error) {
		if err != nil {
			failed(http.StatusBadRequest, err.Error())
			return
		}
		s.metadata = m
		answer(http.StatusOK, map[string]any{"metadata-location": "file:///v", "metadata": m})
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/config":
		endpoints := []string{"GET /v1/{prefix}/namespaces/{namespace}", "HEAD /v1/{prefix}/namespaces/{namespace}"}
		if s.views {
			endpoints = append(endpoints, "GET /v1/{prefix}/namespaces/{namespace}/views/{view}",
				"POST /v1/{prefix}/namespaces/{namespace}/views", "POST /v1/{prefix}/namespaces/{namespace}/views/{view}")
		}
		answer(http.StatusOK, map[string]any{"defaults": map[string]string{}, "overrides": map[string]string{}, "endpoints": endpoints})
	case "HEAD /v1/namespaces/test":
		w.WriteHeader(http.StatusNoContent)
	case "GET /v1/namespaces/test/views/thing_current":
		if s.metadata == nil {
			failed(http.StatusNotFound, "NoSuchViewException")
			return
		}
		built(s.metadata, nil)
	case "POST /v1/namespaces/test/views":
		var request struct {
			Schema  *iceberg.Schema `json:"schema"`
			Version *view.Version   `json:"view-version"`
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			built(nil, err)
			return
		}
		built(view.NewMetadata(request.Version, request.Schema, "file:///v", nil))
	case "POST /v1/namespaces/test/views/thing_current":
		if s.conflicts > 0 {
			s.conflicts--
			failed(http.StatusConflict, "CommitFailedException")
			return
		}
		var request struct{ Updates view.Updates }
		err := json.NewDecoder(r.Body).Decode(&request)
		builder, failed := view.MetadataBuilderFromBase(s.metadata)
		if err = errors.Join(err, failed); err != nil {
			built(nil, err)
			return
		}
		for _, u := range request.Updates {
			err = errors.Join(err, u.Apply(builder))
		}
		m, failed := builder.Build()
		built(m, errors.Join(err, failed))
	default:
		failed(http.StatusNotFound, r.Method+" "+r.URL.Path)
	}
}

// A REST catalog keeps the view, too, under no catalog's name, where it has views.
func TestRESTView(t *testing.T) {
	ctx := context.Background()
	opened := func(s *viewServer) *Lake {
		t.Helper()
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		l, err := Open(ctx, Config{Lake: feature.Lake{Catalog: server.URL, Warehouse: "s3://bucket/w", FormatVersion: 3}, Namespace: "test", Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if err := opened(&viewServer{}).KeepView(ctx, testStream()); !errors.Is(err, ErrNoViews) {
		t.Errorf("error %v, want no views", err)
	}
	server := &viewServer{views: true, conflicts: 1}
	l := opened(server)
	for version, columns := range [][]feature.Column{nil, nil, {{Name: "w", Type: feature.Type{Kind: feature.Double}}}, nil} {
		def := testStream()
		def.Columns = append(def.Columns, columns...)
		if err := l.KeepView(ctx, def); err != nil {
			t.Fatal(err)
		}
		want := []int64{2, 2, 3, 2}[version] // the first, which the client names a catalog in, is replaced at once
		v := loadView(t, l)
		if v.CurrentVersionID() != want || v.CurrentVersion().DefaultCatalog != "" || len(statements(v)) != 2 {
			t.Errorf("version %+v, want %d", v.CurrentVersion(), want)
		}
		if len(v.CurrentSchema().Fields()) != len(def.Columns)+1 || !strings.Contains(statements(v)["trino"], `"valid_from"`) {
			t.Errorf("%v: %q", v.CurrentSchema(), statements(v))
		}
	}
	server.conflicts = viewAttempts
	other := testStream()
	other.Columns = other.Columns[:2]
	if err := l.KeepView(ctx, other); err == nil || !strings.Contains(err.Error(), "another process keeps the view") {
		t.Errorf("error %v", err)
	}
}
