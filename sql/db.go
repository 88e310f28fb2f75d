//go:build duckdb_arrow

package sql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/duckdb/duckdb-go/v2"
)

// Options configure a [DB].
type Options struct {
	MemoryBytes int64  // bound of DuckDB's memory; 0 leaves its default of 80 % of the machine's
	Threads     int    // 0 leaves one a core
	TempDir     string // where it spills to; "" means it doesn't
	Files       bool   // whether statements may read and write files
}

// DB is an in-memory DuckDB with one connection. It is not safe for concurrent use.
type DB struct {
	connector *duckdb.Connector
	pool      *sql.DB
	conn      *sql.Conn
	views     int // names given to Arrow views and lake views so far
}

// Open starts an empty database.
func Open(ctx context.Context, o Options) (*DB, error) {
	settings := url.Values{
		"autoinstall_known_extensions": {"false"},
		"autoload_known_extensions":    {"false"},
		"preserve_insertion_order":     {"true"},
		"temp_directory":               {o.TempDir},
	}
	if o.MemoryBytes > 0 {
		settings.Set("memory_limit", strconv.FormatInt(o.MemoryBytes, 10)+"B")
	}
	if o.Threads > 0 {
		settings.Set("threads", strconv.Itoa(o.Threads))
	}
	connector, err := duckdb.NewConnector("?"+settings.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("start DuckDB: %w", err)
	}
	pool := sql.OpenDB(connector)
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start DuckDB: %w", err), pool.Close())
	}
	db := &DB{connector: connector, pool: pool, conn: conn}
	if !o.Files {
		if err := db.Exec(ctx, "SET enable_external_access = false"); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	if err := db.Exec(ctx, "SET TimeZone = 'UTC';\n"+Statement("macros")); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Close ends the database; what it held is gone.
func (db *DB) Close() error {
	if err := db.conn.Close(); err != nil {
		return fmt.Errorf("close DuckDB: %w", err)
	}
	if err := db.pool.Close(); err != nil {
		return fmt.Errorf("close DuckDB: %w", err)
	}
	return nil
}

// Exec runs statements that return no rows. Arguments bind to $1, $2, … of the last.
func (db *DB) Exec(ctx context.Context, statement string, args ...any) error {
	if _, err := db.conn.ExecContext(ctx, statement, args...); err != nil {
		return fmt.Errorf("run SQL: %w", err)
	}
	return nil
}

// Query runs a statement and returns its rows, which the caller closes.
func (db *DB) Query(ctx context.Context, statement string, args ...any) (*sql.Rows, error) {
	rows, err := db.conn.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("run SQL: %w", err)
	}
	return rows, nil
}

// QueryRow runs a statement that gives one row, and scans it.
func (db *DB) QueryRow(ctx context.Context, statement string, args []any, dst ...any) error {
	if err := db.conn.QueryRowContext(ctx, statement, args...).Scan(dst...); err != nil {
		return fmt.Errorf("run SQL: %w", err)
	}
	return nil
}

// Columns are the columns of a query, or of a table or view that is named.
func (db *DB) Columns(ctx context.Context, query string) ([]Column, error) {
	rows, err := db.Query(ctx, "SELECT column_name, column_type FROM (DESCRIBE "+query+"\n)")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Column
	for rows.Next() {
		var c Column
		if err := rows.Scan(&c.Name, &c.Type); err != nil {
			return nil, fmt.Errorf("read the columns of a query: %w", err)
		}
		all = append(all, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the columns of a query: %w", err)
	}
	return all, nil
}

// Arrow runs a statement and hands each batch of its result, of 2,048 rows at most, to use; the batches are released
// after use returns.
func (db *DB) Arrow(ctx context.Context, statement string, use func(array.RecordReader) error, args ...any) error {
	return db.withArrow(func(a *duckdb.Arrow) error {
		reader, err := a.QueryContext(ctx, statement, args...)
		if err != nil {
			return fmt.Errorf("run SQL: %w", err)
		}
		defer reader.Release()
		if err := use(reader); err != nil {
			return err
		}
		if err := reader.Err(); err != nil {
			return fmt.Errorf("read a result: %w", err)
		}
		return nil
	})
}

// Batches runs a statement and hands each batch of its result to use, while DuckDB is at the next ones; the batches are
// released after use returns.
func (db *DB) Batches(ctx context.Context, statement string, use func(arrow.RecordBatch) error) error {
	return ahead(ctx, func(ctx context.Context, send func(arrow.RecordBatch) error) error {
		return db.send(ctx, statement, send)
	}, use)
}

// Parts runs a statement once for each of some sets of files, seen as a lake view of that name, and hands over the batches
// of the results with the number of the set. While use works on a batch, DuckDB is at the next ones, so that what they need
// of memory is a set's.
func (db *DB) Parts(ctx context.Context, view string, parts []Files, positions bool, statement string, use func(part int, batch arrow.RecordBatch) error) error {
	type made struct {
		arrow.RecordBatch
		part int
	}
	return ahead(ctx, func(ctx context.Context, send func(made) error) error {
		for part := range parts {
			if err := db.LakeView(ctx, view, parts[part], positions); err != nil {
				return err
			}
			err := db.send(ctx, statement, func(batch arrow.RecordBatch) error { return send(made{batch, part}) })
			if err != nil {
				return err
			}
		}
		return nil
	}, func(m made) error { return use(m.part, m.RecordBatch) })
}

// send runs a statement and sends the batches of its result, each retained.
func (db *DB) send(ctx context.Context, statement string, send func(arrow.RecordBatch) error) error {
	return db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			batch.Retain()
			if err := send(batch); err != nil {
				batch.Release()
				return err
			}
		}
		return nil
	})
}

// ahead lets produce be some batches ahead of use, which has each batch until it returns. It ends when both have.
func ahead[B interface{ Release() }](ctx context.Context, produce func(context.Context, func(B) error) error, use func(B) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan B, 8)
	ended := make(chan error, 1)
	go func() {
		defer close(batches)
		ended <- produce(ctx, func(batch B) error {
			select {
			case batches <- batch:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	var failed error
	for batch := range batches {
		if failed == nil {
			if failed = use(batch); failed != nil {
				cancel()
			}
		}
		batch.Release()
	}
	if err := <-ended; failed == nil {
		return err
	}
	return failed
}

// Import copies what the reader gives into a new table of that name, replacing one that exists.
func (db *DB) Import(ctx context.Context, table string, reader array.RecordReader) error {
	db.views++
	view := fmt.Sprintf("loam_arrow_%d", db.views)
	err := db.withArrow(func(a *duckdb.Arrow) error {
		release, err := a.RegisterView(reader, view)
		if err != nil {
			return fmt.Errorf("import Arrow into %s: %w", table, err)
		}
		defer release()
		// SELECT * takes every column in order, the one query on an Arrow view that is right.
		_, err = a.QueryContext(ctx, Render("CREATE OR REPLACE TABLE {table} AS SELECT * FROM {view}",
			Args{"table": Ident(table), "view": Ident(view)}))
		if err != nil {
			return fmt.Errorf("import Arrow into %s: %w", table, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := reader.Err(); err != nil {
		return fmt.Errorf("import Arrow into %s: %w", table, err)
	}
	return db.Exec(ctx, Render("DROP VIEW IF EXISTS {view}", Args{"view": Ident(view)}))
}

func (db *DB) withArrow(use func(*duckdb.Arrow) error) error {
	return db.conn.Raw(func(driverConn any) error {
		a, err := duckdb.NewArrowFromConn(driverConn.(driver.Conn))
		if err != nil {
			return fmt.Errorf("open DuckDB's Arrow interface: %w", err)
		}
		return use(a)
	})
}

// Collect runs a statement and keeps all batches of its result, which the caller releases.
func (db *DB) Collect(ctx context.Context, statement string, args ...any) ([]arrow.RecordBatch, error) {
	var batches []arrow.RecordBatch
	err := db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			batch := r.RecordBatch()
			batch.Retain()
			batches = append(batches, batch)
		}
		return nil
	}, args...)
	if err != nil {
		for _, b := range batches {
			b.Release()
		}
		return nil, err
	}
	return batches, nil
}

// ImportBatches copies batches of one schema into a new table of that name, replacing one that exists.
func (db *DB) ImportBatches(ctx context.Context, table string, schema *arrow.Schema, batches []arrow.RecordBatch) error {
	reader, err := array.NewRecordReader(schema, batches)
	if err != nil {
		return fmt.Errorf("import Arrow into %s: %w", table, err)
	}
	defer reader.Release()
	return db.Import(ctx, table, reader)
}
