package online

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
)

// Live writes the views of a project from the batches of its streams, as they are consumed. It is not safe for concurrent
// use.
//
// A generation's marks tell what it lacks: where a batch begins behind a mark, because Redis was away or the process
// ended, the rows between are read from the log and written first. So batches may be skipped, and are then caught up.
type Live struct {
	store *Store
	lake  *lake.Lake
	views map[string][]*ViewWriter // by stream
	// histories are the views windowed over history, with the hash of their definitions. They are built where they are missing, and not written.
	histories map[string]string
	// owed are the windowed views whose generation of that number, or an older one, lacked rows of files when this began.
	owed map[string]int64
}

// NewLive makes the writer of all views of the project that are served.
func NewLive(ctx context.Context, s *Store, l *lake.Lake, p *feature.Project) (*Live, error) {
	live := &Live{store: s, lake: l, views: map[string][]*ViewWriter{}, histories: map[string]string{}, owed: map[string]int64{}}
	for _, v := range p.Views {
		if p.Unserved(v) != "" {
			continue
		}
		if p.OverHistory(v) {
			live.histories[v.Name] = p.ViewDefinition(v).Hash
			continue
		}
		w, err := NewViewWriter(ctx, s, p, v)
		if err != nil {
			return nil, errors.Join(err, live.Close())
		}
		live.views[v.Stream] = append(live.views[v.Stream], w)
	}
	return live, nil
}

// Close frees what the writers hold.
func (l *Live) Close() error {
	var errs []error
	for _, views := range l.views {
		for _, w := range views {
			errs = append(errs, w.Close())
		}
	}
	return errors.Join(errs...)
}

// targets are the generations of a view that are to be written: those of its definition on this run of Redis, that aren't as of an
// instant, but for one whose build has ended before it was whole. Who takes that over deals with what it lacks.
func (l *Live) targets(ctx context.Context, w *ViewWriter) ([]Generation, error) {
	all, err := l.store.Generations(ctx, w.view.Name)
	if err != nil {
		return nil, err
	}
	targets := slices.DeleteFunc(all.All, func(g Generation) bool { return g.Definition != w.hash || !l.store.holds(g) })
	if slices.ContainsFunc(targets, func(g Generation) bool { return g.State == Building }) {
		now, err := l.store.now(ctx, generationsKey(l.store.project, w.view.Name))
		if err != nil {
			return nil, fmt.Errorf("ask Redis for the time: %w", err)
		}
		targets = slices.DeleteFunc(targets, func(g Generation) bool { return g.abandoned(now) })
	}
	for _, g := range targets {
		if err := l.store.adopt(ctx, w.view.Name, g); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(targets, func(g Generation) bool { return g.AsOf != nil }), nil
}

// Begin marks, in every generation of the streams' views, from where on a file will be written. A process that ends
// before it has written the file whole leaves the mark, by which [Live.Settle] finds what is missing.
func (l *Live) Begin(ctx context.Context, streams []*feature.Stream, file feature.Partition, starts map[string]int64) error {
	for _, s := range streams {
		for _, w := range l.views[s.Name] {
			if w.tiles != nil {
				continue // see Owing
			}
			targets, err := l.targets(ctx, w)
			if err != nil {
				return err
			}
			for _, g := range targets {
				if _, marked := g.Marks[file]; marked {
					continue
				}
				if err := l.store.Mark(ctx, w.view.Name, g.Number, map[feature.Partition]int64{file: starts[s.Name]}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Foreign are, by view, keys that hold what is not loam's: see [ViewWriter.Foreign].
func (l *Live) Foreign() map[string][]string {
	all := map[string][]string{}
	for _, views := range l.views {
		for _, w := range views {
			if keys := w.Foreign(); len(keys) > 0 {
				all[w.view.Name] = keys
			}
		}
	}
	return all
}

// Write writes a batch to every generation of the stream's views, after what a generation lacks before it. It may be
// repeated. known is the log's head all of whose events the maker of the batch knew. It gives the number of entities written, of
// all views together.
func (l *Live) Write(ctx context.Context, b *feature.Batch, known lake.Head) (int, error) {
	if b.Stream == nil {
		return 0, nil
	}
	written := 0
	for _, w := range l.views[b.Stream.Name] {
		var n int
		var err error
		if w.tiles != nil {
			n, err = l.writeTiles(ctx, w, b, known)
		} else {
			n, err = l.writeView(ctx, w, b)
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (l *Live) writeView(ctx context.Context, w *ViewWriter, b *feature.Batch) (int, error) {
	targets, err := l.targets(ctx, w)
	if err != nil || len(targets) == 0 {
		return 0, err
	}
	numbers := make([]int64, len(targets))
	for i, g := range targets {
		numbers[i] = g.Number
		begin := map[feature.Partition]int64{}
		var gaps []feature.Span
		for _, s := range b.Spans {
			mark, marked := g.Marks[s.Partition]
			switch {
			case !marked && (g.State == Building || s.From == 0):
				begin[s.Partition] = s.From
			case mark < s.From:
				gaps = append(gaps, feature.Span{Partition: s.Partition, From: mark, To: s.From})
			}
		}
		if err := l.store.Mark(ctx, w.view.Name, g.Number, begin); err != nil {
			return 0, err
		}
		if len(gaps) > 0 {
			if err := w.catchUp(ctx, l.lake, g.Number, gaps); err != nil {
				return 0, fmt.Errorf("catch generation %d of %s up: %w", g.Number, w.view.Name, err)
			}
		}
	}
	step.At(step.OnlineBegun)
	written, err := w.Write(ctx, numbers, b.Rows)
	if err != nil {
		return 0, err
	}
	step.At(step.OnlineWritten)
	for _, g := range targets {
		ends := map[feature.Partition]int64{}
		var done []feature.Partition
		for _, s := range b.Spans {
			if s.Done {
				done = append(done, s.Partition)
			} else if s.To > g.Marks[s.Partition] {
				ends[s.Partition] = s.To
			}
		}
		if err := errors.Join(l.store.Mark(ctx, w.view.Name, g.Number, ends), l.store.unmark(ctx, w.view.Name, g.Number, done)); err != nil {
			return 0, err
		}
	}
	step.At(step.OnlineMarked)
	return written, nil
}

// Settle writes to every generation that is read what the lake has taken and it lacks: rows that a process that ended
// had committed to the lake alone.
func (l *Live) Settle(ctx context.Context) error {
	for _, views := range l.views {
		for _, w := range views {
			if err := l.settle(ctx, w); err != nil {
				return fmt.Errorf("settle feature view %s: %w", w.view.Name, err)
			}
		}
	}
	return nil
}

func (l *Live) settle(ctx context.Context, w *ViewWriter) error {
	targets, err := l.targets(ctx, w)
	if err != nil || len(targets) == 0 {
		return err
	}
	reading, err := l.lake.Read(ctx, w.stream)
	if err != nil {
		return err
	}
	offsets, err := reading.Offsets()
	if err != nil {
		return err
	}
	for _, g := range targets {
		if g.State != Ready {
			continue
		}
		ends := map[feature.Partition]int64{}
		for p, at := range offsets.Partitions {
			ends[p] = at.Next
		}
		if w.tiles != nil {
			if err := w.raiseTiles(ctx, l.lake, g, ends); err != nil {
				return err
			}
			if g.Besides != offsets.Besides() {
				l.owed[w.view.Name] = g.Number
			}
			continue
		}
		var files []feature.Partition
		for p := range g.Marks {
			if feature.Live(p.Topic) {
				continue
			}
			if at, ok := offsets.Of(p); ok {
				ends[p] = at.Next
			}
			files = append(files, p)
		}
		if err := l.raise(ctx, w, g, ends); err != nil {
			return err
		}
		if err := l.store.unmark(ctx, w.view.Name, g.Number, files); err != nil {
			return err
		}
	}
	return nil
}

// raise writes to a generation what it lacks before the ends, once the lake has it, and marks them. Marks that are further
// stay.
func (l *Live) raise(ctx context.Context, w *ViewWriter, g Generation, ends map[feature.Partition]int64) error {
	var gaps []feature.Span
	raised := map[feature.Partition]int64{}
	for p, end := range ends {
		if mark := g.Marks[p]; mark < end {
			gaps = append(gaps, feature.Span{Partition: p, From: mark, To: end})
			raised[p] = end
		}
	}
	if len(gaps) == 0 {
		return nil
	}
	slices.SortFunc(gaps, feature.CompareSpans)
	if err := w.catchUp(ctx, l.lake, g.Number, gaps); err != nil {
		return fmt.Errorf("catch generation %d of %s up: %w", g.Number, w.view.Name, err)
	}
	step.At(step.OnlineCaughtUp)
	return l.store.Mark(ctx, w.view.Name, g.Number, raised)
}

// CatchUp writes to every generation that is read what it lacks before the positions, once the lake has it: batches that
// were dropped, and after which none of their partition has come.
func (l *Live) CatchUp(ctx context.Context, positions map[string]map[feature.Partition]int64) error {
	for stream, views := range l.views {
		for _, w := range views {
			targets, err := l.targets(ctx, w)
			if err != nil {
				return err
			}
			for _, g := range targets {
				if g.State != Ready || w.fromLog() {
					continue
				}
				raise := l.raise
				if w.tiles != nil {
					raise = l.raiseTiles
				}
				if err := raise(ctx, w, g, positions[stream]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Join marks, in every generation that is building, the positions from which on a worker writes it: the offset after
// the last record of each partition that it reads and has written. Builds wait for it.
func (l *Live) Join(ctx context.Context, worker string, positions map[string]map[feature.Partition]int64) error {
	for stream, views := range l.views {
		for _, w := range views {
			targets, err := l.targets(ctx, w)
			if err != nil {
				return err
			}
			for _, g := range targets {
				if g.State != Building || slices.Contains(g.Joined, worker) {
					continue
				}
				from := positions[stream]
				if w.tiles != nil {
					from = nil // the base says from where on it is written
				}
				if err := l.store.join(ctx, w.view.Name, g, worker, from); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Owes reports whether [Live.Settle] found that a windowed view lacks what a backfill or redrive that was cut off has taken.
func (l *Live) Owes(view string) bool { return l.owed[view] > 0 }

// Missing are the views that have no generation that can be read, and windowed views whose generation lacks what a backfill or
// redrive that was cut off has taken, as [Live.Settle] found it: those to build.
func (l *Live) Missing(ctx context.Context) ([]string, error) {
	var missing []string
	for _, views := range l.views {
		for _, w := range views {
			all, err := l.store.Generations(ctx, w.view.Name)
			if err != nil {
				return nil, err
			}
			owed, owes := l.owed[w.view.Name]
			if g, ok := l.store.Usable(all, w.hash); !ok || owes && g.Number <= owed {
				missing = append(missing, w.view.Name)
			}
		}
	}
	for view, hash := range l.histories {
		all, err := l.store.Generations(ctx, view)
		if err != nil {
			return nil, err
		}
		g, ok := l.store.Usable(all, hash)
		if !ok {
			missing = append(missing, view)
		} else if err := l.store.adopt(ctx, view, g); err != nil {
			return nil, err
		}
	}
	slices.Sort(missing)
	return missing, nil
}
