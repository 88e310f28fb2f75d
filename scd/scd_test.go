package scd

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of the random histories; 0 takes one from the clock")
	count = flag.Int("histories", 2000, "number of random histories")
)

// store is a history as the lake keeps it, for one key: it takes changes in batches through the two paths.
type store struct {
	log      []Change
	versions []Version
	newest   int64
	open     *Version
	fast     int
	late     int
	spliced  int
}

func (s *store) apply(batch []Change) {
	batch = slices.Clone(batch)
	Sort(batch)
	if len(s.log) == 0 {
		s.newest = -1 << 62
	}
	s.log = append(s.log, batch...)
	var patch Patch
	if Fast(s.newest, batch) {
		s.fast++
		patch, s.open, _ = Advance(s.open, batch)
	} else if s.late++; s.late%2 == 0 || slices.ContainsFunc(s.log, func(c Change) bool { return c.Present != nil }) {
		patch, s.open, _ = Recompute(s.versions, slices.Clone(s.log))
	} else {
		patch = s.splice(batch)
	}
	for _, r := range patch.Retire {
		i := slices.IndexFunc(s.versions, r.Equal)
		if i < 0 {
			panic(fmt.Sprintf("the patch retires a version that is not stored: %+v", r))
		}
		s.versions = slices.Delete(s.versions, i, i+1)
	}
	s.versions = append(s.versions, patch.Add...)
	sort.Slice(s.versions, func(i, j int) bool { return s.versions[i].From < s.versions[j].From })
	for _, c := range batch {
		s.newest = max(s.newest, c.Order.EventTime)
	}
}

// splice derives anew what stands around the changes of a batch alone.
func (s *store) splice(batch []Change) Patch {
	s.spliced++
	from, to, before, after := Around(s.versions, batch[0].Order.EventTime, batch[len(batch)-1].Order.EventTime)
	version := func(i int) *Version {
		if i < 0 {
			return nil
		}
		return &s.versions[i]
	}
	var changes []Change
	for _, c := range s.log {
		if c.Order.EventTime >= from && c.Order.EventTime < to {
			changes = append(changes, c)
		}
	}
	Sort(changes)
	late := func(c Change) bool {
		return slices.ContainsFunc(batch, func(b Change) bool { return b.Order == c.Order })
	}
	if before == after && before >= 0 {
		panic("an interval between a version and itself")
	}
	r := Splice(version(before), changes, late, to, version(after))
	if r.Now {
		s.open = r.Open
	}
	return r.Patch
}

// state is what the oracle knows of an entity: tracked and other column, nil where null.
type state struct{ tracked, other *string }

// oracle gives the history the slow and obvious way: it asks, at every event time, what all changes up to then leave.
func oracle(changes []Change) []Version {
	rank := func(c Change) []int64 {
		o := c.Order
		seq, has, live := o.Sequence, int64(0), int64(0)
		if o.HasSequence {
			has = 1
		} else {
			seq = 0
		}
		if o.Live {
			live = 1
		}
		return []int64{o.EventTime, has, seq, live, int64(o.TopicHash), int64(o.Partition), o.Offset}
	}
	sorted := slices.Clone(changes)
	slices.SortFunc(sorted, func(a, b Change) int { return slices.Compare(rank(a), rank(b)) })
	var times []int64
	for _, c := range sorted {
		times = append(times, c.Order.EventTime)
	}
	times = slices.Compact(times)
	var versions []Version
	for _, at := range times {
		var now *state
		var opener Change
		for _, c := range sorted {
			if c.Order.EventTime > at {
				break
			}
			opener = c
			if c.Delete {
				now = nil
				continue
			}
			var values []*string
			for _, v := range c.Row.Values {
				if v == nil {
					values = append(values, nil)
				} else {
					text := string(v)
					values = append(values, &text)
				}
			}
			next := state{}
			if c.Present != nil && now != nil {
				next = *now
			}
			if c.Present == nil || c.Present[0] {
				next.tracked = values[0]
			}
			if c.Present == nil || c.Present[1] {
				next.other = values[1]
			}
			now = &next
		}
		open := len(versions) > 0 && versions[len(versions)-1].To == Open
		if now == nil {
			if open {
				versions[len(versions)-1].To = at
			}
			continue
		}
		text := func(s *string) []byte {
			if s == nil {
				return AppendNull(nil)
			}
			return AppendValue(nil, []byte(*s))
		}
		_, row := AppendRow(nil, text(now.tracked), text(now.other))
		if open && string(versions[len(versions)-1].Row[:2]) == string(row[:2]) && versions[len(versions)-1].Row.TrackedEqual(row) {
			versions[len(versions)-1].Row = row
			continue
		}
		if open {
			versions[len(versions)-1].To = at
		}
		versions = append(versions, Version{From: at, To: Open, Row: row, Order: opener.Order, Origin: opener.Origin})
	}
	return versions
}

func randomChanges(r *rand.Rand) []Change {
	n := 1 + r.IntN(12)
	span := 1 + r.IntN(20) // small spans make ties
	patches := r.IntN(3) == 0
	changes := make([]Change, n)
	letter := func() string {
		if r.IntN(6) == 0 {
			return ""
		}
		return string(rune('A' + r.IntN(3)))
	}
	for i := range changes {
		c := Change{Order: feature.Order{
			EventTime: int64(r.IntN(span)), Live: r.IntN(3) > 0, TopicHash: uint32(r.IntN(2)), Partition: int32(r.IntN(2)), Offset: int64(i),
		}}
		if r.IntN(2) == 0 {
			c.Order.HasSequence, c.Order.Sequence = true, int64(r.IntN(3))
		}
		c.Origin = Origin{EventID: fmt.Sprint(i), Topic: "t", RecordedAt: int64(i)}
		if r.IntN(5) == 0 {
			c.Delete = true
		} else {
			c.Row = letterRow(letter(), letter())
			if patches && r.IntN(2) == 0 {
				c.Present = []bool{r.IntN(2) == 0, r.IntN(2) == 0}
			}
		}
		changes[i] = c
	}
	return changes
}

// TestAnyArrivalGivesTheOraclesHistory is the property everything else rests on: whatever the batches and the order in
// which changes arrive, the history is the oracle's.
func TestAnyArrivalGivesTheOraclesHistory(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	r := rand.New(rand.NewPCG(s, 1))
	var fast, late, spliced int
	for h := range *count {
		changes := randomChanges(r)
		want := oracle(changes)
		for range 4 {
			arrival := slices.Clone(changes)
			if r.IntN(2) == 0 {
				r.Shuffle(len(arrival), func(i, j int) { arrival[i], arrival[j] = arrival[j], arrival[i] })
			} else { // mostly in order, so that the fast path has its share
				slices.SortStableFunc(arrival, func(a, b Change) int { return cmp.Compare(a.Order.EventTime, b.Order.EventTime) })
			}
			st := &store{}
			for len(arrival) > 0 {
				n := 1 + r.IntN(len(arrival))
				st.apply(arrival[:n])
				arrival = arrival[n:]
			}
			fast, late, spliced = fast+st.fast, late+st.late, spliced+st.spliced
			if !slices.EqualFunc(st.versions, want, Version.Equal) {
				t.Fatalf("seed %d, history %d:\n got %+v\nwant %+v\nchanges %+v", s, h, st.versions, want, changes)
			}
			if wantOpen := last(want); (st.open == nil) != (wantOpen == nil) || (wantOpen != nil && !st.open.Equal(*wantOpen)) {
				t.Fatalf("seed %d, history %d: open version %+v, want %+v", s, h, st.open, wantOpen)
			}
		}
	}
	if fast == 0 || late == 0 || spliced == 0 {
		t.Errorf("%d batches went the fast way and %d the late way, %d of them spliced; want some of each", fast, late, spliced)
	}
}

// vector is one case of ../../shared/vectors/scd2.json.
type vector struct {
	Name      string   `json:"name"`
	Key       []string `json:"key"`
	Track     []string `json:"track_columns"`
	Untracked string   `json:"untracked"`
	Changes   []struct {
		Seq     int64                      `json:"seq"`
		Op      string                     `json:"op"`
		Key     json.RawMessage            `json:"key"`
		Values  map[string]json.RawMessage `json:"values"`
		EventTS time.Time                  `json:"event_ts"`
		Partial bool                       `json:"partial"`
	} `json:"changes"`
	Rows []struct {
		Key    json.RawMessage            `json:"key"`
		Values map[string]json.RawMessage `json:"values"`
		From   time.Time                  `json:"valid_from"`
		To     *time.Time                 `json:"valid_to"`
	} `json:"expected_rows"`
}

const vectorFile = "../../shared/vectors/scd2.json"

// TestVectors holds the cases of other tools' documentation and tests.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile(vectorFile)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s is absent", vectorFile)
	} else if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) { v.run(t) })
	}
}

func (v vector) run(t *testing.T) {
	names := map[string]bool{}
	for _, c := range v.Changes {
		for name := range c.Values {
			names[name] = true
		}
	}
	var tracked, rest []string
	for name := range names {
		if v.Track == nil || slices.Contains(v.Track, name) {
			tracked = append(tracked, name)
		} else {
			rest = append(rest, name)
		}
	}
	sort.Strings(tracked)
	sort.Strings(rest)
	part := func(values map[string]json.RawMessage, names []string) (b []byte) {
		for _, name := range names {
			if raw, ok := values[name]; ok && string(raw) != "null" {
				b = AppendValue(b, raw)
			} else {
				b = AppendNull(b)
			}
		}
		return b
	}
	row := func(values map[string]json.RawMessage) Row {
		_, r := AppendRow(nil, part(values, tracked), part(values, rest))
		return r
	}
	stores := map[string]*store{}
	for i, c := range v.Changes {
		if c.Op == "truncate" {
			t.Skip("truncate is refused by streams")
		}
		change := Change{
			Order:  feature.Order{EventTime: c.EventTS.UnixMicro(), HasSequence: true, Sequence: c.Seq, Live: true, Offset: int64(i)},
			Delete: c.Op == "delete",
		}
		if !change.Delete {
			change.Row = row(c.Values)
			if c.Partial {
				for _, name := range slices.Concat(tracked, rest) {
					_, present := c.Values[name]
					change.Present = append(change.Present, present)
				}
			}
		}
		s := stores[string(c.Key)]
		if s == nil {
			s = &store{}
			stores[string(c.Key)] = s
		}
		s.apply([]Change{change})
	}
	want := map[string][]Version{}
	for _, r := range v.Rows {
		to := int64(Open)
		if r.To != nil {
			to = r.To.UnixMicro()
		}
		want[string(r.Key)] = append(want[string(r.Key)], Version{From: r.From.UnixMicro(), To: to, Row: row(r.Values)})
	}
	for key, s := range stores {
		sort.Slice(want[key], func(i, j int) bool { return want[key][i].From < want[key][j].From })
		same := func(a, b Version) bool {
			if v.Untracked == "ignored" {
				return a.From == b.From && a.To == b.To && a.Row.TrackedEqual(b.Row)
			}
			return a.From == b.From && a.To == b.To && string(a.Row) == string(b.Row)
		}
		if !slices.EqualFunc(s.versions, want[key], same) {
			t.Errorf("key %s:\n got %+v\nwant %+v", key, s.versions, want[key])
		}
	}
	for key := range want {
		if stores[key] == nil {
			t.Errorf("key %s has no history", key)
		}
	}
}
