package lake

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/sql"
)

// DeadLetters is the table of refused events. It is not safe for concurrent use.
type DeadLetters struct{ table *recordTable }

// OpenDeadLetters opens the table, and makes it where it is missing.
func (l *Lake) OpenDeadLetters(ctx context.Context) (*DeadLetters, error) {
	text, number, binary := iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Int64, iceberg.PrimitiveTypes.Binary
	at, yes := iceberg.PrimitiveTypes.TimestampTz, iceberg.PrimitiveTypes.Bool
	t, err := l.openRecords(ctx, DeadLettersName, []iceberg.NestedField{
		{Name: "stream", Type: text}, {Name: "reason", Type: text}, {Name: "detail", Type: text},
		{Name: feature.ColTopic, Type: text}, {Name: feature.ColPartition, Type: number}, {Name: feature.ColOffset, Type: number},
		{Name: "record_key", Type: binary}, {Name: "body", Type: binary}, {Name: feature.ColRecordedAt, Type: at}, {Name: feature.ColJobID, Type: text},
		{Name: "header_keys", Type: &iceberg.ListType{Element: text}}, {Name: "header_values", Type: &iceberg.ListType{Element: binary}},
		{Name: "record_time", Type: at}, {Name: "text_values", Type: yes},
		{Name: "outcome", Type: text}, {Name: "redriven_to", Type: text}, {Name: "redriven_at", Type: at}, {Name: "redriven_by", Type: text},
		{Name: "redrive_job", Type: text}, {Name: "repaired", Type: yes},
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
			l.JobID = jobID
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
			file, err := d.table.write(ctx, day, func(b *array.RecordBuilder) { fillLetters(b, some) })
			if err != nil {
				return err
			}
			files = append(files, file)
		}
		step.At(step.LettersWritten)
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
	step.At(step.LettersCommitted)
	return d.table.upkeep(ctx)
}

// fillLetters appends letters in the table's columns.
func fillLetters(b *array.RecordBuilder, letters []feature.DeadLetter) {
	field := func(name string) array.Builder { return b.Field(b.Schema().FieldIndices(name)[0]) }
	text := func(name, v string) { field(name).(*array.StringBuilder).Append(v) }
	number := func(name string, v int64) { field(name).(*array.Int64Builder).Append(v) }
	binary := func(name string, v []byte) {
		if v == nil {
			field(name).AppendNull()
			return
		}
		field(name).(*array.BinaryBuilder).Append(v)
	}
	at := func(name string, us int64) {
		if us == 0 {
			field(name).AppendNull()
			return
		}
		field(name).(*array.TimestampBuilder).Append(arrow.Timestamp(us))
	}
	for _, l := range letters {
		text("stream", l.Stream)
		text("reason", string(l.Reason))
		text("detail", l.Detail)
		text(feature.ColTopic, l.Topic)
		number(feature.ColPartition, int64(l.Partition))
		number(feature.ColOffset, l.Offset)
		binary("record_key", l.RecordKey)
		binary("body", l.Body)
		field(feature.ColRecordedAt).(*array.TimestampBuilder).Append(arrow.Timestamp(l.RecordedAt))
		text(feature.ColJobID, l.JobID)
		keys, values := field("header_keys").(*array.ListBuilder), field("header_values").(*array.ListBuilder)
		keys.Append(true)
		values.Append(true)
		for _, h := range l.Headers {
			keys.ValueBuilder().(*array.StringBuilder).Append(h.Key)
			if h.Value == nil {
				values.ValueBuilder().AppendNull()
			} else {
				values.ValueBuilder().(*array.BinaryBuilder).Append(h.Value)
			}
		}
		at("record_time", l.RecordTime)
		field("text_values").(*array.BooleanBuilder).Append(l.Text)
		r := l.Redriven
		if r == nil {
			for _, name := range redrivenColumns {
				field(name).AppendNull()
			}
			continue
		}
		text("outcome", string(r.Outcome))
		text("redriven_to", r.Stream)
		at("redriven_at", r.At)
		text("redriven_by", r.By)
		text("redrive_job", r.JobID)
		field("repaired").(*array.BooleanBuilder).Append(r.Repaired)
	}
}

// redrivenColumns say what became of a letter when it was taken again; all are null where it never was.
var redrivenColumns = []string{"outcome", "redriven_to", "redriven_at", "redriven_by", "redrive_job", "repaired"}

// Waiting is the condition that a dead letter was taken by no redrive.
const Waiting sql.Fragment = "(outcome IS NULL OR outcome = 'refused')"

// letterColumns are read by [letterRow.scan].
const letterColumns sql.Fragment = `stream, reason, detail, topic, "partition", "offset", record_key, body, epoch_us(recorded_at), job_id,
header_keys, header_values, epoch_us(record_time), text_values, outcome, redriven_to, epoch_us(redriven_at), redriven_by, redrive_job, repaired`

// letterRow is a row of letterColumns.
type letterRow struct {
	letter                   feature.DeadLetter
	keys, values             any
	recordTime, redrivenAt   *int64
	text, repaired           *bool
	outcome, stream, by, job *string
}

func (r *letterRow) fields() []any {
	l := &r.letter
	return []any{&l.Stream, &l.Reason, &l.Detail, &l.Topic, &l.Partition, &l.Offset, &l.RecordKey, &l.Body, &l.RecordedAt, &l.JobID, &r.keys, &r.values,
		&r.recordTime, &r.text, &r.outcome, &r.stream, &r.redrivenAt, &r.by, &r.job, &r.repaired}
}

// whole is the letter with all that the row says of it.
func (r *letterRow) whole() (feature.DeadLetter, error) {
	l := r.letter
	keys, _ := r.keys.([]any)
	values, _ := r.values.([]any)
	if len(keys) != len(values) {
		return l, fmt.Errorf("dead letter %s has %d header keys and %d values", l.Position, len(keys), len(values))
	}
	for i := range keys {
		key, _ := keys[i].(string)
		value, _ := values[i].([]byte)
		l.Headers = append(l.Headers, feature.Header{Key: key, Value: value})
	}
	if r.recordTime != nil {
		l.RecordTime = *r.recordTime
	}
	l.Text = r.text != nil && *r.text
	if r.outcome != nil {
		l.Redriven = &feature.Redriven{Outcome: feature.Outcome(*r.outcome), Stream: *r.stream, At: *r.redrivenAt, By: *r.by, JobID: *r.job, Repaired: *r.repaired}
	}
	return l, nil
}

// LetterOrder is an order of dead letters.
type LetterOrder sql.Fragment

// Orders of dead letters.
const (
	NewestFirst LetterOrder = `recorded_at DESC, topic, "partition", "offset"`
	ByPosition  LetterOrder = `topic, "partition", "offset", recorded_at DESC`
)

// Each calls yield with the dead letters for which the condition holds, at most limit of them where that isn't negative. The
// table is read as it is now.
func (d *DeadLetters) Each(ctx context.Context, db *sql.DB, condition sql.Fragment, order LetterOrder, limit int, yield func(feature.DeadLetter) error) error {
	if err := d.View(ctx, db); err != nil {
		return err
	}
	args := sql.Args{"columns": letterColumns, "condition": condition, "order": sql.Fragment(order), "limit": ""}
	if limit >= 0 {
		args["limit"] = sql.Fragment(fmt.Sprintf(" LIMIT %d", limit))
	}
	rows, err := db.Query(ctx, sql.Render("SELECT {columns} FROM dead_letters WHERE {condition} ORDER BY {order}{limit}", args))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r letterRow
		if err := rows.Scan(r.fields()...); err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		l, err := r.whole()
		if err != nil {
			return err
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

// View makes a view of the table as it is now, under its own name.
func (d *DeadLetters) View(ctx context.Context, db *sql.DB) error {
	if err := d.table.Refresh(ctx); err != nil {
		return err
	}
	relation, err := d.table.Scan(ctx, ScanOptions{})
	if err != nil {
		return err
	}
	return db.LakeView(ctx, DeadLettersName, relation, false)
}
