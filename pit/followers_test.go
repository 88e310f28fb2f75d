package pit

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// What followers tells of every time is what looking at all changes known by then does; it tells of two pairs a change at most, and
// one for the end.
func TestFollowers(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	r := rand.New(rand.NewPCG(sd, 9))
	type pair struct{ first, second int32 }
	for range 2000 {
		n := r.IntN(12)
		event, clock := make([]int64, n), make([]int64, n)
		for i := range event {
			event[i], clock[i] = r.Int64N(8), r.Int64N(10)
		}
		slices.Sort(event)
		if r.IntN(4) == 0 {
			slices.Sort(clock)
		}
		known := map[int64][]pair{}
		told := 0
		followers(event, clock, func(first, second int32, from, to int64) {
			told++
			if from >= to {
				t.Errorf("seed %d: told of [%d, %d)", sd, from, to)
			}
			for at := from; at < min(to, 10); at++ {
				known[at] = append(known[at], pair{first, second})
			}
		})
		if told > 2*n+1 {
			t.Errorf("seed %d: %d pairs of %d changes", sd, told, n)
		}
		for at := range int64(10) {
			var want []pair
			last := int32(-1)
			for i := range event {
				overruled := false
				for k := i + 1; k < n; k++ {
					overruled = overruled || event[k] == event[i] && clock[k] <= at
				}
				if clock[i] <= at && !overruled {
					want = append(want, pair{last, int32(i)})
					last = int32(i)
				}
			}
			if last >= 0 {
				want = append(want, pair{last, -1})
			}
			got := known[at]
			slices.SortFunc(got, func(a, b pair) int { return int(a.first - b.first) })
			slices.SortFunc(want, func(a, b pair) int { return int(a.first - b.first) })
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: events %v, known from %v: at %d pairs %v, want %v", sd, event, clock, at, got, want)
			}
		}
	}
}
