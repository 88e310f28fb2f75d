package pit

import (
	"context"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// assemble makes the table dataset of a part of the labels: their columns, the features, and the label's row.
func (b *build) assemble(ctx context.Context) error {
	columns := []sql.Fragment{sql.Idents("l.", b.labels.names())}
	joins := sql.Fragment(partLabels + " l")
	for _, j := range b.jobs {
		joins += sql.Fragment(sql.Render(" LEFT JOIN {t} ON {t}.label_row = l.{row}", sql.Args{"t": alias(j), "row": sql.Ident(labelRow)}))
	}
	for _, f := range b.request.Features {
		j := b.job(f.View)
		value := alias(j) + "." + sql.Ident(f.Feature)
		if zeroWithoutEvents(j.view, f.Feature) {
			value = "CASE WHEN " + alias(j) + ".label_row IS NULL THEN 0 ELSE " + value + " END"
		}
		columns = append(columns, value+" AS "+sql.Ident(f.Column()))
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE dataset AS SELECT {columns}, l.{row} FROM {joins}",
		sql.Args{"columns": sql.Join(", ", columns), "joins": joins, "row": sql.Ident(labelRow)}))
}

// job is the part of the build that a view has.
func (b *build) job(view string) *viewJob {
	return b.jobs[slices.IndexFunc(b.jobs, func(j *viewJob) bool { return j.view.Name == view })]
}

func alias(j *viewJob) sql.Fragment { return sql.Ident(j.featureTable()) }

// zeroWithoutEvents reports whether a feature is 0 for an entity without events: counts and distincts.
func zeroWithoutEvents(v *feature.View, name string) bool {
	for _, a := range v.Aggregates {
		for _, w := range a.Windows {
			if a.FeatureName(w) == name {
				return a.Fn == feature.Count || a.Fn == feature.Distinct
			}
		}
	}
	return false
}
