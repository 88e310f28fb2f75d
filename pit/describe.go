package pit

import (
	"context"
	"fmt"

	"github.com/loamdata/loam/sql"
)

// described counts what a training set holds, part after part.
type described struct {
	rows      int64
	differing int64   // labels for which the clocks could differ
	present   []int64 // by feature: values that are not null
}

// describe counts in what was written of a part, as the view dataset reads it.
func (b *build) describe(ctx context.Context) error {
	items := []sql.Fragment{"count(*)"}
	for _, f := range b.request.Features {
		items = append(items, "count("+sql.Ident(f.Column())+")")
	}
	counts := make([]int64, len(items))
	dst := make([]any, len(items))
	for i := range dst {
		dst[i] = &counts[i]
	}
	if err := b.db.QueryRow(ctx, sql.Render("SELECT {items} FROM dataset", sql.Args{"items": sql.Join(", ", items)}), nil, dst...); err != nil {
		return err
	}
	d := &b.described
	if d.present == nil {
		d.present = make([]int64, len(b.request.Features))
	}
	d.rows += counts[0]
	for _, differs := range b.differing {
		if differs {
			d.differing++
		}
	}
	for i, n := range counts[1:] {
		d.present[i] += n
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
	rate := func(n int64) float64 {
		if b.card.Rows == 0 {
			return 0
		}
		return float64(n) / float64(b.card.Rows)
	}
	b.card.Labels.ClocksDiffer = rate(d.differing)
	for i, f := range b.request.Features {
		b.card.Features = append(b.card.Features, CardFeature{
			Column: f.Column(), Type: b.project.FeatureType(f).String(), NullRate: rate(b.card.Rows - d.present[i]),
		})
	}
	return b.db.QueryRow(ctx, "SELECT version()", nil, &b.card.DuckDB)
}
