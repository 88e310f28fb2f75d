package lake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/table/dv"

	"github.com/loamdata/loam/sql"
)

// OpenTable opens one of the project's tables for reading, as it is now.
func (l *Lake) OpenTable(ctx context.Context, name string) (*Table, error) {
	return l.openTable(ctx, name)
}

// ScanOptions narrow what [Table.Scan] reads.
type ScanOptions struct {
	SnapshotID int64    // 0 means the newest that is loaded
	Columns    []string // nil means all; one that the table lacks is an error
	// Filter skips files that can't hold a row it is true for; rows are not filtered. nil skips none.
	Filter iceberg.BooleanExpression
}

// Scan gives the files of a snapshot as a relation for DuckDB: deleted rows listed, columns by field id, so that schema
// changes and deletes apply. Files that are not local are copied below the project's folder first.
func (t *Table) Scan(ctx context.Context, o ScanOptions) (sql.Files, error) {
	for _, name := range o.Columns { // before files are filtered by one
		if _, ok := t.readSchema().FindFieldByName(name); !ok {
			return sql.Files{}, fmt.Errorf("table %s has no column %s: see `loam plan`, then `loam apply`", t.Name(), name)
		}
	}
	files, err := t.plan(ctx, o)
	if err != nil {
		return sql.Files{}, fmt.Errorf("plan a scan of %s: %w", t.Name(), err)
	}
	// Planning gives them in any order, and what depends on the order of rows shall come out the same every time.
	slices.SortFunc(files, func(a, b *liveFile) int { return strings.Compare(a.data.FilePath(), b.data.FilePath()) })
	return t.relation(ctx, files, o.Columns)
}

// relation gives these files, with the columns of the table that are named, or all where columns is nil.
func (t *Table) relation(ctx context.Context, files []*liveFile, columns []string) (sql.Files, error) {
	// Files of a table that never changed are all alike. Its first schema has the number 0.
	schemas := t.tbl.Metadata().Schemas()
	relation := sql.Files{Same: len(schemas) == 1 && schemas[0].ID == 0}
	for _, f := range t.readSchema().Fields() {
		if columns == nil || slices.Contains(columns, f.Name) {
			relation.Columns = append(relation.Columns, sql.FileColumn{FieldID: f.ID, Name: f.Name, Type: duckType(f.Type)})
		}
	}
	io, err := t.tbl.FS(ctx)
	if err != nil {
		return sql.Files{}, fmt.Errorf("open the files of %s: %w", t.Name(), err)
	}
	for _, f := range files {
		path, err := t.lake.local(ctx, io, f.data.FilePath())
		if err != nil {
			return sql.Files{}, err
		}
		relation.Files = append(relation.Files, sql.File{Path: path, Deleted: f.deletedRows()})
	}
	return relation, nil
}

// liveFile is a data file of a snapshot with the rows deleted from it.
type liveFile struct {
	data     iceberg.DataFile
	sequence int64            // data sequence number
	vector   iceberg.DataFile // its deletion vector, or nil
	// positions are its files of position deletes, in format v2
	positions []iceberg.DataFile
	deleted   *dv.RoaringPositionBitmap
	span      *[2]int64 // the times of its rows, from its statistics, once a seeker has asked
}

// hasDeletes reports whether rows of the file were deleted.
func (f *liveFile) hasDeletes() bool { return f.vector != nil || len(f.positions) > 0 }

// deleteFiles are the files that say which of its rows are deleted.
func (f *liveFile) deleteFiles() []iceberg.DataFile {
	if f.vector != nil {
		return []iceberg.DataFile{f.vector}
	}
	return f.positions
}

// rows is the number of rows that are not deleted.
func (f *liveFile) rows() int64 {
	if f.deleted == nil {
		return f.data.Count()
	}
	return f.data.Count() - f.deleted.Cardinality()
}

// lacks reports whether the row has been deleted from the file.
func (f *liveFile) lacks(row uint32) bool { return f.deleted != nil && f.deleted.Contains(uint64(row)) }

func (f *liveFile) deletedRows() []int64 {
	if f.deleted == nil {
		return nil
	}
	rows := make([]int64, 0, f.deleted.Cardinality())
	for p := range f.deleted.Positions() {
		rows = append(rows, int64(p))
	}
	return rows
}

// plan lists the live files of a snapshot, each once, with their deletion vectors read.
func (t *Table) plan(ctx context.Context, o ScanOptions) ([]*liveFile, error) {
	files, err := t.list(ctx, o)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	io, err := t.tbl.FS(ctx)
	if err != nil {
		return nil, err
	}
	return files, readDeletes(ctx, io, files)
}

// list lists the live files of a snapshot, each once, without reading their deletion vectors.
func (t *Table) list(ctx context.Context, o ScanOptions) ([]*liveFile, error) {
	if o.SnapshotID == 0 {
		o.SnapshotID = t.SnapshotID()
	}
	if o.SnapshotID == 0 {
		return nil, nil
	}
	var options []table.ScanOption
	if o.SnapshotID != headID(t.tbl) {
		options = append(options, table.WithSnapshotID(o.SnapshotID))
	}
	if o.Filter != nil {
		options = append(options, table.WithRowFilter(o.Filter))
	}
	tasks, err := t.tbl.Scan(options...).PlanFiles(ctx)
	if err != nil {
		return nil, err
	}
	var files []*liveFile
	seen := map[string]bool{}
	for _, task := range tasks {
		// A large file comes as several tasks.
		if seen[task.File.FilePath()] {
			continue
		}
		seen[task.File.FilePath()] = true
		f := &liveFile{data: task.File}
		if task.DataSequenceNumber != nil {
			f.sequence = *task.DataSequenceNumber
		}
		switch {
		case len(task.EqualityDeleteFiles) > 0:
			return nil, fmt.Errorf("%w: file %s has delete files that loam doesn't write", ErrForeign, task.File.FilePath())
		case len(task.DeleteFiles) > 0:
			for _, d := range task.DeleteFiles {
				switch of := string(d.LowerBoundValues()[deletePathID]); {
				case of != string(d.UpperBoundValues()[deletePathID]) || of == "":
					return nil, fmt.Errorf("%w: file %s has position deletes of several files, as loam doesn't write", ErrForeign, task.File.FilePath())
				case of == task.File.FilePath():
					f.positions = append(f.positions, d)
				}
			}
		case len(task.DeletionVectorFiles) > 0:
			f.vector = task.DeletionVectorFiles[0]
		}
		files = append(files, f)
	}
	return files, nil
}

// readDeletes reads which rows of the files are deleted.
func readDeletes(ctx context.Context, io iceio.IO, files []*liveFile) error {
	if err := readVectors(io, files); err != nil {
		return err
	}
	return readPositions(ctx, io, files)
}

// readVectors reads the deletion vectors of the files, each Puffin file once: its footer lists every vector in it.
func readVectors(io iceio.IO, files []*liveFile) error {
	byPath := map[string][]*liveFile{}
	for _, f := range files {
		if f.vector != nil {
			byPath[f.vector.FilePath()] = append(byPath[f.vector.FilePath()], f)
		}
	}
	for path, group := range byPath {
		vectors := make([]iceberg.DataFile, len(group))
		for i, f := range group {
			vectors[i] = f.vector
		}
		bitmaps, err := dv.ReadDVs(io, vectors)
		if err != nil {
			return fmt.Errorf("read the deletion vectors in %s: %w", path, err)
		}
		for i, f := range group {
			f.deleted = bitmaps[i]
		}
	}
	return nil
}

// duckType is DuckDB's name of an Iceberg type.
func duckType(t iceberg.Type) string {
	switch t := t.(type) {
	case iceberg.BooleanType:
		return "BOOLEAN"
	case iceberg.Int32Type:
		return "INTEGER"
	case iceberg.Int64Type:
		return "BIGINT"
	case iceberg.Float64Type:
		return "DOUBLE"
	case iceberg.DecimalType:
		return fmt.Sprintf("DECIMAL(%d,%d)", t.Precision(), t.Scale())
	case iceberg.TimestampTzType:
		return "TIMESTAMPTZ"
	case iceberg.DateType:
		return "DATE"
	case iceberg.BinaryType:
		return "BLOB"
	case *iceberg.ListType:
		return duckType(t.Element) + "[]"
	default:
		return "VARCHAR"
	}
}

// local gives a path on this machine for a data file. Data files never change, so a copy is good for ever.
func (l *Lake) local(ctx context.Context, fsys iceio.IO, name string) (string, error) {
	if !strings.Contains(name, "://") || strings.HasPrefix(name, "file://") {
		return localPath(name)
	}
	sum := sha256.Sum256([]byte(name))
	path := filepath.Join(l.config.Dir, ".loam", "cache", hex.EncodeToString(sum[:16])+".parquet")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for a copy of %s: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := copyFile(fsys, name, path); err != nil {
		return "", fmt.Errorf("copy %s: %w", name, err)
	}
	return path, nil
}

func copyFile(fsys iceio.IO, name, path string) error {
	in, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(path), "copy-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}

// addedSince lists the data files that commits after the snapshot have added, up to the newest that is loaded, but for
// those in without. They are as they were added: compaction may have replaced them since. It is false where the snapshot is
// no ancestor that is still known, and where rows were taken back since.
func (t *Table) addedSince(ctx context.Context, snapshotID int64, without map[int64]bool) ([]*liveFile, bool, error) {
	var newer []int64
	s := t.tbl.CurrentSnapshot()
	for s != nil && s.SnapshotID != snapshotID {
		newer = append(newer, s.SnapshotID)
		if s.ParentSnapshotID == nil {
			s = nil
			break
		}
		s = t.tbl.SnapshotByID(*s.ParentSnapshotID)
		if s == nil {
			return nil, false, nil
		}
	}
	if s == nil && snapshotID != 0 {
		return nil, false, nil
	}
	io, err := t.tbl.FS(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("open the files of %s: %w", t.Name(), err)
	}
	var added []*liveFile
	for _, id := range newer {
		snapshot := t.tbl.SnapshotByID(id)
		if snapshot.Summary != nil && snapshot.Summary.Properties[summaryRewound] != "" {
			return nil, false, nil // rows that were added before may be gone
		}
		rewrite := snapshot.Summary != nil && snapshot.Summary.Operation == table.OpReplace
		if rewrite || without[id] { // a rewrite adds no rows
			continue
		}
		manifests, err := snapshot.Manifests(io)
		if err != nil {
			return nil, false, fmt.Errorf("read the manifests of %s: %w", t.Name(), err)
		}
		for _, m := range manifests {
			if m.SnapshotID() != id || m.ManifestContent() != iceberg.ManifestContentData {
				continue
			}
			for e, err := range m.Entries(io, true) {
				if err != nil {
					return nil, false, fmt.Errorf("read the manifests of %s: %w", t.Name(), err)
				}
				if e.Status() == iceberg.EntryStatusADDED {
					added = append(added, &liveFile{data: e.DataFile()})
				}
			}
		}
	}
	return added, true, nil
}
