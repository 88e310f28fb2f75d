package online

import (
	"context"
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
// them: a new generation is built once those are in the log, see [Live.Owing].
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

// Owing are the windowed views with a generation, the one that is read or a newer one, that lacks rows of files or redrives that the
// log has: those to build anew. Whoever has committed such rows asks for them. Of a generation that isn't entered yet either the base
// has those rows, or who enters it finds out; see beginTiles.
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
			_, offsets, err := readPast(ctx, l.lake, w.stream, nil)
			if err != nil {
				return nil, err
			}
			lacks := func(g Generation) bool {
				return g.Number >= all.Current && g.Definition == w.hash && l.store.holds(g) && g.AsOf == nil && g.Besides != offsets.Besides()
			}
			if slices.ContainsFunc(all.All, lacks) {
				owing = append(owing, w.view.Name)
			}
		}
	}
	slices.Sort(owing)
	return owing, nil
}
