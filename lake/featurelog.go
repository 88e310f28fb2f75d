package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// FeatureLogName is the table of what was served.
const FeatureLogName = "feature_log"

// FeatureLog is the table of what was served. It is not safe for concurrent use.
type FeatureLog struct{ table *recordTable }

// OpenFeatureLog opens the table, and makes it where it is missing.
func (l *Lake) OpenFeatureLog(ctx context.Context) (*FeatureLog, error) {
	text := iceberg.PrimitiveTypes.String
	list := func() *iceberg.ListType { return &iceberg.ListType{Element: text} }
	t, err := l.openRecords(ctx, FeatureLogName, []iceberg.NestedField{
		{Name: "served_at", Type: iceberg.PrimitiveTypes.TimestampTz}, {Name: "request", Type: text}, {Name: "service", Type: text},
		{Name: "view", Type: text}, {Name: "definition", Type: text}, {Name: "generation", Type: iceberg.PrimitiveTypes.Int64},
		{Name: "entity", Type: list()}, {Name: "features", Type: list()}, {Name: "values", Type: list()}, {Name: "statuses", Type: list()},
		{Name: "order", Type: text}, {Name: "guards", Type: list()}, {Name: "guard_values", Type: list()},
		{Name: "marks", Type: list()}, {Name: "mark_offsets", Type: list()},
	}, partitionField{column: "served_at", transform: iceberg.DayTransform{}, name: "served_day"})
	if err != nil {
		return nil, err
	}
	return &FeatureLog{t}, nil
}

// OpenFeatureLogMaintainer prepares maintenance of the table of what was served. It fails with [ErrNoTable] where there is none.
func (l *Lake) OpenFeatureLogMaintainer(ctx context.Context, o MaintainOptions) (*Maintainer, error) {
	if _, err := l.openTable(ctx, FeatureLogName); err != nil {
		return nil, err
	}
	return l.openMaintainer(ctx, []kept{{
		name: FeatureLogName, sort: []string{"view", "served_at"}, time: "served_at", packing: packing{scanned: true},
	}}, o)
}

// Append adds rows, in one commit a day that they are of.
func (f *FeatureLog) Append(ctx context.Context, rows []feature.ServedRow) error {
	byDay := map[iceberg.Date][]feature.ServedRow{}
	for _, r := range rows {
		byDay[dayOf(r.ServedAt)] = append(byDay[dayOf(r.ServedAt)], r)
	}
	for day, some := range byDay {
		if err := f.table.appendRows(ctx, day, func(b *array.RecordBuilder) { fillServed(b, some) }); err != nil {
			return fmt.Errorf("log %d rows that were served: %w", len(some), err)
		}
	}
	return f.table.upkeep(ctx)
}

func fillServed(b *array.RecordBuilder, rows []feature.ServedRow) {
	field := func(name string) array.Builder { return b.Field(b.Schema().FieldIndices(name)[0]) }
	text := func(name, v string) {
		if v == "" {
			field(name).AppendNull()
			return
		}
		field(name).(*array.StringBuilder).Append(v)
	}
	list := func(name string, known bool, values []*string) {
		l := field(name).(*array.ListBuilder)
		if l.Append(known); !known {
			return
		}
		for _, v := range values {
			if v == nil {
				l.ValueBuilder().AppendNull()
			} else {
				l.ValueBuilder().(*array.StringBuilder).Append(*v)
			}
		}
	}
	for _, r := range rows {
		moment(b, b.Schema().FieldIndices("served_at")[0], r.ServedAt)
		text("request", r.Request)
		text("service", r.Service)
		text("view", r.View)
		text("definition", r.Definition)
		field("generation").(*array.Int64Builder).Append(r.Generation)
		list("entity", true, pointers(r.Entity))
		list("features", true, pointers(r.Features))
		list("values", true, r.Values)
		list("statuses", true, pointers(r.Statuses))
		text("order", r.Order)
		names := slices.Sorted(maps.Keys(r.Guards))
		values := make([]string, len(names))
		for i, name := range names {
			values[i] = r.Guards[name]
		}
		list("guards", true, pointers(names))
		list("guard_values", true, pointers(values))
		var partitions, offsets []string
		for _, p := range slices.SortedFunc(maps.Keys(r.Marks), feature.Partition.Compare) {
			partitions = append(partitions, p.Topic+":"+strconv.Itoa(int(p.Index)))
			offsets = append(offsets, strconv.FormatInt(r.Marks[p], 10))
		}
		list("marks", r.Marks != nil, pointers(partitions))
		list("mark_offsets", r.Marks != nil, pointers(offsets))
	}
}

func pointers(values []string) []*string {
	p := make([]*string, len(values))
	for i := range values {
		p[i] = &values[i]
	}
	return p
}

// FeatureLogView makes a view of the table in DuckDB, and reports whether there is a table.
func (l *Lake) FeatureLogView(ctx context.Context, db *sql.DB, name string) (bool, error) {
	t, err := l.openTable(ctx, FeatureLogName)
	if errors.Is(err, ErrNoTable) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	relation, err := t.Scan(ctx, ScanOptions{})
	if err != nil {
		return false, err
	}
	return true, db.LakeView(ctx, name, relation, false)
}
