package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/serve"
	"github.com/loamdata/loam/verify"
)

// logFeatures logs a share of what is served in the lake. end writes what is left, once the server has ended.
func (a *app) logFeatures(ctx context.Context, p *feature.Project, store *online.Store, rate float64) (log *serve.FeatureLog, end func() error, err error) {
	l, err := openLake(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	table, err := l.OpenFeatureLog(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	f := serve.NewFeatureLog(serve.FeatureLogOptions{Rate: rate, Project: p, Store: store, Now: a.now, Write: table.Append, Say: a.say})
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // it outlives the server
	ended := make(chan error, 1)
	go func() { ended <- f.Run(running) }()
	return f, func() error {
		stop()
		err := errors.Join(<-ended, l.Close())
		a.say("%s of what was served logged, %s dropped", count(f.Logged(), "row"), count(f.Dropped(), "request"))
		return err
	}, nil
}

// verifyServed recomputes what the table feature_log says was served of views since a time.
func (a *app) verifyServed(ctx context.Context, names []string, since string) error {
	var from time.Time
	if since != "" {
		var err error
		if from, err = time.Parse(time.RFC3339Nano, since); err != nil {
			return misused("--since %q is no time; write it as 2026-11-01T12:00:00Z", since)
		}
	}
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	views, err := pickViews(p, names)
	if err != nil {
		return err
	}
	if views, err = servedOf(p, views, len(names) > 0); err != nil {
		return err
	}
	var reports []*verify.ServedReport
	for _, v := range views {
		r, err := verify.Served(ctx, l, p, v, from, verify.Options{MemoryBytes: streamMemoryBytes, TempDir: tempDir(p)})
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	return printChecks(a, reports, printServed)
}

func printServed(w io.Writer, r *verify.ServedReport) {
	if r.Skipped != "" {
		fmt.Fprintf(w, "%s: left out, %s\n", r.View, r.Skipped)
		return
	}
	fmt.Fprintf(w, "%s: %s in %s recomputed, %s differ (%.4g %%), %s not settled\n", r.View, count(r.Values, "value"),
		count(r.Rows-r.OtherBase-r.NotSettled, "row"), number(r.Differing), 100*r.Share, count(r.NotSettled, "row"))
	if r.Other > 0 {
		fmt.Fprintf(w, "  %s were served by another definition of the view, and were left out\n", count(r.Other, "row"))
	}
	if r.AsOf > 0 {
		fmt.Fprintf(w, "  %s were served as of an instant, and were left out: `loam verify --online` compares what is served so\n", count(r.AsOf, "row"))
	}
	if r.Unmarked > 0 {
		fmt.Fprintf(w, "  of %s it isn't known how far Redis was written, so only what they rest on was looked at\n", count(r.Unmarked, "row"))
	}
	if r.OtherBase > 0 {
		fmt.Fprintf(w, "  %s of windows were left out: they rest on other rows of files and redrives than the log has now\n", count(r.OtherBase, "row"))
	}
	printFindings(w, r.Findings)
}
