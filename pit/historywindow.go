package pit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// historyWindowed makes the feature table of a view over a state stream whose aggregates are over history. Versions are derived
// from the changes that the label sees, as the history's are from all: by the clock `event` they are a beginning of the history,
// by the clock `served` the history as it was known, which late changes have made another since.
func (b *build) historyWindowed(ctx context.Context, j *viewJob) error {
	if err := b.ask(ctx, j); err != nil {
		return err
	}
	log := "log_" + j.view.Name
	if err := j.reading.LogView(ctx, b.db, log, nil, false); err != nil {
		return err
	}
	w := historyPlan{job: j}
	w.plan()
	if err := b.db.Exec(ctx, sql.Render(sql.Statement("pit_history_changes"), sql.Args{
		"log": sql.Ident(log), "key": key("", j.entity.JoinKeys, j.stream), "log_key": key("g.", j.entity.JoinKeys, j.stream),
		"present": notNull("g.", j.entity.JoinKeys), "recorded": b.recorded(), "items": w.items(), "names": w.names(),
	})); err != nil {
		return err
	}
	served, clock := sql.Fragment("true"), sql.Fragment("ingested_us")
	if b.request.AsOf == feature.EventClock {
		served, clock = "false", "event_us"
	}
	begins, stands := w.pairs()
	for _, statement := range []string{
		sql.Statement("pit_history_labels"),
		sql.Render(sql.Statement("pit_history_late"), sql.Args{"served": served}),
		sql.Render(sql.Statement("pit_history_steps"), sql.Args{"clock": clock, "flags": w.flags(), "lasts": w.lasts()}),
		sql.Render(sql.Statement("pit_history_spans"), sql.Args{"begins": begins, "stands": stands}),
		sql.Render(sql.Statement("pit_history_features"), sql.Args{
			"table": sql.Ident(j.featureTable()), "floors": w.floors(), "reach": w.reach(), "flags": w.seen(), "features": w.features(),
		}),
	} {
		if err := b.db.Exec(ctx, statement); err != nil {
			return err
		}
	}
	var most *int64
	err := b.db.QueryRow(ctx, sql.Render("SELECT max(f.loam_newest_us - epoch_us(l.{time})) FROM {table} f JOIN labels l ON l.{row} = f.label_row",
		sql.Args{"table": sql.Ident(j.featureTable()), "time": sql.Ident(labelTime), "row": sql.Ident(labelRow)}), nil, &most)
	if err != nil {
		return err
	}
	b.leak(most)
	return b.db.Batches(ctx, sql.Statement("pit_history_differ"), func(batch arrow.RecordBatch) error {
		for _, row := range int64s(batch.Column(0)) {
			b.differs(row)
		}
		return nil
	})
}

// historyFeature is an aggregate over one of its windows.
type historyFeature struct {
	name      string
	aggregate int // its number in the view
	window    time.Duration
}

func floorName(w time.Duration) sql.Fragment { return sql.Ident("floor_" + feature.FormatDuration(w)) }

// historyPlan says which aggregates of a view over history are asked for.
type historyPlan struct {
	job        *viewJob
	chosen     []historyFeature // those without a window have 0
	aggregates []int            // theirs, distinct
	windows    []time.Duration  // distinct
}

func (w *historyPlan) plan() {
	add := func(f historyFeature) {
		if !slices.Contains(w.job.features, f.name) {
			return
		}
		w.chosen = append(w.chosen, f)
		if !slices.Contains(w.aggregates, f.aggregate) {
			w.aggregates = append(w.aggregates, f.aggregate)
		}
		if f.window > 0 && !slices.Contains(w.windows, f.window) {
			w.windows = append(w.windows, f.window)
		}
	}
	for i, a := range w.job.view.Aggregates {
		if a.Fn == feature.DaysSinceChange {
			add(historyFeature{name: a.Name, aggregate: i})
		}
		for _, window := range a.Windows {
			add(historyFeature{a.FeatureName(window), i, window})
		}
	}
}

func (w *historyPlan) aggregate(i int) feature.Aggregate { return w.job.view.Aggregates[i] }

// items are the conditions and states of the aggregates, each of a change.
func (w *historyPlan) items() sql.Fragment {
	var items []sql.Fragment
	for _, i := range w.aggregates {
		a := w.aggregate(i)
		condition := sql.Fragment("true")
		if a.Where != "" {
			condition = "coalesce(" + sql.Try(a.Where, "BOOLEAN") + ", false)"
		}
		items = append(items, sql.Fragment(fmt.Sprintf("%s AS c%d", condition, i)), sql.Fragment(fmt.Sprintf("%s AS s%d", w.state(a), i)))
	}
	return sql.Join(", ", items)
}

// state is a number of what the aggregate looks at in a change: the column that it names, or else all that are tracked, those
// that the stream had in former definitions included. Null equals null there, and NaN equals NaN.
func (w *historyPlan) state(a feature.Aggregate) sql.Fragment {
	columns := []string{a.Column}
	if a.Column == "" {
		columns = nil
		for _, c := range w.job.reading.Stream.Columns {
			if w.job.reading.Stream.Tracked(c.Name) {
				columns = append(columns, c.Name)
			}
		}
	}
	if len(columns) == 0 || a.Fn == feature.TimeInState {
		return "0"
	}
	return "dense_rank() OVER (PARTITION BY " + key("", w.job.entity.JoinKeys, w.job.stream) + " ORDER BY " + sql.Idents("", columns) + ")"
}

func (w *historyPlan) names() sql.Fragment {
	var names []sql.Fragment
	for _, i := range w.aggregates {
		names = append(names, sql.Fragment(fmt.Sprintf("v.c%d, v.s%d", i, i)))
	}
	return sql.Join(", ", names)
}

// flags say whether an aggregate counts a step: the entity is there in the state that is meant, or it begins to be in another.
func (w *historyPlan) flags() sql.Fragment {
	var flags []sql.Fragment
	for _, i := range w.aggregates {
		flag := fmt.Sprintf("NOT deleted AND c%d", i)
		if w.aggregate(i).Fn != feature.TimeInState {
			flag += fmt.Sprintf(" AND (coalesce(lag(deleted) OVER steps, true) OR s%d <> lag(s%d) OVER steps)", i, i)
		}
		flags = append(flags, sql.Fragment(fmt.Sprintf("%s AS f%d", flag, i)))
	}
	return sql.Join(", ", flags)
}

func (w *historyPlan) lasts() sql.Fragment {
	var lasts []sql.Fragment
	for _, i := range w.aggregates {
		lasts = append(lasts, sql.Fragment(fmt.Sprintf("max(CASE WHEN f%d THEN event_us END) OVER so_far AS last%d", i, i)))
	}
	return sql.Join(", ", lasts)
}

// pairs are the flags of a change c that follows p, where the entity may begin to be in another state, and of p, which stands
// until then.
func (w *historyPlan) pairs() (begins, stands sql.Fragment) {
	var c, p []sql.Fragment
	for _, i := range w.aggregates {
		if w.aggregate(i).Fn == feature.TimeInState {
			c = append(c, sql.Fragment(fmt.Sprintf("false AS f%d, NULL::BIGINT AS last%d", i, i)))
			p = append(p, sql.Fragment(fmt.Sprintf("NOT p.deleted AND p.c%d, NULL", i)))
			continue
		}
		flag := fmt.Sprintf("NOT c.deleted AND c.c%d AND (coalesce(p.deleted, true) OR c.s%d <> p.s%d)", i, i, i)
		c = append(c, sql.Fragment(fmt.Sprintf("%s AS f%d, CASE WHEN %s THEN c.event_us END AS last%d", flag, i, flag, i)))
		p = append(p, "false, NULL")
	}
	return sql.Join(", ", c), sql.Join(", ", p)
}

// seen are the names of all flags.
func (w *historyPlan) seen() sql.Fragment {
	var names []sql.Fragment
	for _, i := range w.aggregates {
		names = append(names, sql.Fragment(fmt.Sprintf("s.f%d, s.last%d", i, i)))
	}
	return sql.Join(", ", names)
}

// floors are the starts of the windows at a label's time.
func (w *historyPlan) floors() sql.Fragment {
	items := []sql.Fragment{"NULL AS floor_none"}
	for _, window := range w.windows {
		from, hop := fmt.Sprintf("(label_us - %d)", window.Microseconds()), feature.Hop(window).Microseconds()
		items = append(items, sql.Fragment(fmt.Sprintf("%s - ((%s %% %d) + %d) %% %d AS ", from, from, hop, hop, hop))+floorName(window))
	}
	return sql.Join(", ", items)
}

func (w *historyPlan) reach() sql.Fragment {
	if len(w.windows) == 0 {
		return "false"
	}
	return "s.next_us > a." + floorName(slices.Max(w.windows))
}

func (w *historyPlan) features() sql.Fragment {
	items := make([]sql.Fragment, len(w.chosen))
	for n, f := range w.chosen {
		i, floor := f.aggregate, floorName(f.window)
		var value string
		switch w.aggregate(i).Fn {
		case feature.Changes:
			value = fmt.Sprintf("count(*) FILTER (WHERE s.f%d AND s.event_us >= s.%s)", i, floor)
		case feature.TimeInState:
			value = fmt.Sprintf("coalesce(sum(greatest(0, s.end_us - greatest(s.event_us, s.%s))) FILTER (WHERE s.f%d), 0)::DOUBLE / 1000000", floor, i)
		case feature.DaysSinceChange:
			value = fmt.Sprintf("CASE WHEN max(s.last%d) IS NOT NULL THEN greatest(0, max(s.label_us) - max(s.last%d))::DOUBLE / 86400000000 END", i, i)
		}
		items[n] = sql.Fragment(value) + " AS " + sql.Ident(f.name)
	}
	return sql.Join(", ", items)
}
