package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
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

// PyIceberg, which shares no code with loam, reads the rows that loam reads, deletion vectors applied.
func TestPyIcebergReadsTheSameRows(t *testing.T) {
	python := service(t, "LOAM_TEST_PYICEBERG")
	dir := newProject(t, "")
	backfill(t, dir, simulated(t)...)
	vectors, err := filepath.Glob(filepath.Join(dir, ".loam/warehouse/crm/contact_history/data/*.puffin"))
	if err != nil || len(vectors) == 0 {
		if vectors, err = filepath.Glob(filepath.Join(dir, ".loam/warehouse/*/contact_history/data/*.puffin")); err != nil || len(vectors) == 0 {
			t.Fatalf("no deletion vectors were written: %v", err)
		}
	}
	dump := t.TempDir()
	tables := []string{"crm.contact_log", "crm.contact_history", "crm.opportunity_log", "crm.opportunity_history", "crm.engagement_log"}
	script, err := filepath.Abs(filepath.Join(root, "scripts/pyiceberg/read.py"))
	if err != nil {
		t.Fatal(err)
	}
	read := exec.CommandContext(t.Context(), python, append([]string{script, "--dump", dump, dir}, tables...)...)
	if out, err := read.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := openLake(t, dir)
	for _, name := range []string{"contact", "opportunity", "engagement"} {
		s := r.project.Stream(name)
		theirs := func(table string, columns []feature.Column) []string {
			view := sql.Render("CREATE OR REPLACE VIEW theirs AS FROM read_parquet({path})",
				sql.Args{"path": sql.Literal(filepath.Join(dump, "crm."+table+".parquet"))})
			if err := r.db.Exec(t.Context(), view); err != nil {
				t.Fatal(err)
			}
			return r.rows(t, "theirs", columns, nil)
		}
		sameRows(t, name+" log", theirs(name+"_log", s.LogColumns()), logRows(t, dir, name))
		if s.Kind == feature.StateStream {
			sameRows(t, name+" history", theirs(name+"_history", s.HistoryColumns()), historyRows(t, dir, name))
		}
	}
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
