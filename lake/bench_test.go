package lake

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loamdata/loam/feature"
)

// BenchmarkCommit commits batches of 10,000 changes of uniformly random keys to a log and a history of a million keys.
func BenchmarkCommit(b *testing.B) {
	const keys, size = 1_000_000, 10_000
	l, err := Open(context.Background(), Config{
		Lake:      feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3},
		Namespace: "test", Dir: b.TempDir(),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	def := testStream()
	ctx := context.Background()
	if err := l.CreateStream(ctx, def); err != nil {
		b.Fatal(err)
	}
	s, err := l.OpenStream(ctx, def, StreamOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	from := map[string]int64{}
	offset, at := int64(0), int64(1000)
	r := rand.New(rand.NewPCG(1, 1))
	put := func(n int, key func(i int) int) {
		rows := make([]row, n)
		for i := range rows {
			rows[i] = row{id: fmt.Sprintf("c%07d", key(i)), v: fmt.Sprintf("value %d of some length", r.IntN(1e6)), u: 1, at: at, topic: "t", offset: offset}
			offset++
		}
		at++
		batch := batchOf(def, rows, from)
		defer batch.Release()
		b.StartTimer()
		if _, err := s.Commit(ctx, batch, s.Head()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
	}
	b.StopTimer()
	for k := 0; k < keys; k += 100_000 {
		put(100_000, func(i int) int { return k + i })
	}
	b.ResetTimer()
	b.StopTimer()
	for range b.N {
		put(size, func(int) int { return r.IntN(keys) })
	}
	b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "changes/s")
}
