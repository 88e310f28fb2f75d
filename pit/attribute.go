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
			return fmt.Errorf("feature view %s needs the label column %s, the join key of entity %s, and the labels have %v",
				j.view.Name, k, j.entity.Name, b.labels.names())
		}
	}
	bound := sql.Ident(labelTime)
	if b.request.ExcludeLabelTime {
		bound = bound + " - INTERVAL 1 microsecond"
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
	if err := b.ask(ctx, j); err != nil {
		return err
	}
	log := "log_" + j.view.Name
	if err := j.reading.LogView(ctx, b.db, log, nil, true); err != nil {
		return err
	}
	if j.stream.Payload == feature.PatchPayload {
		return b.patched(ctx, j, log)
	}
	if err := b.changes(ctx, j, log, "changes", nil); err != nil {
		return err
	}
	return b.seen(ctx, j, log, j.features, j.featureTable())
}

// changes makes a table of the changes of the entities that are asked for, with more columns of the log where some are
// named.
func (b *build) changes(ctx context.Context, j *viewJob, log, table string, more []string) error {
	var extra sql.Fragment
	if len(more) > 0 {
		extra = ", " + sql.Idents("g.", more)
	}
	return b.db.Exec(ctx, sql.Render(`CREATE OR REPLACE TEMP TABLE {table} AS
WITH topics AS (SELECT topic, topic_live(topic) AS live, topic_hash(topic) AS topic_hash FROM (SELECT DISTINCT topic FROM {log})),
     entities AS (SELECT DISTINCT label_key FROM asked)
SELECT {key} AS label_key, g.event_time, g.sequence, t.live, t.topic_hash, g."partition", g."offset", g.ingested_at,
       g.op = 'delete' AS deleted, g.loam_file AS change_file, g.loam_row AS change_row {extra}
FROM {log} g JOIN topics t USING (topic) SEMI JOIN entities e ON {key} = e.label_key
WHERE {recorded}`, sql.Args{
		"table": sql.Ident(table), "log": sql.Ident(log), "key": key("g.", j.entity.JoinKeys, j.stream), "recorded": b.recorded(), "extra": extra,
	}))
}

// seen makes a table of features from the table changes: which of them each label sees, and the values that come of it.
func (b *build) seen(ctx context.Context, j *viewJob, log string, features []string, table string) error {
	statement := "pit_served"
	if b.request.AsOf == feature.EventClock {
		statement = "pit_event"
	}
	if err := b.db.Exec(ctx, b.loosen(sql.Statement(statement))); err != nil {
		return err
	}
	if err := b.values(ctx, j, log, features, table); err != nil {
		return err
	}
	if err := b.audit(ctx, log); err != nil {
		return err
	}
	return b.differ(ctx, j.view.TTL.Microseconds())
}

// values makes a table of features from the changes that labels see.
func (b *build) values(ctx context.Context, j *viewJob, log string, features []string, table string) error {
	items := make([]sql.Fragment, len(features))
	for i, name := range features {
		f := j.feature(name)
		items[i] = sql.Try(f.Expr(), f.Type.SQL()) + " AS " + sql.Ident(name)
	}
	alive := sql.Fragment("NOT m.deleted")
	if ttl := j.view.TTL.Microseconds(); ttl > 0 {
		alive += sql.Fragment(fmt.Sprintf(" AND epoch_us(m.label_time) - epoch_us(m.event_time) <= %d", ttl))
	}
	return b.db.Exec(ctx, sql.Render(`CREATE OR REPLACE TEMP TABLE {table} AS
WITH seen AS (SELECT g.* FROM {log} g SEMI JOIN matched m ON g.loam_file = m.change_file AND g.loam_row = m.change_row),
     valued AS (SELECT loam_file, loam_row, {items} FROM seen)
SELECT m.label_row, v.* EXCLUDE (loam_file, loam_row)
FROM matched m JOIN valued v ON v.loam_file = m.change_file AND v.loam_row = m.change_row
WHERE {alive}`, sql.Args{"table": sql.Ident(table), "log": sql.Ident(log), "items": sql.Join(", ", items), "alive": alive}))
}

// audit finds how close to its label's time the newest change that a label uses came, from the log itself: it reads the
// times at the places the join chose, and trusts none of the join's.
func (b *build) audit(ctx context.Context, log string) error {
	var most *int64
	err := b.db.QueryRow(ctx, sql.Render(`SELECT max(epoch_us(g.{time}) - epoch_us(l.{label}))
FROM matched m JOIN labels l ON l.{row} = m.label_row JOIN {log} g ON g.loam_file = m.change_file AND g.loam_row = m.change_row`,
		sql.Args{"time": b.clockColumn(), "label": sql.Ident(labelTime), "row": sql.Ident(labelRow), "log": sql.Ident(log)}), nil, &most)
	if err != nil {
		return err
	}
	b.leak(most)
	return nil
}

// clockColumn is the column of the log that the request's clock goes by.
func (b *build) clockColumn() sql.Fragment {
	if b.request.AsOf == feature.EventClock {
		return sql.Ident(feature.ColEventTime)
	}
	return sql.Ident(feature.ColIngestedAt)
}

// leak takes the greatest distance from a label's time to a feature's; nil where no label uses any.
func (b *build) leak(most *int64) {
	if most != nil && (b.card.Audit.MaxUS == nil || *most > *b.card.Audit.MaxUS) {
		b.card.Audit.MaxUS = most
	}
}

// differ adds the labels for which the two clocks could differ.
func (b *build) differ(ctx context.Context, ttl int64) error {
	return b.db.Exec(ctx, "INSERT INTO differing "+sql.Statement("pit_differ"), ttl)
}
