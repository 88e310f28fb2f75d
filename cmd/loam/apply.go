package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/sql"
)

func (a *app) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate",
		Short: "Check the project folder",
		Long: `validate reads every file of the project folder and tells all that is wrong at once, each with file, line and remedy. Where
the catalog is a file that is there, it tells, too, what the tables can't follow; of a REST catalog loam plan does. Queries for labels are checked, too, and not run. With --json
it lists entities, feature views with their features, and feature services.`,
		Example: "  loam validate\n  loam validate --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := a.load(c.Context())
			if err != nil {
				return err
			}
			if err := a.followed(c.Context(), p); err != nil {
				return err
			}
			if err := checkLabelQueries(c.Context(), p); err != nil {
				return err
			}
			summary := struct {
				Project  string  `json:"project"`
				Streams  int     `json:"streams"`
				Entities int     `json:"entities"`
				Views    int     `json:"views"`
				Services int     `json:"services"`
				Datasets int     `json:"datasets"`
				Defined  defined `json:"defined"`
			}{p.Name, len(p.Streams), len(p.Entities), len(p.Views), len(p.Services), len(p.Datasets), definedIn(p)}
			return a.result(summary, func(w io.Writer) {
				fmt.Fprintf(w, "project %s is fine: %s, %s, %s, %s, %s\n", p.Name, count(int64(summary.Streams), "stream"),
					count(int64(summary.Entities), "entity"), count(int64(summary.Views), "feature view"),
					count(int64(summary.Services), "feature service"), count(int64(summary.Datasets), "dataset request"))
			})
		},
	}
}

// checkLabelQueries checks the queries that give labels of requests: by what the streams' tables hold where the catalog is a file that
// is there, else by the definitions alone.
func checkLabelQueries(ctx context.Context, p *feature.Project) error {
	whole := func(s *feature.Stream) (*feature.Stream, error) { return s, nil }
	if hasCatalog(p) {
		l, err := openLake(ctx, p)
		if err != nil {
			return err
		}
		defer l.Close()
		whole = func(s *feature.Stream) (*feature.Stream, error) {
			r, err := l.Read(ctx, s)
			if errors.Is(err, lake.ErrNoTable) {
				return s, nil
			} else if err != nil {
				return nil, err
			}
			return r.Stream, nil
		}
	}
	var failed []error
	for _, d := range p.Datasets {
		if d.LabelsSQL == "" {
			continue
		}
		if err := pit.CheckLabelQuery(ctx, p, d, whole); err != nil {
			failed = append(failed, fmt.Errorf("%s: labels.sql: %w", d.LabelsAt, err))
		}
	}
	return errors.Join(failed...)
}

// hasCatalog reports whether the catalog of a project is a file that is there.
func hasCatalog(p *feature.Project) bool {
	path := p.Lake.Catalog
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.Dir, path)
	}
	_, err := os.Stat(path)
	return !p.Lake.REST() && !errors.Is(err, fs.ErrNotExist)
}

// followed refuses what the tables of a project can't follow, where its catalog is a file that is there.
func (a *app) followed(ctx context.Context, p *feature.Project) error {
	if !hasCatalog(p) {
		return nil
	}
	l, err := openLake(ctx, p)
	if err != nil {
		return err
	}
	defer l.Close()
	_, changes, _, err := plan(ctx, p, l)
	if err != nil {
		return err
	}
	if err := blocked(changes); err != nil {
		return fmt.Errorf("the project folder has what can't be applied: %w", err)
	}
	return nil
}

func (a *app) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "plan",
		Short:   "Show what differs from the applied definitions",
		Long:    "plan holds the project folder against the definitions that were applied last, and tells what differs and what applying it costs.",
		Example: "  loam plan",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			p, l, err := a.open(c.Context())
			if err != nil {
				return err
			}
			defer l.Close()
			_, changes, _, err := plan(c.Context(), p, l)
			if err != nil {
				return err
			}
			return a.printChanges(changes)
		},
	}
}

func (a *app) applyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "apply",
		Short: "Apply the definitions: make and evolve tables",
		Long: "apply does what plan shows: it makes and evolves tables, derives the history of a stream anew where it tracks other columns, and keeps the " +
			"definitions as those that run, backfill and materialize work by. " +
			"Where the catalog has views, each state stream has one of its current versions, <stream>_current.",
		Example: "  loam plan && loam apply",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			p, l, err := a.open(c.Context())
			if err != nil {
				return err
			}
			defer l.Close()
			changes, err := a.apply(c.Context(), p, l)
			if err != nil {
				return err
			}
			if err := a.keepViews(c.Context(), p, l); err != nil {
				return err
			}
			return a.printChanges(changes)
		},
	}
}

// plan finds what differs between the applied definitions and the project's, and the revision that was applied last.
func plan(ctx context.Context, p *feature.Project, l *lake.Lake) (*lake.Definitions, []feature.Change, int64, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, nil, 0, err
	}
	defer db.Close()
	definitions, err := l.OpenDefinitions(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	applied, revision, err := definitions.Applied(ctx, db)
	if err != nil {
		return nil, nil, 0, err
	}
	changes := feature.Plan(applied, p.Definitions())
	for i := range changes {
		// What a stream's tables hold may go back further than the definition that is applied.
		if c := &changes[i]; c.Kind == feature.StreamDefinition && c.Action != feature.RemoveAction && c.Blocked == "" {
			if c.Blocked, err = l.Refusal(ctx, p.Stream(c.Name)); err != nil {
				return nil, nil, 0, err
			}
			if c.Blocked != "" {
				continue
			}
			tracked, err := l.Retracked(ctx, p.Stream(c.Name))
			if err != nil {
				return nil, nil, 0, err
			}
			if c.Rebuilds = len(tracked) > 0; c.Rebuilds {
				c.Cost = append(c.Cost, fmt.Sprintf("the history is derived anew from the log, as `loam rebuild %s` does, since %s is tracked otherwise; "+
					"a running worker goes on meanwhile by the definition before", c.Name, strings.Join(tracked, ", ")))
			}
		}
	}
	return definitions, changes, revision, nil
}

// blocked says what of the changes can't be applied, nil where all can.
func blocked(changes []feature.Change) error {
	var errs []error
	for _, c := range changes {
		if c.Blocked != "" {
			errs = append(errs, fmt.Errorf("%s %s: %s", c.Kind, c.Name, c.Blocked))
		}
	}
	return errors.Join(errs...)
}

// apply brings the tables to the project's definitions and records those. A change that can't be applied stops it before
// anything is done. Histories are derived anew before the definitions are recorded: where it ends between, the same again goes on.
func (a *app) apply(ctx context.Context, p *feature.Project, l *lake.Lake) ([]feature.Change, error) {
	definitions, changes, revision, err := plan(ctx, p, l)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	if err := blocked(changes); err != nil {
		return nil, fmt.Errorf("nothing was applied: %w", err)
	}
	for _, s := range p.Streams {
		if err := l.CreateStream(ctx, s); err != nil {
			return nil, err
		}
	}
	for _, c := range changes {
		if !c.Rebuilds {
			continue
		}
		a.say("deriving the history of %s anew; until that is done it is what it was", c.Name)
		if _, err := a.rebuildStream(ctx, p, l, p.Stream(c.Name)); err != nil {
			return nil, err
		}
	}
	return changes, definitions.Apply(ctx, changes, p.Definitions(), revision+1, a.now().UnixMicro())
}

// keepViews keeps the views of what is current also where no definition has changed: an older loam made none. A catalog
// without views is told, and is no error.
func (a *app) keepViews(ctx context.Context, p *feature.Project, l *lake.Lake) error {
	for _, s := range p.Streams {
		err := l.KeepView(ctx, s)
		if errors.Is(err, lake.ErrNoViews) {
			a.say("the catalog has no views: %s is not made, nor are those of other streams", l.TableName(lake.CurrentName(s.Name)))
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ensureApplied applies the definitions of a project that never had any, and refuses to work by others than those that
// were applied.
func (a *app) ensureApplied(ctx context.Context, p *feature.Project, l *lake.Lake) error {
	_, err := a.applied(ctx, p, l)
	return err
}

// applied is ensureApplied, and gives the table of definitions, by which later ones are noticed.
func (a *app) applied(ctx context.Context, p *feature.Project, l *lake.Lake) (*lake.Definitions, error) {
	definitions, changes, revision, err := plan(ctx, p, l)
	if err != nil || len(changes) == 0 {
		return definitions, err
	}
	if err := blocked(changes); err != nil {
		return nil, fmt.Errorf("the project folder has what can't be applied: %w", err)
	}
	if revision > 0 {
		names := make([]string, len(changes))
		rebuilds := false
		for i, c := range changes {
			names[i] = fmt.Sprintf("%s %s", c.Kind, c.Name)
			rebuilds = rebuilds || c.Rebuilds
		}
		err := fmt.Errorf("the project folder differs from what was applied (%s): see `loam plan`, then `loam apply`", strings.Join(names, ", "))
		if rebuilds {
			return nil, rebuilding{err}
		}
		return nil, err
	}
	if _, err := a.apply(ctx, p, l); err != nil {
		return nil, err
	}
	a.say("applied the definitions of %s: %s, %s", p.Name, count(int64(len(p.Streams)), "stream"), count(int64(len(p.Views)), "feature view"))
	definitions, _, _, err = plan(ctx, p, l)
	return definitions, err
}

// rebuilding is the error of a folder that differs from what was applied in what derives a history anew: somebody may be at it.
type rebuilding struct{ error }

func (a *app) printChanges(changes []feature.Change) error {
	if changes == nil {
		changes = []feature.Change{}
	}
	return a.result(changes, func(w io.Writer) {
		if len(changes) == 0 {
			fmt.Fprintln(w, "nothing differs from what is applied")
		}
		signs := map[feature.Action]string{feature.AddAction: "+", feature.ChangeAction: "~", feature.RemoveAction: "-"}
		for _, c := range changes {
			fmt.Fprintf(w, "%s %s %s\n", signs[c.Action], c.Kind, c.Name)
			for _, d := range c.Detail {
				fmt.Fprintf(w, "    %s\n", d)
			}
			for _, d := range c.Cost {
				fmt.Fprintf(w, "    cost: %s\n", d)
			}
			if c.Blocked != "" {
				fmt.Fprintf(w, "    can't be applied: %s\n", c.Blocked)
			}
		}
	})
}
