package online

import (
	"context"
	"errors"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Instant computes the values of a view as of an instant from a reading of its stream. It hands over batches in no order, whose columns
// are the join keys, by their names, and then the features; of is how many entities there are in all.
type Instant func(ctx context.Context, reading *lake.Reading, at time.Time, use func(batch arrow.RecordBatch, of int64) error) error

// ErrFeastAsOf: a view in Feast's layout can't be as of an instant.
var ErrFeastAsOf = errors.New("a view in Feast's layout can't be as of an instant, for Feast reads each value as of now: take `layout: feast` away, or leave --as-of out")

// buildInstant builds a generation of a view windowed over history: the values as of now, or as of an instant, which no change moves. So no
// worker writes it, and none is waited for.
func (w *ViewWriter) buildInstant(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	if o.Instant == nil {
		return Generation{}, errors.New("nothing computes its values as of an instant")
	}
	at := o.Now().UTC().Truncate(time.Microsecond)
	if o.AsOf != nil {
		at = *o.AsOf
	}
	g, err := w.begin(ctx, Generation{AsOf: &at}, o.Now())
	if err != nil {
		return g, err
	}
	step.At(step.GenerationEntered)
	reading, offsets, err := readPast(ctx, l, w.stream, nil)
	if err != nil {
		return g, err
	}
	reading = reading.IngestedBy(at.UnixMicro())
	for p, at := range offsets.Partitions {
		g.Base[partitionText(p)] = at.Next
	}
	if g.Others, err = otherRowsOf(ctx, reading); err != nil {
		return g, err
	}
	order := feature.Order{EventTime: at.UnixMicro()}
	var done int64
	err = o.Instant(ctx, reading, at, func(batch arrow.RecordBatch, of int64) error {
		if err := w.send(ctx, g.Number, w.valued(batch, order)); err != nil {
			return err
		}
		done += batch.NumRows()
		if o.Progress != nil {
			o.Progress(done, of)
		}
		return nil
	})
	if err != nil {
		return g, err
	}
	step.At(step.GenerationFilled)
	if err := w.complete(ctx, g); err != nil {
		return g, err
	}
	step.At(step.GenerationCompleted)
	return g, nil
}

// otherRowsOf counts the rows of a reading that came of files and redrives. With the base it tells what a generation as of an instant is built
// from: what comes to the lake later isn't in it, though it may be of before the instant.
func otherRowsOf(ctx context.Context, reading *lake.Reading) (int64, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	return otherRows(ctx, db, reading)
}

// valued makes writes of a batch of join keys and features.
func (w *ViewWriter) valued(batch arrow.RecordBatch, order feature.Order) []*entityWrite {
	keys := make([]string, len(w.entity.JoinKeys))
	writes := make([]*entityWrite, batch.NumRows())
	for i := range writes {
		for k := range keys {
			keys[k] = keyText(batch.Column(k), i)
		}
		e := &entityWrite{entity: entityText(w.entity.Name, keys), order: order, values: make([]*string, len(w.fields))}
		for f := range e.values {
			if column := batch.Column(len(keys) + f); column.IsValid(i) {
				text := string(appendValue(nil, column, i))
				e.values[f] = &text
			}
		}
		writes[i] = e
	}
	return writes
}

// histories is the layout of a view windowed over history: a hash of features, whose order tells nothing but the instant that they are as
// of. An entity without one was not known by then; what happened to it so far is nothing, and how long ago that was isn't known.
type histories struct {
	*states
	zero []bool // by feature that is read: whether nothing makes it 0
}

func newHistories(v *viewRead) *histories {
	h := &histories{states: newStates(v)}
	for _, name := range v.features {
		h.zero = append(h.zero, v.view.ZeroWithoutEvents(name))
	}
	return h
}

func (h *histories) decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error) {
	trace, err := h.states.decode(answer, now, row, seen)
	if err != nil || trace == Something {
		return trace, err
	}
	for i, place := range h.places {
		if f := &row[place]; h.zero[i] {
			f.Status, f.Value.Text, f.Value.Null, f.EventTime = Present, "0", false, time.UnixMicro(now).UTC()
		}
	}
	return Nothing, nil
}

// instant is the time that values of the generation are read as of: its own, or else the reader's, in microseconds since 1970.
func (g *Generation) instant(now int64) int64 {
	if g.AsOf != nil {
		return g.AsOf.UnixMicro()
	}
	return now
}
