package lake

import (
	"context"
	dbsql "database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/catalog/rest"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	_ "github.com/apache/iceberg-go/io/gocloud/s3" // s3:// warehouses; the other clouds would double the binary
	"github.com/apache/iceberg-go/table"
	_ "modernc.org/sqlite" // driver of the local catalog

	"github.com/loamdata/loam/feature"
)

// CatalogName is the name under which the local catalog keeps loam's tables; other readers open the sqlite file with it.
const CatalogName = "loam"

// Errors that say which case a failure is.
var (
	// ErrFenced: the table does not stand at the offsets the batch starts from, because another worker moved it.
	ErrFenced = errors.New("another worker has moved the offsets")
	// ErrForeign: the table's head is a snapshot that loam did not write.
	ErrForeign = errors.New("the table was changed by another writer")
	// ErrChanged: the table's columns, or what a history tracks of them, are not those that it was opened for.
	ErrChanged = errors.New("the columns of its table, or what is tracked of them, have changed")
	// ErrRewound: the stream was taken back since it was opened, so what its writer knows of it is no longer so.
	ErrRewound = errors.New("the stream was rewound")
	// ErrRewinding: the stream is being taken back, and is not written meanwhile.
	ErrRewinding = errors.New("is being rewound")
	// ErrNoTable: the stream has no tables yet.
	ErrNoTable = errors.New("no such table")
)

// Config says where a lake is.
type Config struct {
	feature.Lake
	Namespace string // the project's name
	Dir       string // the project's folder: relative paths start here, and copies of remote files are kept below it
}

// Lake is an open catalog and the namespace of one project. It is safe for concurrent use; its tables are not.
type Lake struct {
	config    Config
	catalog   catalog.Catalog
	sqlite    *dbsql.DB // nil with a REST catalog
	warehouse string    // URI

	mu    sync.Mutex
	turns map[string]chan struct{} // by table, see turn
	moves moves
}

// Open opens the catalog, and makes it and the namespace where they are missing.
func Open(ctx context.Context, c Config) (*Lake, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the project folder: %w", err)
	}
	c.Dir = dir
	l := &Lake{config: c, warehouse: c.Warehouse}
	if !strings.Contains(c.Warehouse, "://") {
		dir := c.path(c.Warehouse)
		if err := mkdirAllSynced(dir); err != nil {
			return nil, fmt.Errorf("make the warehouse: %w", err)
		}
		l.warehouse = fileURI(dir)
	}
	if c.REST() {
		err = l.openREST(ctx)
	} else {
		err = l.openSQLite(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := l.ensureNamespace(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (c Config) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.Dir, p)
}

func (l *Lake) openREST(ctx context.Context) error {
	props := iceberg.Properties{}
	for k, v := range l.config.Properties {
		props[k] = v
	}
	options := []rest.Option{rest.WithAdditionalProps(props)}
	if l.warehouse != "" {
		options = append(options, rest.WithWarehouseLocation(l.warehouse))
	}
	if token := props["token"]; token != "" {
		options = append(options, rest.WithOAuthToken(token))
	}
	if credential := props["credential"]; credential != "" {
		options = append(options, rest.WithCredential(credential))
	}
	cat, err := rest.NewCatalog(ctx, CatalogName, l.config.Catalog, options...)
	if err != nil {
		return fmt.Errorf("open the catalog at %s: %w", l.config.Catalog, err)
	}
	l.catalog = cat
	return nil
}

func (l *Lake) openSQLite(ctx context.Context) error {
	path := l.config.path(l.config.Catalog)
	if err := mkdirAllSynced(filepath.Dir(path)); err != nil {
		return fmt.Errorf("make the folder of the catalog: %w", err)
	}
	dsn := (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: url.Values{
		// Write-ahead logging lets readers go on beside a writer; FULL makes a commit survive a power cut.
		"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(30000)"},
		"_txlock": {"immediate"},
	}.Encode()}).String()
	db, err := dbsql.Open("sqlite", dsn)
	if err != nil {
		return fmt.Errorf("open the catalog %s: %w", path, err)
	}
	props := iceberg.Properties{"init_catalog_tables": "true", "warehouse": l.warehouse}
	for k, v := range l.config.Properties {
		props[k] = v
	}
	cat, err := sqlcatalog.NewCatalog(CatalogName, db, sqlcatalog.SQLite, props)
	if err != nil {
		return errors.Join(fmt.Errorf("open the catalog %s: %w", path, err), db.Close())
	}
	// Also where the file was there: who made it may have been killed before this.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return errors.Join(fmt.Errorf("make the catalog %s: %w", path, err), db.Close())
	}
	l.catalog, l.sqlite = cat, db
	return nil
}

func (l *Lake) ensureNamespace(ctx context.Context) error {
	ns := table.Identifier{l.config.Namespace}
	exists, err := l.catalog.CheckNamespaceExists(ctx, ns)
	if err != nil {
		return fmt.Errorf("look for namespace %s in the catalog: %w", l.config.Namespace, err)
	}
	if exists {
		return nil
	}
	err = l.catalog.CreateNamespace(ctx, ns, nil)
	if err != nil && !errors.Is(err, catalog.ErrNamespaceAlreadyExists) {
		return fmt.Errorf("make namespace %s: %w", l.config.Namespace, err)
	}
	return nil
}

// Close closes the catalog. Tables opened from it can't be used afterwards.
func (l *Lake) Close() error {
	if l.sqlite == nil {
		return nil
	}
	if err := l.sqlite.Close(); err != nil {
		return fmt.Errorf("close the catalog: %w", err)
	}
	return nil
}

// tableProperties are what every table of loam is made with.
func (l *Lake) tableProperties() iceberg.Properties {
	return iceberg.Properties{
		"format-version": strconv.Itoa(l.config.FormatVersion),
		table.MetadataDeleteAfterCommitEnabledKey: "true",
		table.MetadataPreviousVersionsMaxKey:      "20",
		table.ManifestMergeEnabledKey:             "true",
		table.WriteDeleteModeKey:                  "merge-on-read",
		table.ParquetCompressionKey:               "zstd",
		"write.delete.isolation-level":            "snapshot",
		propertyFormat:                            tableFormat,
	}
}

// TableName is the full name of one of the project's tables.
func (l *Lake) TableName(name string) string { return l.config.Namespace + "." + name }
