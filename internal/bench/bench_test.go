package bench

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/verify"
)

// What is measured is right: the history is what the log makes, late changes and no-ops were there, and every figure has
// a value.
func TestHistory(t *testing.T) {
	dir := t.TempDir()
	def := feature.Builtin("contact")
	r, err := History(t.Context(), def, Options{
		Dir: dir, Keys: 200, Batch: 1000, Batches: 10, Mix: Mix{Late: 0.1, NoOp: 0.2}, Maintain: true, Plain: true, Seed: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := Summarize(r.Samples)
	if s.Batches != 10 || s.LateKeys == 0 || s.P50 <= 0 || s.P95 < s.P50 || s.Max < s.P95 || s.Log <= 0 || s.Plain <= 0 ||
		s.HistoryPerSecond <= 0 || s.BothPerSecond <= 0 || s.BothPerSecond > s.HistoryPerSecond {
		t.Errorf("summary %+v", s)
	}
	if r.Fill <= 0 || r.Open <= 0 || r.Read <= 0 || r.ReadFresh <= 0 {
		t.Errorf("report %+v", r)
	}
	l, err := lake.Open(t.Context(), lake.Config{
		Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "bench", Dir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	report, err := verify.History(t.Context(), l, def, verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() || report.LogRows != 200+10*1000 || report.Changes != report.LogRows {
		t.Errorf("verify %+v", report)
	}
}

// Every change that is written counts once, and what was written is gone afterwards.
func TestWrites(t *testing.T) {
	m := miniredis.RunT(t)
	told := filepath.Join(t.TempDir(), "redis-benchmark")
	script := "#!/bin/sh\necho '\"test\",\"rps\",\"avg_latency_ms\"'\necho '\"HSET\",\"2000.00\",\"0.1\"'\n"
	if err := os.WriteFile(told, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := Writes(t.Context(), WritesOptions{
		Load: func(dir string) (*feature.Project, error) { return feature.Load(dir, nil) }, Dir: t.TempDir(), Redis: m.Addr(), Benchmark: told,
		Contacts: 300, Batch: 100, Writes: 1000, Rounds: 2, TTL: time.Hour, Seed: 1, Progress: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	// Of two changes of a contact in a batch one is written.
	if len(r.Guarded) != 2 || r.Guarded[0].Entities < 700 || r.Guarded[0].Entities > 1000 || r.GuardedPerSecond <= 0 || r.PlainPerSecond != 2000 || r.Ratio <= 0 {
		t.Errorf("report %+v", r)
	}
	if left := m.Keys(); len(left) > 0 {
		t.Errorf("left are %d keys, %s among them", len(left), left[0])
	}
}
