package verify

import (
	"context"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// windowRow is a row of a windowed view that was served.
type windowRow struct {
	loggedRow
	key    string
	limits map[string]int64 // by <topic>:<partition>: events below were to be in the values
	others int64            // rows of files and redrives that the generation was built from, -1 where its base isn't known
	marked bool             // whether it is known how far Redis was written
}

// windows recomputes rows of a windowed view by loops over the events as Parquet readers give them: each aggregate over the events
// below the guards that were seen, and below the marks up to which Redis was written, from the hop on in which the window began.
func (c *servedCheck) windows(ctx context.Context, reading *lake.Reading) error {
	v := &viewCheck{
		datasetCheck: &datasetCheck{lake: c.lake, project: c.project, db: c.db}, view: c.view, stream: reading.Stream, log: reading.Log,
		joinKeys: slices.Sorted(slices.Values(c.project.Entity(c.view.Entity).JoinKeys)),
	}
	rows, err := c.windowRows(ctx, v.joinKeys)
	if err != nil {
		return err
	}
	labels := make([]*label, len(rows))
	for i, r := range rows {
		labels[i] = &label{key: r.key, at: &r.at}
	}
	changes, err := v.read(ctx, labels)
	if err != nil {
		return err
	}
	if err := v.conditions(ctx, changes); err != nil {
		return err
	}
	others, err := c.otherRows(ctx, reading)
	if err != nil {
		return err
	}
	for _, r := range rows {
		c.judgeWindows(v, r, changes[r.key], others)
	}
	return nil
}

// otherRows is how many rows of the log came of files and redrives.
func (c *servedCheck) otherRows(ctx context.Context, reading *lake.Reading) (n int64, err error) {
	if err := reading.LogView(ctx, c.db, "verify_log", []string{feature.ColTopic}, false); err != nil {
		return 0, err
	}
	err = c.db.QueryRow(ctx, "SELECT count(*) FROM verify_log WHERE topic LIKE 'file:%' OR topic LIKE 'redrive:%'", nil, &n)
	return n, err
}

// windowRows are the rows of verify_logged.
func (c *servedCheck) windowRows(ctx context.Context, joins []string) ([]*windowRow, error) {
	var rows []*windowRow
	statement := sql.Render("SELECT loam_at, loam_request, loam_entity, loam_features, loam_values, loam_statuses, loam_guards, loam_guard_values, "+
		"loam_marks, loam_mark_texts, {keys} FROM verify_logged ORDER BY loam_n", sql.Args{"keys": sql.Idents("", joins)})
	err := c.db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for row := range int(batch.NumRows()) {
				one := &windowRow{loggedRow: readLogged(batch, row), limits: map[string]int64{}, others: -1, marked: !batch.Column(8).IsNull(row)}
				raise := func(names, values []*string) error {
					for i, name := range names {
						n, err := strconv.ParseInt(*values[i], 10, 64)
						switch {
						case err != nil:
							return fmt.Errorf("a guard in the feature log, %q: %w", *values[i], err)
						case *name == "others":
							one.others = n
						default:
							one.limits[*name] = max(n, one.limits[*name])
						}
					}
					return nil
				}
				for i := 6; i < 10; i += 2 {
					if err := raise(textList(batch.Column(i), row), textList(batch.Column(i+1), row)); err != nil {
						return err
					}
				}
				parts := make([]any, len(joins))
				for i := range joins {
					parts[i] = arrowValue(batch.Column(10+i), row)
				}
				one.key = keyOf(parts)
				rows = append(rows, one)
			}
		}
		return nil
	})
	return rows, err
}

// judgeWindows holds a row against the events of its entity.
func (c *servedCheck) judgeWindows(v *viewCheck, r *windowRow, events []*logged, others int64) {
	for source, limit := range r.limits {
		i := strings.LastIndexByte(source, ':')
		index, err := strconv.ParseInt(source[i+1:], 10, 32)
		if err == nil && limit > c.next[sourceOf(feature.Partition{Topic: source[:i], Index: int32(index)})] && feature.Live(source[:i]) {
			c.report.NotSettled++ // the lake has yet to come to what Redis had
			return
		}
	}
	// Without its base it isn't known which events it rests on, and with another number of rows of files not which of those.
	if r.others < 0 || r.others != others && slices.ContainsFunc(events, func(e *logged) bool { return !e.live }) {
		c.report.OtherBase++
		if !r.marked { // it was counted when it was read
			c.report.Unmarked--
		}
		return
	}
	c.report.Values += int64(len(r.features))
	for i, name := range r.features {
		n, window := v.aggregate(name)
		a, from := c.view.Aggregates[n], windowStart(r.at, window)
		var in []*logged
		for _, e := range events {
			taken := !e.live || e.offset < r.limits[fmt.Sprintf("%s:%d", e.topic, e.partition)]
			if taken && e.at >= from && e.conditions[n] == true && (a.Column == "" || e.arguments[n] != nil) {
				in = append(in, e)
			}
		}
		argument, _ := v.stream.Column(a.Column)
		typ := a.Type(c.def)
		want := aggregated(a.Fn, in, n, argument.Type, typ)
		status, text := "NULL_VALUE", ""
		if want.value != nil {
			status, text = "PRESENT", layoutText(want.value, typ)
		}
		value := r.values[i]
		same := status == r.status[i] && (value != nil) == (want.value != nil)
		if same && value != nil && *value != text {
			served, err := strconv.ParseFloat(*value, 64)
			expected, double := want.value.(float64)
			same = double && err == nil && math.Abs(served-expected) <= want.near
		}
		if !same {
			c.differ(r.loggedRow, 1, "%s was served as %s, and is %s", name, servedText(r.status[i], value), servedText(status, &text))
		}
	}
}

// layoutText is a value as text, as docs/redis.md has it.
func layoutText(v any, t feature.Type) string {
	switch v := v.(type) {
	case *big.Int:
		return decimalText(v.String(), int(t.Scale))
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case int64:
		switch t.Kind {
		case feature.Timestamp:
			return time.UnixMicro(v).UTC().Format("2006-01-02T15:04:05.000000Z07:00")
		case feature.Date:
			return time.Unix(v*86400, 0).UTC().Format(time.DateOnly)
		}
	}
	return fmt.Sprint(v)
}
