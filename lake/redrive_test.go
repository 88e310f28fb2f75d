package lake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

// redriveBatch makes the batch of letters that are accepted now, as rows of a job.
func redriveBatch(def *feature.Stream, rows []row, job string) *feature.Batch {
	b := batchOf(def, rows, map[string]int64{})
	for i, rb := range b.Rows {
		n := rb.Schema().FieldIndices(feature.ColJobID)[0]
		jobs := array.NewStringBuilder(memory.DefaultAllocator)
		for range rb.NumRows() {
			jobs.Append(job)
		}
		columns := slices.Clone(rb.Columns())
		columns[n] = jobs.NewArray()
		b.Rows[i] = array.NewRecordBatch(rb.Schema(), columns, rb.NumRows())
	}
	b.Spans = nil
	return b
}

// redrive takes letters again and marks them, but for what a step before was cut off.
func redrive(t *testing.T, l *Lake, s *Stream, rows []row, job string) int {
	t.Helper()
	ctx := context.Background()
	last, err := s.LastRedrive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := redriveBatch(s.Definition(), rows, job)
	defer b.Release()
	_, written, err := s.Redrive(ctx, b, s.Head(), Redrive{JobID: job, By: "me", At: 5}, last.JobID)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseAll(written)
	var marks []Marked
	for _, w := range written {
		positions, err := Positions(w)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range positions {
			marks = append(marks, Marked{Position: p, RecordedAt: 1e12, Redriven: feature.Redriven{Outcome: feature.RedriveAccepted, Stream: s.Definition().Name, At: 5, By: "me", JobID: job}})
		}
	}
	d, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Mark(ctx, openDB(t), marks); err != nil {
		t.Fatal(err)
	}
	if err := s.EndRedrive(ctx, job); err != nil {
		t.Fatal(err)
	}
	return len(marks)
}

// Letters that are taken again, whenever and beside whomever, make the history that they had made had they never been refused.
// Offsets stay where they are, so a worker isn't fenced.
func TestRedrive(t *testing.T) {
	ctx := context.Background()
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", sd)
	for n := range uint64(4) {
		r := rand.New(rand.NewPCG(sd, n))
		l := openLakeIn(t, 2+int(n%2))
		def := testStream()
		worker := openStream(t, l, def)
		from := map[string]int64{}
		var all []row
		var letters []row // refused events, as they would be accepted
		next, job := int64(0), 0
		for range 8 {
			m := randomMix(r, "thing.v1", next, next+20, 1000+next)
			takeMixed(t, l, worker, "thing.v1", m, from)
			all = append(all, m.rows...)
			for _, o := range m.refused {
				letters = append(letters, randomRows(r, "thing.v1", o, 1, 12, 1000+o-r.Int64N(60))...)
			}
			next += 20
			if r.IntN(2) == 0 || len(letters) == 0 {
				continue
			}
			taken := letters[:1+r.IntN(len(letters))]
			letters = letters[len(taken):]
			all = append(all, taken...)
			job++
			other := worker
			if r.IntN(2) == 0 {
				other = openStream(t, l, def)
			}
			if got := redrive(t, l, other, taken, fmt.Sprintf("redrive-%d", job)); got != len(taken) {
				t.Fatalf("%d of %d letters were marked", got, len(taken))
			}
		}
		compare(t, read(t, l, def), want(all))
		reopened := openStream(t, l, def)
		if behind, err := reopened.behind(); err != nil || len(behind) > 0 {
			t.Fatalf("behind: %v, %v", behind, err)
		}
		taken := 0
		for _, d := range allLetters(t, l) {
			if d.Redriven != nil {
				taken++
			}
		}
		offsets, err := reopened.Offsets()
		if err != nil {
			t.Fatal(err)
		}
		counts := offsets.Counts()
		d, err := l.OpenDeadLetters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		became, err := d.Count(ctx, openDB(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range became.Redriven {
			m.Move(def.Name, &counts)
		}
		var waiting int64
		for _, w := range became.Waiting {
			waiting += w.Count
		}
		if counts.Read != counts.Accepted+counts.Refused+counts.Duplicate || counts.Accepted != int64(len(all)) || counts.Refused != int64(len(letters)) || waiting != counts.Refused {
			t.Errorf("%+v of %d rows, %d letters that wait and %d that were taken", counts, len(all), len(letters), taken)
		}
	}
}

// A redrive that ended between the commits to log and history is caught up by whoever opens the stream, or asks for the last one, and
// readings don't have its rows before.
func TestRedriveCutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s := openStream(t, l, def)
	idle := openStream(t, l, def)
	from := map[string]int64{}
	before := []row{{id: "k", v: "A", at: 10, topic: "p"}, {id: "k", v: "C", at: 30, topic: "p", offset: 2}}
	takeMixed(t, l, s, "p", mixed{rows: before, refused: []int64{1}, to: 3}, from)
	letter := row{id: "k", v: "B", at: 20, topic: "p", offset: 1}
	b := redriveBatch(def, []row{letter}, "redrive-1")
	defer b.Release()
	var r Result
	if _, err := s.appendLog(ctx, b, s.Head(), &r, &redriving{Redrive: Redrive{JobID: "redrive-1"}}); err != nil {
		t.Fatal(err)
	}
	if n := logRows(t, l, def); n != 2 {
		t.Errorf("a reading has %d rows", n)
	}
	compare(t, read(t, l, def), want(before))
	if _, err := l.OpenRewind(ctx, def, []feature.Position{{Topic: "p"}}, StreamOptions{}); err == nil {
		t.Error("rewound beside a redrive")
	}
	last, err := idle.LastRedrive(ctx)
	if err != nil || !last.Open() {
		t.Fatalf("%+v, %v", last, err)
	}
	compare(t, read(t, l, def), want(append(before, letter)))
	if n := logRows(t, l, def); n != 3 {
		t.Errorf("a reading has %d rows", n)
	}
	// The one that was slow finds its rows there, and changes nothing.
	if err := s.merger.commit(ctx, b.Rows, []feature.Span{redriveSpan("redrive-1")}, &r); err != nil {
		t.Fatal(err)
	}
	compare(t, read(t, l, def), want(append(before, letter)))
	var again []feature.Position
	err = idle.RedriveRows(ctx, "redrive-1", func(rows arrow.RecordBatch) error {
		positions, err := Positions(rows)
		again = append(again, positions...)
		return err
	})
	if err != nil || len(again) != 1 || again[0] != (feature.Position{Topic: "p", Offset: 1}) {
		t.Errorf("%v, %v", again, err)
	}
	held, err := idle.Holds(ctx, []feature.Position{{Topic: "p", Offset: 1}, {Topic: "p", Offset: 7}, {Topic: "q", Offset: 1}})
	if err != nil || len(held) != 1 || !held[again[0]] {
		t.Errorf("%v, %v", held, err)
	}
	// The worker goes on.
	after := row{id: "k", v: "D", at: 25, topic: "p", offset: 3}
	commit(t, s, []row{after}, from)
	compare(t, read(t, l, def), want(append(before, letter, after)))
}

// logRows counts the rows of the log that a reading has.
func logRows(t *testing.T, l *Lake, def *feature.Stream) (rows int64) {
	t.Helper()
	ctx := context.Background()
	reading, err := l.Read(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	db := openDB(t)
	if err := reading.LogView(ctx, db, "log_rows", []string{"id"}, false); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(ctx, "SELECT count(*) FROM log_rows", nil, &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// A redrive that stood still between log and history, while others ended it and took more, doesn't take the history back to itself when
// it goes on: a reading has all rows. What the others took may have changed the history, or only been noted in it.
func TestSlowRedrive(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, v := range []string{"B", "A"} {
		l := openLake(t)
		def := testStream()
		slow, quick := openStream(t, l, def), openStream(t, l, def)
		takeMixed(t, l, slow, "p", mixed{refused: []int64{0, 1}, to: 2}, map[string]int64{})
		letters := []row{{id: "k", v: "A", at: 10, topic: "p"}, {id: "k", v: v, at: 20, topic: "p", offset: 1}}
		if err := slow.Warm(ctx); err != nil {
			t.Fatal(err)
		}
		b := redriveBatch(def, letters[:1], "redrive-1")
		defer b.Release()
		var r Result
		if _, err := slow.appendLog(ctx, b, slow.Head(), &r, &redriving{Redrive: Redrive{JobID: "redrive-1"}}); err != nil {
			t.Fatal(err)
		}
		last, err := quick.LastRedrive(ctx)
		if err != nil || !last.Open() {
			t.Fatalf("%+v, %v", last, err)
		}
		if err := slow.history.reload(ctx); err != nil {
			t.Fatal(err)
		}
		if err := slow.merger.refresh(ctx); err != nil { // it knows what quick has made of its rows
			t.Fatal(err)
		}
		if err := quick.EndRedrive(ctx, "redrive-1"); err != nil {
			t.Fatal(err)
		}
		redrive(t, l, quick, letters[1:], "redrive-2")
		if err := slow.merger.commit(ctx, b.Rows, []feature.Span{redriveSpan("redrive-1")}, &r); err != nil {
			t.Fatal(err)
		}
		if n := logRows(t, l, def); n != 2 {
			t.Errorf("a reading has %d rows", n)
		}
		compare(t, read(t, l, def), want(letters))
	}
}

// Who ends a redrive of others that was cut off reads what its own commits before have added.
func TestRedriveOfOthers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	one, other := openStream(t, l, def), openStream(t, l, def)
	rows := []row{{id: "k", v: "A", at: 10, topic: "p"}, {id: "k", v: "C", at: 30, topic: "p", offset: 1}, {id: "k", v: "B", at: 20, topic: "p", offset: 2}}
	takeMixed(t, l, one, "p", mixed{rows: rows[:1], refused: []int64{1, 2}, to: 3}, map[string]int64{})
	redrive(t, l, one, rows[1:2], "redrive-1")
	last, err := other.LastRedrive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := redriveBatch(def, rows[2:], "redrive-2")
	defer b.Release()
	var r Result
	if _, err := other.appendLog(ctx, b, other.Head(), &r, &redriving{Redrive{JobID: "redrive-2"}, last.JobID}); err != nil {
		t.Fatal(err)
	}
	if _, err := one.LastRedrive(ctx); err != nil {
		t.Fatal(err)
	}
	compare(t, read(t, l, def), want(rows))
}

// An event that a redrive takes while it is on its way in a batch, as one of a file that was cut off before, is taken once.
func TestRedriveOfBatch(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	s, other := openStream(t, l, def), openStream(t, l, def)
	rows := []row{{id: "k", v: "A", at: 10, topic: "file:f"}, {id: "k", v: "B", at: 20, topic: "file:f", offset: 1}}
	b := batchOf(def, rows, map[string]int64{})
	defer b.Release()
	known := s.Head()
	redrive(t, l, other, rows[1:], "redrive-1")
	r, err := s.Commit(ctx, b, known)
	if err != nil || r.Rows != 1 || r.Dropped != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if c := b.Spans[0].Counts; c.Accepted != 1 || c.Duplicate != 1 {
		t.Errorf("%+v", c)
	}
	if n := logRows(t, l, def); n != 2 {
		t.Errorf("a reading has %d rows", n)
	}
	compare(t, read(t, l, def), want(rows))
}

// Of two redrives of the same letters one comes first: the other takes nothing, also where it takes another event in their place.
func TestTwoRedrives(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	def := testStream()
	one, two := openStream(t, l, def), openStream(t, l, def)
	takeMixed(t, l, one, "p", mixed{refused: []int64{0, 1}, to: 2}, map[string]int64{})
	letters := []row{{id: "k", v: "A", at: 10, topic: "p"}, {id: "k", v: "B", at: 20, topic: "p", offset: 1}}
	last, err := two.LastRedrive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	redrive(t, l, one, letters, "redrive-1")
	other := redriveBatch(def, []row{{id: "k", v: "X", at: 15, topic: "p"}}, "redrive-2")
	defer other.Release()
	if _, _, err := two.Redrive(ctx, other, two.Head(), Redrive{JobID: "redrive-2"}, last.JobID); !errors.Is(err, ErrRedriven) {
		t.Errorf("%v", err)
	}
	// Even one that doesn't look leaves out what came to stand there.
	if _, rows, err := two.Redrive(ctx, other, two.Head(), Redrive{JobID: "redrive-2"}, "redrive-1"); err != nil || rows[0].NumRows() != 0 {
		t.Errorf("%v, %v", rows, err)
	}
	compare(t, read(t, l, def), want(letters))
}

// Marks are kept once, the letters of others are left alone, and what was accepted stays so.
func TestMarks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := openLake(t)
	s := openStream(t, l, testStream())
	takeMixed(t, l, s, "p", mixed{refused: []int64{0, 1, 2}, to: 3}, map[string]int64{})
	d, err := l.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	db := openDB(t)
	mark := func(offset, recordedAt int64, job string, outcome feature.Outcome) int {
		t.Helper()
		n, err := d.Mark(ctx, db, []Marked{{
			Position: feature.Position{Topic: "p", Offset: offset}, RecordedAt: recordedAt, Reason: feature.MissingKey, Detail: "new",
			Redriven: feature.Redriven{Outcome: outcome, Stream: "thing", At: 9, By: "me", JobID: job},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		offset, at int64
		job        string
		outcome    feature.Outcome
		want       int
	}{
		{0, 1e12, "a", feature.RedriveRefused, 1},
		{0, 1e12, "a", feature.RedriveRefused, 0},
		{0, 1e12, "b", feature.RedriveDuplicate, 1},
		{0, 1e12, "c", feature.RedriveRefused, 0},
		{0, 1e12, "d", feature.RedriveAccepted, 1},
		{0, 1e12, "e", feature.RedriveDuplicate, 0},
		{0, 1e12, "d", feature.RedriveAccepted, 0},
		{1, 2e12, "a", feature.RedriveAccepted, 0}, // refused at another time
		{1, 1e12, "a", feature.RedriveRefused, 1},
		{7, 1e12, "a", feature.RedriveAccepted, 0}, // none
	} {
		if n := mark(c.offset, c.at, c.job, c.outcome); n != c.want {
			t.Errorf("%+v: %d", c, n)
		}
	}
	var got []string
	for _, l := range allLetters(t, l) {
		text := fmt.Sprintf("%d %s %q", l.Offset, l.Reason, l.Detail)
		if l.Redriven != nil {
			text += fmt.Sprintf(" %s %s", l.Redriven.Outcome, l.Redriven.JobID)
		}
		got = append(got, text)
	}
	if want := []string{`0 missing_key "new" accepted d`, `1 missing_key "new" refused a`, `2 bad_value ""`}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestPassed(t *testing.T) {
	t.Parallel()
	o := Offsets{Partitions: map[feature.Partition]Offset{{Topic: "p"}: {Next: 5}}, Files: []File{{SHA256: "a", Next: 3}}}
	at := func(topic string, offset int64) bool { return o.Passed(feature.Position{Topic: topic, Offset: offset}) }
	if !at("p", 4) || at("p", 5) || at("q", 0) || !at("file:a", 2) || at("file:a", 3) || at("file:b", 0) {
		t.Error("wrong of a table that has forgotten no file")
	}
	for i := range filesMax - 1 {
		o.Files = append(o.Files, File{SHA256: fmt.Sprint(i)})
	}
	if at("q", 0) || at("file:a", 3) || !at("file:b", 0) {
		t.Error("wrong of a table that may have forgotten files")
	}
}
