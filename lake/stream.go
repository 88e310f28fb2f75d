package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// LogName and HistoryName are the names of a stream's tables.
func LogName(stream string) string     { return stream + "_log" }
func HistoryName(stream string) string { return stream + "_history" }

// bucketField and friends are the names of the partition fields; they are part of the paths of data files.
const (
	bucketField  = "key_bucket"
	currentField = feature.ColIsCurrent
)

// CreateStream makes the tables of a stream where they are missing, and brings their columns to the stream's.
func (l *Lake) CreateStream(ctx context.Context, s *feature.Stream) error {
	bucket := partitionField{column: s.ClusterBy, transform: iceberg.BucketTransform{NumBuckets: Buckets}, name: bucketField}
	log := s.LogColumns()
	if err := l.createTable(ctx, LogName(s.Name), icebergSchema(log), []partitionField{bucket}); err != nil {
		return err
	}
	tables := map[string][]feature.Column{LogName(s.Name): log}
	if s.Kind == feature.StateStream {
		history := s.HistoryColumns()
		current := partitionField{column: feature.ColIsCurrent, transform: iceberg.IdentityTransform{}, name: currentField}
		if err := l.createTable(ctx, HistoryName(s.Name), icebergSchema(history), []partitionField{current, bucket}); err != nil {
			return err
		}
		tables[HistoryName(s.Name)] = history
	}
	for name, columns := range tables {
		t, err := l.openTable(ctx, name)
		if err != nil {
			return err
		}
		if err := t.evolve(ctx, columns); err != nil {
			return err
		}
	}
	return nil
}

// Stream is a stream's tables, open for writing by one worker. It is not safe for concurrent use.
type Stream struct {
	def     *feature.Stream
	layout  *layout
	log     *Table
	history *Table // nil for an event stream
	merger  *merger
	db      *sql.DB
	own     map[int64]bool // the log's snapshots that this stream wrote
	head    int64          // see Head
}

// StreamOptions bound what writing a stream may use.
type StreamOptions struct {
	MemoryBytes int64  // of DuckDB, which reads what late changes touch; 0 leaves its default
	TempDir     string // where it spills to
}

// OpenStream opens the tables of a stream for writing. A history that is behind its log, because a process ended between
// the two commits, is caught up from the log.
func (l *Lake) OpenStream(ctx context.Context, def *feature.Stream, o StreamOptions) (*Stream, error) {
	s := &Stream{def: def, layout: newLayout(def), own: map[int64]bool{}}
	var err error
	if s.log, err = l.openTable(ctx, LogName(def.Name)); err != nil {
		return nil, err
	}
	if s.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	s.head = s.log.SnapshotID()
	if def.Kind == feature.EventStream {
		return s, nil
	}
	if s.history, err = l.openTable(ctx, HistoryName(def.Name)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.merger = &merger{layout: s.layout, log: s.log, history: s.history, db: s.db, ownLog: s.own}
	if err := s.catchUp(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close frees what the stream holds; nothing is lost with it.
func (s *Stream) Close() error { return s.db.Close() }

// Definition is the stream's definition.
func (s *Stream) Definition() *feature.Stream { return s.def }

// Offsets is where the log stands.
func (s *Stream) Offsets() (Offsets, error) { return s.log.Offsets() }

// Head is the snapshot of the log, 0 for an empty one, all of whose events the caller has been told of: by Recent, as the
// batches that it committed, or as what those found foreign. The log may be loaded further than that.
func (s *Stream) Head() int64 { return s.head }

// Result tells what a commit did.
type Result struct {
	Rows     int64 // accepted events written to the log
	Dropped  int64 // events that another worker had committed from another partition in the meantime
	Added    int64 // history rows written, closed ones rewritten included
	Retired  int64 // history rows replaced
	Versions int64 // versions opened, less those that late changes removed
	NoOps    int64 // changes that opened no version
	LateKeys int64 // keys whose history was derived anew
	// Foreign are identities that other workers have committed, which the batch's maker may not know of.
	Foreign []Accepted
}

// Add adds what another commit did.
func (r *Result) Add(o Result) {
	r.Rows += o.Rows
	r.Dropped += o.Dropped
	r.Added += o.Added
	r.Retired += o.Retired
	r.Versions += o.Versions
	r.NoOps += o.NoOps
	r.LateKeys += o.LateKeys
}

// Accepted is an accepted event's identity and position.
type Accepted struct {
	feature.Identity
	feature.Position
}

// Commit writes a micro-batch: its rows to the log, then what follows from them to the history. Each moves the offsets
// of the batch's spans in the same snapshot. known is the log's head that the maker of the batch knew all identities
// of, besides those that this stream committed; events that others have committed since are dropped from it. The batch
// keeps its Arrow memory.
func (s *Stream) Commit(ctx context.Context, b *feature.Batch, known int64) (Result, error) {
	var r Result
	rows, err := s.commitLog(ctx, b, known, &r)
	if err != nil {
		return r, err
	}
	defer releaseAll(rows)
	if s.history == nil {
		return r, s.log.upkeep(ctx)
	}
	if err := s.merger.commit(ctx, rows, b.Spans, &r); err != nil {
		return r, err
	}
	return r, errors.Join(s.log.upkeep(ctx), s.history.upkeep(ctx))
}

// catchUp brings the history to where the log stands, reading from the log what it lacks.
func (s *Stream) catchUp(ctx context.Context) error {
	spans, err := s.behind()
	if err != nil || len(spans) == 0 {
		return err
	}
	relation, err := s.log.Scan(ctx, ScanOptions{})
	if err != nil {
		return err
	}
	if err := s.db.LakeView(ctx, "catch_up", relation, false); err != nil {
		return err
	}
	statement := sql.Render("SELECT * FROM catch_up WHERE {where}", sql.Args{"where": within(spans)})
	batches, err := s.db.Collect(ctx, statement)
	if err != nil {
		return fmt.Errorf("catch the history of %s up: %w", s.def.Name, err)
	}
	defer releaseAll(batches)
	var r Result
	if err := s.merger.commit(ctx, batches, spans, &r); err != nil {
		return fmt.Errorf("catch the history of %s up: %w", s.def.Name, err)
	}
	return nil
}

// behind lists the spans that the log has taken and the history hasn't.
func (s *Stream) behind() ([]feature.Span, error) {
	log, err := s.log.Offsets()
	if err != nil {
		return nil, err
	}
	history, err := s.history.Offsets()
	if err != nil {
		return nil, err
	}
	return missing(log, history), nil
}

// missing lists the spans that a log has taken and a history hasn't. A file that both have forgotten is in neither: they
// forget in the same order.
func missing(log, history Offsets) []feature.Span {
	var spans []feature.Span
	add := func(p feature.Partition, to Offset, done bool) {
		from, _ := history.Of(p)
		if from.Next < to.Next {
			spans = append(spans, feature.Span{
				Partition: p, TopicID: to.TopicID, From: from.Next, To: to.Next, Watermark: to.Watermark, RecordedAt: to.RecordedAt,
				Counts: subtract(to.Counts, from.Counts), Done: done,
			})
		}
	}
	for p, o := range log.Partitions {
		add(p, o, false)
	}
	for _, f := range log.Files {
		add(feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}, Offset{Next: f.Next, Watermark: f.Watermark, Counts: f.Counts}, f.Done)
	}
	slices.SortFunc(spans, feature.CompareSpans)
	return spans
}

func subtract(a, b feature.Counts) feature.Counts {
	return feature.Counts{
		Read: a.Read - b.Read, Accepted: a.Accepted - b.Accepted, Refused: a.Refused - b.Refused, Duplicate: a.Duplicate - b.Duplicate,
		IDReuse: a.IDReuse - b.IDReuse, Extra: a.Extra - b.Extra, Ahead: a.Ahead - b.Ahead, Unkeyed: a.Unkeyed - b.Unkeyed,
	}
}

// within is the condition that a log row stands in one of the spans.
func within(spans []feature.Span) sql.Fragment {
	parts := make([]sql.Fragment, len(spans))
	for i, s := range spans {
		parts[i] = sql.Fragment(fmt.Sprintf(`(topic = %s AND "partition" = %d AND "offset" >= %d AND "offset" < %d)`,
			sql.Literal(s.Topic), s.Index, s.From, s.To))
	}
	return sql.Join(" OR ", parts)
}
