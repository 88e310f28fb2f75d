package simulate

import (
	"context"
	"errors"
	"testing"
)

// BenchmarkRun makes b.N events of a CRM of 100,000 contacts with every irregularity there is; ns/op is per event.
func BenchmarkRun(b *testing.B) {
	c := Config{
		Seed: 1, Contacts: 100_000, Days: 90, Events: 50_000_000,
		Duplicates: 0.01, Late: 0.01, OutOfOrder: 0.02, Malformed: 0.001, Deletes: 0.0002,
	}
	enough := errors.New("enough")
	bytes, events := 0, 0
	b.ReportAllocs()
	_, err := Run(context.Background(), c, func(e Event) error {
		bytes += len(e.Value)
		if events++; events == b.N {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/event")
}
