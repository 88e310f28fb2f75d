package online

import (
	"context"
	"errors"
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
	// Say, if not nil, is told in a line what became of a generation that a build before left unfinished.
	Say func(format string, args ...any)
}

func (o BuildOptions) say(format string, args ...any) {
	if o.Say != nil {
		o.Say(format, args...)
	}
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
// needed.
//
// A generation that a build before left unfinished is gone on with where that is right, and then the parts that are whole aren't
// written again: see [ViewWriter.resume]. A build that is cancelled, or whose store went away, leaves one with what is written; of
// any other that fails nothing is left.
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
	w.lease = &buildLease{}
	held, end := w.lease.keep(ctx)
	defer end()
	g, err := build(held, l, o)
	for anew := (*anewError)(nil); errors.As(err, &anew); {
		o.say("feature view %s: generation %d, which a build left unfinished, is begun anew: %s", w.view.Name, g.Number, anew.why)
		_ = w.store.remove(ctx, w.view.Name, g) // what stays goes with the next switch
		g, err = build(held, l, o)
	}
	end()
	if keys := w.Foreign(); err == nil && len(keys) > 0 {
		err = fmt.Errorf("%w: remove them, they are in the way", &ForeignKeysError{keys})
	}
	if err != nil {
		if cause := context.Cause(held); errors.Is(cause, errTakenOver) {
			err = cause
		}
		if g.Number > 0 && !errors.Is(err, errTakenOver) {
			cut := ctx.Err() != nil || errors.Is(away(ctx, err), ErrAway)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
			defer cancel()
			if cut && o.AsOf == nil && w.lease.whole() > 0 {
				_ = w.lease.release(ctx) // it runs out by itself
			} else {
				_ = w.store.remove(ctx, w.view.Name, g) // what stays goes with the next switch
			}
		}
		return g, fmt.Errorf("build feature view %s: %w", w.view.Name, err)
	}
	g.lease.by = w.lease.by
	return g, nil
}

func (w *ViewWriter) build(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	g, err := w.resume(ctx, o)
	if err == nil && g.Number == 0 {
		g, err = w.begin(ctx, Generation{AsOf: o.AsOf}, o.Now())
	}
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
	}
	if w.feast != nil {
		if err := w.takeOver(ctx); err != nil {
			return g, err
		}
		w.past = pastOf(offsets)
	}
	if err := w.fill(ctx, &g, reading, o); err != nil {
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
	if err := w.complete(ctx, g); err != nil {
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

// fill writes what the changes in the reading make of every entity, part by part. Of parts that are whole it writes what came since
// they were.
func (w *ViewWriter) fill(ctx context.Context, g *Generation, reading *lake.Reading, o BuildOptions) error {
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return err
	}
	defer db.Close()
	if g.AsOf != nil {
		if g.Others, err = otherRows(ctx, db, reading); err != nil {
			return err
		}
	}
	whole := w.lease.whole()
	if err := w.pin(ctx, g, reading, o); err != nil {
		return err
	}
	if err := reading.LogView(ctx, db, "log", nil, true); err != nil {
		return err
	}
	part := partOf(joinKeys(w.entity))
	order := columnPart
	if w.columns != nil { // the changes of an entity come together, so that they go out as one write
		order += ", " + string(sql.Idents("g.", w.stream.Key))
	}
	if err := w.newest(ctx, db); err != nil {
		return err
	}
	args := sql.Args{
		"part": part, "base": "", "rest": "true", "order": sql.Fragment(order), "columns": selection(w.view, w.stream), "greatest": w.greatest(),
	}
	var total, done int64
	if err := db.QueryRow(ctx, sql.Render("SELECT count(*) FILTER ({greatest}) FROM newest", args), nil, &total); err != nil {
		return err
	}
	if whole > 0 {
		if err := loadBase(ctx, db, *g); err != nil {
			return err
		}
		args["base"], args["rest"] = joinBase, sql.Fragment(fmt.Sprintf("(%s >= %d OR %s)", part, whole, pastBase))
		err := db.QueryRow(ctx, sql.Render("SELECT count(*) FILTER ({greatest} AND NOT {rest}) FROM newest n "+
			"JOIN log g ON g.loam_file = n.change_file AND g.loam_row = n.change_row {base}", args), nil, &done)
		if err != nil {
			return err
		}
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
		parts := buildParts
		if n < len(writes) {
			parts = writes[n].part
		}
		if err := w.wrote(ctx, parts); err != nil {
			return err
		}
		done = min(done+int64(n), total)
		if o.Progress != nil {
			o.Progress(done, total)
		}
		writes = slices.Delete(writes, 0, n)
		return nil
	}
	statement := sql.Render("SELECT {columns}, {part} AS "+columnPart+" FROM log g {base} SEMI JOIN newest n "+
		"ON g.loam_file = n.change_file AND g.loam_row = n.change_row WHERE {rest} ORDER BY {order}", args)
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

// newest makes the table newest of the changes in a log that make what is served.
func (w *ViewWriter) newest(ctx context.Context, db *sql.DB) error {
	if w.columns != nil {
		return db.Exec(ctx, sql.Render(sql.Statement("served_now_patches"), w.patchArgs()))
	}
	return db.Exec(ctx, sql.Render(sql.Statement("served_now"), sql.Args{"key": sql.Idents("", w.stream.Key)}))
}

// greatest is the condition on the table newest that is true once an entity.
func (w *ViewWriter) greatest() sql.Fragment {
	if w.columns != nil {
		return "greatest"
	}
	return "true"
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
