package online

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
)

// fromLog reports whether a windowed view is written by what the log holds alone. A twin of an event in another partition is
// dropped where it is committed to the log; what has gone into a tile can't be taken out again.
func (w *ViewWriter) fromLog() bool { return w.tiles != nil && !w.stream.Keyed }

// writeTiles writes a batch to the generations of a windowed view, after what they lack before it. Rows of files aren't for
// them: a new generation is built once those are in the log, see [Live.Owe].
//
// A batch whose maker knew less of the log than a generation's base holds may have events whose twins are in that base; the log
// will drop them. So it isn't written to that generation, which takes what becomes of it from the log.
func (l *Live) writeTiles(ctx context.Context, w *ViewWriter, b *feature.Batch, known lake.Head) (int, error) {
	ends := map[feature.Partition]int64{}
	starts := map[feature.Partition]int64{}
	for _, s := range b.Spans {
		if feature.Live(s.Topic) {
			starts[s.Partition], ends[s.Partition] = s.From, s.To
		}
	}
	if len(ends) == 0 || w.fromLog() {
		return 0, nil
	}
	targets, err := l.targets(ctx, w)
	if err != nil {
		return 0, err
	}
	written := 0
	for _, g := range targets {
		if known.SequenceNumber < g.BaseSequence {
			continue
		}
		if err := w.raiseTiles(ctx, l.lake, g, starts); err != nil {
			return 0, err
		}
		step.At(step.OnlineBegun)
		n, err := w.writeTiles(ctx, g, b.Rows)
		if err != nil {
			return 0, fmt.Errorf("write feature view %s: %w", w.view.Name, err)
		}
		written = max(written, n)
		step.At(step.OnlineWritten)
		if err := l.store.Mark(ctx, w.view.Name, g.Number, beyond(ends, g.Marks)); err != nil {
			return 0, err
		}
		step.At(step.OnlineMarked)
	}
	return written, nil
}

func (l *Live) raiseTiles(ctx context.Context, w *ViewWriter, g Generation, ends map[feature.Partition]int64) error {
	return w.raiseTiles(ctx, l.lake, g, ends)
}

// beyond leaves the offsets that are past the marks.
func beyond(offsets, marks map[feature.Partition]int64) map[feature.Partition]int64 {
	past := maps.Clone(offsets)
	maps.DeleteFunc(past, func(p feature.Partition, offset int64) bool { return offset <= marks[p] })
	return past
}

// Follow writes to windowed views that are written by the log alone what it holds of the partitions that positions names. It
// waits until the log holds what is before the positions where it is asked to.
func (l *Live) Follow(ctx context.Context, positions map[string]map[feature.Partition]int64, wait bool) error {
	for stream, views := range l.views {
		for _, w := range views {
			if !w.fromLog() {
				continue
			}
			if err := l.follow(ctx, w, positions[stream], wait); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Live) follow(ctx context.Context, w *ViewWriter, positions map[feature.Partition]int64, wait bool) error {
	ends := positions
	if !wait {
		_, offsets, err := readPast(ctx, l.lake, w.stream, nil)
		if err != nil {
			return err
		}
		ends = map[feature.Partition]int64{}
		for p := range positions {
			at, _ := offsets.Of(p)
			ends[p] = at.Next
		}
	}
	targets, err := l.targets(ctx, w)
	if err != nil {
		return err
	}
	for _, g := range targets {
		if err := w.raiseTiles(ctx, l.lake, g, ends); err != nil {
			return err
		}
	}
	return nil
}

// Owe notes in the generations of the stream's windowed views that rows of a file or a redrive are being committed, which they
// will lack. It comes before the commit; so what a process that ended left out is known by [Live.Owing], and is there with
// the next generation.
func (l *Live) Owe(ctx context.Context, stream *feature.Stream, of feature.Partition) error {
	return l.eachTarget(ctx, stream.Name, func(w *ViewWriter, g Generation) error {
		if _, owed := g.Marks[of]; owed {
			return nil
		}
		return l.store.Mark(ctx, w.view.Name, g.Number, map[feature.Partition]int64{of: 0})
	})
}

// Owing are the windowed views whose generation lacks rows of files or redrives: those to build anew.
func (l *Live) Owing(ctx context.Context) ([]string, error) {
	var owing []string
	for _, views := range l.views {
		for _, w := range views {
			if w.tiles == nil {
				continue
			}
			all, err := l.store.Generations(ctx, w.view.Name)
			if err != nil {
				return nil, err
			}
			if g, ok := l.store.Usable(all, w.hash); ok && g.owes() {
				owing = append(owing, w.view.Name)
			}
		}
	}
	slices.Sort(owing)
	return owing, nil
}

func (g Generation) owes() bool {
	for p := range g.Marks {
		if !feature.Live(p.Topic) {
			return true
		}
	}
	return false
}

// Paid notes that generations built since hold what was owed of a file or a redrive.
func (l *Live) Paid(ctx context.Context, of feature.Partition) error {
	var errs []error
	for stream := range l.views {
		errs = append(errs, l.eachTarget(ctx, stream, func(w *ViewWriter, g Generation) error {
			return l.store.unmark(ctx, w.view.Name, g.Number, []feature.Partition{of})
		}))
	}
	return errors.Join(errs...)
}

// eachTarget calls use for each generation that is to be written of the stream's windowed views.
func (l *Live) eachTarget(ctx context.Context, stream string, use func(*ViewWriter, Generation) error) error {
	for _, w := range l.views[stream] {
		if w.tiles == nil {
			continue
		}
		targets, err := l.targets(ctx, w)
		if err != nil {
			return err
		}
		for _, g := range targets {
			if err := use(w, g); err != nil {
				return err
			}
		}
	}
	return nil
}
