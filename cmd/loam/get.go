package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
)

func (a *app) getCommand() *cobra.Command {
	var features, entities []string
	var service string
	c := &cobra.Command{
		Use:   "get",
		Short: "Read feature values online",
		Long: `get reads the newest feature values of entities, from the online store that loam.yaml names, or else from the lake; of windows over
history those as of the last ` + "`loam materialize`" + `. Join keys of one entity are joined by commas: --entity tenant=7,contact_id=c1. Columns of the request, which views on demand take, stand beside
them: --entity contact_id=c1,cart_value=150.`,
		Example: "  loam get --features 'profile:*' --entity contact_id=c1\n  loam get --features profile:mkt_status --entity contact_id=c1 --entity contact_id=c2",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(entities) == 0 || (service == "") == (len(features) == 0) {
				return misused("give --entity, and --features or --service")
			}
			keys, err := parseEntities(entities)
			if err != nil {
				return misuse{err}
			}
			return a.get(c.Context(), features, service, keys)
		},
	}
	c.Flags().StringSliceVar(&features, "features", nil, "features, such as profile:mkt_status or profile:*")
	c.Flags().StringVar(&service, "service", "", "feature service, in place of features")
	c.Flags().StringArrayVar(&entities, "entity", nil, "entity, such as contact_id=c1")
	return c
}

func parseEntities(texts []string) ([]map[string]string, error) {
	var all []map[string]string
	for _, text := range texts {
		entity := map[string]string{}
		for _, part := range strings.Split(text, ",") {
			name, value, ok := strings.Cut(part, "=")
			if !ok || name == "" {
				return nil, fmt.Errorf("--entity %q: write join keys and values, such as contact_id=c1", text)
			}
			entity[name] = value
		}
		all = append(all, entity)
	}
	return all, nil
}

func (a *app) get(ctx context.Context, features []string, service string, entities []map[string]string) error {
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	var refs []feature.Ref
	if service != "" {
		s := p.Service(service)
		if s == nil {
			return noService(p, service)
		}
		refs = s.Features
	} else if refs, err = p.Resolve(features); err != nil {
		return err
	}
	if err := knownKeys(p, entities); err != nil {
		return err
	}
	store, err := openStore(ctx, p)
	if err != nil {
		return err
	}
	if store == nil {
		if store, err = a.fromLake(ctx, p, stored(p, refs)); err != nil {
			return err
		}
	}
	defer store.Close()
	client := online.NewClient(store, p, a.now)
	defer client.Close()
	r, err := client.Result(ctx, refs, entities)
	if err != nil {
		return err
	}
	return a.printFeatures(p, entities, r)
}

// stored are the features of views that have values of their own: those asked for, and the inputs of those on demand.
func stored(p *feature.Project, refs []feature.Ref) []feature.Ref {
	var all []feature.Ref
	for _, r := range refs {
		if v := p.View(r.View); v.OnDemand != nil {
			all = append(all, v.OnDemand.Inputs...)
		} else {
			all = append(all, r)
		}
	}
	return all
}

// knownKeys refuses join keys that no entity of the project has, and that are no column that a view on demand takes of the request.
func knownKeys(p *feature.Project, entities []map[string]string) error {
	var known []string
	for _, v := range p.Views {
		if v.OnDemand != nil {
			known = append(known, feature.ColumnNames(v.OnDemand.Request)...)
		}
	}
	for _, e := range p.Entities {
		known = append(known, e.JoinKeys...)
	}
	slices.Sort(known)
	for _, entity := range entities {
		for _, name := range slices.Sorted(maps.Keys(entity)) {
			if !slices.Contains(known, name) {
				return fmt.Errorf("no entity has the join key %q; known: %s", name, strings.Join(slices.Compact(known), ", "))
			}
		}
	}
	return nil
}

// fromLake loads the views of the features from the lake into a store of this process.
func (a *app) fromLake(ctx context.Context, p *feature.Project, refs []feature.Ref) (*online.Store, error) {
	l, err := openLake(ctx, p)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	store, err := online.InProcess(p.Name)
	if err != nil {
		return nil, err
	}
	if err := a.loadViews(ctx, store, l, p, refs); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

func (a *app) loadViews(ctx context.Context, store *online.Store, l *lake.Lake, p *feature.Project, refs []feature.Ref) error {
	var loaded []string
	for _, r := range refs {
		if slices.Contains(loaded, r.View) {
			continue
		}
		loaded = append(loaded, r.View)
		bar := a.progress("load " + r.View)
		_, _, err := materialize(ctx, store, l, p, p.View(r.View), nil, a.now, func(done, of int64) { bar.at(done, of, "") }, nil)
		bar.end()
		if err != nil {
			return err
		}
	}
	return nil
}

// valueRead is a value that was read, for machines.
type valueRead struct {
	Feature   string          `json:"feature"`
	Value     json.RawMessage `json:"value"`
	Status    online.Status   `json:"status"`
	EventTime *time.Time      `json:"event_timestamp"`
	AsOf      *time.Time      `json:"as_of,omitempty"` // the instant that values of the view are as of, where that isn't now
}

type entityRead struct {
	Entity   map[string]string `json:"entity"`
	Features []valueRead       `json:"features"`
}

func (a *app) printFeatures(p *feature.Project, entities []map[string]string, r *online.Result) error {
	read := make([]entityRead, len(r.Rows))
	cells := [][]string{{"entity", "feature", "value", "status", "event time"}}
	for i, row := range r.Rows {
		read[i] = entityRead{Entity: entities[i], Features: []valueRead{}}
		for _, f := range row {
			v := valueRead{Feature: f.Ref.String(), Value: f.Value.JSON(), Status: f.Status}
			if at, ok := r.AsOf[f.Ref.View]; ok {
				v.AsOf = &at
			}
			at := ""
			if !f.EventTime.IsZero() {
				v.EventTime = &f.EventTime
				at = moment(f.EventTime.UnixMicro())
			}
			read[i].Features = append(read[i].Features, v)
			cells = append(cells, []string{entityText(entities[i]), v.Feature, string(v.Value), string(v.Status), at})
		}
	}
	return a.result(read, func(w io.Writer) {
		table(w, cells)
		for _, view := range slices.Sorted(maps.Keys(r.AsOf)) {
			if !p.OverHistory(p.View(view)) {
				fmt.Fprintln(w, frozenText(view, r.AsOf[view]))
			}
		}
	})
}

// frozenText says that a view is frozen, and how that ends.
func frozenText(view string, at time.Time) string {
	return fmt.Sprintf("  feature view %s is frozen as of %s: `loam materialize --view %s` serves what is now again", view, moment(at.UnixMicro()), view)
}

func entityText(entity map[string]string) string {
	var parts []string
	for name, value := range entity {
		parts = append(parts, name+"="+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
