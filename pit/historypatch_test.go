package pit

import (
	"slices"
	"testing"
)

// A patch that comes in its order makes one state; one that is late those, too, that it makes another: up to the next that carries
// the same column, or deletes. Patches that a label sees first together make each state once.
func TestFold(t *testing.T) {
	const v, w = 1, 2
	for _, c := range []struct {
		what   string
		clocks []int64 // of patches of the event times 1, 2, …
		carry  []int   // what they carry; 0 is a delete
		labels []int64
		want   []int64 // event times of the states, as they are told
	}{
		{"in order", []int64{1, 2, 3, 4}, []int{v, w, v, v}, []int64{1, 2, 3, 4}, []int64{1, 2, 3, 4}},
		{"the second is late", []int64{1, 5, 3, 4, 6}, []int{v, w, v, w, v}, []int64{1, 3, 4, 5, 6}, []int64{1, 3, 4, 2, 3, 5}},
		{"it carries two", []int64{1, 5, 3, 4, 6}, []int{v, v + w, v, w, v}, []int64{1, 3, 4, 5, 6}, []int64{1, 3, 4, 2, 3, 5}},
		{"a delete follows", []int64{1, 6, 3, 4, 5}, []int{v, w, 0, v, v}, []int64{1, 3, 4, 5, 6}, []int64{1, 3, 4, 5, 2}},
		{"one label sees all", []int64{1, 6, 3, 4, 5}, []int{v, w, v, v, v}, []int64{9}, []int64{1, 2, 3, 4, 5}},
		{"none sees the last", []int64{1, 6, 3}, []int{v, w, v}, []int64{5}, []int64{1, 3}},
	} {
		s := &slots{starts: []int32{0, int32(len(c.labels))}, bounds: c.labels}
		f := newFold(s, 2)
		f.begin(0)
		for i, clock := range c.clocks {
			f.add(int64(i+1), clock, int64(i), c.carry[i] == 0, c.carry[i]&v > 0, c.carry[i]&w > 0)
		}
		f.derive()
		batch := f.states.NewRecordBatch()
		if got := int64s(batch.Column(1)); !slices.Equal(got, c.want) {
			t.Errorf("%s: states of %v, want %v", c.what, got, c.want)
		}
		batch.Release()
		f.states.Release()
	}
}
