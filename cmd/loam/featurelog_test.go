package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/verify"
)

// What was served is compacted by a worker as it goes on, where a tier of files is full, and by `loam maintain` to the last.
func TestServedIsMaintained(t *testing.T) {
	t.Parallel()
	p := newScoreProject(t, 3, "")
	p.write(".loam/topics/score.v1/0.jsonl", scores(0, 3))
	p.loam("apply")
	if text := p.loam("maintain"); strings.Contains(text, "feature_log") {
		t.Errorf("nothing was logged: %s", text)
	}
	ctx, stop := context.WithCancel(t.Context())
	project, l, err := p.app().open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, err := l.OpenFeatureLog(ctx)
	if err != nil {
		t.Fatal(err)
	}
	served, at := 0, time.Now().UnixMicro() // all of one day
	add := func(n int) {
		for range n {
			one := "1"
			err := server.Append(ctx, []feature.ServedRow{{
				ServedAt: at, Request: fmt.Sprint(served), View: "scores", Definition: project.ViewDefinition(project.View("scores")).Hash,
				Entity: []string{"unknown"}, Features: []string{"n"}, Values: []*string{&one}, Statuses: []string{"PRESENT"}, Guards: map[string]string{},
			}})
			if err != nil {
				t.Fatal(err)
			}
			served++
		}
	}
	files := func() int {
		table, err := l.OpenTable(ctx, lake.FeatureLogName)
		if err != nil {
			t.Fatal(err)
		}
		relation, err := table.Scan(ctx, lake.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(relation.Files)
	}
	add(33)
	ended := make(chan error, 1)
	go func() {
		ended <- p.app().run(ctx, workerOptions{commitEvery: 20 * time.Millisecond, commitRows: 1000, commitBytes: 1 << 20, maintainShare: 1}, []string{"score"})
	}()
	for begun := time.Now(); files() > 33-31; time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > 30*time.Second || len(ended) > 0 {
			left := files()
			stop()
			t.Fatalf("there are %d files still; run: %v", left, <-ended)
		}
	}
	add(3)
	var done []maintained
	if err := json.Unmarshal([]byte(p.loam("maintain", "--json")), &done); err != nil {
		t.Fatal(err)
	}
	if last := done[len(done)-1]; last.Table != lake.FeatureLogName || last.Stream != "" || last.FilesBefore < 4 || last.FilesAfter != 1 || last.Rows != int64(served) {
		t.Errorf("maintain: %+v", done)
	}
	report, err := verify.Served(ctx, l, project, project.View("scores"), time.Time{}, verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Rows != int64(served) || report.Differing != int64(served) {
		t.Errorf("of %d rows: %+v", served, report)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// Each row is said to be what it was: recomputed, not settled, or left out and why.
func TestPrintServed(t *testing.T) {
	for _, c := range []struct {
		what   string
		report verify.ServedReport
		want   string
	}{
		{"all", verify.ServedReport{View: "v", Rows: 10, Values: 30},
			"v: 30 values in 10 rows recomputed, 0 differ (0 %), 0 rows not settled\n"},
		{"windows whose base isn't known", verify.ServedReport{View: "v", Rows: 6, OtherBase: 6},
			"v: 0 values in 0 rows recomputed, 0 differ (0 %), 0 rows not settled\n" +
				"  6 rows of windows were left out: they rest on other rows of files and redrives than the log has now\n"},
		{"some of each", verify.ServedReport{View: "v", Rows: 10, Values: 12, Differing: 3, Share: 0.25, NotSettled: 1, Unmarked: 2, OtherBase: 5, Other: 7, AsOf: 8},
			"v: 12 values in 4 rows recomputed, 3 differ (25 %), 1 row not settled\n" +
				"  7 rows were served by another definition of the view, and were left out\n" +
				"  8 rows were served as of an instant, and were left out: `loam verify --online` compares what is served so\n" +
				"  of 2 rows it isn't known how far Redis was written, so only what they rest on was looked at\n" +
				"  5 rows of windows were left out: they rest on other rows of files and redrives than the log has now\n"},
		{"nothing", verify.ServedReport{View: "v", Skipped: "for a reason"}, "v: left out, for a reason\n"},
	} {
		var b strings.Builder
		if printServed(&b, &c.report); b.String() != c.want {
			t.Errorf("%s:\n%swant\n%s", c.what, b.String(), c.want)
		}
	}
}
