package pit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// BenchmarkHistoryWindows is what windows over history cost where one entity has all the changes, and where one of them, or all,
// came late.
func BenchmarkHistoryWindows(b *testing.B) {
	for _, payload := range []string{"full", "patch"} {
		for _, late := range []string{"none", "one", "all"} {
			for _, n := range []int{8_000, 32_000, 128_000} {
				b.Run(fmt.Sprintf("payload=%s/late=%s/changes=%d", payload, late, n), func(b *testing.B) { benchHistory(b, payload == "patch", late, n) })
			}
		}
	}
}

// benchHistory builds for n labels of an entity with n changes; a patch carries each column every other time.
func benchHistory(b *testing.B, patches bool, late string, n int) {
	stream := phaseStream
	if patches {
		stream = patchPhases
	}
	w := newWorld(b, map[string]string{"loam.yaml": "project: bench", "streams/phase.yaml": stream, "features/f.yaml": phaseViews})
	r := rand.New(rand.NewPCG(1, 1))
	from, step := int64(epoch*1e6), (30*24*time.Hour).Microseconds()/int64(n)
	rows := make([]string, n)
	for i := range rows {
		v := r.Int64N(4)
		p := phase{id: "a", offset: i, at: from + int64(i)*step, v: &v, w: float64(r.IntN(2))}
		if patches {
			p.leavesV, p.leavesW = r.IntN(2) == 0, r.IntN(2) == 0
		}
		p.received = p.at
		if late == "all" {
			p.received += r.Int64N(step * 100)
		} else if late == "one" && i == n/2 {
			p.received += 10 * step
		}
		rows[i] = p.event()
	}
	w.take("phase", "file:x", 1, rows)
	var csv strings.Builder
	csv.WriteString("id,event_timestamp\n")
	for range n {
		csv.WriteString("a," + rfc(from+r.Int64N(int64(n)*step)) + "\n")
	}
	w.put("labels.csv", csv.String())
	for b.Loop() {
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0); err != nil {
			b.Fatal(err)
		}
	}
}
