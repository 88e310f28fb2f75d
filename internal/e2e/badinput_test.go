package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What comes before the cut of a truncated gzip file is taken and stays; the whole file then adds the rest.
func TestTruncatedGzip(t *testing.T) {
	events := t.TempDir()
	run(t, ".", "simulate", "--contacts", "300", "--days", "60", "--format", "jsonl.gz", "--out", events)
	whole := filepath.Join(events, "events.jsonl.gz")
	text, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(events, "cut.jsonl.gz")
	write(t, cut, string(text[:len(text)*2/3]))
	dir := newProject(t, "")
	_, errs, code := runErr(t, dir, "backfill", cut)
	if code != 1 || !strings.Contains(errs, "cut.jsonl.gz") || !strings.Contains(errs, "it ends in the middle") {
		t.Errorf("code %d, %s", code, errs)
	}
	before := committed(t, dir)
	if before == 0 {
		t.Error("nothing of the truncated file was kept")
	}
	took := backfill(t, dir, whole)
	addUp(t, took)
	rows := verifyClean(t, dir)
	other := newProject(t, "")
	backfill(t, other, whole)
	for stream, n := range verifyClean(t, other) {
		if rows[stream] != n {
			t.Errorf("%s: %d rows, want %d", stream, rows[stream], n)
		}
	}
}

// A line of 10 MB is an event like any other, or a dead letter.
func TestLongLines(t *testing.T) {
	dir := newProject(t, "")
	long := strings.Repeat("x", 10<<20)
	event := strings.Replace(change(10, "lead"), `"mkt_status"`, fmt.Sprintf(`"attributes":{"note":%q},"mkt_status"`, long), 1)
	file := filepath.Join(t.TempDir(), "long.jsonl")
	write(t, file, event+"\n"+long+"\n\xff\xfe{}\n")
	if took := backfill(t, dir, file); took.Total != (counts{Read: 3, Accepted: 1, Refused: 2}) {
		t.Errorf("%+v", took)
	}
	verifyClean(t, dir)
}

// A disk that fills up is one clear error; with room again, the same command takes the rest.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small disk can be mounted by root alone")
	}
	disk := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk).CombinedOutput(); err != nil {
		if os.Getenv("LOAM_CI") == "1" {
			t.Fatalf("mount a small disk: %v\n%s", err, out)
		}
		t.Skipf("mount a small disk: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	events := t.TempDir()
	run(t, ".", "simulate", "--contacts", "3000", "--days", "60", "--events", "60000", "--out", events)
	file := filepath.Join(events, "events.jsonl")
	dir := filepath.Join(disk, "crm")
	run(t, ".", "init", dir)
	_, errs, code := runErr(t, dir, "backfill", file)
	if code != 1 || !strings.Contains(errs, "no space left on device") {
		t.Fatalf("code %d, %s", code, errs)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=200m", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addUp(t, backfill(t, dir, file))
	rows := verifyClean(t, dir)
	other := newProject(t, "")
	backfill(t, other, file)
	for stream, n := range verifyClean(t, other) {
		if rows[stream] != n {
			t.Errorf("%s: %d rows, want %d", stream, rows[stream], n)
		}
	}
}
