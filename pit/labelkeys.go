package pit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// checkKeys holds the values of join keys in the labels against the types that they have in the streams. One that a whole number
// would round, or that may have been rounded, is refused, for the label would be given another entity's features, and so are numbers with a point for a key that
// is text, which match nothing; one that can't be of the type matches nothing, and is counted in a warning.
func (b *build) checkKeys(ctx context.Context, what string) error {
	var seen []string
	check := func(s *feature.Stream, keys []string) error {
		for _, k := range keys {
			c, _ := s.Column(k)
			column := b.labelColumn(k)
			typ, ok := b.labels.typeOf(column)
			if !ok || typ == c.Type.SQL() || slices.Contains(seen, column+" "+c.Type.SQL()) {
				continue // of the stream's own type nothing can be amiss
			}
			seen = append(seen, column+" "+c.Type.SQL())
			var some, rounded, none int64
			var first *int64
			err := b.db.QueryRow(ctx, sql.Render("SELECT count({column}), count(*) FILTER ({rounds}), min({row}) FILTER ({rounds}), "+
				"count(*) FILTER ({column} IS NOT NULL AND TRY_CAST({column} AS {type}) IS NULL) FROM labels", sql.Args{
				"rounds": rounds(feature.Column{Name: column, Type: c.Type}, typ), "row": sql.Ident(labelRow), "column": sql.Ident(column), "type": sql.Fragment(c.Type.SQL()),
			}), nil, &some, &rounded, &first, &none)
			if err != nil {
				return fmt.Errorf("read the keys of labels %s: %w", what, err)
			}
			if why := pointedText(c, typ); some > 0 && why != "" {
				return fmt.Errorf("labels %s: column %s, the join key %s, %s", what, column, k, why)
			}
			if rounded > 0 {
				return fmt.Errorf("labels %s: %d values of column %s, the join key %s, can't be %s without loss, the first in row %d, counted from 0: mend them, or leave them empty",
					what, rounded, column, k, c.Type, *first)
			}
			if none > 0 {
				b.card.Warnings = append(b.card.Warnings, fmt.Sprintf("%d values of label column %s can't be %s, the type of join key %s, so they match nothing",
					none, column, c.Type, k))
			}
		}
		return nil
	}
	for _, j := range b.jobs {
		if err := check(j.stream, j.entity.JoinKeys); err != nil {
			return err
		}
	}
	for _, o := range b.outcomes {
		if err := check(o.stream, o.stream.Keys()); err != nil {
			return err
		}
	}
	return nil
}

// rounds is the condition that a value of a column, which has a type of DuckDB in the labels, would lose something as a join key.
func rounds(c feature.Column, typ string) sql.Fragment {
	if c.Type.Kind != feature.Int64 || !pointed(typ) {
		return "false"
	}
	column, exact := sql.Ident(c.Name), sql.Fragment("true")
	switch typ { // beyond, these have no neighbours that are 1 apart
	case "DOUBLE":
		exact = column + " BETWEEN -9007199254740991 AND 9007199254740991"
	case "FLOAT":
		exact = column + " BETWEEN -16777215 AND 16777215"
	}
	return sql.Fragment(sql.Render("coalesce(TRY_CAST({column} AS BIGINT) IS NOT NULL AND (TRY_CAST(TRY_CAST({column} AS BIGINT) AS {typ}) <> {column} OR NOT {exact}), false)",
		sql.Args{"column": column, "typ": sql.Fragment(typ), "exact": exact}))
}

// pointed reports whether values of a type of DuckDB may have a point.
func pointed(typ string) bool {
	return typ == "DOUBLE" || typ == "FLOAT" || strings.HasPrefix(typ, "DECIMAL")
}

// pointedText says why numbers of a type of DuckDB can't stand for a join key that is text, "" where they can.
func pointedText(c feature.Column, typ string) string {
	if c.Type.Kind != feature.String || !pointed(typ) || strings.HasSuffix(typ, ",0)") {
		return ""
	}
	return fmt.Sprintf("is %s, and its stream has it as text: 7 would be looked for as 7.0, and match nothing. "+
		"Write the column as text, or as whole numbers; empty values among those make pandas write them with a point", typ)
}
