package pit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// labels is the table of that name in DuckDB: the label file's columns and loam's own two.
type labels struct {
	columns []labelColumn // of the file, in its order
	rows    int64
	sha256  string
	time    string // the column that holds the time
}

type labelColumn struct{ name, typ string }

// Columns that loam adds to the labels. A label file can't have columns of these names.
const (
	labelRow  = "loam_label_row"  // BIGINT: number of the label in the file, from 0
	labelTime = "loam_label_time" // TIMESTAMPTZ: its time, finer digits than microseconds cut off
)

// loadLabels reads a label file into the table labels. Join keys that are text in a stream are read as text from CSV,
// where they may look like numbers.
func loadLabels(ctx context.Context, db *sql.DB, path, timeColumn string, textKeys []string) (*labels, error) {
	l := &labels{time: timeColumn}
	var err error
	if l.sha256, err = hashFile(path); err != nil {
		return nil, err
	}
	var scan sql.Fragment
	csv := false
	switch lower := strings.ToLower(path); {
	case strings.HasSuffix(lower, ".parquet"):
		scan = sql.Fragment(sql.Render("read_parquet({path})", sql.Args{"path": sql.Literal(path)}))
	case strings.HasSuffix(lower, ".csv"), strings.HasSuffix(lower, ".csv.gz"):
		csv = true
		if scan, err = csvScan(ctx, db, path, textKeys); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("labels %s: can't tell what the file holds; its name must end in .parquet or .csv", path)
	}
	rows, err := db.Query(ctx, "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM "+string(scan)+")")
	if err != nil {
		return nil, fmt.Errorf("read labels %s: %w", path, err)
	}
	defer rows.Close()
	for rows.Next() {
		var c labelColumn
		if err := rows.Scan(&c.name, &c.typ); err != nil {
			return nil, fmt.Errorf("read labels %s: %w", path, err)
		}
		if c.name == labelRow || c.name == labelTime {
			return nil, fmt.Errorf("labels %s have a column %s, a name that loam uses itself: rename it", path, c.name)
		}
		l.columns = append(l.columns, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read labels %s: %w", path, err)
	}
	moment, err := l.moment(timeColumn)
	if err != nil {
		return nil, fmt.Errorf("labels %s: %w", path, err)
	}
	if csv {
		if err := checkTimes(ctx, db, path, timeColumn); err != nil {
			return nil, err
		}
	}
	err = db.Exec(ctx, sql.Render(
		"CREATE OR REPLACE TEMP TABLE labels AS SELECT *, (row_number() OVER ()) - 1 AS {row}, {moment} AS {time} FROM {scan}",
		sql.Args{"row": sql.Ident(labelRow), "time": sql.Ident(labelTime), "moment": moment, "scan": scan}))
	if err != nil {
		return nil, fmt.Errorf("read labels %s: %w", path, err)
	}
	if err := db.QueryRow(ctx, "SELECT count(*) FROM labels", nil, &l.rows); err != nil {
		return nil, err
	}
	return l, nil
}

// csvOptions are how CSV files are read: the first line names the columns, and all of the file decides on their types.
const csvOptions = "header = true, sample_size = -1"

// checkTimes refuses times of a CSV file that are not written as ISO 8601 does. DuckDB would take 01/02/2026 for the
// first of February, and who meant the second of January would have a training set that looks a month ahead.
func checkTimes(ctx context.Context, db *sql.DB, path, column string) error {
	statement := sql.Render("SELECT count(*) FROM read_csv({path}, "+csvOptions+", all_varchar = true) "+
		"WHERE {column} IS NOT NULL AND try_cast({column} AS TIMESTAMPTZ) IS NULL", sql.Args{"column": sql.Ident(column), "path": sql.Literal(path)})
	var bad int64
	if err := db.QueryRow(ctx, statement, nil, &bad); err != nil {
		return fmt.Errorf("read labels %s: %w", path, err)
	}
	if bad > 0 {
		return fmt.Errorf("labels %s: %d values of time column %s are no times as ISO 8601 writes them, such as 2026-11-01 or 2026-11-01T12:00:00Z",
			path, bad, column)
	}
	return nil
}

// csvScan is a scan of a CSV file. Types are found by looking at all of it, but for keys that are text.
func csvScan(ctx context.Context, db *sql.DB, path string, textKeys []string) (sql.Fragment, error) {
	args := sql.Args{"path": sql.Literal(path), "types": ""}
	rows, err := db.Query(ctx, sql.Render("SELECT column_name FROM (DESCRIBE SELECT * FROM read_csv({path}, "+csvOptions+"))", args))
	if err != nil {
		return "", fmt.Errorf("read labels %s: %w", path, err)
	}
	defer rows.Close()
	var types []sql.Fragment
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return "", fmt.Errorf("read labels %s: %w", path, err)
		}
		if slices.Contains(textKeys, name) {
			types = append(types, sql.Literal(name)+": 'VARCHAR'")
		}
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("read labels %s: %w", path, err)
	}
	if len(types) > 0 {
		args["types"] = ", types = {" + sql.Join(", ", types) + "}"
	}
	return sql.Fragment(sql.Render("read_csv({path}, "+csvOptions+"{types})", args)), nil
}

// moment is the expression of a label's time: without a zone it is UTC, and finer digits are cut off, so that a label
// never sees what came after it.
func (l *labels) moment(column string) (sql.Fragment, error) {
	typ, ok := l.typeOf(column)
	if !ok {
		return "", fmt.Errorf("there is no time column %q; name the one that holds the time, among %s", column, strings.Join(l.names(), ", "))
	}
	ident := sql.Ident(column)
	switch typ {
	case "TIMESTAMP WITH TIME ZONE":
		return ident, nil
	case "TIMESTAMP_NS":
		return "make_timestamptz((epoch_ns(" + ident + ") - ((epoch_ns(" + ident + ") % 1000) + 1000) % 1000) // 1000)", nil
	case "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "DATE":
		return "timezone('UTC', " + ident + "::TIMESTAMP)", nil
	case "VARCHAR":
		return ident + "::TIMESTAMPTZ", nil
	}
	return "", fmt.Errorf("time column %s is %s; it must be a timestamp", column, typ)
}

// has gives the label column that statements would take for this name, whatever its case.
func (l *labels) has(column string) (string, bool) {
	for _, c := range l.columns {
		if strings.EqualFold(c.name, column) {
			return c.name, true
		}
	}
	return "", false
}

func (l *labels) typeOf(column string) (string, bool) {
	for _, c := range l.columns {
		if c.name == column {
			return c.typ, true
		}
	}
	return "", false
}

func (l *labels) names() []string {
	names := make([]string, len(l.columns))
	for i, c := range l.columns {
		names[i] = c.name
	}
	return names
}

// key is the expression of an entity's key in the labels, or of its columns in a stream: one value, so that statements
// need not know how many columns it has. The types are the stream's.
func key(prefix string, joinKeys []string, s *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(joinKeys))
	for i, k := range joinKeys {
		c, _ := s.Column(k)
		parts[i] = sql.Fragment(prefix) + sql.Ident(k) + "::" + sql.Fragment(c.Type.SQL())
	}
	if len(parts) == 1 {
		return parts[0]
	}
	for i, k := range joinKeys {
		parts[i] = sql.Ident(k) + " := " + parts[i]
	}
	return "struct_pack(" + sql.Join(", ", parts) + ")"
}

// notNull is true where no part of an entity's key is null: a null key matches nothing.
func notNull(prefix string, joinKeys []string) sql.Fragment {
	parts := make([]sql.Fragment, len(joinKeys))
	for i, k := range joinKeys {
		parts[i] = sql.Fragment(prefix) + sql.Ident(k) + " IS NOT NULL"
	}
	return sql.Join(" AND ", parts)
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
