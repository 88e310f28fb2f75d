package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// writeFile writes a file of a test, and makes the folders that it stands in.
func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}
