package pit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// outcomeJob is the part of a build that one outcome has.
type outcomeJob struct {
	feature.OutcomeLabel
	stream  *feature.Stream
	reading *lake.Reading
	reads   []string   // columns of the condition
	mark    *time.Time // up to when the stream is complete; nil where it is empty
}

// table holds the outcome of each label: label_row and came.
func (o *outcomeJob) table() string { return "outcome_" + o.Name }

// planOutcomes opens the streams of the outcomes.
func (b *build) planOutcomes(ctx context.Context) error {
	check := b.checkExpr(ctx)
	for _, o := range b.request.Outcomes {
		j := &outcomeJob{OutcomeLabel: o, stream: b.project.Stream(o.Stream)}
		var err error
		if j.reads, err = check(o.When, j.stream.Columns, feature.Type{Kind: feature.Bool}); err != nil {
			return fmt.Errorf("outcome %s: %w", o.Name, err)
		}
		if j.reading, err = b.reading(ctx, j.stream); err != nil {
			return err
		}
		b.outcomes = append(b.outcomes, j)
		b.card.Definitions = append(b.card.Definitions, j.stream.Definition())
	}
	return nil
}

// checkOutcomes holds the outcomes against the columns of the labels.
func (b *build) checkOutcomes(what string) error {
	for _, o := range b.outcomes {
		if name, taken := b.labels.has(o.Name); taken {
			return fmt.Errorf("labels %s have a column %s already, which is the name of an outcome: rename one of them", what, name)
		}
		for _, k := range o.stream.Keys() {
			if _, ok := b.labels.typeOf(b.labelColumn(k)); !ok {
				return fmt.Errorf("outcome %s needs the label column %s, a key of stream %s, and labels %s have %s",
					o.Name, b.labelColumn(k), o.stream.Name, what, strings.Join(b.labels.names(), ", "))
			}
		}
	}
	return nil
}

// mature is the condition that all outcomes of a label can be known: that its horizon ended by the streams' watermarks. An
// outcome that has come true already is none the less left out before that, or the true ones would come in first. What is
// left out is counted.
func (b *build) mature(ctx context.Context) (sql.Fragment, error) {
	all := sql.Fragment("true")
	for _, o := range b.outcomes {
		var err error
		if o.mark, err = b.outcomeMark(ctx, o); err != nil {
			return "", err
		}
		ripe := sql.Fragment(sql.Ident(labelTime) + " IS NULL")
		if o.mark != nil {
			ripe = sql.Fragment(sql.Render("({time} IS NULL OR epoch_us({time}) <= {last})", sql.Args{
				"time": sql.Ident(labelTime), "last": sql.Fragment(fmt.Sprint(o.mark.UnixMicro() - o.Within.Microseconds())),
			}))
		}
		var left int64
		if err := b.db.QueryRow(ctx, "SELECT count(*) FILTER (NOT ("+string(ripe)+")) FROM labels", nil, &left); err != nil {
			return "", err
		}
		b.card.Labels.Outcomes = append(b.card.Labels.Outcomes, CardOutcome{
			Column: o.Name, Stream: o.Stream, When: o.When, Within: feature.FormatDuration(o.Within), CompleteUntil: o.mark, LeftOut: left,
		})
		all += " AND " + ripe
	}
	return all, nil
}

// outcomeMark is the event time up to which an outcome's stream is complete, in what the build may know of it; nil where it
// is empty.
func (b *build) outcomeMark(ctx context.Context, o *outcomeJob) (*time.Time, error) {
	if b.again != nil { // what was complete then is not what is complete now
		i := slices.IndexFunc(b.again.Labels.Outcomes, func(c CardOutcome) bool { return c.Column == o.Name })
		return b.again.Labels.Outcomes[i].CompleteUntil, nil
	}
	return b.mark(ctx, o.stream, o.reading)
}

// mark is the event time up to which a stream is complete, in what the build may know of it; nil where it is empty.
func (b *build) mark(ctx context.Context, s *feature.Stream, reading *lake.Reading) (*time.Time, error) {
	offsets, err := reading.Offsets()
	if err != nil {
		return nil, err
	}
	mark, ok := offsets.Watermark()
	if !ok {
		return nil, nil
	}
	if b.request.KnownAt != nil {
		// By then the stream was complete up to what its partitions had brought; of files, which have no order, up to the newest.
		if err := reading.LogView(ctx, b.db, "loam_known", nil, false); err != nil {
			return nil, err
		}
		live, least := "NOT topic_live(topic)", "max"
		if len(offsets.Partitions) > 0 {
			live, least = "topic_live(topic)", "min"
		}
		var known *int64
		err := b.db.QueryRow(ctx, sql.Render(`SELECT {least}(newest)
FROM (SELECT epoch_us(max(event_time)) AS newest FROM loam_known WHERE {recorded} AND {live} GROUP BY topic, "partition")`, sql.Args{
			"least": sql.Fragment(least), "recorded": b.recorded(), "live": sql.Fragment(live),
		}), nil, &known)
		if err != nil || known == nil {
			return nil, err
		}
		mark = min(mark, *known-s.AllowedLateness.Microseconds())
	}
	at := time.UnixMicro(mark).UTC()
	return &at, nil
}

// judge makes the table of an outcome.
func (b *build) judge(ctx context.Context, o *outcomeJob) error {
	keys := o.stream.Keys()
	err := b.db.Exec(ctx, sql.Render(
		"CREATE OR REPLACE TEMP TABLE judged AS SELECT {row} AS label_row, {time} AS label_time, {key} AS label_key FROM labels WHERE {time} IS NOT NULL AND {present}",
		sql.Args{"row": sql.Ident(labelRow), "time": sql.Ident(labelTime), "key": b.labelKey(o.stream), "present": b.labelKeyPresent(keys)}))
	if err != nil {
		return err
	}
	if err := o.reading.LogView(ctx, b.db, "loam_outcome", nil, false); err != nil {
		return err
	}
	if err := b.db.Exec(ctx, b.states(o)); err != nil {
		return err
	}
	came := "CREATE OR REPLACE TEMP TABLE came_true AS SELECT DISTINCT label_key, event_time FROM states WHERE holds"
	if o.stream.Kind == feature.StateStream {
		came = sql.Statement("pit_came_true")
	}
	if err := b.db.Exec(ctx, came); err != nil {
		return err
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS {outcome}", sql.Args{
		"table": sql.Ident(o.table()), "outcome": sql.Fragment(sql.Render(sql.Statement("pit_outcome"), sql.Args{"within": sql.Fragment(fmt.Sprint(o.Within.Microseconds()))})),
	}))
}

// states is the statement that makes the table states: the changes, or events, of the labels' entities, and whether the
// condition holds. Of a patch stream it holds of what the patches up to each change make together.
func (b *build) states(o *outcomeJob) string {
	s := o.stream
	args := sql.Args{
		"key": key("", s.Keys(), s), "present": notNull("", s.Keys()), "recorded": b.recorded(), "condition": sql.Try(o.When, "BOOLEAN"),
		"whole": "SELECT * FROM wanted",
	}
	if s.Payload == feature.PatchPayload && s.Kind == feature.StateStream {
		var items []sql.Fragment
		for _, c := range o.reads {
			if !slices.Contains(s.Key, c) {
				items = append(items, sql.Fragment(sql.Render(
					"(last_value(CASE WHEN op <> 'delete' AND (present IS NULL OR list_contains(present, {name})) THEN struct_pack(v := {column}) END IGNORE NULLS) OVER life).v AS {column}",
					sql.Args{"name": sql.Literal(c), "column": sql.Ident(c)})))
			}
		}
		if len(items) > 0 {
			args["whole"] = sql.Fragment(sql.Render(`SELECT * REPLACE ({items})
FROM (SELECT *, count(*) FILTER (op = 'delete') OVER (PARTITION BY loam_key {order}) AS loam_life FROM wanted)
WINDOW life AS (PARTITION BY loam_key, loam_life {order})`, sql.Args{"items": sql.Join(", ", items), "order": inOrder}))
		}
	}
	return sql.Render(`CREATE OR REPLACE TEMP TABLE states AS
WITH topics AS (SELECT topic AS loam_topic, topic_live(topic) AS loam_live, topic_hash(topic) AS loam_hash FROM (SELECT DISTINCT topic FROM loam_outcome)),
     entities AS (SELECT DISTINCT label_key FROM judged),
     wanted AS (SELECT g.*, {key} AS loam_key, t.loam_live, t.loam_hash FROM loam_outcome g JOIN topics t ON g.topic = t.loam_topic
                SEMI JOIN entities e ON {key} = e.label_key WHERE {present} AND {recorded}),
     whole AS ({whole})
SELECT loam_key AS label_key, event_time, sequence, loam_live AS live, loam_hash AS topic_hash, "partition", "offset",
       op <> 'delete' AND coalesce({condition}, false) AS holds
FROM whole`, args)
}

// inOrder is a window over all changes up to the row, in the one order.
const inOrder = `ORDER BY event_time, sequence NULLS FIRST, loam_live, loam_hash, "partition", "offset" ROWS UNBOUNDED PRECEDING`

// labelKey is the key of a stream's entity in the labels, in the stream's types.
func (b *build) labelKey(s *feature.Stream) sql.Fragment {
	keys := s.Keys()
	parts := make([]sql.Fragment, len(keys))
	for i, k := range keys {
		c, _ := s.Column(k)
		parts[i] = "TRY_CAST(" + sql.Ident(b.labelColumn(k)) + " AS " + sql.Fragment(c.Type.SQL()) + ")"
		if len(keys) > 1 {
			parts[i] = sql.Ident(k) + " := " + parts[i]
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return "struct_pack(" + sql.Join(", ", parts) + ")"
}

func (b *build) labelKeyPresent(keys []string) sql.Fragment {
	columns := make([]string, len(keys))
	for i, k := range keys {
		columns[i] = b.labelColumn(k)
	}
	return notNull("", columns)
}
