package pit

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// windowed makes the feature table of a windowed view. A window over W at time t begins at the hop that holds t - W, and
// ends with what the label sees. Both bounds only move forward from label to label, so an event belongs to a range of its
// entity's labels, whichever the clock.
func (b *build) windowed(ctx context.Context, j *viewJob) error {
	s, err := b.slotsOf(ctx, j)
	if err != nil {
		return err
	}
	w := windowPlan{job: j, forest: &forest{s}}
	w.plan()
	log := "log_" + j.view.Name
	span := b.until()
	from := b.first - w.widest().window - w.widest().hop
	span.From = &from
	if err := j.reading.Spanning(span).LogView(ctx, b.db, log, nil, false); err != nil {
		return err
	}
	if err := b.events(ctx, &w, log, span); err != nil {
		return err
	}
	if err := w.write(ctx, b.db); err != nil {
		return err
	}
	return b.audit(ctx, j.featureTable())
}

// events streams the events of a view's entities through its aggregates.
func (b *build) events(ctx context.Context, w *windowPlan, log string, span lake.Span) error {
	j, s := w.job, w.forest.slots
	order, ordered := sql.Fragment(""), w.ordered()
	w.first = 3
	if ordered {
		order, w.first = `, topic, "partition", "offset", sequence`, 7
	}
	statement := sql.Render(sql.Statement("pit_events"), sql.Args{
		"log": sql.Ident(log), "entities": sql.Ident(s.entities), "key": key("g.", j.entity.JoinKeys, j.stream),
		"only": b.recorded() + " AND " + within("g.", span), "order": order, "items": w.items(),
	})
	d := newDiffer(s, 0)
	onEvent := b.request.AsOf == feature.EventClock
	ranks := topics{}
	var at []change
	err := b.db.Batches(ctx, statement, func(batch arrow.RecordBatch) error {
		entity, event, ingested := int64s(batch.Column(0)), int64s(batch.Column(1)), int64s(batch.Column(2))
		clock := batch.Column(2)
		if onEvent {
			clock = batch.Column(1)
		}
		w.bind(batch, clock)
		clocks := int64s(clock)
		if ordered {
			at = at[:0]
			for i := range entity {
				c := change{event: event[i]}
				c.read(batch, 3, i, ranks)
				at = append(at, c)
			}
		}
		for i, e := range entity {
			first := s.from(e, clocks[i])
			for n := range w.spans {
				window := &w.spans[n]
				end := s.from(e, window.leaves(event[i])-s.early)
				if window == w.widest() {
					d.within(e, event[i], ingested[i], end)
				}
				if first < end {
					window.hits.fall(w.forest, e, first, end, int32(i))
				}
			}
		}
		w.newest.add(w.widest().hits, nil)
		for n := range w.spans {
			w.spans[n].add(at)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.rows(b.differs)
	return nil
}

// windowPlan says which aggregates of a view are asked for.
type windowPlan struct {
	job        *viewJob
	forest     *forest
	spans      []windowSpan // by window, ascending
	columns    []string     // that the aggregates take, distinct
	conditions []int        // numbers of the aggregates in the view that have one, distinct
	first      int          // where those columns stand in a batch of events, the conditions behind them
	newest     accumulator  // the clock's time of the newest event of the widest window
}

// windowSpan is what is asked of one window.
type windowSpan struct {
	window, hop int64 // microseconds
	features    []windowFeature
	hits        hits // of the batch
	held        hits // those for which a feature's condition holds
}

type windowFeature struct {
	name      string
	fn        feature.Fn
	typ       feature.Type // of the feature
	column    int          // in the plan's columns, or -1
	condition int          // in the plan's conditions, or -1
	partial   accumulator
	holds     *array.Boolean // the condition of the batch's events
}

// leaves is the time from which on a label's window no longer has an event.
func (s *windowSpan) leaves(event int64) int64 {
	hops := event / s.hop
	if event%s.hop < 0 {
		hops--
	}
	return (hops+1)*s.hop + s.window
}

// add has the aggregates take what fell to the window of a batch.
func (s *windowSpan) add(at []change) {
	for i := range s.features {
		f := &s.features[i]
		if f.holds == nil {
			f.partial.add(s.hits, at)
			continue
		}
		s.held.clear()
		s.held.where(s.hits, f.holds)
		f.partial.add(s.held, at)
	}
	s.hits.clear()
}

func (w *windowPlan) plan() {
	v, stream := w.job.view, w.job.stream
	for i, a := range v.Aggregates {
		for _, window := range a.Windows {
			name := a.FeatureName(window)
			if !slices.Contains(w.job.features, name) {
				continue
			}
			f := windowFeature{name: name, fn: a.Fn, typ: v.FeatureType(stream, name), column: -1, condition: -1}
			if a.Where != "" {
				if f.condition = slices.Index(w.conditions, i); f.condition < 0 {
					f.condition = len(w.conditions)
					w.conditions = append(w.conditions, i)
				}
			}
			of := feature.Type{Kind: feature.Int64}
			if a.Column != "" {
				if f.column = slices.Index(w.columns, a.Column); f.column < 0 {
					f.column = len(w.columns)
					w.columns = append(w.columns, a.Column)
				}
				c, _ := stream.Column(a.Column)
				of = c.Type
			}
			f.partial = accumulatorOf(a.Fn, of, w.forest.nodes())
			n := slices.IndexFunc(w.spans, func(s windowSpan) bool { return s.window == window.Microseconds() })
			if n < 0 {
				n = len(w.spans)
				w.spans = append(w.spans, windowSpan{window: window.Microseconds(), hop: feature.Hop(window).Microseconds()})
			}
			w.spans[n].features = append(w.spans[n].features, f)
		}
	}
	slices.SortFunc(w.spans, func(a, b windowSpan) int { return cmp.Compare(a.window, b.window) })
	w.newest = accumulatorOf(feature.Max, feature.Type{Kind: feature.Int64}, w.forest.nodes())
}

func (w *windowPlan) widest() *windowSpan { return &w.spans[len(w.spans)-1] }

// ordered reports whether an aggregate goes by the order of the events.
func (w *windowPlan) ordered() bool {
	return slices.ContainsFunc(w.spans, func(s windowSpan) bool {
		return slices.ContainsFunc(s.features, func(f windowFeature) bool { return f.fn == feature.First || f.fn == feature.Last })
	})
}

// items are the columns and conditions of the aggregates, each once, a comma before each: evaluated once an event, whatever
// number of labels see it.
func (w *windowPlan) items() sql.Fragment {
	var out sql.Fragment
	for i, name := range w.columns {
		c, _ := w.job.stream.Column(name)
		out += ", " + plain(sql.Ident(name), c.Type) + sql.Fragment(fmt.Sprintf(" AS loam_value_%d", i))
	}
	for _, i := range w.conditions {
		out += ", " + sql.Try(w.job.view.Aggregates[i].Where, "BOOLEAN") + sql.Fragment(fmt.Sprintf(" AS loam_condition_%d", i))
	}
	return out
}

// bind hands the columns of a batch to the aggregates, and the clock's to what keeps the newest.
func (w *windowPlan) bind(batch arrow.RecordBatch, clock arrow.Array) {
	w.newest.bind(clock)
	for i := range w.spans {
		for n := range w.spans[i].features {
			f := &w.spans[i].features[n]
			if f.column >= 0 {
				f.partial.bind(batch.Column(w.first + f.column))
			}
			if f.condition >= 0 {
				f.holds = batch.Column(w.first + len(w.columns) + f.condition).(*array.Boolean)
			}
		}
	}
}

// write makes the feature table of the view: label_row, loam_time and the features.
func (w *windowPlan) write(ctx context.Context, db *sql.DB) error {
	s := w.forest.slots
	rows := array.NewInt64Builder(memory.DefaultAllocator)
	defer rows.Release()
	rows.AppendValues(s.rows, nil)
	fields := []arrow.Field{{Name: "label_row", Type: arrow.PrimitiveTypes.Int64}, {Name: "loam_time", Type: arrow.PrimitiveTypes.Int64, Nullable: true}}
	w.forest.settle(w.newest)
	columns := []arrow.Array{rows.NewArray(), w.newest.column(w.forest)}
	items := []sql.Fragment{"label_row", "make_timestamptz(loam_time) AS loam_time"}
	for i := range w.spans {
		for n := range w.spans[i].features {
			f := &w.spans[i].features[n]
			w.forest.settle(f.partial)
			column := f.partial.column(w.forest)
			w.job.lost.lose(f.name, lost(f.partial))
			columns = append(columns, column)
			fields = append(fields, arrow.Field{Name: f.name, Type: column.DataType(), Nullable: true})
			items = append(items, typed(sql.Ident(f.name), f.typ)+" AS "+sql.Ident(f.name))
			f.partial = nil
		}
	}
	schema := arrow.NewSchema(fields, nil)
	batch := array.NewRecordBatch(schema, columns, int64(len(s.rows)))
	defer batch.Release()
	for _, c := range columns {
		c.Release()
	}
	if err := db.ImportBatches(ctx, "aggregated", schema, []arrow.RecordBatch{batch}); err != nil {
		return err
	}
	if err := db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS SELECT {items} FROM aggregated",
		sql.Args{"table": sql.Ident(w.job.featureTable()), "items": sql.Join(", ", items)})); err != nil {
		return err
	}
	return db.Exec(ctx, "DROP TABLE aggregated")
}

// plain is a value as accumulators take it: bools, dates and timestamps as whole numbers.
func plain(value sql.Fragment, t feature.Type) sql.Fragment {
	switch t.Kind {
	case feature.Bool:
		return value + "::BIGINT"
	case feature.Timestamp:
		return "epoch_us(" + value + ")"
	case feature.Date:
		return "date_diff('day', DATE '1970-01-01', " + value + ")"
	case feature.JSON:
		return value + "::VARCHAR"
	}
	return value
}

// typed makes the feature of what an accumulator gives.
func typed(value sql.Fragment, t feature.Type) sql.Fragment {
	switch t.Kind {
	case feature.Bool:
		return value + "::BOOLEAN"
	case feature.Timestamp:
		return "make_timestamptz(" + value + ")"
	case feature.Date:
		return "DATE '1970-01-01' + " + value + "::INTEGER"
	}
	return value + "::" + sql.Fragment(t.SQL())
}
