package pit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

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
	if zeroWithoutEvents(view, r.Feature) {
		value = "CASE WHEN " + table + ".label_row IS NULL THEN 0 ELSE " + value + " END"
	}
	return value
}

// output is where a training set is written, part after part in the order of the labels.
type output struct {
	path  string   // the file that is asked for
	parts []string // Parquet files written so far, beside it
}

// add writes what is assembled, in the order of the labels, as the next part, and makes the view dataset of what was written.
func (o *output) add(ctx context.Context, db *sql.DB, first int64) error {
	if err := os.MkdirAll(filepath.Dir(o.path), 0o755); err != nil {
		return fmt.Errorf("make the folder of the training set: %w", err)
	}
	o.parts = append(o.parts, fmt.Sprintf("%s.part-%05d", o.path, len(o.parts)))
	part := o.parts[len(o.parts)-1]
	err := db.Exec(ctx, sql.Render("COPY (SELECT * EXCLUDE ({row}) FROM assembled ORDER BY {row}) TO {out} (FORMAT parquet, COMPRESSION zstd)",
		sql.Args{"row": sql.Ident(labelRow), "out": sql.Literal(part)}))
	if err != nil {
		return fmt.Errorf("write %s: %w", part, err)
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP VIEW dataset AS SELECT * EXCLUDE (file_row_number), file_row_number + {first} AS {row} "+
		"FROM read_parquet({part}, file_row_number = true)", sql.Args{
		"first": sql.Fragment(fmt.Sprint(first)), "row": sql.Ident(labelRow), "part": sql.Literal(part),
	}))
}

// deliver makes what is asked for of the parts.
func (o *output) deliver(ctx context.Context, db *sql.DB) error {
	defer o.discard()
	if len(o.parts) > 1 {
		parts := make([]sql.Fragment, len(o.parts))
		for i, p := range o.parts {
			parts[i] = sql.Literal(p)
		}
		whole := o.path + ".part"
		o.parts = append(o.parts, whole)
		err := db.Exec(ctx, sql.Render("COPY (FROM read_parquet([{parts}])) TO {out} (FORMAT parquet, COMPRESSION zstd)",
			sql.Args{"parts": sql.Join(", ", parts), "out": sql.Literal(whole)}))
		if err != nil {
			return fmt.Errorf("write %s: %w", whole, err)
		}
	}
	if err := os.Rename(o.parts[len(o.parts)-1], o.path); err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	return nil
}

// discard removes the parts that are left.
func (o *output) discard() {
	for _, p := range o.parts {
		_ = os.Remove(p) // it may not be there
	}
}

// zeroWithoutEvents reports whether a feature is 0 for an entity without events: counts and distincts, and over history changes
// and times in a state.
func zeroWithoutEvents(v *feature.View, name string) bool {
	for _, a := range v.Aggregates {
		if slices.Contains(a.FeatureNames(), name) {
			return slices.Contains([]feature.Fn{feature.Count, feature.Distinct, feature.Changes, feature.TimeInState}, a.Fn)
		}
	}
	return false
}
