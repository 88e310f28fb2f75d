package pit

import (
	"context"
	"fmt"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// viewJob is the part of a build that one feature view has.
type viewJob struct {
	view     *feature.View
	entity   *feature.Entity
	stream   *feature.Stream
	reading  *lake.Reading
	features []string // those asked for, in the order asked
	lost     losses
}

// featureTable is the table of a view's features: label_row and a column a feature. Labels without features have no row.
func (j *viewJob) featureTable() string { return featureTable(j.view) }

func featureTable(v *feature.View) string { return "features_" + v.Name }

// feature is a feature of the view.
func (j *viewJob) feature(name string) feature.Feature {
	return j.view.Features[slices.IndexFunc(j.view.Features, func(f feature.Feature) bool { return f.Name == name })]
}

// ask makes the table asked: the labels as this view's statements want them.
func (b *build) ask(ctx context.Context, j *viewJob) error {
	for _, k := range j.entity.JoinKeys {
		if _, ok := b.labels.typeOf(k); !ok {
			return requestError{fmt.Errorf("feature view %s needs the label column %s, the join key of entity %s, and the labels have %v",
				j.view.Name, k, j.entity.Name, b.labels.names())}
		}
	}
	bound := sql.Ident(labelTime)
	if b.request.ExcludeLabelTime {
		bound += " - INTERVAL 1 microsecond"
	}
	if b.options.loosenUS != 0 {
		bound += sql.Fragment(fmt.Sprintf(" + INTERVAL %d microsecond", b.options.loosenUS))
	}
	return b.db.Exec(ctx, sql.Render(
		"CREATE OR REPLACE TEMP TABLE asked AS SELECT {row} AS label_row, {time} AS label_time, {bound} AS label_bound, {key} AS label_key "+
			"FROM "+partLabels+" WHERE {time} IS NOT NULL AND {present}",
		sql.Args{
			"row": sql.Ident(labelRow), "time": sql.Ident(labelTime), "bound": bound,
			"key": key("", j.entity.JoinKeys, j.stream), "present": notNull("", j.entity.JoinKeys),
		}))
}

// recorded is the condition on the log that known_at makes.
func (b *build) recorded() sql.Fragment {
	if b.request.KnownAt == nil {
		return "true"
	}
	return sql.Fragment(fmt.Sprintf("recorded_at <= make_timestamptz(%d)", b.request.KnownAt.UnixMicro()))
}

// attribute makes the feature table of an attribute view: which change each label sees, then the values of the
// expressions on those changes alone.
func (b *build) attribute(ctx context.Context, j *viewJob) error {
	slots, err := b.slotsOf(ctx, j)
	if err != nil {
		return err
	}
	log := "log_" + j.view.Name
	span := b.reach(j)
	if err := j.reading.Spanning(span).LogView(ctx, b.db, log, nil, true); err != nil {
		return err
	}
	if j.stream.Payload == feature.PatchPayload {
		return b.patched(ctx, j, slots, span, log)
	}
	matchers, err := b.match(ctx, j, slots, span, log, []sql.Fragment{"true"})
	if err != nil {
		return err
	}
	return b.values(ctx, j, span, matchers[0], log, j.features, j.featureTable())
}

// until is the span of what any label may see.
func (b *build) until() lake.Span {
	return lake.Span{To: b.last + b.options.loosenUS, Ingested: b.request.AsOf == feature.ServedClock}
}

// reach says which changes a label may see, or make the clocks differ for it, by their times. One that is older than the
// time to live of the view before the first label gives null, as none does.
func (b *build) reach(j *viewJob) lake.Span {
	span := b.until()
	if ttl := j.view.TTL.Microseconds(); ttl > 0 {
		from := b.first - ttl
		span.From = &from
	}
	return span
}

// values makes a table of features from the changes that a matcher found, and audits it: the clock's times are read from the
// log at the places it chose, and none of the matcher's is trusted.
func (b *build) values(ctx context.Context, j *viewJob, span lake.Span, m *matcher, log string, features []string, table string) error {
	if err := b.imported(ctx, m, j.view.TTL.Microseconds()); err != nil {
		return err
	}
	items := make([]sql.Fragment, len(features))
	for i, name := range features {
		f := j.feature(name)
		items[i] = "CASE WHEN loam_alive THEN " + sql.Try(f.Expr(), f.Type.SQL()) + " END AS " + sql.Ident(name)
	}
	err := b.db.Exec(ctx, sql.Render(sql.Statement("pit_values"), sql.Args{
		"table": sql.Ident(table), "log": sql.Ident(log), "clock": b.clockColumn(), "items": sql.Join(", ", append(items, errorItems(j, features, "loam_alive")...)),
		"only": within("", span),
	}))
	if err != nil {
		return err
	}
	return b.audit(ctx, table)
}

// audit finds how close to its label's time the newest change that a label uses came.
func (b *build) audit(ctx context.Context, table string) error {
	var most *int64
	err := b.db.QueryRow(ctx, sql.Render("SELECT max(epoch_us(f.loam_time) - epoch_us(l.{time})) FROM {table} f JOIN {labels} l ON l.{row} = f.label_row",
		sql.Args{"table": sql.Ident(table), "labels": partLabels, "time": sql.Ident(labelTime), "row": sql.Ident(labelRow)}), nil, &most)
	if err != nil {
		return err
	}
	b.leak(most)
	return nil
}

// leak takes the greatest distance from a label's time to a feature's; nil where no label uses any.
func (b *build) leak(most *int64) {
	if most != nil && (b.card.Audit.MaxUS == nil || *most > *b.card.Audit.MaxUS) {
		b.card.Audit.MaxUS = most
	}
}

// clockColumn is the column of the log that the request's clock goes by.
func (b *build) clockColumn() sql.Fragment {
	if b.request.AsOf == feature.EventClock {
		return sql.Ident(feature.ColEventTime)
	}
	return sql.Ident(feature.ColIngestedAt)
}
