package simulate

import (
	"math"
	"math/bits"
	"math/rand/v2"
)

// A concern names what a stream of random numbers decides. Each has streams of its own, so that asking one for more
// numbers never moves another. The values are frozen: changing one changes every simulated event.
type concern uint64

const (
	forLife       concern = 1 // of one contact
	forPerson     concern = 2 // name, phone and the like of one contact
	forEventID    concern = 3
	forDelay      concern = 4
	forDuplicates concern = 5
	forMalformed  concern = 6
	forLabels     concern = 7
)

// source is a stream of random numbers: the PCG of math/rand/v2, whose sequence its documentation fixes. What is derived
// from it stands here and not in [rand.Rand], whose methods may change from one Go version to the next.
type source struct{ pcg rand.PCG }

// newSource is the stream of a concern; index tells the streams of one concern apart.
func newSource(seed uint64, of concern, index uint64) source {
	var s source
	s.pcg.Seed(mix(seed, of, index), mix(seed, of, ^index))
	return s
}

// mix scatters its arguments over 64 bits: the finalizer of SplitMix64 (Steele, Lea, Flood 2014) over their sum.
func mix(seed uint64, of concern, index uint64) uint64 {
	z := seed ^ bits.RotateLeft64(uint64(of)*0x9e3779b97f4a7c15, 17)
	for range 2 {
		z += index*0xd1342543de82ef95 + 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
	}
	return z
}

// unit is uniform in [0, 1) with 53 bits. Floats are multiplied, divided and compared but never multiplied and added in
// one expression here or by the users of this type: some processors would round such an expression once instead of
// twice, and give other events.
func (s *source) unit() float64 { return float64(s.pcg.Uint64()>>11) * 0x1p-53 }

// chance is true in a share p of the calls.
func (s *source) chance(p float64) bool { return s.unit() < p }

// below is uniform in [0, n); its bias is below n/2^64.
func (s *source) below(n int) int {
	high, _ := bits.Mul64(s.pcg.Uint64(), uint64(n))
	return int(high)
}

// between is uniform in [low, high].
func (s *source) between(low, high int64) int64 {
	offset, _ := bits.Mul64(s.pcg.Uint64(), uint64(high-low+1))
	return low + int64(offset)
}

// exponential is exponentially distributed with mean 1, in steps of a 4,096th of the distribution.
func (s *source) exponential() float64 { return exponentials[s.pcg.Uint64()>>52] }

// exponentials are the quantiles of the exponential distribution, rounded far above the last bit of [math.Log] so that
// they are the same whatever way a processor computes it.
var exponentials = func() (q [4096]float64) {
	for i := range q {
		q[i] = math.Round(-math.Log((float64(i)+0.5)/float64(len(q)))*0x1p24) * 0x1p-24
	}
	return q
}()
