package pit

import (
	"context"
	"fmt"
	"testing"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// BenchmarkDescribe is what a card costs: counts by spans of time and the hash of a million rows of 20 features.
func BenchmarkDescribe(b *testing.B) {
	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	stream := &feature.Stream{Name: "s"}
	view := &feature.View{Name: "v"}
	columns := ""
	var refs []feature.Ref
	for i := range 20 {
		name := fmt.Sprintf("f%d", i)
		columns += fmt.Sprintf(", %s AS v__%s", []string{"(i * 7919) % 1000", "(i % 977) / 3.0::DOUBLE", "'value ' || i % 100", "CASE WHEN i % 3 > 0 THEN i END"}[i%4], name)
		refs = append(refs, feature.Ref{View: "v", Feature: name})
	}
	if err := db.Exec(ctx, "CREATE TABLE dataset AS SELECT 'c' || i AS id"+columns+", i AS loam_label_row FROM range(1000000) t(i)"); err != nil {
		b.Fatal(err)
	}
	if err := db.Exec(ctx, "CREATE TABLE part_labels AS SELECT i AS loam_label_row, make_timestamptz(i * 1000000) AS loam_label_time FROM range(1000000) t(i); CREATE TABLE labels AS FROM part_labels; CREATE TABLE differing_any (label_row BIGINT)"); err != nil {
		b.Fatal(err)
	}
	made := &build{db: db, request: feature.DatasetRequest{Features: refs}, jobs: []*viewJob{{view: view, stream: stream}}}
	if err := made.spans(ctx); err != nil {
		b.Fatal(err)
	}
	made.present = make([]int64, len(refs))
	for name, f := range map[string]func(context.Context) error{"cover": made.cover, "hash": made.hashRows} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := f(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
