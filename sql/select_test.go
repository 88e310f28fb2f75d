//go:build duckdb_arrow

package sql

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckSelect(t *testing.T) {
	db := open(t, Options{})
	tables := []string{"contact_log", "contact_history", "contact_current"}
	for _, c := range []struct{ text, reads, err string }{
		{"SELECT contact_id, valid_from AS event_timestamp FROM contact_history", "contact_history", ""},
		{"WITH c AS (SELECT * FROM Contact_Log) SELECT count(*), row_number() OVER (ORDER BY a) FROM c JOIN contact_current x USING (contact_id) GROUP BY ALL ORDER BY 1 -- so", "contact_log,contact_current", ""},
		{"SELECT i FROM range(3) r(i) UNION ALL SELECT unnest([1, 2])", "", ""},
		{"SELECT (SELECT max(event_time) FROM contact_log) FROM contact_history WHERE contact_id IN (SELECT contact_id FROM contact_log)", "contact_log,contact_history", ""},
		{"FROM contact_log", "contact_log", ""},
		{"SELECT * FROM opportunity_log", "", "there is no table opportunity_log; it may read contact_log, contact_history, contact_current"},
		{"SELECT * FROM 'labels.csv'", "", "there is no table labels.csv"},
		{"SELECT * FROM crm.contact_log", "", "with crm before it; name it alone"},
		{"SELECT * FROM read_csv('labels.csv')", "", "function read_csv is not allowed"},
		{"SELECT * FROM contact_log, read_text('/etc/passwd')", "", "function read_text is not allowed"},
		{"SELECT * FROM query('SELECT 1')", "", "function query is not allowed"},
		{"SELECT * FROM glob('*')", "", "function glob is not allowed"},
		{"SELECT getenv('HOME')", "", "getenv"},
		{"SELECT now()", "", "depends on more than the rows"},
		{"SELECT CURRENT_TIMESTAMP", "", "depends on when"},
		{"SELECT é, USER FROM contact_log", "", "USER depends on when and by whom it is run; write the value, or quote the name of a column"},
		{`SELECT é, "user", "Current_Date" AS d FROM contact_log GROUP BY ALL ORDER BY "user"`, "contact_log", ""},
		{`SELECT "user", user FROM contact_log`, "", "user depends on when"},
		{"SELECT random()", "", "depends on more than the rows"},
		{"SELECT * FROM contact_log USING SAMPLE 10", "", "a sample"},
		{"SELECT * FROM (SELECT * FROM contact_log TABLESAMPLE 10%)", "", "a sample"},
		{"SELECT * FROM (DESCRIBE contact_log)", "", "describes tables"},
		{"SHOW TABLES", "", "describes tables"},
		{"SELECT $1", "", "a parameter"},
		{"SELECT 1; SELECT 2", "", "2 statements"},
		{"COPY contact_log TO 'out.csv'", "", "it is no SELECT"},
		{"ATTACH 'other.db'", "", "it is no SELECT"},
		{"INSTALL httpfs", "", "it is no SELECT"},
		{"DROP TABLE contact_log", "", "it is no SELECT"},
		{"SELEC 1", "", "syntax error"},
		{"", "", "0 statements"},
	} {
		s, err := db.CheckSelect(context.Background(), c.text, tables)
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.text, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want one with %q", c.text, err, c.err)
		case c.err == "" && !sameSet(s.Tables, c.reads):
			t.Errorf("%s: reads %v, want %s", c.text, s.Tables, c.reads)
		}
	}
}

func sameSet(have []string, want string) bool {
	wanted := split(want)
	if len(have) != len(wanted) {
		return false
	}
	for _, w := range wanted {
		if !strings.Contains(strings.Join(have, ","), w) {
			return false
		}
	}
	return true
}

// A settled query gives its rows in one order: its own first, then that of its columns.
func TestSettled(t *testing.T) {
	ctx := context.Background()
	db := open(t, Options{})
	if err := db.Exec(ctx, "CREATE TABLE t AS SELECT * FROM (VALUES (2, 'b'), (1, 'z'), (2, 'a'), (1, NULL), (3, 'c')) v(n, s)"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{"SELECT n, s FROM t", "1z 1- 2a 2b 3c"},
		{"SELECT n, s FROM t -- a comment", "1z 1- 2a 2b 3c"},
		{"SELECT * FROM t ORDER BY n DESC", "3c 2a 2b 1z 1-"},
		{"SELECT n, s FROM t ORDER BY n DESC LIMIT 2", "3c 2a"},
		{"SELECT DISTINCT ON (n) n, s FROM t ORDER BY n", "1z 2a 3c"},
		{"SELECT n, s FROM t UNION ALL SELECT 0, 'o' ORDER BY s NULLS FIRST -- so", "1- 2a 2b 3c 0o 1z"},
		{"SELECT * FROM t ORDER BY ALL DESC", "3c 2b 2a 1z 1-"},
		{"WITH c AS (SELECT * FROM t ORDER BY s) SELECT * FROM c", "1z 1- 2a 2b 3c"},
	} {
		s, err := db.CheckSelect(ctx, c.text, []string{"t"})
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		settled, err := db.Settled(ctx, s)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		var got string
		err = db.QueryRow(ctx, "SELECT string_agg(n || coalesce(s, '-'), ' ' ORDER BY r) FROM (SELECT *, row_number() OVER () AS r FROM ("+settled+"\n))", nil, &got)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q (%s)", c.text, got, err, c.want, settled)
		}
	}
}

// A quoted name of the time or the session is a column, and where there is none of it the query doesn't bind: DuckDB would take it for
// the other.
func TestQuotedSessionNames(t *testing.T) {
	ctx := context.Background()
	for name := range sessionFunctions {
		for _, c := range []struct{ text, err string }{
			{"SELECT upper({name}) AS u FROM t ORDER BY {name}", ""},
			{"SELECT upper({name}) AS u FROM t", ""},
			{"SELECT a FROM (SELECT {name} AS a FROM t) WHERE {name} IS NOT NULL", "there is no column {name}"},
			{"SELECT a, {name} AS b FROM (SELECT {name} AS a FROM t) ORDER BY a", "there is no column {name}"},
			{"SELECT {name}, nothing FROM t", `"nothing" not found`},
		} {
			db := open(t, Options{})
			if err := db.Exec(ctx, `CREATE TABLE t AS SELECT 'x' AS "`+name+`"`); err != nil {
				t.Fatal(err)
			}
			text, want := strings.ReplaceAll(c.text, "{name}", `"`+name+`"`), strings.ReplaceAll(c.err, "{name}", `"`+name+`"`)
			s, err := db.CheckSelect(ctx, text, []string{"t"})
			if err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			settled, err := db.Settled(ctx, s)
			if want != "" {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %s", text, err, want)
				}
				continue
			}
			var got string
			if err == nil {
				err = db.QueryRow(ctx, settled, nil, &got)
			}
			if err != nil || got != "X" {
				t.Errorf("%s: %q, %v", settled, got, err)
			}
		}
	}
}

// A confined database reads the files it was given, spills to its own folder, and reads and writes nothing else.
func TestConfine(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	db := open(t, Options{Files: true, TempDir: filepath.Join(dir, "tmp"), MemoryBytes: 128 << 20})
	given, other := filepath.Join(dir, "given.parquet"), filepath.Join(dir, "other.csv")
	if err := os.WriteFile(other, []byte("a\n1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := db.Exec(ctx, "COPY (SELECT i, md5(i::VARCHAR) AS m FROM range(2000000) r(i)) TO "+string(Literal(given))); err != nil {
		t.Fatal(err)
	}
	if err := db.Exec(ctx, "CREATE VIEW given AS FROM read_parquet("+string(Literal(given))+")"); err != nil {
		t.Fatal(err)
	}
	if err := db.Confine(ctx, []string{given}); err != nil {
		t.Fatal(err)
	}
	var n int64
	if err := db.QueryRow(ctx, "SELECT count(DISTINCT r) FROM (SELECT row_number() OVER (ORDER BY m) + 0 * length(m) AS r FROM given)", nil, &n); err != nil || n != 2000000 {
		t.Errorf("%d rows, %v", n, err)
	}
	for _, statement := range []string{
		"SELECT * FROM read_csv(" + string(Literal(other)) + ")", "FROM " + string(Literal(other)), "SELECT * FROM read_text('/etc/hostname')", "SELECT * FROM glob('*')",
		"COPY (SELECT 1) TO " + string(Literal(other)), "ATTACH " + string(Literal(filepath.Join(dir, "x.db"))), "SET enable_external_access = true", "INSTALL httpfs",
	} {
		if err := db.Exec(ctx, statement); err == nil {
			t.Errorf("%s: no error", statement)
		}
	}
}
