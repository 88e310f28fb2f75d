package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

var seed = flag.Uint64("seed", 0, "seed of what tests choose at random; 0 takes one from the clock")

// bin is the path of the loam binary that is tested.
var bin string

// root is the repository's folder, relative to this package.
const root = "../.."

// commandMax bounds how long one command may take.
const commandMax = 5 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(withBinary(m.Run))
}

// withBinary runs the tests on the binary that LOAM_TEST_BINARY names, or on one built for them.
func withBinary(run func() int) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	var err error
	if given := os.Getenv("LOAM_TEST_BINARY"); given != "" {
		if bin = given; !filepath.IsAbs(given) {
			if bin, err = filepath.Abs(filepath.Join(root, given)); err != nil {
				return fail(err)
			}
		}
		if _, err := os.Stat(bin); err != nil {
			return fail(fmt.Errorf("LOAM_TEST_BINARY: %w; `make build` makes bin/loam", err))
		}
		return run()
	}
	dir, err := os.MkdirTemp("", "loam-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "loam")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags=duckdb_arrow", "-o", bin, "./cmd/loam")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("build loam: %w\n%s", err, out))
	}
	return run()
}

// command is the loam binary with these arguments, to be run in dir. It is killed when the test ends.
func command(t *testing.T, dir string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), commandMax)
	t.Cleanup(cancel)
	c := exec.CommandContext(ctx, bin, args...)
	c.Dir = dir
	return c
}

// run runs loam in dir, which must end well, and returns what it wrote to stdout.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := command(t, dir, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("loam %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// runErr runs loam in dir and returns what it wrote to stdout and stderr, and its exit code.
func runErr(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := command(t, dir, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("loam %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// runJSON runs loam in dir with --json and reads what it wrote to stdout.
func runJSON[T any](t *testing.T, dir string, args ...string) T {
	t.Helper()
	out := run(t, dir, append(args, "--json")...)
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("loam %s: %v in\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// newProject makes a project crm by `loam init`, with extraYAML appended to its loam.yaml, and returns its folder.
func newProject(t *testing.T, extraYAML string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "crm")
	run(t, ".", "init", dir)
	if extraYAML != "" {
		path := filepath.Join(dir, feature.ProjectFile)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(text)+extraYAML+"\n")
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// shared is the absolute path of a file in ../shared beside the repository; the test skips where it is absent.
func shared(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, "..", "shared", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("../shared/%s is not beside this repository", name)
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

// counts are what a command tells of events.
type counts struct{ Read, Accepted, Refused, Duplicate int64 }

// taken is what backfill and run tell they did.
type taken struct {
	Total   counts            `json:"total"`
	Streams map[string]counts `json:"streams"`
	Stray   int64             `json:"of_no_stream"`
}

func backfill(t *testing.T, dir string, files ...string) taken {
	t.Helper()
	return runJSON[taken](t, dir, append([]string{"backfill"}, files...)...)
}

// statusOf is what status tells of the events of each stream.
func statusOf(t *testing.T, dir string) map[string]counts {
	t.Helper()
	type status struct {
		Streams []struct {
			Stream string
			Counts counts
		}
	}
	all := map[string]counts{}
	for _, one := range runJSON[status](t, dir, "status").Streams {
		all[one.Stream] = one.Counts
	}
	return all
}

// committed is how many events of a stream a project has read.
func committed(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	for _, c := range statusOf(t, dir) {
		n += c.Read
	}
	return n
}

// verified is what verify tells of a stream.
type verified struct {
	Stream      string `json:"stream"`
	LogRows     int64  `json:"log_rows"`
	Differences int64  `json:"differences"`
}

// verifyClean fails the test unless `loam verify` finds that every history is what its log makes it, and returns how
// many rows each log has.
func verifyClean(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	rows := map[string]int64{}
	for _, r := range runJSON[[]verified](t, dir, "verify") {
		if rows[r.Stream] = r.LogRows; r.Differences != 0 {
			t.Errorf("verify %s: %d differences", r.Stream, r.Differences)
		}
	}
	return rows
}

// reader is a project's lake, opened to be read beside the binary.
type reader struct {
	*lake.Lake
	project *feature.Project
	db      *sql.DB
}

func openLake(t *testing.T, dir string) *reader {
	t.Helper()
	r := &reader{}
	var err error
	if r.db, err = sql.Open(t.Context(), sql.Options{Files: true, Threads: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.db.Close() })
	p, err := feature.Load(dir, func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		list := make([]sql.Column, len(columns))
		for i, c := range columns {
			list[i] = sql.Column{Name: c.Name, Type: c.Type.SQL()}
		}
		return r.db.CheckScalar(t.Context(), expr, list, want.SQL())
	})
	if err != nil {
		t.Fatal(err)
	}
	r.project = p
	if r.Lake, err = lake.Open(t.Context(), lake.Config{Lake: p.Lake, Namespace: p.Name, Dir: p.Dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Columns of logs and histories that may differ between two ways to the same state: when loam read a row, which job
// wrote it, and where it stood.
var (
	recordedColumns = []string{feature.ColRecordedAt, feature.ColJobID}
	positionColumns = []string{feature.ColTopic, feature.ColPartition, feature.ColOffset}
)

// logRows are the rows of a stream's log as JSON, sorted, without some columns.
func logRows(t *testing.T, dir, stream string, without ...string) []string {
	t.Helper()
	return openLake(t, dir).logRows(t, stream, without...)
}

func (r *reader) logRows(t *testing.T, stream string, without ...string) []string {
	t.Helper()
	s := r.project.Stream(stream)
	reading, err := r.Read(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.LogView(t.Context(), r.db, "read", nil, false); err != nil {
		t.Fatal(err)
	}
	return r.rows(t, "read", s.LogColumns(), without)
}

// historyRows are the rows of a stream's history as JSON, sorted, without some columns.
func historyRows(t *testing.T, dir, stream string, without ...string) []string {
	t.Helper()
	return openLake(t, dir).historyRows(t, stream, without...)
}

func (r *reader) historyRows(t *testing.T, stream string, without ...string) []string {
	t.Helper()
	s := r.project.Stream(stream)
	reading, err := r.Read(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.HistoryView(t.Context(), r.db, "read", nil); err != nil {
		t.Fatal(err)
	}
	return r.rows(t, "read", s.HistoryColumns(), without)
}

func (r *reader) rows(t *testing.T, relation string, columns []feature.Column, without []string) []string {
	t.Helper()
	var names []string
	for _, c := range columns {
		if !slices.Contains(without, c.Name) {
			names = append(names, c.Name)
		}
	}
	return r.texts(t, sql.Render("SELECT to_json(r)::VARCHAR AS row FROM (SELECT {columns} FROM {relation}) r ORDER BY row",
		sql.Args{"columns": sql.Idents("", names), "relation": sql.Ident(relation)}))
}

// texts are the results of a statement that gives one text a row.
func (r *reader) texts(t *testing.T, statement string) []string {
	t.Helper()
	rows, err := r.db.Query(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// sameRows fails the test where two sorted lists of rows differ, with the first difference.
func sameRows(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s: %d rows and %d wanted, row %d is\n%s\nwant\n%s", what, len(got), len(want), i, got[i], want[i])
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d rows, want %d", what, len(got), len(want))
	}
}
