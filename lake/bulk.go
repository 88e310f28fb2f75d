package lake

import (
	"cmp"
	"context"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
	"github.com/loamdata/loam/sql"
)

// sortedWithout gives the changes that are not among those of the batch, in their order.
func sortedWithout(all, batch []scd.Change) []scd.Change {
	rest := slices.DeleteFunc(slices.Clone(all), among(batch))
	scd.Sort(rest)
	return rest
}

// among tells whether a change is one of these.
func among(changes []scd.Change) func(scd.Change) bool {
	orders := make(map[feature.Order]bool, len(changes))
	for _, c := range changes {
		orders[c.Order] = true
	}
	return func(c scd.Change) bool { return orders[c.Order] }
}

// storedKey is what the lake holds of a key.
type storedKey struct {
	versions []scd.Version
	places   map[int64]place // by From
	changes  []scd.Change
}

// readLate reads the stored versions and all changes of some keys, in one pass over each table.
func (m *merger) readLate(ctx context.Context, keys []*keyChanges) (map[string]*storedKey, error) {
	if err := m.importKeys(ctx, keys); err != nil {
		return nil, err
	}
	stored := make(map[string]*storedKey, len(keys))
	of := func(key []byte) *storedKey {
		s := stored[string(key)]
		if s == nil {
			s = &storedKey{places: map[int64]place{}}
			stored[string(key)] = s
		}
		return s
	}
	var key, slab []byte
	each := func(name string, relation sql.Files, row func(r *reader, batch arrow.RecordBatch) (func(i int), error)) error {
		if err := m.db.LakeView(ctx, name, relation, true); err != nil {
			return err
		}
		statement := sql.Render("SELECT t.* FROM {name} t SEMI JOIN late_keys k USING ({keys})",
			sql.Args{"name": sql.Ident(name), "keys": sql.Idents("", m.layout.stream.Key)})
		return m.db.Arrow(ctx, statement, func(reader array.RecordReader) error {
			for reader.Next() {
				r, err := m.layout.newReader(reader.RecordBatch())
				if err != nil {
					return err
				}
				read, err := row(r, reader.RecordBatch())
				if err != nil {
					return err
				}
				for i := range int(reader.RecordBatch().NumRows()) {
					key = r.appendKey(key[:0], i)
					read(i)
					if len(slab) > chunkBytes {
						slab = nil
					}
				}
			}
			return nil
		})
	}
	log, err := m.log.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	err = each("late_log", log, func(r *reader, _ arrow.RecordBatch) (func(int), error) {
		return func(i int) {
			var c scd.Change
			slab, c = r.change(slab, i)
			s := of(key)
			s.changes = append(s.changes, c)
		}, nil
	})
	if err != nil {
		return nil, err
	}
	history, err := m.history.Scan(ctx, ScanOptions{})
	if err != nil {
		return nil, err
	}
	numbers, err := m.numbersOf(ctx, history)
	if err != nil {
		return nil, err
	}
	err = each("late_history", history, func(r *reader, batch arrow.RecordBatch) (func(int), error) {
		places, err := placesOf(batch, numbers)
		return func(i int) {
			var v scd.Version
			slab, v = r.version(slab, i)
			s := of(key)
			s.versions = append(s.versions, v)
			s.places[v.From] = places(i)
		}, err
	})
	for _, s := range stored {
		slices.SortFunc(s.versions, func(a, b scd.Version) int { return cmp.Compare(a.From, b.From) })
	}
	return stored, err
}

// importKeys fills the table late_keys.
func (m *merger) importKeys(ctx context.Context, keys []*keyChanges) error {
	schema := feature.ArrowSchema(m.layout.key)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, k := range keys {
		rest := []byte(k.key)
		for i := range m.layout.key {
			var value []byte
			value, rest = scd.Next(rest)
			appendPacked(b.Field(i), value)
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	return m.db.ImportBatches(ctx, "late_keys", schema, []arrow.RecordBatch{batch})
}
