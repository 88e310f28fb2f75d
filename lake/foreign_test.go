package lake

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// A table that another program writes is read with its deletes, of whatever kind, and by its own columns.
func TestOpenForeign(t *testing.T) {
	ctx := context.Background()
	for _, version := range []string{"2", "3"} {
		t.Run("v"+version, func(t *testing.T) {
			l, err := Open(ctx, Config{Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "own", Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.catalog.CreateNamespace(ctx, table.Identifier{"other"}, nil); err != nil {
				t.Fatal(err)
			}
			schema := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "k", Type: iceberg.PrimitiveTypes.String},
				iceberg.NestedField{ID: 2, Name: "score", Type: iceberg.PrimitiveTypes.Float32})
			tbl, err := l.catalog.CreateTable(ctx, table.Identifier{"other", "labels"}, schema,
				catalog.WithProperties(iceberg.Properties{"format-version": version, table.WriteDeleteModeKey: "merge-on-read"}))
			if err != nil {
				t.Fatal(err)
			}
			if got := foreignRows(t, l, "other.labels"); got != "" {
				t.Errorf("an empty table has %q", got)
			}
			at := arrow.NewSchema([]arrow.Field{{Name: "k", Type: arrow.BinaryTypes.String, Nullable: true}, {Name: "score", Type: arrow.PrimitiveTypes.Float32, Nullable: true}}, nil)
			b := array.NewRecordBuilder(memory.DefaultAllocator, at)
			defer b.Release()
			for i := range 5 {
				b.Field(0).(*array.StringBuilder).Append(fmt.Sprintf("k%d", i))
				b.Field(1).(*array.Float32Builder).Append(float32(i) / 2)
			}
			batch := b.NewRecordBatch()
			defer batch.Release()
			reader, err := array.NewRecordReader(at, []arrow.RecordBatch{batch})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Release()
			if tbl, err = tbl.Append(ctx, reader, nil); err != nil {
				t.Fatal(err)
			}
			if tbl, err = tbl.Delete(ctx, iceberg.EqualTo(iceberg.Reference("k"), "k2"), nil); err != nil {
				t.Fatal(err)
			}
			tx := tbl.NewTransaction()
			if err := tx.UpdateSchema(true, false).RenameColumn([]string{"score"}, "points").Commit(); err != nil {
				t.Fatal(err)
			}
			if _, err = tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			if got := foreignRows(t, l, "other.labels"); got != "k0 0,k1 0.5,k3 1.5,k4 2" {
				t.Errorf("rows %q", got)
			}
			opened, err := l.OpenForeign(ctx, "other.labels", 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := opened.Tag(ctx, "kept", opened.SnapshotID()); err != nil {
				t.Error(err)
			}
			if _, err := l.OpenForeign(ctx, "other.nosuch", 0); err == nil || !strings.Contains(err.Error(), "the catalog has no other.nosuch") {
				t.Errorf("no such table: %v", err)
			}
		})
	}
}

// foreignRows are the rows of a table, in order.
func foreignRows(t *testing.T, l *Lake, name string) string {
	t.Helper()
	opened, err := l.OpenForeign(context.Background(), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	schema, batches, err := opened.Rows(context.Background(), opened.SnapshotID())
	if err != nil {
		t.Fatal(err)
	}
	if second := schema.Field(1).Name; second != "score" && second != "points" {
		t.Errorf("schema %v", schema)
	}
	var rows []string
	for batch, err := range batches {
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(batch.NumRows()) {
			rows = append(rows, batch.Column(0).(*array.String).Value(i)+fmt.Sprintf(" %v", batch.Column(1).(*array.Float32).Value(i)))
		}
		batch.Release()
	}
	return strings.Join(rows, ",")
}
