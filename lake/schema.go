package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// Buckets is the number of hash buckets that logs and histories are partitioned into: few, because a micro-batch writes
// a file a bucket, and its cost follows the number of files.
const Buckets = 4

// icebergType is the Iceberg type of a column; next gives field ids for what is nested.
func icebergType(t feature.Type, next func() int) iceberg.Type {
	if t.List {
		return &iceberg.ListType{ElementID: next(), Element: icebergType(t.Elem(), next), ElementRequired: false}
	}
	switch t.Kind {
	case feature.Bool:
		return iceberg.PrimitiveTypes.Bool
	case feature.Int64:
		return iceberg.PrimitiveTypes.Int64
	case feature.Double:
		return iceberg.PrimitiveTypes.Float64
	case feature.Decimal:
		return iceberg.DecimalTypeOf(int(t.Precision), int(t.Scale))
	case feature.Timestamp:
		return iceberg.PrimitiveTypes.TimestampTz
	case feature.Date:
		return iceberg.PrimitiveTypes.Date
	default:
		return iceberg.PrimitiveTypes.String
	}
}

// icebergSchema is the schema of a new table. Field ids are given in order, nested ones after the columns.
func icebergSchema(columns []feature.Column) *iceberg.Schema {
	id := len(columns)
	next := func() int { id++; return id }
	fields := make([]iceberg.NestedField, len(columns))
	for i, c := range columns {
		fields[i] = iceberg.NestedField{ID: i + 1, Name: c.Name, Type: icebergType(c.Type, next)}
	}
	return iceberg.NewSchema(0, fields...)
}

// partitionField partitions a new table by a column.
type partitionField struct {
	column    string
	transform iceberg.Transform
	name      string
}

// createTable makes the table where it is missing; its columns are then those given. It has the properties besides those
// of every table of loam.
func (l *Lake) createTable(ctx context.Context, name string, schema *iceberg.Schema, partition []partitionField, more iceberg.Properties) error {
	ident := table.Identifier{l.config.Namespace, name}
	exists, err := l.catalog.CheckTableExists(ctx, ident)
	if err != nil {
		return fmt.Errorf("look for table %s: %w", l.TableName(name), err)
	}
	if exists {
		return nil
	}
	fields := make([]iceberg.PartitionField, len(partition))
	for i, p := range partition {
		f, ok := schema.FindFieldByName(p.column)
		if !ok {
			panic("partition by a column that the table lacks: " + p.column)
		}
		fields[i] = iceberg.PartitionField{SourceIDs: []int{f.ID}, FieldID: iceberg.PartitionDataIDStart + i, Name: p.name, Transform: p.transform}
	}
	spec := iceberg.NewPartitionSpec(fields...)
	properties := l.tableProperties()
	maps.Copy(properties, more)
	_, err = l.catalog.CreateTable(ctx, ident, schema, catalog.WithPartitionSpec(&spec), catalog.WithProperties(properties))
	if err != nil && !errors.Is(err, catalog.ErrTableAlreadyExists) {
		return fmt.Errorf("create table %s: %w", l.TableName(name), err)
	}
	return nil
}

// evolve brings the table of a stream to its definition, and its columns to those given: columns are renamed, wider
// decimals widened, new ones added. What can't be followed is an error before anything is done.
func (t *Table) evolve(ctx context.Context, s *feature.Stream, columns []feature.Column) error {
	return t.commit(ctx, func(_ context.Context, base *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		e, err := evolutionOf(base, s, columns)
		if err != nil {
			return err
		}
		if e == nil {
			return errNothing
		}
		update := tx.UpdateSchema(true, false)
		for _, c := range e.add {
			id := 0
			update.AddColumn([]string{c.Name}, icebergType(c.Type, func() int { id++; return id }), "", false, nil)
		}
		for _, c := range e.widen {
			path := []string{e.nameBefore(c.Name)}
			if c.Type.List {
				path = append(path, "element")
			}
			update.UpdateColumn(path, table.ColumnUpdate{FieldType: iceberg.Optional[iceberg.Type]{Val: icebergType(c.Type.Elem(), nil), Valid: true}})
		}
		for old, name := range e.rename {
			update.RenameColumn([]string{old}, name)
		}
		if err := update.Commit(); err != nil {
			return err
		}
		return tx.SetProperties(iceberg.Properties{propertyStream: e.rests})
	})
}

// sameType compares types whatever the ids of their elements.
func sameType(a, b iceberg.Type) bool {
	la, okA := a.(*iceberg.ListType)
	lb, okB := b.(*iceberg.ListType)
	if okA && okB {
		return sameType(la.Element, lb.Element)
	}
	return a.Equals(b)
}

func widerDecimal(from, to iceberg.Type) bool {
	la, okA := from.(*iceberg.ListType)
	lb, okB := to.(*iceberg.ListType)
	if okA && okB {
		return widerDecimal(la.Element, lb.Element)
	}
	f, okF := from.(iceberg.DecimalType)
	w, okT := to.(iceberg.DecimalType)
	return okF && okT && f.Scale() == w.Scale() && w.Precision() >= f.Precision()
}

// arrowSchema is the Arrow schema of the table's data files, field ids included.
func (t *Table) arrowSchema() (*arrow.Schema, error) {
	schema, err := table.SchemaToArrowSchema(t.tbl.Schema(), nil, true, false)
	if err != nil {
		return nil, fmt.Errorf("read the schema of %s: %w", t.Name(), err)
	}
	return schema, nil
}
