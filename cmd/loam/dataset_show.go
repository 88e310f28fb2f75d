package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

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
			if card.Out == feature.Standard {
				a.say("the training set itself went out on standard output")
				return nil
			}
			out, ok := trainingSet(args[0], card)
			if !ok {
				a.say("the training set itself is gone from %s, and is not beside its card", card.Out)
				return nil
			}
			return printRows(c.Context(), a.out, out, rows)
		},
	}
	c.Flags().IntVar(&rows, "rows", 5, "how many rows to show")
	return c
}

// trainingSet finds the file of a card: where it was written, or beside the card where both were moved.
func trainingSet(cardPath string, c *pit.Card) (path string, ok bool) {
	ending := filepath.Ext(c.Out)
	if plain, ok := strings.CutSuffix(c.Out, ".gz"); ok {
		ending = filepath.Ext(plain) + ending
	}
	for _, path := range []string{c.Out, strings.TrimSuffix(cardPath, ".card.json") + ending} {
		if _, err := os.Stat(path); err == nil {
			return path, true
		}
	}
	return c.Out, false
}

func printCard(w io.Writer, c *pit.Card) {
	name := c.Name
	if name == "" {
		name = filepath.Base(c.Out)
	}
	fmt.Fprintf(w, "%s: %s, %s\n", name, count(c.Rows, "row"), count(int64(len(c.Features)), "feature"))
	fmt.Fprintf(w, "  clock      %s\n", c.Clock)
	if at := c.Request.KnownAt; at != nil {
		fmt.Fprintf(w, "  known at   %s: nothing that loam recorded later\n", at.UTC().Format(time.RFC3339Nano))
	}
	if c.Request.AtLabelTime == "exclude" {
		fmt.Fprintln(w, "  bound      what happened at the very time of a label is left out")
	}
	audit := "no label sees a feature"
	if c.Audit.MaxUS != nil {
		audit = fmt.Sprintf("the newest %s a label saw lay %s before it (never after: no leakage)", c.Audit.FeatureTime,
			elapsed(time.Duration(-*c.Audit.MaxUS)*time.Microsecond))
	}
	fmt.Fprintf(w, "  audit      %s\n", audit)
	printLabels(w, c)
	fmt.Fprintf(w, "  clocks     could differ for %s of the labels\n", percent(c.Labels.ClocksDiffer))
	views := 0
	for _, v := range c.Views {
		views = max(views, min(len([]rune(v.View)), cardNameCells))
	}
	for _, v := range c.Views {
		fmt.Fprintf(w, "             %s %7s %s\n", fit(v.View, views), percent(v.ClocksDiffer), bar(v.ClocksDiffer, cardBarCells))
	}
	if c.Watermark != nil {
		fmt.Fprintf(w, "  watermark  %s\n", c.Watermark.Format(time.RFC3339))
	}
	for _, table := range slices.Sorted(maps.Keys(c.Snapshots)) {
		fmt.Fprintf(w, "  snapshot   %s %d, kept by tag %.16s\n", table, c.Snapshots[table], c.Tag)
	}
	if c.RowsHash != "" {
		fmt.Fprintf(w, "  rows       %.21s", c.RowsHash)
		if n := int64(len(c.Unhashed)); n > 0 {
			fmt.Fprintf(w, ", without %s of doubles", count(n, "sum"))
		}
		fmt.Fprintln(w)
	}
	printFeatures(w, c)
	for _, f := range c.Features {
		printLost(w, f)
	}
	for _, warning := range c.Warnings {
		fmt.Fprintf(w, "  warning: %s\n", warning)
	}
	fmt.Fprintf(w, "  written to %s in %s\n", c.Out, (time.Duration(c.WallMS) * time.Millisecond).String())
	if c.RebuiltFrom != "" {
		fmt.Fprintf(w, "  made again from the card of %s\n", c.RebuiltFrom)
	}
}

// printLabels says where the labels came from, which of them were taken, and into which parts.
func printLabels(w io.Writer, c *pit.Card) {
	l := c.Labels
	fmt.Fprintf(w, "  labels     %s, sha256 %.12s\n", l, l.SHA256)
	if l.Read != l.Rows {
		fmt.Fprintf(w, "             %s read, %s taken", number(l.Read), number(l.Rows))
		if l.LeftOut > 0 {
			fmt.Fprintf(w, ", %s left out as immature", number(l.LeftOut))
		}
		if l.Unsampled > 0 {
			fmt.Fprintf(w, ", %s not in the sample", number(l.Unsampled))
		}
		fmt.Fprintln(w)
	}
	for _, o := range l.Outcomes {
		fmt.Fprintf(w, "  outcome    %s came true for %s; %s left out, whose %s had not ended\n", o.Column, count(o.True, "label"), count(o.LeftOut, "label"), o.Within)
	}
	if c.Request.Sample != "" {
		fmt.Fprintf(w, "  sample     %s by seed %d\n", c.Request.Sample, c.Request.Seed)
	}
	if c.Request.Split != "" {
		fmt.Fprintf(w, "  split      %s by seed %d\n", c.Request.Split, c.Request.Seed)
	}
	for _, p := range l.Parts {
		name := p.Part
		if name == "" {
			name = "none"
		}
		part := share(p.Rows, l.Rows)
		fmt.Fprintf(w, "             %s %7s %s\n", fit(fmt.Sprintf("%s %s", name, number(p.Rows)), cardNameCells), percent(part), bar(part, cardBarCells))
	}
}

// printLost says how many values of a feature are null though there was something to make them of, and why.
func printLost(w io.Writer, f pit.CardFeature) {
	for _, lost := range []struct {
		n   int64
		why string
	}{
		{f.Overflows, "the sum overflows"}, {f.Uncounted, fmt.Sprintf("there are more than %s distinct values", number(feature.DistinctMax))},
		{f.Errors, "the expression fails"},
	} {
		if lost.n > 0 {
			fmt.Fprintf(w, "    null for %s of %s: %s\n", count(lost.n, "label"), plain(f.Column), lost.why)
		}
	}
}

// share is n of all, 0 of nothing.
func share(n, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(n) / float64(all)
}

// Widths of what is drawn of a feature: its bar, and the most of its name and its type together, so that with a strip of 20
// and the spaces between them no line is wider than 80.
const (
	cardBarCells  = 8
	cardNameCells = 24
	cardTextCells = 37
)

// printFeatures draws how many values of each feature are null, and what share is there over the time of the labels.
func printFeatures(w io.Writer, c *pit.Card) {
	title := ""
	if c.Coverage != nil && len(c.Coverage.Labels) > 0 {
		title = spanTitle(c.Coverage.From, c.Coverage.To, len(c.Coverage.Labels))
	}
	names, types := len("feature"), len("type")
	for _, f := range c.Features {
		names, types = max(names, len([]rune(f.Column))), max(types, len([]rune(f.Type)))
	}
	types = min(types, cardTextCells-cardNameCells)
	names = min(names, cardTextCells-types)
	line := func(name, typ, null, bar, strip string) {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %s  %s %7s %s  %s", fit(name, names), fit(typ, types), null, fit(bar, cardBarCells), strip), " "))
	}
	line("feature", "type", "null", "", title)
	for _, f := range c.Features {
		line(f.Column, f.Type, percent(f.NullRate), bar(f.NullRate, cardBarCells), strip(f.Coverage))
	}
	if title != "" {
		var most int64
		for _, n := range c.Coverage.Labels {
			most = max(most, n)
		}
		shares := make([]*float64, len(c.Coverage.Labels))
		for i, n := range c.Coverage.Labels {
			if n > 0 {
				v := float64(n) / float64(most)
				shares[i] = &v
			}
		}
		line("labels", "", "", "", strip(shares))
	}
}

// spanTitle names the ends of a span of time over so many cells.
func spanTitle(from, to time.Time, cells int) string {
	layout := "06-01-02"
	a, b := from.Format(layout), to.Format(layout)
	if a == b {
		a, b = from.Format("15:04:05"), to.Format("15:04:05")
	}
	return a + strings.Repeat(" ", max(cells-len(a)-len(b), 1)) + b
}

// bar draws a share.
func bar(share float64, cells int) string {
	n := int(share*float64(cells) + 0.5)
	if n == 0 && share > 0 {
		return "▏"
	}
	return strings.Repeat("█", min(n, cells))
}

// strip draws shares beside each other, each in a cell: nothing for nil, and a dot for 0.
func strip(shares []*float64) string {
	const heights = "▁▂▃▄▅▆▇█"
	steps := []rune(heights)
	var b strings.Builder
	for _, s := range shares {
		switch {
		case s == nil:
			b.WriteByte(' ')
		case *s <= 0:
			b.WriteRune('·')
		default:
			b.WriteRune(steps[min(int(*s*float64(len(steps))), len(steps)-1)])
		}
	}
	return b.String()
}

// fit makes a text as wide as so many cells, cut where it is longer.
func fit(text string, cells int) string {
	letters := []rune(plain(text))
	if len(letters) > cells {
		return string(letters[:cells-1]) + "…"
	}
	return string(letters) + strings.Repeat(" ", cells-len(letters))
}

func percent(share float64) string {
	if share > 0 && share < 0.001 {
		return "< 0.1 %"
	}
	return fmt.Sprintf("%.1f %%", share*100)
}

// printRows draws the first rows of a training set.
func printRows(ctx context.Context, w io.Writer, path string, n int) error {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	scan, err := datasetScan(ctx, db, path)
	if err != nil {
		return err
	}
	rows, err := db.Query(ctx, sql.Render("SELECT COLUMNS(*)::VARCHAR FROM (FROM {scan} LIMIT {n})",
		sql.Args{"scan": scan, "n": sql.Fragment(fmt.Sprint(n))}))
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

// datasetScan is the relation of a training set, of whatever format.
func datasetScan(ctx context.Context, db *sql.DB, path string) (sql.Fragment, error) {
	literal := sql.Args{"path": sql.Path(path), "files": sql.Path(path) + " || " + sql.Literal("/**/*.parquet")}
	lower := strings.ToLower(path)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fmt.Errorf("read the training set: %w", err)
	case info.IsDir():
		return sql.Fragment(sql.Render("read_parquet({files}, hive_partitioning = true)", literal)), nil
	case strings.HasSuffix(lower, ".csv"), strings.HasSuffix(lower, ".csv.gz"):
		return sql.Fragment(sql.Render("read_csv({path}, header = true, all_varchar = true, hive_partitioning = false)", literal)), nil
	case strings.HasSuffix(lower, ".arrow"), strings.HasSuffix(lower, ".arrows"):
		return "shown", importArrow(ctx, db, "shown", path)
	}
	return sql.Fragment(sql.Render("read_parquet({path}, hive_partitioning = false)", literal)), nil
}

// importArrow copies an Arrow IPC file, of the file format or by its ending the stream format, into a table.
func importArrow(ctx context.Context, db *sql.DB, table, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the training set: %w", err)
	}
	defer f.Close()
	if strings.HasSuffix(strings.ToLower(path), ".arrows") {
		r, err := ipc.NewReader(f)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		defer r.Release()
		return db.ImportSeq(ctx, table, r.Schema(), sql.Retained(r))
	}
	r, err := ipc.NewFileReader(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer r.Close()
	return db.ImportFile(ctx, table, r)
}
