package pit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// onDemandJob is the part of a build that one view on demand has. Its inputs are joined by the jobs of their views.
type onDemandJob struct {
	view     *feature.View
	features []feature.Feature // those asked for, in the order asked
	inputs   []feature.Input   // those that they read
	lost     losses
}

// planOnDemand adds a feature on demand, and gives the features of other views that it reads.
func (b *build) planOnDemand(f feature.Ref) []feature.Ref {
	i := slices.IndexFunc(b.onDemand, func(j *onDemandJob) bool { return j.view.Name == f.View })
	if i < 0 {
		i = len(b.onDemand)
		view := b.project.View(f.View)
		b.onDemand = append(b.onDemand, &onDemandJob{view: view})
		b.card.Definitions = append(b.card.Definitions, b.project.ViewDefinition(view))
	}
	j := b.onDemand[i]
	asked := j.view.Features[slices.IndexFunc(j.view.Features, func(o feature.Feature) bool { return o.Name == f.Feature })]
	j.features = append(j.features, asked)
	var from []feature.Ref
	for _, in := range b.project.Inputs(j.view) {
		if !slices.Contains(asked.Reads, in.Name) {
			continue
		}
		if !slices.Contains(j.inputs, in) {
			j.inputs = append(j.inputs, in)
		}
		if in.From != (feature.Ref{}) {
			from = append(from, in.From)
		}
	}
	return from
}

// requestColumns are the columns of labels that views on demand read.
func (b *build) requestColumns() []feature.Input {
	var all []feature.Input
	for _, j := range b.onDemand {
		for _, in := range j.inputs {
			if in.From == (feature.Ref{}) {
				all = append(all, in)
			}
		}
	}
	return all
}

// checkRequestColumns holds the labels to the columns that views on demand read of them: each is there, and each of its values
// is one of the type that the view declares.
func (b *build) checkRequestColumns(ctx context.Context, labels string) error {
	for _, j := range b.onDemand {
		for _, in := range j.inputs {
			if in.From != (feature.Ref{}) {
				continue
			}
			typ, ok := b.labels.typeOf(in.Name)
			if !ok {
				return fmt.Errorf("feature view %s needs the label column %s, a column of its request that is %s, and the labels have %v",
					j.view.Name, in.Name, in.Type, b.labels.names())
			}
			if in.Type.Kind == feature.JSON && !in.Type.List && typ != "VARCHAR" && typ != "JSON" {
				return fmt.Errorf("labels %s: column %s is %s, and feature view %s takes it as JSON: write it as text",
					labels, in.Name, typ, j.view.Name)
			}
			var bad int64
			err := b.db.QueryRow(ctx, sql.Render("SELECT count(*) FROM labels WHERE {column} IS NOT NULL AND {other}",
				sql.Args{"column": sql.Ident(in.Name), "other": otherwise(in, typ)}), nil, &bad)
			if err != nil {
				return err
			}
			if bad > 0 {
				return fmt.Errorf("labels %s: %d values of column %s are no %s, as which feature view %s takes it: mend them, or leave them empty",
					labels, bad, in.Name, in.Type, j.view.Name)
			}
		}
	}
	return nil
}

// otherwise is the condition that a label's value, of DuckDB's type typ, is none of the input's type. A number must stay what
// it is: 1.5 is no int64.
func otherwise(in feature.Input, typ string) sql.Fragment {
	cast := sql.Fragment(sql.Render("TRY_CAST({column} AS {type})", sql.Args{"column": sql.Ident(in.Name), "type": sql.Fragment(in.Type.SQL())}))
	number := strings.HasPrefix(typ, "DECIMAL") || slices.Contains([]string{"FLOAT", "DOUBLE"}, typ) || strings.HasSuffix(typ, "INT") ||
		strings.HasSuffix(typ, "INTEGER")
	switch in.Type.Kind {
	case feature.Bool, feature.Int64, feature.Decimal:
		if number {
			return "TRY_CAST(" + cast + " AS " + sql.Fragment(typ) + ") IS DISTINCT FROM " + sql.Ident(in.Name)
		}
	}
	if in.Type == (feature.Type{Kind: feature.Int64}) && typ == "VARCHAR" { // DuckDB would round
		return sql.Fragment(sql.Render("({cast} IS NULL OR NOT regexp_full_match({column}, '\\s*[+-]?[0-9]+\\s*'))", sql.Args{"cast": cast, "column": sql.Ident(in.Name)}))
	}
	return cast + " IS NULL"
}

// compute makes the feature table of a view on demand for the labels that are worked on, from those of its inputs.
func (b *build) compute(ctx context.Context, j *onDemandJob) error {
	columns := []sql.Fragment{"l." + sql.Ident(labelRow)}
	var views []*feature.View
	for _, in := range j.inputs {
		value := "l." + sql.Ident(in.Name)
		if in.From != (feature.Ref{}) {
			value = b.value(in.From)
			if v := b.project.View(in.From.View); !slices.Contains(views, v) {
				views = append(views, v)
			}
		}
		columns = append(columns, value+"::"+sql.Fragment(in.Type.SQL())+" AS "+sql.Ident(in.Name))
	}
	var values []sql.Computed
	for _, f := range j.features {
		values = append(values, sql.Computed{Name: f.Name, Expr: f.SQL, Type: f.Type.SQL()},
			sql.Computed{Name: errorColumn(f.Name), Expr: string(failed(f)), Type: "BOOLEAN"})
	}
	inputs := sql.Fragment(sql.Render("(SELECT {columns} FROM {joined})", sql.Args{"columns": sql.Join(", ", columns), "joined": joined(views)}))
	err := b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS {query}",
		sql.Args{"table": sql.Ident(featureTable(j.view)), "query": sql.Fragment(sql.OnDemand(inputs, sql.Ident(labelRow)+" AS label_row", values))}))
	if err != nil {
		return fmt.Errorf("compute feature view %s: %w", j.view.Name, err)
	}
	return b.countErrors(ctx, featureTable(j.view), j.features, &j.lost)
}
