package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
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

// streamTable is one of a stream's tables as its definition wants it.
type streamTable struct {
	name      string
	columns   []feature.Column
	partition []partitionField
}

// tablesOf are the tables of a stream, the log first: a history never has a column that its log lacks.
func tablesOf(s *feature.Stream) []streamTable {
	bucket := partitionField{column: s.ClusterBy, transform: iceberg.BucketTransform{NumBuckets: Buckets}, name: bucketField}
	tables := []streamTable{{LogName(s.Name), s.LogColumns(), []partitionField{bucket}}}
	if s.Kind == feature.StateStream {
		current := partitionField{column: feature.ColIsCurrent, transform: iceberg.IdentityTransform{}, name: currentField}
		tables = append(tables, streamTable{HistoryName(s.Name), s.HistoryColumns(), []partitionField{current, bucket}})
	}
	return tables
}

// Refusal says why the tables of a stream can't follow its definition, and what to do instead; it is empty where they
// can, or are not there yet.
func (l *Lake) Refusal(ctx context.Context, s *feature.Stream) (string, error) {
	for _, want := range tablesOf(s) {
		t, err := l.openTable(ctx, want.name)
		if errors.Is(err, ErrNoTable) {
			continue
		} else if err != nil {
			return "", err
		}
		if _, err := evolutionOf(t.tbl, s, want.columns); err != nil {
			return err.Error(), nil
		}
	}
	return "", nil
}

// CreateStream makes the tables of a stream where they are missing, brings those that are there to its definition, and keeps
// the view of what is current where the catalog has views. Where one of the tables can't follow, none is touched.
func (l *Lake) CreateStream(ctx context.Context, s *feature.Stream) error {
	refusal, err := l.Refusal(ctx, s)
	if err != nil {
		return err
	}
	if refusal != "" {
		return errors.New(refusal)
	}
	rests := iceberg.Properties{propertyStream: restsOn(s).text()}
	for _, want := range tablesOf(s) {
		if err := l.createTable(ctx, want.name, icebergSchema(want.columns), want.partition, rests); err != nil {
			return err
		}
		t, err := l.openTable(ctx, want.name)
		if err != nil {
			return err
		}
		if err := t.evolve(ctx, s, want.columns); err != nil {
			return err
		}
	}
	if err := l.KeepView(ctx, s); err != nil && !errors.Is(err, ErrNoViews) {
		return err
	}
	return nil
}

// Stream is a stream's tables, open for writing by one worker. It is not safe for concurrent use.
type Stream struct {
	def     *feature.Stream
	layout  *layout // of the stream with the columns that it no longer declares
	log     *Table
	history *Table // nil for an event stream
	merger  *merger
	db      *sql.DB
	seeker  *seeker        // of rows of the log, the merger's where there is one; nil where files aren't in the order of the key
	own     map[int64]bool // the log's snapshots that this stream wrote
	head    Head           // see Head

	listed     []*liveFile // the log's files at the snapshot listedHead; nil until they are needed
	listedHead int64
}

// StreamOptions bound what writing a stream may use.
type StreamOptions struct {
	MemoryBytes int64  // of DuckDB, which reads what late changes touch; 0 leaves its default
	TempDir     string // where it spills to, and what follows
	// IndexBytes is the memory that the open versions of a history may take on the heap, some 300 bytes an entity; what
	// goes beyond it stands in a file below TempDir. 0 means no bound. Some 40 bytes an entity always stand on the heap.
	IndexBytes int64
}

// OpenStream opens the tables of a stream for writing. A history that is behind its log, because a process ended between
// the two commits, is caught up from the log.
func (l *Lake) OpenStream(ctx context.Context, def *feature.Stream, o StreamOptions) (*Stream, error) {
	s := &Stream{def: def, own: map[int64]bool{}}
	var err error
	if s.log, err = l.openFor(ctx, LogName(def.Name), def.LogColumns()); err != nil {
		return nil, err
	}
	if err := s.log.notRewinding(def.Name); err != nil {
		return nil, err
	}
	rewound := s.log.tbl.Properties()[propertyRewind]
	s.log.rewound = &rewound
	last := s.log // of the tables to be brought to a definition; it says what both have
	if def.Kind == feature.StateStream {
		if s.history, err = l.openTable(ctx, HistoryName(def.Name)); err != nil {
			return nil, err
		}
		last = s.history
	}
	whole, err := last.whole(def)
	if err != nil {
		return nil, err
	}
	s.layout = newLayout(whole)
	if s.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	s.head = headOf(s.log.tbl)
	if def.Kind == feature.EventStream {
		if def.ClusterBy == def.Key[0] {
			s.seeker = newSeeker(s.log, s.layout.key, feature.ColEventTime, feature.ColEventTime)
		}
		return s, nil
	}
	if err := s.openHistory(ctx, whole); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.merger = newMerger(s, o)
	s.seeker = s.merger.logSeeker
	if err := s.catchUp(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openHistory opens the history to be written by the stream with all of its columns, as long as it tracks what it does now.
func (s *Stream) openHistory(ctx context.Context, whole *feature.Stream) error {
	if err := s.history.openedFor(whole.HistoryColumns()); err != nil {
		return err
	}
	if err := s.history.tracking(whole); err != nil {
		return err
	}
	rests := s.history.tbl.Properties()[propertyStream]
	s.history.rests = &rests
	if err := s.log.reload(ctx); err != nil { // it is then at least as far as the history
		return err
	}
	log, err := s.log.Offsets()
	if err != nil {
		return err
	}
	history, err := s.history.Offsets()
	if err != nil {
		return err
	}
	return notBeyond(s.def, history, log)
}

// openFor opens a table to be written with these columns: from then on it is ErrChanged where its columns are others than
// now, whoever has changed them. A commit that was on its way then is right, since columns are known by their field ids.
func (l *Lake) openFor(ctx context.Context, name string, columns []feature.Column) (*Table, error) {
	t, err := l.openTable(ctx, name)
	if err != nil {
		return nil, err
	}
	return t, t.openedFor(columns)
}

func (t *Table) openedFor(columns []feature.Column) error {
	if err := t.has(columns); err != nil {
		return err
	}
	id := t.tbl.Schema().ID
	t.schema = &id
	return nil
}

// has refuses a table that lacks one of the columns.
func (t *Table) has(columns []feature.Column) error {
	for _, c := range columns {
		id := 0
		field, ok := t.tbl.Schema().FindFieldByName(c.Name)
		if want := icebergType(c.Type, func() int { id++; return id }); !ok || !sameType(field.Type, want) {
			return fmt.Errorf("table %s has no column %s of type %s: see `loam plan`, then `loam apply`", t.Name(), c.Name, c.Type)
		}
	}
	return nil
}

// whole is the stream with all columns that the table has of it.
func (t *Table) whole(def *feature.Stream) (*feature.Stream, error) {
	r, err := readRests(t.tbl.Properties())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name(), err)
	}
	return withDropped(def, r)
}

// Close frees what the stream holds; nothing is lost with it.
func (s *Stream) Close() error {
	if s.merger != nil {
		s.merger.close()
	} else if s.seeker != nil {
		s.seeker.close()
	}
	return s.db.Close()
}

// Definition is the stream's definition.
func (s *Stream) Definition() *feature.Stream { return s.def }

// Offsets is where the log stands.
func (s *Stream) Offsets() (Offsets, error) { return s.log.Offsets() }

// Head is a snapshot of a log; the zero value is that of an empty one.
type Head struct {
	Snapshot       int64
	SequenceNumber int64 // Iceberg's, which grows with each snapshot
}

func headOf(tbl *table.Table) Head {
	if s := tbl.CurrentSnapshot(); s != nil {
		return Head{s.SnapshotID, s.SequenceNumber}
	}
	return Head{}
}

// Head is the snapshot of the log all of whose events the caller has been told of: by Recent, as the batches that it committed,
// or as what those found foreign. The log may be loaded further than that.
func (s *Stream) Head() Head { return s.head }

// Result tells what a commit did.
type Result struct {
	Rows     int64 // accepted events written to the log
	Dropped  int64 // events that another worker had committed from another partition in the meantime
	Added    int64 // history rows written, closed ones rewritten included
	Retired  int64 // history rows replaced
	Versions int64 // versions opened, less those that late changes removed
	NoOps    int64 // changes that opened no version
	LateKeys int64 // keys whose history was derived anew
	// Logged says that the log has taken the batch, also where the history then failed.
	Logged bool
	// Foreign are identities that other workers have committed, which the batch's maker may not know of.
	Foreign []Accepted
	Timings
}

// Timings say where the time of a commit went. What is repeated after a conflict is counted each time.
type Timings struct {
	Log     time.Duration // writing and committing the log
	History time.Duration // planning, writing and committing the history: all that follows, and finding what others have changed
	Late    time.Duration // reading what late changes touch
	Plan    time.Duration // deriving versions from changes
	Files   time.Duration // writing data files
	Vectors time.Duration // writing deletion vectors
	Commit  time.Duration // staging manifests and metadata, and moving the catalog
	Upkeep  time.Duration // merging manifests and expiring snapshots, of both tables
}

// Add adds the times of another commit.
func (t *Timings) Add(o Timings) {
	t.Log += o.Log
	t.History += o.History
	t.Late += o.Late
	t.Plan += o.Plan
	t.Files += o.Files
	t.Vectors += o.Vectors
	t.Commit += o.Commit
	t.Upkeep += o.Upkeep
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
	r.Timings.Add(o.Timings)
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
func (s *Stream) Commit(ctx context.Context, b *feature.Batch, known Head) (Result, error) {
	var r Result
	if s.merger != nil && s.merger.index == nil {
		if err := s.Warm(ctx); err != nil { // before the log has rows that the history hasn't
			return r, err
		}
	}
	begin := time.Now()
	rows, err := s.commitLog(ctx, b, known, &r)
	if err != nil {
		return r, err
	}
	defer releaseAll(rows)
	r.Log, r.Logged = time.Since(begin), true
	step.At(step.LogCommitted)
	if s.history != nil {
		if err := s.merger.commit(ctx, rows, b.Spans, &r); err != nil {
			return r, err
		}
	}
	begin = time.Now()
	err = unlessChanged(s.log.upkeep(ctx))
	if s.history != nil {
		err = errors.Join(err, unlessChanged(s.history.upkeep(ctx)))
	}
	r.Upkeep = time.Since(begin)
	return r, err
}

// unlessChanged drops the error of upkeep that columns have changed, or that the stream was rewound: the batch is committed, and the next one is told.
func unlessChanged(err error) error {
	if errors.Is(err, ErrChanged) || errors.Is(err, ErrRewound) {
		return nil
	}
	return err
}

// Resume brings the stream to where others have left these partitions, and gives the log's offsets: who read them before may have ended
// between the commits to the log and to the history.
func (s *Stream) Resume(ctx context.Context, partitions []feature.Partition) (Offsets, error) {
	if s.history != nil {
		if err := s.history.reload(ctx); err != nil {
			return Offsets{}, err
		}
	}
	if err := s.log.reload(ctx); err != nil { // it is then at least as far as the history
		return Offsets{}, err
	}
	if s.history != nil {
		behind, err := s.behind()
		if err != nil {
			return Offsets{}, err
		}
		behind = slices.DeleteFunc(behind, func(span feature.Span) bool { return !slices.Contains(partitions, span.Partition) })
		if err := s.catchUpBy(ctx, behind); err != nil {
			return Offsets{}, err
		}
	}
	return s.log.Offsets()
}

// Check is [ErrRewound] or [ErrChanged] where the stream has to be opened anew, and [ErrFenced] where the log doesn't stand where the
// spans begin.
func (s *Stream) Check(ctx context.Context, spans []feature.Span) error {
	if err := s.log.reload(ctx); err != nil {
		return err
	}
	offsets, err := s.log.Offsets()
	if err != nil {
		return err
	}
	_, err = offsets.move(spans, "")
	return err
}

// Warm loads what commits to a history need in memory. Without it the first commit does.
func (s *Stream) Warm(ctx context.Context) error {
	if s.merger == nil {
		return nil
	}
	return s.merger.refresh(ctx)
}

// catchUp brings the history to where the log stands, reading from the log what it lacks.
func (s *Stream) catchUp(ctx context.Context) error {
	behind, err := s.behind()
	if err != nil {
		return err
	}
	// The rows of a redrive stand at offsets that the history may be beyond, so they go alone.
	var read, redriven []feature.Span
	for _, span := range behind {
		if isRedrive(span) {
			redriven = append(redriven, span)
		} else {
			read = append(read, span)
		}
	}
	if err := s.catchUpBy(ctx, read); err != nil {
		return err
	}
	return s.catchUpBy(ctx, redriven)
}

func (s *Stream) catchUpBy(ctx context.Context, spans []feature.Span) error {
	if len(spans) == 0 {
		return nil
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
	s.merger.written = nil // the rows are others' too
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
				Partition: p, TopicID: to.TopicID, From: from.Next, To: to.Next, Watermark: to.Watermark, RecordedAt: to.RecordedAt, Newest: to.Newest,
				Counts: subtract(to.Counts, from.Counts), Done: done,
			})
		}
	}
	for p, o := range log.Partitions {
		add(p, o, false)
	}
	for _, f := range log.Files {
		add(feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}, Offset{Next: f.Next, Watermark: f.Watermark, Newest: f.Newest, Counts: f.Counts}, f.Done)
	}
	if log.Redrive.JobID != history.Redrive.JobID {
		spans = append(spans, redriveSpan(log.Redrive.JobID))
	}
	slices.SortFunc(spans, feature.CompareSpans)
	return spans
}

// subtract gives what a log has counted and its history hasn't. Ties, which histories count, are not among it.
func subtract(a, b feature.Counts) feature.Counts {
	return feature.Counts{
		Read: a.Read - b.Read, Accepted: a.Accepted - b.Accepted, Refused: a.Refused - b.Refused, Duplicate: a.Duplicate - b.Duplicate,
		IDReuse: a.IDReuse - b.IDReuse, Extra: a.Extra - b.Extra, Ahead: a.Ahead - b.Ahead, Unkeyed: a.Unkeyed - b.Unkeyed, Late: a.Late - b.Late,
	}
}

// within is the condition that a log row stands in one of the spans.
func within(spans []feature.Span) sql.Fragment {
	parts := make([]sql.Fragment, len(spans))
	for i, s := range spans {
		if job, ok := feature.RedriveJob(s.Topic); ok {
			parts[i] = "job_id IS NOT DISTINCT FROM " + sql.Literal(job)
			continue
		}
		parts[i] = sql.Fragment(fmt.Sprintf(`(topic = %s AND "partition" = %d AND "offset" >= %d AND "offset" < %d)`,
			sql.Literal(s.Topic), s.Index, s.From, s.To))
	}
	return sql.Join(" OR ", parts)
}
