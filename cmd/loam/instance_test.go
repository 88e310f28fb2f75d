package main

import (
	"testing"

	"github.com/loamdata/loam/feature"
)

// Workers of a folder that run at once have different names, and who comes after one has its name.
func TestInstances(t *testing.T) {
	p := &feature.Project{Dir: t.TempDir()}
	first, free := takeInstance(p)
	second, freeSecond := takeInstance(p)
	defer freeSecond()
	if first == "" || second == "" || first == second {
		t.Errorf("two workers are %q and %q", first, second)
	}
	free()
	next, freeNext := takeInstance(p)
	defer freeNext()
	if next != first {
		t.Errorf("the next one is %q, want %q", next, first)
	}
	elsewhere, freeElsewhere := takeInstance(&feature.Project{Dir: t.TempDir()})
	defer freeElsewhere()
	if elsewhere == first {
		t.Errorf("workers of two folders are both %q", first)
	}
}
