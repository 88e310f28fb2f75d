package pit

import (
	"context"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// assemble makes the view assembled of a part of the labels: their columns, the features, and the label's row.
func (b *build) assemble(ctx context.Context) error {
	var views []*feature.View
	for _, j := range b.jobs {
		views = append(views, j.view)
	}
	for _, j := range b.onDemand {
		if err := b.compute(ctx, j); err != nil {
			return err
		}
		views = append(views, j.view)
	}
	columns := []sql.Fragment{sql.Idents("l.", b.labels.names())}
	for _, f := range b.request.Features {
		columns = append(columns, b.value(f)+" AS "+sql.Ident(f.Column()))
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP VIEW assembled AS SELECT {columns}, l.{row} FROM {joins}",
		sql.Args{"columns": sql.Join(", ", columns), "joins": joined(views), "row": sql.Ident(labelRow)}))
}

// joined is the relation of the labels that are worked on, l, and the feature tables of the views.
func joined(views []*feature.View) sql.Fragment {
	joins := sql.Fragment(partLabels + " l")
	for _, v := range views {
		joins += sql.Fragment(sql.Render(" LEFT JOIN {t} ON {t}.label_row = l.{row}", sql.Args{"t": sql.Ident(featureTable(v)), "row": sql.Ident(labelRow)}))
	}
	return joins
}

// value is the expression of a feature where its view's features are joined.
func (b *build) value(r feature.Ref) sql.Fragment {
	view := b.project.View(r.View)
	table := sql.Ident(featureTable(view))
	value := table + "." + sql.Ident(r.Feature)
	if view.ZeroWithoutEvents(r.Feature) {
		value = "CASE WHEN " + table + ".label_row IS NULL THEN 0 ELSE " + value + " END"
	}
	return value
}
