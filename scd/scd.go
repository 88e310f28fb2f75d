package scd

import (
	"bytes"
	"math"
	"slices"

	"github.com/loamdata/loam/feature"
)

// Open is the To of a version that no change has ended.
const Open = math.MaxInt64

// Origin is what a version keeps of the change that opened it, besides its order.
type Origin struct {
	EventID    string
	Topic      string
	RecordedAt int64 // microseconds since 1970 UTC
	IngestedAt int64 // microseconds since 1970 UTC
}

// Change is one accepted change of one entity.
type Change struct {
	Order   feature.Order
	Delete  bool
	Row     Row    // nil in a delete
	Present []bool // of a patch: which columns of Row it carries, in the row's order; nil means all
	Origin  Origin
}

// Version is the state of an entity on [From, To) of event time, in microseconds since 1970 UTC.
type Version struct {
	From, To int64
	Row      Row
	Order    feature.Order // of the change that opened the version, the first of its run
	Origin   Origin        // of the same change
}

// Equal reports whether two versions are the same row of a history.
func (v Version) Equal(w Version) bool {
	return v.From == w.From && v.To == w.To && v.Order == w.Order && v.Origin == w.Origin && bytes.Equal(v.Row, w.Row)
}

// Patch says how the stored versions of a key become the right ones: rows retired and rows added, in order of From.
type Patch struct {
	Retire []Version
	Add    []Version
}

// Empty reports whether nothing changes.
func (p Patch) Empty() bool { return len(p.Retire) == 0 && len(p.Add) == 0 }

// Stats count what the changes were.
type Stats struct {
	Changes int
	NoOps   int // changes that left every tracked column as it was, or deleted what did not exist
	Ties    int // changes whose place only the position settled
}

// Add adds the counts of o.
func (s *Stats) Add(o Stats) {
	s.Changes += o.Changes
	s.NoOps += o.NoOps
	s.Ties += o.Ties
}

// Sort puts changes in their order.
func Sort(changes []Change) {
	slices.SortFunc(changes, func(a, b Change) int { return a.Order.Compare(b.Order) })
}

// Fold gives the versions that changes make, in order. With open, an open version, it continues that: every change must
// then be later in event time than all that open was made of, and the first version returned is open itself, as it has
// become. The changes must be sorted and of one key.
func Fold(open *Version, changes []Change) ([]Version, Stats) {
	stats := Stats{Changes: len(changes)}
	var versions []Version
	var current Version
	exists := open != nil
	if exists {
		current = *open
	}
	for len(changes) > 0 {
		at := changes[0].Order.EventTime
		n := 1
		for n < len(changes) && changes[n].Order.EventTime == at {
			if changes[n-1].Order.SettledByPosition(changes[n].Order) {
				stats.Ties++
			}
			n++
		}
		var before Row
		if exists {
			before = current.Row
		}
		row := settle(before, changes[:n])
		last := changes[n-1]
		changes = changes[n:]
		switch {
		case row == nil && !exists:
			stats.NoOps++
		case row == nil:
			current.To = at
			versions = append(versions, current)
			exists = false
		case exists && current.Row.TrackedEqual(row):
			stats.NoOps++
			current.Row = row
		default:
			if exists {
				current.To = at
				versions = append(versions, current)
			}
			current = Version{From: at, To: Open, Row: row, Order: last.Order, Origin: last.Origin}
			exists = true
		}
	}
	if exists {
		versions = append(versions, current)
	}
	return versions, stats
}

// settle gives the state after the changes of one event time, or nil where the entity does not exist then.
func settle(before Row, changes []Change) Row {
	row := before
	for _, c := range changes {
		switch {
		case c.Delete:
			row = nil
		case c.Present != nil:
			row = overlay(row, c.Row, c.Present)
		default:
			row = c.Row
		}
	}
	return row
}

// Fast reports whether the sorted changes of a key may go through [Advance]: all are later in event time than newest,
// the event time of the newest change that the key has seen, no-ops and deletes included.
func Fast(newest int64, changes []Change) bool {
	return len(changes) == 0 || changes[0].Order.EventTime > newest
}

// Advance says what sorted changes do to a key whose open version is given, nil where it has none, when [Fast] allows
// it. The second result is the open version afterwards, nil for none.
func Advance(open *Version, changes []Change) (Patch, *Version, Stats) {
	versions, stats := Fold(open, changes)
	var stored []Version
	if open != nil {
		stored = []Version{*open}
	}
	return diff(stored, versions), last(versions), stats
}

// Recompute says how the stored versions of a key become those that all of its changes make, in whatever order they
// arrived. It sorts changes. The second result is the open version afterwards, nil for none.
func Recompute(stored []Version, changes []Change) (Patch, *Version, Stats) {
	Sort(changes)
	versions, stats := Fold(nil, changes)
	return diff(stored, versions), last(versions), stats
}

// Around gives the interval of a key's history that changes with event times in [first, last] may alter: from where the
// version or gap that covers first begins to where the one that covers last ends. before is the index of the stored version
// that ends where the interval begins, and after of the one that begins where it ends; -1 where there is none. Only From
// and To of the stored versions, which must be in order, are looked at.
func Around(stored []Version, first, last int64) (from, to int64, before, after int) {
	at := func(t int64) int { // of the last version that begins at t or earlier
		n, _ := slices.BinarySearchFunc(stored, t, func(v Version, t int64) int {
			if v.From <= t {
				return -1
			}
			return 1
		})
		return n - 1
	}
	from, to, before, after = math.MinInt64, Open, -1, -1
	i := at(first)
	switch {
	case i >= 0 && first < stored[i].To:
		from = stored[i].From
		if i > 0 && stored[i-1].To == from {
			before = i - 1
		}
	case i >= 0:
		from, before = stored[i].To, i
	}
	j := at(last)
	if j >= 0 && last < stored[j].To {
		to = stored[j].To
		if j+1 < len(stored) && stored[j+1].From == to {
			after = j + 1
		}
	} else if j+1 < len(stored) {
		to, after = stored[j+1].From, j+1
	}
	return from, to, before, after
}

// Splice says how the stored versions of a key on [from, to) of event time become those that changes make, the sorted
// changes of the key with an event time in it. The interval must begin where a version or a gap begins and end where one
// ends. before is the version that ends at from, after the one that begins at to; either is nil where there is none. late
// tells which of the changes the stored versions don't know of.
//
// The stored versions between the two needn't be given: they are what the changes but for the late ones make. Patches are
// refused, since what one leaves unchanged may come from before the interval, and what it changes last beyond it.
func Splice(before *Version, changes []Change, late func(Change) bool, to int64, after *Version) Spliced {
	if slices.ContainsFunc(changes, func(c Change) bool { return c.Present != nil }) {
		panic("patches can't be spliced")
	}
	known := slices.DeleteFunc(slices.Clone(changes), late)
	stored, statsBefore := fold(before, known, to, after)
	wanted, stats := fold(before, changes, to, after)
	stats.Changes -= statsBefore.Changes
	stats.NoOps -= statsBefore.NoOps
	stats.Ties -= statsBefore.Ties
	now := to == Open || after != nil && after.To == Open
	return Spliced{Patch: diff(stored, wanted), Now: now, Open: last(wanted), Stats: stats}
}

// Spliced is what [Splice] found.
type Spliced struct {
	Patch Patch
	Now   bool     // whether the interval, or the version after it, goes on to this day
	Open  *Version // if so, the open version afterwards, nil for none
	Stats Stats    // of the late changes
}

// fold gives the versions from before to after, both included, with the changes between them.
func fold(before *Version, changes []Change, to int64, after *Version) ([]Version, Stats) {
	if before != nil {
		b := *before
		b.To = Open
		before = &b
	}
	versions, stats := Fold(before, changes)
	if n := len(versions); n > 0 && versions[n-1].To == Open {
		end := &versions[n-1]
		end.To = to
		if after != nil && end.Row.TrackedEqual(after.Row) {
			// The change that opened after is a no-op: one run.
			end.To, end.Row = after.To, after.Row
			stats.NoOps++
			return versions, stats
		}
	}
	if after != nil {
		versions = append(versions, *after)
	}
	return versions, stats
}

func last(versions []Version) *Version {
	if n := len(versions); n > 0 && versions[n-1].To == Open {
		v := versions[n-1]
		return &v
	}
	return nil
}

// diff gives the patch from one list of versions to another, both in order of From.
func diff(stored, wanted []Version) Patch {
	var p Patch
	for len(stored) > 0 || len(wanted) > 0 {
		switch {
		case len(wanted) == 0 || (len(stored) > 0 && stored[0].From < wanted[0].From):
			p.Retire = append(p.Retire, stored[0])
			stored = stored[1:]
		case len(stored) == 0 || wanted[0].From < stored[0].From:
			p.Add = append(p.Add, wanted[0])
			wanted = wanted[1:]
		default:
			if !stored[0].Equal(wanted[0]) {
				p.Retire = append(p.Retire, stored[0])
				p.Add = append(p.Add, wanted[0])
			}
			stored, wanted = stored[1:], wanted[1:]
		}
	}
	return p
}
