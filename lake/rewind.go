package lake

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/sql"
)

// Rewind takes a stream back to positions, as if nothing from these on had ever been taken: rows of the log, dead letters and
// what followed from them are gone, and the offsets stand there, so that what the topics or files hold now is taken.
//
// Its steps are commits of their own, in this order, and each does nothing where it was done before. So a rewind that was cut off
// is ended by the same one again.
//
//  1. [Rewind.Take] takes the log back, and notes in it that a rewind is at work. From then on writers that were opened before
//     are [ErrRewound], and none can be opened ([ErrRewinding]): what they would decide on, and the history that they would
//     go on from, rests on what is gone. Were the history taken back first, it would be caught up from the log by whoever opens the
//     stream; were the dead letters, the log would say that events were refused of which nothing is kept.
//  2. It then takes the dead letters back, so that they can be taken or refused again.
//  3. [Rewind.History] derives the history anew from the log.
//  4. The caller has what is served online built anew, for values of changes that are gone would outrank those to come.
//  5. [Rewind.End] lets writers open the stream again.
type Rewind struct {
	lake    *Lake
	def     *feature.Stream
	to      []feature.Position // one a partition, in order
	log     *Table
	letters *recordTable
	db      *sql.DB
	again   bool // it was cut off before
}

// Rewound says what a rewind takes away from a partition.
type Rewound struct {
	Position  string `json:"to"`
	From      int64  `json:"stood_at"` // the offset that the log stood at
	Accepted  int64  `json:"accepted"`
	Refused   int64  `json:"refused"`
	Duplicate int64  `json:"duplicate"`
	Entities  int64  `json:"entities"` // that the accepted events are of

	to int64
}

// None reports whether the log stands at the position.
func (r Rewound) None() bool { return r.From == r.to }

// rewinding is the property of a log that says which rewind was the last, and whether it has ended. Its JSON is frozen.
type rewinding struct {
	ID   string   `json:"id"`
	To   []string `json:"to"`
	Done bool     `json:"done,omitempty"`
}

func readRewinding(properties iceberg.Properties) (*rewinding, error) {
	text, ok := properties[propertyRewind]
	if !ok {
		return nil, nil
	}
	r := &rewinding{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("read property %s: %w", propertyRewind, err)
	}
	return r, nil
}

// notRewinding refuses a log that is being rewound.
func (t *Table) notRewinding(stream string) error {
	r, err := readRewinding(t.tbl.Properties())
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name(), err)
	}
	if r != nil && !r.Done {
		return fmt.Errorf("stream %s %w, or that was cut off: `%s` ends it", stream, ErrRewinding, r.command(stream))
	}
	return nil
}

func (r *rewinding) command(stream string) string {
	return fmt.Sprintf("loam rewind %s --to %s --yes", stream, strings.Join(r.To, " --to "))
}

// Rewinding is [ErrRewinding] where a rewind of the stream has not ended.
func (l *Lake) Rewinding(ctx context.Context, def *feature.Stream) error {
	t, err := l.openTable(ctx, LogName(def.Name))
	if errors.Is(err, ErrNoTable) {
		return nil
	} else if err != nil {
		return err
	}
	return t.notRewinding(def.Name)
}

// OpenRewind prepares taking a stream back to the positions, at most one a partition. The stream must have taken something of
// each partition, and not less than up to the position.
func (l *Lake) OpenRewind(ctx context.Context, def *feature.Stream, to []feature.Position, o StreamOptions) (*Rewind, error) {
	r := &Rewind{lake: l, def: def, to: slices.Clone(to)}
	slices.SortFunc(r.to, func(a, b feature.Position) int {
		return cmp.Or(partitionOf(a).Compare(partitionOf(b)), cmp.Compare(a.Offset, b.Offset))
	})
	var err error
	if r.log, err = l.openTable(ctx, LogName(def.Name)); err != nil {
		return nil, err
	}
	if def.Kind == feature.StateStream {
		if _, err := l.openTable(ctx, HistoryName(def.Name)); err != nil {
			return nil, err
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	r.letters = letters.table
	r.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	return r, err
}

// Close frees what the rewind holds.
func (r *Rewind) Close() error { return r.db.Close() }

func partitionOf(p feature.Position) feature.Partition {
	return feature.Partition{Topic: p.Topic, Index: p.Partition}
}

func (r *Rewind) texts() []string {
	texts := make([]string, len(r.to))
	for i, p := range r.to {
		texts[i] = p.String()
	}
	return texts
}

// check holds the positions against where the log stands.
func (r *Rewind) check() error {
	offsets, err := r.log.Offsets()
	if err != nil {
		return err
	}
	before, err := readRewinding(r.log.tbl.Properties())
	if err != nil {
		return fmt.Errorf("%s: %w", r.log.Name(), err)
	}
	r.again = before != nil && !before.Done
	if r.again && !slices.Equal(before.To, r.texts()) {
		return fmt.Errorf("another rewind of stream %s was cut off, or is at work: `%s` ends it", r.def.Name, before.command(r.def.Name))
	}
	if err := offsets.Redrive.ended(r.def.Name); err != nil {
		return err
	}
	for i, p := range r.to {
		at, known := offsets.Of(partitionOf(p))
		switch {
		case i > 0 && partitionOf(p) == partitionOf(r.to[i-1]):
			return fmt.Errorf("%s and %s are of one partition: name one of them", r.to[i-1], p)
		case p.Offset < 0:
			return fmt.Errorf("%s: offsets begin at 0", p)
		case !known && !r.again:
			return fmt.Errorf("stream %s has taken nothing of %s/%d, or it is one of the files beyond the newest %d, which are forgotten: `loam status` lists what it has",
				r.def.Name, p.Topic, p.Partition, filesMax)
		case p.Offset > at.Next:
			return fmt.Errorf("stream %s stands at offset %d of %s/%d: it can go back to before that, not on to %d", r.def.Name, at.Next, p.Topic, p.Partition, p.Offset)
		}
	}
	return nil
}

// Again reports whether the same rewind was cut off before.
func (r *Rewind) Again() bool { return r.again }

// Look says what the rewind takes away, and changes nothing.
func (r *Rewind) Look(ctx context.Context) ([]Rewound, error) {
	offsets, err := r.log.Offsets()
	if err != nil {
		return nil, err
	}
	if _, err := r.view(ctx, r.log, append(slices.Clone(r.def.Key), logRewoundColumns...)); err != nil {
		return nil, err
	}
	all := make([]Rewound, len(r.to))
	for i, p := range r.to {
		at, _ := offsets.Of(partitionOf(p))
		all[i] = Rewound{Position: p.String(), From: at.Next, to: p.Offset}
		statement := sql.Render(`SELECT count(*) FILTER ({first}), count(DISTINCT ({key})) FROM rewind_rows WHERE {where} AND "offset" >= {offset}`,
			r.args(p, sql.Args{"key": sql.Idents("", r.def.Key), "first": acceptedFirst}))
		if err := r.db.QueryRow(ctx, statement, nil, &all[i].Accepted, &all[i].Entities); err != nil {
			return nil, err
		}
	}
	if _, err := r.view(ctx, r.letters.Table, letterRewoundColumns); err != nil {
		return nil, err
	}
	for i, p := range r.to {
		at, _ := offsets.Of(partitionOf(p))
		after, err := r.after(ctx, at, p, all[i].Accepted, at.Counts.Accepted-all[i].Accepted)
		if err != nil {
			return nil, err
		}
		all[i].Refused, all[i].Duplicate = at.Refused-after.Refused, at.Duplicate-after.Duplicate
	}
	return all, nil
}

var (
	logRewoundColumns    = []string{feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColEventTime, feature.ColExtra, feature.ColJobID}
	letterRewoundColumns = []string{"stream", feature.ColTopic, feature.ColPartition, feature.ColOffset}
)

// acceptedFirst is the condition that a row of a log was accepted when it was read first: what was a dead letter counts as refused in
// the offsets, whatever became of it since.
var acceptedFirst = sql.Fragment(fmt.Sprintf("NOT starts_with(coalesce(job_id, ''), %s)", sql.Literal(feature.RedriveJobPrefix)))

// view makes the view rewind_rows of a table, with positions, and gives the table's files.
func (r *Rewind) view(ctx context.Context, t *Table, columns []string) ([]*liveFile, error) {
	files, err := t.plan(ctx, ScanOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", t.Name(), err)
	}
	relation, err := t.relation(ctx, files, columns)
	if err != nil {
		return nil, err
	}
	return files, r.db.LakeView(ctx, "rewind_rows", relation, true)
}

// args are those of statements about the partition of a position.
func (r *Rewind) args(p feature.Position, more sql.Args) sql.Args {
	args := sql.Args{
		"where":  sql.Fragment(fmt.Sprintf(`topic = %s AND "partition" = %d`, sql.Literal(p.Topic), p.Partition)),
		"offset": sql.Fragment(fmt.Sprint(p.Offset)), "stream": sql.Literal(r.def.Name),
	}
	for k, v := range more {
		args[k] = v
	}
	return args
}

// places gives the rows of rewind_rows from the positions on for which the condition holds, by file.
func (r *Rewind) places(ctx context.Context, files []*liveFile, condition sql.Fragment) (map[int32][]int64, error) {
	numbers := make([]int32, len(files))
	for i := range numbers {
		numbers[i] = int32(i)
	}
	rows := map[int32][]int64{}
	for _, p := range r.to {
		statement := sql.Render(`SELECT loam_file, loam_row FROM rewind_rows WHERE {where} AND "offset" >= {offset} AND {condition}`,
			r.args(p, sql.Args{"condition": condition}))
		err := r.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
			for reader.Next() {
				places, err := placesOf(reader.RecordBatch(), numbers)
				if err != nil {
					return err
				}
				for i := range int(reader.RecordBatch().NumRows()) {
					at := places(i)
					rows[at.file] = append(rows[at.file], int64(at.row))
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// Take takes the log back, and then the dead letters.
func (r *Rewind) Take(ctx context.Context) error {
	if err := r.takeLog(ctx); err != nil {
		return fmt.Errorf("rewind the log of %s: %w", r.def.Name, err)
	}
	step.At(step.RewindLog)
	if err := r.takeLetters(ctx); err != nil {
		return fmt.Errorf("rewind the dead letters of %s: %w", r.def.Name, err)
	}
	step.At(step.RewindLetters)
	return nil
}

func (r *Rewind) takeLog(ctx context.Context) error {
	var done *pending
	err := r.log.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if done != nil {
			done.discard()
		}
		if err := r.check(); err != nil { // the log may have gone on, or back
			return err
		}
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		columns := append(slices.Clone(r.def.Key), logRewoundColumns...)
		files, err := r.view(ctx, r.log, columns)
		if err != nil {
			return err
		}
		rows, err := r.places(ctx, files, "true")
		if err != nil {
			return err
		}
		moved := map[feature.Partition]Offset{}
		for _, p := range r.to {
			at, known := offsets.Of(partitionOf(p))
			if !known || at.Next == p.Offset {
				continue // taken back before
			}
			if moved[partitionOf(p)], err = r.logAfter(ctx, at, p); err != nil {
				return err
			}
		}
		// What is left of the counts follows from the dead letters, too, which are committed before the log.
		if err := r.letters.reload(ctx); err != nil {
			return err
		}
		if _, err := r.view(ctx, r.letters.Table, letterRewoundColumns); err != nil {
			return err
		}
		for _, p := range r.to {
			if now, ok := moved[partitionOf(p)]; ok {
				at, _ := offsets.Of(partitionOf(p))
				counts, err := r.after(ctx, at, p, at.Accepted-now.Accepted, now.Accepted)
				if err != nil {
					return err
				}
				counts.Extra, counts.Late = now.Extra, now.Late
				now.Counts = counts
				moved[partitionOf(p)] = now
			}
		}
		if done, err = stageDeletes(ctx, r.log, files, rows, tx, summary); err != nil {
			return err
		}
		before, err := readRewinding(base.Properties())
		if err != nil {
			return err
		}
		mark := rewinding{ID: uuid.NewString(), To: r.texts()}
		if before != nil && !before.Done {
			mark = *before
		}
		return setMoved(base, tx, &offsets, moved, summary[summaryCommit], iceberg.Properties{propertyRewind: mustJSON(mark)})
	})
	if err != nil && done != nil && !errors.Is(err, errUnsettled) {
		done.discard()
	}
	return err
}

// logAfter gives where the log stands in a partition that it is taken back in, by its rows before the position, in rewind_rows:
// with the accepted events and those with fields outside the schema.
func (r *Rewind) logAfter(ctx context.Context, at Offset, p feature.Position) (Offset, error) {
	var newest *int64
	var accepted, extra, late int64
	statement := sql.Render(`
WITH
    left_over AS (
        SELECT extra, event_time, {first} AS loam_first,
            event_time < max(event_time) FILTER ({first}) OVER (ORDER BY "offset" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS loam_late
        FROM rewind_rows
        WHERE {where} AND "offset" < {offset}
    )
SELECT count(*) FILTER (loam_first), count(extra) FILTER (loam_first), count(*) FILTER (loam_first AND loam_late),
    epoch_us(max(event_time)), epoch_us(max(event_time) FILTER (loam_first))
FROM left_over`, r.args(p, sql.Args{"first": acceptedFirst}))
	at.Newest = nil
	if err := r.db.QueryRow(ctx, statement, nil, &accepted, &extra, &late, &newest, &at.Newest); err != nil {
		return at, err
	}
	// What was said of idle partitions, and by refused events, of how far they are complete is not told apart from the rest.
	var mark int64
	if newest != nil {
		if mark = *newest; feature.Live(p.Topic) {
			mark -= r.def.AllowedLateness.Microseconds()
		}
	}
	at.Next, at.Watermark = p.Offset, min(at.Watermark, mark)
	at.Accepted, at.Extra, at.Late = accepted, extra, late
	return at, nil
}

// after gives the counts of a partition before a position, of which some accepted events are gone and some are left. Dead letters
// are in rewind_rows. What the events that are gone and were neither accepted nor refused were, is not kept: they count as
// duplicates, as far as there are any, which is right where offsets have no gaps. Read = Accepted + Refused + Duplicate holds.
func (r *Rewind) after(ctx context.Context, at Offset, p feature.Position, gone, left int64) (feature.Counts, error) {
	var refused, lost int64
	statement := sql.Render(`SELECT count(DISTINCT "offset") FILTER ("offset" < {offset}), count(DISTINCT "offset") FILTER ("offset" >= {offset} AND "offset" < {end})
FROM rewind_rows WHERE {where} AND stream = {stream}`, r.args(p, sql.Args{"end": sql.Fragment(fmt.Sprint(at.Next))}))
	if err := r.db.QueryRow(ctx, statement, nil, &refused, &lost); err != nil {
		return feature.Counts{}, err
	}
	others := max(at.Next-p.Offset-gone-lost, 0)
	c := feature.Counts{Accepted: left, Refused: refused, Duplicate: max(at.Duplicate-others, 0)}
	c.Read = c.Accepted + c.Refused + c.Duplicate
	c.IDReuse, c.Extra = min(at.IDReuse, left), min(at.Extra, left)
	c.Ahead, c.Unkeyed = min(at.Ahead, left), min(at.Unkeyed, left)
	return c, nil
}

// takeLetters deletes the stream's dead letters from the positions on, and those of no stream, which are found again where the
// events are read again. Letters of other streams from the same file stay: their streams have taken the events.
func (r *Rewind) takeLetters(ctx context.Context) error {
	var done *pending
	err := r.letters.commit(ctx, func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if done != nil {
			done.discard()
		}
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		files, err := r.view(ctx, r.letters.Table, letterRewoundColumns)
		if err != nil {
			return err
		}
		rows, err := r.places(ctx, files, sql.Fragment("stream IN ('', "+sql.Literal(r.def.Name)+")"))
		if err != nil {
			return err
		}
		moved := map[feature.Partition]Offset{}
		for _, p := range r.to {
			at, known := offsets.Of(partitionOf(p))
			if !known || at.Next <= p.Offset {
				continue
			}
			var strays int64
			statement := sql.Render(`SELECT count(DISTINCT "offset") FROM rewind_rows WHERE {where} AND "offset" < {offset} AND stream = ''`, r.args(p, nil))
			if err := r.db.QueryRow(ctx, statement, nil, &strays); err != nil {
				return err
			}
			at.Next, at.Counts = p.Offset, feature.Counts{Read: strays, Refused: strays}
			moved[partitionOf(p)] = at
		}
		if len(moved) == 0 && len(rows) == 0 {
			return errNothing
		}
		if done, err = stageDeletes(ctx, r.letters.Table, files, rows, tx, summary); err != nil {
			return err
		}
		return setMoved(base, tx, &offsets, moved, summary[summaryCommit], nil)
	})
	if err != nil && done != nil && !errors.Is(err, errUnsettled) {
		done.discard()
	}
	return err
}

// stageDeletes deletes rows of a table's files, given by file.
func stageDeletes(ctx context.Context, t *Table, files []*liveFile, rows map[int32][]int64, tx *table.Transaction, summary iceberg.Properties) (*pending, error) {
	p := &pending{merger: &merger{history: t, files: files}, retired: rows}
	if len(rows) == 0 {
		return p, nil
	}
	summary[summaryRewound] = "true"
	var err error
	if p.writer, err = t.fileWriter(ctx); err != nil {
		return nil, err
	}
	if err := p.writeDeletes(ctx); err != nil {
		return p, err
	}
	return p, tx.NewRowDelta(summary).AddDeletes(p.deletes...).RemoveDeletes(p.superseded...).Commit(ctx)
}

// setMoved sets where a table stands in partitions that it goes back in, and more properties. One that goes back to its
// beginning is forgotten, and with it the id of its topic: another may have its name now.
func setMoved(base *table.Table, tx *table.Transaction, offsets *Offsets, moved map[feature.Partition]Offset, commit string, more iceberg.Properties) error {
	set := iceberg.Properties{}
	for k, v := range more {
		set[k] = v
	}
	var forget []string
	files := false
	for p, at := range moved {
		at.Commit = commit
		sha, isFile := strings.CutPrefix(p.Topic, feature.FileTopicPrefix)
		switch {
		case isFile:
			i := offsets.file(sha)
			if files = true; at.Next == 0 {
				offsets.Files = slices.Delete(offsets.Files, i, i+1)
			} else {
				offsets.Files[i] = File{SHA256: sha, Next: at.Next, Commit: commit, Watermark: at.Watermark, Newest: at.Newest, Counts: at.Counts}
			}
		case at.Next == 0:
			forget = append(forget, offsetProperty(p))
		default:
			set[offsetProperty(p)] = mustJSON(at)
		}
	}
	if files && len(offsets.Files) > 0 {
		set[propertyFiles] = mustJSON(offsets.Files)
	} else if files {
		forget = append(forget, propertyFiles)
	}
	if len(set) > 0 {
		if err := tx.SetProperties(set); err != nil {
			return err
		}
	}
	forget = slices.DeleteFunc(forget, func(name string) bool { _, ok := base.Properties()[name]; return !ok })
	if len(forget) == 0 {
		return nil
	}
	return tx.RemoveProperties(forget)
}

// History derives the history anew from the log; an event stream has none.
func (r *Rewind) History(ctx context.Context, o RebuildOptions) (Rebuilt, error) {
	if r.def.Kind != feature.StateStream {
		return Rebuilt{}, nil
	}
	return r.lake.rebuild(ctx, r.def, o, true)
}

// End notes that the rewind has ended: writers may open the stream again. A writer that was at a commit when the rewind began may
// have kept dead letters since, and no more, so they are taken back once more.
func (r *Rewind) End(ctx context.Context) error {
	if err := r.takeLetters(ctx); err != nil {
		return fmt.Errorf("rewind the dead letters of %s: %w", r.def.Name, err)
	}
	err := r.log.commit(ctx, func(_ context.Context, base *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		mark, err := readRewinding(base.Properties())
		if err != nil {
			return err
		}
		if mark == nil || mark.Done || !slices.Equal(mark.To, r.texts()) {
			return errNothing // another process has ended it
		}
		mark.Done = true
		return tx.SetProperties(iceberg.Properties{propertyRewind: mustJSON(mark)})
	})
	if err != nil {
		return fmt.Errorf("end the rewind of %s: %w", r.def.Name, err)
	}
	return nil
}
