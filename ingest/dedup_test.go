package ingest

import (
	"fmt"
	"testing"

	"github.com/loamdata/loam/feature"
)

func position(offset int64) feature.Position { return feature.Position{Topic: "t", Offset: offset} }

// An event that reuses an older one's id is known after that one was forgotten.
func TestReuseOutlivesTheFirst(t *testing.T) {
	d := NewDedup(100, nil)
	reuse := feature.Identity{EventID: "x", Key: "k", EventTime: 1e6}
	d.decide(feature.Identity{EventID: "x", Key: "k", EventTime: 1}, position(0))
	for i := range int64(60) { // time passes
		d.decide(feature.Identity{EventID: fmt.Sprint(i), Key: "k", EventTime: 1000 + i}, position(1+i))
	}
	if v := d.decide(reuse, position(100)); v != freshReuse {
		t.Fatalf("verdict %d, want a reuse", v)
	}
	for i := range int64(60) { // the window moves
		d.decide(feature.Identity{EventID: fmt.Sprint(100 + i), Key: "k", EventTime: 2e6 + i}, position(101+i))
	}
	if _, there := d.byID[d.hashID(reuse)]; there {
		t.Fatal("the first of the id is still in the window: the test shows nothing")
	}
	if v := d.decide(reuse, position(200)); v != twin {
		t.Errorf("verdict %d on its re-delivery, want a duplicate", v)
	}
	if v := d.decide(reuse, position(100)); v != own {
		t.Errorf("verdict %d on its replay, want its own", v)
	}
}

// The window is bounded where all events have one event time, as in an extract.
func TestWindowOfOneEventTime(t *testing.T) {
	d := NewDedup(100, nil)
	for i := range int64(5000) {
		d.decide(feature.Identity{EventID: fmt.Sprint(i), Key: "k", EventTime: 7}, position(i))
	}
	if n := len(d.byID); n > 200 {
		t.Errorf("%d ids are in a window of 100", n)
	}
	if v := d.decide(feature.Identity{EventID: "0", Key: "k", EventTime: 7}, position(6000)); v != unsure {
		t.Errorf("verdict %d on one that was forgotten, want the log to be asked", v)
	}
}
