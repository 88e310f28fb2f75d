package main

import (
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// An event of a file is a twin of one that was committed while the file's batch was gathered, also where the command has heard of
// that by a commit of its own meanwhile.
func TestTwinWhileABatchIsGathered(t *testing.T) {
	ctx := t.Context()
	p := newWindowsProject(t, true)
	project, l, err := p.app().open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fact := project.Stream("fact")
	b := &backfill{project: project, now: time.Now, did: outcome{}, streams: []*feature.Stream{fact}, only: fact}
	if b.line, err = openLine(ctx, project, l, b.streams, newJobID("backfill")); err != nil {
		t.Fatal(err)
	}
	defer b.line.close()
	file := feature.Partition{Topic: feature.FileTopicPrefix + strings.Repeat("ab", 32)}
	router := ingest.NewRouter(ingest.RouterOptions{
		Streams: b.streams, Only: fact, Dedups: b.line.dedups(), Starts: func(string, feature.Partition) int64 { return 0 },
	})
	twin := p.lines(1)
	err = b.add(ctx, router, []ingest.Record{{Position: feature.Position{Topic: file.Topic}, Value: []byte(twin)}}, time.Now().UnixMicro())
	if err != nil {
		t.Fatal(err)
	}
	p.append(0, twin)
	p.loam("run", "--until-end")
	s := b.line.streams["fact"]
	if err := s.commit(ctx, routed{&feature.Batch{Stream: fact}, s.known}, &streamOutcome{}); err != nil {
		t.Fatal(err)
	}
	if err := b.flush(ctx, router, []ingest.End{{Partition: file, Done: true}}); err != nil {
		t.Fatal(err)
	}
	if err := b.settle(); err != nil {
		t.Fatal(err)
	}
	if did := b.did.total(); did.Duplicate != 1 || did.Accepted != 0 {
		t.Errorf("an event that the topic had came to %+v", did)
	}
}
