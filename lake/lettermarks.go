package lake

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Marked is what became of a dead letter that was taken again, by its position and the time it was refused first, which tells it
// from one that came to stand there after a rewind.
type Marked struct {
	feature.Position
	RecordedAt int64
	feature.Redriven
	Reason feature.Reason // of a letter that was refused again
	Detail string
}

// Mark keeps with dead letters what became of them, in one commit. Letters that it was kept with before are left as they are,
// and one that was accepted stays so. It gives how many it marked.
func (d *DeadLetters) Mark(ctx context.Context, db *sql.DB, marks []Marked) (int, error) {
	if len(marks) == 0 {
		return 0, nil
	}
	type place struct {
		feature.Position
		recordedAt int64
	}
	byPlace := map[place]*Marked{}
	positions := make([]feature.Position, len(marks))
	for i := range marks {
		byPlace[place{marks[i].Position, marks[i].RecordedAt}], positions[i] = &marks[i], marks[i].Position
	}
	done, marked := (*pending)(nil), 0
	err := d.table.commit(ctx, func(ctx context.Context, _ *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if done != nil {
			done.discard()
		}
		marked = 0
		files, err := d.table.plan(ctx, ScanOptions{})
		if err != nil {
			return fmt.Errorf("list the files of %s: %w", d.table.Name(), err)
		}
		done = &pending{merger: &merger{history: d.table.Table, files: files}, retired: map[int32][]int64{}}
		byDay := map[iceberg.Date][]feature.DeadLetter{}
		err = d.eachPlace(ctx, db, files, AtAny(positions), func(l feature.DeadLetter, file int32, row int64) {
			m := byPlace[place{l.Position, l.RecordedAt}]
			if m == nil || !m.applies(l.Redriven) {
				return
			}
			l.Redriven = &m.Redriven
			if m.Outcome == feature.RedriveRefused {
				l.Reason, l.Detail = m.Reason, m.Detail
			}
			done.retired[file] = append(done.retired[file], row)
			byDay[dayOf(l.RecordedAt)] = append(byDay[dayOf(l.RecordedAt)], l)
			marked++
		})
		if err != nil {
			return err
		}
		if marked == 0 {
			return errNothing
		}
		if done.writer, err = d.table.fileWriter(ctx); err != nil {
			return err
		}
		for day, some := range byDay {
			file, err := d.table.write(ctx, day, func(b *array.RecordBuilder) { fillLetters(b, some) })
			if err != nil {
				return err
			}
			done.data = append(done.data, file)
		}
		if err := done.writeDeletes(ctx); err != nil {
			return err
		}
		return tx.NewRowDelta(summary).AddRows(done.data...).AddDeletes(done.deletes...).RemoveDeletes(done.superseded...).Commit(ctx)
	})
	if err != nil {
		if done != nil && !errors.Is(err, errUnsettled) {
			done.discard()
		}
		return 0, fmt.Errorf("mark dead letters that were taken again: %w", err)
	}
	return marked, d.table.upkeep(ctx)
}

// applies says whether a mark is news to a letter.
func (m *Marked) applies(was *feature.Redriven) bool {
	switch {
	case was == nil || was.Outcome == feature.RedriveRefused:
		return was == nil || was.JobID != m.JobID || was.Outcome != m.Outcome
	case was.Outcome == feature.RedriveAccepted:
		return false
	default: // who found a duplicate can't have known of the row that there is
		return m.Outcome == feature.RedriveAccepted
	}
}

// eachPlace calls use with the letters for which the condition holds, and where they stand.
func (d *DeadLetters) eachPlace(ctx context.Context, db *sql.DB, files []*liveFile, condition sql.Fragment, use func(l feature.DeadLetter, file int32, row int64)) error {
	relation, err := d.table.relation(ctx, files, nil)
	if err != nil {
		return err
	}
	if err := db.LakeView(ctx, "letter_places", relation, true); err != nil {
		return err
	}
	rows, err := db.Query(ctx, sql.Render("SELECT {columns}, loam_file, loam_row FROM letter_places WHERE {condition}",
		sql.Args{"columns": letterColumns, "condition": condition}))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r letterRow
		var file int32
		var row int64
		if err := rows.Scan(append(r.fields(), &file, &row)...); err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		l, err := r.whole()
		if err != nil {
			return err
		}
		use(l, file, row)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	return nil
}

// RedrivenCount is how many letters of a partition were taken by a redrive with an outcome other than refused.
type RedrivenCount struct {
	feature.Partition
	From     string // the stream that they were refused by, "" for none
	To       string // the stream that took them
	Accepted int64
	Others   int64 // duplicates
}

// Move moves what became of the letters from refused to where it belongs in the counts of a stream, of which read = accepted + refused +
// duplicate then holds as before; "" stands for those of no stream.
func (c RedrivenCount) Move(stream string, counts *feature.Counts) {
	all := c.Accepted + c.Others
	if c.From == stream {
		counts.Refused -= all
	}
	if c.To == stream {
		counts.Accepted += c.Accepted
		counts.Duplicate += c.Others
	}
	switch {
	case c.From == c.To:
	case c.From == stream:
		counts.Read -= all
	case c.To == stream:
		counts.Read += all
	}
}

// LetterCounts are counts of the dead letters by what became of them.
type LetterCounts struct {
	Redriven []RedrivenCount
	Waiting  []WaitingCount
}

// WaitingCount is how many letters of a partition were refused for a reason, and taken by no redrive.
type WaitingCount struct {
	feature.Partition
	Stream string // "" for none
	Reason feature.Reason
	Count  int64
}

// Count counts the letters as they are now, but for those beyond where their streams' logs stand by the given offsets, by stream: their
// commit comes after that of the letters, so their counts don't have these yet. The offsets' counts have as refused what a redrive
// took: they tell what became of an event when it was read.
func (d *DeadLetters) Count(ctx context.Context, db *sql.DB, logs map[string]Offsets) (LetterCounts, error) {
	var all LetterCounts
	if err := d.View(ctx, db); err != nil {
		return all, err
	}
	kept, err := d.Offsets()
	if err != nil {
		return all, err
	}
	beyond := []sql.Fragment{"false"}
	note := func(stream string, p feature.Partition, end int64, log Offsets) {
		if at, known := log.Of(p); known && at.Next < end {
			beyond = append(beyond, sql.Fragment(fmt.Sprintf(`(stream = %s AND topic = %s AND "partition" = %d AND "offset" >= %d)`,
				sql.Literal(stream), sql.Literal(p.Topic), p.Index, at.Next)))
		}
	}
	for stream, log := range logs {
		for p, at := range kept.Partitions {
			note(stream, p, at.Next, log)
		}
		for _, f := range kept.Files {
			note(stream, feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}, f.Next, log)
		}
	}
	rows, err := db.Query(ctx, sql.Render(sql.Statement("letter_counts"), sql.Args{"waiting": Waiting, "beyond": sql.Join(" OR ", beyond)}))
	if err != nil {
		return all, err
	}
	defer rows.Close()
	for rows.Next() {
		var p feature.Partition
		var stream string
		var to, reason *string
		var accepted, others, waiting int64
		if err := rows.Scan(&p.Topic, &p.Index, &stream, &to, &reason, &accepted, &others, &waiting); err != nil {
			return all, fmt.Errorf("count dead letters: %w", err)
		}
		if reason != nil {
			all.Waiting = append(all.Waiting, WaitingCount{Partition: p, Stream: stream, Reason: feature.Reason(*reason), Count: waiting})
		} else {
			all.Redriven = append(all.Redriven, RedrivenCount{Partition: p, From: stream, To: *to, Accepted: accepted, Others: others})
		}
	}
	if err := rows.Err(); err != nil {
		return all, fmt.Errorf("count dead letters: %w", err)
	}
	return all, nil
}
