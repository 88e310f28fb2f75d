package verify

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

var seed = flag.Uint64("seed", 0, "seed of the random histories; 0 takes one from the clock")

func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return rand.New(rand.NewPCG(s, 7))
}

// testStream is a state stream with columns of every type, of which two are not tracked.
func testStream(payload feature.Payload) *feature.Stream {
	column := func(name, text string) feature.Column {
		typ, err := feature.ParseType(text)
		if err != nil {
			panic(err)
		}
		return feature.Column{Name: name, Type: typ, Path: []string{name}}
	}
	return &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "thing.v1", Key: []string{"b", "a"}, ClusterBy: "b",
		EventTime: "changed", Payload: payload, Track: []string{"s", "x", "m", "l", "day", "yes"},
		Columns: []feature.Column{
			column("a", "string"), column("b", "int64"), column("s", "string"), column("x", "double"), column("m", "decimal(18,4)"),
			column("l", "list<double>"), column("day", "date"), column("yes", "bool"), column("u", "int64"), column("j", "json"),
		},
	}
}

// change is an accepted event of testStream: values and present as JSON gives them.
type change struct {
	a        string
	b        int64
	at       int64 // event time, seconds
	sequence any
	topic    string
	offset   int64
	id       string // "" for one made of the position
	deleted  bool
	values   map[string]any
	present  []string
}

// world is a lake with one stream, open for writing.
type world struct {
	t      testing.TB
	dir    string
	lake   *lake.Lake
	def    *feature.Stream
	stream *lake.Stream
	from   map[string]int64 // where the next batch of a topic starts
}

func newWorld(t testing.TB, def *feature.Stream) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), def: def, from: map[string]int64{}}
	var err error
	w.lake, err = lake.Open(context.Background(), lake.Config{
		Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "test", Dir: w.dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.lake.Close() })
	w.open()
	t.Cleanup(func() { w.stream.Close() })
	return w
}

// open opens the stream anew, as a restart does.
func (w *world) open() {
	w.t.Helper()
	ctx := context.Background()
	if w.stream != nil {
		w.stream.Close()
	}
	if err := w.lake.CreateStream(ctx, w.def); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if w.stream, err = w.lake.OpenStream(ctx, w.def, lake.StreamOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// batch makes a batch of changes whose spans start where the last batch of their topics ended.
func (w *world) batch(changes []change) *feature.Batch {
	w.t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, w.def.LogSchema())
	defer b.Release()
	spans := map[string]*feature.Span{}
	for _, c := range changes {
		w.row(b, c)
		s := spans[c.topic]
		if s == nil {
			s = &feature.Span{Partition: feature.Partition{Topic: c.topic}, From: w.from[c.topic]}
			spans[c.topic] = s
		}
		s.To = max(s.To, c.offset+1)
		s.Watermark = max(s.Watermark, c.at*1e6)
		s.Counts.Read++
		s.Counts.Accepted++
	}
	batch := &feature.Batch{Stream: w.def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}}
	for topic, s := range spans {
		w.from[topic] = s.To
		batch.Spans = append(batch.Spans, *s)
	}
	slices.SortFunc(batch.Spans, func(a, b feature.Span) int { return strings.Compare(a.Topic, b.Topic) })
	return batch
}

func (w *world) row(b *array.RecordBuilder, c change) {
	w.t.Helper()
	values := map[string]any{
		"a": c.a, "b": c.b, feature.ColEventTime: c.at * 1e6, feature.ColSequence: c.sequence, feature.ColTopic: c.topic,
		feature.ColPartition: 0, feature.ColOffset: c.offset, feature.ColOp: feature.OpUpsert, feature.ColEventID: c.id,
		feature.ColRecordedAt: 5e9 + c.offset, feature.ColIngestedAt: 4e9 + c.offset, feature.ColAssumed: false,
	}
	if c.id == "" {
		values[feature.ColEventID] = fmt.Sprintf("%s-%d", c.topic, c.offset)
	}
	if c.deleted {
		values[feature.ColOp] = feature.OpDelete
	}
	for name, v := range c.values {
		values[name] = v
	}
	if c.present != nil {
		values[feature.ColPresent] = c.present
	}
	for i, f := range w.def.LogSchema().Fields() {
		put(w.t, b.Field(i), values[f.Name])
	}
}

// put appends a value to the builder of its column.
func put(t testing.TB, b array.Builder, value any) {
	t.Helper()
	if value == nil {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.ListBuilder:
		b.Append(true)
		switch list := value.(type) {
		case []any:
			for _, v := range list {
				put(t, b.ValueBuilder(), v)
			}
		case []string:
			for _, v := range list {
				put(t, b.ValueBuilder(), v)
			}
		}
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(number(value)))
	case *array.Int64Builder:
		b.Append(number(value))
	case *array.Float64Builder:
		b.Append(value.(float64))
	case *array.BooleanBuilder:
		b.Append(value.(bool))
	default:
		if err := b.AppendValueFromString(fmt.Sprint(value)); err != nil {
			t.Fatal(err)
		}
	}
}

func number(value any) int64 {
	switch v := value.(type) {
	case int:
		return int64(v)
	case int64:
		return v
	case float64:
		return int64(v)
	default:
		panic(fmt.Sprintf("%T is no number", value))
	}
}

func (w *world) commit(changes ...change) {
	w.t.Helper()
	b := w.batch(changes)
	defer b.Release()
	if _, err := w.stream.Commit(context.Background(), b, w.stream.Head()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) verify(o Options) *Report {
	w.t.Helper()
	r, err := History(context.Background(), w.lake, w.def, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// clean fails the test unless the report has no finding.
func clean(t *testing.T, r *Report) {
	t.Helper()
	if !r.OK() {
		t.Fatalf("%d findings, the first:\n%s", r.Total, text(r.Findings))
	}
}

func text(f Findings) string {
	var b strings.Builder
	for _, one := range f.First {
		fmt.Fprintf(&b, "%s %s: %s\n%s", one.Kind, one.Key, one.Text, one.Drawing)
	}
	return b.String()
}

// rewrite puts the result of a query over the column names of a data file in that file's place. The query reads the rows
// from {rows}; each data file of the table is rewritten until one has changed.
func (w *world) rewrite(table, query string) {
	w.t.Helper()
	ctx := context.Background()
	tbl, err := w.lake.OpenTable(ctx, table)
	if err != nil {
		w.t.Fatal(err)
	}
	relation, err := tbl.Scan(ctx, lake.ScanOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	var ids []sql.Fragment
	for _, c := range relation.Columns {
		id := sql.Fragment(fmt.Sprint(c.FieldID))
		if strings.HasSuffix(c.Type, "[]") {
			id = sql.Fragment(fmt.Sprintf("{__duckdb_field_id: %d, element: %d}", c.FieldID, 1000+c.FieldID))
		}
		ids = append(ids, sql.Ident(c.Name)+": "+id)
	}
	for _, f := range relation.Files {
		rows := sql.Fragment("(SELECT * EXCLUDE (file_row_number) FROM read_parquet(" + string(sql.Literal(f.Path)) + ", file_row_number = true) ORDER BY file_row_number)")
		rendered := strings.ReplaceAll(query, "{rows}", string(rows))
		var same bool
		err := db.QueryRow(ctx, fmt.Sprintf("SELECT count(*) = 0 FROM ((FROM (%[1]s) EXCEPT ALL FROM %[2]s) UNION ALL (FROM %[2]s EXCEPT ALL FROM (%[1]s)))", rendered, rows), nil, &same)
		if err != nil {
			w.t.Fatal(err)
		}
		if same {
			continue
		}
		copied := f.Path + ".new"
		err = db.Exec(ctx, fmt.Sprintf("COPY (%s) TO %s (FORMAT parquet, FIELD_IDS {%s})", rendered, sql.Literal(copied), sql.Join(", ", ids)))
		if err != nil {
			w.t.Fatal(err)
		}
		if err := os.Rename(copied, f.Path); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	w.t.Fatalf("no file of %s changes by %s", table, query)
}

// metadata is the path of a table's newest metadata.
func (w *world) metadata(table string) string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "warehouse", "*", table, "metadata", "*.metadata.json"))
	if err != nil || len(files) == 0 {
		w.t.Fatalf("%s has no metadata: %v", table, err)
	}
	return slices.Max(files)
}

// rewriteMetadata replaces text in the newest metadata of a table.
func (w *world) rewriteMetadata(table, old, with string) {
	w.t.Helper()
	path := w.metadata(table)
	was, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	now := strings.ReplaceAll(string(was), old, with)
	if now == string(was) {
		w.t.Fatalf("%s has no %s: %s", path, old, was)
	}
	if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
		w.t.Fatal(err)
	}
}
