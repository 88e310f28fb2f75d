package pit

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/loamdata/loam/lake"
)

// vectorTables are how the tables come about that a vector's history stands in.
type vectorTables struct {
	world func(t testing.TB, files map[string]string) *world
	fill  func(w *world, rows []string) // into the stream s
	every int                           // outside of CI one of so many cases is run
}

// plainTables have the definition of the vector, and its history in one commit.
var plainTables = vectorTables{newWorld, func(w *world, rows []string) { w.take("s", "file:history", 1, rows) }, 1}

var lastColumn = regexp.MustCompile(`  - \{name: (\w+), type: (\w+)\}\n$`)

// evolvedTables are made by a definition that calls the last column otherwise and lacks another, and hold a third of the
// history by then. The column is renamed, one is added, a third is taken, all is compacted, and the rest is taken: with
// changes of another entity, so that rows of the compacted history are deleted by vectors.
var evolvedTables = vectorTables{
	every: 4,
	world: func(t testing.TB, files map[string]string) *world {
		stream, features := files["streams/s.yaml"], files["features/f.yaml"]
		m := lastColumn.FindStringSubmatch(stream)
		if m == nil {
			t.Fatalf("the stream has no last column:\n%s", stream)
		}
		name, typ := m[1], m[2]
		files["streams/s.yaml"] = lastColumn.ReplaceAllString(stream, fmt.Sprintf("  - {name: was_%s, type: %s, path: %s}\n", name, typ, name))
		files["features/f.yaml"] = strings.Replace(features, name+"]}]", "was_"+name+"]}]", 1)
		w := newWorld(t, files)
		w.later = func() {
			w.put("features/f.yaml", features)
			w.evolve("streams/s.yaml", lastColumn.ReplaceAllString(stream, fmt.Sprintf("  - {name: %s, type: %s, renamed_from: was_%s}\n  - {name: added, type: string}\n", name, typ, name)))
		}
		return w
	},
	fill: func(w *world, rows []string) {
		ctx := context.Background()
		other := map[string]any{"at": "2020-01-01T00:00:00Z", "added": "x"}
		for _, k := range w.project.Stream("s").Key {
			other[k] = "zz_other"
			if c, _ := w.project.Stream("s").Column(k); c.Type.String() == "int64" {
				other[k] = 987654321
			}
		}
		take := func(rows []string, at string) {
			other["at"], other["added"] = at, at
			w.take("s", "file:history", 1, append(rows[:len(rows):len(rows)], jsonOf(other)))
		}
		a, b := len(rows)/3, 2*len(rows)/3
		take(rows[:a], "2020-01-01T00:00:00Z")
		w.later()
		take(rows[a:b], "2020-01-02T00:00:00Z")
		m, err := w.lake.OpenMaintainer(ctx, w.project.Stream("s"), lake.MaintainOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		defer m.Close()
		if err := m.Rewrite(ctx); err != nil {
			w.t.Fatal(err)
		}
		take(rows[b:], "2020-01-03T00:00:00Z")
		table, err := w.lake.OpenTable(ctx, lake.HistoryName("s"))
		if err != nil {
			w.t.Fatal(err)
		}
		files, err := table.Scan(ctx, lake.ScanOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		deleted := 0
		for _, f := range files.Files {
			deleted += len(f.Deleted)
		}
		if deleted == 0 {
			w.t.Error("no row of the history is deleted by a vector")
		}
	},
}

// The cases of as-of joins and of point-in-time retrieval hold on tables with a past, too.
func TestVectorsOnEvolvedTables(t *testing.T) {
	t.Run("asof", func(t *testing.T) { asOfVectors(t, evolvedTables) })
	t.Run("pit", func(t *testing.T) { pitVectors(t, evolvedTables) })
}
