package verify

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// historyCheck compares what Redis holds of a view windowed over history with what the log makes of each entity that it knew at the
// generation's instant, recomputed as rows of training sets are: see viewCheck.histories.
//
// An entity is not settled where the log has since taken a change of before the instant. What was built without it stays as it is
// until the next is built, so nothing is waited for.
type historyCheck struct{ *onlineCheck }

// knownEntity is an entity that a stream knew at an instant.
type knownEntity struct {
	text  string // as it stands in Redis' keys
	newer bool   // it has a change that what was built lacks
}

// loadWanted fills verify_expected, bucket by bucket.
func (c *historyCheck) loadWanted(ctx context.Context, reading *lake.Reading, g online.Generation, only []string, _ lake.Offsets) error {
	if err := reading.LogView(ctx, c.db, "verify_log", append(slices.Clone(c.joins), sinceColumns...), false); err != nil {
		return err
	}
	buckets, condition, err := c.portion(ctx, c.joins, only)
	if err != nil {
		return err
	}
	known, err := c.knownSince(ctx, g, condition)
	if err != nil {
		return err
	}
	table, err := newTextRows(ctx, c.db, "verify_expected", c.tableColumns())
	if err != nil {
		return err
	}
	defer table.close()
	v, at := c.slowly(reading), c.report.At.UnixMicro()
	for bucket := range buckets {
		var labels []*label
		var entities []knownEntity
		err := known(buckets, bucket, func(e knownEntity, parts []any) {
			labels, entities = append(labels, &label{key: keyOf(parts), at: &at}), append(entities, e)
		})
		if err != nil {
			return err
		}
		if err := c.expectHistories(ctx, table, v, labels, entities); err != nil {
			return err
		}
		c.report.Entities += int64(len(labels))
		c.report.Values += int64(len(labels) * len(v.features))
		if c.options.Progress != nil {
			c.options.Progress(bucket+1, buckets)
		}
	}
	return table.flush(ctx)
}

// sinceColumns are the columns of verify_log, besides keys, that knownSince needs.
var sinceColumns = []string{feature.ColRecordedAt, feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColJobID}

// knownSince gives what lists the entities of a bucket that verify_log, which ends at a generation's instant, has changes of, and tells of
// which the log has taken some since the generation was built. Offsets tell of topics; of files and redrives it is when a row was
// recorded, unless some came while it was built.
func (c *onlineCheck) knownSince(ctx context.Context, g online.Generation, only sql.Fragment) (func(buckets, bucket int, use func(e knownEntity, key []any)) error, error) {
	if err := c.loadPartitions(ctx, g); err != nil {
		return nil, err
	}
	var others int64
	built := g.BuiltAt.UnixMicro()
	err := c.db.QueryRow(ctx, "SELECT count(*) FROM verify_log WHERE (topic LIKE 'file:%' OR topic LIKE 'redrive:%' OR job_id LIKE 'redrive-%') "+
		"AND epoch_us(recorded_at) <= $1", []any{built}, &others)
	if err != nil {
		return nil, err
	}
	statement := sql.Render(sql.Statement("verify_instant"), sql.Args{
		"key": sql.Idents("g.", c.joins), "key_alone": sql.Idents("", c.joins), "only": only,
	})
	return func(buckets, bucket int, use func(knownEntity, []any)) error {
		n := len(c.joins)
		return c.db.Arrow(ctx, statement, func(r array.RecordReader) error {
			for r.Next() {
				batch := r.RecordBatch()
				for row := range int(batch.NumRows()) {
					parts, texts := make([]any, n), make([]string, n)
					for i := range n {
						parts[i], texts[i] = arrowValue(batch.Column(i), row), valueText(batch.Column(i), row)
					}
					use(knownEntity{joinEntity(c.entity.Name, texts), batch.Column(n).(*array.Boolean).Value(row)}, parts)
				}
			}
			return nil
		}, buckets, bucket, built, others != g.Others)
	}, nil
}

// slowly is the check of rows of training sets, for the view as it is now and the clock served.
func (c *historyCheck) slowly(reading *lake.Reading) *viewCheck {
	of := &datasetCheck{db: c.db}
	of.card.Request.AsOf = string(feature.ServedClock)
	v := &viewCheck{datasetCheck: of, view: c.view, stream: reading.Stream, joinKeys: c.joins, log: reading.Log, beyond: reading.Pins()[reading.Log.Name()].Beyond}
	for _, name := range c.view.FeatureNames() {
		v.features = append(v.features, featureCheck{name: name, typ: c.view.FeatureType(c.def, name)})
	}
	return v
}

// expectHistories writes entities as Redis should hold them.
func (c *historyCheck) expectHistories(ctx context.Context, table *textRows, v *viewCheck, labels []*label, entities []knownEntity) error {
	changes, err := v.read(ctx, labels)
	if err != nil {
		return fmt.Errorf("read the log of %s: %w", c.def.Name, err)
	}
	want, err := v.histories(ctx, labels, changes)
	if err != nil {
		return err
	}
	order := instantOrder(c.report.At.UnixMicro())
	for i, l := range labels {
		table.set(colEntity, entities[i].text)
		table.set(colOrder, order)
		if last := v.last(changes[l.key], *l.at, v.stream.Key[0]); last != nil {
			table.set(colPosition, feature.Position{Topic: last.topic, Partition: int32(last.partition), Offset: last.offset}.String())
		}
		if entities[i].newer {
			table.set(colNewer, "1")
		}
		for n := range v.features {
			switch value := want[i][n].value.(type) {
			case int64:
				table.set(colFeatures+n, strconv.FormatInt(value, 10))
			case float64:
				table.set(colFeatures+n, strconv.FormatFloat(value, 'g', -1, 64))
			}
		}
		if err := table.add(ctx); err != nil {
			return err
		}
	}
	return nil
}

// instantOrder is what stands for an order in the hashes of a view windowed over history: the instant as event time, and nothing else.
func instantOrder(us int64) string { return fmt.Sprintf("%016x%028d", uint64(us)^1<<63, 0) }
