package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// compared is what verify --online tells of a view.
type compared struct {
	View        string `json:"view"`
	Entities    int64  `json:"entities"`
	Values      int64  `json:"values"`
	Differences int64  `json:"differences"`
	NotSettled  int64  `json:"not_settled"`
	Findings    []struct{ Kind, Key, Text string }
}

// onlineClean fails the test unless `loam verify --online` finds that Redis holds what is served, and gives the number of values.
func onlineClean(t *testing.T, dir string) (values int64) {
	t.Helper()
	out, stderr, code := runErr(t, dir, "verify", "--online", "--json")
	var all []compared
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("verify --online: %v in %q, %s", err, out, stderr)
	}
	for _, r := range all {
		values += r.Values
		if r.Differences != 0 || r.NotSettled != 0 || r.Entities == 0 {
			t.Errorf("verify --online ends with %d: %+v", code, r)
		}
	}
	if code != 0 && !t.Failed() {
		t.Errorf("verify --online ends with %d: %s", code, stderr)
	}
	return values
}

// rewriteFile changes the text of a file.
func rewriteFile(t *testing.T, path string, change func(string) string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, change(string(text)))
}

// appendFile adds to the end of a file, which it makes where it is missing.
func appendFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
