package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/pit"
)

// maintainOptions are the settings of maintain.
type maintainOptions struct {
	expireAge time.Duration // of snapshots
	orphanAge time.Duration // of files that no snapshot names
	buildAge  time.Duration // of builds of training sets that never ended
}

func (a *app) maintainCommand() *cobra.Command {
	var o maintainOptions
	var streams []string
	c := &cobra.Command{
		Use:   "maintain",
		Short: "Compact files, expire snapshots, remove orphans",
		Long: `maintain writes the small files of each log and history again as few large ones without deleted rows, merges manifests,
expires old snapshots but for those that a dataset has pinned, and removes files that no snapshot names. It changes no rows and
works beside running workers, which compact as they go; use it after a large backfill, or by a schedule.

It does the same for the table feature_log, to which ` + "`loam serve --log-features`" + ` adds a file every few seconds, unless streams
are picked; workers compact that, too.

A file is removed only once it has been known as an orphan for a while: a first call notes it, a later one removes it. What builds of
training sets that were killed have left, tags and files, is removed once they began long enough ago.`,
		Example: "  loam maintain\n  loam maintain --stream contact --expire-older 168h",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.expireAge < 0 {
				return misused("--expire-older is at least 0s")
			}
			if o.orphanAge < time.Hour {
				return misused("--orphans-older is at least 1h: files of a commit on its way look like orphans")
			}
			if o.buildAge < time.Hour {
				return misused("--builds-older is at least 1h: a build on its way looks like one that was killed")
			}
			return a.maintain(c.Context(), o, streams)
		},
	}
	c.Flags().StringSliceVar(&streams, "stream", nil, "only these streams")
	c.Flags().DurationVar(&o.expireAge, "expire-older", 24*time.Hour, "expire snapshots older than this; the newest 50 stay")
	c.Flags().DurationVar(&o.orphanAge, "orphans-older", 24*time.Hour, "remove files that have been orphans for so long")
	c.Flags().DurationVar(&o.buildAge, "builds-older", 48*time.Hour, "remove what builds of training sets left that began so long ago and never ended")
	return c
}

// maintained is what maintenance did to a stream, or to a table that is none's, for machines.
type maintained struct {
	Stream       string `json:"stream,omitempty"`
	Table        string `json:"table,omitempty"`
	FilesBefore  int    `json:"files_before"` // of those compacted
	FilesAfter   int    `json:"files_after"`
	Rows         int64  `json:"rows_written"`
	Deleted      int64  `json:"deleted_rows_gone"`
	Expired      int    `json:"snapshots_expired"`
	Orphans      int    `json:"orphans_removed"`
	OrphanBytes  int64  `json:"orphans_removed_bytes"`
	OrphansNoted int    `json:"orphans_noted"`
}

func (a *app) maintain(ctx context.Context, o maintainOptions, names []string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	streams, err := pickStreams(p, names)
	if err != nil {
		return err
	}
	use := lake.MaintainOptions{MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), Now: a.now}
	var all []maintained
	for _, s := range streams {
		done := maintained{Stream: s.Name}
		m, err := l.OpenMaintainer(ctx, s, use)
		if err == nil {
			err = done.by(ctx, m, o)
		}
		if err != nil {
			return fmt.Errorf("maintain stream %s: %w", s.Name, err)
		}
		all = append(all, done)
	}
	if len(names) == 0 {
		switch m, err := l.OpenFeatureLogMaintainer(ctx, use); {
		case errors.Is(err, lake.ErrNoTable): // nothing was logged
		case err != nil:
			return fmt.Errorf("maintain table %s: %w", lake.FeatureLogName, err)
		default:
			done := maintained{Table: lake.FeatureLogName}
			if err := done.by(ctx, m, o); err != nil {
				return fmt.Errorf("maintain table %s: %w", lake.FeatureLogName, err)
			}
			all = append(all, done)
		}
		if err := a.maintainDatasets(ctx, p, l, o.buildAge); err != nil {
			return err
		}
	}
	return a.result(all, func(w io.Writer) {
		for _, m := range all {
			m.print(w)
		}
	})
}

// maintainDatasets lets go of what builds have left that began before the age and never ended.
func (a *app) maintainDatasets(ctx context.Context, p *feature.Project, l *lake.Lake, age time.Duration) error {
	left, err := pit.Leftovers(ctx, l, tempDir(p))
	if err != nil {
		return err
	}
	for _, o := range left {
		if a.now().Sub(o.Begun) <= age {
			continue
		}
		if err := o.LetGo(ctx, l); err != nil {
			return err
		}
		a.say("removed what build %s left, which never ended: %s, %s", o.Tag, count(int64(len(o.Tables)), "tag"), count(int64(len(o.Files)), "file"))
	}
	return nil
}

// by has a maintainer do all that is due, and closes it.
func (done *maintained) by(ctx context.Context, m *lake.Maintainer, o maintainOptions) (err error) {
	defer func() { err = errors.Join(err, m.Close()) }()
	for {
		c, due, err := m.Compact(ctx, true)
		if err != nil {
			return err
		}
		if !due {
			break
		}
		done.FilesBefore, done.FilesAfter = done.FilesBefore+c.FilesBefore, done.FilesAfter+c.FilesAfter
		done.Rows, done.Deleted = done.Rows+c.Rows, done.Deleted+c.Deleted
	}
	if done.Expired, err = m.Expire(ctx, o.expireAge); err != nil {
		return err
	}
	orphans, err := m.RemoveOrphans(ctx, o.orphanAge)
	done.Orphans, done.OrphanBytes, done.OrphansNoted = orphans.Removed, orphans.Bytes, orphans.Waiting
	return err
}

func (m maintained) print(w io.Writer) {
	fmt.Fprintf(w, "%s: ", m.Stream+m.Table) // one of the two
	if m.FilesBefore == 0 {
		fmt.Fprint(w, "nothing to compact")
	} else {
		fmt.Fprintf(w, "%s became %s of %s", count(int64(m.FilesBefore), "file"), number(int64(m.FilesAfter)), count(m.Rows, "row"))
		if m.Deleted > 0 {
			fmt.Fprintf(w, " without %s deleted ones", number(m.Deleted))
		}
	}
	fmt.Fprintf(w, "; %s expired", count(int64(m.Expired), "snapshot"))
	fmt.Fprintf(w, "; %s removed, %s noted\n", count(int64(m.Orphans), "orphan"), number(int64(m.OrphansNoted)))
}

// Bounds of a worker's maintenance.
const (
	// maintainMemoryBytes bounds the memory of the DuckDB that sorts.
	maintainMemoryBytes = 512 << 20
	maintainEvery       = time.Second // how often it is looked for what to do
	orphansEvery        = 6 * time.Hour
	orphansAge          = 24 * time.Hour
)

// maintain compacts the files of the streams, and of what was served, while the worker goes on, one at a time, for the share of
// the time that the worker was given: after each compaction it rests. What goes wrong is told and tried again later: the line
// doesn't end for it.
func (w *worker) maintain(ctx context.Context) {
	next := w.now().Add(orphansEvery)
	for {
		orphans := w.now().After(next)
		if orphans {
			next = w.now().Add(orphansEvery)
		}
		begin := time.Now()
		done := false
		one := func(name string, open openMaintainer) {
			did, err := w.maintainOne(ctx, open, orphans)
			if err != nil && ctx.Err() == nil {
				w.say("maintenance of %s: %v; it is tried again", name, err)
			}
			done = done || did && err == nil
		}
		for i, s := range w.line.all() {
			if !w.partitions.own(feature.Partition{Topic: s.def.Topic}) {
				continue // one of several workers compacts a stream
			}
			one(s.def.Name, func(ctx context.Context, o lake.MaintainOptions) (*lake.Maintainer, error) {
				return w.line.lake.OpenMaintainer(ctx, s.def, o)
			})
			if i == 0 { // and one what was served
				one(lake.FeatureLogName, w.line.lake.OpenFeatureLogMaintainer)
			}
			if ctx.Err() != nil {
				return
			}
		}
		rest := maintainEvery
		if done {
			rest = time.Duration(float64(time.Since(begin)) * (1/w.options.maintainShare - 1))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// openMaintainer opens one of a worker's maintainers.
type openMaintainer = func(context.Context, lake.MaintainOptions) (*lake.Maintainer, error)

// maintainOne does one compaction, if one is due.
func (w *worker) maintainOne(ctx context.Context, open openMaintainer, orphans bool) (done bool, err error) {
	m, err := open(ctx, lake.MaintainOptions{MemoryBytes: maintainMemoryBytes, TempDir: tempDir(w.project), Threads: 1, Now: w.now})
	if errors.Is(err, lake.ErrNoTable) {
		return false, nil // nothing was ever logged of what was served
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	_, done, err = m.Compact(ctx, false)
	if err == nil && orphans {
		_, err = m.RemoveOrphans(ctx, orphansAge)
	}
	return done, err
}
