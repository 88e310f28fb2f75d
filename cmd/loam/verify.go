package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/verify"
)

func (a *app) verifyCommand() *cobra.Command {
	var streams []string
	var buckets int
	c := &cobra.Command{
		Use:   "verify",
		Short: "Recompute histories from their logs, and compare",
		Long: `verify derives each history anew from its log, by statements that share nothing with what wrote it, and compares row by
row; it checks intervals, positions, duplicates, counts and offsets besides. It ends with 1 where anything differs, and draws
the first differences.`,
		Example: "  loam verify\n  loam verify --stream contact --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if buckets < 0 {
				return misused("--buckets is at least 0, not %d", buckets)
			}
			return a.verify(c.Context(), streams, buckets)
		},
	}
	c.Flags().StringSliceVar(&streams, "stream", nil, "only these streams")
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
	fine := true
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
		fine = fine && r.OK()
		reports = append(reports, r)
	}
	err = a.result(reports, func(w io.Writer) {
		for _, r := range reports {
			printReport(w, r)
		}
	})
	if err == nil && !fine {
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
	for _, f := range r.First {
		key := f.Key
		if key != "" {
			key = " of " + key
		}
		fmt.Fprintf(w, "  %s%s: %s\n", strings.ReplaceAll(string(f.Kind), "_", " "), key, f.Text)
		if f.Drawing != "" {
			fmt.Fprintln(w, "    "+strings.ReplaceAll(strings.TrimRight(f.Drawing, "\n"), "\n", "\n    "))
		}
	}
}
