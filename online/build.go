package online

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// BuildOptions bound and inform a build.
type BuildOptions struct {
	Now         func() time.Time // the clock
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to
	// Progress, if not nil, is told how many entities of how many have been written.
	Progress func(done, of int64)
	// Instant computes a view windowed over history; no other needs it.
	Instant Instant
	// AsOf, if not nil, is the instant that the values are to be as of: what was ingested by then. No change moves them.
	AsOf *time.Time
}

// poll is how long a build waits before it looks again for what another process does.
const poll = 25 * time.Millisecond

// Build writes a new generation of the view from what the lake holds, and leaves it building: [Store.Switch] makes it the
// one that is read. A worker may run beside it. No change is missed:
//
//  1. The generation is entered first. From then on whoever writes the view writes it, too.
//  2. Build waits until every worker that runs has joined: it has marked the offsets from which on it writes the
//     generation.
//  3. The snapshot is taken once the lake is past those marks, so each change is in it, or was written by a worker, or
//     both. Every write is guarded by its order, which makes both harmless.
//  4. A worker that starts meanwhile may mark a partition beyond the snapshot: what lies between is read from the log.
//
// Where a change that comes twice isn't harmless, in a windowed view, it is done another way; see buildTiles. A view windowed over
// history is computed as of now, and written by nobody else; see buildInstant. So is any view as of an instant, and step 2 and 4 aren't
// needed. Of a build that fails nothing is left.
func (w *ViewWriter) Build(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	build := w.build
	w.frozen = o.AsOf != nil
	switch {
	case w.frozen && w.feast != nil:
		return Generation{}, fmt.Errorf("build feature view %s: %w", w.view.Name, ErrFeastAsOf)
	case w.history:
		build = w.buildInstant
	case w.tiles != nil:
		build = w.buildTiles
	}
	g, err := build(ctx, l, o)
	if keys := w.Foreign(); err == nil && len(keys) > 0 {
		err = fmt.Errorf("%w: remove them, they are in the way", &ForeignKeysError{keys})
	}
	if err != nil {
		if g.Number > 0 {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
			defer cancel()
			_ = w.store.remove(ctx, w.view.Name, g) // what stays goes with the next switch
		}
		return g, fmt.Errorf("build feature view %s: %w", w.view.Name, err)
	}
	return g, nil
}

func (w *ViewWriter) build(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	g, err := w.store.begin(ctx, w.view.Name, w.hash, w.view.Layout, w.view.FeatureNames(), o.AsOf, o.Now())
	if err != nil {
		return g, err
	}
	step.At(step.GenerationEntered)
	if o.AsOf == nil {
		if err := w.awaitWorkers(ctx, &g); err != nil {
			return g, err
		}
	}
	reading, offsets, err := readPast(ctx, l, w.stream, g.Marks)
	if err != nil {
		return g, err
	}
	if o.AsOf != nil {
		reading = reading.IngestedBy(o.AsOf.UnixMicro())
		if g.Others, err = otherRowsOf(ctx, reading); err != nil {
			return g, err
		}
	}
	if w.feast != nil {
		if err := w.takeOver(ctx); err != nil {
			return g, err
		}
		w.past = pastOf(offsets)
	}
	if err := w.fill(ctx, g, reading, o); err != nil {
		return g, err
	}
	if w.feast != nil {
		if err := w.sweepFeast(ctx, g.Number, w.past); err != nil {
			return g, err
		}
		w.past = nil
	}
	step.At(step.GenerationFilled)
	for p, at := range offsets.Partitions {
		g.Base[partitionText(p)] = at.Next
	}
	if err := w.store.complete(ctx, w.view.Name, g); err != nil {
		return g, err
	}
	step.At(step.GenerationCompleted)
	before := g.Marks
	if g, err = w.store.generation(ctx, w.view.Name, g.Number); err != nil {
		return g, err
	}
	var gaps []feature.Span
	for p, mark := range g.Marks {
		// From a mark that the snapshot is past on, a partition is written without a gap, whoever reads it.
		_, marked := before[p]
		if at, _ := offsets.Of(p); !marked && at.Next < mark {
			gaps = append(gaps, feature.Span{Partition: p, From: at.Next, To: mark})
		}
	}
	if len(gaps) == 0 {
		return g, nil
	}
	return g, w.catchUp(ctx, l, g.Number, gaps)
}

// awaitWorkers waits until every worker that runs has joined the generation, and reads its marks.
func (w *ViewWriter) awaitWorkers(ctx context.Context, g *Generation) error {
	for {
		// The leases are read first: a worker that takes one later finds the generation entered.
		workers, err := w.store.Workers(ctx)
		if err != nil {
			return err
		}
		if *g, err = w.store.generation(ctx, w.view.Name, g.Number); err != nil {
			return err
		}
		if !slices.ContainsFunc(workers, func(worker string) bool { return !slices.Contains(g.Joined, worker) }) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for the workers to join generation %d: %w", g.Number, err)
		}
	}
}

// readPast opens a stream's tables once they stand at the offsets or beyond.
func readPast(ctx context.Context, l *lake.Lake, s *feature.Stream, marks map[feature.Partition]int64) (*lake.Reading, lake.Offsets, error) {
	for {
		reading, err := l.Read(ctx, s)
		if err != nil {
			return nil, lake.Offsets{}, err
		}
		offsets, err := reading.Offsets()
		if err != nil {
			return nil, lake.Offsets{}, err
		}
		past := true
		for p, mark := range marks {
			at, _ := offsets.Of(p)
			past = past && at.Next >= mark
		}
		if past {
			return reading, offsets, nil
		}
		if err := pause(ctx); err != nil {
			return nil, lake.Offsets{}, fmt.Errorf("wait for the lake to hold what has been written online: %w", err)
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(poll):
		return nil
	}
}

// fill writes what the changes in the reading make of every entity.
func (w *ViewWriter) fill(ctx context.Context, g Generation, reading *lake.Reading, o BuildOptions) error {
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := reading.LogView(ctx, db, "log", nil, true); err != nil {
		return err
	}
	newest := sql.Render(sql.Statement("served_now"), sql.Args{"key": sql.Idents("g.", w.stream.Key)})
	entities, order := "SELECT count(*) FROM newest", sql.Fragment("")
	if w.columns != nil {
		newest = sql.Render(sql.Statement("served_now_patches"), w.patchArgs())
		// The changes of an entity come together, so that they go out as one write.
		entities, order = "SELECT count(*) FILTER (greatest) FROM newest", "ORDER BY "+sql.Idents("g.", w.stream.Key)
	}
	if err := db.Exec(ctx, newest); err != nil {
		return err
	}
	var total, done int64
	if err := db.QueryRow(ctx, entities, nil, &total); err != nil {
		return err
	}
	var writes []*entityWrite
	add := func(e *entityWrite) {
		if n := len(writes); n > 0 && e.patch != nil && writes[n-1].entity == e.entity {
			writes[n-1].merge(e)
			return
		}
		writes = append(writes, e)
	}
	flush := func(n int) error {
		if err := w.send(ctx, g.Number, writes[:n]); err != nil {
			return err
		}
		done += int64(n)
		if o.Progress != nil {
			o.Progress(done, total)
		}
		writes = slices.Delete(writes, 0, n)
		return nil
	}
	statement := sql.Render("SELECT {columns} FROM log g SEMI JOIN newest n ON g.loam_file = n.change_file AND g.loam_row = n.change_row {order}",
		sql.Args{"columns": selection(w.view, w.stream), "order": order})
	return db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			if err := w.each(r.RecordBatch(), add); err != nil {
				return err
			}
			if len(writes) > pipelineCalls {
				if err := flush(len(writes) - 1); err != nil { // of the last one more changes may come
					return err
				}
			}
		}
		return flush(len(writes))
	})
}

// catchUp writes to one generation the rows of the log in the spans, once the lake holds them.
func (w *ViewWriter) catchUp(ctx context.Context, l *lake.Lake, number int64, spans []feature.Span) error {
	ends := map[feature.Partition]int64{}
	for _, s := range spans {
		ends[s.Partition] = s.To
	}
	reading, _, err := readPast(ctx, l, w.stream, ends)
	if err != nil {
		return err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return reading.Rows(ctx, db, spans, func(batch arrow.RecordBatch) error {
		_, err := w.Write(ctx, []int64{number}, []arrow.RecordBatch{batch})
		return err
	})
}
