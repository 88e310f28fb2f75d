package e2e

import (
	"fmt"
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

// service is the address or path in a variable that says where something outside the project is. The test skips without
// it, and fails in CI, which provides it.
func service(t *testing.T, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" && os.Getenv("LOAM_CI") == "1" {
		t.Fatalf("%s is not set", variable)
	} else if value == "" {
		t.Skipf("%s is not set", variable)
	}
	return value
}

// simulated writes some events of a made-up CRM in three files, so that late ones meet what was committed before.
func simulated(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	run(t, ".", "simulate", "--contacts", "300", "--days", "60", "--late", "0.1", "--deletes", "0.01", "--out", dir)
	text, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for i := range 3 {
		end := len(text) * (i + 1) / 3
		for end < len(text) && text[end-1] != '\n' {
			end++
		}
		start := len(text) * i / 3
		for start > 0 && text[start-1] != '\n' {
			start++
		}
		path := filepath.Join(dir, fmt.Sprintf("part%d.jsonl", i))
		write(t, path, string(text[start:end]))
		files = append(files, path)
	}
	return files
}

// told is what loam said of a table at some time.
type told struct {
	table    string // as a reader is asked for it: with a snapshot, or as it is now
	columns  []feature.Column
	rows     []string
	vectors  bool // whether deletion vectors were there
	snapshot int64
}

// tell asks loam for all rows of all streams' tables.
func tell(t *testing.T, dir string) []told {
	t.Helper()
	r := openLake(t, dir)
	var all []told
	add := func(table string, columns []feature.Column, rows []string) {
		t.Helper()
		tbl, err := r.OpenTable(t.Context(), table)
		if err != nil {
			t.Fatal(err)
		}
		relation, err := tbl.Scan(t.Context(), lake.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		deleted := slices.ContainsFunc(relation.Files, func(f sql.File) bool { return len(f.Deleted) > 0 })
		all = append(all, told{table: "crm." + table, columns: columns, rows: rows, vectors: deleted, snapshot: tbl.SnapshotID()})
	}
	for _, name := range streamNames {
		s := r.project.Stream(name)
		add(lake.LogName(name), s.LogColumns(), logRows(t, dir, name))
		if s.Kind == feature.StateStream {
			add(lake.HistoryName(name), s.HistoryColumns(), historyRows(t, dir, name))
		}
	}
	return all
}

// readByOthers takes events in, in three backfills, and holds what a reader that shares no code with loam reads of the
// tables now and in their older snapshots against what loam said then. The reader is a script that takes
// --dump DIR PROJECT TABLE[@SNAPSHOT]... and writes the rows of each to DIR/TABLE[@SNAPSHOT].parquet.
func readByOthers(t *testing.T, interpreter, script, extraYAML string) (dir string) {
	t.Helper()
	dir = newProject(t, extraYAML)
	var all []told
	files := simulated(t)
	for i, file := range files {
		backfill(t, dir, file)
		for _, table := range tell(t, dir) {
			if strings.HasSuffix(table.table, "_history") && i > 0 && !table.vectors {
				t.Errorf("%s has no deletion vectors after %d backfills", table.table, i+1)
			}
			if i < len(files)-1 {
				table.table += fmt.Sprint("@", table.snapshot)
			}
			all = append(all, table)
		}
	}
	dump := t.TempDir()
	script, err := filepath.Abs(filepath.Join(root, script))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{script, "--dump", dump, dir}
	for _, table := range all {
		args = append(args, table.table)
	}
	read := exec.CommandContext(t.Context(), interpreter, args...)
	if out, err := read.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := openLake(t, dir)
	for _, table := range all {
		view := sql.Render("CREATE OR REPLACE VIEW theirs AS FROM read_parquet({path})",
			sql.Args{"path": sql.Literal(filepath.Join(dump, table.table+".parquet"))})
		if err := r.db.Exec(t.Context(), view); err != nil {
			t.Fatal(err)
		}
		if len(table.rows) == 0 {
			t.Errorf("%s has no rows", table.table)
		}
		sameRows(t, table.table, r.rows(t, "theirs", table.columns, nil), table.rows)
	}
	return dir
}

// PyIceberg reads the rows that loam reads, deletion vectors applied, now and in older snapshots.
func TestPyIcebergReadsTheSameRows(t *testing.T) {
	t.Parallel()
	python, script := service(t, "LOAM_TEST_PYICEBERG"), "scripts/pyiceberg/read.py"
	dir := readByOthers(t, python, script, "")
	// The views of what is current stand in the same catalog: PyIceberg lists the tables without them, and loads each.
	all, err := exec.CommandContext(t.Context(), python, filepath.Join(root, script), dir, "crm.*").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"contact_log", "contact_history", "engagement_log", "definitions", "dead_letters"} {
		if !strings.Contains(string(all), `"table": "crm.`+name+`"`) {
			t.Errorf("PyIceberg doesn't list %s:\n%s", name, all)
		}
	}
	if strings.Contains(string(all), "_current") {
		t.Errorf("PyIceberg takes a view for a table:\n%s", all)
	}
}

// Spark with Iceberg's Java library reads them, too.
func TestSparkReadsTheSameRows(t *testing.T) {
	t.Parallel()
	readByOthers(t, service(t, "LOAM_TEST_SPARK"), "scripts/spark/read.py", "")
}

// Tables of format v2 have position deletes, which readers apply that know no deletion vectors.
func TestPyIcebergReadsFormat2(t *testing.T) {
	t.Parallel()
	readByOthers(t, service(t, "LOAM_TEST_PYICEBERG"), "scripts/pyiceberg/read.py", "lake: {format_version: 2}")
}

// A warehouse in S3 ends in the rows of a local one.
func TestWarehouseInS3(t *testing.T) {
	address := service(t, "LOAM_TEST_S3")
	files := simulated(t)
	local := newProject(t, "")
	backfill(t, local, files...)
	remote := newProject(t, fmt.Sprintf(`lake:
  warehouse: s3://loam/test%d
  properties: {s3.endpoint: "http://%s", s3.access-key-id: test, s3.secret-access-key: testtest, s3.region: us-east-1}`,
		time.Now().UnixNano(), address))
	backfill(t, remote, files...)
	verifyClean(t, remote)
	for _, name := range []string{"contact", "opportunity"} {
		sameRows(t, name+" history", historyRows(t, remote, name, recordedColumns...), historyRows(t, local, name, recordedColumns...))
	}
	sameRows(t, "engagement log", logRows(t, remote, "engagement", recordedColumns...), logRows(t, local, "engagement", recordedColumns...))
}
