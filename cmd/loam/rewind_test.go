package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Values that events gave which are taken back are gone online, though they would outrank those to come; what is taken instead is
// served.
func TestRewindOnline(t *testing.T) {
	t.Parallel()
	redis := miniredis.RunT(t)
	dir := accountProject(t, "online: {redis: "+redis.Addr()+"}\n")
	try := func(args ...string) (string, error) {
		var text strings.Builder
		a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
		root := a.root()
		root.SetArgs(append(args, "-C", dir))
		err := root.ExecuteContext(t.Context())
		return text.String(), err
	}
	loam := func(args ...string) string {
		t.Helper()
		text, err := try(args...)
		if err != nil {
			t.Fatalf("loam %s: %v\n%s", strings.Join(args, " "), err, text)
		}
		return text
	}
	file := func(name string, rows ...accountRow) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, csvOf(rows), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	asked := []string{"get", "--features", "accounts:plan", "--entity", "account_id=0,region=r0"}
	get := func() string {
		t.Helper()
		return loam(asked...)
	}
	loam("backfill", "--stream", "account", "--allow-deletes", file("first.csv", accountRow{0, 1, "free"}))
	loam("materialize")
	if text := get(); !strings.Contains(text, "free") {
		t.Fatalf("before: %s", text)
	}
	loam("backfill", "--stream", "account", file("wrong.csv", accountRow{0, 9, "wrong"}))
	if text := get(); !strings.Contains(text, "wrong") {
		t.Fatalf("taken wrongly: %s", text)
	}
	text, err := os.ReadFile(filepath.Join(dir, "wrong.csv"))
	if err != nil {
		t.Fatal(err)
	}
	loam("rewind", "account", "--to", fmt.Sprintf("file:%x@0", sha256.Sum256(text)), "--yes")
	if _, err := try(asked...); err == nil || !strings.Contains(err.Error(), "feature view accounts: no generation is ready") {
		t.Errorf("taken back: %v", err)
	}
	// A change that is older than the one that is gone.
	loam("backfill", "--stream", "account", file("right.csv", accountRow{0, 5, "right"}))
	loam("materialize")
	if text := get(); !strings.Contains(text, "right") {
		t.Errorf("corrected: %s", text)
	}
	loam("verify")
}
