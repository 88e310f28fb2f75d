package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

func (a *app) materializeCommand() *cobra.Command {
	var names []string
	c := &cobra.Command{
		Use:   "materialize",
		Short: "Build views anew in the online store",
		Long: `materialize writes the newest value of every entity, from the lake, as a new generation of each view, and switches reads
to it once it is whole. A worker may go on beside it: nothing is missed. It is for bootstrap, a changed definition and repair;
the worker does the same by itself where a view can't be read.`,
		Example: "  loam materialize\n  loam materialize --view profile",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.materialize(c.Context(), names)
		},
	}
	c.Flags().StringSliceVar(&names, "view", nil, "only these views")
	return c
}

// materialized is what was built of a view, for machines.
type materialized struct {
	View     string `json:"view"`
	Entities int64  `json:"entities"`
	WallMS   int64  `json:"wall_ms"`
	Skipped  string `json:"skipped,omitempty"` // why it was not built
}

func (a *app) materialize(ctx context.Context, names []string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	views, err := pickViews(p, names)
	if err != nil {
		return err
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		return err
	}
	store, err := openStore(ctx, p)
	if err != nil {
		return err
	}
	kept := store != nil
	if !kept {
		if store, err = online.InProcess(p.Name); err != nil {
			return err
		}
	}
	defer store.Close()
	var done []materialized
	for _, v := range views {
		if why := p.Unserved(v); why != "" {
			if len(names) > 0 {
				return fmt.Errorf("feature view %s: %s; use it in training sets", v.Name, why)
			}
			done = append(done, materialized{View: v.Name, Skipped: why})
			continue
		}
		begun := a.now()
		bar := a.progress("materialize " + v.Name)
		n, err := materialize(ctx, store, l, p, v, a.now, func(done, of int64) { bar.at(done, of, number(done)+" entities") })
		bar.end()
		if err != nil {
			return err
		}
		done = append(done, materialized{View: v.Name, Entities: n, WallMS: a.now().Sub(begun).Milliseconds()})
	}
	return a.result(done, func(w io.Writer) {
		for _, m := range done {
			if m.Skipped != "" {
				fmt.Fprintf(w, "%s: left out, %s\n", m.View, m.Skipped)
				continue
			}
			fmt.Fprintf(w, "%s: %s in %s\n", m.View, count(m.Entities, "entity"), time.Duration(m.WallMS)*time.Millisecond)
		}
		if !kept {
			fmt.Fprintln(w, "no online store is named in loam.yaml, so nothing was kept: `loam get` loads its views from the lake")
		}
	})
}

func pickViews(p *feature.Project, names []string) ([]*feature.View, error) {
	if len(names) == 0 {
		return p.Views, nil
	}
	var views []*feature.View
	for _, name := range names {
		v := p.View(name)
		if v == nil {
			_, err := p.Resolve([]string{name})
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}
