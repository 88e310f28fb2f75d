package pit

import (
	"context"
	"fmt"
	"slices"

	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// patched makes the feature table of a view over a patch stream. Each feature reads one column, and a label sees of that
// column the greatest change, by the request's clock, that carried it or deleted the entity: a newer patch of other
// columns neither hides nor renews its value. So the changes stream once past a matcher for each column, which
// takes those that bear on it.
func (b *build) patched(ctx context.Context, j *viewJob, s *slots, span lake.Span, log string) error {
	var columns []string
	for _, name := range j.features {
		if c := j.feature(name).Column; !slices.Contains(columns, c) {
			columns = append(columns, c)
		}
	}
	bears := make([]sql.Fragment, len(columns))
	for i, column := range columns {
		bears[i] = "true"
		if !slices.Contains(j.stream.Key, column) { // every change carries the key
			bears[i] = "g.op = 'delete' OR " + carries(column)
		}
	}
	matchers, err := b.match(ctx, j, s, span, log, bears)
	if err != nil {
		return err
	}
	joined := sql.Fragment(partLabels + " l")
	items := []sql.Fragment{"l." + sql.Ident(labelRow) + " AS label_row"}
	for i, column := range columns {
		features := slices.DeleteFunc(slices.Clone(j.features), func(name string) bool { return j.feature(name).Column != column })
		part := fmt.Sprintf("part_%d", i)
		if err := b.values(ctx, j, span, matchers[i], log, features, part); err != nil {
			return err
		}
		joined += sql.Fragment(sql.Render(" LEFT JOIN {part} ON {part}.label_row = l.{row}", sql.Args{"part": sql.Ident(part), "row": sql.Ident(labelRow)}))
		items = append(items, sql.Idents(part+".", features))
		for _, name := range features {
			if j.feature(name).SQL != "" {
				items = append(items, sql.Fragment(part)+"."+sql.Ident(errorColumn(name)))
			}
		}
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS SELECT {items} FROM {joined}",
		sql.Args{"table": sql.Ident(j.featureTable()), "items": sql.Join(", ", items), "joined": joined}))
}

// carries is whether a patch of the log g that is no delete carried a column. Each carries the key.
func carries(column string) sql.Fragment {
	return sql.Fragment(sql.Render("(g.present IS NULL OR list_contains(g.present, {column}))", sql.Args{"column": sql.Literal(column)}))
}
