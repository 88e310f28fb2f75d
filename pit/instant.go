package pit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Instant gives the features of a view as of one instant, of every entity that its stream knew by then: what a training set has for
// a label of that entity and time by the clock served. It is made as that is, a part of the entities after the other.
//
// Batches come in no order. Their columns are the join keys, by their names, and then the view's features; of is how many entities there
// are in all. A batch is released after use returns.
func Instant(ctx context.Context, p *feature.Project, view *feature.View, r *lake.Reading, at time.Time, o Options,
	use func(batch arrow.RecordBatch, of int64) error) error {
	b := &build{
		project: p, request: feature.DatasetRequest{AsOf: feature.ServedClock}, options: o,
		sources: sources{readings: map[string]*lake.Reading{view.Stream: r}},
		card:    &Card{Tag: newTag(o.Now())},
	}
	for _, name := range view.FeatureNames() {
		b.request.Features = append(b.request.Features, feature.Ref{View: view.Name, Feature: name})
	}
	if err := b.ownTemp(o.Now()); err != nil {
		return err
	}
	defer os.RemoveAll(b.temp)
	var err error
	if b.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: filepath.Join(b.temp, "spill")}); err != nil {
		return err
	}
	defer b.db.Close()
	if err := b.plan(ctx); err != nil {
		return err
	}
	if err := b.entityLabels(ctx, b.jobs[0], at); err != nil {
		return fmt.Errorf("list the entities of stream %s: %w", view.Stream, err)
	}
	for part := range b.parts() {
		if err := b.joinPart(ctx, part, func(string) {}); err != nil {
			return err
		}
		err := b.db.Batches(ctx, sql.Render("SELECT * EXCLUDE ({row}) FROM assembled", sql.Args{"row": sql.Ident(labelRow)}),
			func(batch arrow.RecordBatch) error { return use(batch, b.labels.rows) })
		if err != nil {
			return err
		}
		if err := b.dropFeatures(ctx); err != nil {
			return err
		}
	}
	return nil
}

// entityLabels makes a label of every entity that the stream knew at a time, with that time.
func (b *build) entityLabels(ctx context.Context, j *viewJob, at time.Time) error {
	keys := slices.Sorted(slices.Values(j.entity.JoinKeys))
	us := at.UnixMicro()
	log := "entities_" + j.view.Name
	if err := j.reading.IngestedBy(us).LogView(ctx, b.db, log, keys, false); err != nil {
		return err
	}
	err := b.db.Exec(ctx, sql.Render("CREATE TEMP TABLE labels AS SELECT *, (row_number() OVER ()) - 1 AS {row}, make_timestamptz({at}) AS {time} "+
		"FROM (SELECT DISTINCT {keys} FROM {log} WHERE {present})", sql.Args{
		"row": sql.Ident(labelRow), "time": sql.Ident(labelTime), "at": sql.Fragment(fmt.Sprintf("%d::BIGINT", us)), "keys": sql.Idents("", keys),
		"log": sql.Ident(log), "present": notNull("", keys),
	}))
	if err != nil {
		return err
	}
	b.labels = &labels{}
	for _, k := range keys {
		column, _ := j.stream.Column(k)
		b.labels.columns = append(b.labels.columns, sql.Column{Name: k, Type: column.Type.SQL()})
	}
	return b.db.QueryRow(ctx, "SELECT count(*) FROM labels", nil, &b.labels.rows)
}
