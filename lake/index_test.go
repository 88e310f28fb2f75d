package lake

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// The index gives back what was put into it, whether its records stand on the heap or in a file, while they are replaced,
// outgrow a chunk, and are moved.
func TestIndex(t *testing.T) {
	for name, memory := range map[string]int64{"on the heap": 0, "in a file": 2 * chunkBytes} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			x := newIndex(memory, dir)
			defer x.close()
			r := rand.New(rand.NewPCG(1, 1))
			want := map[string]*scd.Version{}
			for n := range 120_000 {
				key := fmt.Sprintf("k%d", r.IntN(20_000))
				v := &scd.Version{From: r.Int64N(1e15), To: scd.Open}
				value := make([]byte, 100+r.IntN(500))
				if n%30_000 == 7 {
					value = make([]byte, 2*chunkBytes)
				}
				_, v.Row = scd.AppendRow(nil, scd.AppendValue(nil, value), nil)
				v.Order = feature.Order{EventTime: v.From, HasSequence: r.IntN(2) == 0, Live: true, TopicHash: 7, Partition: 3, Offset: r.Int64N(1e9)}
				if v.Order.HasSequence {
					v.Order.Sequence = r.Int64() - 1<<62
				}
				v.Origin = scd.Origin{Topic: "t", RecordedAt: r.Int64N(1e15), IngestedAt: r.Int64N(1e15)}
				switch r.IntN(3) {
				case 0:
					v.Origin.EventID = fmt.Sprintf("%08x-0000-4000-8000-%012x", r.Uint32(), r.Int64N(1<<48))
				case 1:
					v.Origin.EventID = fmt.Sprintf("%08X-0000-4000-8000-%012X", r.Uint32(), r.Int64N(1<<48))
				default:
					v.Origin.EventID = fmt.Sprint(n)
				}
				if r.IntN(10) == 0 {
					v = nil
				}
				if err := x.put([]byte(key), int64(n), v, 1, uint32(n)); err != nil {
					t.Fatal(err)
				}
				want[key] = v
				if n%1000 == 0 {
					x.tidy()
				}
			}
			if (len(x.slabs.maps) > 0) != (memory > 0) {
				t.Errorf("%d segments of a file", len(x.slabs.maps))
			}
			if len(x.entries) != len(want) || x.find([]byte("nobody")) != nil {
				t.Errorf("%d entries, want %d", len(x.entries), len(want))
			}
			for key, v := range want {
				e := x.find([]byte(key))
				got := x.version(e)
				if (got == nil) != (v == nil) || v != nil && !got.Equal(*v) {
					t.Fatalf("%s: %+v, want %+v", key, got, v)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("files are left: %v, %v", left, err)
			}
		})
	}
}
