package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Names of the tables that hold no stream.
const (
	DeadLettersName = "dead_letters"
	DefinitionsName = "definitions"
	DatasetsName    = "datasets"
)

// recordTable is an append-only table of records, partitioned by day or month of one of its columns.
type recordTable struct {
	*Table
}

// openRecords opens such a table, makes it where it is missing, and adds the fields that it lacks.
func (l *Lake) openRecords(ctx context.Context, name string, fields []iceberg.NestedField, partition partitionField) (*recordTable, error) {
	nested := len(fields)
	for i := range fields {
		fields[i].ID = i + 1
		if list, ok := fields[i].Type.(*iceberg.ListType); ok {
			nested++
			list.ElementID = nested
		}
	}
	t, err := l.openTable(ctx, name)
	if errors.Is(err, ErrNoTable) {
		if err := l.createTable(ctx, name, iceberg.NewSchema(0, fields...), []partitionField{partition}, nil); err != nil {
			return nil, err
		}
		t, err = l.openTable(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	records := &recordTable{t}
	return records, records.complete(ctx, fields)
}

// complete adds the fields that a table lacks, which an older loam has made.
func (t *recordTable) complete(ctx context.Context, fields []iceberg.NestedField) error {
	lacks := func(schema *iceberg.Schema) []iceberg.NestedField {
		return slices.DeleteFunc(slices.Clone(fields), func(f iceberg.NestedField) bool { _, ok := schema.FindFieldByName(f.Name); return ok })
	}
	if len(lacks(t.tbl.Schema())) == 0 {
		return nil
	}
	return t.commit(ctx, func(_ context.Context, base *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		missing := lacks(base.Schema())
		if len(missing) == 0 {
			return errNothing
		}
		update := tx.UpdateSchema(true, false)
		for _, f := range missing {
			update.AddColumn([]string{f.Name}, f.Type, "", false, nil)
		}
		return update.Commit()
	})
}

// write writes rows, made by fill, as a data file of the partition.
func (t *recordTable) write(ctx context.Context, partition any, fill func(b *array.RecordBuilder)) (iceberg.DataFile, error) {
	w, err := t.fileWriter(ctx)
	if err != nil {
		return nil, err
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, w.schema)
	defer b.Release()
	fill(b)
	batch := b.NewRecordBatch()
	defer batch.Release()
	return w.write([]any{partition}, batch)
}

// appendRows writes rows and commits them.
func (t *recordTable) appendRows(ctx context.Context, partition any, fill func(b *array.RecordBuilder)) error {
	var file iceberg.DataFile
	return t.commit(ctx, func(ctx context.Context, _ *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if file == nil {
			var err error
			if file, err = t.write(ctx, partition, fill); err != nil {
				return err
			}
		}
		return tx.NewRowDelta(summary).AddRows(file).Commit(ctx)
	})
}

// Days and months since 1970, as Iceberg's transforms give them.
func dayOf(us int64) iceberg.Date { return iceberg.Date(floorDiv(us, 86_400_000_000)) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func texts(b *array.RecordBuilder, values ...string) {
	for i, v := range values {
		b.Field(i).(*array.StringBuilder).Append(v)
	}
}

func moment(b *array.RecordBuilder, i int, us int64) {
	b.Field(i).(*array.TimestampBuilder).Append(arrow.Timestamp(us))
}

// Definitions is the table of applied definitions.
type Definitions struct{ table *recordTable }

// OpenDefinitions opens the table, and makes it where it is missing.
func (l *Lake) OpenDefinitions(ctx context.Context) (*Definitions, error) {
	text := iceberg.PrimitiveTypes.String
	t, err := l.openRecords(ctx, DefinitionsName, []iceberg.NestedField{
		{Name: "kind", Type: text}, {Name: "name", Type: text}, {Name: "action", Type: text}, {Name: "hash", Type: text}, {Name: "text", Type: text},
		{Name: "applied_at", Type: iceberg.PrimitiveTypes.TimestampTz}, {Name: "revision", Type: iceberg.PrimitiveTypes.Int64},
	}, partitionField{column: "applied_at", transform: iceberg.DayTransform{}, name: "applied_day"})
	if err != nil {
		return nil, err
	}
	return &Definitions{t}, nil
}

// Applied gives the definitions that are in force, and the revision they came to be with, 0 where none is.
func (d *Definitions) Applied(ctx context.Context, db *sql.DB) ([]feature.Definition, int64, error) {
	if err := d.table.Refresh(ctx); err != nil {
		return nil, 0, err
	}
	relation, err := d.table.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, 0, err
	}
	if err := db.LakeView(ctx, DefinitionsName, relation, false); err != nil {
		return nil, 0, err
	}
	rows, err := db.Query(ctx, `SELECT kind, name, action, hash, text, revision FROM definitions
QUALIFY row_number() OVER (PARTITION BY kind, name ORDER BY revision DESC) = 1 ORDER BY kind, name`)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	var all []feature.Definition
	var newest int64
	for rows.Next() {
		var f feature.Definition
		var action string
		var revision int64
		if err := rows.Scan(&f.Kind, &f.Name, &action, &f.Hash, &f.Text, &revision); err != nil {
			return nil, 0, fmt.Errorf("read applied definitions: %w", err)
		}
		newest = max(newest, revision)
		if feature.Action(action) != feature.RemoveAction {
			all = append(all, f)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("read applied definitions: %w", err)
	}
	return all, newest, nil
}

// Changed reports whether anything was applied since it, or [Definitions.Applied], was called last.
func (d *Definitions) Changed(ctx context.Context) (bool, error) {
	was := d.table.SnapshotID()
	err := d.table.Refresh(ctx)
	return err == nil && d.table.SnapshotID() != was, err
}

// Apply records what a plan has changed, at now, microseconds since 1970 UTC, as a new revision.
func (d *Definitions) Apply(ctx context.Context, changes []feature.Change, wanted []feature.Definition, revision, now int64) error {
	return d.table.appendRows(ctx, dayOf(now), func(b *array.RecordBuilder) {
		for _, c := range changes {
			f := feature.Definition{Kind: c.Kind, Name: c.Name}
			for _, w := range wanted {
				if w.Kind == c.Kind && w.Name == c.Name {
					f = w
				}
			}
			texts(b, string(f.Kind), f.Name, string(c.Action), f.Hash, f.Text)
			moment(b, 5, now)
			b.Field(6).(*array.Int64Builder).Append(revision)
		}
	})
}

// AppendCard keeps the card of a training set, made at now, microseconds since 1970 UTC.
func (l *Lake) AppendCard(ctx context.Context, name, out, card string, now int64) error {
	text := iceberg.PrimitiveTypes.String
	t, err := l.openRecords(ctx, DatasetsName, []iceberg.NestedField{
		{Name: "name", Type: text}, {Name: "out", Type: text}, {Name: "card", Type: text}, {Name: "created_at", Type: iceberg.PrimitiveTypes.TimestampTz},
	}, partitionField{column: "created_at", transform: iceberg.DayTransform{}, name: "created_day"})
	if err != nil {
		return err
	}
	return t.appendRows(ctx, dayOf(now), func(b *array.RecordBuilder) {
		texts(b, name, out, card)
		moment(b, 3, now)
	})
}

// KeptCard is the card of a training set as the lake keeps it.
type KeptCard struct {
	Name, Out string
	Card      string // JSON
	CreatedAt int64  // microseconds since 1970 UTC
}

// Cards are the cards of all training sets, the newest first.
func (l *Lake) Cards(ctx context.Context, db *sql.DB) ([]KeptCard, error) {
	t, err := l.openTable(ctx, DatasetsName)
	if errors.Is(err, ErrNoTable) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	relation, err := t.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	if err := db.LakeView(ctx, DatasetsName, relation, false); err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, "SELECT name, out, card, epoch_us(created_at) FROM datasets ORDER BY created_at DESC, out")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []KeptCard
	for rows.Next() {
		var c KeptCard
		if err := rows.Scan(&c.Name, &c.Out, &c.Card, &c.CreatedAt); err != nil {
			return nil, fmt.Errorf("read the cards of training sets: %w", err)
		}
		all = append(all, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the cards of training sets: %w", err)
	}
	return all, nil
}

// Tag names a snapshot of the table, so that it is never expired. A tag of that name moves.
func (t *Table) Tag(ctx context.Context, name string, snapshotID int64) error {
	if err := t.update(ctx, table.NewSetSnapshotRefUpdate(name, snapshotID, table.TagRef, 0, 0, 0)); err != nil {
		return fmt.Errorf("tag snapshot %d of %s: %w", snapshotID, t.Name(), err)
	}
	return nil
}

// Untag removes a tag.
func (t *Table) Untag(ctx context.Context, name string) error {
	if err := t.update(ctx, table.NewRemoveSnapshotRefUpdate(name)); err != nil {
		return fmt.Errorf("remove tag %s of %s: %w", name, t.Name(), err)
	}
	return nil
}

// update commits a change of references or properties that rests on nothing else, again when another writer was faster.
func (t *Table) update(ctx context.Context, change table.Update) error {
	for attempt := 1; ; attempt++ {
		_, _, err := t.lake.catalog.CommitTable(ctx, t.ident,
			[]table.Requirement{table.AssertTableUUID(t.tbl.Metadata().TableUUID())}, []table.Update{change})
		if err == nil || !isConflict(err) || attempt == commitAttemptsMax {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}
