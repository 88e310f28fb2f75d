package lake

import (
	"context"
	dbsql "database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/catalog/rest"
	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/view"
	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
)

// CurrentName is the name of a state stream's view of what is current: the open versions of its history.
func CurrentName(stream string) string { return stream + "_current" }

// ErrNoViews: the catalog keeps no views.
var ErrNoViews = errors.New("the catalog has no views")

// viewDialects are the engines that a view has a statement for, and how each quotes a name. What a statement says is the same.
var viewDialects = []struct{ dialect, quote string }{{"spark", "`"}, {"trino", `"`}}

// viewAttempts bounds how often a view is kept anew when another process keeps it at the same time.
const viewAttempts = 5

// KeepView makes the view of a state stream's current versions, or replaces it where the stream's columns have changed. It has
// the stream's own columns and valid_from. A catalog without views is [ErrNoViews].
func (l *Lake) KeepView(ctx context.Context, s *feature.Stream) error {
	if s.Kind != feature.StateStream {
		return nil
	}
	var err error
	for range viewAttempts {
		switch c := l.catalog.(type) {
		case *rest.Catalog:
			err = l.keepRESTView(ctx, c, s)
		default:
			err = l.keepSQLView(ctx, s)
		}
		if !errors.Is(err, errViewMoved) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("keep view %s: %w", l.TableName(CurrentName(s.Name)), err)
	}
	return nil
}

// errViewMoved: another process has made or replaced the view in the meantime.
var errViewMoved = errors.New("another process keeps the view at the same time")

// currentView is what the view of a stream is to be. Without a ViewCatalog it names no catalog: Spark then takes the one that
// it has the view from, under whatever name, but Trino has none to resolve the history in.
func (l *Lake) currentView(s *feature.Stream) (*view.Version, *iceberg.Schema, error) {
	columns := append(slices.Clone(s.Columns), feature.Column{Name: feature.ColValidFrom, Type: feature.Type{Kind: feature.Timestamp}})
	var statements []view.Representation
	for _, d := range viewDialects {
		name := func(n string) string { return d.quote + n + d.quote } // no name of loam holds a quote
		var items []string
		for _, c := range columns {
			items = append(items, name(c.Name))
		}
		statements = append(statements, view.NewRepresentation(fmt.Sprintf("SELECT %s FROM %s.%s WHERE %s", strings.Join(items, ", "),
			name(l.config.Namespace), name(HistoryName(s.Name)), name(feature.ColIsCurrent)), d.dialect))
	}
	version, err := view.NewVersion(1, 0, statements, table.Identifier{l.config.Namespace},
		view.WithDefaultViewCatalog(l.config.ViewCatalog))
	return version, icebergSchema(columns), err
}

// sameView reports whether a version of a view, with its schema, is as it is to be.
func sameView(is *view.Version, with *iceberg.Schema, version *view.Version, schema *iceberg.Schema) bool {
	return is.DefaultCatalog == version.DefaultCatalog && slices.Equal(is.Representations, version.Representations) && sameColumns(with, schema)
}

// sameColumns compares schemas whatever their ids.
func sameColumns(a, b *iceberg.Schema) bool {
	return slices.EqualFunc(a.Fields(), b.Fields(), func(a, b iceberg.NestedField) bool { return a.Name == b.Name && sameType(a.Type, b.Type) })
}

// replaced builds the metadata of a view with another current version: an older one where that says the same.
func replaced(is view.Metadata, version *view.Version, schema *iceberg.Schema) (*view.MetadataBuildResult, error) {
	builder, err := view.MetadataBuilderFromBase(is)
	if err != nil {
		return nil, err
	}
	for _, old := range is.Versions() {
		if sameView(old, is.SchemasByID()[old.SchemaID], version, schema) {
			return builder.SetCurrentVersionID(old.VersionID).Build()
		}
	}
	if sameColumns(is.CurrentSchema(), schema) {
		schema = is.CurrentSchema()
	}
	return builder.SetCurrentVersion(version, schema).Build()
}

func (l *Lake) keepRESTView(ctx context.Context, c *rest.Catalog, s *feature.Stream) error {
	version, schema, err := l.currentView(s)
	if err != nil {
		return err
	}
	ident := table.Identifier{l.config.Namespace, CurrentName(s.Name)}
	is, err := c.LoadView(ctx, ident)
	switch {
	case errors.Is(err, rest.ErrEndpointNotSupported):
		return ErrNoViews
	case errors.Is(err, catalog.ErrNoSuchView):
		// It names this catalog as loam does where no other name is asked for; what follows takes that out.
		is, err = c.CreateView(ctx, ident, version, schema)
		if errors.Is(err, catalog.ErrViewAlreadyExists) {
			return errViewMoved
		}
	}
	if err != nil || sameView(is.CurrentVersion(), is.CurrentSchema(), version, schema) {
		return err
	}
	built, err := replaced(is.Metadata(), version, schema)
	if err != nil {
		return err
	}
	_, err = c.UpdateView(ctx, ident, []view.Requirement{view.AssertViewUUID(is.Metadata().ViewUUID())}, built.Changes)
	if errors.Is(err, rest.ErrCommitFailed) {
		return errViewMoved
	}
	return err
}

// keepSQLView keeps the view in the local catalog. The catalog's own call makes views of one statement and replaces none, so
// the metadata is written here, and the catalog's row is moved to it if it still stands where it was read.
func (l *Lake) keepSQLView(ctx context.Context, s *feature.Stream) error {
	version, schema, err := l.currentView(s)
	if err != nil {
		return err
	}
	history, err := l.openTable(ctx, HistoryName(s.Name))
	if err != nil {
		return err
	}
	fs, err := history.tbl.FS(ctx)
	if err != nil {
		return err
	}
	at, err := l.viewRow(ctx, s)
	if err != nil {
		return err
	}
	var wanted any
	beside := strings.TrimSuffix(history.tbl.Location(), "/")
	location := beside[:strings.LastIndexByte(beside, '/')+1] + CurrentName(s.Name)
	if at != "" {
		is, err := view.NewFromLocation(ctx, nil, at, func(context.Context) (iceio.IO, error) { return fs, nil })
		if err != nil {
			return err
		}
		if sameView(is.CurrentVersion(), is.CurrentSchema(), version, schema) {
			return nil
		}
		if wanted, err = replaced(is.Metadata(), version, schema); err != nil {
			return err
		}
	} else if wanted, err = view.NewMetadata(version, schema, location, nil); err != nil {
		return err
	}
	text, err := json.Marshal(wanted)
	if err != nil {
		return err
	}
	files, ok := fs.(iceio.WriteFileIO)
	if !ok {
		return fmt.Errorf("the files of %s can't be written", history.Name())
	}
	file := location + "/metadata/view-" + uuid.NewString() + ".metadata.json"
	if err := files.WriteFile(file, text); err != nil {
		return err
	}
	err = l.moveViewRow(ctx, s, at, file)
	if errors.Is(err, errViewMoved) {
		return errors.Join(err, files.Remove(file))
	}
	return err // after another error the catalog may name the file
}

// viewRow is where the catalog says that the metadata of the view is, "" where there is no view.
func (l *Lake) viewRow(ctx context.Context, s *feature.Stream) (string, error) {
	var kind, at dbsql.NullString
	err := l.sqlite.QueryRowContext(ctx,
		"SELECT iceberg_type, metadata_location FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
		CatalogName, l.config.Namespace, CurrentName(s.Name)).Scan(&kind, &at)
	switch {
	case errors.Is(err, dbsql.ErrNoRows):
		return "", nil
	case err != nil && strings.Contains(err.Error(), "no such column"):
		return "", ErrNoViews // a catalog of the first layout, which another program has made
	case err != nil:
		return "", err
	case kind.String != "VIEW":
		return "", errors.New("a table has its name: rename or remove that")
	}
	return at.String, nil
}

// moveViewRow lets the catalog's row of the view name other metadata; from is where it was, "" for no row.
func (l *Lake) moveViewRow(ctx context.Context, s *feature.Stream, from, to string) error {
	statement, args := "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, iceberg_type, metadata_location) "+
		"VALUES (?, ?, ?, 'VIEW', ?) ON CONFLICT DO NOTHING", []any{CatalogName, l.config.Namespace, CurrentName(s.Name), to}
	if from != "" {
		statement = "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ? " +
			"WHERE catalog_name = ? AND table_namespace = ? AND table_name = ? AND iceberg_type = 'VIEW' AND metadata_location = ?"
		args = []any{to, from, CatalogName, l.config.Namespace, CurrentName(s.Name), from}
	}
	done, err := l.sqlite.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return errViewMoved
}
