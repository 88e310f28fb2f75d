package verify

import (
	"context"
	"fmt"
	"testing"

	"github.com/loamdata/loam/feature"
)

// BenchmarkHistory checks a history of a million changes of 200,000 keys, one in ten of which is late and five a no-op.
func BenchmarkHistory(b *testing.B) {
	const changes, keys = 1_000_000, 200_000
	w := newWorld(b, testStream(feature.FullPayload))
	part := make([]change, 0, 100_000)
	for i := range int64(changes) {
		key := i % keys
		at := 1000 + i/1000
		if i%10 == 3 {
			at -= 500
		}
		part = append(part, change{a: fmt.Sprintf("c%07d", key), b: key, at: at, topic: "thing.v1", offset: i, values: map[string]any{
			"s": fmt.Sprintf("state %d of some length", (i/keys)/2), "x": float64(key), "u": i, "j": `{"plan":"free","open_tickets":"3"}`,
		}})
		if len(part) == cap(part) {
			w.commit(part...)
			part = part[:0]
		}
	}
	b.ResetTimer()
	for range b.N {
		r, err := History(context.Background(), w.lake, w.def, Options{})
		if err != nil || !r.OK() || r.Changes != changes {
			b.Fatalf("%+v, %v", r, err)
		}
	}
	b.ReportMetric(float64(changes*b.N)/b.Elapsed().Seconds(), "changes/s")
}
