package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// patches reports whether the view is over the state of a patch stream: then each column that it reads has a guard of its own.
func (c *onlineCheck) patches() bool {
	return c.def.Payload == feature.PatchPayload && !c.view.Windowed()
}

// guarded are the columns that the features of a view over a patch stream read.
func (c *onlineCheck) guarded() []string {
	if !c.patches() {
		return nil
	}
	return columnsRead(c.view)
}

// columnsRead are the columns that the features of a view over a patch stream read, each once.
func columnsRead(view *feature.View) []string {
	var columns []string
	for _, f := range view.Features {
		if !slices.Contains(columns, f.Column) {
			columns = append(columns, f.Column)
		}
	}
	return columns
}

func guardColumn(i int) string { return fmt.Sprintf("loam_guard_%d", i) }

// guardOf is the number of the column that a feature reads, in guarded.
func (c *onlineCheck) guardOf(f feature.Feature) int { return slices.Index(c.guarded(), f.Column) }

// colGuards is where the guards begin in the tables that are compared.
func (c *onlineCheck) colGuards() int { return colFeatures + len(c.view.Features) }

// patchedStatement fills verify_served from a patch stream's log.
func (c *onlineCheck) patchedStatement(only sql.Fragment) string {
	var columns sql.Fragment
	var carried, items []sql.Fragment
	for i, column := range c.guarded() {
		args := sql.Args{
			"column": sql.Ident(column), "guard": sql.Ident(guardColumn(i)),
			"carried": sql.Ident(fmt.Sprintf("loam_carried_%d", i)),
		}
		carried = append(carried, carries(c.def, column)+sql.Fragment(sql.Render(" AS {carried}", args)))
		last := func(value, of string) sql.Fragment {
			return sql.Fragment(sql.Render("(last_value(CASE WHEN {carried} AND loam_order > coalesce(loam_delete, '') THEN "+value+
				" END IGNORE NULLS) OVER so_far)"+of, args))
		}
		items = append(items, last("loam_order", " AS {guard}"))
		if !slices.Contains(c.def.Key, column) {
			columns += sql.Fragment(sql.Render(", g.{column}", args))
			items = append(items, last("struct_pack(v := {column})", ".v AS {column}")) // a struct tells a null that was carried
		}
	}
	return sql.Render(sql.Statement("verify_served_patches"), sql.Args{
		"key": sql.Idents("g.", c.def.Key), "key_alone": sql.Idents("", c.def.Key), "columns": columns, "only": only,
		"carried": sql.Join(", ", carried), "items": sql.Join(", ", items),
	})
}

// carries says whether a change g of a patch stream's log carries a column.
func carries(def *feature.Stream, column string) sql.Fragment {
	if slices.Contains(def.Key, column) { // every upsert carries it
		return "g.op <> 'delete'"
	}
	return "g.op <> 'delete' AND (g.present IS NULL OR list_contains(g.present, " + sql.Literal(column) + "))"
}

// patchedItems are the features and then the guards, from verify_served.
func (c *onlineCheck) patchedItems() []sql.Fragment {
	var items []sql.Fragment
	for i, f := range c.view.Features {
		items = append(items, sql.Fragment(sql.Render("CASE WHEN {guard} IS NOT NULL THEN {value} END AS {feature}", sql.Args{
			"guard": sql.Ident(guardColumn(c.guardOf(f))), "value": sql.Try(f.Expr(), f.Type.SQL()), "feature": sql.Ident(featureColumn(i)),
		})))
	}
	for i := range c.guarded() {
		items = append(items, sql.Ident(guardColumn(i)))
	}
	return items
}

// expectPatched writes what is left of an entity's row: the columns of patchedItems, from first on, and the last delete.
func (c *onlineCheck) expectPatched(ctx context.Context, table *textRows, batch arrow.RecordBatch, row, first int, at sides) error {
	behind := false
	order := func(from, to int) {
		column := batch.Column(from).(*array.String)
		if column.IsValid(row) {
			table.set(to, column.Value(row))
			behind = behind || at.behindOrder(column.Value(row))
		}
	}
	for i := range c.view.Features {
		if column := batch.Column(first + i); column.IsValid(row) {
			table.set(colFeatures+i, valueText(column, row))
		}
	}
	for i := range c.guarded() {
		order(first+len(c.view.Features)+i, c.colGuards()+i)
	}
	order(first-1, colDeleted)
	order(first-2, colOrder)
	if behind {
		table.set(colBehind, "1")
	}
	return table.add(ctx)
}

// behindOrder reports whether Redis is not written up to the change of that order.
func (s sides) behindOrder(text string) bool {
	o, err := feature.ParseOrder(text)
	if err != nil {
		panic(err) // the statement put it together
	}
	mark, marked := s.written[source{o.Live, o.TopicHash, o.Partition}]
	return o.Offset >= mark && (marked || o.Live)
}

// guards reports whether a field of a hash is an order: all of them tell which changes Redis has taken.
func (c *onlineCheck) guards(field string) bool {
	return field == online.FieldOrder || c.patches() && (field == online.FieldDeleted || strings.HasPrefix(field, online.FieldGuard))
}

// fresh is a column of one side, null where its guard is older than the time to live: what is too old may have gone with
// a hash that expired, and come back with a late change. Nobody is served it.
func (c *onlineCheck) fresh(side sql.Fragment, column, guard string) sql.Fragment {
	if !c.patches() || c.view.TTL == 0 {
		return side + sql.Ident(column)
	}
	oldest := feature.Order{EventTime: c.report.At.UnixMicro() - c.view.TTL.Microseconds()}.String()[:feature.OrderTimeDigits]
	return sql.Fragment(sql.Render("CASE WHEN length({guard}) >= {digits} AND left({guard}, {time}) < {oldest} THEN NULL ELSE {column} END", sql.Args{
		"guard": side + sql.Ident(guard), "column": side + sql.Ident(column), "oldest": sql.Literal(oldest),
		"digits": sql.Fragment(fmt.Sprint(feature.OrderDigits)), "time": sql.Fragment(fmt.Sprint(feature.OrderTimeDigits)),
	}))
}
