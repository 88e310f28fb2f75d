package pit

import (
	"math"
	"slices"
)

// forever is the time before which what is known stays known.
const forever = math.MaxInt64

// followers tells which changes of an entity follow each other by event time, and from when on and before when that was known. The
// changes stand in their order, and are known from their clocks' times on. Of those of one event time that are known the last
// counts. -1 stands for none: before the first change, and after the last.
//
// A change that comes parts the two that it comes between, or takes the place of one of its own event time, so that there are about
// two pairs a change. Between which it comes is found the other way round: all event times are linked, and the last to come is taken
// out first; the neighbours that it has then are those that it had when it came.
func followers(event, clock []int64, use func(first, second int32, from, to int64)) {
	n := len(event)
	moment := make([]int32, n) // of each change the number of its event time, from 1
	moments := int32(0)
	for i := range event {
		if i == 0 || event[i] != event[i-1] {
			moments++
		}
		moment[i] = moments
	}
	turns := make([]int32, n) // the changes as they came
	for i := range turns {
		turns[i] = int32(i)
	}
	if !slices.IsSorted(clock) {
		slices.SortStableFunc(turns, func(a, b int32) int {
			switch {
			case clock[a] < clock[b]:
				return -1
			case clock[a] > clock[b]:
				return 1
			}
			return 0
		})
	}
	l := linkMoments(moment, moments, turns)
	tell := func(second int32, to int64) {
		if first := l.before[second]; l.since[second] < to && (l.last[first] >= 0 || l.last[second] >= 0) {
			use(l.last[first], l.last[second], l.since[second], to)
		}
	}
	for _, change := range turns {
		m, at := moment[change], clock[change]
		next := l.after[m]
		switch {
		case l.last[m] < 0: // the first of its event time
			tell(next, at)
			l.after[l.before[m]], l.before[next] = m, m
		case l.last[m] > change:
			continue
		default:
			tell(m, at)
			tell(next, at)
		}
		l.last[m], l.since[m], l.since[next] = change, at, at
	}
	for m := int32(1); m <= moments+1; m++ {
		tell(m, forever)
	}
}

// linked are event times, numbered from 1, between two ends, each with those that are known before and after it.
type linked struct {
	before, after []int32
	last          []int32 // the change that counts of each; -1 while none is known, and at the ends
	since         []int64 // since when it is known what is before it
}

// linkMoments gives each event time the neighbours that it has when its first change comes.
func linkMoments(moment []int32, moments int32, turns []int32) *linked {
	l := &linked{last: make([]int32, moments+2), since: make([]int64, moments+2)}
	for m := range l.last {
		l.last[m] = -1
	}
	came := make([]int32, 0, moments) // event times, as their first changes came
	known := make([]bool, moments+2)
	for _, change := range turns {
		if m := moment[change]; !known[m] {
			known[m] = true
			came = append(came, m)
		}
	}
	l.before, l.after = neighbours(moments, came)
	return l
}

// neighbours gives what is numbered from 1 to n, each when it comes, what is next to it of all that came before it: 0 and n+1 where
// there is nothing.
func neighbours(n int32, came []int32) (before, after []int32) {
	before, after = make([]int32, n+2), make([]int32, n+2)
	for i := range before {
		before[i], after[i] = int32(i)-1, int32(i)+1
	}
	for _, i := range slices.Backward(came) {
		after[before[i]], before[after[i]] = after[i], before[i]
	}
	return before, after
}
