package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/simulate"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) demoCommand() *cobra.Command {
	var dir string
	var contacts int
	c := &cobra.Command{
		Use:   "demo",
		Short: "The whole line on made-up events, in a minute",
		Long: `demo makes a project and a CRM's events, takes them in, and shows what comes of them: what was refused and why, one customer's
history, a training set with its card, online values, and the proof that history follows from the log. It needs no service.`,
		Example: "  loam demo\n  loam demo --dir crm --contacts 500",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.demo(c.Context(), dir, contacts)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "folder to make the project in (default: a new one under the system's temporary folder)")
	c.Flags().IntVar(&contacts, "contacts", 2000, "contacts of the made-up CRM")
	return c
}

// demoDays is the span of the demo's events.
const demoDays = 60

func (a *app) demo(ctx context.Context, dir string, contacts int) error {
	begun := time.Now()
	f := simulateFlags{
		config: simulate.Config{
			Seed: 1, Contacts: contacts, Days: demoDays,
			Duplicates: 0.02, Late: 0.02, OutOfOrder: 0.02, Malformed: 0.003, Deletes: 0.003,
		},
		format: "jsonl", labels: 1000,
	}
	if err := f.config.Validate(); err != nil {
		return misuse{err}
	}
	if dir == "" {
		parent, err := os.MkdirTemp("", "loam-demo-")
		if err != nil {
			return fmt.Errorf("make a folder for the demo: %w", err)
		}
		dir = filepath.Join(parent, "crm")
	} else if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already: name a folder to make", dir)
	}
	if _, err := initProject(dir); err != nil {
		return err
	}
	a.dir, a.json = dir, false
	step := 0
	show := func(what, command string) {
		step++
		fmt.Fprintf(a.out, "\n%d. %s\n   $ loam %s\n\n", step, what, command)
	}
	fmt.Fprintf(a.out, "A project of its own is in %s; the commands below are run in there.\n", dir)

	f.out = filepath.Join(dir, "events")
	show("A CRM's events are made up: some come twice, late, or broken", fmt.Sprintf(
		"simulate --contacts %d --days %d --duplicates %v --late %v --malformed %v --deletes %v --labels %d --out events",
		contacts, demoDays, f.config.Duplicates, f.config.Late, f.config.Malformed, f.config.Deletes, f.labels))
	if err := a.simulate(ctx, f); err != nil {
		return err
	}
	show("They are taken in: checked, deduplicated, kept as SCD2 history in Iceberg", "backfill events/events.jsonl")
	if err := a.backfill(ctx, []string{filepath.Join(dir, "events", "events.jsonl")}, backfillOptions{}); err != nil {
		return err
	}
	show("What was refused is kept, with the reason", "dlq list --limit 4")
	if err := a.listLetters(ctx, letterFilter{}, lake.Waiting, 4); err != nil {
		return err
	}
	key, err := a.eventful(ctx)
	if err != nil {
		return err
	}
	show("One customer's life, version by version", "history contact "+key)
	if err := a.history(ctx, "contact", []string{key}); err != nil {
		return err
	}
	show("A training set that never looks ahead: labels in, Parquet and card out", "dataset build churn --labels events/labels.csv")
	labels := datasetFlags{labels: filepath.Join(dir, "events", "labels.csv")}
	if err := a.buildDataset(ctx, []string{"churn"}, labels, func(flag string) bool { return flag == "labels" }); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if err := printRows(ctx, a.out, filepath.Join(dir, "churn.parquet"), 5); err != nil {
		return err
	}
	show("The newest values, as a serving layer reads them", fmt.Sprintf("get --features 'profile:*,activity:*' --entity contact_id=%s --entity contact_id=nobody", key))
	if err := a.get(ctx, []string{"profile:*", "activity:*"}, "", []map[string]string{{"contact_id": key}, {"contact_id": "nobody"}}); err != nil {
		return err
	}
	show("And the proof: every history is derived anew from its log, another way, and compared", "verify")
	if err := a.verify(ctx, nil, 0); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\nAll of that took %s. The project stays in %s: look around with `loam -C %s status`.\n",
		time.Since(begun).Round(100*time.Millisecond), dir, quoted(dir))
	return nil
}

// eventful finds a contact whose life fits a page: the one with the most versions up to eight, and a customer if there is
// one.
func (a *app) eventful(ctx context.Context) (string, error) {
	p, l, err := a.open(ctx)
	if err != nil {
		return "", err
	}
	defer l.Close()
	reading, err := l.Read(ctx, p.Stream("contact"))
	if err != nil {
		return "", err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return "", err
	}
	defer db.Close()
	if err := reading.HistoryView(ctx, db, "history", []string{"contact_id", "mkt_status", feature.ColIsCurrent}); err != nil {
		return "", err
	}
	var key string
	err = db.QueryRow(ctx, strings.TrimSpace(`
SELECT contact_id FROM history
GROUP BY contact_id HAVING count(*) <= 8
ORDER BY bool_or(is_current) DESC, count(DISTINCT mkt_status) DESC, count(*) DESC, contact_id LIMIT 1`), nil, &key)
	return key, err
}
