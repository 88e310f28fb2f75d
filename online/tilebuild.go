package online

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// buildTiles builds a generation of a windowed view. An event that is counted twice is wrong, so each is in the snapshot or
// written live, never both: the lake is read first, and the generation is entered with the offsets of that reading, its
// base. From then on whoever writes the view takes into it what is at or past the base, and whoever has come further reads
// what lies between from the log. So nothing has to be agreed upon, and a worker may join, stall or end at any time. As of an instant
// what was ingested by then is all there is.
func (w *ViewWriter) buildTiles(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	w.clock = o.Now
	g, err := w.resume(ctx, o)
	if err != nil {
		return g, err
	}
	var reading *lake.Reading
	if g.Number == 0 {
		g, reading, err = w.beginTiles(ctx, l, o)
	} else {
		reading, _, err = readPast(ctx, l, w.stream, nil)
	}
	if err != nil {
		return g, err
	}
	if o.AsOf != nil {
		w.clock = func() time.Time { return *o.AsOf }
		reading = reading.IngestedBy(o.AsOf.UnixMicro())
	}
	step.At(step.GenerationEntered)
	if err = w.fillTiles(ctx, &g, reading, o); err != nil {
		return g, err
	}
	step.At(step.GenerationFilled)
	if err := w.complete(ctx, g); err != nil {
		return g, err
	}
	step.At(step.GenerationCompleted)
	if o.AsOf != nil { // nobody writes it
		return g, nil
	}
	if err := w.awaitWorkers(ctx, &g); err != nil {
		return g, err
	}
	return g, w.overtake(ctx, l, g)
}

// beginTiles enters a generation, and gives the reading that is its base. Who commits rows of a file or a redrive from then on finds that
// the generation lacks them, by [Live.Owing]. Where some came since the reading, nobody would: it is begun anew.
func (w *ViewWriter) beginTiles(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, *lake.Reading, error) {
	for {
		reading, offsets, err := readPast(ctx, l, w.stream, nil)
		if err != nil {
			return Generation{}, nil, err
		}
		base := Generation{
			BaseSequence: reading.Head().SequenceNumber, Besides: offsets.Besides(), Marks: map[feature.Partition]int64{}, AsOf: o.AsOf,
		}
		for p, at := range offsets.Partitions {
			base.Marks[p] = at.Next
		}
		g, err := w.begin(ctx, base, o.Now())
		if err != nil || o.AsOf != nil {
			return g, reading, err
		}
		_, now, err := readPast(ctx, l, w.stream, nil)
		if err != nil || now.Besides() == g.Besides {
			return g, reading, err
		}
		if err := w.store.remove(ctx, w.view.Name, g); err != nil {
			return g, nil, err
		}
	}
}

// fillTiles writes what the generation's base makes of every entity of the parts that aren't whole. It may be repeated, by a later reading,
// too: an entity that holds its base isn't given it again, and of a reading that is further no more is taken than the base.
func (w *ViewWriter) fillTiles(ctx context.Context, g *Generation, reading *lake.Reading, o BuildOptions) error {
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return err
	}
	defer db.Close()
	whole := w.lease.whole()
	if whole == 0 {
		if g.Others, err = otherRows(ctx, db, reading); err != nil {
			return err
		}
	}
	if err := w.pin(ctx, g, reading, o); err != nil {
		return err
	}
	if err := loadBase(ctx, db, *g); err != nil {
		return err
	}
	now := w.now().UnixMicro()
	if err := w.tileEvents(ctx, db, reading, now, "NOT "+pastBase); err != nil {
		return err
	}
	f := tileFill{writer: w, generation: g.Number, now: now, progress: o.Progress}
	args := sql.Args{"keys": sql.Idents("", w.tiles.joins), "whole": sql.Fragment(strconv.Itoa(whole))}
	err = db.QueryRow(ctx, sql.Render("SELECT count(*), count(*) FILTER (loam_part < {whole}) FROM (SELECT DISTINCT {keys}, loam_part FROM events)", args),
		nil, &f.total, &f.done)
	if err != nil {
		return err
	}
	err = db.Batches(ctx, sql.Render("SELECT * FROM events WHERE loam_part >= {whole} ORDER BY loam_part, {keys}", args),
		func(batch arrow.RecordBatch) error { return f.add(ctx, batch) })
	if err != nil {
		return err
	}
	return f.flush(ctx, buildParts)
}

// tileEvents makes the table events of those in a log that a window can need and that meet a condition on the log, called g, beside
// loam_base, called b; with whether it is past the base, and the part that its entity is in.
func (w *ViewWriter) tileEvents(ctx context.Context, db *sql.DB, reading *lake.Reading, now int64, condition sql.Fragment) error {
	from := now - tileSkew.Microseconds() - w.tiles.widest
	if err := reading.Spanning(lake.Span{From: &from, To: math.MaxInt64}).LogView(ctx, db, "log", nil, false); err != nil {
		return err
	}
	args := sql.Args{
		"columns": w.tiles.selection(), "part": partOf(w.tiles.joins), "known": w.tiles.keyed(), "base": joinBase, "condition": condition,
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE events AS SELECT {columns}, "+string(pastBase)+" AS "+columnPast+", {part} AS "+columnPart+" FROM log g {base} "+
		"WHERE {known} AND epoch_us(event_time) >= $1 AND {condition}", args), from)
}

// keyed is the condition that an event has all of the entity's keys.
func (p *tilePlan) keyed() sql.Fragment {
	var known []sql.Fragment
	for _, k := range p.joins {
		known = append(known, sql.Ident(k)+" IS NOT NULL")
	}
	return sql.Join(" AND ", known)
}

// otherRows counts the rows of files and redrives, whose positions no offset tells of.
func otherRows(ctx context.Context, db *sql.DB, reading *lake.Reading) (n int64, err error) {
	if err := reading.LogView(ctx, db, "sources", []string{feature.ColTopic, feature.ColJobID}, false); err != nil {
		return 0, err
	}
	err = db.QueryRow(ctx, "SELECT count(*) FROM sources WHERE NOT topic_live(topic) OR starts_with(job_id, "+
		string(sql.Literal(feature.RedriveJobPrefix))+")", nil, &n)
	return n, err
}

// tileFill makes entities of events that come entity by entity, and writes them.
type tileFill struct {
	writer      *ViewWriter
	generation  int64
	now         int64
	progress    func(done, of int64)
	key         []string
	entity      *entityTiles
	updates     []tileUpdate
	done, total int64
}

func (f *tileFill) add(ctx context.Context, batch arrow.RecordBatch) error {
	plan := f.writer.tiles
	rows, err := plan.rows(batch)
	if err != nil {
		return err
	}
	parts := batch.Column(int(batch.NumCols()) - 1).(*array.Int32)
	for i := range int(batch.NumRows()) {
		key, _ := rows.key(i)
		if f.entity == nil || !slices.Equal(key, f.key) {
			if err := f.flush(ctx, int(parts.Value(i))); err != nil {
				return err
			}
			f.key, f.entity = key, plan.empty()
		}
		at := rows.order(i)
		plan.add(f.entity, rows, i, &at, f.now)
	}
	return nil
}

// flush ends the entity, and writes those that wait once they are many or the last. The next one is of that part; after the last
// all parts are whole.
func (f *tileFill) flush(ctx context.Context, next int) error {
	plan := f.writer.tiles
	if whole := f.entity; whole != nil {
		plan.trim(whole, f.now)
		f.updates = append(f.updates, tileUpdate{f.key, func(e *entityTiles) bool {
			if e.base {
				return false
			}
			plan.merge(e, whole)
			e.base = true
			plan.trim(e, f.now)
			return true
		}})
		f.entity = nil
	}
	if len(f.updates) < pipelineCalls && next < buildParts {
		return nil
	}
	if err := f.writer.updateTiles(ctx, f.generation, f.updates, true); err != nil {
		return err
	}
	if err := f.writer.wrote(ctx, next); err != nil {
		return err
	}
	f.done += int64(len(f.updates))
	f.updates = f.updates[:0]
	if f.progress != nil {
		f.progress(f.done, f.total)
	}
	return nil
}

// overtake brings a generation to where the lake is now, and to where the one before it was written, so that nothing that was
// served is missing once it is read. The lake is waited for as long as a worker runs, which will commit to it.
func (w *ViewWriter) overtake(ctx context.Context, l *lake.Lake, g Generation) error {
	for {
		_, offsets, err := readPast(ctx, l, w.stream, nil)
		if err != nil {
			return err
		}
		workers, err := w.store.Workers(ctx)
		if err != nil {
			return err
		}
		all, err := w.store.Generations(ctx, w.view.Name)
		if err != nil {
			return err
		}
		ends, ahead := map[feature.Partition]int64{}, false
		for p, at := range offsets.Partitions {
			ends[p] = at.Next
		}
		if before, ok := w.store.Usable(all, w.hash); ok {
			for p, mark := range before.Marks {
				ahead = ahead || feature.Live(p.Topic) && mark > ends[p]
			}
		}
		if !ahead || len(workers) == 0 {
			return w.raiseTiles(ctx, l, g, ends)
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for the lake to hold what the generation before was written up to: %w", err)
		}
	}
}

// raiseTiles takes from the log what a generation lacks before the ends, once the lake has it, and marks them. Marks that are
// further stay.
func (w *ViewWriter) raiseTiles(ctx context.Context, l *lake.Lake, g Generation, ends map[feature.Partition]int64) error {
	var gaps []feature.Span
	raised := map[feature.Partition]int64{}
	for p, end := range ends {
		if mark := g.Marks[p]; mark < end && feature.Live(p.Topic) {
			gaps = append(gaps, feature.Span{Partition: p, From: mark, To: end})
			raised[p] = end
		}
	}
	if len(gaps) == 0 {
		return nil
	}
	slices.SortFunc(gaps, feature.CompareSpans)
	if err := w.catchUpTiles(ctx, l, g, gaps); err != nil {
		return fmt.Errorf("catch generation %d of %s up: %w", g.Number, w.view.Name, err)
	}
	step.At(step.OnlineCaughtUp)
	if err := w.store.Mark(ctx, w.view.Name, g.Number, raised); err != nil {
		return err
	}
	maps.Copy(g.Marks, raised)
	return nil
}

// tileRowsMax is how many rows of the log are taken at a time.
const tileRowsMax = 50_000

// catchUpTiles takes the rows of the log in the spans into a generation, once the lake holds them.
func (w *ViewWriter) catchUpTiles(ctx context.Context, l *lake.Lake, g Generation, spans []feature.Span) error {
	ends, from := map[feature.Partition]int64{}, int64(math.MaxInt64)
	var within []sql.Fragment
	for _, s := range spans {
		ends[s.Partition], from = s.To, min(from, s.From)
		within = append(within, sql.Fragment(fmt.Sprintf(`topic = %s AND "partition" = %d AND "offset" >= %d AND "offset" < %d`,
			sql.Literal(s.Topic), s.Index, s.From, s.To)))
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
	if err := reading.Above(from).LogView(ctx, db, "log", nil, false); err != nil {
		return err
	}
	var rows []arrow.RecordBatch
	count := int64(0)
	flush := func() error {
		_, err := w.takeRows(ctx, g, rows)
		for _, b := range rows {
			b.Release()
		}
		rows, count = rows[:0], 0
		return err
	}
	statement := sql.Render(`SELECT {columns} FROM log WHERE {known} AND ({within}) ORDER BY topic, "partition", "offset"`,
		sql.Args{"columns": w.tiles.selection(), "known": w.tiles.keyed(), "within": sql.Join(" OR ", within)})
	err = db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			batch.Retain()
			rows, count = append(rows, batch), count+batch.NumRows()
			if count >= tileRowsMax {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		for _, b := range rows {
			b.Release()
		}
		return err
	}
	return flush()
}
