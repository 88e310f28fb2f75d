package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Repaired is what a repair did.
type Repaired struct {
	Generation int64 // that was written
	Written    int64 // entities that are as the lake has them, tombstones included
	Removed    int64 // entities that the lake doesn't know, and that aren't there any more
	Ahead      int64 // entities that were left as they are: what the lake doesn't have yet was written of them
}

// RepairOptions bound a repair.
type RepairOptions struct {
	Now         func() time.Time // the clock
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to
}

// repairRounds bounds how often an entity is tried that a worker is ahead with, or writes each time.
const repairRounds = 5

// Repair writes entities anew, as the lake has them, into the generation that is read, whatever stands there. keys are the text of
// each one's join keys, in the order of their names. A worker may run beside it: the lake is read once it has what was written
// before, and what is put in the place of what was read is put there only if nobody wrote it meanwhile. What a worker writes of a
// change that the lake doesn't have stays. It is an error that wraps [ErrUnavailable] where no generation is read.
func (w *ViewWriter) Repair(ctx context.Context, l *lake.Lake, keys [][]string, o RepairOptions) (Repaired, error) {
	r, err := w.repair(ctx, l, keys, o)
	if keys := w.Foreign(); err == nil && len(keys) > 0 {
		err = fmt.Errorf("%w: remove them, they are in the way", &ForeignKeysError{keys})
	}
	if err != nil {
		return r, fmt.Errorf("repair entities of feature view %s: %w", w.view.Name, err)
	}
	return r, nil
}

func (w *ViewWriter) repair(ctx context.Context, l *lake.Lake, keys [][]string, o RepairOptions) (Repaired, error) {
	w.clock = o.Now
	var r Repaired
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return r, err
	}
	defer db.Close()
	asked, err := w.ask(ctx, db, keys)
	if err != nil {
		return r, err
	}
	for round := 1; len(asked) > 0; round++ {
		all, err := w.store.Generations(ctx, w.view.Name)
		if err != nil {
			return r, err
		}
		g, ok := w.store.Usable(all, w.hash)
		if !ok {
			return r, fmt.Errorf("%w: run `loam materialize --view %s`, or the worker", ErrUnavailable, w.view.Name)
		}
		if r.Generation != 0 && r.Generation != g.Number {
			return r, nil // the one that is read by now was built from the lake since
		}
		if g.AsOf != nil {
			return r, fmt.Errorf("its values are as of %s, which can't be said of some of its entities: run `loam materialize --view %s` for it whole",
				g.AsOf.Format(time.RFC3339Nano), w.view.Name)
		}
		r.Generation = g.Number
		reading, working, err := w.readMarked(ctx, l, g)
		if err != nil {
			return r, err
		}
		repair := w.repairHashes
		if w.tiles != nil {
			repair = w.repairTiles
		}
		left, err := repair(ctx, db, reading, all, g, asked, &r)
		if err != nil {
			return r, err
		}
		if !working && len(left) == len(asked) || round == repairRounds {
			r.Ahead = int64(len(left))
			return r, nil
		}
		asked = left
	}
	return r, nil
}

// ask makes the table loam_asked of the entities, each once, and gives the texts of their keys as they stand in Redis.
func (w *ViewWriter) ask(ctx context.Context, db *sql.DB, keys [][]string) ([][]string, error) {
	names := joinKeys(w.entity)
	if err := db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE loam_asked_text AS SELECT NULL::VARCHAR[] AS texts LIMIT 0"); err != nil {
		return nil, err
	}
	for part := range slices.Chunk(keys, pipelineCalls) {
		rows := make([]sql.Fragment, len(part))
		for i, key := range part {
			texts := make([]sql.Fragment, len(key))
			for j, text := range key {
				texts[j] = sql.Literal(text)
			}
			rows[i] = "([" + sql.Join(", ", texts) + "]::VARCHAR[])"
		}
		if err := db.Exec(ctx, "INSERT INTO loam_asked_text VALUES "+string(sql.Join(", ", rows))); err != nil {
			return nil, err
		}
	}
	var typed []sql.Fragment
	for i, name := range names {
		c, _ := w.stream.Column(name)
		value := sql.Fragment(fmt.Sprintf("TRY_CAST(texts[%d] AS %s)", i+1, c.Type.SQL()))
		typed = append(typed, value+" AS "+sql.Ident(name))
		var bad int64
		if err := db.QueryRow(ctx, "SELECT count(*) FROM loam_asked_text WHERE "+string(value)+" IS NULL", nil, &bad); err != nil {
			return nil, err
		}
		if bad > 0 {
			return nil, fmt.Errorf("%d values of join key %s can't be %s, its type in stream %s", bad, name, c.Type, w.stream.Name)
		}
	}
	err := db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE loam_asked AS SELECT DISTINCT "+string(sql.Join(", ", typed))+" FROM loam_asked_text")
	if err != nil {
		return nil, err
	}
	var asked [][]string
	err = db.Arrow(ctx, sql.Render("SELECT {keys} FROM loam_asked ORDER BY ALL", sql.Args{"keys": sql.Idents("", names)}), func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for row := range int(batch.NumRows()) {
				key := make([]string, len(names))
				for i := range key {
					key[i] = keyText(batch.Column(i), row)
				}
				asked = append(asked, key)
			}
		}
		return nil
	})
	return asked, err
}

// isAsked is the condition on a log, called g, that a row is of an entity that was asked for.
func (w *ViewWriter) isAsked() sql.Fragment {
	names := joinKeys(w.entity)
	return "(" + sql.Idents("g.", names) + ") IN (SELECT " + sql.Idents("", names) + " FROM loam_asked)"
}

// readMarked opens the stream's tables once they have what the marks say was written of topics, so that what is lacking from Redis
// isn't lacking from them, too. Where no worker runs nobody is waited for: whoever comes begins where the lake stands, and writes it
// again.
func (w *ViewWriter) readMarked(ctx context.Context, l *lake.Lake, g Generation) (reading *lake.Reading, working bool, err error) {
	for {
		workers, err := w.store.Workers(ctx)
		if err != nil {
			return nil, false, err
		}
		reading, offsets, err := readPast(ctx, l, w.stream, nil)
		if err != nil {
			return nil, false, err
		}
		ahead := false
		for p, mark := range g.Marks {
			ahead = ahead || feature.Live(p.Topic) && mark > offsets.Partitions[p].Next
		}
		if !ahead || len(workers) == 0 {
			return reading, len(workers) > 0, nil
		}
		if err := pause(ctx); err != nil {
			return nil, false, fmt.Errorf("wait for the lake to hold what has been written online: %w", err)
		}
	}
}

// repairsSent are the entities of calls, and whether the lake knows each.
type repairsSent struct {
	keys  [][]string
	known []bool
}

func (s *repairsSent) add(key []string, known bool) {
	s.keys, s.known = append(s.keys, key), append(s.known, known)
}

// makeRepairs makes calls, and adds those entities to left that were written by others meanwhile.
func (w *ViewWriter) makeRepairs(ctx context.Context, calls *calls, sent repairsSent, left [][]string, did *Repaired) ([][]string, error) {
	err := w.store.make(ctx, calls)
	if foreign := (*ForeignKeysError)(nil); errors.As(err, &foreign) {
		w.noteForeign(foreign.Keys...)
	} else if err != nil {
		return nil, err
	}
	for i, given := range calls.given {
		switch {
		case given == int64(0):
			left = append(left, sent.keys[i])
		case given != nil && sent.known[i]:
			did.Written++
		case given != nil:
			did.Removed++
		}
	}
	return left, nil
}

// entityOf is an entity as it stands in keys; in Feast's layout the whole key.
func (w *ViewWriter) entityOf(key []string) string {
	if w.feast != nil {
		return w.feast.key(key)
	}
	return entityText(w.entity.Name, key)
}
