package pit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// settle makes of the labels that were read those that the training set is of: the ones whose outcomes can be known, a sample
// of them, with a column for each outcome and for the split. What is left is numbered anew, without gaps.
func (b *build) settle(ctx context.Context, what string) error {
	if err := b.checkOutcomes(what); err != nil {
		return err
	}
	if name, taken := b.labels.has(feature.SplitColumn); taken && b.request.Split.Given() {
		return fmt.Errorf("labels %s have a column %s already, which is to say which part of the split a row is in: rename it", what, name)
	}
	if err := b.leaveOut(ctx, what); err != nil {
		return err
	}
	for _, o := range b.outcomes {
		if err := b.judge(ctx, o); err != nil {
			return fmt.Errorf("find outcome %s: %w", o.Name, err)
		}
	}
	if err := b.addColumns(ctx); err != nil {
		return err
	}
	if err := b.countParts(ctx); err != nil {
		return err
	}
	for i, o := range b.outcomes {
		if err := b.db.QueryRow(ctx, "SELECT count(*) FILTER ("+string(sql.Ident(o.Name))+") FROM labels", nil, &b.card.Labels.Outcomes[i].True); err != nil {
			return err
		}
	}
	return nil
}

// countParts counts the labels in each part of the split.
func (b *build) countParts(ctx context.Context) error {
	if !b.request.Split.Given() {
		return nil
	}
	names := append(b.request.Split.Parts(), "")
	counts, dst, n := make([]sql.Fragment, len(names)), make([]any, len(names)), make([]int64, len(names))
	for i, name := range names {
		counts[i], dst[i] = "count(*) FILTER (coalesce("+sql.Ident(feature.SplitColumn)+", '') = "+sql.Literal(name)+")", &n[i]
	}
	if err := b.db.QueryRow(ctx, "SELECT "+string(sql.Join(", ", counts))+" FROM labels", nil, dst...); err != nil {
		return err
	}
	for i, name := range names {
		if n[i] > 0 {
			b.card.Labels.Parts = append(b.card.Labels.Parts, CardPart{Part: name, Rows: n[i]})
		}
	}
	return nil
}

// leaveOut takes the labels away whose outcomes can't be known yet, and those that the sample leaves.
func (b *build) leaveOut(ctx context.Context, what string) error {
	mature, err := b.mature(ctx)
	if err != nil {
		return err
	}
	var sample sql.Fragment
	if s := b.request.Sample; s.Given() {
		hash, err := b.hash("sample", append(b.joinColumns(), labelTime))
		if err != nil {
			return err
		}
		sample = " AND " + hash + sql.Fragment(fmt.Sprintf(" < %g", s.Share))
		if s.Rows > 0 {
			sample = sql.Fragment(sql.Render(" QUALIFY row_number() OVER (ORDER BY {hash}, {row}) <= {n}",
				sql.Args{"hash": hash, "row": sql.Ident(labelRow), "n": sql.Fragment(fmt.Sprint(s.Rows))}))
		}
	}
	if len(b.outcomes) == 0 && !b.request.Sample.Given() {
		return nil
	}
	var ripe int64
	if err := b.db.QueryRow(ctx, "SELECT count(*) FROM labels WHERE "+string(mature), nil, &ripe); err != nil {
		return err
	}
	if ripe == 0 && b.labels.rows > 0 {
		return fmt.Errorf("none of the %d labels %s has an outcome that can be known yet: %s", b.labels.rows, what, b.unripe())
	}
	err = b.db.Exec(ctx, sql.Render(`CREATE OR REPLACE TEMP TABLE labels AS
WITH chosen AS (SELECT * FROM labels WHERE {mature}{sample})
SELECT * REPLACE (row_number() OVER (ORDER BY {row}) - 1 AS {row}) FROM chosen`, sql.Args{"mature": mature, "sample": sample, "row": sql.Ident(labelRow)}))
	if err != nil {
		return err
	}
	if err := b.db.QueryRow(ctx, "SELECT count(*) FROM labels", nil, &b.labels.rows); err != nil {
		return err
	}
	l := &b.card.Labels
	l.LeftOut, l.Unsampled, l.Rows = l.Read-ripe, ripe-b.labels.rows, b.labels.rows
	if l.LeftOut > 0 {
		b.card.Warnings = append(b.card.Warnings, fmt.Sprintf("%d of %d labels are left out, for their outcomes can't be known yet", l.LeftOut, l.Read))
	}
	return nil
}

// unripe says of each outcome up to when its stream is complete.
func (b *build) unripe() string {
	text := ""
	for _, o := range b.outcomes {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%s takes %s from a label's time, and stream %s is complete up to %s", o.Name, feature.FormatDuration(o.Within), o.Stream, watermarkText(o.mark))
	}
	return text
}

// addColumns gives the labels the columns of outcomes and split.
func (b *build) addColumns(ctx context.Context) error {
	joins, items := sql.Fragment("labels l"), sql.Fragment("l.*")
	add := func(name, typ string, value sql.Fragment) {
		items += ", " + value + " AS " + sql.Ident(name)
		b.labels.columns = append(b.labels.columns, sql.Column{Name: name, Type: typ})
	}
	for _, o := range b.outcomes {
		joins += sql.Fragment(sql.Render(" LEFT JOIN {t} ON {t}.label_row = l.{row}", sql.Args{"t": sql.Ident(o.table()), "row": sql.Ident(labelRow)}))
		add(o.Name, "BOOLEAN", sql.Ident(o.table())+".came")
	}
	if b.request.Split.Given() {
		part, err := b.part()
		if err != nil {
			return err
		}
		add(feature.SplitColumn, "VARCHAR", part)
	}
	if items == "l.*" {
		return nil
	}
	err := b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE labels AS SELECT {items} FROM {joins} ORDER BY l.{row}",
		sql.Args{"items": items, "joins": joins, "row": sql.Ident(labelRow)}))
	return err
}

// part is the expression of the part of the split that a label is in: null where its time or key is.
func (b *build) part() (sql.Fragment, error) {
	s := b.request.Split
	of, limits := sql.Ident(labelTime), []sql.Fragment{}
	for _, t := range s.Times {
		limits = append(limits, sql.Fragment(fmt.Sprintf("make_timestamptz(%d)", t.UnixMicro())))
	}
	if len(s.Shares) > 0 {
		columns := []string{s.Column}
		if s.Column == "" {
			if columns = nil; len(b.jobs) == 0 {
				return "", errors.New("split: no feature has an entity whose key could tell the parts: name a column, as in key=COLUMN:0.8")
			}
			for _, k := range b.jobs[0].entity.JoinKeys {
				columns = append(columns, b.labelColumn(k))
			}
		} else if _, ok := b.labels.typeOf(s.Column); !ok {
			columns[0] = b.labelColumn(s.Column)
		}
		var err error
		if of, err = b.hash("split", columns); err != nil {
			return "", fmt.Errorf("split: %w", err)
		}
		of = "CASE WHEN " + notNull("", columns) + " THEN " + of + " END"
		sum := 0.0
		for _, share := range s.Shares {
			sum += share
			limits = append(limits, sql.Fragment(fmt.Sprintf("%g", sum)))
		}
	}
	names := s.Parts()
	text := "CASE WHEN " + of + " IS NULL THEN NULL"
	for i, limit := range limits {
		text += " WHEN " + of + " < " + limit + " THEN " + sql.Literal(names[i])
	}
	return text + " ELSE " + sql.Literal(names[len(names)-1]) + " END", nil
}

// joinColumns are the label columns of all join keys that features and outcomes use, each once.
func (b *build) joinColumns() []string {
	var columns []string
	add := func(keys []string) {
		for _, k := range keys {
			if c := b.labelColumn(k); !slices.Contains(columns, c) {
				columns = append(columns, c)
			}
		}
	}
	for _, j := range b.jobs {
		add(j.entity.JoinKeys)
	}
	for _, o := range b.outcomes {
		add(o.stream.Keys())
	}
	slices.Sort(columns) // whatever the order of the features
	return columns
}

// hash is the expression of a number at least 0 and below 1 that the texts of columns and the seed decide, the same with
// every version and on every machine: the lower 53 bits of their MD5.
func (b *build) hash(salt string, columns []string) (sql.Fragment, error) {
	items := []sql.Fragment{sql.Literal(salt), sql.Literal(fmt.Sprint(b.request.Seed))}
	for _, c := range columns {
		value := sql.Ident(c) + "::VARCHAR"
		if c == labelTime {
			value = "epoch_us(" + sql.Ident(c) + ")::VARCHAR"
		} else if _, ok := b.labels.typeOf(c); !ok {
			return "", fmt.Errorf("the labels have no column %s to hash; they have %v", c, b.labels.names())
		}
		items = append(items, value)
	}
	return "((md5_number_lower(to_json([" + sql.Join(", ", items) + "])::VARCHAR) >> 11) / 9007199254740992.0)", nil
}
