package pit

import (
	"context"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Keys reads entities from a file, in the forms that labels may have: of each row the columns with these names, as text of their
// types. Other columns are left aside. Rows are refused whose key is empty, or can't be of the type without loss.
func Keys(ctx context.Context, path string, columns []feature.Column, tempDir string) ([][]string, error) {
	keys, err := readKeys(ctx, path, columns, tempDir)
	if err != nil {
		return nil, fmt.Errorf("read entities: %w", err)
	}
	return keys, nil
}

func readKeys(ctx context.Context, path string, columns []feature.Column, tempDir string) ([][]string, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, TempDir: tempDir})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var textual []string
	for _, c := range columns {
		if c.Type.Kind == feature.String {
			textual = append(textual, c.Name)
		}
	}
	from, err := fileSource(ctx, db, path, textual)
	if err != nil {
		return nil, err
	}
	l := &labels{}
	if err := l.describe(ctx, db, from); err != nil {
		return nil, err
	}
	var items, good []sql.Fragment
	for _, c := range columns {
		typ, ok := l.typeOf(c.Name)
		if !ok {
			return nil, fmt.Errorf("%s has no column %s, which is a join key; it has %s", path, c.Name, strings.Join(l.names(), ", "))
		}
		if why := pointedText(c, typ); why != "" {
			return nil, fmt.Errorf("%s: column %s, a join key, %s", path, c.Name, why)
		}
		value := sql.Fragment(sql.Render("TRY_CAST({column} AS {type})", sql.Args{"column": sql.Ident(c.Name), "type": sql.Fragment(c.Type.SQL())}))
		items = append(items, value+"::VARCHAR")
		good = append(good, value+" IS NOT NULL", "NOT "+rounds(c, typ))
	}
	keys := [][]string{}
	statement := sql.Render("SELECT {good}, {items} FROM {scan}",
		sql.Args{"items": sql.Join(", ", items), "good": sql.Join(" AND ", good), "scan": from.scan})
	err = db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			ok := batch.Column(0).(*array.Boolean)
			for row := range int(batch.NumRows()) {
				if !ok.Value(row) {
					return fmt.Errorf("%s: row %d, counted from 0, has no value for a join key, or one that can't be of its type in the stream: %s",
						path, len(keys), columnTypes(columns))
				}
				key := make([]string, len(columns))
				for i := range key {
					key[i] = strings.Clone(batch.Column(1 + i).(*array.String).Value(row))
				}
				keys = append(keys, key)
			}
		}
		return nil
	})
	return keys, err
}

func columnTypes(columns []feature.Column) string {
	texts := make([]string, len(columns))
	for i, c := range columns {
		texts[i] = c.Name + " is " + c.Type.String()
	}
	return strings.Join(texts, ", ")
}
