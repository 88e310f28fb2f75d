package lake

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// acceptedSince lists the events that commits after a snapshot of the log have added.
func (s *Stream) acceptedSince(ctx context.Context, snapshotID int64) ([]Accepted, error) {
	files, ok, err := s.log.addedSince(ctx, snapshotID, s.own)
	if err != nil {
		return nil, err
	}
	if ok && len(files) == 0 {
		return nil, nil
	}
	if !ok { // the snapshot has expired, so nothing less than all will do
		relation, err := s.log.Scan(ctx, ScanOptions{Columns: identityColumns(s.def)})
		if err != nil {
			return nil, err
		}
		return s.queryAccepted(ctx, relation, "true")
	}
	relation, err := s.log.relation(ctx, files, identityColumns(s.def))
	if err != nil {
		return nil, err
	}
	return s.queryAccepted(ctx, relation, "true")
}

func identityColumns(def *feature.Stream) []string {
	return append(slices.Clone(def.Key), feature.ColEventID, feature.ColEventTime, feature.ColTopic, feature.ColPartition, feature.ColOffset)
}

// keyText is the SQL expression of [feature.Identity]'s key.
func keyText(def *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		c, _ := def.Column(k)
		ident := sql.Ident(k)
		switch c.Type.Kind {
		case feature.Timestamp:
			ident = "epoch_us(" + ident + ")"
		case feature.Date:
			ident = "(" + ident + " - DATE '1970-01-01')"
		}
		parts[i] = ident + "::VARCHAR"
	}
	return sql.Join(" || chr(31) || ", parts)
}

// queryAccepted reads identities and positions of the relation's rows for which the condition holds.
func (s *Stream) queryAccepted(ctx context.Context, relation sql.Files, where sql.Fragment) ([]Accepted, error) {
	if err := s.db.LakeView(ctx, "accepted", relation, false); err != nil {
		return nil, err
	}
	rows, err := s.db.Query(ctx, sql.Render(
		`SELECT event_id, {key}, epoch_us(event_time), topic, "partition", "offset" FROM accepted WHERE {where}`,
		sql.Args{"key": keyText(s.def), "where": where}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []Accepted
	for rows.Next() {
		var a Accepted
		if err := rows.Scan(&a.EventID, &a.Key, &a.EventTime, &a.Topic, &a.Position.Partition, &a.Offset); err != nil {
			return nil, fmt.Errorf("read identities of %s: %w", s.log.Name(), err)
		}
		found = append(found, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read identities of %s: %w", s.log.Name(), err)
	}
	return found, nil
}

// LookUp finds which of the identities the log holds, and at which positions they were accepted first.
func (s *Stream) LookUp(ctx context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	if s.seeker != nil && len(ids) <= lateSeekMax {
		if probes, ok := s.probesOf(ids); ok {
			return s.seekIdentities(ctx, ids, probes)
		}
	}
	least, greatest := ids[0].EventTime, ids[0].EventTime
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.BinaryTypes.String}, {Name: "at", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, id := range ids {
		least, greatest = min(least, id.EventTime), max(greatest, id.EventTime)
		b.Field(0).(*array.StringBuilder).Append(id.EventID)
		b.Field(1).(*array.Int64Builder).Append(id.EventTime)
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	if err := s.db.ImportBatches(ctx, "asked", schema, []arrow.RecordBatch{batch}); err != nil {
		return nil, err
	}
	column := iceberg.Reference(feature.ColEventTime)
	relation, err := s.log.Scan(ctx, ScanOptions{
		Columns: identityColumns(s.def),
		Filter: iceberg.NewAnd(iceberg.GreaterThanEqual(column, iceberg.Timestamp(least)),
			iceberg.LessThanEqual(column, iceberg.Timestamp(greatest))),
	})
	if err != nil {
		return nil, err
	}
	found, err := s.queryAccepted(ctx, relation, sql.Fragment(fmt.Sprintf(
		"event_time BETWEEN make_timestamptz(%d) AND make_timestamptz(%d) AND EXISTS (FROM asked WHERE asked.id = event_id AND asked.at = epoch_us(event_time))", least, greatest)))
	if err != nil {
		return nil, err
	}
	wanted := make(map[feature.Identity]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	positions := map[feature.Identity]feature.Position{}
	for _, a := range found {
		if wanted[a.Identity] {
			positions[a.Identity] = a.Position
		}
	}
	return positions, nil
}

// probesOf asks for the rows of the identities' keys at their times; false where a key's text can't be read back.
func (s *Stream) probesOf(ids []feature.Identity) ([]probe, bool) {
	byKey := map[string]probe{}
	for _, id := range ids {
		key, ok := s.layout.packKey(id.Key)
		if !ok {
			return nil, false
		}
		p, asked := byKey[key]
		if !asked {
			p = probe{key: key, from: id.EventTime, to: id.EventTime}
		}
		p.from, p.to = min(p.from, id.EventTime), max(p.to, id.EventTime)
		byKey[key] = p
	}
	return slices.Collect(maps.Values(byKey)), true
}

// seekIdentities is LookUp for few identities, whose rows are read one by one.
func (s *Stream) seekIdentities(ctx context.Context, ids []feature.Identity, probes []probe) (map[feature.Identity]feature.Position, error) {
	defer s.seeker.tidy()
	files, err := s.logFiles(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.seeker.find(ctx, files, probes)
	if err != nil {
		return nil, fmt.Errorf("look events of %s up: %w", s.def.Name, err)
	}
	type moment struct {
		key string
		at  int64
	}
	asked := make(map[moment]bool, len(ids))
	wanted := make(map[feature.Identity]bool, len(ids))
	for _, id := range ids {
		key, _ := s.layout.packKey(id.Key)
		asked[moment{key, id.EventTime}] = true
		wanted[id] = true
	}
	var hits []hit
	for key, some := range found {
		for _, h := range some {
			if asked[moment{key, h.from}] {
				hits = append(hits, h)
			}
		}
	}
	positions := map[feature.Identity]feature.Position{}
	err = s.seeker.rows(ctx, files, hits, identityColumns(s.def), func(_ hit, batch arrow.RecordBatch, i int) error {
		row := batch.NewSlice(int64(i), int64(i+1))
		defer row.Release()
		accepted, err := identities(s.def, row)
		if err == nil && wanted[accepted[0].Identity] {
			positions[accepted[0].Identity] = accepted[0].Position
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look events of %s up: %w", s.def.Name, err)
	}
	return positions, nil
}

// logFiles lists the files of the log as it is loaded.
func (s *Stream) logFiles(ctx context.Context) ([]*liveFile, error) {
	if head := s.log.SnapshotID(); s.listed == nil || s.listedHead != head {
		files, err := s.log.plan(ctx, ScanOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the files of %s: %w", s.log.Name(), err)
		}
		s.listed, s.listedHead = files, head
	}
	return s.listed, nil
}

// Recent calls yield with the identities of the newest events by event time, at most limit of them, and reports whether
// those are all that the log holds.
func (s *Stream) Recent(ctx context.Context, limit int, yield func(Accepted)) (all bool, err error) {
	relation, err := s.log.Scan(ctx, ScanOptions{Columns: identityColumns(s.def)})
	if err != nil {
		return false, err
	}
	found, err := s.queryAccepted(ctx, relation, sql.Fragment(fmt.Sprintf("true ORDER BY event_time DESC LIMIT %d", limit)))
	if err != nil {
		return false, err
	}
	for _, a := range found {
		yield(a)
	}
	s.head = headOf(s.log.tbl)
	return len(found) < limit, nil
}

// identities reads identities and positions of a batch's rows.
func identities(def *feature.Stream, batch arrow.RecordBatch) ([]Accepted, error) {
	var eventID, topic *array.String
	var eventTime *array.Timestamp
	var partition, offset *array.Int64
	err := errors1(
		bind(batch, feature.ColEventID, &eventID), bind(batch, feature.ColEventTime, &eventTime), bind(batch, feature.ColTopic, &topic),
		bind(batch, feature.ColPartition, &partition), bind(batch, feature.ColOffset, &offset),
	)
	if err != nil {
		return nil, err
	}
	keys := make([]arrow.Array, len(def.Key))
	for i, k := range def.Key {
		if keys[i], err = columnOf(batch, k); err != nil {
			return nil, err
		}
	}
	all := make([]Accepted, batch.NumRows())
	for i := range all {
		all[i].EventID = eventID.Value(i)
		all[i].EventTime = int64(eventTime.Value(i))
		for j, k := range keys {
			if j > 0 {
				all[i].Key += feature.KeySeparator
			}
			all[i].Key += keyPart(k, i)
		}
		all[i].Position = feature.Position{Topic: topic.Value(i), Partition: int32(partition.Value(i)), Offset: offset.Value(i)}
	}
	return all, nil
}

func keyPart(column arrow.Array, row int) string {
	switch c := column.(type) {
	case *array.Timestamp:
		return fmt.Sprint(int64(c.Value(row)))
	case *array.Date32:
		return fmt.Sprint(int32(c.Value(row)))
	default:
		return column.ValueStr(row)
	}
}
