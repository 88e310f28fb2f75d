package pit

import (
	"context"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// losses count, by a view's features, the labels whose value is null though it was to be another: a sum that its type can't
// hold, more distinct values than are counted, or an error of the feature's expression.
type losses map[string]int64

// lose counts values of a feature that were lost.
func (l *losses) lose(name string, n int64) {
	if *l == nil {
		*l = losses{}
	}
	(*l)[name] += n
}

// errorColumn is the column of a feature table that says of which labels a feature's expression failed.
func errorColumn(name string) string { return "loam_error_" + name }

// errorItems are the columns that say where the expressions of features fail: those of the values that are null where holds is
// true are evaluated once more, as a struct, which is null itself for an error alone.
func errorItems(j *viewJob, features []string, holds sql.Fragment) []sql.Fragment {
	var items []sql.Fragment
	for _, name := range features {
		if f := j.feature(name); f.SQL != "" {
			items = append(items, "("+holds+" AND "+failed(f)+") AS "+sql.Ident(errorColumn(name)))
		}
	}
	return items
}

// failed is the condition that the expression of a feature fails on a row.
func failed(f feature.Feature) sql.Fragment {
	return sql.Fragment(sql.Render("CASE WHEN {value} IS NULL THEN TRY(struct_pack(v := ({expr}\n)::{type})) IS NULL ELSE false END", sql.Args{
		"value": sql.Try(f.SQL, f.Type.SQL()), "expr": sql.Fragment(f.SQL), "type": sql.Fragment(f.Type.SQL()),
	}))
}

// countErrors counts what a feature table says of failed expressions.
func (b *build) countErrors(ctx context.Context, table string, features []feature.Feature, into *losses) error {
	features = slices.DeleteFunc(slices.Clone(features), func(f feature.Feature) bool { return f.SQL == "" })
	if len(features) == 0 {
		return nil
	}
	counts, n, dst := make([]sql.Fragment, len(features)), make([]int64, len(features)), make([]any, len(features))
	for i, f := range features {
		counts[i], dst[i] = "count(*) FILTER ("+sql.Ident(errorColumn(f.Name))+")", &n[i]
	}
	err := b.db.QueryRow(ctx, sql.Render("SELECT {counts} FROM {table}", sql.Args{"counts": sql.Join(", ", counts), "table": sql.Ident(table)}), nil, dst...)
	if err != nil {
		return err
	}
	for i, f := range features {
		into.lose(f.Name, n[i])
	}
	return nil
}

// chosen are the features of the view that are asked for.
func (j *viewJob) chosen() []feature.Feature {
	all := make([]feature.Feature, len(j.features))
	for i, name := range j.features {
		all[i] = j.feature(name)
	}
	return all
}

// lost is how many labels have null for a feature for each of the reasons.
func (b *build) lost(r feature.Ref) (overflows, uncounted, errors int64) {
	for _, j := range b.onDemand {
		if j.view.Name == r.View {
			errors = j.lost[r.Feature]
		}
	}
	for _, j := range b.jobs {
		switch n := j.lost[r.Feature]; {
		case j.view.Name != r.View:
		case !j.view.Windowed():
			errors = n
		case slices.ContainsFunc(j.view.Aggregates, func(a feature.Aggregate) bool {
			return a.Fn == feature.Distinct && slices.Contains(a.FeatureNames(), r.Feature)
		}):
			uncounted = n
		default:
			overflows = n
		}
	}
	return overflows, uncounted, errors
}
