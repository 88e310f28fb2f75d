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
	var names, entities []string
	var asOf, file string
	c := &cobra.Command{
		Use:   "materialize",
		Short: "Build views anew in the online store",
		Long: `materialize writes the newest value of every entity, from the lake, as a new generation of each view, and switches reads
to it once it is whole. A worker may go on beside it: nothing is missed. It is for bootstrap, a changed definition and repair;
the worker does the same by itself where a view can't be read. A build that was cut off is gone on with, where that is right.

Views windowed over history are written as of now, and no worker moves them: run materialize for them by a schedule.

With --as-of views are frozen: their values are what a training set has for a label at that time by the clock served, whatever
comes, until materialize runs for them without --as-of. So good values can be served until bad data is mended.

With --entities or --entity it writes some entities of one view anew, in the generation that is read, whatever stands there: what
'loam verify --online' names. An entity that the lake doesn't know goes.`,
		Example: "  loam materialize\n  loam materialize --view profile\n  loam materialize --view profile --as-of 2026-11-01T00:00:00Z\n" +
			"  loam materialize --view profile --entity contact_id=c1 --entity contact_id=c2",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if file != "" || len(entities) > 0 {
				if len(names) != 1 || file != "" && len(entities) > 0 {
					return misused("give one --view, and its entities by --entities or by --entity")
				}
				if asOf != "" {
					return misused("--as-of freezes whole views: leave it out, or --entities and --entity")
				}
				keys, err := parseEntities(entities)
				if err != nil {
					return misuse{err}
				}
				return a.repairEntities(c.Context(), names[0], file, keys)
			}
			if asOf == "" {
				return a.materialize(c.Context(), names, nil)
			}
			at, err := flagTime("--as-of", asOf)
			if err != nil {
				return err
			}
			if at.After(a.now()) {
				return misused("--as-of %s is yet to come: name a time that has been", asOf)
			}
			return a.materialize(c.Context(), names, &at)
		},
	}
	c.Flags().StringSliceVar(&names, "view", nil, "only these views")
	c.Flags().StringVar(&asOf, "as-of", "", "freeze the views as of this RFC 3339 `time`")
	c.Flags().StringVar(&file, "entities", "", "write only the entities of this `file` anew: .parquet, .csv, .csv.gz or .arrow, with a column for each join key")
	c.Flags().StringArrayVar(&entities, "entity", nil, "write only this entity anew, such as contact_id=c1; repeatable")
	return c
}

// materialized is what was built of a view, for machines.
type materialized struct {
	View     string `json:"view"`
	Entities int64  `json:"entities"`
	WallMS   int64  `json:"wall_ms"`
	Skipped  string `json:"skipped,omitempty"` // why it was not built
	// AsOf is the instant that the values are as of; nil where they are written on as changes come.
	AsOf *time.Time `json:"as_of,omitempty"`
}

func (a *app) materialize(ctx context.Context, names []string, asOf *time.Time) error {
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
	if !kept && asOf != nil {
		return fmt.Errorf("--as-of freezes what is kept in Redis, and no online store is named in %s: name online.redis", feature.ProjectFile)
	}
	if !kept {
		if store, err = online.InProcess(p.Name); err != nil {
			return err
		}
	}
	defer store.Close()
	var done []materialized
	for _, v := range views {
		why := p.Unserved(v)
		if asOf != nil && v.Layout == feature.FeastLayout {
			why = online.ErrFeastAsOf.Error()
		}
		if why != "" {
			if len(names) > 0 {
				return fmt.Errorf("feature view %s: %s", v.Name, why)
			}
			done = append(done, materialized{View: v.Name, Skipped: why})
			continue
		}
		begun := a.now()
		bar := a.progress("materialize " + v.Name)
		n, g, err := materialize(ctx, store, l, p, v, asOf, a.now, func(done, of int64) { bar.at(done, of, number(done)+" entities") }, a.say)
		bar.end()
		if err == nil && kept {
			err = l.Freeze(ctx, p.Stream(v.Stream), v.Name, asOf)
		}
		if err != nil {
			return err
		}
		done = append(done, materialized{View: v.Name, Entities: n, WallMS: a.now().Sub(begun).Milliseconds(), AsOf: g.AsOf})
	}
	return a.result(done, func(w io.Writer) {
		for _, m := range done {
			if m.Skipped != "" {
				fmt.Fprintf(w, "%s: left out, %s\n", m.View, m.Skipped)
				continue
			}
			fmt.Fprintf(w, "%s: %s in %s%s\n", m.View, count(m.Entities, "entity"), time.Duration(m.WallMS)*time.Millisecond, asOfText(m.AsOf))
		}
		if !kept {
			fmt.Fprintln(w, "no online store is named in loam.yaml, so nothing was kept: `loam get` loads its views from the lake")
		}
	})
}

// asOfText is what is said behind something of an instant; nothing where it has none.
func asOfText(at *time.Time) string {
	if at == nil {
		return ""
	}
	return ", as of " + moment(at.UnixMicro())
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
