package lake

import (
	"cmp"
	"slices"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
)

// lateOf counts the rows that are older than one of an earlier offset of their topic, by topic.
func lateOf(rows []row) map[string]int64 {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.offset, b.offset) })
	late := map[string]int64{}
	for i, r := range rows {
		if slices.ContainsFunc(rows[:i], func(o row) bool { return o.topic == r.topic && o.at > r.at }) {
			late[r.topic]++
		}
	}
	return late
}

// tiesOf counts the rows of a key and an event time beyond the first.
func tiesOf(rows []row) int64 {
	type place struct {
		id string
		at int64
	}
	seen := map[place]bool{}
	var ties int64
	for _, r := range rows {
		if p := (place{r.id, r.at}); seen[p] {
			ties++
		} else {
			seen[p] = true
		}
	}
	return ties
}

// sameCounts holds what the tables count as late and as ties against the rows that were accepted.
func sameCounts(t *testing.T, l *Lake, def *feature.Stream, rows []row) {
	t.Helper()
	log, history := offsetsOf(t, l, LogName(def.Name)), offsetsOf(t, l, HistoryName(def.Name))
	var late int64
	for topic, n := range lateOf(rows) {
		late += n
		for name, o := range map[string]Offsets{"log": log, "history": history} {
			if at, _ := o.Of(feature.Partition{Topic: topic}); at.Late != n {
				t.Errorf("the %s counts %d late in %s, want %d", name, at.Late, topic, n)
			}
		}
	}
	if got := log.Counts(); got.Late != late || got.Ties != 0 {
		t.Errorf("the log counts %d late and %d ties, want %d and 0", got.Late, got.Ties, late)
	}
	if got, want := history.Counts().Ties, tiesOf(rows); got != want {
		t.Errorf("the history counts %d ties, want %d", got, want)
	}
}

// Late changes and ties are told of the partition that they come from, also when those before them came in batches of long ago.
func TestLateAndTies(t *testing.T) {
	l := openLake(t)
	def := testStream()
	from := map[string]int64{}
	var all []row
	for _, batch := range [][]row{
		{{id: "a", at: 10}, {id: "a", at: 10}, {id: "b", at: 10}},                        // one tie
		{{id: "a", at: 9}, {id: "a", at: 10}, {id: "c", at: 11}},                         // one late; a tie with what is there
		{{id: "a", at: 10, topic: "file:abc"}, {id: "d", at: 5, topic: "file:abc"}},      // a tie and one late of another partition
		{{id: "a", at: -3}, {id: "a", at: -3}, {id: "a", at: -4}, {id: "c", at: 12}},     // three late, one tie, all before 1970
		{{id: "c", at: 12, topic: "file:abc"}, {id: "c", at: 12}, {id: "c", at: 13}},     // two ties of two partitions
		{{id: "e", at: 13, topic: "other"}, {id: "e", at: 13, topic: "other", v: "new"}}, // one
	} {
		s := openStream(t, l, def) // a restart
		next := map[string]int64{}
		for i := range batch {
			r := &batch[i]
			r.topic = cmp.Or(r.topic, "thing.v1")
			r.offset = from[r.topic] + next[r.topic]
			next[r.topic]++
		}
		commit(t, s, batch, from)
		all = append(all, batch...)
		sameCounts(t, l, def, all)
	}
	check := func(what string) {
		t.Helper()
		o := offsetsOf(t, l, HistoryName(def.Name))
		for topic, want := range map[string][2]int64{"thing.v1": {4, 4}, "file:abc": {1, 2}, "other": {0, 1}} {
			if at, _ := o.Of(feature.Partition{Topic: topic}); at.Late != want[0] || at.Ties != want[1] {
				t.Errorf("%s: %d late and %d ties in %s, want %v", what, at.Late, at.Ties, topic, want)
			}
		}
	}
	check("taken")
	rebuildIt(t, l, def)
	sameCounts(t, l, def, all)
	rewindAll(t, openRewind(t, l, def, feature.Position{Topic: "thing.v1", Offset: 5}))
	left := slices.DeleteFunc(slices.Clone(all), func(r row) bool { return r.topic == "thing.v1" && r.offset >= 5 })
	sameCounts(t, l, def, left)
	s := openStream(t, l, def)
	from["thing.v1"] = 5
	rest := slices.DeleteFunc(slices.Clone(all), func(r row) bool { return r.topic != "thing.v1" || r.offset < 5 })
	commit(t, s, rest, from)
	sameCounts(t, l, def, all)
}

// Rows that a redrive brings tie as others do, and move no offset.
func TestTiesOfARedrive(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	rows := []row{{id: "a", at: 10, topic: "thing.v1"}, {id: "b", at: 11, topic: "thing.v1", offset: 2}}
	commit(t, s, rows, from)
	before := offsetsOf(t, l, HistoryName(def.Name))
	again := []row{{id: "b", at: 11, topic: "thing.v1", offset: 1, v: "other"}}
	redrive(t, l, s, again, feature.RedriveJobPrefix+"1")
	after := offsetsOf(t, l, HistoryName(def.Name))
	p := feature.Partition{Topic: "thing.v1"}
	if was, is := before.Partitions[p], after.Partitions[p]; was.Ties != 0 || is.Ties != 1 || is.Next != was.Next || is.Accepted != was.Accepted {
		t.Errorf("from %+v to %+v", was, is)
	}
	rebuildIt(t, l, def)
	if got := offsetsOf(t, l, HistoryName(def.Name)).Partitions[p].Ties; got != 1 {
		t.Errorf("%d ties after a rebuild, want 1", got)
	}
}

// A file that was forgotten takes its ties along.
func TestTiesOfForgottenFiles(t *testing.T) {
	o := Offsets{Partitions: map[feature.Partition]Offset{}, Files: []File{{SHA256: "a"}}}
	props := iceberg.Properties{}
	o.tie(tally{{Topic: "file:a"}: 2, {Topic: "file:gone"}: 3, {Topic: "nothing.v1"}: 4}, props)
	if got := o.Counts().Ties; got != 2 || len(props) != 1 {
		t.Errorf("%d ties, %v", got, props)
	}
}

// What files and redrives have brought changes with their rows, and with nothing else.
func TestBesides(t *testing.T) {
	file := func(sha string, accepted, refused int64) File {
		return File{SHA256: sha, Next: accepted + refused, Counts: feature.Counts{Read: accepted + refused, Accepted: accepted, Refused: refused}}
	}
	none := Offsets{Partitions: map[feature.Partition]Offset{{Topic: "p"}: {Next: 5}}, Files: []File{file("a", 0, 3)}}
	if got := none.Besides(); got != "" {
		t.Errorf("a log without rows of files has %q", got)
	}
	some := Offsets{Files: []File{file("b", 2, 1), file("c", 4, 0)}, Redrive: Redrive{JobID: "redrive-1"}}
	done := file("b", 2, 5)
	done.Done = true
	same := Offsets{Partitions: none.Partitions, Files: []File{file("c", 4, 0), file("a", 0, 3), done}, Redrive: Redrive{JobID: "redrive-1", Done: true}}
	if got := same.Besides(); got != some.Besides() || len(got) != 16 {
		t.Errorf("%q, and once it is done %q", some.Besides(), got)
	}
	for what, o := range map[string]Offsets{
		"a row more":         {Files: []File{file("b", 2, 1), file("c", 5, 0)}, Redrive: some.Redrive},
		"another file":       {Files: []File{file("b", 2, 1), file("c", 4, 0), file("d", 1, 0)}, Redrive: some.Redrive},
		"another redrive":    {Files: some.Files, Redrive: Redrive{JobID: "redrive-2"}},
		"none of a redrive":  {Files: some.Files},
		"none of the files":  {Redrive: some.Redrive},
		"nothing of the log": {},
	} {
		if o.Besides() == some.Besides() {
			t.Errorf("%s: it is the same", what)
		}
	}
}
