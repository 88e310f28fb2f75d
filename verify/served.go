package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// loadWanted fills verify_expected with what is served of every entity, or of some, bucket by bucket.
func (c *onlineCheck) loadWanted(ctx context.Context, reading *lake.Reading, g online.Generation, only []string, offsets lake.Offsets) error {
	at := sides{offsets: offsets, marks: g.Marks, written: map[source]int64{}}
	for p, mark := range g.Marks {
		at.written[sourceOf(p)] = mark
	}
	needed := append(feature.ColumnNames(c.def.Columns), feature.ColEventTime, feature.ColSequence, feature.ColTopic, feature.ColPartition, feature.ColOffset)
	read := append(slices.Clone(needed), feature.ColOp)
	if c.patches() {
		read = append(read, feature.ColPresent)
	}
	if g.AsOf != nil {
		read = append(read, sinceColumns...)
	}
	if err := reading.LogView(ctx, c.db, "verify_log", read, false); err != nil {
		return err
	}
	buckets, condition, err := c.portion(ctx, c.def.Key, only)
	if err != nil {
		return err
	}
	known := func(int, int, func(knownEntity, []any)) error { return nil }
	if g.AsOf != nil {
		if known, err = c.knownSince(ctx, g, condition); err != nil {
			return err
		}
	}
	table, err := newTextRows(ctx, c.db, "verify_expected", c.tableColumns())
	if err != nil {
		return err
	}
	defer table.close()
	statement := sql.Render(sql.Statement("verify_served"), sql.Args{
		"key": sql.Idents("g.", c.def.Key), "columns": sql.Idents("g.", needed), "only": condition,
		"same_key": sameKey(c.def, "o.", "n."), "key_alone": sql.Idents("", c.def.Key),
	})
	if c.patches() {
		statement = c.patchedStatement(condition)
	}
	for bucket := range buckets {
		if err := c.db.Exec(ctx, statement, buckets, bucket); err != nil {
			return err
		}
		at.newer = map[string]bool{}
		err := known(buckets, bucket, func(e knownEntity, _ []any) {
			if e.newer {
				at.newer[e.text] = true
			}
		})
		if err != nil {
			return err
		}
		entities, err := c.expect(ctx, table, at)
		if err != nil {
			return err
		}
		if only == nil {
			c.report.Entities += entities
			c.report.Values += entities * int64(len(c.view.Features))
		}
		if only == nil && c.options.Progress != nil {
			c.options.Progress(bucket+1, buckets)
		}
	}
	return table.flush(ctx)
}

// ask fills verify_asked with the keys of entities, which stand as in Redis' keys. One that is no key of the stream has
// nulls, and no change.
func (c *onlineCheck) ask(ctx context.Context, only []string) error {
	table, err := newTextRows(ctx, c.db, "verify_asked_text", c.joins)
	if err != nil {
		return err
	}
	defer table.close()
	for _, entity := range only {
		for i, value := range splitEntity(entity) {
			if i < len(c.joins) {
				table.set(i, value)
			}
		}
		if err := table.add(ctx); err != nil {
			return err
		}
	}
	if err := table.flush(ctx); err != nil {
		return err
	}
	typed := make([]sql.Fragment, len(c.joins))
	for i, k := range c.joins {
		column, _ := c.def.Column(k)
		typed[i] = "TRY_CAST(" + sql.Ident(k) + " AS " + sql.Fragment(column.Type.SQL()) + ") AS " + sql.Ident(k)
	}
	return c.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE verify_asked AS SELECT {typed} FROM verify_asked_text",
		sql.Args{"typed": sql.Join(", ", typed)}))
}

// portion says in how many buckets of keys the log, as verify_log, is gone through, and which of its rows count: those of all
// entities, or of some.
func (c *onlineCheck) portion(ctx context.Context, key, only []string) (buckets int, condition sql.Fragment, err error) {
	if only != nil {
		if err := c.ask(ctx, only); err != nil {
			return 0, "", err
		}
		return 1, sql.Fragment(sql.Render("({key}) IN (SELECT {asked} FROM verify_asked)", sql.Args{
			"key": sql.Idents("g.", key), "asked": sql.Idents("", key),
		})), nil
	}
	var rows int64
	if err := c.db.QueryRow(ctx, "SELECT count(*) FROM verify_log", nil, &rows); err != nil {
		return 0, "", err
	}
	c.report.Buckets = c.options.bucketsFor(rows)
	return c.report.Buckets, "true", nil
}

// expect writes the entities of verify_served, as Redis should hold them, and gives their number.
func (c *onlineCheck) expect(ctx context.Context, table *textRows, at sides) (int64, error) {
	fixed := []string{feature.ColEventTime, feature.ColTopic, feature.ColPartition, feature.ColOffset, "loam_order", "loam_deleted"}
	items := []sql.Fragment{sql.Idents("", c.joins), sql.Idents("", fixed)}
	if c.patches() {
		items = append(items, c.patchedItems()...)
	} else {
		for i, f := range c.view.Features {
			items = append(items, sql.Try(f.Expr(), f.Type.SQL())+" AS "+sql.Ident(featureColumn(i)))
		}
	}
	var entities int64
	read := func() error {
		return c.db.Arrow(ctx, sql.Render("SELECT {items} FROM verify_served", sql.Args{"items": sql.Join(", ", items)}),
			func(r array.RecordReader) error {
				for r.Next() {
					batch := r.RecordBatch()
					for row := range int(batch.NumRows()) {
						if err := c.expectRow(ctx, table, batch, row, at); err != nil {
							return err
						}
					}
					entities += batch.NumRows()
				}
				return nil
			})
	}
	err := whileReading(ctx, read, table)
	return entities, err
}

// expectRow writes one entity: its join keys, then the columns fixed in expect, then the features.
func (c *onlineCheck) expectRow(ctx context.Context, table *textRows, batch arrow.RecordBatch, row int, at sides) error {
	n := len(c.joins)
	keys := make([]string, n)
	for i := range keys {
		keys[i] = valueText(batch.Column(i), row)
	}
	eventTime := int64(batch.Column(n).(*array.Timestamp).Value(row))
	position := feature.Position{
		Topic:     strings.Clone(batch.Column(n + 1).(*array.String).Value(row)),
		Partition: int32(batch.Column(n + 2).(*array.Int64).Value(row)), Offset: batch.Column(n + 3).(*array.Int64).Value(row),
	}
	entity := joinEntity(c.entity.Name, keys)
	table.set(colEntity, entity)
	if at.newer[entity] {
		table.set(colNewer, "1")
	}
	if c.feast() && !batch.Column(n+5).(*array.Boolean).Value(row) { // a tombstone there is a guard alone
		table.set(colAt, fmt.Sprint(eventTime))
	}
	table.set(colPosition, position.String())
	if c.view.TTL > 0 && !c.feast() && c.report.AsOf == nil && c.report.At.UnixMicro()-eventTime > c.view.TTL.Microseconds() {
		table.set(colOld, "1")
	}
	if c.patches() {
		return c.expectPatched(ctx, table, batch, row, n+6, at)
	}
	table.set(colOrder, valueText(batch.Column(n+4), row))
	if at.behind(position) {
		table.set(colBehind, "1")
	}
	if batch.Column(n + 5).(*array.Boolean).Value(row) {
		table.set(colDeleted, "1")
		return table.add(ctx)
	}
	for i := range c.view.Features {
		if column := batch.Column(n + 6 + i); column.IsValid(row) {
			table.set(colFeatures+i, valueText(column, row))
		}
	}
	return table.add(ctx)
}

// behind reports whether Redis is not written up to the position. A file without a mark is written whole.
func (s sides) behind(p feature.Position) bool {
	mark, marked := s.marks[feature.Partition{Topic: p.Topic, Index: p.Partition}]
	return p.Offset >= mark && (marked || feature.Live(p.Topic))
}

// joinEntity is an entity as it stands in Redis' keys: its name and join keys in braces, with what has a meaning there
// escaped.
func joinEntity(name string, keys []string) string {
	escape := strings.NewReplacer("%", "%25", "|", "%7C", "{", "%7B", "}", "%7D")
	text := "{" + name
	for _, k := range keys {
		text += "|" + escape.Replace(k)
	}
	return text + "}"
}

// splitEntity gives the join keys of an entity as it stands in Redis' keys.
func splitEntity(entity string) []string {
	unescape := strings.NewReplacer("%25", "%", "%7C", "|", "%7B", "{", "%7D", "}")
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(entity, "{"), "}"), "|")[1:]
	for i := range parts {
		parts[i] = unescape.Replace(parts[i])
	}
	return parts
}

// entityText is an entity as findings name it.
func entityText(entity string) string { return strings.Join(splitEntity(entity), keySeparator) }
