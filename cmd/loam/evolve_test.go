package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// A worker whose folder doesn't come to hold what is applied ends with what to do; one whose folder does goes on.
func TestAwaitApplied(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	clock := time.Unix(1_800_000_000, 0)
	a := &app{dir: dir, out: io.Discard, err: io.Discard, now: func() time.Time {
		clock = clock.Add(appliedWait / 2)
		return clock
	}}
	p, l, err := a.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	definitions, err := a.applied(ctx, p, l)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := definitions.Changed(ctx); changed || err != nil {
		t.Errorf("nothing was applied, and changed is %v, %v", changed, err)
	}
	if err := a.awaitApplied(ctx); err != nil {
		t.Errorf("the folder is what is applied: %v", err)
	}
	writeFile(t, filepath.Join(dir, "streams", "contact.yaml"), "stream: contact\nextend: true\ncolumns: [{name: score, type: double}]\n")
	if err := a.awaitApplied(ctx); err == nil || !strings.Contains(err.Error(), "can't go on by it; everything it took is kept: the project folder differs from what was applied (stream contact") {
		t.Errorf("the folder differs: %v", err)
	}
	changed, err := a.load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.apply(ctx, changed, l); err != nil {
		t.Fatal(err)
	}
	if changed, err := definitions.Changed(ctx); !changed || err != nil {
		t.Errorf("a column was applied, and changed is %v, %v", changed, err)
	}
	if err := a.awaitApplied(ctx); err != nil {
		t.Errorf("the folder is what is applied again: %v", err)
	}
}

// An event that was refused before its log was committed stays refused, also by a definition that would take it.
func TestRefusedBeforeADefinitionChanged(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "features", "contact.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "datasets")); err != nil {
		t.Fatal(err)
	}
	declare := func(typ string) {
		writeFile(t, filepath.Join(dir, "streams", "score.yaml"),
			"stream: score\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ncolumns: [{name: id, type: string}, {name: n, type: \""+typ+"\"}]\n")
	}
	declare("decimal(3,1)")
	path := filepath.Join(dir, "scores.jsonl")
	if err := os.WriteFile(path, []byte(`{"id":"a","n":"1.5","at":"2026-01-01T00:00:00Z"}
{"id":"b","n":"1000.5","at":"2026-01-01T00:00:00Z"}
{"id":"c","n":"2.5","at":"2026-01-01T00:00:00Z"}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
	// The first backfill ends between the dead letters and the log.
	p, l, err := a.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		t.Fatal(err)
	}
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ingest.StatFile(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	letter := feature.DeadLetter{Position: feature.Position{Topic: file.Topic, Offset: 1}, Stream: "score", Reason: feature.BadValue, Detail: "n: more digits than decimal(3,1) has"}
	span := feature.Span{Partition: feature.Partition{Topic: file.Topic}, To: 3}
	if err := letters.Commit(ctx, []feature.DeadLetter{letter}, []feature.Span{span}, "test"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	declare("decimal(9,1)")
	if p, l, err = a.open(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := a.apply(ctx, p, l); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.backfill(ctx, []string{path}, backfillOptions{stream: "score", noOnline: true}); err != nil || !strings.Contains(text.String(), "score      3         2        1") {
		t.Errorf("%v\n%s", err, &text)
	}
	if err := a.verify(ctx, []string{"score"}, 0); err != nil {
		t.Errorf("%v\n%s", err, &text)
	}
}
