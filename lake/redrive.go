package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/sql"
)

// Redrive says which dead letters a log has taken last, as its property, and whether all that follows is done. A history names only
// the job of the last that it has. Its JSON is frozen.
//
// A letter that is taken again stands in the log at its own position, behind which the offsets long are. So it isn't offsets that keep it
// from being taken twice, but this, for of a log one redrive is on its way at a time:
//
//  1. [Stream.LastRedrive] tells which was the last. One that hasn't ended, because its process did, is ended first.
//  2. Letters are chosen that wait, and of which the log has no row.
//  3. [Stream.Redrive] commits their rows, and the property with them, as long as the last redrive is still that one. Then it
//     commits what follows for the history; who opens the stream does so in its place where it couldn't.
//  4. What is served online is written, and then the letters are marked, by [DeadLetters.Mark].
//  5. [Stream.EndRedrive] notes that all of it is done.
//
// Steps 4 and 5 may be done by anybody and any number of times: the rows of a redrive are those with its job id. A letter
// of which no row came is marked alone, for nothing can then be done twice.
type Redrive struct {
	JobID    string `json:"id"`
	By       string `json:"by,omitempty"`
	At       int64  `json:"at,omitempty"` // microseconds since 1970 UTC
	Repaired bool   `json:"repaired,omitempty"`
	Done     bool   `json:"done,omitempty"`
}

// ErrRedriven: another redrive came first, so what was chosen may have been taken.
var ErrRedriven = errors.New("dead letters were taken again by another redrive meanwhile")

// Open reports whether the redrive is on its way, or was cut off.
func (r Redrive) Open() bool { return r.JobID != "" && !r.Done }

func (r Redrive) ended(stream string) error {
	if r.Open() {
		return fmt.Errorf("dead letters of stream %s are being taken again, or that was cut off: `loam dlq redrive --stream %s` ends it", stream, stream)
	}
	return nil
}

// redriving is a redrive that is to be committed as long as the last one is still the one given.
type redriving struct {
	Redrive
	after string
}

// redriveSpan stands for the rows of a redrive among spans.
func redriveSpan(jobID string) feature.Span {
	return feature.Span{Partition: feature.Partition{Topic: feature.RedriveTopic(jobID)}, To: 1}
}

func isRedrive(s feature.Span) bool {
	_, ok := feature.RedriveJob(s.Topic)
	return ok
}

// LastRedrive is the last redrive of the stream, as its log tells now. What a history lacks of it is caught up.
func (s *Stream) LastRedrive(ctx context.Context) (Redrive, error) {
	if s.history != nil {
		if err := s.history.reload(ctx); err != nil { // first: the log is then at least as far
			return Redrive{}, err
		}
	}
	if err := s.log.reload(ctx); err != nil {
		return Redrive{}, err
	}
	offsets, err := s.log.Offsets()
	if err != nil {
		return Redrive{}, err
	}
	if s.history != nil && offsets.Redrive.Open() {
		err = s.catchUp(ctx)
	}
	return offsets.Redrive, err
}

// Redrive writes the accepted rows of a batch of dead letters, at their own positions, to the log and what follows to the history. It
// gives the rows that were written, which the caller releases: those of events that others have accepted since the log's
// snapshot known, or that stand there already, are left out. It is [ErrRedriven] where the last redrive is another than after,
// the job id that [Stream.LastRedrive] gave before the letters were chosen.
func (s *Stream) Redrive(ctx context.Context, b *feature.Batch, known Head, redrive Redrive, after string) (Result, []arrow.RecordBatch, error) {
	var r Result
	if !strings.HasPrefix(redrive.JobID, feature.RedriveJobPrefix) {
		panic(fmt.Sprintf("the rows of redrive %q couldn't be told from others", redrive.JobID))
	}
	if s.merger != nil && s.merger.index == nil {
		if err := s.Warm(ctx); err != nil {
			return r, nil, err
		}
	}
	begin := time.Now()
	rows, err := s.appendLog(ctx, b, known, &r, &redriving{redrive, after})
	if err != nil {
		return r, nil, err
	}
	r.Log, r.Logged = time.Since(begin), true
	step.At(step.RedriveCommitted)
	if r.Rows == 0 {
		return r, rows, nil
	}
	if s.history != nil {
		if err := s.merger.commit(ctx, rows, []feature.Span{redriveSpan(redrive.JobID)}, &r); err != nil {
			releaseAll(rows)
			return r, nil, err
		}
		err = unlessChanged(s.history.upkeep(ctx))
	}
	return r, rows, errors.Join(err, unlessChanged(s.log.upkeep(ctx)))
}

// RedriveRows hands over the rows of the log that a redrive has written, in batches with the columns of
// [feature.Stream.LogColumns]; they are released after use returns.
func (s *Stream) RedriveRows(ctx context.Context, jobID string, use func(arrow.RecordBatch) error) error {
	relation, err := s.log.Scan(ctx, ScanOptions{})
	if err != nil {
		return err
	}
	if err := s.db.LakeView(ctx, "redrive_rows", relation, false); err != nil {
		return err
	}
	statement := sql.Render("SELECT * FROM redrive_rows WHERE {where}", sql.Args{"where": within([]feature.Span{redriveSpan(jobID)})})
	return s.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
		for reader.Next() {
			if err := use(reader.RecordBatch()); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndRedrive notes that all that follows a redrive is done.
func (s *Stream) EndRedrive(ctx context.Context, jobID string) error {
	err := s.log.commit(ctx, func(_ context.Context, base *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		offsets, err := parseOffsets(base.Properties())
		if err != nil {
			return err
		}
		if r := offsets.Redrive; r.JobID != jobID || r.Done {
			return errNothing // another process has ended it
		}
		return tx.SetProperties(iceberg.Properties{propertyRedrive: mustJSON(Redrive{JobID: jobID, Done: true})})
	})
	if err != nil {
		return fmt.Errorf("end redrive %s of %s: %w", jobID, s.def.Name, err)
	}
	return nil
}

// Positions are those of a log's rows.
func Positions(rows arrow.RecordBatch) ([]feature.Position, error) {
	var columns [3]arrow.Array
	for i, name := range []string{feature.ColTopic, feature.ColPartition, feature.ColOffset} {
		var err error
		if columns[i], err = columnOf(rows, name); err != nil {
			return nil, err
		}
	}
	topics, partitions, offsets := columns[0].(*array.String), columns[1].(*array.Int64), columns[2].(*array.Int64)
	all := make([]feature.Position, rows.NumRows())
	for i := range all {
		all[i] = feature.Position{Topic: strings.Clone(topics.Value(i)), Partition: int32(partitions.Value(i)), Offset: offsets.Value(i)}
	}
	return all, nil
}

// Holds finds at which of the positions the loaded log has a row.
func (s *Stream) Holds(ctx context.Context, positions []feature.Position) (map[feature.Position]bool, error) {
	held := map[feature.Position]bool{}
	if len(positions) == 0 {
		return held, nil
	}
	relation, err := s.log.Scan(ctx, ScanOptions{Columns: []string{feature.ColTopic, feature.ColPartition, feature.ColOffset}})
	if err != nil {
		return nil, err
	}
	if err := s.db.LakeView(ctx, "held_positions", relation, false); err != nil {
		return nil, err
	}
	rows, err := s.db.Query(ctx, sql.Render(`SELECT topic, "partition", "offset" FROM held_positions WHERE {where}`, sql.Args{"where": AtAny(positions)}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p feature.Position
		if err := rows.Scan(&p.Topic, &p.Partition, &p.Offset); err != nil {
			return nil, fmt.Errorf("look positions up in %s: %w", s.log.Name(), err)
		}
		held[p] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look positions up in %s: %w", s.log.Name(), err)
	}
	return held, nil
}

// AtAny is the condition that a row stands at one of the positions, of which there is one at least.
func AtAny(positions []feature.Position) sql.Fragment {
	offsets := map[feature.Partition][]sql.Fragment{}
	for _, p := range positions {
		offsets[partitionOf(p)] = append(offsets[partitionOf(p)], sql.Fragment(fmt.Sprint(p.Offset)))
	}
	var parts []sql.Fragment
	for _, p := range slices.SortedFunc(maps.Keys(offsets), feature.Partition.Compare) {
		parts = append(parts, sql.Fragment(fmt.Sprintf(`(topic = %s AND "partition" = %d AND "offset" IN (%s))`, sql.Literal(p.Topic), p.Index, sql.Join(", ", offsets[p]))))
	}
	return "(" + sql.Join(" OR ", parts) + ")"
}
