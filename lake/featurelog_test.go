package lake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// servedRows are random rows of what was served, with nulls wherever there can be some, over some days.
func servedRows(r *rand.Rand, n, days int) []feature.ServedRow {
	rows := make([]feature.ServedRow, n)
	for i := range rows {
		value := fmt.Sprint("value ", r.IntN(100))
		rows[i] = feature.ServedRow{
			ServedAt: 1_795_000_000_000_000 + int64(r.IntN(days))*86_400_000_000 + int64(r.IntN(1000)), Request: fmt.Sprint("request ", r.Uint64()),
			View: []string{"a", "b", "c"}[r.IntN(3)], Definition: "0123", Generation: int64(r.IntN(3)), Entity: []string{fmt.Sprint(r.IntN(9)), "x"},
			Features: []string{"f", "g"}, Values: []*string{&value, nil}, Statuses: []string{"PRESENT", "NULL_VALUE"}, Guards: map[string]string{},
		}
		if r.IntN(2) == 0 {
			rows[i].Order, rows[i].Service, rows[i].Guards = "00ff", "service", map[string]string{"_d": "00aa", "f": "00bb"}
			rows[i].Marks = map[feature.Partition]int64{{Topic: "t"}: int64(r.IntN(9))}
		}
	}
	return rows
}

// wantServed are the rows as the table should have them, as text.
func wantServed(rows []feature.ServedRow) []string {
	quoted := func(v string) string {
		if v == "" {
			return "NULL"
		}
		return v
	}
	list := func(values ...string) string { return "[" + strings.Join(values, ", ") + "]" }
	texts := make([]string, len(rows))
	for i, r := range rows {
		guards, of, marks, offsets := list(), list(), "NULL", "NULL"
		if r.Order != "" {
			guards, of = list("_d", "f"), list("00aa", "00bb")
			marks, offsets = list("'t:0'"), list(fmt.Sprint(r.Marks[feature.Partition{Topic: "t"}]))
		}
		texts[i] = strings.Join([]string{
			fmt.Sprint(r.ServedAt), r.Request, quoted(r.Service), r.View, r.Definition, fmt.Sprint(r.Generation), list(r.Entity...), list(r.Features...),
			list(*r.Values[0], "NULL"), list(r.Statuses...), quoted(r.Order), guards, of, marks, offsets,
		}, "|")
	}
	slices.Sort(texts)
	return texts
}

// haveServed are the rows of the table as another process reads them.
func haveServed(t *testing.T, l *Lake) []string {
	t.Helper()
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if there, err := l.FeatureLogView(ctx, db, "served"); err != nil || !there {
		t.Fatalf("the table: %t, %v", there, err)
	}
	var columns []sql.Fragment
	for _, c := range []string{
		"request", "service", "view", "definition", "generation", "entity", "features", "values", "statuses", "order", "guards", "guard_values", "marks", "mark_offsets",
	} {
		columns = append(columns, sql.Fragment(sql.Render("coalesce({c}::VARCHAR, 'NULL')", sql.Args{"c": sql.Ident(c)})))
	}
	rows, err := db.Query(ctx, sql.Render("SELECT concat_ws('|', epoch_us(served_at), {columns}) FROM served", sql.Args{"columns": sql.Join(", ", columns)}))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var texts []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(texts)
	return texts
}

// The small files that servers add become one a day, whatever servers add meanwhile, and no row is lost, twice there or another.
func TestFeatureLogMaintenance(t *testing.T) {
	for _, format := range []int{2, 3} {
		t.Run(fmt.Sprint("format ", format), func(t *testing.T) { featureLogMaintenance(t, format) })
	}
}

func featureLogMaintenance(t *testing.T, format int) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seedOf(t), 5))
	dir := t.TempDir()
	serving, l := openLakeAt(t, dir, format), openLakeAt(t, dir, format) // as two processes
	if _, err := l.OpenFeatureLogMaintainer(ctx, MaintainOptions{}); !errors.Is(err, ErrNoTable) {
		t.Errorf("nothing was logged: %v", err)
	}
	var all []feature.ServedRow
	var server *FeatureLog
	add := func(commits int) {
		t.Helper()
		for range commits {
			rows := servedRows(r, 1+r.IntN(4), 2)
			if err := server.Append(ctx, rows); err != nil {
				t.Fatal(err)
			}
			all = append(all, rows...)
		}
	}
	for range 4 { // each server is over before it expires snapshots itself
		var err error
		if server, err = serving.OpenFeatureLog(ctx); err != nil {
			t.Fatal(err)
		}
		add(12)
	}
	same := func(when string) {
		t.Helper()
		if have, want := haveServed(t, l), wantServed(all); !slices.Equal(have, want) {
			at := 0
			for at < min(len(have), len(want)) && have[at] == want[at] {
				at++
			}
			t.Errorf("%s: %d rows, want %d, and from row %d on others:\n%q\nwant\n%q", when, len(have), len(want), at, have[at:min(at+1, len(have))], want[at:min(at+1, len(want))])
		}
	}
	same("before")

	m, err := l.OpenFeatureLogMaintainer(ctx, MaintainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	compactors, err := m.compactors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := compactors[0].jobs(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != 2 {
		t.Fatalf("%d jobs, want one a day", len(jobs))
	}
	var outs []*rewritten
	for _, j := range jobs {
		out, err := compactors[0].rewrite(ctx, j)
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, out)
	}
	add(3) // the server goes on
	if c, err := compactors[0].replace(ctx, outs); err != nil || c.FilesAfter != 2 || c.FilesBefore < 48 {
		t.Fatalf("compacted %+v, %v: want those of 48 commits", c, err)
	}
	same("beside a server")
	add(3) // which finds the table as it is now
	compactAll(t, m)
	same("after")
	if err := compactors[0].table.reload(ctx); err != nil {
		t.Fatal(err)
	}
	if files, err := compactors[0].table.list(ctx, ScanOptions{}); err != nil || len(files) != 2 {
		t.Errorf("%d files, %v: want one a day", len(files), err)
	}
	expired, err := m.Expire(ctx, 0)
	if err != nil || expired == 0 {
		t.Errorf("%d snapshots expired, %v", expired, err)
	}
	same("once snapshots expired")
	add(1)
	same("once the server went on")
	if _, err := m.RemoveOrphans(ctx, orphanAgeMin); err != nil {
		t.Error(err)
	}
	same("once orphans were looked for")
}
