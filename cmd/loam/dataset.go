package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

func (a *app) datasetCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "dataset",
		Short:   "Build training sets and show them",
		Example: "  loam dataset build datasets/churn.yaml\n  loam dataset show churn.card.json",
	}, a.datasetBuildCommand(), a.datasetShowCommand())
}

// findRequest finds a request by its name or its file.
func findRequest(p *feature.Project, text string) (*feature.DatasetRequest, error) {
	for _, d := range p.Datasets {
		if d.Name == text || d.At.File == text {
			return d, nil
		}
		if same(filepath.Join(p.Dir, d.At.File), text) {
			return d, nil
		}
	}
	if _, err := os.Stat(text); errors.Is(err, fs.ErrNotExist) {
		var names []string
		for _, d := range p.Datasets {
			names = append(names, d.Name)
		}
		if len(names) == 0 {
			names = []string{"none: write one under datasets/, or give flags"}
		}
		return nil, fmt.Errorf("there is no request %s; the project has %s", text, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%s is not under %s: move it there, so that it is checked with the project", text, filepath.Join(p.Dir, "datasets"))
}

func noService(p *feature.Project, name string) error {
	known := "the project has none"
	if len(p.Services) > 0 {
		names := make([]string, len(p.Services))
		for i, s := range p.Services {
			names[i] = s.Name
		}
		known = "known: " + strings.Join(names, ", ")
	}
	return fmt.Errorf("there is no feature service %q; %s", name, known)
}

// same reports whether two paths lead to one file.
func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func (a *app) datasetShowCommand() *cobra.Command {
	var rows int
	c := &cobra.Command{
		Use:     "show CARD.json",
		Short:   "Show a training set's card and first rows",
		Example: "  loam dataset show churn.card.json --rows 10",
		Args:    arguments(1, 1, "name a card, such as churn.card.json"),
		RunE: func(c *cobra.Command, args []string) error {
			if rows < 0 {
				return misused("--rows is at least 0, not %d", rows)
			}
			card, err := pit.ReadCard(args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.result(card, nil)
			}
			printCard(a.out, card)
			out := card.Out
			if _, err := os.Stat(out); err != nil {
				out = strings.TrimSuffix(args[0], ".card.json") + ".parquet" // both were moved
			}
			if _, err := os.Stat(out); err != nil {
				a.say("the training set itself is gone from %s, and is not beside its card", card.Out)
				return nil
			}
			return printRows(c.Context(), a.out, out, rows)
		},
	}
	c.Flags().IntVar(&rows, "rows", 5, "how many rows to show")
	return c
}

func printCard(w io.Writer, c *pit.Card) {
	name := c.Name
	if name == "" {
		name = filepath.Base(c.Out)
	}
	fmt.Fprintf(w, "%s: %s, %s\n", name, count(c.Rows, "row"), count(int64(len(c.Features)), "feature"))
	fmt.Fprintf(w, "  clock      %s\n", c.Clock)
	audit := "no label sees a feature"
	if c.Audit.MaxUS != nil {
		audit = fmt.Sprintf("the newest %s a label saw lay %s before it (never after: no leakage)", c.Audit.FeatureTime,
			elapsed(time.Duration(-*c.Audit.MaxUS)*time.Microsecond))
	}
	fmt.Fprintf(w, "  audit      %s\n", audit)
	fmt.Fprintf(w, "  labels     %s, sha256 %.12s\n", c.Labels, c.Labels.SHA256)
	fmt.Fprintf(w, "  clocks     could differ for %s of the labels\n", percent(c.Labels.ClocksDiffer))
	if c.Watermark != nil {
		fmt.Fprintf(w, "  watermark  %s\n", c.Watermark.Format(time.RFC3339))
	}
	for _, table := range slices.Sorted(maps.Keys(c.Snapshots)) {
		fmt.Fprintf(w, "  snapshot   %s %d, kept by tag %.16s\n", table, c.Snapshots[table], c.Tag)
	}
	rows := [][]string{{"feature", "type", ">null"}}
	for _, f := range c.Features {
		rows = append(rows, []string{f.Column, f.Type, percent(f.NullRate)})
	}
	table(w, rows)
	for _, warning := range c.Warnings {
		fmt.Fprintf(w, "  warning: %s\n", warning)
	}
	fmt.Fprintf(w, "  written to %s in %s\n", c.Out, (time.Duration(c.WallMS) * time.Millisecond).String())
}

func percent(share float64) string {
	if share > 0 && share < 0.001 {
		return "< 0.1 %"
	}
	return fmt.Sprintf("%.1f %%", share*100)
}

// printRows draws the first rows of a Parquet file.
func printRows(ctx context.Context, w io.Writer, path string, n int) error {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Query(ctx, sql.Render("SELECT COLUMNS(*)::VARCHAR FROM (FROM read_parquet({path}) LIMIT {n})",
		sql.Args{"path": sql.Literal(path), "n": sql.Fragment(fmt.Sprint(max(n, 0)))}))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	cells := [][]string{names}
	for rows.Next() {
		values := make([]*string, len(names))
		dst := make([]any, len(names))
		for i := range values {
			dst[i] = &values[i]
		}
		if err := rows.Scan(dst...); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		row := make([]string, len(names))
		for i, v := range values {
			if row[i] = "null"; v != nil {
				row[i] = *v
			}
		}
		cells = append(cells, row)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	table(w, cells)
	return nil
}
