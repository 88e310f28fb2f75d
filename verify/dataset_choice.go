package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// choice finds which of the labels the training set is to be of, those whose outcomes could be known and of them the sample, and holds
// the counts of the card against that.
func (c *datasetCheck) choice(ctx context.Context) error {
	l := &c.card.Labels
	if left := l.Read - l.LeftOut - l.Unsampled; left != l.Rows || l.Rows != c.card.Rows {
		c.report.add(DatasetFinding{
			Text: "the card's counts: rows are the labels read, less those left out and unsampled", Want: fmt.Sprint(left), Got: fmt.Sprintf("%d and %d", l.Rows, c.card.Rows),
		})
	}
	for _, o := range c.outcomes {
		if err := o.complete(ctx); err != nil {
			return fmt.Errorf("read the log of %s: %w", o.stream.Name, err)
		}
	}
	if c.labelsAt.scan == "" {
		return nil
	}
	sample, err := c.sampled()
	if err != nil {
		return err
	}
	if len(c.outcomes) == 0 && !sample.Given() {
		return c.allTaken(ctx)
	}
	switch {
	case c.labelsAt.changed:
		c.uncompared("other labels would be taken of those that are there")
		return nil
	case len(c.report.Skipped) > 0: // whose keys aren't known
		c.uncompared("which of them are taken depends on features that aren't recomputed")
		return nil
	}
	read, taken, err := c.take(ctx, sample)
	if err != nil {
		return fmt.Errorf("read the labels: %w", err)
	}
	if int64(len(taken)) != c.card.Rows {
		c.uncompared(fmt.Sprintf("%d of them are to be taken, and the card says %d rows", len(taken), c.card.Rows))
		return nil
	}
	if c.labelsAt.taken = taken; int64(len(taken)) == read {
		c.labelsAt.taken = nil
	}
	return nil
}

// uncompared notes that the columns of the labels aren't compared, and why.
func (c *datasetCheck) uncompared(why string) {
	c.labelsAt.scan = ""
	c.report.Notes = append(c.report.Notes, "the columns of the labels weren't compared: "+why)
}

// count holds a count of the card against what it is.
func (c *datasetCheck) count(column, what string, want, got int64) {
	if want != got {
		c.report.add(DatasetFinding{Column: column, Text: "the card's count of " + what, Want: fmt.Sprint(want), Got: fmt.Sprint(got)})
	}
}

func (c *datasetCheck) sampled() (s feature.Sample, err error) {
	if text := c.card.Request.Sample; text != "" {
		if s, err = feature.ParseSample(text); err != nil {
			err = fmt.Errorf("read the card: sample %w", err)
		}
	}
	return s, err
}

// allTaken holds the number of labels against the card, where all of them are taken.
func (c *datasetCheck) allTaken(ctx context.Context) error {
	var read int64
	if err := c.db.QueryRow(ctx, "SELECT count(*) FROM "+string(c.labelsAt.scan), nil, &read); err != nil {
		return fmt.Errorf("read the labels: %w", err)
	}
	if !c.labelsAt.changed {
		c.count("", "labels read", read, c.card.Labels.Read)
	}
	if read != c.card.Rows { // their rows are numbered otherwise
		c.uncompared(fmt.Sprintf("there are %d labels, and the card says %d rows", read, c.card.Rows))
	}
	return nil
}

// taking is a label that may be taken, and its number between 0 and 1 that decides on the sample.
type taking struct {
	label int64
	share float64
}

// take finds the numbers of the labels that are taken, and compares the card's counts.
func (c *datasetCheck) take(ctx context.Context, sample feature.Sample) (read int64, taken []int64, err error) {
	columns, err := c.db.Columns(ctx, "SELECT * FROM "+string(c.labelsAt.scan))
	if err != nil {
		return 0, nil, err
	}
	var ripe []taking
	leftOut := make([]int64, len(c.outcomes))
	keys := c.keyTexts()
	err = c.eachLabel(ctx, c.labelsAt.scan, "row_number() OVER () - 1", columns, keys, func(label int64, at *int64, texts []*string) {
		all := true
		for i, o := range c.outcomes {
			if !o.ripe(at) {
				leftOut[i]++
				all = false
			}
		}
		if all {
			ripe = append(ripe, taking{label, c.share("sample", append(texts, timeText(at)))})
		}
		read++
	})
	if err != nil {
		return 0, nil, err
	}
	chosen := slices.Clone(ripe)
	switch {
	case sample.Share > 0:
		chosen = slices.DeleteFunc(chosen, func(t taking) bool { return t.share >= sample.Share })
	case sample.Rows > 0 && sample.Rows < int64(len(chosen)):
		slices.SortFunc(chosen, func(a, b taking) int { return cmp.Or(cmp.Compare(a.share, b.share), cmp.Compare(a.label, b.label)) })
		chosen = chosen[:sample.Rows]
	}
	for _, t := range chosen {
		taken = append(taken, t.label)
	}
	slices.Sort(taken)
	c.count("", "labels read", read, c.card.Labels.Read)
	c.count("", "labels left out", read-int64(len(ripe)), c.card.Labels.LeftOut)
	c.count("", "labels that the sample leaves", int64(len(ripe)-len(taken)), c.card.Labels.Unsampled)
	for i, o := range c.outcomes {
		c.count(o.label.Name, "labels left out for it", leftOut[i], o.said.LeftOut)
	}
	return read, taken, nil
}

// keyTexts are the label columns that hold join keys of features and outcomes, each once, in the order of their names.
func (c *datasetCheck) keyTexts() []string {
	var names []string
	for _, v := range c.views {
		names = append(names, v.keyColumns()...)
	}
	for _, o := range c.outcomes {
		names = append(names, o.keyColumns()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// eachLabel hands over the number, the time and the texts of columns of every row of a relation that has the columns.
func (c *datasetCheck) eachLabel(
	ctx context.Context, scan, number sql.Fragment, columns []sql.Column, texts []string, use func(number int64, at *int64, texts []*string),
) error {
	for _, name := range append([]string{c.card.Request.TimeColumn}, texts...) {
		if typeOf(columns, name) == "" {
			return fmt.Errorf("there is no column %s", name)
		}
	}
	items := []sql.Fragment{number, c.moment(typeOf(columns, c.card.Request.TimeColumn))}
	for _, name := range texts {
		items = append(items, sql.Ident(name)+"::VARCHAR")
	}
	return c.db.Arrow(ctx, sql.Render("SELECT {items} FROM {scan}", sql.Args{"items": sql.Join(", ", items), "scan": scan}), func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				at, err := timeOf(batch.Column(1), i)
				if err != nil {
					return err
				}
				values := make([]*string, len(texts), len(texts)+1)
				for n := range values {
					if text, ok := arrowValue(batch.Column(n+2), i).(string); ok {
						values[n] = &text
					}
				}
				use(batch.Column(0).(*array.Int64).Value(i), at, values)
			}
		}
		return nil
	})
}

func timeText(at *int64) *string {
	if at == nil {
		return nil
	}
	text := fmt.Sprint(*at)
	return &text
}

// share is a number at least 0 and below 1 that texts and the seed decide: of the MD5 of a JSON array of what it is for, the seed and
// the texts, the upper 53 bits of its second half, little-endian.
func (c *datasetCheck) share(salt string, texts []*string) float64 {
	var b bytes.Buffer
	b.WriteByte('[')
	writeJSON(&b, salt)
	b.WriteByte(',')
	writeJSON(&b, fmt.Sprint(c.card.Request.Seed))
	for _, text := range texts {
		b.WriteByte(',')
		if text == nil {
			b.WriteString("null")
		} else {
			writeJSON(&b, *text)
		}
	}
	b.WriteByte(']')
	sum := md5.Sum(b.Bytes())
	return float64(binary.LittleEndian.Uint64(sum[8:])>>11) / (1 << 53)
}

// writeJSON writes a text as DuckDB writes it in JSON: escaped is what must be, and nothing else.
func writeJSON(b *bytes.Buffer, text string) {
	b.WriteByte('"')
	for i := range len(text) {
		switch ch := text[i]; ch {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteByte(ch)
		case '\b':
			b.WriteString(`\b`)
		case '\f':
			b.WriteString(`\f`)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		case '\t':
			b.WriteString(`\t`)
		default:
			if ch < 0x20 {
				fmt.Fprintf(b, `\u%04X`, ch)
			} else {
				b.WriteByte(ch)
			}
		}
	}
	b.WriteByte('"')
}

// splitColumns are the columns by whose texts the split goes, none where it goes by time. It is false where that can't be told.
func (c *datasetCheck) splitColumns() ([]string, bool) {
	switch {
	case len(c.split.Shares) == 0:
		return nil, true
	case c.split.Column != "" && c.typeOf(c.split.Column) != "":
		return []string{c.split.Column}, true
	case c.split.Column != "":
		return []string{c.labelColumn(c.split.Column)}, true
	case len(c.views) == 0 || len(c.report.Skipped) > 0: // the first feature may be among those
		return nil, false
	}
	return c.views[0].keyColumns(), true
}

// parts recomputes which part of the split the picked rows are in, and compares.
func (c *datasetCheck) parts(ctx context.Context) error {
	columns, ok := c.splitColumns()
	if !c.split.Given() || !ok {
		return nil
	}
	texts := append(slices.Clone(columns), feature.SplitColumn)
	return c.eachLabel(ctx, "picked", "loam_row", c.columns, texts, func(row int64, at *int64, texts []*string) {
		c.report.Cells++
		got, want := texts[len(columns)], c.part(at, texts[:len(columns)])
		if orNull(got) != orNull(want) {
			c.report.add(DatasetFinding{Row: &row, Keys: columns, Column: feature.SplitColumn, Want: orNull(want), Got: orNull(got)})
		}
	})
}

// part is the part of the split that a label is in, nil where its time or a part of its key is null.
func (c *datasetCheck) part(at *int64, texts []*string) *string {
	parts := c.split.Parts()
	i := 0
	switch {
	case len(c.split.Times) > 0 && at == nil, slices.Contains(texts, nil):
		return nil
	case len(c.split.Times) > 0:
		for i < len(c.split.Times) && *at >= c.split.Times[i].UnixMicro() {
			i++
		}
	default:
		share, sum := c.share("split", texts), 0.0
		for _, s := range c.split.Shares {
			if sum += s; share >= sum {
				i++
			}
		}
	}
	return &parts[i]
}

// wholeSet holds all rows against what can be told without a log: that the outcomes of none could not be known yet, that each is in a
// sample by share, and how many are true and in each part of the split.
func (c *datasetCheck) wholeSet(ctx context.Context) error {
	sample, err := c.sampled()
	if err != nil {
		return err
	}
	keys := c.keyTexts()
	if sample.Rows > 0 {
		c.count("", "rows, of a sample of so many", min(sample.Rows, c.card.Labels.Read-c.card.Labels.LeftOut), c.card.Rows)
	}
	if len(c.outcomes) == 0 && !c.split.Given() && sample.Share == 0 {
		return nil
	}
	texts := slices.Clone(keys)
	for _, o := range c.outcomes {
		texts = append(texts, o.label.Name)
	}
	if c.split.Given() {
		texts = append(texts, feature.SplitColumn)
	}
	came, parts := make([]int64, len(c.outcomes)), map[string]int64{}
	err = c.eachLabel(ctx, c.set(), "file_row_number", c.columns, texts, func(row int64, at *int64, texts []*string) {
		for i, o := range c.outcomes {
			if text := texts[len(keys)+i]; text != nil && *text == "true" {
				came[i]++
			}
			if !o.ripe(at) {
				c.report.add(DatasetFinding{
					Row: &row, Keys: []string{c.card.Request.TimeColumn}, Column: o.label.Name, Text: "its horizon ends when the stream was not complete, so it is to be left out",
					Want: "at most " + until(o.said), Got: showTime(*at + o.label.Within.Microseconds()),
				})
			}
		}
		if c.split.Given() {
			part := ""
			if text := texts[len(texts)-1]; text != nil {
				part = *text
			}
			parts[part]++
		}
		if sample.Share > 0 && len(c.report.Skipped) == 0 {
			if share := c.share("sample", append(slices.Clone(texts[:len(keys)]), timeText(at))); share >= sample.Share {
				c.report.add(DatasetFinding{Row: &row, Keys: keys, Text: "the sample leaves it: its hash", Want: fmt.Sprintf("below %g", sample.Share), Got: fmt.Sprint(share)})
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read the training set: %w", err)
	}
	for i, o := range c.outcomes {
		c.count(o.label.Name, "labels for which it came true", came[i], o.said.True)
	}
	if c.split.Given() {
		for _, part := range append(c.split.Parts(), "") {
			said := int64(0)
			for _, p := range c.card.Labels.Parts {
				if p.Part == part {
					said = p.Rows
				}
			}
			c.count(feature.SplitColumn, fmt.Sprintf("labels in part %q", part), parts[part], said)
		}
	}
	return nil
}

// until is up to when the stream of an outcome was complete.
func until(o cardOutcome) string {
	if o.CompleteUntil == nil {
		return "null, for the stream is empty"
	}
	return showTime(o.CompleteUntil.UnixMicro())
}
