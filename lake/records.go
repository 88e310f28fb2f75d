package lake

import (
	"context"
	"errors"
	"fmt"

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

// openRecords opens such a table, and makes it where it is missing.
func (l *Lake) openRecords(ctx context.Context, name string, fields []iceberg.NestedField, partition partitionField) (*recordTable, error) {
	for i := range fields {
		fields[i].ID = i + 1
	}
	t, err := l.openTable(ctx, name)
	if errors.Is(err, ErrNoTable) {
		if err := l.createTable(ctx, name, iceberg.NewSchema(0, fields...), []partitionField{partition}); err != nil {
			return nil, err
		}
		t, err = l.openTable(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	return &recordTable{t}, nil
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

// DeadLetters is the table of refused events. It is not safe for concurrent use.
type DeadLetters struct{ table *recordTable }

// OpenDeadLetters opens the table, and makes it where it is missing.
func (l *Lake) OpenDeadLetters(ctx context.Context) (*DeadLetters, error) {
	text, number := iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Int64
	t, err := l.openRecords(ctx, DeadLettersName, []iceberg.NestedField{
		{Name: "stream", Type: text}, {Name: "reason", Type: text}, {Name: "detail", Type: text},
		{Name: feature.ColTopic, Type: text}, {Name: feature.ColPartition, Type: number}, {Name: feature.ColOffset, Type: number},
		{Name: "record_key", Type: iceberg.PrimitiveTypes.Binary}, {Name: "body", Type: iceberg.PrimitiveTypes.Binary},
		{Name: feature.ColRecordedAt, Type: iceberg.PrimitiveTypes.TimestampTz}, {Name: feature.ColJobID, Type: text},
	}, partitionField{column: feature.ColRecordedAt, transform: iceberg.DayTransform{}, name: "recorded_day"})
	if err != nil {
		return nil, err
	}
	return &DeadLetters{t}, nil
}

// Offsets is where the table stands: beyond it no partition has dead letters.
func (d *DeadLetters) Offsets() (Offsets, error) { return d.table.Offsets() }

// Commit writes the letters that the table does not have, by position, and moves its offsets to the ends of the spans.
// It must come before the commits of the streams that the spans belong to, and hold the letters of all of them. Letters
// of no stream are counted here, as read and refused; the others are in their streams' counts.
func (d *DeadLetters) Commit(ctx context.Context, letters []feature.DeadLetter, spans []feature.Span, jobID string) error {
	err := d.table.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		byDay := map[iceberg.Date][]feature.DeadLetter{}
		strays := map[feature.Partition]int64{}
		for _, l := range letters {
			p := feature.Partition{Topic: l.Topic, Index: l.Partition}
			if at, _ := offsets.Of(p); l.Offset < at.Next {
				continue
			}
			byDay[dayOf(l.RecordedAt)] = append(byDay[dayOf(l.RecordedAt)], l)
			if l.Stream == "" {
				strays[p]++
			}
		}
		moved := map[feature.Partition]feature.Span{}
		for _, s := range spans {
			at, _ := offsets.Of(s.Partition)
			if at.Next > s.To || (at.Next == s.To && !s.Done) {
				continue
			}
			if m, ok := moved[s.Partition]; !ok || s.To > m.To || s.Done {
				s.From = at.Next
				s.Counts = feature.Counts{Read: strays[s.Partition], Refused: strays[s.Partition]}
				moved[s.Partition] = s
			}
		}
		if len(moved) == 0 {
			return errNothing
		}
		var files []iceberg.DataFile
		for day, some := range byDay {
			file, err := d.table.write(ctx, day, func(b *array.RecordBuilder) { fillLetters(b, some, jobID) })
			if err != nil {
				return err
			}
			files = append(files, file)
		}
		move := make([]feature.Span, 0, len(moved))
		for _, s := range moved {
			move = append(move, s)
		}
		props, err := offsets.move(move, summary[summaryCommit])
		if err != nil {
			return err
		}
		summary[summaryOffsets] = offsetsSummary(move)
		if len(files) > 0 {
			if err := tx.NewRowDelta(summary).AddRows(files...).Commit(ctx); err != nil {
				return err
			}
		}
		return tx.SetProperties(props)
	})
	if err != nil {
		return err
	}
	return d.table.upkeep(ctx)
}

func fillLetters(b *array.RecordBuilder, letters []feature.DeadLetter, jobID string) {
	for _, l := range letters {
		texts(b, l.Stream, string(l.Reason), l.Detail, l.Topic)
		b.Field(4).(*array.Int64Builder).Append(int64(l.Partition))
		b.Field(5).(*array.Int64Builder).Append(l.Offset)
		binary := func(i int, v []byte) {
			if v == nil {
				b.Field(i).AppendNull()
			} else {
				b.Field(i).(*array.BinaryBuilder).Append(v)
			}
		}
		binary(6, l.RecordKey)
		binary(7, l.Body)
		moment(b, 8, l.RecordedAt)
		b.Field(9).(*array.StringBuilder).Append(jobID)
	}
}

// Each calls yield with the dead letters for which the condition holds, the newest first, at most limit of them.
func (d *DeadLetters) Each(ctx context.Context, db *sql.DB, condition sql.Fragment, limit int, yield func(feature.DeadLetter) error) error {
	relation, err := d.table.Scan(ctx, ScanOptions{})
	if err != nil {
		return err
	}
	if err := db.LakeView(ctx, DeadLettersName, relation, false); err != nil {
		return err
	}
	rows, err := db.Query(ctx, sql.Render(`SELECT stream, reason, detail, topic, "partition", "offset", record_key, body, epoch_us(recorded_at)
FROM dead_letters WHERE {condition} ORDER BY recorded_at DESC, topic, "partition", "offset" LIMIT {limit}`,
		sql.Args{"condition": condition, "limit": sql.Fragment(fmt.Sprint(limit))}))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var l feature.DeadLetter
		if err := rows.Scan(&l.Stream, &l.Reason, &l.Detail, &l.Topic, &l.Partition, &l.Offset, &l.RecordKey, &l.Body, &l.RecordedAt); err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		if err := yield(l); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	return nil
}

// View makes a view of the table under its own name.
func (d *DeadLetters) View(ctx context.Context, db *sql.DB) error {
	relation, err := d.table.Scan(ctx, ScanOptions{})
	if err != nil {
		return err
	}
	return db.LakeView(ctx, DeadLettersName, relation, false)
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

// Tag names a snapshot of the table, so that it is never expired. A tag of that name moves.
func (t *Table) Tag(ctx context.Context, name string, snapshotID int64) error {
	if err := t.updateRefs(ctx, table.NewSetSnapshotRefUpdate(name, snapshotID, table.TagRef, 0, 0, 0)); err != nil {
		return fmt.Errorf("tag snapshot %d of %s: %w", snapshotID, t.Name(), err)
	}
	return nil
}

// Untag removes a tag.
func (t *Table) Untag(ctx context.Context, name string) error {
	if err := t.updateRefs(ctx, table.NewRemoveSnapshotRefUpdate(name)); err != nil {
		return fmt.Errorf("remove tag %s of %s: %w", name, t.Name(), err)
	}
	return nil
}

// updateRefs commits a change of references, again when another writer was faster.
func (t *Table) updateRefs(ctx context.Context, update table.Update) error {
	for attempt := 1; ; attempt++ {
		_, _, err := t.lake.catalog.CommitTable(ctx, t.ident,
			[]table.Requirement{table.AssertTableUUID(t.tbl.Metadata().TableUUID())}, []table.Update{update})
		if err == nil || !isConflict(err) || attempt == commitAttemptsMax {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}
