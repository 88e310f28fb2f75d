package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/verify"
)

// Bounds of the wait for the next commit of a worker that runs beside.
const (
	commitWaitMax = 10 * time.Second
	commitPoll    = 200 * time.Millisecond
)

// verifyOnline compares what Redis holds of views with what their logs say is served.
func (a *app) verifyOnline(ctx context.Context, names []string, buckets int) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	views, err := pickViews(p, names)
	if err != nil {
		return err
	}
	if p.Online.Redis == "" {
		return fmt.Errorf("no online store is named in %s, so there is nothing to compare: views that `loam get` loads end with it. Name online.redis", feature.ProjectFile)
	}
	store, err := openStore(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close()
	if views, err = servedOf(p, views, len(names) > 0); err != nil {
		return err
	}
	var reports []*verify.OnlineReport
	for _, v := range views {
		bar := a.progress("verify " + v.Name)
		r, err := verify.Online(ctx, l, store, p, v, verify.Options{
			Buckets: buckets, MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), Now: a.now,
			Progress: func(done, of int) { bar.at(int64(done), int64(of), "") },
			Wait:     func(ctx context.Context) error { return awaitCommit(ctx, l, store, p.Stream(v.Stream)) },
		})
		bar.end()
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	if len(reports) == 0 {
		return errors.New("no view of the project is served online")
	}
	return printChecks(a, reports, func(w io.Writer, r *verify.OnlineReport) { printOnline(w, p, r) })
}

// servedOf leaves of views those that have values in the online store; where they were named, all of them must.
func servedOf(p *feature.Project, views []*feature.View, named bool) ([]*feature.View, error) {
	var served []*feature.View
	for _, v := range views {
		switch why := p.Unserved(v); {
		case why == "":
			served = append(served, v)
		case named:
			return nil, fmt.Errorf("feature view %s: %s", v.Name, why)
		}
	}
	return served, nil
}

// awaitCommit returns after the next commit to a stream, or once it is plain that none comes soon.
func awaitCommit(ctx context.Context, l *lake.Lake, store *online.Store, s *feature.Stream) error {
	workers, err := store.Workers(ctx)
	if err != nil || len(workers) == 0 {
		return err
	}
	before, err := l.Read(ctx, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commitWaitMax)
	defer cancel()
	for {
		pause(ctx, commitPoll)
		now, err := l.Read(ctx, s)
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return nil
		case err != nil:
			return err
		case !sameSnapshots(before.Snapshots(), now.Snapshots()):
			return nil
		}
	}
}

func sameSnapshots(a, b map[string]int64) bool {
	for table, snapshot := range b {
		if a[table] != snapshot {
			return false
		}
	}
	return true
}

func printOnline(w io.Writer, p *feature.Project, r *verify.OnlineReport) {
	remedy := "loam materialize --view " + r.View
	if r.AsOf != nil && !p.OverHistory(p.View(r.View)) {
		remedy += " --as-of " + r.AsOf.Format(time.RFC3339Nano)
	}
	fmt.Fprintf(w, "%s: %s of %s compared%s, %s and %s not settled\n", r.View, count(r.Values, "value"), entities(r.Entities), asOfText(r.AsOf),
		count(r.Total, "difference"), number(r.NotSettled))
	printFindings(w, r.Findings)
	switch {
	case r.NotSettled > 0 && r.Total == 0 && r.AsOf != nil:
		fmt.Fprintf(w, "  what isn't settled has come to the lake since it was built: `%s` takes it\n", remedy)
	case r.Total > 0:
		fmt.Fprintf(w, "  `%s` writes it anew from the lake\n", remedy)
	case r.NotSettled > 0:
		fmt.Fprintf(w, "  what isn't settled has come to the lake or to Redis alone: is a worker running? `%s` needs none\n", remedy)
	}
}

func entities(n int64) string {
	if n == 1 {
		return "1 entity"
	}
	return number(n) + " entities"
}

// printFindings prints the findings that are kept, one a line.
func printFindings(w io.Writer, found verify.Findings) {
	for _, f := range found.First {
		key := f.Key
		if key != "" {
			key = " of " + plain(key)
		}
		fmt.Fprintf(w, "  %s%s: %s\n", strings.ReplaceAll(string(f.Kind), "_", " "), key, f.Text)
		if f.Drawing != "" {
			fmt.Fprintln(w, "    "+strings.ReplaceAll(strings.TrimRight(f.Drawing, "\n"), "\n", "\n    "))
		}
	}
	if more := found.Total - int64(len(found.First)); more > 0 {
		fmt.Fprintf(w, "  and %s more\n", number(more))
	}
}
