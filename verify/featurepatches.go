package verify

import (
	"context"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Guards of an entity of a patch stream besides those of its columns, as sql/verify_logged_patches.sql names them.
const (
	newestGuard = ""
	deleteGuard = "_d"
)

// guardSeen is a guard as it was seen, and what the log says of it.
type guardSeen struct {
	order     string             // "" where there was none
	missed    string             // a greater change that moves it and that Redis had taken, "" for none
	found     bool               // the log has such a change of the entity
	moved     bool               // and that moves the guard
	eventTime int64              // of that change, microseconds since 1970 UTC
	values    map[string]*string // by feature that rests on it, what that change makes of it as text; nil for a null
}

// patches recomputes rows of a view over a patch stream: each value is what the change makes that was seen as the guard of its column.
func (c *servedCheck) patches(ctx context.Context, reading *lake.Reading) error {
	moves := []sql.Fragment{"''", "CASE WHEN g.op = 'delete' THEN " + sql.Literal(deleteGuard) + " END"}
	guards := []sql.Fragment{"('', NULL)", "(" + sql.Literal(deleteGuard) + ", NULL)"}
	for _, column := range columnsRead(c.view) {
		moves = append(moves, "CASE WHEN "+carries(c.def, column)+" THEN "+sql.Literal(column)+" END")
		var readers []sql.Fragment
		for _, f := range c.view.Features {
			if f.Column == column {
				readers = append(readers, sql.Literal(f.Name))
			}
		}
		guards = append(guards, "("+sql.Literal(column)+", ["+sql.Join(", ", readers)+"])")
	}
	if err := c.changes(ctx, reading, "list_filter(["+sql.Join(", ", moves)+"], lambda m: m IS NOT NULL) AS loam_moves"); err != nil {
		return err
	}
	features, names := make([]sql.Fragment, len(c.view.Features)), make([]string, len(c.view.Features))
	for i, f := range c.view.Features {
		names[i] = featureColumn(i)
		features[i] = "CASE WHEN loam_guard = " + sql.Literal(f.Column) + " THEN " + sql.Try(f.Expr(), f.Type.SQL()) + " END AS " + sql.Ident(names[i])
	}
	var row loggedRow
	var seen map[string]guardSeen
	last := int64(0) // rows are numbered from 1
	err := c.db.Arrow(ctx, sql.Render(sql.Statement("verify_logged_patches"), sql.Args{
		"guards": sql.Join(", ", guards), "same_key": sameKey(c.def, "l.", "c."), "features": sql.Join(", ", features), "names": sql.Idents("s.", names),
	}), func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			for i := range int(batch.NumRows()) {
				if n := batch.Column(patchedNumber).(*array.Int64).Value(i); n != last {
					if last > 0 {
						c.judgePatches(row, seen)
					}
					row, seen, last = readLogged(batch, i), map[string]guardSeen{}, n
				}
				guard := strings.Clone(batch.Column(patchedGuard).(*array.String).Value(i))
				seen[guard] = c.readGuard(batch, i)
			}
		}
		return nil
	})
	if err == nil && last > 0 {
		c.judgePatches(row, seen)
	}
	return err
}

// Columns of verify_logged_patches after those that readLogged reads; the features follow.
const (
	patchedNumber = iota + loggedStatuses + 1
	patchedGuard
	patchedOrder
	patchedMissed
	patchedMoved
	patchedEventTime
	patchedColumns
)

func (c *servedCheck) readGuard(batch arrow.RecordBatch, row int) guardSeen {
	g := guardSeen{values: map[string]*string{}}
	for column, text := range map[int]*string{patchedOrder: &g.order, patchedMissed: &g.missed} {
		if a := batch.Column(column).(*array.String); a.IsValid(row) {
			*text = strings.Clone(a.Value(row))
		}
	}
	moved := batch.Column(patchedMoved).(*array.Boolean)
	if g.found = moved.IsValid(row); !g.found {
		return g
	}
	g.moved, g.eventTime = moved.Value(row), batch.Column(patchedEventTime).(*array.Int64).Value(row)
	for i, f := range c.view.Features {
		if column := batch.Column(patchedColumns + i); column.IsValid(row) {
			text := valueText(column, row)
			g.values[f.Name] = &text
		}
	}
	return g
}

// judgePatches holds a row against what it should be, by its guards.
func (c *servedCheck) judgePatches(r loggedRow, seen map[string]guardSeen) {
	for _, g := range seen {
		if g.order != "" && !g.found && beyond(g.order, c.next) {
			c.report.NotSettled++
			return
		}
	}
	c.report.Values += int64(len(r.features))
	newest, deleted := seen[newestGuard], seen[deleteGuard]
	// What is too old may have gone with a hash that expired; a hash that is there has all from its newest change on.
	lost := func(g guardSeen) bool {
		return g.missed != "" && !(c.gone(g.missed, r.at) && (newest.order == "" || g.missed < newest.order))
	}
	all := strings.Join(r.features, ", ")
	for i, g := range []guardSeen{newest, deleted} {
		what := []string{"change", "delete"}[i]
		switch {
		case lost(g):
			c.differ(r, len(r.features), "it rests on %s, and Redis had taken %s by then: %s", orderText(what, g.order), g.missed, all)
			return
		case g.order != "" && !g.moved:
			c.differ(r, len(r.features), "it rests on %s, and the log has none such of the entity: %s", orderText(what, g.order), all)
			return
		}
	}
	for i, name := range r.features {
		f := c.view.Features[slices.IndexFunc(c.view.Features, func(f feature.Feature) bool { return f.Name == name })]
		g := seen[f.Column]
		switch on := orderText("change", g.order); {
		case lost(g):
			c.differ(r, 1, "%s rests on %s, and Redis had taken %s by then", name, on, g.missed)
			continue
		case g.order != "" && !g.moved:
			c.differ(r, 1, "%s rests on %s, and the log has none such of the entity that carries %s", name, on, f.Column)
			continue
		case g.order != "" && g.order < deleted.order:
			c.differ(r, 1, "%s rests on %s, which the delete %s has taken away", name, on, deleted.order)
			continue
		}
		at := newest.eventTime
		if g.order != "" {
			at = g.eventTime
		}
		want, status := "", "NOT_FOUND"
		switch value := g.values[name]; {
		case newest.order == "" || newest.order == deleted.order:
		case c.view.TTL > 0 && r.at-at > c.view.TTL.Microseconds():
			status = "OUTSIDE_MAX_AGE"
		case value == nil:
			status = "NULL_VALUE"
		default:
			want, status = *value, "PRESENT"
		}
		c.hold(r, i, status, want)
	}
}

// orderText names what a row rests on, a change or a delete.
func orderText(what, order string) string {
	if order == "" {
		return "no " + what
	}
	return "the " + what + " " + order
}
