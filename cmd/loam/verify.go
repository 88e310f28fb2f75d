package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/verify"
)

func (a *app) verifyCommand() *cobra.Command {
	var streams, views []string
	var buckets int
	var online, served bool
	var since string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Recompute histories and online values from the logs, and compare",
		Long: `verify derives each history anew from its log, by statements that share nothing with what wrote it, and compares row by
row; it checks intervals, positions, duplicates, counts and offsets besides. It ends with 1 where anything differs, and draws
the first differences.

With --online it compares what Redis holds of every view, value by value, with what the logs say is served. A worker may go on
beside it: what it has brought to one of the two alone is compared again after its next commit, and counted as not settled if
it still differs after three.

With --served it recomputes what ` + "`loam serve --log-features`" + ` has logged, each value at the position that it rests on, and reports the
share that differs.`,
		Example: "  loam verify\n  loam verify --stream contact --json\n  loam verify --online --view profile\n  loam verify --served --since 2026-11-01T00:00:00Z",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if buckets < 0 {
				return misused("--buckets is at least 0, not %d", buckets)
			}
			switch {
			case online && served:
				return misused("--online and --served are two checks: run one after the other")
			case served && len(streams) > 0:
				return misused("--served recomputes views: pick some by --view, not --stream")
			case since != "" && !served:
				return misused("--since is for --served")
			case served:
				return a.verifyServed(c.Context(), views, since)
			case online && len(streams) > 0:
				return misused("--online compares views: pick some by --view, not --stream")
			case !online && len(views) > 0:
				return misused("--view is for --online and --served; pick histories by --stream")
			case online:
				return a.verifyOnline(c.Context(), views, buckets)
			}
			return a.verify(c.Context(), streams, buckets)
		},
	}
	c.Flags().StringSliceVar(&streams, "stream", nil, "only these streams")
	c.Flags().BoolVar(&online, "online", false, "compare the online values of views instead")
	c.Flags().BoolVar(&served, "served", false, "recompute what was served and logged instead")
	c.Flags().StringVar(&since, "since", "", "with --served, only what was served since this time, such as 2026-11-01T00:00:00Z (default: all)")
	c.Flags().StringSliceVar(&views, "view", nil, "with --online or --served, only these views")
	c.Flags().IntVar(&buckets, "buckets", 0, "parts in which the keys are taken, to bound memory (default: one a million changes)")
	return c
}

func (a *app) verify(ctx context.Context, names []string, buckets int) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	streams, err := pickStreams(p, names)
	if err != nil {
		return err
	}
	var reports []*verify.Report
	for _, s := range streams {
		bar := a.progress("verify " + s.Name)
		r, err := verify.History(ctx, l, s, verify.Options{
			Buckets: buckets, MemoryBytes: streamMemoryBytes, TempDir: tempDir(p),
			Progress: func(done, of int) { bar.at(int64(done), int64(of), "") },
		})
		bar.end()
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	return printChecks(a, reports, printReport)
}

// printChecks prints reports of checks. It fails where one has found anything.
func printChecks[R interface{ OK() bool }](a *app, reports []R, print func(io.Writer, R)) error {
	err := a.result(reports, func(w io.Writer) {
		for _, r := range reports {
			print(w, r)
		}
	})
	if err == nil && slices.ContainsFunc(reports, func(r R) bool { return !r.OK() }) {
		err = errReported
	}
	return err
}

func printReport(w io.Writer, r *verify.Report) {
	what := count(r.LogRows, "log row")
	if r.Keys > 0 {
		what += fmt.Sprintf(", %s and %s", count(r.Keys, "key"), count(r.Versions, "version"))
	}
	if r.OK() {
		fmt.Fprintf(w, "%s: %s recomputed, 0 differences\n", r.Stream, what)
		return
	}
	fmt.Fprintf(w, "%s: %s recomputed, %s\n", r.Stream, what, count(r.Total, "difference"))
	printFindings(w, r.Findings)
}
