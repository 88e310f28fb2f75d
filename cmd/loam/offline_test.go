package main

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// offline builds a training set of views with a label of each entity, which all have the same join keys, at an instant, and gives its file.
func (a *app) offline(t *testing.T, views []string, entities []map[string]string, instant time.Time) string {
	t.Helper()
	keys := slices.Sorted(maps.Keys(entities[0]))
	labels := strings.Join(keys, ",") + ",event_timestamp\n"
	for _, e := range entities {
		for _, k := range keys {
			labels += e[k] + ","
		}
		labels += instant.Format(time.RFC3339Nano) + "\n"
	}
	f := datasetFlags{labels: filepath.Join(a.dir, "labels.csv"), features: views, out: filepath.Join(a.dir, "out.parquet"), timeColumn: "event_timestamp"}
	writeFile(t, f.labels, labels)
	if err := a.buildDataset(t.Context(), nil, f, func(flag string) bool { return flag == "labels" || flag == "features" || flag == "out" }); err != nil {
		t.Fatal(err)
	}
	return f.out
}

// holdOffline reports the features of entities that a training set's rows have otherwise, of those that takes says yes to. What isn't
// served is null there, but in windows over events, which know every entity.
func holdOffline(t *testing.T, p *feature.Project, what, file string, entities []map[string]string, rows [][]online.Feature, takes func(online.Feature) bool) {
	t.Helper()
	db, err := sql.Open(t.Context(), sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i, row := range rows {
		for _, f := range row {
			if !takes(f) {
				continue
			}
			served := f.Status
			v := p.View(f.Ref.View)
			if (served == online.NotFound || served == online.OutsideMaxAge) && (!v.Windowed() || p.OverHistory(v)) {
				f.Status = online.NullValue
			}
			if !sameOffline(t, db, file, i, f) {
				t.Errorf("%s: %s of %v: online %s %q", what, f.Ref, entities[i], served, f.Value.Text)
			}
		}
	}
}

// sameOffline reports whether a row of a training set has the value.
func sameOffline(t *testing.T, db *sql.DB, file string, row int, f online.Feature) bool {
	t.Helper()
	column := sql.Ident(f.Ref.Column())
	var text *string
	var number *float64
	value := column + "::VARCHAR"
	switch f.Value.Type.Kind {
	case feature.Timestamp:
		value = "strftime(" + column + "::TIMESTAMP, '%Y-%m-%dT%H:%M:%S.%fZ')"
	}
	statement := fmt.Sprintf("SELECT %s, TRY_CAST(%s::VARCHAR AS DOUBLE) FROM (SELECT *, row_number() OVER () AS i FROM read_parquet(%s)) WHERE i = %d",
		value, column, sql.Literal(file), row+1)
	if err := db.QueryRow(t.Context(), statement, nil, &text, &number); err != nil {
		t.Fatal(err)
	}
	if text == nil || f.Value.Null {
		return text == nil && f.Status == online.NullValue
	}
	if f.Value.Type.Kind == feature.Double && f.Status == online.Present {
		got, err := strconv.ParseFloat(f.Value.Text, 64)
		exact := !strings.HasPrefix(f.Ref.Feature, "sum_") && !strings.HasPrefix(f.Ref.Feature, "avg_")
		if err == nil && exact {
			return got == *number && math.Signbit(got) == math.Signbit(*number) || math.IsNaN(got) && math.IsNaN(*number)
		}
		return err == nil && (got == *number || math.IsNaN(got) && math.IsNaN(*number) || math.Abs(got-*number) <= 1e-12*400*2.5)
	}
	return f.Status == online.Present && f.Value.Text == *text
}
