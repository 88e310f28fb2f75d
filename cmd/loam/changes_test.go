package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/simulate"
)

// On events of a made-up CRM, late ones and deletes among them, what the changes are marked as is what the history has: a
// version for every one that opened one, ended by those that are marked as deletes.
func TestMarksAgreeWithHistory(t *testing.T) {
	t.Parallel()
	ctx, dir := t.Context(), t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	c := simulate.Config{Seed: 1, Contacts: 40, Days: 40, Events: 1200, Late: 0.2, Deletes: 0.02}
	events := filepath.Join(dir, "events.jsonl")
	w, err := simulate.CreateJSONL(events)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := simulate.Run(ctx, c, w.Write); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	a := &app{dir: dir, out: io.Discard, err: &said, now: time.Now}
	if err := a.backfill(ctx, []string{events}, backfillOptions{}); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	marks, late := map[mark]int{}, 0
	for i := range c.Contacts {
		e, err := a.entity(ctx, "contact", []string{fmt.Sprintf("c%d", i+1)})
		if err != nil {
			t.Fatal(err)
		}
		var opened, ended []string
		for _, c := range e.changes {
			marks[c.Mark]++
			if c.LateAfter != "" {
				late++
			}
			switch c.Mark {
			case openedMark:
				opened = append(opened, c.Position)
			case deleteMark:
				ended = append(ended, c.Position)
			}
		}
		var versions, gaps []string
		for i, v := range e.versions {
			versions = append(versions, v.Position)
			gap := v.ValidTo != nil && (i == len(e.versions)-1 || v.ValidTo.Before(e.versions[i+1].ValidFrom))
			if gap != (v.DeletedBy != nil) {
				t.Errorf("the version at %s ends in a gap: %v; deleted by %v", v.Position, gap, v.DeletedBy)
			}
			if gap {
				gaps = append(gaps, v.DeletedBy.Position)
			}
		}
		if !slices.Equal(opened, versions) || !slices.Equal(ended, gaps) {
			t.Errorf("c%d: opened %v, versions %v; deletes %v, gaps %v", i+1, opened, versions, ended, gaps)
		}
	}
	if marks[openedMark] == 0 || marks[noOpMark] == 0 || marks[deleteMark] == 0 || late == 0 {
		t.Errorf("%v, %d late: the events lack a kind of change", marks, late)
	}
}

// late is compared with the definition: some change of the key has a later event time and was recorded before.
func TestFindLate(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0).UTC() }
	changes := []changeRow{
		{EventTime: at(10), RecordedAt: at(100), at: feature.Position{Topic: "a", Offset: 5}},
		{EventTime: at(20), RecordedAt: at(100), at: feature.Position{Topic: "a", Offset: 4}},
		{EventTime: at(30), RecordedAt: at(100), at: feature.Position{Topic: "b", Offset: 9}},
		{EventTime: at(25), RecordedAt: at(101), at: feature.Position{Topic: "a", Offset: 6}},
		{EventTime: at(40), RecordedAt: at(101), at: feature.Position{Topic: "c", Offset: 1}},
		{EventTime: at(40), RecordedAt: at(102), at: feature.Position{Topic: "c", Offset: 2}},
	}
	for i := range changes {
		changes[i].Position = changes[i].at.String()
	}
	findLate(changes)
	for _, c := range changes {
		want := ""
		for _, o := range changes {
			same := o.at.Topic == c.at.Topic
			if o.EventTime.After(c.EventTime) && (same && o.at.Offset < c.at.Offset || o.RecordedAt.Before(c.RecordedAt)) {
				want = o.Position
			}
		}
		if c.LateAfter != want {
			t.Errorf("%s is late after %q, want %q", c.Position, c.LateAfter, want)
		}
	}
}
