package numeric

import (
	"math"
	"testing"
)

// Wide sums are those of big integers.
func TestWide(t *testing.T) {
	var w Wide
	for range 3 {
		w.Add(WideOf(math.MaxUint64, math.MaxInt64)) // 2^127 - 1
	}
	if _, ok := w.Decimal(); ok {
		t.Error("3 * (2^127 - 1) has 38 digits")
	}
	if got, want := w.Float64(), 3*math.Pow(2, 127); got != want {
		t.Errorf("%g, want %g", got, want)
	}
	for range 4 {
		w.Add(WideOf(1, math.MinInt64)) // -(2^127 - 1)
	}
	if got, want := w.Float64(), -math.Pow(2, 127); got != want {
		t.Errorf("%g, want %g", got, want)
	}
	w.Add(WideOf(math.MaxUint64, math.MaxInt64))
	if n, ok := w.Int64(); !ok || n != 0 {
		t.Errorf("%d, %v, want 0", n, ok)
	}
	minus := int64(-5)
	w.Add(WideOf(uint64(minus), minus>>63))
	if n, ok := w.Int64(); !ok || n != -5 {
		t.Errorf("%d, %v, want -5", n, ok)
	}
}
