package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/pit"
)

// repairedEntities is what was written anew of a view, for machines.
type repairedEntities struct {
	View       string `json:"view"`
	Generation int64  `json:"generation"`
	Written    int64  `json:"written"`
	Removed    int64  `json:"removed"` // unknown to the lake
	Ahead      int64  `json:"ahead"`   // left as they are
	WallMS     int64  `json:"wall_ms"`
}

// repairEntities writes entities of a view anew in the generation that is read. They are those of a file, or given by their join keys.
func (a *app) repairEntities(ctx context.Context, name, file string, entities []map[string]string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	views, err := pickViews(p, []string{name})
	if err == nil {
		views, err = servedOf(p, views, true)
	}
	if err != nil {
		return err
	}
	if p.Online.Redis == "" {
		return fmt.Errorf("no online store is named in %s, so there is nothing to repair: views that `loam get` loads end with it. Name online.redis", feature.ProjectFile)
	}
	keys, err := entityKeys(ctx, p, views[0], file, entities)
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
	defer store.Close()
	begun := a.now()
	w, err := online.NewViewWriter(ctx, store, p, views[0])
	if err != nil {
		return err
	}
	defer w.Close()
	did, err := w.Repair(ctx, l, keys, online.RepairOptions{Now: a.now, MemoryBytes: streamMemoryBytes, TempDir: tempDir(p)})
	if err != nil {
		return err
	}
	wall := a.now().Sub(begun).Milliseconds()
	report := repairedEntities{View: name, Generation: did.Generation, Written: did.Written, Removed: did.Removed, Ahead: did.Ahead, WallMS: wall}
	return a.result(report, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s written anew, %s not in the lake and removed, in %s\n", name, count(did.Written, "entity"), number(did.Removed),
			time.Duration(wall)*time.Millisecond)
		if did.Ahead > 0 {
			fmt.Fprintf(w, "%s left as they are, of which a worker has written what the lake doesn't have yet: once it has, the same command repairs them\n",
				count(did.Ahead, "entity"))
		}
	})
}

// entityKeys are the texts of the join keys of entities of a view, in the order of their names.
func entityKeys(ctx context.Context, p *feature.Project, v *feature.View, file string, entities []map[string]string) ([][]string, error) {
	names := slices.Sorted(slices.Values(p.Entity(v.Entity).JoinKeys))
	if file != "" {
		columns := make([]feature.Column, len(names))
		for i, name := range names {
			columns[i], _ = p.Stream(v.Stream).Column(name)
		}
		return pit.Keys(ctx, file, columns, tempDir(p))
	}
	var keys [][]string
	for _, entity := range entities {
		if given := slices.Sorted(maps.Keys(entity)); !slices.Equal(given, names) {
			return nil, fmt.Errorf("--entity %s: feature view %s has the join keys %s", entityText(entity), v.Name, strings.Join(names, ", "))
		}
		key := make([]string, len(names))
		for i, name := range names {
			key[i] = entity[name]
		}
		keys = append(keys, key)
	}
	return keys, nil
}
