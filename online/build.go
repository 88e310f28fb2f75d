package online

import (
	"context"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// BuildOptions bound and inform a build.
type BuildOptions struct {
	Now         func() time.Time // the clock
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to
	// Progress, if not nil, is told how many entities of how many have been written.
	Progress func(done, of int64)
}

// Build writes a new generation of the view from what the lake holds now, and enters it as building. Its offsets are
// those of the snapshot: what comes behind them is to be written before [Store.Switch].
func (w *ViewWriter) Build(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	g, err := w.build(ctx, l, o)
	if err != nil {
		return g, fmt.Errorf("build feature view %s: %w", w.view.Name, err)
	}
	return g, nil
}

func (w *ViewWriter) build(ctx context.Context, l *lake.Lake, o BuildOptions) (Generation, error) {
	reading, err := l.Read(ctx, w.stream)
	if err != nil {
		return Generation{}, err
	}
	offsets, err := reading.Offsets()
	if err != nil {
		return Generation{}, err
	}
	base := map[feature.Partition]int64{}
	for p, at := range offsets.Partitions {
		base[p] = at.Next
	}
	g, err := w.store.begin(ctx, w.view.Name, w.hash, base, o.Now())
	if err != nil {
		return g, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir})
	if err != nil {
		return g, err
	}
	defer db.Close()
	if err := reading.LogView(ctx, db, "log", nil, true); err != nil {
		return g, err
	}
	key := sql.Idents("g.", w.stream.Key)
	if err := db.Exec(ctx, sql.Render(sql.Statement("served_now"), sql.Args{"key": key})); err != nil {
		return g, err
	}
	var total, done int64
	if err := db.QueryRow(ctx, "SELECT count(*) FROM newest", nil, &total); err != nil {
		return g, err
	}
	statement := sql.Render("SELECT {columns} FROM log g SEMI JOIN newest n ON g.loam_file = n.change_file AND g.loam_row = n.change_row",
		sql.Args{"columns": selection(w.view, w.stream)})
	writes := make([]*entityWrite, 0, pipelineCalls)
	flush := func() error {
		if err := w.put(ctx, g.Number, writes); err != nil {
			return err
		}
		done += int64(len(writes))
		if o.Progress != nil {
			o.Progress(done, total)
		}
		writes = writes[:0]
		return nil
	}
	err = db.Arrow(ctx, statement, func(r array.RecordReader) error {
		for r.Next() {
			var failed error
			err := w.each(r.RecordBatch(), func(e *entityWrite) {
				if writes = append(writes, e); len(writes) == pipelineCalls && failed == nil {
					failed = flush()
				}
			})
			if err != nil {
				return err
			}
			if failed != nil {
				return failed
			}
		}
		return flush()
	})
	return g, err
}
