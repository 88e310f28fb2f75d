package pit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// TestInstant holds what is materialized of windows over history against the oracle, as of instants before, within and after
// random histories: of each entity that was known by then, in parts and at once.
func TestInstant(t *testing.T) { eachPayload(t, testInstant) }

func testInstant(t *testing.T, stream string, draw func(r *rand.Rand, from, span int64, n int) []phase) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 6))
	const day = 86400e6
	from, span := time.Date(2024, 2, 20, 0, 0, 0, 0, time.UTC).UnixMicro(), int64(45*day)
	w := newWorld(t, map[string]string{"loam.yaml": "project: instant", "streams/phase.yaml": stream, "features/f.yaml": phaseViews})
	all := draw(r, from, span, 200)
	var rows []string
	for _, p := range all {
		rows = append(rows, p.event())
	}
	w.take("phase", "file:phase", 1, rows)
	view := w.project.View("past")
	reading, err := w.lake.Read(t.Context(), w.project.Stream("phase"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{from - int64(30*day), all[0].received, from + r.Int64N(span), from + r.Int64N(span), from + 2*span} {
		known := map[string]bool{}
		for _, p := range all {
			if p.received <= at {
				known[p.id] = true
			}
		}
		for _, partRows := range []int64{0, 7} {
			got, most := map[string]map[string]any{}, int64(0)
			o := Options{Now: time.Now, TempDir: t.TempDir(), partRows: partRows}
			err := Instant(t.Context(), w.project, view, reading, time.UnixMicro(at), o, func(batch arrow.RecordBatch, of int64) error {
				most = max(most, batch.NumRows())
				if of != int64(len(known)) {
					return fmt.Errorf("%d entities, want %d", of, len(known))
				}
				if batch.NumCols() != int64(1+len(view.FeatureNames())) {
					return fmt.Errorf("columns %v", batch.Schema())
				}
				for i := range int(batch.NumRows()) {
					row := map[string]any{}
					for n, name := range view.FeatureNames() {
						switch c := batch.Column(1 + n).(type) {
						case *array.Int64:
							row["past__"+name] = fmt.Sprint(c.Value(i))
						case *array.Float64:
							row["past__"+name] = c.Value(i)
						}
						if batch.Column(1 + n).IsNull(i) {
							row["past__"+name] = nil
						}
					}
					got[strings.Clone(batch.Column(0).(*array.String).Value(i))] = row
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(known) || partRows > 0 && most > partRows {
				t.Errorf("seed %d, as of %s: %d entities, want %d; %d in a part", sd, rfc(at), len(got), len(known), most)
			}
			for id := range known {
				want := past(all, func(p phase) bool { return p.id == id && p.received <= at }, at)
				delete(want, "only_days__days")
				for name, v := range want {
					if _, double := v.(float64); v != nil && !double {
						v = fmt.Sprint(v)
					}
					if got[id][name] != v {
						t.Errorf("seed %d, as of %s: %s of %s is %v, want %v", sd, rfc(at), name, id, got[id][name], v)
					}
				}
			}
		}
	}
}
