package verify

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// randomChanges are changes of few keys with few values and times, so that ties, no-ops, late changes and deletes abound.
func randomChanges(r *rand.Rand, n int, patches bool) []change {
	pick := func(values ...any) any { return values[r.IntN(len(values))] }
	changes := make([]change, n)
	next := map[string]int64{}
	for i := range changes {
		c := change{
			a: string(rune('a' + r.IntN(3))), b: int64(r.IntN(4)), at: int64(1000 + i/2 - r.IntN(40)*r.IntN(2)),
			topic:   pick("thing.v1", "file:abc", "other.v1", "redrive:7").(string),
			deleted: r.IntN(7) == 0,
		}
		if r.IntN(2) == 0 {
			c.sequence = r.IntN(3)
		}
		c.offset = next[c.topic]
		next[c.topic]++
		if !c.deleted {
			c.values = map[string]any{
				"s": pick(nil, "A", "B"), "x": pick(nil, 1.5, math.NaN(), 0.0, math.Copysign(0, -1)), "m": pick(nil, "1.5", "-2.0001"),
				"l": pick(nil, []any{}, []any{1.5, nil, math.NaN()}), "yes": pick(nil, true), "u": pick(nil, 1, 2), "j": pick(nil, `{"a":1}`),
			}
			if r.IntN(3) > 0 { // otherwise hardly two states are equal
				c.values = map[string]any{"s": pick("A", "B"), "u": pick(1, 2, 3)}
			}
			if patches && r.IntN(4) > 0 {
				c.present = []string{}
				for _, name := range []string{"s", "x", "m", "l", "day", "yes", "u", "j"} {
					if r.IntN(3) == 0 {
						c.present = append(c.present, name)
					} else {
						delete(c.values, name)
					}
				}
			}
		}
		changes[i] = c
	}
	return changes
}

// Whatever the changes, batches and restarts, the writer's history is the one that the statements derive.
func TestRandomHistories(t *testing.T) {
	r := random(t)
	for _, payload := range []feature.Payload{feature.FullPayload, feature.PatchPayload} {
		for range 2 {
			w := newWorld(t, testStream(payload))
			changes := randomChanges(r, 250, payload == feature.PatchPayload)
			for left := changes; len(left) > 0; {
				n := min(1+r.IntN(60), len(left))
				w.commit(left[:n]...)
				left = left[n:]
				if r.IntN(4) == 0 {
					w.open()
				}
			}
			report := w.verify(Options{Buckets: 1 + r.IntN(3)})
			clean(t, report)
			if report.LogRows != 250 || report.Changes != 250 || report.Keys == 0 || report.Versions == 0 || report.Partitions != 4 {
				t.Errorf("report %+v", report)
			}
		}
	}
}

// A history of one key whose versions are known by heart.
func (w *world) knownHistory() {
	var changes []change
	for i, s := range []string{"A", "A", "B", "", "C"} {
		c := change{a: "k", b: 1, at: int64(1000 + 10*i), topic: "thing.v1", offset: int64(i), values: map[string]any{"s": s, "x": 1.5, "u": i}}
		if s == "" {
			c.deleted, c.values = true, nil
		}
		changes = append(changes, c, change{a: "other", b: int64(i), at: 1000, topic: "file:abc", offset: int64(i), values: map[string]any{"s": "A"}})
	}
	w.commit(changes[:6]...)
	w.commit(changes[6:]...)
}

// Every check finds what it is for.
func TestTampered(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(w *world)
		kind   Kind
		key    string
		text   string // in the finding
		total  int64  // of findings; 0 for any number
	}{
		"a value of a version": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'B' THEN 'X' ELSE s END AS s) FROM {rows}`)
		}, WrongVersion, "1|k", "the version from 1970-01-01T00:17:00Z differs in s", 1},
		"an untracked value": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'C' THEN u + 1 ELSE u END AS u) FROM {rows}`)
		}, WrongVersion, "1|k", "differs in u", 1},
		"a double": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'C' THEN 'NaN'::DOUBLE ELSE x END AS x) FROM {rows}`)
		}, WrongVersion, "1|k", "differs in x", 1},
		"an origin": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'C' THEN ingested_at + INTERVAL 1 microsecond ELSE ingested_at END AS ingested_at) FROM {rows}`)
		}, WrongVersion, "1|k", "differs in ingested_at", 1},
		"a position": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'B' THEN "offset" + 1 ELSE "offset" END AS "offset") FROM {rows}`)
		}, WrongVersion, "1|k", "differs in offset", 1},
		"a version that is gone": {func(w *world) {
			w.rewrite("thing_history", `SELECT * FROM {rows} WHERE s <> 'C'`)
		}, MissingVersion, "1|k", "a version from 1970-01-01T00:17:20Z that the history lacks", 1},
		"a version too many": {func(w *world) {
			w.rewrite("thing_history", `FROM {rows} UNION ALL (SELECT * REPLACE ('new' AS a) FROM {rows} WHERE s = 'C')`)
		}, ExtraVersion, "1|new", "that the log doesn't make", 1},
		"a version twice": {func(w *world) {
			w.rewrite("thing_history", `FROM {rows} UNION ALL (FROM {rows} WHERE s = 'C')`)
		}, OpenVersions, "1|k", "several versions are current", 0},
		"a version's end": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'A' AND valid_to IS NOT NULL THEN valid_to + INTERVAL 1 microsecond ELSE valid_to END AS valid_to) FROM {rows}`)
		}, Overlap, "1|k", "ends after the next one begins", 2},
		"an empty version": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (CASE WHEN s = 'B' THEN valid_from ELSE valid_to END AS valid_to) FROM {rows}`)
		}, EmptyInterval, "1|k", "does not end after it begins", 2},
		"a version that is current and ended": {func(w *world) {
			w.rewrite("thing_history", `SELECT * REPLACE (is_current OR s = 'B' AS is_current) FROM {rows}`)
		}, CurrentFlag, "1|k", "is current and has an end", 0},
		"a row of the log": {func(w *world) {
			w.rewrite("thing_log", `SELECT * REPLACE (CASE WHEN s = 'B' THEN 'X' ELSE s END AS s) FROM {rows}`)
		}, WrongVersion, "1|k", "differs in s", 1},
		"a row of the log that is gone": {func(w *world) {
			w.rewrite("thing_log", `SELECT * FROM {rows} WHERE s IS DISTINCT FROM 'C'`)
		}, WrongCounts, "", "thing.v1/0: 5 events were accepted, and the log has 4 rows", 2},
		"a row of the log twice": {func(w *world) {
			w.rewrite("thing_log", `FROM {rows} UNION ALL (FROM {rows} WHERE s = 'B')`)
		}, DuplicatePosition, "", "2 rows of the log stand at thing.v1/0@2", 3},
		"an event twice": {func(w *world) {
			w.rewrite("thing_log", `FROM {rows} UNION ALL (SELECT * REPLACE ('other.v1' AS topic) FROM {rows} WHERE s = 'B')`)
		}, DuplicateEvent, "1|k", "event thing.v1-2 at 1970-01-01T00:17:00Z was accepted 2 times, among others at other.v1/0@2 and thing.v1/0@2", 0},
		"an offset of the log": {func(w *world) {
			w.rewriteMetadata("thing_log", `"loam.offset.thing.v1.0":"{\"next\":5`, `"loam.offset.thing.v1.0":"{\"next\":4`)
		}, BeyondOffset, "", "thing.v1/0: the log has a row at offset 4, and stands at offset 4", 2},
		"an offset of the history": {func(w *world) {
			w.rewriteMetadata("thing_history", `"loam.offset.thing.v1.0":"{\"next\":5`, `"loam.offset.thing.v1.0":"{\"next\":6`)
		}, HistoryAhead, "", "thing.v1/0: the history stands at offset 6, the log at 5", 1},
		"an offset of the history that is behind": {func(w *world) {
			w.rewriteMetadata("thing_history", `"loam.offset.thing.v1.0":"{\"next\":5`, `"loam.offset.thing.v1.0":"{\"next\":4`)
		}, ExtraVersion, "1|k", "that the log doesn't make", 1},
		"a count": {func(w *world) {
			w.rewriteMetadata("thing_log", `\"read\":5`, `\"read\":6`)
		}, WrongCounts, "", "6 events were read, and 5 accepted, 0 refused, 0 duplicates", 0},
		"a dead letter that is not there": {func(w *world) {
			w.rewriteMetadata("thing_log", `\"refused\":0`, `\"refused\":1`)
		}, WrongCounts, "", "1 events were refused, and there are 0 dead letters", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testStream(feature.FullPayload))
			w.knownHistory()
			clean(t, w.verify(Options{}))
			c.tamper(w)
			r := w.verify(Options{Buckets: 3})
			found := false
			for _, f := range r.First {
				found = found || f.Kind == c.kind && f.Key == c.key && strings.Contains(f.Text, c.text)
			}
			if !found || (c.total != 0 && r.Total != c.total) {
				t.Errorf("want %s of %q with %q among %d findings; found %d:\n%s", c.kind, c.key, c.text, c.total, r.Total, text(r.Findings))
			}
		})
	}
}

// Differences beyond those that are kept are counted, and the first keys are drawn.
func TestManyDifferences(t *testing.T) {
	w := newWorld(t, testStream(feature.FullPayload))
	var changes []change
	const keys = 2 * differencesRead
	for i := range keys {
		changes = append(changes, change{a: "k", b: int64(i), at: 1000, topic: "thing.v1", offset: int64(i), values: map[string]any{"s": "A"}})
	}
	w.commit(changes...)
	clean(t, w.verify(Options{}))
	for range 4 { // a file a bucket of the table
		w.rewrite("thing_history", `SELECT * REPLACE ('B' AS s) FROM {rows}`)
	}
	r := w.verify(Options{Buckets: 1})
	drawn := 0
	for _, f := range r.First {
		if f.Drawing != "" {
			drawn++
		}
	}
	if r.Total != keys || r.ByKind[WrongVersion] != keys || len(r.First) != findingsMax || drawn != drawingsMax {
		t.Errorf("%d findings, %v, %d kept, %d drawn", r.Total, r.ByKind, len(r.First), drawn)
	}
}

// A history that has not taken all of its log is compared with what it has taken; dead letters count against refusals.
func TestLogAheadAndDeadLetters(t *testing.T) {
	w := newWorld(t, testStream(feature.FullPayload))
	ctx := context.Background()
	w.knownHistory()
	b := w.batch([]change{{a: "k", b: 1, at: 2000, topic: "thing.v1", offset: 7, values: map[string]any{"s": "D"}}})
	defer b.Release()
	for offset := range int64(2) {
		b.Refused = append(b.Refused, feature.DeadLetter{
			Position: feature.Position{Topic: "thing.v1", Offset: 5 + offset}, Stream: "thing", Reason: feature.NotJSON, RecordedAt: 1,
		})
	}
	b.Spans[0].Counts.Read, b.Spans[0].Counts.Refused = 3, 2
	letters, err := w.lake.OpenDeadLetters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := letters.Commit(ctx, b.Refused, b.Spans, "test"); err != nil {
		t.Fatal(err)
	}
	// Dead letters that the log has not come to yet are no finding.
	clean(t, w.verify(Options{}))
	before, err := os.ReadFile(w.metadata("thing_history"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.stream.Commit(ctx, b, w.stream.Head()); err != nil {
		t.Fatal(err)
	}
	r := w.verify(Options{})
	clean(t, r)
	if r.Changes != 11 || r.LogRows != 11 {
		t.Errorf("report %+v", r)
	}
	// The history as it was, beside the log as it is.
	if err := os.WriteFile(w.metadata("thing_history"), before, 0o644); err != nil {
		t.Fatal(err)
	}
	r = w.verify(Options{})
	clean(t, r)
	if r.Changes != 10 || r.LogRows != 11 {
		t.Errorf("report %+v", r)
	}
	w.rewrite("dead_letters", `SELECT * REPLACE ('another' AS stream) FROM {rows} WHERE "offset" = 5 UNION ALL FROM {rows} WHERE "offset" = 6`)
	if r = w.verify(Options{}); r.Total != 1 || !strings.Contains(r.First[0].Text, "2 events were refused, and there are 1 dead letters") {
		t.Errorf("a dead letter is gone: %s", text(r.Findings))
	}
}

// An event stream has no history; its log is checked.
func TestEventStream(t *testing.T) {
	def := testStream(feature.FullPayload)
	def.Kind = feature.EventStream
	w := newWorld(t, def)
	w.knownHistory()
	r := w.verify(Options{})
	clean(t, r)
	if r.LogRows != 10 || r.Changes != 0 || r.Partitions != 2 {
		t.Errorf("report %+v", r)
	}
	w.rewrite("thing_log", `FROM {rows} UNION ALL (FROM {rows} WHERE s = 'B')`)
	if r = w.verify(Options{}); r.ByKind[DuplicatePosition] != 1 || r.ByKind[DuplicateEvent] != 1 || r.ByKind[WrongCounts] != 1 || r.Total != 3 {
		t.Errorf("%s", text(r.Findings))
	}
}

// The order is loam's: sequence before position, null lowest, live before files, and a hash of the topic before offsets.
func TestOrder(t *testing.T) {
	for name, c := range map[string]struct{ first, last change }{
		"null is the lowest sequence":  {change{offset: 9}, change{sequence: -5}},
		"a greater sequence":           {change{offset: 9, sequence: 1}, change{sequence: 2}},
		"live outranks a file":         {change{topic: "file:abc", offset: 9}, change{}},
		"live outranks a redrive":      {change{topic: "redrive:1", offset: 9}, change{}},
		"topics compare by their hash": {change{topic: "b", offset: 9}, change{topic: "a"}}, // 3e23… and ca97…
		"a greater offset":             {change{}, change{offset: 1}},
		"sequence before live":         {change{sequence: 1}, change{topic: "file:abc", sequence: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			for i, first := range []change{c.first, c.last} {
				w := newWorld(t, testStream(feature.FullPayload))
				second := []change{c.last, c.first}[i]
				for _, one := range []*change{&first, &second} {
					if one.topic == "" {
						one.topic = "thing.v1"
					}
					one.a, one.b, one.at = "k", 1, 1000
				}
				wins := []*change{&second, &first}[i]
				first.values, second.values = map[string]any{"s": "loses"}, map[string]any{"s": "loses"}
				wins.values["s"] = "wins"
				w.commit(first, second)
				clean(t, w.verify(Options{}))
				// Agreeing on the wrong one isn't enough: there must be a version to rewrite.
				w.rewrite("thing_history", `SELECT * REPLACE (s || '!' AS s) FROM {rows} WHERE s = 'wins'`)
				if r := w.verify(Options{}); r.Total != 1 || r.ByKind[WrongVersion] != 1 {
					t.Errorf("%s", text(r.Findings))
				}
			}
		})
	}
}
