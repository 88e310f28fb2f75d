package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// ServedReport says what [Served] has recomputed of a view, and what it found.
type ServedReport struct {
	View       string    `json:"view"`
	Since      time.Time `json:"since"`
	Rows       int64     `json:"rows"`                       // entities that were read
	Values     int64     `json:"values"`                     // values recomputed
	Differing  int64     `json:"differing"`                  // values that differ
	Share      float64   `json:"share"`                      // of the values, those that differ
	NotSettled int64     `json:"not_settled"`                // rows that rest on a change that the lake has yet to come to
	Unmarked   int64     `json:"unmarked,omitempty"`         // rows of which it isn't known how far Redis was written: only what they rest on was looked at
	OtherBase  int64     `json:"other_base,omitempty"`       // rows of windows that rest on other rows of files and redrives than the log has now, or don't tell, and which are left out
	Other      int64     `json:"other_definition,omitempty"` // rows that another definition of the view served, and which are left out
	AsOf       int64     `json:"as_of,omitempty"`            // rows of generations as of an instant, which are left out
	Skipped    string    `json:"skipped,omitempty"`          // why nothing was recomputed
	Findings
}

// OK reports whether nothing differs and everything was settled.
func (r *ServedReport) OK() bool { return r.Total == 0 && r.NotSettled == 0 }

// servedCheck is one run of [Served].
type servedCheck struct {
	project *feature.Project
	view    *feature.View
	def     *feature.Stream
	lake    *lake.Lake
	db      *sql.DB
	since   time.Time
	report  *ServedReport
	next    map[source]int64 // where the lake stands
}

// Served recomputes what the table feature_log says was served of a view since a time, straight from the log of its stream. Of attributes
// each value is what the change whose order was seen makes, with the status that its age had then; and no greater change of the entity
// may be among those that Redis was written up to at the read; over a patch stream that is said of each column. Of windows it is the
// aggregate over the events below the guards that were seen, and below those marks. A row that rests on a change that the lake
// hasn't come to is not settled.
func Served(ctx context.Context, l *lake.Lake, p *feature.Project, view *feature.View, since time.Time, o Options) (*ServedReport, error) {
	c := &servedCheck{project: p, view: view, def: p.Stream(view.Stream), lake: l, since: since, report: &ServedReport{View: view.Name, Since: since.UTC()}}
	if err := c.run(ctx, o); err != nil {
		return nil, fmt.Errorf("verify what was served of feature view %s: %w", view.Name, err)
	}
	if c.report.Values > 0 {
		c.report.Share = float64(c.report.Differing) / float64(c.report.Values)
	}
	return c.report, nil
}

func (c *servedCheck) run(ctx context.Context, o Options) error {
	if why := c.project.Unserved(c.view); why != "" {
		return errors.New(why)
	}
	if c.project.OverHistory(c.view) {
		c.report.Skipped = "windows over history are served as of the last `loam materialize`, which `loam verify --online` recomputes"
		return nil
	}
	var err error
	if c.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return err
	}
	defer c.db.Close()
	there, err := c.lake.FeatureLogView(ctx, c.db, "verify_feature_log")
	if err != nil {
		return err
	}
	if !there {
		return errors.New("nothing was logged: run `loam serve --log-features 1`")
	}
	if err := c.loadLogged(ctx); err != nil || c.report.Rows == 0 {
		return err
	}
	reading, err := c.lake.Read(ctx, c.def)
	if err != nil {
		return err
	}
	offsets, err := reading.Offsets()
	if err != nil {
		return err
	}
	c.next = nextOffsets(offsets)
	switch {
	case c.view.Windowed():
		return c.windows(ctx, reading)
	case c.def.Payload == feature.PatchPayload:
		return c.patches(ctx, reading)
	}
	return c.states(ctx, reading)
}

// changes fills verify_changes from the log, with items more of each change.
func (c *servedCheck) changes(ctx context.Context, reading *lake.Reading, items ...sql.Fragment) error {
	needed := append(feature.ColumnNames(c.def.Columns), feature.ColEventTime, feature.ColSequence, feature.ColTopic, feature.ColPartition, feature.ColOffset)
	read := append(slices.Clone(needed), feature.ColOp)
	if c.def.Payload == feature.PatchPayload {
		read = append(read, feature.ColPresent)
	}
	if err := reading.LogView(ctx, c.db, "verify_log", read, false); err != nil {
		return err
	}
	return c.db.Exec(ctx, sql.Render(sql.Statement("verify_logged_changes"), sql.Args{
		"key": sql.Idents("g.", c.def.Key), "key_alone": sql.Idents("", c.def.Key),
		"columns": sql.Join(", ", append([]sql.Fragment{sql.Idents("g.", needed)}, items...)),
	}))
}

// states recomputes rows of a view whose events carry the whole state.
func (c *servedCheck) states(ctx context.Context, reading *lake.Reading) error {
	if err := c.changes(ctx, reading); err != nil {
		return err
	}
	features, names := make([]sql.Fragment, len(c.view.Features)), make([]string, len(c.view.Features))
	for i, f := range c.view.Features {
		names[i] = featureColumn(i)
		features[i] = sql.Try(f.Expr(), f.Type.SQL()) + " AS " + sql.Ident(names[i])
	}
	return c.db.Arrow(ctx, sql.Render(sql.Statement("verify_logged_served"), sql.Args{
		"same_key": sameKey(c.def, "l.", "c."), "features": sql.Join(", ", features), "names": sql.Idents("s.", names),
	}), func(r array.RecordReader) error {
		for r.Next() {
			for row := range int(r.RecordBatch().NumRows()) {
				c.judge(r.RecordBatch(), row)
			}
		}
		return nil
	})
}

// loadLogged fills verify_logged.
func (c *servedCheck) loadLogged(ctx context.Context) error {
	joins := slices.Sorted(slices.Values(c.project.Entity(c.view.Entity).JoinKeys))
	keys := make([]sql.Fragment, len(joins))
	for i, name := range joins {
		column, _ := c.def.Column(name)
		keys[i] = sql.Fragment(fmt.Sprintf("TRY_CAST(entity[%d] AS %s) AS %s", i+1, column.Type.SQL(), sql.Ident(name)))
	}
	definition, since := c.project.ViewDefinition(c.view).Hash, c.since.UnixMicro()
	err := c.db.Exec(ctx, sql.Render(sql.Statement("verify_logged"), sql.Args{"keys": sql.Join(", ", keys)}), c.view.Name, definition, since)
	if err != nil {
		return err
	}
	err = c.db.QueryRow(ctx, "SELECT count(*), count(*) FILTER (loam_marks IS NULL) FROM verify_logged", nil, &c.report.Rows, &c.report.Unmarked)
	if err != nil {
		return err
	}
	return c.db.QueryRow(ctx, `SELECT count(*) FILTER (definition <> $2), count(*) FILTER (definition = $2 AND list_contains(guards, 'as_of')) `+
		`FROM verify_feature_log WHERE "view" = $1 AND epoch_us(served_at) >= $3`,
		[]any{c.view.Name, definition, since}, &c.report.Other, &c.report.AsOf)
}

// Columns of verify_logged_served; the features follow.
const (
	loggedAt = iota
	loggedRequest
	loggedEntity
	loggedFeatures
	loggedValues
	loggedStatuses
	loggedSeen
	loggedMissed
	loggedFound
	loggedEventTime
	loggedDeleted
	loggedColumns
)

// loggedRow is a row that was served.
type loggedRow struct {
	at               int64
	request, entity  string
	features, status []string
	values           []*string
}

// judge holds a row against what it should be.
func (c *servedCheck) judge(batch arrow.RecordBatch, row int) {
	text := func(column int) (string, bool) {
		a := batch.Column(column).(*array.String)
		if a.IsNull(row) {
			return "", false
		}
		return strings.Clone(a.Value(row)), true
	}
	r := readLogged(batch, row)
	seen, wasSeen := text(loggedSeen)
	missed, wasMissed := text(loggedMissed)
	found := batch.Column(loggedFound).(*array.Boolean).Value(row)
	if wasSeen && !found && beyond(seen, c.next) {
		c.report.NotSettled++
		return
	}
	c.report.Values += int64(len(r.features))
	if wasMissed && !(!wasSeen && c.gone(missed, r.at)) {
		what := "no change"
		if wasSeen {
			what = "the change " + seen
		}
		c.differ(r, len(r.features), "it rests on %s, and Redis had taken %s by then: %s", what, missed, strings.Join(r.features, ", "))
		return
	}
	if wasSeen && !found {
		c.differ(r, len(r.features), "it rests on the change %s, and the log has none such of the entity: %s", seen, strings.Join(r.features, ", "))
		return
	}
	old := false
	if found {
		old = c.view.TTL > 0 && r.at-batch.Column(loggedEventTime).(*array.Int64).Value(row) > c.view.TTL.Microseconds()
	}
	deleted := batch.Column(loggedDeleted).(*array.Boolean).Value(row)
	for i, name := range r.features {
		n := slices.IndexFunc(c.view.Features, func(f feature.Feature) bool { return f.Name == name })
		want, status := "", "NOT_FOUND"
		switch column := batch.Column(loggedColumns + n); {
		case !found || deleted:
		case old:
			status = "OUTSIDE_MAX_AGE"
		case column.IsNull(row):
			status = "NULL_VALUE"
		default:
			want, status = valueText(column, row), "PRESENT"
		}
		c.hold(r, i, status, want)
	}
}

// hold holds a value against what it should be, a text that counts where it is present.
func (c *servedCheck) hold(r loggedRow, i int, status, want string) {
	value := r.values[i]
	if status != r.status[i] || (value != nil) != (status == "PRESENT") || value != nil && *value != want {
		c.differ(r, 1, "%s was served as %s, and is %s", r.features[i], servedText(r.status[i], value), servedText(status, &want))
	}
}

// readLogged reads the columns that all rows have, which come first.
func readLogged(batch arrow.RecordBatch, row int) loggedRow {
	plain := func(column int) (texts []string) {
		for _, t := range textList(batch.Column(column), row) {
			texts = append(texts, *t)
		}
		return texts
	}
	return loggedRow{
		at: batch.Column(loggedAt).(*array.Int64).Value(row), request: strings.Clone(batch.Column(loggedRequest).(*array.String).Value(row)),
		entity: strings.Join(plain(loggedEntity), keySeparator), features: plain(loggedFeatures), status: plain(loggedStatuses),
		values: textList(batch.Column(loggedValues), row),
	}
}

// differ counts values of a row that are not as they were served.
func (c *servedCheck) differ(r loggedRow, values int, format string, args ...any) {
	c.report.Differing += int64(values)
	at := time.UnixMicro(r.at).UTC().Format(time.RFC3339Nano)
	c.report.add(Finding{Kind: WrongServed, Key: r.entity, Text: at + ", request " + r.request + ": " + fmt.Sprintf(format, args...)})
}

// gone reports whether a change of that order is so old at a time that its hash may have expired before.
func (c *servedCheck) gone(order string, at int64) bool {
	o, err := feature.ParseOrder(order)
	if err != nil {
		panic(err) // the statement put it together
	}
	return c.view.TTL > 0 && c.view.Layout != feature.FeastLayout && at-o.EventTime > c.view.TTL.Microseconds()
}

func servedText(status string, value *string) string {
	if status != "PRESENT" || value == nil {
		return status
	}
	return fmt.Sprintf("%q", *value)
}

// textList is a list of texts, of which some may be null.
func textList(column arrow.Array, row int) []*string {
	l := column.(*array.List)
	if l.IsNull(row) {
		return nil
	}
	elements := l.ListValues().(*array.String)
	from, to := l.ValueOffsets(row)
	var texts []*string
	for i := int(from); i < int(to); i++ {
		if elements.IsNull(i) {
			texts = append(texts, nil)
			continue
		}
		text := strings.Clone(elements.Value(i))
		texts = append(texts, &text)
	}
	return texts
}
