package pit

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/loamdata/loam/sql"
)

// coverageSpans is the number of equal spans of time of which coverage is told.
const coverageSpans = 20

// described counts what a training set holds, part after part.
type described struct {
	rows      int64
	differing int64            // labels for which the clocks could differ
	views     map[string]int64 // the same by view
	present   []int64          // by feature: values that are not null
	span      *labelSpan       // nil where no label has a time
	sum       rowsHash
	unhashed  []string
}

// labelSpan is the time from the first to the last label, and what is in each of its equal spans.
type labelSpan struct {
	first, last int64 // microseconds since 1970 UTC
	labels      [coverageSpans]int64
	present     [coverageSpans][]int64 // by feature
}

// spans finds the time that the labels cover.
func (b *build) spans(ctx context.Context) error {
	var first, last *int64
	if err := b.db.QueryRow(ctx, sql.Render("SELECT epoch_us(min({time})), epoch_us(max({time})) FROM labels", sql.Args{"time": sql.Ident(labelTime)}),
		nil, &first, &last); err != nil {
		return err
	}
	if first == nil {
		return nil
	}
	b.span = &labelSpan{first: *first, last: *last}
	for i := range b.span.present {
		b.span.present[i] = make([]int64, len(b.request.Features))
	}
	return nil
}

// countDiffering counts the labels for which the clocks could differ in a view.
func (b *build) countDiffering(j *viewJob) {
	if b.views == nil {
		b.views = map[string]int64{}
	}
	for i, differs := range b.differing {
		if differs {
			b.views[j.view.Name]++
			b.anyDiffering[i] = true
		}
	}
	clear(b.differing)
}

// describe counts in what was written of a part, as the view dataset reads it.
func (b *build) describe(ctx context.Context) error {
	d := &b.described
	if d.present == nil {
		d.present = make([]int64, len(b.request.Features))
	}
	for _, differs := range b.anyDiffering {
		if differs {
			d.differing++
		}
	}
	if err := b.cover(ctx); err != nil {
		return err
	}
	return b.hashRows(ctx)
}

// cover counts rows and values that are not null, by spans of time.
func (b *build) cover(ctx context.Context) error {
	d := &b.described
	args := sql.Args{"row": sql.Ident(labelRow), "part": partLabels, "span": "NULL::BIGINT"}
	if d.span != nil {
		// The last label belongs to the last span.
		args["span"] = sql.Fragment(fmt.Sprintf("CASE WHEN %[1]s IS NOT NULL THEN least(((epoch_us(%[1]s) - %[2]d)::HUGEINT * %[3]d // %[4]d)::BIGINT, %[3]d - 1) END",
			sql.Ident(labelTime), d.span.first, coverageSpans, max(d.span.last-d.span.first, 1)))
	}
	counts := []sql.Fragment{"count(*)"}
	for _, f := range b.request.Features {
		counts = append(counts, "count(d."+sql.Ident(f.Column())+")")
	}
	args["counts"] = sql.Join(", ", counts)
	rows, err := b.db.Query(ctx, sql.Render("SELECT p.span, {counts} FROM dataset d JOIN (SELECT {row}, {span} AS span FROM {part}) p USING ({row}) GROUP BY p.span", args))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var span *int64
		n := make([]int64, len(counts))
		dst := []any{&span}
		for i := range n {
			dst = append(dst, &n[i])
		}
		if err := rows.Scan(dst...); err != nil {
			return fmt.Errorf("describe the training set: %w", err)
		}
		d.rows += n[0]
		for i, present := range n[1:] {
			d.present[i] += present
			if span != nil {
				d.span.present[*span][i] += present
			}
		}
		if span != nil {
			d.span.labels[*span] += n[0]
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("describe the training set: %w", err)
	}
	return nil
}

// fillCard puts what was counted into the card, and holds its rows against the labels'.
func (b *build) fillCard(ctx context.Context) error {
	d := b.described
	b.card.Rows = d.rows
	if b.card.Rows != b.labels.rows {
		panic(fmt.Sprintf("%d labels became %d rows", b.labels.rows, b.card.Rows))
	}
	b.card.Labels.ClocksDiffer = share(d.differing, d.rows)
	for i, f := range b.request.Features {
		c := CardFeature{Column: f.Column(), Type: b.project.FeatureType(f).String(), NullRate: share(d.rows-d.present[i], d.rows), Coverage: d.span.coverage(i)}
		c.Overflows, c.Uncounted, c.Errors = b.lost(f)
		b.card.Features = append(b.card.Features, c)
	}
	b.card.Views = []CardView{}
	for _, j := range b.jobs {
		b.card.Views = append(b.card.Views, CardView{View: j.view.Name, ClocksDiffer: share(d.views[j.view.Name], d.rows)})
	}
	if d.span != nil {
		b.card.Coverage = &CardCoverage{From: time.UnixMicro(d.span.first).UTC(), To: time.UnixMicro(d.span.last).UTC(), Labels: d.span.labels[:]}
	}
	b.card.RowsHash, b.card.Unhashed = d.sum.String(), d.unhashed
	return b.db.QueryRow(ctx, "SELECT version()", nil, &b.card.DuckDB)
}

// coverage is the share of a feature's values that aren't null, to four digits, in each span that has labels.
func (s *labelSpan) coverage(i int) []*float64 {
	shares := []*float64{}
	if s == nil {
		return shares
	}
	for span, n := range s.labels {
		if n == 0 {
			shares = append(shares, nil)
			continue
		}
		v := math.Round(share(s.present[span][i], n)*1e4) / 1e4
		shares = append(shares, &v)
	}
	return shares
}

// share is n of all, 0 where there is nothing.
func share(n, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(n) / float64(all)
}
