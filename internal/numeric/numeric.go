// Package numeric has the arithmetic of aggregates, which training sets and tiles share: sums that are exact, and how doubles
// compare. verify has its own, since a check shares nothing with what it checks.
package numeric

import (
	"cmp"
	"math"
	"math/big"
	"math/bits"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
)

// Wide is a signed integer of 192 bits, low word first: any number of 128-bit decimals adds up in it.
type Wide [3]uint64

// WideOf makes one of an integer of 128 bits.
func WideOf(low uint64, high int64) Wide { return Wide{low, uint64(high), uint64(high >> 63)} }

// Add adds another one.
func (w *Wide) Add(o Wide) {
	var carry uint64
	w[0], carry = bits.Add64(w[0], o[0], 0)
	w[1], carry = bits.Add64(w[1], o[1], carry)
	w[2], _ = bits.Add64(w[2], o[2], carry)
}

// Compare is negative, 0 or positive where w is less than o, equal or greater.
func (w Wide) Compare(o Wide) int {
	return cmp.Or(cmp.Compare(int64(w[2]), int64(o[2])), cmp.Compare(w[1], o[1]), cmp.Compare(w[0], o[0]))
}

// Int64 gives the number where it fits.
func (w Wide) Int64() (int64, bool) {
	sign := uint64(int64(w[0]) >> 63)
	return int64(w[0]), w[1] == sign && w[2] == sign
}

// Decimal gives the number where it has 38 digits at most.
func (w Wide) Decimal() (decimal128.Num, bool) {
	n := decimal128.New(int64(w[1]), w[0])
	return n, w[2] == uint64(int64(w[1])>>63) && n.FitsInPrecision(38)
}

// Float64 gives the double that is nearest.
func (w Wide) Float64() float64 {
	if n, ok := w.Int64(); ok {
		return float64(n)
	}
	n := new(big.Int).SetUint64(w[2])
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(w[1]))
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(w[0]))
	if int64(w[2]) < 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), 192))
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return f
}

// CompareDoubles orders doubles as DuckDB does: NaN is the greatest, and equal to itself. Of the zeros the negative is lower.
func CompareDoubles(a, b float64) int {
	switch {
	case math.IsNaN(a) || math.IsNaN(b):
		return One(math.IsNaN(a)) - One(math.IsNaN(b))
	case a == b:
		return One(math.Signbit(b)) - One(math.Signbit(a))
	}
	return cmp.Compare(a, b)
}

// SameDouble makes one of doubles that count as the same: all NaNs, and both zeros.
func SameDouble(v float64) float64 {
	switch {
	case v == 0:
		return 0
	case math.IsNaN(v):
		return math.NaN()
	}
	return v
}

// One is 1 for true and 0 for false.
func One(b bool) int {
	if b {
		return 1
	}
	return 0
}
