package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
	"github.com/loamdata/loam/verify"
)

func (a *app) datasetVerifyCommand() *cobra.Command {
	var rows int
	var seed uint64
	var all bool
	c := &cobra.Command{
		Use:   "verify CARD.json",
		Short: "Recompute rows of a training set from the log, and compare",
		Long: `verify recomputes a sample of rows straight from the logs that the card names, by loops that share nothing with what built
them, and compares every value. It holds the labels against the card, too. It ends with 1 where anything differs, and names
the first differences: the label's number, the columns of its key, and what the value should be.`,
		Example: "  loam dataset verify churn.card.json\n  loam dataset verify churn.card.json --rows 100 --seed 7",
		Args:    arguments(1, 1, "name a card, such as churn.card.json"),
		RunE: func(c *cobra.Command, args []string) error {
			if rows < 1 {
				return misused("--rows is at least 1, not %d", rows)
			}
			if all && c.Flags().Changed("rows") {
				return misused("--rows and --all exclude each other: give one")
			}
			return a.verifyDataset(c.Context(), args[0], verify.DatasetOptions{Rows: rows, All: all, Seed: seed})
		},
	}
	c.Flags().IntVar(&rows, "rows", 1000, "how many rows to recompute, spread over all")
	c.Flags().Uint64Var(&seed, "seed", 0, "chooses among the rows")
	c.Flags().BoolVar(&all, "all", false, "recompute all rows")
	return c
}

func (a *app) verifyDataset(ctx context.Context, cardPath string, o verify.DatasetOptions) error {
	card, err := pit.ReadCard(cardPath)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(strings.ToLower(card.Out), ".parquet") {
		return fmt.Errorf("the training set %s is no Parquet file, which verify reads alone: `loam dataset rebuild %s --out FILE.parquet` makes one of the same rows",
			card.Out, cardPath)
	}
	file, ok := trainingSet(cardPath, card)
	if !ok {
		return fmt.Errorf("the training set is gone from %s, and is not beside its card", card.Out)
	}
	text, err := os.ReadFile(cardPath)
	if err != nil {
		return fmt.Errorf("read the card: %w", err)
	}
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	db, err := sql.Open(ctx, sql.Options{Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	bar := a.progress("verify")
	o.File, o.Check, o.TempDir, o.MemoryBytes = file, exprChecker(ctx, db), tempDir(p), p.MemoryBytes
	o.Progress = func(done, of int) { bar.at(int64(done), int64(of), "") }
	report, err := verify.Dataset(ctx, l, p, text, o)
	bar.end()
	if err != nil {
		return err
	}
	err = a.result(report, func(w io.Writer) { printDatasetReport(w, report) })
	if err == nil && !report.OK() {
		err = errReported
	}
	return err
}

func printDatasetReport(w io.Writer, r *verify.DatasetReport) {
	fmt.Fprintf(w, "%s: %s of %s and %s recomputed from the log, %s\n", filepath.Base(r.Out), number(r.Checked), count(r.Rows, "row"),
		count(r.Cells, "value"), count(r.Total, "difference"))
	for _, f := range r.First {
		var where []string
		if f.Row != nil {
			where = append(where, fmt.Sprintf("label %d", *f.Row))
		}
		if len(f.Keys) > 0 {
			where = append(where, "by "+strings.Join(f.Keys, ", "))
		}
		for _, text := range []string{f.Column, f.Text} {
			if text != "" {
				where = append(where, text)
			}
		}
		fmt.Fprintf(w, "  %s: want %s, got %s\n", strings.Join(where, ", "), plain(f.Want), plain(f.Got))
	}
	if more := r.Total - int64(len(r.First)); more > 0 {
		fmt.Fprintf(w, "  and %s more\n", number(more))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintf(w, "  not recomputed: %s\n", strings.Join(r.Skipped, ", "))
	}
}
