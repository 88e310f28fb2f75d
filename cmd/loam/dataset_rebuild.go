package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

func (a *app) datasetRebuildCommand() *cobra.Command {
	var out, labels string
	c := &cobra.Command{
		Use:   "rebuild CARD.json --out FILE.parquet",
		Short: "Build a training set again, as it was",
		Long: `rebuild makes the rows of a training set again from its card: by the definitions, the snapshots and the request that the card
holds, whatever the project's files say today, and whatever has been committed, compacted and expired since. The labels must
be those of then. It holds the rows against the card's hash, and ends with 1 where they are others or can't be had any more.`,
		Example: "  loam dataset rebuild churn.card.json --out again.parquet",
		Args:    arguments(1, 1, "name a card, such as churn.card.json"),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				return misused("name the file to write with --out")
			}
			if !strings.HasSuffix(strings.ToLower(out), ".parquet") {
				return misused("--out %s is not a Parquet file: end its name in .parquet", out)
			}
			return a.rebuildDataset(c.Context(), args[0], labels, out)
		},
	}
	c.Flags().StringVar(&out, "out", "", "Parquet file to write")
	c.Flags().StringVar(&labels, "labels", "", "where the labels are, if no longer where they were")
	return c
}

func (a *app) rebuildDataset(ctx context.Context, cardPath, labels, out string) error {
	card, err := pit.ReadCard(cardPath)
	if err != nil {
		return err
	}
	if out, err = filepath.Abs(out); err != nil {
		return fmt.Errorf("find --out: %w", err)
	}
	if was, _ := trainingSet(cardPath, card); was == out || same(was, out) || same(cardPath, pit.CardPath(out)) {
		return misused("--out %s is the training set that is to be made again: name another file", out)
	}
	if labels != "" {
		if labels, err = filepath.Abs(labels); err != nil {
			return fmt.Errorf("find --labels: %w", err)
		}
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
	bar := a.progress("rebuild")
	rebuilt, err := pit.Rebuild(ctx, l, p, card, labels, out, exprChecker(ctx, db), pit.Options{
		Now: a.now, Version: version, MemoryBytes: p.MemoryBytes, TempDir: tempDir(p),
		Step: func(what string, done, of int) { bar.at(int64(done), int64(of), what) },
	})
	bar.end()
	if err != nil {
		return err
	}
	err = a.result(rebuilt, func(w io.Writer) {
		c := rebuilt.Card
		if len(rebuilt.Differences) == 0 {
			fmt.Fprintf(w, "%s: the same %s as %s, hash %s\n", filepath.Base(c.Out), count(c.Rows, "row"), filepath.Base(card.Out), c.RowsHash)
			if n := int64(len(c.Unhashed)); n > 0 {
				fmt.Fprintf(w, "  without %s of doubles, which may differ in their last digits: %s\n", count(n, "sum"), strings.Join(c.Unhashed, ", "))
				fmt.Fprintf(w, "  loam dataset verify %s holds those against the log\n", pit.CardPath(out))
			}
			return
		}
		fmt.Fprintf(w, "%s: not the rows of %s\n", filepath.Base(c.Out), card.Out)
		for _, d := range rebuilt.Differences {
			fmt.Fprintf(w, "  %s\n", d)
		}
	})
	if err == nil && len(rebuilt.Differences) > 0 {
		err = errReported
	}
	return err
}
