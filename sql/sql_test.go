//go:build duckdb_arrow

package sql

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

func open(t *testing.T, o Options) *DB {
	t.Helper()
	db, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestCheckScalar(t *testing.T) {
	db := open(t, Options{})
	columns := []Column{{"attributes", "VARCHAR"}, {"type", "VARCHAR"}, {"n", "BIGINT"}, {"tags", "VARCHAR[]"}, {"seen", "TIMESTAMPTZ"}}
	for _, c := range []struct{ expr, want, reads, err string }{
		{"attributes->>'open_tickets'", "BIGINT", "attributes", ""},
		{"type = 'email' AND n > 3", "BOOLEAN", "type,n", ""},
		{"list_transform(tags, x -> upper(x))", "VARCHAR[]", "tags", ""},
		{"[x FOR x IN tags IF x <> 'a']", "VARCHAR[]", "tags", ""},
		{"CASE WHEN n IN (1, 2) THEN nullif(type, '') END -- a comment", "VARCHAR", "n,type", ""},
		{"date_trunc('day', seen)", "TIMESTAMPTZ", "seen", ""},
		{"1", "BIGINT", "", ""},
		{"now()", "TIMESTAMPTZ", "", "depends on more than the row"},
		{"current_date", "DATE", "", "no column"},
		{"random()", "DOUBLE", "", "depends on more than the row"},
		{"sum(n)", "BIGINT", "", "aggregate"},
		{"sum(n) OVER ()", "BIGINT", "", "window"},
		{"(SELECT 1)", "BIGINT", "", "subquery"},
		{"unnest(tags)", "VARCHAR", "", "not allowed"},
		{"n, n", "BIGINT", "", "not one scalar"},
		{"n FROM t", "BIGINT", "", "not one scalar"},
		{"n WHERE true", "BIGINT", "", "not one scalar"},
		{"n; SELECT 2", "BIGINT", "", "more than one statement"},
		{"n) + (n", "BIGINT", "", "not a DuckDB expression"},
		{"missing + 1", "BIGINT", "", `no column "missing"`},
		{"*", "BIGINT", "", "not one value"},
		{"n + ?", "BIGINT", "", "parameter"},
		{"age(seen)", "VARCHAR", "", "current time"},
		{"attributes->>'plan' = 'free'", "BOOLEAN", "attributes", ""},
		{"getvariable('x')", "BIGINT", "", "not allowed"},
		{"nosuch(n)", "BIGINT", "", "no function nosuch"},
		{"n + tags", "BIGINT", "", "does not bind"},
		{"", "BIGINT", "", "not"},
	} {
		reads, err := db.CheckScalar(context.Background(), c.expr, columns, c.want)
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.expr, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want one with %q", c.expr, err, c.err)
		case c.err == "" && strings.Join(slices.Sorted(slices.Values(reads)), ",") != strings.Join(slices.Sorted(slices.Values(split(c.reads))), ","):
			t.Errorf("%s: reads %v, want %s", c.expr, reads, c.reads)
		}
	}
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func TestOpenWithoutFilesReadsNone(t *testing.T) {
	db := open(t, Options{})
	err := db.Exec(context.Background(), "SELECT * FROM read_csv('/etc/passwd')")
	if err == nil || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("error %v, want file access refused", err)
	}
}

// A registered Arrow view answers by position after projection, which is why Import copies at once. The test holds that
// what Import makes answers by name, whatever the projection.
func TestImportAnswersByName(t *testing.T) {
	db := open(t, Options{})
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64}, {Name: "name", Type: arrow.BinaryTypes.String}, {Name: "score", Type: arrow.PrimitiveTypes.Float64},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i := range 5000 {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.StringBuilder).Append(strings.Repeat("x", i%7))
		b.Field(2).(*array.Float64Builder).Append(float64(i) / 2)
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	reader, err := array.NewRecordReader(schema, []arrow.RecordBatch{batch})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()
	ctx := context.Background()
	if err := db.Import(ctx, "t", reader); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second read gives the same
		var longest string
		var rows, top float64
		if err := db.QueryRow(ctx, "SELECT max(name), count(*)::DOUBLE, max(score) FROM t", nil, &longest, &rows, &top); err != nil {
			t.Fatal(err)
		}
		if longest != "xxxxxx" || rows != 5000 || top != 2499.5 {
			t.Errorf("got %q, %v rows, top %v", longest, rows, top)
		}
	}
}

// Parts sees the files of one set at a time, and ends with an error of use's or of a statement's.
func TestParts(t *testing.T) {
	ctx := context.Background()
	db := open(t, Options{Files: true})
	var parts []Files
	for i := range 3 {
		path := filepath.Join(t.TempDir(), "n.parquet")
		err := db.Exec(ctx, fmt.Sprintf("COPY (SELECT range + %d AS n FROM range(10000)) TO '%s' (FIELD_IDS {n: 1})", i*10_000, path))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, Files{Columns: []FileColumn{{FieldID: 1, Name: "n", Type: "BIGINT"}}, Files: []File{{Path: path}}})
	}
	sums := func(statement string, until int64) (sums [3]int64, err error) {
		err = db.Parts(ctx, "numbers", parts, true, statement, func(part int, b arrow.RecordBatch) error {
			for _, v := range b.Column(0).(*array.Int64).Int64Values() {
				if sums[part] += v; sums[part] > until {
					return errors.New("enough")
				}
			}
			return nil
		})
		return sums, err
	}
	want := [3]int64{49_995_000, 149_995_000, 249_995_000}
	for range 3 {
		if got, err := sums("FROM numbers", math.MaxInt64); err != nil || got != want {
			t.Fatalf("sums %v, %v, want %v", got, err, want)
		}
		if got, err := sums("FROM numbers", 60_000_000); err == nil || err.Error() != "enough" || got[2] != 0 {
			t.Fatalf("use failed, but Parts goes on to %v, %v", got, err)
		}
		if _, err := sums("SELECT CASE WHEN n = 29_999 THEN error('late') ELSE n END FROM numbers", math.MaxInt64); err == nil || !strings.Contains(err.Error(), "late") {
			t.Fatalf("a statement that fails at its end: %v", err)
		}
	}
}

// An error in what two expressions have in common is null in both.
func TestTryOfExpressionsThatShareAPart(t *testing.T) {
	db := open(t, Options{})
	var got string
	statement := "SELECT to_json(list([v, w]))::VARCHAR FROM (SELECT " + string(Try("a::INTEGER + y", "BIGINT")) + " AS v, " + string(Try("a::INTEGER - y", "BIGINT")) +
		" AS w FROM (VALUES ('x', 1), ('7', 2)) t(a, y))"
	if err := db.QueryRow(context.Background(), statement, nil, &got); err != nil {
		t.Fatal(err)
	}
	if want := "[[null,null],[9,5]]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
