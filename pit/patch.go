package pit

import (
	"context"
	"fmt"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// patched makes the feature table of a view over a patch stream. Each feature reads one column, and a label sees of that
// column the greatest change, by the request's clock, that carried it or deleted the entity: a newer patch of other
// columns neither hides nor renews its value. So the statements of full states answer it, a column at a time, over the
// changes that bear on the column.
func (b *build) patched(ctx context.Context, j *viewJob, log string) error {
	if err := b.changes(ctx, j, log, "patches", []string{feature.ColPresent}); err != nil {
		return err
	}
	var columns []string
	for _, name := range j.features {
		if c := j.feature(name).Column; !slices.Contains(columns, c) {
			columns = append(columns, c)
		}
	}
	joined := sql.Fragment("asked a")
	items := []sql.Fragment{"a.label_row"}
	for i, column := range columns {
		carried := sql.Fragment("true")
		if !slices.Contains(j.stream.Key, column) { // every change carries the key
			carried = sql.Fragment(sql.Render("deleted OR present IS NULL OR list_contains(present, {column})",
				sql.Args{"column": sql.Literal(column)}))
		}
		err := b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE changes AS SELECT * EXCLUDE (present) FROM patches WHERE {carried}",
			sql.Args{"carried": carried}))
		if err != nil {
			return err
		}
		features := slices.DeleteFunc(slices.Clone(j.features), func(name string) bool { return j.feature(name).Column != column })
		part := fmt.Sprintf("part_%d", i)
		if err := b.seen(ctx, j, log, features, part); err != nil {
			return err
		}
		joined += sql.Fragment(sql.Render(" LEFT JOIN {part} ON {part}.label_row = a.label_row", sql.Args{"part": sql.Ident(part)}))
		items = append(items, sql.Idents(part+".", features))
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS SELECT {items} FROM {joined}",
		sql.Args{"table": sql.Ident(j.featureTable()), "items": sql.Join(", ", items), "joined": joined}))
}
