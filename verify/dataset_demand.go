package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// demandCheck is the part of the verification that one view on demand has: its expressions are evaluated over the recomputed
// values of its inputs, and the columns that the labels bring.
type demandCheck struct {
	*datasetCheck
	view     *feature.View
	inputs   []feature.Input
	features []featureCheck
}

// demand adds a feature on demand, and what it reads of other views.
func (c *datasetCheck) demand(ctx context.Context, view *feature.View, f featureCheck) error {
	at := slices.IndexFunc(c.demands, func(d *demandCheck) bool { return d.view.Name == view.Name })
	if at < 0 {
		at, c.demands = len(c.demands), append(c.demands, &demandCheck{datasetCheck: c, view: view})
	}
	d := c.demands[at]
	d.features = append(d.features, f)
	for _, in := range c.project.Inputs(view) {
		if !slices.Contains(d.definition(f.name).Reads, in.Name) || slices.Contains(d.inputs, in) {
			continue
		}
		d.inputs = append(d.inputs, in)
		if in.From == (feature.Ref{}) {
			continue
		}
		if err := c.feature(ctx, c.project.View(in.From.View), featureCheck{name: in.From.Feature, typ: in.Type}); err != nil {
			return err
		}
	}
	return nil
}

func (d *demandCheck) definition(name string) feature.Feature {
	return d.view.Features[slices.IndexFunc(d.view.Features, func(f feature.Feature) bool { return f.Name == name })]
}

// recomputed finds what was recomputed of an input, by label.
func (d *demandCheck) recomputed(in feature.Input, label int) wanted {
	for _, v := range d.views {
		for n, f := range v.features {
			if v.view.Name == in.From.View && f.name == in.From.Feature {
				return v.want[label][n]
			}
		}
	}
	panic("no input " + in.Name)
}

// check recomputes the picked rows, and compares. What is made of a sum of doubles may be as far off as that lets it be, which is
// known for no expression: doubles that read such a sum are held to a millionth of their size.
func (d *demandCheck) check(ctx context.Context) error {
	items := []sql.Fragment{"loam_row"}
	for _, in := range d.inputs {
		if in.From == (feature.Ref{}) {
			items = append(items, sql.Ident(in.Name)+"::"+sql.Fragment(in.Type.SQL())+" AS "+sql.Ident(in.Name))
		}
	}
	for _, f := range d.features {
		items = append(items, sql.Ident(f.column)+"::"+sql.Fragment(f.typ.SQL()))
	}
	batches, err := d.db.Collect(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM picked ORDER BY loam_row")
	if err != nil {
		return err
	}
	schema := feature.ArrowSchema(append([]feature.Column{{Name: "loam_number", Type: feature.Type{Kind: feature.Int64}}}, d.columns()...))
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	var labels []*label
	near := map[string]bool{} // inputs that are sums of doubles
	for _, batch := range batches {
		defer batch.Release()
		for i := range int(batch.NumRows()) {
			l := &label{row: batch.Column(0).(*array.Int64).Value(i)}
			b.Field(0).(*array.Int64Builder).Append(int64(len(labels)))
			brought := 1
			for n, in := range d.inputs {
				var value any
				if in.From == (feature.Ref{}) {
					value = arrowValue(batch.Column(brought), i)
					brought++
				} else {
					w := d.recomputed(in, len(labels))
					value, near[in.Name] = w.value, near[in.Name] || w.near > 0
				}
				appendArrow(b.Field(n+1), value)
			}
			for n := range d.features {
				l.got = append(l.got, arrowValue(batch.Column(brought+n), i))
			}
			labels = append(labels, l)
		}
	}
	made := b.NewRecordBatch()
	defer made.Release()
	if err := d.db.ImportBatches(ctx, "demanded", schema, []arrow.RecordBatch{made}); err != nil {
		return err
	}
	want, err := d.evaluate(ctx, len(labels), near)
	if err != nil {
		return err
	}
	d.compare(labels, d.features, want, nil)
	return nil
}

// columns are the inputs as the expressions read them.
func (d *demandCheck) columns() []feature.Column {
	columns := make([]feature.Column, len(d.inputs))
	for i, in := range d.inputs {
		columns[i] = feature.Column{Name: in.Name, Type: in.Type}
	}
	return columns
}

// evaluate gives the values of the expressions over the table demanded, by its numbers.
func (d *demandCheck) evaluate(ctx context.Context, rows int, near map[string]bool) ([][]wanted, error) {
	items := []sql.Fragment{"loam_number"}
	for _, f := range d.features {
		items = append(items, sql.Try(d.definition(f.name).SQL, f.typ.SQL()))
	}
	want := make([][]wanted, rows)
	err := d.db.Arrow(ctx, "SELECT "+string(sql.Join(", ", items))+" FROM demanded", func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				row := make([]wanted, len(d.features))
				for n := range row {
					row[n].value = arrowValue(batch.Column(n+1), i)
					reads := d.definition(d.features[n].name).Reads
					if v, ok := row[n].value.(float64); ok && slices.ContainsFunc(reads, func(in string) bool { return near[in] }) {
						row[n].near = max(v, -v) / 1e6
					}
				}
				want[batch.Column(0).(*array.Int64).Value(i)] = row
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("evaluate its expressions: %w", err)
	}
	return want, nil
}
