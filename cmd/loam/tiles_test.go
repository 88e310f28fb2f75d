package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/online"
)

const windowedStream = `stream: fact
kind: event
format: row
key: [id]
id: id
event_time: at
sequence: seq
cluster_by: who
columns:
  - {name: id, type: string}
  - {name: who, type: string}
  - {name: n, type: int64}
  - {name: x, type: double}
  - {name: m, type: "decimal(38,4)"}
  - {name: yes, type: bool}
  - {name: ts, type: timestamp}
  - {name: day, type: date}
  - {name: s, type: string}
  - {name: seq, type: int64}
`

// At any instant a windowed view online says of every entity what a training set says for that time: every aggregate of every
// type, with nulls, ties, infinities and numbers that overflow.
func TestWindowsOnlineAsInTrainingSets(t *testing.T) {
	ctx, dir, seed := t.Context(), t.TempDir(), uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	write := func(name, text string) {
		t.Helper()
		writeFile(t, filepath.Join(dir, name), text)
	}
	view := "entities: [{name: who, join_keys: [who]}]\nviews:\n  - name: w\n    entity: who\n    stream: fact\n    aggregates:\n" +
		"      - {name: rows, fn: count, where: \"n > 0 OR s = 'a'\", windows: [1h, 7d, 30d]}\n"
	for _, column := range []string{"n", "x", "m", "yes", "ts", "day", "s"} {
		for _, fn := range []string{"count", "sum", "avg", "min", "max", "first", "last", "distinct"} {
			if (fn != "sum" && fn != "avg") || strings.Contains("n x m", column) {
				view += fmt.Sprintf("      - {name: %s_%s, fn: %s, column: %s, windows: [1h, 7d, 30d]}\n", fn, column, fn, column)
			}
		}
	}
	write("loam.yaml", "project: test\n")
	write("streams/fact.yaml", windowedStream)
	write("features/w.yaml", view)

	now := time.Now().UTC().Truncate(time.Second)
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	file := "id,who,at,n,x,m,yes,ts,day,s,seq\n"
	for i := range 400 {
		at := now.Add(-time.Duration(r.Int64N(int64(40 * 24 * time.Hour))))
		if r.IntN(2) == 0 {
			at = now.Add(-time.Duration(r.IntN(12)) * 30 * time.Minute)
		}
		file += strings.Join([]string{
			strconv.Itoa(i), pick("a", "b", "c", "d"), at.Format(time.RFC3339Nano),
			pick("", "0", "1", "-1", "127", "-129", "9223372036854775807", "-9223372036854775808"),
			pick("", "0", "-0.0", "0.1", "-2.5", "NaN", "Infinity", "-Infinity"),
			pick("", "0", "-0.0001", "12.5", "9999999999999999999999999999999999.9999", "-9999999999999999999999999999999999.9999"),
			pick("", "true", "false"), pick("", "2026-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z"), pick("", "2026-02-28", "1969-12-31"),
			pick("", "a", "é", strings.Repeat("long ", 30)), pick("", "", "0", "-5"),
		}, ",") + "\n"
	}
	write("facts.csv", file)

	var told strings.Builder
	a := &app{dir: dir, out: &told, err: io.Discard, now: func() time.Time { return now }}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, &told)
		}
	}
	check(a.backfill(ctx, []string{filepath.Join(dir, "facts.csv")}, backfillOptions{stream: "fact"}))
	p, err := a.load(ctx)
	check(err)
	refs, err := p.Resolve([]string{"w:*"})
	check(err)
	values := 0
	for _, later := range []time.Duration{0, 50 * time.Minute, 7*time.Hour + time.Second, 8 * 24 * time.Hour, 25 * 24 * time.Hour, 60 * 24 * time.Hour} {
		instant := now.Add(later)
		a.now = func() time.Time { return instant }
		var entities []map[string]string
		for _, who := range []string{"a", "b", "c", "d", "nobody"} {
			entities = append(entities, map[string]string{"who": who})
		}
		out := a.offline(t, []string{"w"}, entities, instant)
		store, err := a.fromLake(ctx, p, refs)
		check(err)
		rows, err := online.NewClient(store, p, a.now).Read(ctx, refs, entities)
		check(err)
		check(store.Close())
		holdOffline(t, p, fmt.Sprintf("after %s", later), out, entities, rows, func(online.Feature) bool {
			values++
			return true
		})
	}
	if values < 4000 {
		t.Errorf("%d values", values)
	}
}
