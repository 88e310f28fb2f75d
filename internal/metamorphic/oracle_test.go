package metamorphic

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// rank is the place of a delivery in the one order, as numbers that compare from left to right: event time, whether it
// has a sequence, the sequence, live, the hash of the topic, partition, offset.
func (d *delivery) rank() []int64 {
	sequenced, sequence, live := int64(0), int64(0), int64(1)
	if d.sequence != nil {
		sequenced, sequence = 1, *d.sequence
	}
	if strings.HasPrefix(d.Topic, "file:") || strings.HasPrefix(d.Topic, "redrive:") {
		live = 0
	}
	sum := sha256.Sum256([]byte(d.Topic))
	return []int64{d.at, sequenced, sequence, live, int64(binary.BigEndian.Uint32(sum[:4])), int64(d.Partition), d.Offset}
}

// oracle gives the history of one entity's accepted changes, a row a line, the slow and obvious way.
func oracle(accepted []*delivery) []string {
	sorted := slices.Clone(accepted)
	slices.SortFunc(sorted, func(a, b *delivery) int { return slices.Compare(a.rank(), b.rank()) })
	var times []int64
	for _, d := range sorted {
		times = append(times, d.at)
	}
	type version struct {
		from, to int64 // to is 0 while it is open
		state    map[string]any
		opener   *delivery
	}
	var versions []*version
	for _, at := range slices.Compact(times) {
		state, last := stateAt(sorted, at)
		var open *version
		if n := len(versions); n > 0 && versions[n-1].to == 0 {
			open = versions[n-1]
		}
		switch {
		case open != nil && state != nil && sameTracked(open.state, state):
			open.state = state // for the columns that are not tracked
			continue
		case open != nil:
			open.to = at
		}
		if state != nil {
			versions = append(versions, &version{from: at, state: state, opener: last})
		}
	}
	var rows []string
	for _, v := range versions {
		o := v.opener
		parts := []string{o.key.a, fmt.Sprint(o.key.b)}
		for _, c := range columns {
			parts = append(parts, plain(v.state[c.name], true))
		}
		to := "NULL"
		if v.to != 0 {
			to = fmt.Sprint(v.to)
		}
		parts = append(parts, fmt.Sprint(v.from), to, fmt.Sprint(v.to == 0), o.id, o.sequenceText(), o.Topic, fmt.Sprint(o.Partition), fmt.Sprint(o.Offset),
			fmt.Sprint(o.recordedAt()), fmt.Sprint(o.ingestedAt()))
		rows = append(rows, strings.Join(parts, separator))
	}
	return rows
}

// stateAt is what all changes up to an event time leave of the entity, nil where it doesn't exist, and the last of them.
func stateAt(sorted []*delivery, at int64) (state map[string]any, last *delivery) {
	for _, d := range sorted {
		if d.at > at {
			break
		}
		last = d
		if d.deleted {
			state = nil
			continue
		}
		next := map[string]any{}
		for _, c := range columns {
			switch {
			case d.present == nil || slices.Contains(d.present, c.name):
				next[c.name] = d.values[c.name]
			case state != nil:
				next[c.name] = state[c.name]
			}
		}
		state = next
	}
	return state, last
}

// sameTracked reports whether no tracked column differs.
func sameTracked(a, b map[string]any) bool {
	for _, c := range columns[:len(columns)-untracked] {
		if plain(a[c.name], true) != plain(b[c.name], true) {
			return false
		}
	}
	return true
}

// The oracle says what the rules say, on histories that are known by heart.
func TestOracle(t *testing.T) {
	two := int64(2)
	at := func(at, offset int64, s any) *delivery {
		return &delivery{change: &change{at: at, values: map[string]any{"s": s}}, Position: feature.Position{Topic: "t", Offset: offset}}
	}
	gone := func(at, offset int64) *delivery {
		return &delivery{change: &change{at: at, deleted: true}, Position: feature.Position{Topic: "t", Offset: offset}}
	}
	patch := func(at, offset int64, u int64) *delivery {
		return &delivery{change: &change{at: at, values: map[string]any{"u": u}, present: []string{"u"}}, Position: feature.Position{Topic: "t", Offset: offset}}
	}
	late := at(10, 0, "late")
	late.sequence = &two
	file := at(10, 9, "file")
	file.Topic = "file:abc"
	for name, c := range map[string]struct {
		accepted []*delivery
		want     []string // s, u, from, to
	}{
		"a change that changes nothing":        {[]*delivery{at(10, 0, "A"), at(20, 1, "A")}, []string{"A NULL 10 NULL"}},
		"a late change makes it one":           {[]*delivery{at(10, 0, "A"), at(20, 1, "A"), at(15, 2, "B")}, []string{"A NULL 10 15", "B NULL 15 20", "A NULL 20 NULL"}},
		"a delete and a gap":                   {[]*delivery{at(10, 0, "A"), gone(20, 1), at(30, 2, "A")}, []string{"A NULL 10 20", "A NULL 30 NULL"}},
		"a delete of nothing":                  {[]*delivery{gone(20, 1)}, nil},
		"a correction at one time":             {[]*delivery{at(10, 0, "A"), at(20, 1, "B"), at(20, 2, "A")}, []string{"A NULL 10 NULL"}},
		"the sequence outranks the offset":     {[]*delivery{at(10, 1, "A"), late}, []string{"late NULL 10 NULL"}},
		"a live event outranks a file":         {[]*delivery{at(10, 1, "A"), file}, []string{"A NULL 10 NULL"}},
		"a patch leaves the others":            {[]*delivery{at(10, 0, "A"), patch(20, 1, 7)}, []string{"A 7 10 NULL"}},
		"a patch after a gap begins with null": {[]*delivery{at(10, 0, "A"), gone(20, 1), patch(30, 2, 7)}, []string{"A NULL 10 20", "NULL 7 30 NULL"}},
	} {
		var got []string
		for _, row := range oracle(c.accepted) {
			p := strings.Split(row, separator)
			u, from := 2+len(columns)-untracked, 2+len(columns)
			got = append(got, strings.Join([]string{p[2], p[u], p[from], p[from+1]}, " "))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
