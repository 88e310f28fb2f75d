package bench

import (
	"context"
	dbsql "database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// plainTable is an unpartitioned Iceberg table in a catalog of its own, which rows are appended to by iceberg-go itself:
// no duplicates found, no history, no deletes. It is the least that a sink does.
type plainTable struct {
	db  *dbsql.DB
	tbl *table.Table
}

func openPlain(ctx context.Context, dir string, def *feature.Stream) (*plainTable, error) {
	db, err := dbsql.Open("sqlite", "file:"+filepath.Join(dir, "plain.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, fmt.Errorf("open the plain table's catalog: %w", err)
	}
	p := &plainTable{db: db}
	if err := p.create(ctx, dir, def); err != nil {
		return nil, errors.Join(fmt.Errorf("make the plain table: %w", err), db.Close())
	}
	return p, nil
}

func (p *plainTable) create(ctx context.Context, dir string, def *feature.Stream) error {
	cat, err := sqlcatalog.NewCatalog("plain", p.db, sqlcatalog.SQLite, iceberg.Properties{
		"init_catalog_tables": "true", "warehouse": "file://" + filepath.Join(dir, "plain")})
	if err != nil {
		return err
	}
	if err := cat.CreateNamespace(ctx, table.Identifier{"bench"}, nil); err != nil {
		return err
	}
	schema, err := table.ArrowSchemaToIcebergWithFreshIDs(def.LogSchema(), false)
	if err != nil {
		return err
	}
	p.tbl, err = cat.CreateTable(ctx, table.Identifier{"bench", "plain"}, schema, catalog.WithProperties(iceberg.Properties{
		"format-version": "2", table.ParquetCompressionKey: "zstd", table.ManifestMergeEnabledKey: "true",
		table.MetadataDeleteAfterCommitEnabledKey: "true", table.MetadataPreviousVersionsMaxKey: "20",
	}))
	return err
}

func (p *plainTable) append(ctx context.Context, b *feature.Batch) (time.Duration, error) {
	reader, err := array.NewRecordReader(b.Rows[0].Schema(), b.Rows)
	if err != nil {
		return 0, fmt.Errorf("append to the plain table: %w", err)
	}
	defer reader.Release()
	begin := time.Now()
	tbl, err := p.tbl.Append(ctx, reader, nil)
	if err != nil {
		return 0, fmt.Errorf("append to the plain table: %w", err)
	}
	p.tbl = tbl
	return time.Since(begin), nil
}

func (p *plainTable) close() { p.db.Close() }
