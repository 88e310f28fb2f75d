package quality

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// Every error is found in changes that have it, and in those alone: the ones that are right have none of any kind. Counts are
// those of an oracle that looks at every pair of changes, in one bucket of keys and in several.
func TestFound(t *testing.T) {
	each := func(f func(c *change)) func(*rand.Rand, []change) []change {
		return func(_ *rand.Rand, changes []change) []change {
			for i := range changes {
				f(&changes[i])
			}
			return changes
		}
	}
	for i, c := range []struct {
		name  string
		spoil func(r *rand.Rand, changes []change) []change
		found string // kinds, joined by spaces
		tells string // of the detail or the columns of the last of them
	}{
		{"healthy", each(func(*change) {}), "", ""},
		{"ties that agree", func(_ *rand.Rand, changes []change) []change {
			return append(changes, slices.Clone(changes[:40])...)
		}, "", ""},
		{"ties that a sequence settles", func(_ *rand.Rand, changes []change) []change {
			for i := range changes[:40] {
				twin := changes[i]
				twin.values[1], twin.sequence = "twin", 7
				changes = append(changes, twin)
			}
			return changes
		}, "", ""},
		{"ties that disagree", func(_ *rand.Rand, changes []change) []change {
			for i := range changes[:40] {
				twin := changes[i]
				twin.values[1] = "twin"
				changes = append(changes, twin)
			}
			return changes
		}, "disputed_ties", "b"},
		{"a tie with a delete", func(_ *rand.Rand, changes []change) []change {
			i := slices.IndexFunc(changes, func(c change) bool { return !c.deleted })
			twin := changes[i]
			twin.deleted = true
			return append(changes, twin)
		}, "disputed_ties", "op"},
		{"a noisy column", func(_ *rand.Rand, changes []change) []change {
			for i := range changes {
				for n := range int64(2) {
					if later := changes[i]; !later.deleted {
						later.at += minute * (n + 1)
						later.recorded, later.ingested = later.at+1, later.at+1
						later.values[3] = fmt.Sprint("noise", i, n)
						changes = append(changes, later)
					}
				}
			}
			return changes
		}, "noise", "column d"},
		{"a clock that jumps", func(r *rand.Rand, changes []change) []change {
			for i := range changes {
				if r.IntN(5) == 0 && !changes[i].deleted {
					changes[i].at -= 5 * day
				}
			}
			return changes
		}, "out_of_order late", ""},
		{"a second producer that lags", func(r *rand.Rand, changes []change) []change {
			for i := range changes {
				if r.IntN(5) == 0 {
					changes[i].partition = 9
					changes[i].recorded += 40 * day
					changes[i].ingested += 40 * day
				}
			}
			return changes
		}, "late", ""},
		{"a clock ahead", func(_ *rand.Rand, changes []change) []change {
			for i := range changes[:60] {
				changes[i].at = changes[i].recorded + 2*second
			}
			return changes
		}, "ahead", ""},
		{"a clock ahead by less than clocks differ", func(_ *rand.Rand, changes []change) []change {
			for i := range changes[:60] {
				changes[i].at = changes[i].recorded + second/2
			}
			return changes
		}, "", ""},
		{"local time west of Greenwich", each(func(c *change) { c.at -= 5*hour + 30*minute }), "shifted", "+5h30m"},
		{"local time east of Greenwich", each(func(c *change) { c.at += 2 * hour }), "ahead shifted", "-2h00m"},
		{"a batch every hour", func(r *rand.Rand, changes []change) []change {
			for i := range changes {
				changes[i].recorded = changes[i].at + r.Int64N(3*hour)
				changes[i].ingested = changes[i].recorded
			}
			return changes
		}, "", ""},
		{"whole seconds", each(func(c *change) { c.at -= c.at % second }), "truncated", "seconds"},
		{"whole minutes", each(func(c *change) { c.at -= c.at % minute }), "truncated", "minutes"},
		{"dates", each(func(c *change) { c.at -= c.at % day }), "disputed_ties truncated", "days"},
		{"files without processed time", func(_ *rand.Rand, changes []change) []change {
			for i := range changes[:len(changes)/5] {
				changes[i].assumed, changes[i].ingested = true, changes[i].at
			}
			return changes
		}, "ingested_assumed", ""},
		{"patches in a stream of full states", func(r *rand.Rand, changes []change) []change {
			for i := range changes {
				keep := r.IntN(len(columns))
				for n := range columns {
					if n != keep && n != (keep+1)%len(columns) {
						changes[i].values[n] = ""
					}
				}
			}
			return changes
		}, "sparse_nulls", ""},
		{"columns that end", func(_ *rand.Rand, changes []change) []change {
			for i := range changes {
				if changes[i].at > begin+5*day {
					changes[i].values[0], changes[i].values[1] = "", ""
				}
			}
			return changes
		}, "", ""},
		{"repeated states", func(_ *rand.Rand, changes []change) []change {
			for i := range changes {
				for n := range int64(2) {
					again := changes[i]
					again.at += minute * (n + 1)
					again.recorded, again.ingested = again.at+1, again.at+1
					changes = append(changes, again)
				}
			}
			return changes
		}, "no_ops", ""},
		{"deletes that are updates", func(r *rand.Rand, changes []change) []change {
			for i := range changes {
				if r.IntN(4) == 0 && !changes[i].deleted {
					gone := changes[i]
					gone.at, gone.recorded, gone.ingested = gone.at-minute, gone.recorded-minute, gone.ingested-minute
					gone.deleted = true
					changes = append(changes, gone)
				}
			}
			return changes
		}, "created_again", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := random(t)
			changes := placed(c.spoil(r, healthy(r)))
			def := testStream(feature.FullPayload)
			l := stored(t, def, changes, 0)
			want := expected(changes, false)
			report, err := Of(t.Context(), l, def, Options{Buckets: i % 2 * 3})
			if err != nil {
				t.Fatal(err)
			}
			hold(t, report, want, c.found, c.tells)
			if report.Changes != int64(len(changes)) || report.Keys != 150 {
				t.Errorf("%d changes of %d keys, want %d of 150", report.Changes, report.Keys, len(changes))
			}
		})
	}
}

// hold holds a report against the oracle's counts, the kinds that are to be found, and what it tells of the last of them.
func hold(t *testing.T, report *Report, want map[Kind]int64, found, tells string) {
	t.Helper()
	var kinds []string
	for _, m := range report.Measures {
		if m.Kind != Shifted && m.Kind != Truncated && m.Kind != Duplicates && m.Count != want[m.Kind] {
			t.Errorf("%s: %d, want %d", m.Kind, m.Count, want[m.Kind])
		}
		if m.Found {
			kinds = append(kinds, string(m.Kind))
		}
		if m.Found != (m.Remedy != "") || m.What == "" {
			t.Errorf("%s: found %v, remedy %q", m.Kind, m.Found, m.Remedy)
		}
		rows := m.Kind != Duplicates && m.Kind != NoOps && m.Kind != Shifted && m.Kind != Truncated && m.Kind != Assumed
		if rows && (len(m.Keys) == 0) != (m.Count == 0) {
			t.Errorf("%s: %d, and the keys %v", m.Kind, m.Count, m.Keys)
		}
	}
	if got := strings.Join(kinds, " "); got != found {
		t.Errorf("found %q, want %q", got, found)
	}
	if list := report.Found(); tells != "" && len(list) > 0 {
		last := list[len(list)-1]
		names := ""
		for _, c := range last.Columns {
			names += c.Name + " "
		}
		if !strings.Contains(last.Detail, tells) && (last.Kind == Noise || !strings.HasPrefix(names, tells+" ")) {
			t.Errorf("%s: detail %q, columns %s; want %q", last.Kind, last.Detail, names, tells)
		}
	}
}

// A stream of patches is not taken for one of full states that lacks columns, and its patches agree where both carry a column.
func TestPatches(t *testing.T) {
	r := random(t)
	def := testStream(feature.PatchPayload)
	changes := healthy(r)
	for i := range changes {
		keep := r.IntN(len(columns))
		changes[i].carries = []string{columns[keep]}
		for n := range columns {
			if n != keep {
				changes[i].values[n] = ""
			}
		}
		if i < 40 && !changes[i].deleted {
			other := changes[i]
			other.values = [4]string{}
			other.carries = []string{columns[(keep+1)%len(columns)]}
			changes = append(changes, other)
		}
	}
	right := placed(changes)
	report, err := Of(t.Context(), stored(t, def, right, 0), def, Options{Buckets: 2})
	if err != nil {
		t.Fatal(err)
	}
	hold(t, report, expected(right, true), found(report, Noise), "")
	for i := range changes[:40] {
		if other := changes[i]; !other.deleted {
			other.values[slices.Index(columns, other.carries[0])] = "another"
			changes = append(changes, other)
		}
	}
	wrong := placed(changes)
	report, err = Of(t.Context(), stored(t, def, wrong, 0), def, Options{Buckets: 2})
	if err != nil {
		t.Fatal(err)
	}
	hold(t, report, expected(wrong, true), strings.TrimSpace("disputed_ties "+found(report, Noise)), "")
}

// found is the kind if the report has found it: of patches that carry one column each, one may happen to make most versions.
func found(r *Report, k Kind) string {
	for _, m := range r.Found() {
		if m.Kind == k {
			return string(k)
		}
	}
	return ""
}

// Duplicates are counted by the table's offsets.
func TestDuplicates(t *testing.T) {
	def := testStream(feature.FullPayload)
	changes := placed(healthy(random(t)))
	for n, want := range map[int64]string{10: "", 400: "duplicates"} {
		report, err := Of(t.Context(), stored(t, def, changes, n), def, Options{})
		if err != nil {
			t.Fatal(err)
		}
		hold(t, report, expected(changes, false), want, "")
		if m := report.Measures[len(report.Measures)-2]; m.Kind != Duplicates || m.Count != n || m.Of != n+int64(len(changes)) {
			t.Errorf("%+v", m)
		}
	}
}

// A stream with one tracked column has no noise, and one without changes has nothing.
func TestNothingToFind(t *testing.T) {
	def := testStream(feature.FullPayload)
	def.Track = []string{"a"}
	report, err := Of(t.Context(), stored(t, def, placed(healthy(random(t))), 0), def, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Found()) > 0 {
		t.Errorf("found %+v", report.Found())
	}
	empty := stored(t, testStream(feature.FullPayload), nil, 0)
	if report, err = Of(t.Context(), empty, testStream(feature.FullPayload), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Measures {
		if m.Found || m.Count != 0 || m.Share != 0 {
			t.Errorf("%+v", m)
		}
	}
}
