package verify

import (
	"context"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// loadWanted fills verify_wanted and verify_wanted_entities with what the log's events make, bucket by bucket.
func (c *tileCheck) loadWanted(ctx context.Context, reading *lake.Reading, g online.Generation, only []string, _ lake.Offsets) error {
	read := append(feature.ColumnNames(c.def.Columns), feature.ColEventTime, feature.ColSequence, feature.ColTopic, feature.ColPartition,
		feature.ColOffset, feature.ColJobID)
	if err := reading.LogView(ctx, c.db, "verify_log", read, false); err != nil {
		return err
	}
	if err := c.otherRows(ctx, g); err != nil {
		return err
	}
	if err := c.loadPartitions(ctx, g); err != nil {
		return err
	}
	buckets, condition, err := c.portion(ctx, c.joins, only)
	if err != nil {
		return err
	}
	w := wantedTiles{tileCheck: c, first: only == nil}
	if w.parts, err = newTextRows(ctx, c.db, "verify_wanted", wantedColumns); err != nil {
		return err
	}
	defer w.parts.close()
	if w.entities, err = newTextRows(ctx, c.db, "verify_wanted_entities", []string{"loam_entity", "needed", "unsettled"}); err != nil {
		return err
	}
	defer w.entities.close()
	var known []sql.Fragment
	for _, k := range c.joins {
		known = append(known, "g."+sql.Ident(k)+" IS NOT NULL")
	}
	statement := sql.Render(sql.Statement("verify_tile_events"), sql.Args{
		"key": sql.Idents("g.", c.joins), "known": sql.Join(" AND ", known), "only": condition, "items": w.items(),
	})
	for bucket := range buckets {
		if err := c.db.Exec(ctx, statement, buckets, bucket); err != nil {
			return err
		}
		if err := w.want(ctx); err != nil {
			return err
		}
		if only == nil && c.options.Progress != nil {
			c.options.Progress(bucket+1, buckets)
		}
	}
	if err := w.parts.flush(ctx); err != nil {
		return err
	}
	return w.entities.flush(ctx)
}

// loadPartitions fills verify_partitions with the base and the marks of a generation.
func (c *onlineCheck) loadPartitions(ctx context.Context, g online.Generation) error {
	table, err := newTextRows(ctx, c.db, "verify_partitions", []string{"topic", "partition", "base", "mark"})
	if err != nil {
		return err
	}
	defer table.close()
	for p, mark := range g.Marks {
		base := g.Base[fmt.Sprintf("%s:%d", p.Topic, p.Index)]
		if err := addRow(ctx, table, p.Topic, strconv.Itoa(int(p.Index)), strconv.FormatInt(base, 10), strconv.FormatInt(mark, 10)); err != nil {
			return err
		}
	}
	return table.flush(ctx)
}

// wantedTiles makes of events what Redis should hold.
type wantedTiles struct {
	*tileCheck
	parts, entities *textRows
	first           bool // all entities, which are counted
}

func valueItem(a int) string { return fmt.Sprintf("loam_value_%d", a) }

// items are the column of each aggregate, null where the event is not for it; of one without a column true.
func (w *wantedTiles) items() sql.Fragment {
	var out sql.Fragment
	for i, a := range w.view.Aggregates {
		value := sql.Fragment("true")
		if a.Column != "" {
			value = "g." + sql.Ident(a.Column)
		}
		if a.Where != "" {
			value = "CASE WHEN " + sql.Try(a.Where, "BOOLEAN") + " THEN " + value + " END"
		}
		out += ", " + value + " AS " + sql.Ident(valueItem(i))
	}
	return out
}

// want writes the entities of verify_tile_events as Redis should hold them.
func (w *wantedTiles) want(ctx context.Context) error {
	if err := w.wantEntities(ctx); err != nil {
		return err
	}
	for l := range w.levels {
		if err := w.wantTiles(ctx, l); err != nil {
			return err
		}
	}
	for s := range w.sets {
		if err := w.wantValues(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// each runs a statement over verify_tile_events whose first columns are the join keys, and hands over each row with its entity
// and where the columns behind them begin.
func (w *wantedTiles) each(ctx context.Context, items sql.Fragment, where, group string, use func(entity string, b arrow.RecordBatch, first, row int) error) error {
	n := len(w.joins)
	statement := sql.Render("SELECT {key}, {items} FROM verify_tile_events WHERE {where} GROUP BY {key} {group}", sql.Args{
		"key": sql.Idents("", w.joins), "items": items, "where": sql.Fragment(where), "group": sql.Fragment(group),
	})
	read := func() error {
		return w.db.Arrow(ctx, statement, func(r array.RecordReader) error {
			for r.Next() {
				batch := r.RecordBatch()
				for row := range int(batch.NumRows()) {
					keys := make([]string, n)
					for i := range keys {
						keys[i] = valueText(batch.Column(i), row)
					}
					if err := use(joinEntity(w.entity.Name, keys), batch, n, row); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return whileReading(ctx, read, w.parts, w.entities)
}

// whole is a value of a column of whole numbers, and "" where it is null.
func whole(column arrow.Array, row int) string {
	if column.IsNull(row) {
		return ""
	}
	return valueText(column, row)
}

func (w *wantedTiles) wantEntities(ctx context.Context) error {
	needed := fmt.Sprintf("loam_at >= %d", w.oldest())
	items := sql.Fragment("max(loam_at), count(*) FILTER (" + needed + "), bool_or(loam_other), bool_or(loam_behind)")
	entities := int64(0)
	err := w.each(ctx, items, "true", "", func(entity string, b arrow.RecordBatch, first, row int) error {
		entities++
		flag := func(column int) bool { return b.Column(first + column).(*array.Boolean).Value(row) }
		open := ""
		if flag(2) && w.lacks || flag(3) {
			open = "1"
		}
		if b.Column(first+1).(*array.Int64).Value(row) == 0 {
			return addRow(ctx, w.entities, entity, "", open)
		}
		if err := addRow(ctx, w.entities, entity, "1", open); err != nil {
			return err
		}
		return addRow(ctx, w.parts, entity, "newest", "its newest event time", "", whole(b.Column(first), row))
	})
	if err != nil {
		return err
	}
	if w.first {
		w.report.Entities += entities
		w.report.Values += entities * int64(len(w.view.FeatureNames()))
	}
	items = sql.Fragment("loam_source, max(loam_offset) FILTER (NOT loam_other AND " + needed + ") + 1, max(loam_offset) + 1")
	return w.each(ctx, items, "loam_live", ", loam_source", func(entity string, b arrow.RecordBatch, first, row int) error {
		return addRow(ctx, w.parts, entity, "guard", valueText(b.Column(first), row), whole(b.Column(first+1), row), whole(b.Column(first+2), row))
	})
}

// wantTiles writes the tiles of a level.
func (w *wantedTiles) wantTiles(ctx context.Context, l int) error {
	level := w.levels[l]
	begins := hopOf(level.hop)
	items := []sql.Fragment{begins}
	for _, a := range level.aggregates {
		items = append(items, w.aggregateItems(a)...)
	}
	where := fmt.Sprintf("loam_at >= %d", w.from(level.window, level.hop))
	return w.each(ctx, sql.Join(", ", items), where, ", "+string(begins), func(entity string, b arrow.RecordBatch, first, row int) error {
		at := b.Column(first).(*array.Int64).Value(row)
		var parts, sums, sizes []string
		column := first + 1
		for _, a := range level.aggregates {
			read := func(n int) arrow.Array { return b.Column(column + n) }
			n := len(w.aggregateItems(a))
			if text, sum, size := w.part(a, read, row); text != "" {
				parts = append(parts, w.view.Aggregates[a].Name+" "+text)
				if sum != "" {
					sums, sizes = append(sums, sum), append(sizes, size)
				}
			}
			column += n
		}
		if parts == nil {
			return nil
		}
		return addRow(ctx, w.parts, entity, "tile", w.tileName(l, at), "", strings.Join(parts, "; "), strings.Join(sums, ","), strings.Join(sizes, ","))
	})
}

// hopOf is when the hop begins that holds an event, in microseconds since 1970.
func hopOf(hop int64) sql.Fragment {
	return sql.Fragment(fmt.Sprintf("loam_at - ((loam_at %% %d) + %d) %% %d", hop, hop, hop))
}

// aggregateItems are what is asked of the events of a tile for an aggregate; part reads it.
func (w *wantedTiles) aggregateItems(a int) []sql.Fragment {
	v, of := sql.Ident(valueItem(a)), w.typeOf(a)
	filter := " FILTER (" + v + " IS NOT NULL)"
	count := "count(" + v + ")"
	switch fn := w.view.Aggregates[a].Fn; fn {
	case feature.Count:
		return []sql.Fragment{count}
	case feature.Sum, feature.Avg:
		if of.Kind == feature.Double {
			return []sql.Fragment{count, "sum(" + v + ")", "sum(abs(" + v + "))"}
		}
		// In two halves, for a sum of decimals may be greater than any number of DuckDB.
		digits := "replace(" + v + "::VARCHAR, '.', '')::HUGEINT"
		return []sql.Fragment{count, "sum(" + digits + " // 10000000000000000000::HUGEINT)::VARCHAR", "sum(" + digits + " % 10000000000000000000::HUGEINT)::VARCHAR"}
	case feature.First, feature.Last:
		best := map[feature.Fn]sql.Fragment{feature.First: "min", feature.Last: "max"}[fn]
		return []sql.Fragment{"arg_" + best + "(" + v + ", loam_order)" + filter, best + "(loam_order)" + filter}
	default:
		best := map[feature.Fn]sql.Fragment{feature.Min: "min", feature.Max: "max"}[fn]
		if of.Kind == feature.Double { // of the zeros the negative is lower
			return []sql.Fragment{"arg_" + best + "(" + v + ", {v: " + v + ", s: NOT signbit(" + v + ")})" + filter}
		}
		return []sql.Fragment{best + "(" + v + ")" + filter}
	}
}

// part is what an aggregate has of a tile, "" for nothing, as parsePart writes it.
func (w *wantedTiles) part(a int, column func(int) arrow.Array, row int) (text, sum, size string) {
	switch fn := w.view.Aggregates[a].Fn; fn {
	case feature.Count, feature.Sum, feature.Avg:
		text = valueText(column(0), row)
		switch {
		case text == "0":
			return "", "", ""
		case fn == feature.Count:
		case w.typeOf(a).Kind == feature.Double:
			sum, size = valueText(column(1), row), valueText(column(2), row)
		default:
			high, _ := new(big.Int).SetString(valueText(column(1), row), 10)
			low, _ := new(big.Int).SetString(valueText(column(2), row), 10)
			text += " make " + high.Mul(high, big.NewInt(1e18)).Mul(high, big.NewInt(10)).Add(high, low).String()
		}
	default:
		if column(0).IsNull(row) {
			return "", "", ""
		}
		text = valueText(column(0), row)
		if text == "" {
			text = "''"
		}
		if fn == feature.First || fn == feature.Last {
			text += " at " + valueText(column(1), row)
		}
	}
	return text, sum, size
}

// wantValues writes the values of a distinct, each with the newest hop that has it.
func (w *wantedTiles) wantValues(ctx context.Context, s int) error {
	set := w.sets[s]
	v := sql.Ident(valueItem(set.aggregate))
	value := v
	if w.typeOf(set.aggregate).Kind == feature.Double { // both zeros count as one, and all NaNs
		value = "CASE WHEN " + v + " = 0 THEN 0.0::DOUBLE ELSE " + v + " END"
	}
	where := fmt.Sprintf("%s IS NOT NULL AND loam_at >= %d", v, w.from(set.window, set.tail))
	items := sql.Join(", ", []sql.Fragment{value, "max(" + hopOf(set.hop) + ")"})
	return w.each(ctx, items, where, ", "+string(value), func(entity string, b arrow.RecordBatch, first, row int) error {
		begins := b.Column(first + 1).(*array.Int64).Value(row)
		return addRow(ctx, w.parts, entity, "set", w.setName(s), "", setValue(valueText(b.Column(first), row), begins))
	})
}
