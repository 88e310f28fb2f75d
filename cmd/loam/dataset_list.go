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

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

func (a *app) datasetListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the training sets that were built, and whether they can be built again",
		Long: `list shows the cards that the lake keeps, the newest first. A training set that is pinned can be rebuilt and verified: the
snapshots that it was made from don't expire. What builds that were killed have left, tags and files, is listed below them, as is that
of builds on their way; ` + "`loam maintain`" + ` removes it after two days.`,
		Example: "  loam dataset list\n  loam dataset list --json",
		Args:    noArguments,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listDatasets(c.Context()) },
	}
}

// datasetRow is a training set in a list.
type datasetRow struct {
	Name        string    `json:"name"` // of the request, or the file where flags asked for it
	CreatedAt   time.Time `json:"created_at"`
	Rows        int64     `json:"rows"`
	Features    int       `json:"features"`
	Clock       string    `json:"clock"`
	Out         string    `json:"out"`
	Pinned      string    `json:"pinned"` // yes, no, or partly
	Tag         string    `json:"tag"`
	RebuiltFrom string    `json:"rebuilt_from,omitempty"`
	// Unfinished is what a build without a card has left, or is at; name, rows and features are none then.
	Unfinished *pit.Leftover `json:"unfinished,omitempty"`
}

func (a *app) listDatasets(ctx context.Context) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	kept, err := keptCards(ctx, l)
	if err != nil {
		return err
	}
	tags := pins{lake: l, tags: map[string][]string{}}
	all := []datasetRow{}
	for _, k := range kept {
		c, err := pit.ParseCard(fmt.Sprintf("of %s in %s", k.Out, l.TableName(lake.DatasetsName)), []byte(k.Card))
		if err != nil {
			return err
		}
		row := datasetRow{
			Name: c.Name, CreatedAt: c.CreatedAt, Rows: c.Rows, Features: len(c.Features), Clock: c.Request.AsOf, Out: c.Out, Tag: c.Tag, RebuiltFrom: c.RebuiltFrom,
		}
		if row.Name == "" {
			row.Name = filepath.Base(c.Out)
		}
		if row.Pinned, err = tags.of(ctx, c); err != nil { // one that can't be looked at hides no others
			row.Pinned = "unknown"
			a.say("%s: %v", row.Out, err)
		}
		all = append(all, row)
	}
	left, err := pit.Leftovers(ctx, l, tempDir(p))
	if err != nil {
		return err
	}
	built := all
	for _, o := range left {
		pinned := "no"
		if len(o.Tables) > 0 {
			pinned = "yes"
		}
		all = append(all, datasetRow{CreatedAt: o.Begun, Pinned: pinned, Tag: o.Tag, Unfinished: &o})
	}
	return a.result(all, func(w io.Writer) {
		defer printLeftovers(w, left)
		if len(built) == 0 {
			fmt.Fprintln(w, "no training set was built yet")
			return
		}
		rows := [][]string{{"name", "built", ">rows", ">features", "clock", "pinned", "out"}}
		for _, d := range built {
			out := d.Out
			if rel, err := filepath.Rel(p.Dir, d.Out); err == nil && !strings.HasPrefix(rel, "..") {
				out = rel
			}
			rows = append(rows, []string{d.Name, d.CreatedAt.Format("2006-01-02 15:04"), number(d.Rows), number(int64(d.Features)), d.Clock, d.Pinned, out})
		}
		table(w, rows)
	})
}

// printLeftovers lists what builds without a card have left, or are at.
func printLeftovers(w io.Writer, left []pit.Leftover) {
	if len(left) == 0 {
		return
	}
	fmt.Fprintln(w, "unfinished: killed, or still on its way")
	rows := [][]string{{"begun", "tables", "files", "tag"}}
	for _, o := range left {
		begun := "unknown"
		if !o.Begun.IsZero() {
			begun = o.Begun.Format("2006-01-02 15:04")
		}
		rows = append(rows, []string{begun, number(int64(len(o.Tables))), number(int64(len(o.Files))), o.Tag})
	}
	table(w, rows)
}

// keptCards are the cards that the lake keeps, the newest first.
func keptCards(ctx context.Context, l *lake.Lake) ([]lake.KeptCard, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return l.Cards(ctx, db)
}

// pins knows the tags of tables, each of which it looks at once.
type pins struct {
	lake *lake.Lake
	tags map[string][]string
}

// of says whether the snapshots of a training set have their tag.
func (p *pins) of(ctx context.Context, c *pit.Card) (string, error) {
	has := 0
	for table := range c.Snapshots {
		tags, known := p.tags[table]
		if !known {
			var err error
			if tags, err = p.lake.Tags(ctx, table); err != nil {
				return "", err
			}
			p.tags[table] = tags
		}
		if slices.Contains(tags, c.Tag) {
			has++
		}
	}
	switch has {
	case len(c.Snapshots):
		return "yes", nil
	case 0:
		return "no", nil
	default:
		return "partly", nil
	}
}

func (a *app) datasetUnpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unpin CARD.json | TAG",
		Short: "Let the snapshots of a training set expire",
		Long: `unpin takes the tags from the snapshots that a training set was made from, so that they may expire and their files be removed.
Once they have, the training set can't be rebuilt, verified or built with the same snapshots again. The file and its card stay.
A build whose card replaces another's lets go of that one's snapshots itself. A training set whose card is gone is named by its tag,
which ` + "`loam dataset list --json`" + ` tells.`,
		Example: "  loam dataset unpin churn.card.json",
		Args:    arguments(1, 1, "name a card, such as churn.card.json, or a tag"),
		RunE:    func(c *cobra.Command, args []string) error { return a.unpinDataset(c.Context(), args[0]) },
	}
}

// unpinned says of which tables a tag was taken.
type unpinned struct {
	Tag       string           `json:"tag"`
	Snapshots map[string]int64 `json:"snapshots"`
}

func (a *app) unpinDataset(ctx context.Context, named string) error {
	_, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	card, err := a.cardNamed(ctx, l, named)
	if err != nil {
		return err
	}
	done, err := unpin(ctx, l, card)
	if err != nil {
		return err
	}
	return a.result(done, func(w io.Writer) {
		name := filepath.Base(card.Out)
		if len(done.Snapshots) == 0 {
			fmt.Fprintf(w, "%s was not pinned\n", name)
			return
		}
		fmt.Fprintf(w, "%s is unpinned: once its snapshots have expired it can't be rebuilt or verified any more\n", name)
		for _, table := range slices.Sorted(maps.Keys(done.Snapshots)) {
			fmt.Fprintf(w, "  snapshot %d of %s may expire\n", done.Snapshots[table], table)
		}
	})
}

// unpin takes a training set's tag from the snapshots that have it.
func unpin(ctx context.Context, l *lake.Lake, card *pit.Card) (unpinned, error) {
	done := unpinned{Tag: card.Tag, Snapshots: map[string]int64{}}
	for _, table := range slices.Sorted(maps.Keys(card.Snapshots)) {
		was, err := l.Unpin(ctx, table, card.Tag)
		if err != nil {
			return done, err
		}
		if was {
			done.Snapshots[table] = card.Snapshots[table]
		}
	}
	return done, nil
}

// cardNamed is the card in a file, or the one that the lake keeps under a tag.
func (a *app) cardNamed(ctx context.Context, l *lake.Lake, named string) (*pit.Card, error) {
	if !strings.HasPrefix(named, pit.TagPrefix) || strings.HasSuffix(named, ".json") {
		return pit.ReadCard(named)
	}
	kept, err := keptCards(ctx, l)
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		c, err := pit.ParseCard("of "+k.Out, []byte(k.Card))
		if err == nil && c.Tag == named {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no training set has the tag %s: `loam dataset list --json` tells those that there are", named)
}

func (a *app) datasetDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A.card.json B.card.json",
		Short: "Show in what two training sets differ",
		Long: `diff shows what two cards say otherwise: the request, the labels, definitions line by line, snapshots, watermarks, and null
rates that moved. Where both training sets are there and their labels are the same, it counts the rows in which each feature
has another value.`,
		Example: "  loam dataset diff churn.card.json churn_event.card.json",
		Args:    arguments(2, 2, "name two cards, such as churn.card.json again.card.json"),
		RunE:    func(c *cobra.Command, args []string) error { return a.diffDatasets(c.Context(), args[0], args[1]) },
	}
}

func (a *app) diffDatasets(ctx context.Context, pathA, pathB string) error {
	cardA, err := pit.ReadCard(pathA)
	if err != nil {
		return err
	}
	cardB, err := pit.ReadCard(pathB)
	if err != nil {
		return err
	}
	d, err := pit.Diff(cardA, cardB)
	if err != nil {
		return err
	}
	fileA, okA := trainingSet(pathA, cardA)
	fileB, okB := trainingSet(pathB, cardB)
	switch {
	case cardA.Labels.SHA256 != cardB.Labels.SHA256:
		d.RowsUnknown = "the labels are others"
	case !okA:
		d.RowsUnknown = fileA + " is gone"
	case !okB:
		d.RowsUnknown = fileB + " is gone"
	case !oneParquet(fileA):
		d.RowsUnknown = fileA + " is not one Parquet file"
	case !oneParquet(fileB):
		d.RowsUnknown = fileB + " is not one Parquet file"
	default:
		if d.Rows, err = pit.DiffRows(ctx, cardA, cardB, fileA, fileB); err != nil {
			d.RowsUnknown = err.Error()
		}
	}
	return a.result(d, func(w io.Writer) { printDiff(w, d, cardA.Rows) })
}

// oneParquet reports whether rows of a training set stand in one file, in the order of the labels.
func oneParquet(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && strings.HasSuffix(strings.ToLower(path), ".parquet")
}

func printDiff(w io.Writer, d *pit.CardDiff, rows int64) {
	if d.Same() {
		fmt.Fprintln(w, "no differences")
	}
	for _, part := range []struct {
		name string
		list []pit.Difference
	}{{"request", d.Request}, {"labels", d.Labels}, {"snapshots", d.Snapshots}, {"watermarks", d.Watermarks}, {"features", d.Features}} {
		if len(part.list) == 0 {
			continue
		}
		fmt.Fprintln(w, part.name)
		for _, one := range part.list {
			fmt.Fprintf(w, "  %s: %s -> %s\n", one.Name, said(one.A), said(one.B))
		}
	}
	for _, one := range d.Definitions {
		fmt.Fprintf(w, "%s %s\n", one.Kind, one.Name)
		for _, line := range one.Lines {
			fmt.Fprintf(w, "  %s\n", plain(line))
		}
	}
	if len(d.NullRates) > 0 {
		fmt.Fprintln(w, "null rates")
		for _, one := range d.NullRates {
			fmt.Fprintf(w, "  %s: %s -> %s\n", one.Column, percent(one.A), percent(one.B))
		}
	}
	switch {
	case d.RowsUnknown != "":
		fmt.Fprintf(w, "rows can't be compared: %s\n", d.RowsUnknown)
	case len(d.Rows) > 0:
		fmt.Fprintf(w, "rows with other values, of %s\n", number(rows))
		for _, one := range d.Rows {
			fmt.Fprintf(w, "  %s: %s\n", one.Column, number(one.Rows))
		}
	}
}

// said is what a card says, or that it doesn't.
func said(text string) string {
	if text == "" {
		return "(none)"
	}
	return plain(text)
}
