package pit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// windowed makes the feature table of a windowed view. A window over W at time t begins at the hop that holds t - W, and
// ends with what the label sees.
func (b *build) windowed(ctx context.Context, j *viewJob) error {
	if err := b.ask(ctx, j); err != nil {
		return err
	}
	log := "log_" + j.view.Name
	if err := j.reading.LogView(ctx, b.db, log, nil, false); err != nil {
		return err
	}
	w := windowPlan{job: j}
	w.plan()
	// Conditions and columns are evaluated once an event, whatever number of labels see it.
	err := b.db.Exec(ctx, sql.Render(`CREATE OR REPLACE TEMP TABLE changes AS
WITH topics AS (SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash FROM (SELECT DISTINCT topic FROM {log})),
     entities AS (SELECT DISTINCT label_key FROM asked),
     wanted AS (SELECT g.* FROM {log} g SEMI JOIN entities e ON {key} = e.label_key WHERE {present} AND {recorded}),
     valued AS (SELECT {plain} AS label_key, event_time, ingested_at, sequence, topic, "partition", "offset" {items} FROM wanted)
SELECT v.* EXCLUDE (sequence, topic, "partition", "offset"),
       struct_pack(t := v.event_time, n := v.sequence IS NOT NULL, s := coalesce(v.sequence, 0),
                   l := t.live, h := t.topic_hash, p := v."partition", o := v."offset") AS place
FROM valued v JOIN topics t USING (topic)`, sql.Args{
		"log": sql.Ident(log), "key": key("g.", j.entity.JoinKeys, j.stream), "plain": key("", j.entity.JoinKeys, j.stream),
		"present": notNull("g.", j.entity.JoinKeys), "recorded": b.recorded(), "items": w.items(),
	}))
	if err != nil {
		return err
	}
	bound := sql.Fragment("e.ingested_at <= a.label_bound")
	if b.request.AsOf == feature.EventClock {
		bound = "e.event_time <= a.label_bound"
	}
	err = b.db.Exec(ctx, b.loosen(sql.Render(`CREATE OR REPLACE TEMP TABLE {table} AS
WITH framed AS (SELECT *, {floors} FROM asked)
SELECT a.label_row, max(e.{clock}) AS loam_newest, {aggregates}
FROM framed a JOIN changes e ON a.label_key = e.label_key AND e.event_time >= a.{widest} AND {bound}
GROUP BY a.label_row`, sql.Args{
		"table": sql.Ident(j.featureTable()), "floors": w.floors(), "aggregates": w.aggregates(), "widest": w.widest(),
		"bound": bound, "clock": b.clockColumn(),
	})))
	if err != nil {
		return err
	}
	var most *int64
	err = b.db.QueryRow(ctx, sql.Render("SELECT max(epoch_us(f.loam_newest) - epoch_us(l.{time})) FROM {table} f JOIN labels l ON l.{row} = f.label_row",
		sql.Args{"table": sql.Ident(j.featureTable()), "time": sql.Ident(labelTime), "row": sql.Ident(labelRow)}), nil, &most)
	if err != nil {
		return err
	}
	b.leak(most)
	return b.differ(ctx, slices.Max(w.windows).Microseconds())
}

// windowPlan says which aggregates of a view are asked for.
type windowPlan struct {
	job     *viewJob
	chosen  []windowFeature
	windows []time.Duration // distinct
}

type windowFeature struct {
	name      string
	aggregate int // index in the view
	window    time.Duration
}

func (w *windowPlan) plan() {
	for i, a := range w.job.view.Aggregates {
		for _, window := range a.Windows {
			if name := a.FeatureName(window); slices.Contains(w.job.features, name) {
				w.chosen = append(w.chosen, windowFeature{name, i, window})
				if !slices.Contains(w.windows, window) {
					w.windows = append(w.windows, window)
				}
			}
		}
	}
}

func floorName(w time.Duration) sql.Fragment { return sql.Ident("floor_" + feature.FormatDuration(w)) }

func (w *windowPlan) widest() sql.Fragment {
	return floorName(slices.Max(w.windows))
}

// floors are the starts of the windows at a label's time.
func (w *windowPlan) floors() sql.Fragment {
	items := make([]sql.Fragment, len(w.windows))
	for i, window := range w.windows {
		hop := feature.Hop(window).Microseconds()
		items[i] = sql.Fragment(fmt.Sprintf("make_timestamptz((floor((epoch_us(label_time) - %d) / %d.0)::BIGINT) * %d)",
			window.Microseconds(), hop, hop)) + " AS " + floorName(window)
	}
	return sql.Join(", ", items)
}

// items are the conditions and columns of the aggregates that are asked for.
func (w *windowPlan) items() sql.Fragment {
	var out sql.Fragment
	done := map[int]bool{}
	for _, f := range w.chosen {
		if done[f.aggregate] {
			continue
		}
		done[f.aggregate] = true
		a := w.job.view.Aggregates[f.aggregate]
		condition := sql.Fragment("true")
		if a.Where != "" {
			condition = sql.Try(a.Where, "BOOLEAN")
		}
		out += sql.Fragment(fmt.Sprintf(", %s AS c%d", condition, f.aggregate))
		if a.Column != "" {
			out += sql.Fragment(fmt.Sprintf(", %s AS v%d", sql.Ident(a.Column), f.aggregate))
		}
	}
	return out
}

// aggregates are the expressions of the features, each over its own window.
func (w *windowPlan) aggregates() sql.Fragment {
	items := make([]sql.Fragment, len(w.chosen))
	for i, f := range w.chosen {
		a := w.job.view.Aggregates[f.aggregate]
		value := ""
		if a.Column != "" {
			value = fmt.Sprintf("e.v%d", f.aggregate)
		}
		filter := fmt.Sprintf("FILTER (WHERE e.c%d AND e.event_time >= a.%s)", f.aggregate, floorName(f.window))
		items[i] = aggregate(a.Fn, value, filter, w.job.view.FeatureType(w.job.stream, f.name)) + " AS " + sql.Ident(f.name)
	}
	return sql.Join(", ", items)
}

// aggregate is the expression of one aggregate. Integer and decimal sums are exact, null where they overflow.
func aggregate(fn feature.Fn, value, filter string, t feature.Type) sql.Fragment {
	switch fn {
	case feature.Count:
		if value == "" {
			return sql.Fragment("count(*) " + filter)
		}
		return sql.Fragment("count(" + value + ") " + filter)
	case feature.Sum:
		return sql.Fragment(fmt.Sprintf("TRY_CAST(sum(%s) %s AS %s)", value, filter, t.SQL()))
	case feature.Avg:
		return sql.Fragment(fmt.Sprintf("(sum(%s) %s)::DOUBLE / nullif(count(%s) %s, 0)", value, filter, value, filter))
	case feature.First:
		return sql.Fragment(fmt.Sprintf("arg_min(%s, e.place) %s", value, filter))
	case feature.Last:
		return sql.Fragment(fmt.Sprintf("arg_max(%s, e.place) %s", value, filter))
	case feature.Distinct:
		count := fmt.Sprintf("count(DISTINCT %s) %s", value, filter)
		return sql.Fragment(fmt.Sprintf("CASE WHEN %s <= %d THEN %s END", count, feature.DistinctMax, count))
	default:
		return sql.Fragment(fmt.Sprintf("%s(%s) %s", fn, value, filter))
	}
}
