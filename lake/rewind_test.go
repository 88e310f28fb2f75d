package lake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

func openRewind(t *testing.T, l *Lake, def *feature.Stream, to ...feature.Position) *Rewind {
	t.Helper()
	r, err := l.OpenRewind(context.Background(), def, to, StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// rewindSteps are those of a whole rewind.
func rewindSteps(ctx context.Context, r *Rewind) []func() error {
	return []func() error{
		func() error { return r.takeLog(ctx) },
		func() error { return r.takeLetters(ctx) },
		func() error { _, err := r.History(ctx, RebuildOptions{}); return err },
		func() error { return r.End(ctx) },
	}
}

func rewindAll(t *testing.T, r *Rewind) {
	t.Helper()
	for i, step := range rewindSteps(context.Background(), r) {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// mixed are offsets of a topic of which some are accepted events, some refused and some duplicates.
type mixed struct {
	rows    []row
	refused []int64
	to      int64
}

// takeMixed commits dead letters and events as a line does.
func takeMixed(t *testing.T, l *Lake, s *Stream, topic string, m mixed, from map[string]int64) {
	t.Helper()
	ctx := context.Background()
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := from[topic]
	b := batchOf(s.Definition(), m.rows, from)
	defer b.Release()
	if len(b.Spans) == 0 {
		b.Spans = []feature.Span{{Partition: feature.Partition{Topic: topic}, From: start}}
	}
	n := &b.Spans[0]
	n.To = m.to
	n.Counts.Read, n.Counts.Refused = m.to-start, int64(len(m.refused))
	n.Counts.Duplicate = n.Counts.Read - n.Counts.Accepted - n.Counts.Refused
	from[topic] = m.to
	var all []feature.DeadLetter
	for _, offset := range m.refused {
		all = append(all, feature.DeadLetter{Position: feature.Position{Topic: topic, Offset: offset}, Stream: s.Definition().Name, Reason: feature.BadValue, RecordedAt: 1e12})
	}
	if err := letters.Commit(ctx, all, b.Spans, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, b, s.Head()); err != nil {
		t.Fatal(err)
	}
}

// randomMix makes the offsets from one to another of a topic.
func randomMix(r *rand.Rand, topic string, from, to, at int64) mixed {
	m := mixed{to: to}
	for offset := from; offset < to; offset++ {
		switch r.IntN(6) {
		case 0:
			m.refused = append(m.refused, offset)
		case 1: // a duplicate
		default:
			one := randomRows(r, topic, offset, 1, 12, at+offset)
			m.rows = append(m.rows, one...)
		}
	}
	return m
}

func lettersOf(t *testing.T, l *Lake) []string {
	t.Helper()
	ctx := context.Background()
	d, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var all []string
	if err := d.Each(ctx, db, "true", NewestFirst, 10_000, func(l feature.DeadLetter) error {
		all = append(all, l.Stream+" "+l.Position.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// A stream that was taken back anywhere and has taken other events since is what these and the ones before make of it, whatever
// was cut off between; counts hold against rows and letters.
func TestRewind(t *testing.T) {
	ctx := context.Background()
	sd := seedOf(t)
	for n := range uint64(3) {
		r := rand.New(rand.NewPCG(sd, n))
		l := openLake(t)
		def := testStream()
		s := openStream(t, l, def)
		from := map[string]int64{}
		topics := []string{"thing.v1", "file:abc", "other"}
		taken := map[string][]mixed{}
		for range 3 {
			for _, topic := range topics {
				m := randomMix(r, topic, from[topic], from[topic]+5+r.Int64N(10), 1000)
				taken[topic] = append(taken[topic], m)
				takeMixed(t, l, s, topic, m, from)
			}
		}
		// Two of the topics go back, one of them sometimes to its beginning.
		var to []feature.Position
		for _, topic := range topics[:2] {
			to = append(to, feature.Position{Topic: topic, Offset: r.Int64N(from[topic]) * min(r.Int64N(3), 1)})
		}
		var all []row
		var letters []string
		counts := map[string]feature.Counts{}
		for topic, batches := range taken {
			end := from[topic]
			for _, p := range to {
				if p.Topic == topic {
					end = p.Offset
				}
			}
			c := feature.Counts{Read: end}
			var left []row
			for _, m := range batches {
				for _, one := range m.rows {
					if one.offset < end {
						all, left = append(all, one), append(left, one)
						c.Accepted++
					}
				}
				for _, offset := range m.refused {
					if offset < end {
						letters = append(letters, fmt.Sprintf("thing %s/0@%d", topic, offset))
						c.Refused++
					}
				}
			}
			c.Duplicate, c.Late = end-c.Accepted-c.Refused, lateOf(left)[topic]
			counts[topic] = c
		}
		slices.Sort(letters)

		ended := false
		for cut := r.IntN(5); cut >= 0 && !ended; cut -= 1 + r.IntN(4) {
			rewind := openRewind(t, l, def, to...)
			steps := rewindSteps(ctx, rewind)
			for _, step := range steps[:min(cut, len(steps))] {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if ended = cut == len(steps); cut > 0 && !ended {
				if _, err := l.OpenStream(ctx, def, StreamOptions{}); !errors.Is(err, ErrRewinding) {
					t.Fatalf("the stream can be opened: %v", err)
				}
				if _, err := l.Rebuild(ctx, def, RebuildOptions{}); !errors.Is(err, ErrRewinding) {
					t.Fatalf("the history can be rebuilt: %v", err)
				}
			}
		}
		if !ended {
			rewindAll(t, openRewind(t, l, def, to...))
		}
		compare(t, read(t, l, def), want(all))
		same(t, "letters", lettersOf(t, l), letters...)
		for _, name := range []string{LogName(def.Name), HistoryName(def.Name)} {
			o := offsetsOf(t, l, name)
			for topic, c := range counts {
				p := feature.Partition{Topic: topic}
				at, known := o.Of(p)
				at.Ties = 0 // of which the sum is told below
				if at.Next != c.Read || at.Counts != c || known != (c.Read > 0) {
					t.Errorf("%s stands at %+v of %s, want %+v", name, at, topic, c)
				}
			}
		}
		same(t, "log", logOf(t, l, def), logLines(all)...)
		sameCounts(t, l, def, all)

		// Other events take their place, late ones among them.
		if b := batchOf(def, []row{{id: "a", topic: "other", offset: from["other"]}}, map[string]int64{"other": from["other"]}); true {
			if _, err := s.Commit(ctx, b, s.Head()); !errors.Is(err, ErrRewound) {
				t.Errorf("a worker that was open: %v, want %v", err, ErrRewound)
			}
			b.Release()
		}
		s = openStream(t, l, def)
		for _, p := range to {
			from[p.Topic] = p.Offset
		}
		for range 2 {
			for _, topic := range topics {
				m := randomMix(r, topic, from[topic], from[topic]+8, 990)
				all = append(all, m.rows...)
				takeMixed(t, l, s, topic, m, from)
			}
		}
		compare(t, read(t, l, def), want(all))
		same(t, "log", logOf(t, l, def), logLines(all)...)
		sameCounts(t, l, def, all)
		rebuildIt(t, l, def)
		compare(t, read(t, l, def), want(all))
		sameCounts(t, l, def, all)
	}
}

func looked(t *testing.T, r *Rewind) []Rewound {
	t.Helper()
	all, err := r.Look(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func logOf(t *testing.T, l *Lake, def *feature.Stream) []string {
	return sorted(rowsOf(t, l, LogName(def.Name), feature.ColTopic, feature.ColOffset, "id"))
}

func logLines(rows []row) []string {
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = fmt.Sprintf("%s %d %s", r.topic, r.offset, r.id)
	}
	return sorted(lines)
}

// What would go is told, and nothing is changed.
func TestRewindLooks(t *testing.T) {
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	takeMixed(t, l, s, "thing.v1", mixed{rows: []row{
		{id: "a", v: "A", at: 10, topic: "thing.v1"}, {id: "b", v: "A", at: 20, topic: "thing.v1", offset: 2},
		{id: "a", v: "B", at: 30, topic: "thing.v1", offset: 4}, {id: "a", v: "C", at: 40, topic: "thing.v1", offset: 5},
	}, refused: []int64{1, 3}, to: 8}, from)
	before := read(t, l, def)
	r := openRewind(t, l, def, feature.Position{Topic: "thing.v1", Offset: 2})
	got := looked(t, r)
	if want := (Rewound{Position: "thing.v1/0@2", From: 8, Accepted: 3, Refused: 1, Duplicate: 2, Entities: 2, to: 2}); len(got) != 1 || got[0] != want {
		t.Errorf("looked %+v, want %+v", got, want)
	}
	compare(t, read(t, l, def), before)
	commit(t, s, []row{{id: "a", v: "D", at: 50, topic: "thing.v1", offset: 8}}, from)

	for text, to := range map[string][]feature.Position{
		"stands at offset 9 of thing.v1/0: it can go back to before that, not on to 10": {{Topic: "thing.v1", Offset: 10}},
		"thing.v1/0@-1: offsets begin at 0":                                             {{Topic: "thing.v1", Offset: -1}},
		"has taken nothing of thing.v1/7":                                               {{Topic: "thing.v1", Partition: 7}},
		"has taken nothing of file:abc/0":                                               {{Topic: "file:abc"}},
		"thing.v1/0@1 and thing.v1/0@2 are of one partition: name one of them":          {{Topic: "thing.v1", Offset: 2}, {Topic: "thing.v1", Offset: 1}},
	} {
		if _, err := l.OpenRewind(context.Background(), def, to, StreamOptions{}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: error %v, want %q", to, err, text)
		}
	}
	if err := openRewind(t, l, def, feature.Position{Topic: "thing.v1", Offset: 2}).takeLog(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, err := l.OpenRewind(context.Background(), def, []feature.Position{{Topic: "thing.v1", Offset: 1}}, StreamOptions{})
	if err == nil || !strings.Contains(err.Error(), "another rewind of stream thing was cut off, or is at work: `loam rewind thing --to thing.v1/0@2 --yes` ends it") {
		t.Errorf("another rewind: %v", err)
	}
}

// A worker that has logged a batch when the stream is taken back writes nothing of it into the history.
func TestRewindBetweenLogAndHistory(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	from := map[string]int64{}
	all := []row{{id: "a", v: "A", at: 10, topic: "t"}}
	commit(t, s, all, from)
	b := batchOf(def, []row{{id: "a", v: "B", at: 20, topic: "t", offset: 1}}, from)
	defer b.Release()
	var res Result
	logged, err := s.commitLog(ctx, b, s.Head(), &res)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseAll(logged)
	rewindAll(t, openRewind(t, l, def, feature.Position{Topic: "t", Offset: 1}))
	if err := s.merger.commit(ctx, logged, b.Spans, &res); !errors.Is(err, ErrRewound) {
		t.Errorf("error %v, want %v", err, ErrRewound)
	}
	compare(t, read(t, l, def), want(all))
}

// A history that is further than its log is told, and derived from it.
func TestHistoryBeyondItsLog(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	all := []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "a", v: "B", at: 20, topic: "t", offset: 1}}
	commit(t, s, all, map[string]int64{})
	r := openRewind(t, l, def, feature.Position{Topic: "t", Offset: 1})
	for _, i := range []int{0, 1, 3} { // without the history
		if err := rewindSteps(ctx, r)[i](); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.OpenStream(ctx, def, StreamOptions{}); err == nil ||
		!strings.Contains(err.Error(), "the history of thing stands at offset 2 of partition 0 of t, and its log at 1: run `loam rebuild thing`") {
		t.Errorf("open: %v", err)
	}
	rebuildIt(t, l, def)
	compare(t, read(t, l, def), want(all[:1]))
	openStream(t, l, def)
}
