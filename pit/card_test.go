package pit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// Where the card can't be kept, in the lake or beside it, there is no training set.
func TestNoTrainingSetWithoutItsCard(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *world){
		"no lake": func(t *testing.T, w *world) {
			if err := w.lake.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"no place": func(t *testing.T, w *world) {
			if err := os.MkdirAll(filepath.Join(w.dir, "out.card.json", "x"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
			w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`})
			w.put("labels.csv", "k,event_timestamp\na,2026-01-02\n")
			features, err := w.project.Resolve([]string{"v"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = Build(context.Background(), w.lake, w.project, feature.DatasetRequest{
				Labels: "labels.csv", TimeColumn: feature.DefaultTimeColumn, AsOf: feature.ServedClock, Out: "out.parquet", Features: features,
			}, Options{Now: time.Now, Version: "test", Step: func(what string, _, _ int) {
				if what == "done" {
					spoil(t, w)
				}
			}})
			if err == nil {
				t.Fatal("no error")
			}
			for _, file := range []string{"out.parquet", "out.card.json"} {
				info, err := os.Stat(filepath.Join(w.dir, file))
				if !errors.Is(err, fs.ErrNotExist) && !(err == nil && info.IsDir()) {
					t.Errorf("%s is there: %v", file, err)
				}
			}
		})
	}
}
