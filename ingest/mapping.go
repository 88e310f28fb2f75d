package ingest

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// Mapper makes rows of records that are JSON documents of any shape: each gets its row as JSON, or why it can't be made one.
type Mapper func(ctx context.Context, records []*Record) (rows [][]byte, failed []error, err error)

// AddAll takes records, read at now, microseconds since 1970 UTC, after the stream's mapping has made rows of them where it has one. An error
// is that the mapping can't be evaluated at all, and no record was taken.
func (r *Router) AddAll(ctx context.Context, records []Record, now int64) error {
	if r.o.Only != nil {
		if mapper := r.o.Mappings[r.o.Only.Name]; mapper != nil {
			if err := mapRecords(ctx, mapper, records); err != nil {
				return fmt.Errorf("map records of %s: %w", r.o.Only.Name, err)
			}
		}
	}
	for i := range records {
		r.Add(&records[i], now)
	}
	return nil
}

// mapRecords maps what is a whole document. Anything else is refused as it stands, and a tombstone has nothing to map.
func mapRecords(ctx context.Context, mapper Mapper, records []Record) error {
	var whole []*Record
	for i := range records {
		rec := &records[i]
		if rec.Value != nil && !rec.Cut && rec.Malformed == "" && jsontext.Value(rec.event()).IsValid() {
			whole = append(whole, rec)
		}
	}
	if len(whole) == 0 {
		return nil
	}
	rows, failed, err := mapper(ctx, whole)
	if err != nil {
		return err
	}
	for i, rec := range whole {
		if failed[i] != nil {
			rec.Malformed, rec.Reason = "mapping of "+failed[i].Error(), feature.BadValue
			continue
		}
		rec.JSON, rec.Text = rows[i], true
	}
	return nil
}
