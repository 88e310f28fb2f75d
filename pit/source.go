package pit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Kinds of labels, which say what their hash in the card is of.
const (
	fileLabels   = "file"   // the bytes of the file
	streamLabels = "stream" // the bytes of the Arrow IPC stream
	tableLabels  = "table"  // the text of the rows: of each a JSON array of its values' texts, and a line feed
	sqlLabels    = "sql"    // as of a table
)

// sources are the tables that a build reads: streams for features, labels and outcomes, each opened once, and a table of
// labels.
type sources struct {
	readings   map[string]*lake.Reading // by stream
	labelQuery *sql.Select              // where a query gives the labels
	labelTable *lake.Table              // where a table does
	labelTag   bool                     // whether its snapshot could be tagged
}

// reading opens a stream's tables, once a build, so that all that is read of them is of one moment.
func (b *build) reading(ctx context.Context, s *feature.Stream) (*lake.Reading, error) {
	if r := b.readings[s.Name]; r != nil {
		return r, nil
	}
	r, err := b.read(ctx, s)
	if err != nil {
		return nil, err
	}
	b.readings[s.Name] = r
	maps.Copy(b.card.Snapshots, r.Snapshots())
	maps.Copy(b.card.Tables, r.Pins())
	return r, nil
}

// tables are those that a build reads, in order, each once; empty ones are left out.
func (b *build) tables() []*lake.Table {
	var all []*lake.Table
	for _, name := range slices.Sorted(maps.Keys(b.readings)) {
		for _, t := range []*lake.Table{b.readings[name].Log, b.readings[name].History} {
			if t != nil && t.SnapshotID() != 0 {
				all = append(all, t)
			}
		}
	}
	if b.labelTag && !slices.ContainsFunc(all, func(t *lake.Table) bool { return t.Name() == b.labelTable.Name() }) {
		all = append(all, b.labelTable)
	}
	return all
}

// checkExpr checks expressions by the engine that will run them.
func (b *build) checkExpr(ctx context.Context) feature.CheckExpr {
	return func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		list := make([]sql.Column, len(columns))
		for i, c := range columns {
			list[i] = sql.Column{Name: c.Name, Type: c.Type.SQL()}
		}
		return b.db.CheckScalar(ctx, expr, list, want.SQL())
	}
}

// labelError names the place that says which labels are meant.
func (b *build) labelError(key string, err error) error {
	if at := b.request.LabelsAt; at.File != "" {
		return fmt.Errorf("%s: labels.%s: %w", at, key, err)
	}
	return fmt.Errorf("labels by %s: %w", key, err)
}

// planLabels opens the tables that labels come from, where they do.
func (b *build) planLabels(ctx context.Context) error {
	switch {
	case b.request.LabelsTable != "":
		t, err := b.openLabels(ctx)
		if err != nil {
			return b.labelError("table", err)
		}
		for _, read := range b.tables() { // a stream's own table is read at the snapshot that the features are
			if read.Name() == t.Name() {
				t = read
			}
		}
		if b.request.KnownAt != nil && b.ofStream(t) {
			return b.labelError("table", fmt.Errorf("%s is a stream's table, which isn't cut to known_at: take the labels by a query over the stream's log", t.Name()))
		}
		b.labelTable = t
		if t.SnapshotID() != 0 {
			b.card.Snapshots[t.Name()] = t.SnapshotID()
		}
	case b.request.LabelsSQL != "":
		names := queryTables(b.project.Streams, b.request.KnownAt != nil)
		query, err := checkQuery(ctx, b.db, &b.request, names)
		if err != nil {
			return b.labelError("sql", err)
		}
		for _, table := range query.Tables {
			if _, err := b.reading(ctx, names[table]); err != nil {
				return err
			}
			b.card.Definitions = append(b.card.Definitions, names[table].Definition())
		}
		b.labelQuery = query
	}
	return nil
}

// queryTables are the tables that a query for labels may read, each with its stream.
func queryTables(streams []*feature.Stream, knownAt bool) map[string]*feature.Stream {
	names := map[string]*feature.Stream{}
	for _, s := range streams {
		names[lake.LogName(s.Name)] = s
		if s.Kind == feature.StateStream && !knownAt {
			names[lake.HistoryName(s.Name)], names[lake.CurrentName(s.Name)] = s, s
		}
	}
	return names
}

func checkQuery(ctx context.Context, db *sql.DB, r *feature.DatasetRequest, names map[string]*feature.Stream) (*sql.Select, error) {
	query, err := db.CheckSelect(ctx, r.LabelsSQL, slices.Sorted(maps.Keys(names)))
	if err != nil && r.KnownAt != nil {
		err = fmt.Errorf("%w (with known_at the logs alone, for histories hold all that was learnt since)", err)
	}
	return query, err
}

// ofStream reports whether a table is a log or a history of the project.
func (b *build) ofStream(t *lake.Table) bool {
	return slices.ContainsFunc(b.project.Streams, func(s *feature.Stream) bool {
		return t.Name() == b.lake.TableName(lake.LogName(s.Name)) || t.Name() == b.lake.TableName(lake.HistoryName(s.Name))
	})
}

// openLabels opens the table of labels: as it is now, or as it was read before.
func (b *build) openLabels(ctx context.Context) (*lake.Table, error) {
	if b.again == nil {
		return b.lake.OpenForeign(ctx, b.request.LabelsTable, 0)
	}
	return b.lake.OpenForeign(ctx, b.again.Labels.Table, b.again.Snapshots[b.again.Labels.Table])
}

// pinLabels tags the snapshot of a table of labels. A table that can't be tagged is only named in the card.
func (b *build) pinLabels(ctx context.Context) {
	t := b.labelTable
	if t == nil || t.SnapshotID() == 0 || b.again != nil {
		return
	}
	if err := t.Tag(ctx, b.card.Tag, t.SnapshotID()); err != nil {
		b.card.Warnings = append(b.card.Warnings, fmt.Sprintf("table %s can't be tagged, so its snapshot may expire: %v", t.Name(), err))
		return
	}
	b.labelTag = true
}

// source is where labels are read from: a relation of DuckDB that has them in their order.
type source struct {
	what   string // for errors: the file, the table or the query
	scan   sql.Fragment
	kind   string
	sha256 string // "" where it is to be taken of the rows
	csv    string // path of a CSV file
}

// sourceTable holds labels that come by Arrow, until the table labels is made of them.
const sourceTable = "label_source"

// openSource makes the relation that the labels are read from.
func (b *build) openSource(ctx context.Context, textKeys []string) (source, error) {
	switch {
	case b.labelTable != nil:
		return b.tableSource(ctx)
	case b.labelQuery != nil:
		return b.querySource(ctx)
	case b.request.Labels == feature.Standard:
		return b.streamSource(ctx)
	default:
		return fileSource(ctx, b.db, b.request.Labels, textKeys)
	}
}

// fileSource reads a label file. Join keys that are text in a stream are read as text from CSV, where they may look like
// numbers.
func fileSource(ctx context.Context, db *sql.DB, path string, textKeys []string) (source, error) {
	s := source{what: path, kind: fileLabels}
	var err error
	if s.sha256, err = hashFile(path); err != nil {
		return s, err
	}
	switch lower := strings.ToLower(path); {
	case strings.HasSuffix(lower, ".parquet"):
		if s.scan, err = db.ParquetScan(ctx, path, sourceTable); err != nil {
			err = fmt.Errorf("read labels %s: %w", path, err)
		}
	case strings.HasSuffix(lower, ".csv"), strings.HasSuffix(lower, ".csv.gz"):
		s.csv = path
		s.scan, err = csvScan(ctx, db, path, textKeys)
	case strings.HasSuffix(lower, ".arrow"), strings.HasSuffix(lower, ".arrows"), strings.HasSuffix(lower, ".feather"), strings.HasSuffix(lower, ".ipc"):
		s.scan, err = sourceTable, importFile(ctx, db, path)
	default:
		err = fmt.Errorf("labels %s: can't tell what the file holds; its name must end in .parquet, .csv, .csv.gz, .arrow, .arrows, .feather or .ipc", path)
	}
	return s, err
}

// importFile reads an Arrow IPC file, of the file format or the stream format.
func importFile(ctx context.Context, db *sql.DB, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open labels: %w", err)
	}
	defer f.Close()
	magic := make([]byte, len(ipc.Magic))
	if _, err := io.ReadFull(f, magic); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read labels %s: %w", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read labels %s: %w", path, err)
	}
	if string(magic) != string(ipc.Magic) {
		return importStream(ctx, db, path, f, 0)
	}
	r, err := ipc.NewFileReader(f)
	if err != nil {
		return fmt.Errorf("labels %s are no Arrow IPC file: %w", path, err)
	}
	defer r.Close()
	if err := db.ImportFile(ctx, sourceTable, r); err != nil {
		return fmt.Errorf("read labels %s: %w", path, err)
	}
	return nil
}

// importStream reads an Arrow IPC stream to its end. With bytesMax it may be anybody's, and have so many bytes and rows.
func importStream(ctx context.Context, db *sql.DB, what string, from io.Reader, bytesMax int64) error {
	if bytesMax > 0 {
		s, err := sql.OpenStream(from, bytesMax)
		if err != nil {
			return fmt.Errorf("labels %s: %w", what, err)
		}
		defer s.Close()
		if err := db.ImportSeq(ctx, sourceTable, s.Schema(), s.Batches()); err != nil {
			return fmt.Errorf("read labels %s: %w", what, err)
		}
		return nil
	}
	r, err := ipc.NewReader(from)
	if err != nil {
		return fmt.Errorf("labels %s are neither an Arrow IPC file nor a stream: %w", what, err)
	}
	defer r.Release()
	if err := db.ImportSeq(ctx, sourceTable, r.Schema(), sql.Retained(r)); err != nil {
		return fmt.Errorf("read labels %s: %w", what, err)
	}
	return nil
}

func (b *build) streamSource(ctx context.Context) (source, error) {
	s := source{what: "of the Arrow stream", kind: streamLabels, scan: sourceTable}
	if b.options.In == nil {
		return s, errors.New("there is no standard input to read labels from: name a file")
	}
	sum := sha256.New()
	in := io.TeeReader(b.options.In, sum)
	if err := importStream(ctx, b.db, s.what, in, b.options.InBytesMax); err != nil {
		return s, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what stands after the stream's end
		return s, fmt.Errorf("read labels %s: %w", s.what, err)
	}
	s.sha256 = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

// tableSource reads a table of labels in the order of its columns: a table has none of its own.
func (b *build) tableSource(ctx context.Context) (source, error) {
	s := source{what: "in table " + b.labelTable.Name(), kind: tableLabels, scan: "(FROM " + sourceTable + " ORDER BY ALL)"}
	schema, batches, err := b.labelTable.Rows(ctx, b.labelTable.SnapshotID())
	if err != nil {
		return s, err
	}
	if err := b.db.ImportSeq(ctx, sourceTable, schema, batches); err != nil {
		return s, fmt.Errorf("read table %s: %w", b.labelTable.Name(), err)
	}
	return s, nil
}

// querySource runs the query that gives the labels, in a database of its own that can read the data files of the tables that
// it names, and nothing else.
func (b *build) querySource(ctx context.Context) (_ source, failed error) {
	s := source{what: "by sql", kind: sqlLabels, scan: sourceTable}
	// The two share the memory meanwhile.
	if whole := b.options.MemoryBytes; whole > 0 {
		if err := b.limit(ctx, whole/2); err != nil {
			return s, err
		}
		defer func() { failed = errors.Join(failed, b.limit(ctx, whole)) }()
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: b.options.MemoryBytes / 2, TempDir: filepath.Join(b.temp, "query")})
	if err != nil {
		return s, err
	}
	defer db.Close()
	var paths []string
	for _, name := range b.labelQuery.Tables {
		for _, r := range b.readings {
			more, err := b.queryView(ctx, db, r, name)
			if err != nil {
				return s, err
			}
			paths = append(paths, more...)
		}
	}
	if err := db.Confine(ctx, paths); err != nil {
		return s, err
	}
	columns, err := db.Bind(ctx, b.labelQuery)
	if err == nil {
		err = checkHeld(columns)
	}
	text := ""
	if err == nil {
		text, err = db.Settled(ctx, b.labelQuery)
	}
	if err == nil {
		err = db.Arrow(ctx, text, func(r array.RecordReader) error { return b.db.ImportSeq(ctx, sourceTable, r.Schema(), sql.Retained(r)) })
	}
	if err == nil {
		err = b.checkWide(ctx, columns)
	}
	if err != nil {
		return s, b.labelError("sql", err)
	}
	return s, nil
}

// checkWide refuses whole numbers of a query that came as decimals of 38 digits and have more.
func (b *build) checkWide(ctx context.Context, columns []sql.Column) error {
	for _, c := range columns {
		if c.Type != "HUGEINT" {
			continue
		}
		var wide bool
		err := b.db.QueryRow(ctx, sql.Render("SELECT coalesce(bool_or(abs({column}::HUGEINT) > 99999999999999999999999999999999999999::HUGEINT), false) FROM {table}",
			sql.Args{"column": sql.Ident(c.Name), "table": sourceTable}), nil, &wide)
		if err != nil {
			return err
		}
		if wide {
			return fmt.Errorf("column %s has whole numbers of more than 38 digits, which a training set can't hold: cast it, to VARCHAR or another type", c.Name)
		}
	}
	return nil
}

// limit bounds the memory of the build's DuckDB.
func (b *build) limit(ctx context.Context, bytes int64) error {
	return b.db.Exec(ctx, fmt.Sprintf("SET memory_limit = '%dB'", bytes))
}

// queryView makes the view that a query knows a table by, if it is the reading's, and gives the files that it reads.
func (b *build) queryView(ctx context.Context, db *sql.DB, r *lake.Reading, name string) ([]string, error) {
	t, err := r.Log, error(nil)
	switch stream := r.Stream.Name; name {
	case lake.LogName(stream):
		if err = r.LogView(ctx, db, "loam_"+name, nil, false); err == nil {
			err = db.Exec(ctx, sql.Render("CREATE VIEW {name} AS FROM {all} WHERE {recorded}",
				sql.Args{"name": sql.Ident(name), "all": sql.Ident("loam_" + name), "recorded": b.recorded()}))
		}
	case lake.HistoryName(stream):
		t, err = r.History, r.HistoryView(ctx, db, name, nil)
	case lake.CurrentName(stream):
		t = r.History
		columns := append(feature.ColumnNames(r.Stream.Columns), feature.ColValidFrom)
		if err = r.HistoryView(ctx, db, "loam_"+name, append(columns, feature.ColIsCurrent)); err == nil {
			err = db.Exec(ctx, sql.Render("CREATE VIEW {name} AS SELECT {columns} FROM {all} WHERE {current}", sql.Args{
				"name": sql.Ident(name), "all": sql.Ident("loam_" + name), "columns": sql.Idents("", columns), "current": sql.Ident(feature.ColIsCurrent),
			}))
		}
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files, err := t.Scan(ctx, lake.ScanOptions{})
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(files.Files))
	for i, f := range files.Files {
		paths[i] = f.Path
	}
	return paths, nil
}

// hashRows is the hash of the text of the labels' rows, in their order.
func hashRows(ctx context.Context, db *sql.DB, columns []string) (string, error) {
	items := make([]sql.Fragment, len(columns))
	for i, c := range columns {
		items[i] = sql.Ident(c) + "::VARCHAR"
	}
	sum := sha256.New()
	err := db.Arrow(ctx, sql.Render("SELECT to_json([{items}])::VARCHAR FROM labels ORDER BY {row}",
		sql.Args{"items": sql.Join(", ", items), "row": sql.Ident(labelRow)}), func(r array.RecordReader) error {
		for r.Next() {
			texts := r.RecordBatch().Column(0).(*array.String)
			for i := range texts.Len() {
				io.WriteString(sum, texts.Value(i)+"\n") // a hash takes all
			}
		}
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no label file %s", path)
	} else if err != nil {
		return "", fmt.Errorf("open labels: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read labels %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// paths makes the paths of the request absolute, and refuses a build that would overwrite what it reads.
func (b *build) paths() error {
	r := &b.request
	for _, p := range []*string{&r.Labels, &r.Out, &r.Card} {
		if *p != "" && *p != feature.Standard && !filepath.IsAbs(*p) {
			*p = filepath.Join(b.project.Dir, *p)
		}
	}
	card := b.cardPath()
	switch {
	case r.Labels != feature.Standard && (r.Labels == r.Out || r.Labels == card && card != ""):
		return fmt.Errorf("the training set would overwrite its labels %s: name another file", r.Labels)
	case card != "" && card == r.Out:
		return fmt.Errorf("the training set and its card would be one file %s: name another", card)
	}
	if _, err := os.Stat(card); card != "" && err == nil {
		if _, err := ReadCard(card); err != nil {
			return fmt.Errorf("%s is there and can't be read as a card, so it isn't replaced by one: name another, or remove it", card)
		}
	}
	return nil
}
