package metamorphic

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
	"github.com/loamdata/loam/verify"
)

var (
	seed      = flag.Uint64("seed", 0, "seed of the random histories; 0 takes one from the clock")
	histories = flag.Int("histories", 0, "number of random histories; 0 takes 10,000 in CI (LOAM_CI=1), else 400")
)

// fullCount is how many histories CI takes.
const fullCount = 10_000

// worldKeys is how many histories share a lake. A commit costs the more the more there were, so many lakes of few commits
// are cheaper than few of many.
const worldKeys = 1000

// upkeepCommits is after how many commits of one opening package lake merges manifests and expires snapshots in line.
const upkeepCommits = 25

// Any way in which changes arrive gives the oracle's tables.
func TestAnyArrivalGivesTheOraclesTables(t *testing.T) {
	first, count := *seed, *histories
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	switch {
	case count == 0 && os.Getenv("LOAM_CI") == "1":
		count = fullCount
	case count == 0:
		count = 400
	}
	full := count >= fullCount
	t.Logf("-seed=%d", first)
	size := min(worldKeys, (count+1)/2) // two worlds at least, one of each payload
	var all did
	for n := 0; count > 0; n++ {
		keys := min(count, size)
		count -= keys
		payload := []feature.Payload{feature.FullPayload, feature.PatchPayload}[n%2]
		t.Run(fmt.Sprintf("world %d, %s", n, payload), func(t *testing.T) {
			r := rand.New(rand.NewPCG(first, uint64(n)))
			w := newWorld(t, r, randomChanges(r, keys, payload), payload)
			if full && n == 1 {
				w.runForLong()
			}
			all.add(w.run(r))
			for _, difference := range w.differences() {
				t.Error(difference)
			}
			report, err := verify.History(t.Context(), w.writers[0].lake, w.def, verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range report.First {
				t.Errorf("verify: %s of %q: %s\n%s", f.Kind, f.Key, f.Text, f.Drawing)
			}
			if t.Failed() {
				t.Logf("-seed=%d", first)
			}
		})
		if t.Failed() {
			break // the others would say the same
		}
	}
	t.Logf("%+v", all)
	// A few histories may come by none of something.
	if full && (all.late == 0 || all.fast == 0 || all.dropped == 0 || all.twins == 0 || all.restarts == 0 || all.cutOff == 0 ||
		all.fenced == 0 || all.together == 0 || all.upkeep == 0 || all.compacted == 0) {
		t.Errorf("%+v: want some of everything", all)
	}
}

// world is a lake with one stream, and two writers of it.
type world struct {
	t          *testing.T
	def        *feature.Stream
	writers    []*writer
	deliveries []*delivery
	steady     bool // nobody starts anew
}

// newWorld delivers the changes in some order to the partitions of two writers, some of them twice.
func newWorld(t *testing.T, r *rand.Rand, changes []*change, payload feature.Payload) *world {
	t.Helper()
	w := &world{t: t, def: testStream(payload)}
	arrival := slices.Clone(changes)
	for _, c := range changes {
		if r.IntN(15) == 0 {
			arrival = append(arrival, c)
		}
	}
	switch r.IntN(3) {
	case 0:
		r.Shuffle(len(arrival), func(i, j int) { arrival[i], arrival[j] = arrival[j], arrival[i] })
	case 1: // mostly by event time, so that the fast path has its share
		early := map[*change]int64{}
		for _, c := range arrival {
			early[c] = c.at + int64(r.IntN(4)*r.IntN(2))
		}
		slices.SortStableFunc(arrival, func(a, b *change) int { return int(early[a] - early[b]) })
	case 2: // latest first
		slices.SortStableFunc(arrival, func(a, b *change) int { return int(b.at - a.at) })
	}
	most := 1 + 2*len(arrival)/(6+r.IntN(8))
	dir := t.TempDir()
	for i, partitions := range [][]feature.Partition{
		{{Topic: "thing.v1", Index: 0}, {Topic: "file:abc"}},
		{{Topic: "thing.v1", Index: 1}, {Topic: "redrive:7"}},
	} {
		one := &writer{t: t, name: string(rune('a' + i)), def: w.def, dir: dir, most: most, queues: map[feature.Partition][]*delivery{}}
		for _, p := range partitions {
			one.queues[p] = nil
		}
		w.writers = append(w.writers, one)
	}
	for _, c := range arrival {
		one := w.writers[r.IntN(len(w.writers))]
		p := partitionsOf(one.queues)[r.IntN(2)]
		d := &delivery{change: c, Position: feature.Position{Topic: p.Topic, Partition: p.Index, Offset: int64(len(one.queues[p]))}}
		one.queues[p] = append(one.queues[p], d)
		w.deliveries = append(w.deliveries, d)
	}
	return w
}

// runForLong lets one writer make as many commits as it takes to come to its upkeep.
func (w *world) runForLong() {
	w.steady = true
	one := w.writers[0]
	one.most = one.left() / (upkeepCommits + 1)
}

// run lets the writers commit all deliveries.
func (w *world) run(r *rand.Rand) did {
	for _, one := range w.writers {
		one.open()
		w.t.Cleanup(one.close)
	}
	for {
		one := w.writers[r.IntN(len(w.writers))]
		other := w.writers[0]
		if one == other {
			other = w.writers[1]
		}
		switch {
		case w.settled():
			var all did
			for _, one := range w.writers {
				all.add(one.did)
			}
			return all
		case !w.steady && r.IntN(25) == 0:
			one.did.restarts++
			one.open() // what was made and not committed is made again
		case len(one.made) < 2 && one.left() > 0 && r.IntN(2) == 0:
			n := one.most
			if !w.steady {
				n = 1 + r.IntN(n)
			}
			one.makeBatch(r, n)
		case len(one.made) == 0:
		case len(other.made) > 0 && r.IntN(4) == 0:
			w.together(one, other)
		case r.IntN(10) == 0:
			one.did.compacted += w.compact(one, r.IntN(2) == 0)
		case !w.steady && r.IntN(8) == 0:
			one.commitCutOff(r)
		default:
			one.commitOnce(r)
		}
	}
}

// together lets both writers commit at once.
func (w *world) together(one, other *writer) {
	w.t.Helper()
	theirs := make(chan error, 1)
	go func() { theirs <- other.commit(context.Background()) }()
	ours := one.commit(context.Background())
	if err := <-theirs; err != nil || ours != nil {
		w.t.Fatal(ours, err)
	}
	one.committed()
	other.committed()
	one.did.together++
}

// compact compacts the stream's files while a writer commits, or by itself, and gives how many there were.
func (w *world) compact(one *writer, beside bool) int64 {
	w.t.Helper()
	m, err := one.lake.OpenMaintainer(w.t.Context(), w.def, lake.MaintainOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	committed := make(chan error, 1)
	if beside {
		go func() { committed <- one.commit(context.Background()) }()
	}
	var files int64
	for due := true; due && err == nil; {
		var c lake.Compacted
		c, due, err = m.Compact(w.t.Context(), true)
		files += int64(c.FilesBefore)
	}
	if beside {
		if err := <-committed; err != nil {
			w.t.Fatal(err)
		}
		one.committed()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return files
}

// settled reports whether all deliveries are committed.
func (w *world) settled() bool {
	return !slices.ContainsFunc(w.writers, func(one *writer) bool { return one.left() > 0 || len(one.made) > 0 })
}

// differences tells where the tables are not what the deliveries must have made of them, the first few of them.
func (w *world) differences() []string {
	w.t.Helper()
	reading, err := w.writers[0].lake.Read(w.t.Context(), w.def)
	if err != nil {
		w.t.Fatal(err)
	}
	db, err := sql.Open(w.t.Context(), sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if err := reading.LogView(w.t.Context(), db, "log", nil, false); err != nil {
		w.t.Fatal(err)
	}
	if err := reading.HistoryView(w.t.Context(), db, "history", nil); err != nil {
		w.t.Fatal(err)
	}
	present := sql.Fragment("present::VARCHAR")
	if w.def.Payload != feature.PatchPayload {
		present = "NULL"
	}
	log := w.rows(db, "log", present, "epoch_us(event_time)", "sequence", "epoch_us(recorded_at)", "epoch_us(ingested_at)", "event_id", "op", "topic",
		`"partition"`, `"offset"`)
	history := w.rows(db, "history", "epoch_us(valid_from)", "epoch_us(valid_to)", "is_current", "event_id", "sequence", "topic", `"partition"`, `"offset"`,
		"epoch_us(recorded_at)", "epoch_us(ingested_at)")
	return w.compare(log, history)
}

// rows are a table's rows as text, each with the key's columns, the stream's, and those given.
func (w *world) rows(db *sql.DB, table sql.Fragment, more ...sql.Fragment) []string {
	w.t.Helper()
	parts := []sql.Fragment{"a", "b"}
	for _, c := range columns {
		part := sql.Ident(c.name)
		if c.typ == "timestamp" {
			part = "epoch_us(" + part + ")"
		}
		parts = append(parts, part)
	}
	parts = append(parts, more...)
	for i, p := range parts {
		parts[i] = "coalesce((" + p + ")::VARCHAR, 'NULL')"
	}
	rows, err := db.Query(w.t.Context(), sql.Render("SELECT concat_ws({separator}, {parts}) FROM {table}",
		sql.Args{"separator": sql.Literal(separator), "parts": sql.Join(", ", parts), "table": table}))
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var texts []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			w.t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(texts)
	return texts
}

// differencesMax is how many entities a failed test draws.
const differencesMax = 3

// compare holds the rows of log and history against what was delivered: each event once in the log as it was delivered,
// and of each entity the history that the oracle makes of those.
func (w *world) compare(log, history []string) []string {
	var told []string
	byRow := map[string]*delivery{}
	for _, d := range w.deliveries {
		byRow[d.logRow()] = d
	}
	taken := map[*change]bool{}
	accepted, delivered := map[key][]*delivery{}, map[key][]*delivery{}
	for _, row := range log {
		d := byRow[row]
		switch {
		case d == nil:
			told = append(told, "the log has a row that was not delivered: "+row)
			continue
		case taken[d.change]:
			told = append(told, "the log has an event twice: "+row)
		}
		taken[d.change] = true
		accepted[d.key] = append(accepted[d.key], d)
	}
	for _, d := range w.deliveries {
		if !taken[d.change] {
			told = append(told, "the log lacks "+d.logRow())
		}
		delivered[d.key] = append(delivered[d.key], d)
	}
	if len(told) > 0 {
		return told[:min(len(told), differencesMax)]
	}
	got := map[string][]string{} // by the key's columns
	for _, row := range history {
		p := strings.SplitN(row, separator, 3)
		got[p[0]+separator+p[1]] = append(got[p[0]+separator+p[1]], row)
	}
	for k, deliveries := range accepted {
		columns := fmt.Sprint(k.a, separator, k.b)
		want := oracle(deliveries)
		slices.Sort(want)
		if !slices.Equal(got[columns], want) {
			told = append(told, fmt.Sprintf("the history of %q is\n  %s\nwant\n  %s\nIts changes in their order, drawn by event time, each with the batch that brought it:\n%s",
				columns, strings.Join(got[columns], "\n  "), strings.Join(want, "\n  "), timeline(delivered[k])))
		}
		delete(got, columns)
	}
	for columns := range got {
		told = append(told, fmt.Sprintf("%q has a history without a change", columns))
	}
	return told[:min(len(told), differencesMax)]
}

// The comparison finds a version that is wrong, one that is missing and one too many, and a row of the log that is.
func TestComparisonTells(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	w := newWorld(t, r, randomChanges(r, 20, feature.FullPayload), feature.FullPayload)
	var log []string
	accepted := map[key][]*delivery{}
	seen := map[*change]bool{}
	for _, d := range w.deliveries {
		if !seen[d.change] {
			log = append(log, d.logRow())
			accepted[d.key] = append(accepted[d.key], d)
		}
		seen[d.change] = true
	}
	var history []string
	for _, deliveries := range accepted {
		history = append(history, oracle(deliveries)...)
	}
	slices.Sort(history)
	if told := w.compare(log, history); told != nil {
		t.Fatal(told)
	}
	tampered := slices.Clone(history)
	tampered[0] = strings.Replace(tampered[0], "true", "false", 1) + "0"
	for name, c := range map[string][2][]string{
		"a wrong version":         {log, tampered},
		"a missing version":       {log, history[1:]},
		"a version too many":      {log, append(slices.Clone(history), strings.Replace(history[0], separator, "new"+separator, 1))},
		"a missing row":           {log[1:], history},
		"a row twice":             {append(slices.Clone(log), log[0]), history},
		"a row of no one":         {append(slices.Clone(log), log[0]+"0"), history},
		"a history twice":         {log, append(slices.Clone(history), history...)},
		"neither log nor history": {nil, nil},
	} {
		if w.compare(c[0], c[1]) == nil {
			t.Errorf("%s is not told", name)
		}
	}
}
