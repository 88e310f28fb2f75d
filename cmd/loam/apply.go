package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "validate",
		Short:   "Check the project folder",
		Long:    "validate reads every file of the project folder and tells all that is wrong at once, each with file, line and remedy.",
		Example: "  loam validate\n  loam validate --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := a.load(c.Context())
			if err != nil {
				return err
			}
			summary := struct {
				Project  string `json:"project"`
				Streams  int    `json:"streams"`
				Entities int    `json:"entities"`
				Views    int    `json:"views"`
				Services int    `json:"services"`
				Datasets int    `json:"datasets"`
			}{p.Name, len(p.Streams), len(p.Entities), len(p.Views), len(p.Services), len(p.Datasets)}
			return a.result(summary, func(w io.Writer) {
				fmt.Fprintf(w, "project %s is fine: %s, %s, %s, %s, %s\n", p.Name, count(int64(summary.Streams), "stream"),
					count(int64(summary.Entities), "entity"), count(int64(summary.Views), "feature view"),
					count(int64(summary.Services), "feature service"), count(int64(summary.Datasets), "dataset request"))
			})
		},
	}
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
		Use:     "apply",
		Short:   "Apply the definitions: make and evolve tables",
		Long:    "apply does what plan shows: it makes and evolves tables, and keeps the definitions as those that run, backfill and materialize work by.",
		Example: "  loam plan && loam apply",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			p, l, err := a.open(c.Context())
			if err != nil {
				return err
			}
			defer l.Close()
			changes, err := apply(c.Context(), p, l, a.now().UnixMicro())
			if err != nil {
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
	return definitions, feature.Plan(applied, p.Definitions()), revision, nil
}

// apply brings the tables to the project's definitions and records those, at now, microseconds since 1970 UTC. A change
// that can't be applied stops it before anything is done.
func apply(ctx context.Context, p *feature.Project, l *lake.Lake, now int64) ([]feature.Change, error) {
	definitions, changes, revision, err := plan(ctx, p, l)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	var blocked []error
	for _, c := range changes {
		if c.Blocked != "" {
			blocked = append(blocked, fmt.Errorf("%s %s: %s", c.Kind, c.Name, c.Blocked))
		}
	}
	if len(blocked) > 0 {
		return nil, fmt.Errorf("nothing was applied: %w", errors.Join(blocked...))
	}
	for _, s := range p.Streams {
		if err := l.CreateStream(ctx, s); err != nil {
			return nil, err
		}
	}
	return changes, definitions.Apply(ctx, changes, p.Definitions(), revision+1, now)
}

// ensureApplied applies the definitions of a project that never had any, and refuses to work by others than those that
// were applied.
func (a *app) ensureApplied(ctx context.Context, p *feature.Project, l *lake.Lake) error {
	_, changes, revision, err := plan(ctx, p, l)
	if err != nil || len(changes) == 0 {
		return err
	}
	if revision > 0 {
		names := make([]string, len(changes))
		for i, c := range changes {
			names[i] = fmt.Sprintf("%s %s", c.Kind, c.Name)
		}
		return fmt.Errorf("the project folder differs from what was applied (%s): see `loam plan`, then `loam apply`", strings.Join(names, ", "))
	}
	if _, err := apply(ctx, p, l, a.now().UnixMicro()); err != nil {
		return err
	}
	a.say("applied the definitions of %s: %s, %s", p.Name, count(int64(len(p.Streams)), "stream"), count(int64(len(p.Views)), "feature view"))
	return nil
}

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
