package lake

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go/table"
)

// OpenForeign opens any table of the catalog for reading, whoever writes it: <namespace>.<name>, or a name in the
// project's namespace. It is read at the snapshot, one that is no longer there is [ErrGone]; 0 means the newest.
func (l *Lake) OpenForeign(ctx context.Context, name string, snapshotID int64) (*Table, error) {
	ident := table.Identifier(strings.Split(name, "."))
	if len(ident) == 1 {
		ident = table.Identifier{l.config.Namespace, name}
	}
	t := &Table{lake: l, ident: ident}
	exists, err := l.catalog.CheckTableExists(ctx, ident)
	if err != nil {
		return nil, fmt.Errorf("look for table %s: %w", t.Name(), err)
	}
	if !exists {
		return nil, fmt.Errorf("%w: the catalog has no %s", ErrNoTable, t.Name())
	}
	if t.tbl, err = l.catalog.LoadTable(ctx, ident); err != nil {
		return nil, fmt.Errorf("load table %s: %w", t.Name(), err)
	}
	if snapshotID != 0 {
		s := t.tbl.SnapshotByID(snapshotID)
		if s == nil {
			return nil, fmt.Errorf("snapshot %d of %s %w: it has expired", snapshotID, t.Name(), ErrGone)
		}
		t.pin = &Pin{UUID: t.tbl.Metadata().TableUUID().String(), Snapshot: snapshotID, Schema: t.tbl.Schema().ID}
		if s.SchemaID != nil {
			t.pin.Schema = *s.SchemaID
		}
	}
	return t, nil
}

// Rows gives the rows of a snapshot in no order, with the columns that it had, by Iceberg's own reader: deletes of every
// kind apply, whoever wrote them, and changes of the schema do. A batch is released by who takes it. A table without
// snapshots has its columns and no row.
func (t *Table) Rows(ctx context.Context, snapshotID int64) (*arrow.Schema, iter.Seq2[arrow.RecordBatch, error], error) {
	var options []table.ScanOption
	if snapshotID != 0 {
		options = append(options, table.WithSnapshotID(snapshotID))
	}
	schema, batches, err := t.tbl.Scan(options...).ToArrowRecords(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read table %s: %w", t.Name(), err)
	}
	return schema, batches, nil
}
