package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"loam": main}) }

var rewrite = flag.Bool("rewrite", false, "write what the scripts compare files with anew")

// TestScripts runs loam as a user does; a script a theme, under testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *rewrite,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "long": long, "tamper": tamper, "equal": equal, "shown": shown,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("TMPDIR", e.WorkDir)
			e.Setenv("REPLACEMENT", `CASE WHEN contact_id = 'c7' AND is_current THEN 'other' ELSE mkt_status END AS mkt_status`)
			return nil
		},
	})
}

// code N COMMAND...: the command ends with this exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// long FILE MIB: appends a line of a letter, so many MiB and a byte long.
func long(ts *testscript.TestScript, _ bool, args []string) {
	var mib int
	_, err := fmt.Sscan(args[1], &mib)
	ts.Check(err)
	file, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	ts.Check(err)
	_, err = file.WriteString(strings.Repeat("x", mib<<20+1) + "\n")
	ts.Check(err)
	ts.Check(file.Close())
}

// equal A B: two files have the same bytes, or with ! differ.
func equal(ts *testscript.TestScript, neg bool, args []string) {
	a, b := sha256.Sum256([]byte(ts.ReadFile(args[0]))), sha256.Sum256([]byte(ts.ReadFile(args[1])))
	if (a == b) == neg {
		ts.Fatalf("%s and %s: %x, %x", args[0], args[1], a, b)
	}
}

// shown DIR: runs every line of the last command's output that is a command, in a folder.
func shown(ts *testscript.TestScript, _ bool, args []string) {
	ran := 0
	text := ts.ReadFile("stdout")
	ts.Check(ts.Chdir(args[0]))
	for line := range strings.Lines(text) {
		if line, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok {
			ts.Check(ts.Exec("sh", "-c", line))
			ran++
		}
	}
	ts.Check(ts.Chdir(".."))
	if ran == 0 {
		ts.Fatalf("no command was shown")
	}
}

// tamper PROJECT TABLE REPLACEMENT: puts `SELECT * REPLACE (<replacement>)` of every data file of a table in the file's
// place, behind the back of Iceberg.
func tamper(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	p, err := loadProject(ctx, ts.MkAbs(args[0]))
	ts.Check(err)
	l, err := openLake(ctx, p)
	ts.Check(err)
	defer l.Close()
	t, err := l.OpenTable(ctx, args[1])
	ts.Check(err)
	relation, err := t.Scan(ctx, lake.ScanOptions{})
	ts.Check(err)
	db, err := sql.Open(ctx, sql.Options{Files: true})
	ts.Check(err)
	defer db.Close()
	var ids []sql.Fragment
	for _, c := range relation.Columns {
		id := sql.Fragment(fmt.Sprint(c.FieldID))
		if strings.HasSuffix(c.Type, "[]") {
			id = sql.Fragment(fmt.Sprintf("{__duckdb_field_id: %d, element: %d}", c.FieldID, 1000+c.FieldID))
		}
		ids = append(ids, sql.Ident(c.Name)+": "+id)
	}
	for _, f := range relation.Files {
		ts.Check(db.Exec(ctx, fmt.Sprintf("COPY (SELECT * REPLACE (%s) FROM read_parquet(%s)) TO %s (FORMAT parquet, FIELD_IDS {%s})",
			args[2], sql.Literal(f.Path), sql.Literal(f.Path+".new"), sql.Join(", ", ids))))
		ts.Check(os.Rename(f.Path+".new", f.Path))
	}
	if len(relation.Files) == 0 {
		ts.Fatalf("%s has no data file", args[1])
	}
}

// change is a canonical event of a contact.
func change(n int, contact, status string) string {
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012d","event_type":"Contact.updated","source":"test",`+
		`"occurred_at":"2026-01-01T00:00:00Z","delivery_attempt":1,"schema_version":"1.0"},`+
		`"payload":{"contact_id":%q,"mkt_status":%q,"updated_at":"2026-01-01T00:00:00Z"}}`+"\n", n, contact, status)
}

// A backfill that is interrupted keeps what it had read, and goes on from there.
func TestInterruptedBackfill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	var events strings.Builder
	const total = 9000
	for i := range total {
		events.WriteString(change(i, fmt.Sprintf("c%d", i%100), "lead"))
	}
	path := filepath.Join(dir, "events.jsonl")
	if err := os.WriteFile(path, []byte(events.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	took := func(progress func(stop context.CancelFunc)) (feature.Counts, error) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		a := &app{dir: dir, out: io.Discard, err: io.Discard, now: time.Now}
		p, l, err := a.open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := a.ensureApplied(ctx, p, l); err != nil {
			t.Fatal(err)
		}
		b := &backfill{project: p, now: time.Now, did: outcome{}, streams: p.Streams}
		if b.line, err = openLine(ctx, p, l, p.Streams, newJobID("backfill")); err != nil {
			t.Fatal(err)
		}
		defer b.line.close()
		f, err := ingest.StatFile(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		err = b.take(ctx, f, func(int64) { progress(stop) })
		if failed := b.settle(); failed != nil {
			t.Fatal(failed)
		}
		return b.did.total(), err
	}
	first, err := took(func(stop context.CancelFunc) { stop() })
	if !errors.Is(err, context.Canceled) || first.Accepted == 0 || first.Accepted >= total {
		t.Fatalf("interrupted: %+v, %v", first, err)
	}
	rest, err := took(func(context.CancelFunc) {})
	if err != nil || first.Accepted+rest.Accepted != total || rest.Duplicate != 0 {
		t.Errorf("%+v, then %+v, %v", first, rest, err)
	}
	if again, err := took(func(context.CancelFunc) {}); err != nil || again.Read != 0 {
		t.Errorf("and again: %+v, %v", again, err)
	}
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
	if err := a.verify(t.Context(), nil, 0); err != nil || !strings.Contains(text.String(), "contact: 9,000 log rows, 100 keys and 100 versions recomputed, 0 differences") {
		t.Errorf("%v\n%s", err, &text)
	}
}

// status tells how far a history lags behind its log, in files as in topics: a crash between the two leaves it so.
func TestHistoryBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "events.jsonl")
	if err := os.WriteFile(path, []byte(change(1, "c1", "lead")+change(2, "c2", "lead")+change(3, "c3", "lead")), 0o644); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
	if err := a.backfill(t.Context(), []string{path}, backfillOptions{}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, ".loam", "warehouse", "*", "contact_history", "metadata", "*.metadata.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v: no metadata", err)
	}
	newest := slices.Max(files)
	was, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	now := strings.ReplaceAll(string(was), `\"next\":3`, `\"next\":1`)
	if now == string(was) {
		t.Fatalf("no offset in %s", was)
	}
	if err := os.WriteFile(newest, []byte(now), 0o644); err != nil {
		t.Fatal(err)
	}
	text.Reset()
	if err := a.status(t.Context(), nil); err != nil || !strings.Contains(text.String(), "the history of contact is 2 offsets behind its log") {
		t.Errorf("%v\n%s", err, &text)
	}
}
