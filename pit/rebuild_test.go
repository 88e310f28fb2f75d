package pit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// rebuild makes a training set again, with the project as its files say today.
func (w *world) rebuild(cardPath, labels, out string) (*Rebuilt, error) {
	w.t.Helper()
	ctx := context.Background()
	card, err := ReadCard(filepath.Join(w.dir, cardPath))
	if err != nil {
		w.t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	check := func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		var list []sql.Column
		for _, c := range columns {
			list = append(list, sql.Column{Name: c.Name, Type: c.Type.SQL()})
		}
		return db.CheckScalar(ctx, expr, list, want.SQL())
	}
	return Rebuild(ctx, w.lake, w.project, card, labels, filepath.Join(w.dir, out), check, Options{Now: time.Now, Version: "test"})
}

// Labels of a query are read again from the snapshots; a file in their place is refused.
func TestRebuildWithOtherLabels(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`})
	if _, err := w.build(feature.DatasetRequest{LabelsSQL: "SELECT k, event_time AS event_timestamp FROM s_log"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.rebuild("out.card.json", filepath.Join(w.dir, "labels.csv"), "again.parquet"); err == nil || !strings.Contains(err.Error(), "its labels came from a query, which is read again as it was: leave --labels out") {
		t.Error(err)
	}
}

// maintain compacts and expires as much as there is, and removes orphans.
func (w *world) maintain(stream string) {
	w.t.Helper()
	ctx := context.Background()
	m, err := w.lake.OpenMaintainer(ctx, w.project.Stream(stream), lake.MaintainOptions{Now: func() time.Time { return time.Now().Add(1000 * time.Hour) }})
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	for {
		if _, more, err := m.Compact(ctx, true); err != nil {
			w.t.Fatal(err)
		} else if !more {
			break
		}
	}
	if _, err := m.Expire(ctx, 0); err != nil {
		w.t.Fatal(err)
	}
	for range 2 { // noted first, then removed
		if _, err := m.RemoveOrphans(ctx, time.Hour); err != nil {
			w.t.Fatal(err)
		}
	}
}

// evolve makes the project's files say something else, and brings the tables to it.
func (w *world) evolve(file, text string) {
	w.t.Helper()
	w.put(file, text)
	w.load()
	w.apply()
}

// same reports in what two files of training sets differ, row by row and over all columns.
func (w *world) same(a, b string) int {
	w.t.Helper()
	db, err := sql.Open(context.Background(), sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.QueryRow(context.Background(), fmt.Sprintf("SELECT count(*) FROM ((FROM read_parquet('%[1]s', file_row_number = true) EXCEPT ALL FROM read_parquet('%[2]s', file_row_number = true)) "+
		"UNION ALL (FROM read_parquet('%[2]s', file_row_number = true) EXCEPT ALL FROM read_parquet('%[1]s', file_row_number = true)))", filepath.Join(w.dir, a), filepath.Join(w.dir, b)), nil, &n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// A training set is made again after a hundred further commits, compaction, expiry, the removal of orphans, a renamed column
// and other definitions: on both clocks, of a view with a ttl and a windowed one.
func TestRebuild(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 3))
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: again", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	n := 0
	happen := func(stream string, commits, rows int) {
		var lists [][]string
		for range commits {
			var list []string
			for range rows {
				at := int64(r.IntN(2000))
				h := happening{id: string(rune('a' + r.IntN(4))), at: at, received: at + int64(r.IntN(300)), v: r.IntN(5), deleted: stream == "thing" && r.IntN(8) == 0}
				list = append(list, h.event(strings.ToUpper(stream[:1])+stream[1:], n))
				n++
			}
			lists = append(lists, list)
		}
		w.takeEach(stream, "file:"+stream, 1, lists)
	}
	happen("thing", 3, 30)
	happen("fact", 3, 40)
	csv := "id,event_timestamp\n"
	for range 100 {
		csv += string(rune('a'+r.IntN(5))) + "," + stamp(int64(r.IntN(2400))) + "\n"
	}
	w.put("labels.csv", csv)
	first := map[feature.Clock]*Card{}
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		card, err := w.build(feature.DatasetRequest{Name: "set", Labels: "labels.csv", AsOf: clock, Out: string(clock) + ".parquet"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		first[clock] = card
	}
	if first[feature.ServedClock].RowsHash == first[feature.EventClock].RowsHash {
		t.Fatal("the clocks make no difference")
	}
	happen("thing", 60, 3)
	happen("fact", 50, 3)
	w.maintain("thing")
	w.put("features/f.yaml", strings.NewReplacer("[v, {name: twice, type: int64, sql: \"v * 2\"}]", "[w]", "ttl: 40s, features: [v]", "ttl: 1s, features: [w]",
		"windows: [15m]", "windows: [1h]").Replace(oracleViews))
	w.evolve("streams/thing.yaml", strings.Replace(thingStream, "{name: v, type: int64}", "{name: w, type: int64, renamed_from: v, path: v}, {name: more, type: string}", 1))
	happen("thing", 5, 3)
	w.maintain("thing")
	w.maintain("fact")
	for clock, card := range first {
		rebuilt, err := w.rebuild(string(clock)+".card.json", "", "again.parquet")
		if err != nil {
			t.Fatal(err)
		}
		if len(rebuilt.Differences) > 0 || w.same(string(clock)+".parquet", "again.parquet") != 0 {
			t.Errorf("%s: %v, %d rows are others", clock, rebuilt.Differences, w.same(string(clock)+".parquet", "again.parquet"))
		}
		if c := rebuilt.Card; c.RowsHash != card.RowsHash || c.Tag != card.Tag || c.RebuiltFrom != card.Out || !c.Watermark.Equal(*card.Watermark) || !reflect.DeepEqual(c.Labels, card.Labels) || fmt.Sprint(c.Tables) != fmt.Sprint(card.Tables) {
			t.Errorf("%s: the card is\n%+v, want\n%+v", clock, c, card)
		}
		// The one that was made again can be made again, too.
		if rebuilt, err = w.rebuild("again.card.json", "", "thrice.parquet"); err != nil || len(rebuilt.Differences) > 0 {
			t.Errorf("%s again: %+v, %v", clock, rebuilt, err)
		}
	}
	// A card that says something else is told.
	text, err := os.ReadFile(filepath.Join(w.dir, "served.card.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.put("other.card.json", strings.NewReplacer(`"rows": 100,`, `"rows": 101,`, `"rows_hash": "xxh3:`, `"rows_hash": "xxh3:0`).Replace(string(text)))
	if rebuilt, err := w.rebuild("other.card.json", "", "again.parquet"); err != nil || len(rebuilt.Differences) < 2 || !strings.Contains(rebuilt.Differences[0], "100 rows, and the card says 101") ||
		!strings.Contains(rebuilt.Differences[1], "hash") {
		t.Errorf("%+v, %v", rebuilt, err)
	}
	w.put("other.card.json", strings.ReplaceAll(string(text), `"project": "again"`, `"project": "other"`))
	if _, err := w.rebuild("other.card.json", "", "again.parquet"); err == nil || !strings.Contains(err.Error(), "of project other") {
		t.Errorf("another project: %v", err)
	}
	// Labels elsewhere, other labels, and none.
	if err := os.Rename(filepath.Join(w.dir, "labels.csv"), filepath.Join(w.dir, "moved.csv")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.rebuild("served.card.json", "", "again.parquet"); err == nil || !strings.Contains(err.Error(), "no label file") {
		t.Errorf("no labels: %v", err)
	}
	if rebuilt, err := w.rebuild("served.card.json", "moved.csv", "again.parquet"); err != nil || len(rebuilt.Differences) > 0 {
		t.Errorf("moved labels: %+v, %v", rebuilt, err)
	}
	w.put("labels.csv", csv+"a,"+stamp(3)+"\n")
	if _, err := w.rebuild("served.card.json", "", "again2.parquet"); !errors.Is(err, ErrLabelsChanged) {
		t.Errorf("other labels: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "again2.parquet")); err == nil {
		t.Error("a training set of other labels was written")
	}
	w.put("labels.csv", csv)
	// A failed rebuild has left the tags where they are; without them it can't be had any more.
	ctx := context.Background()
	for table := range first[feature.ServedClock].Snapshots {
		if was, err := w.lake.Unpin(ctx, table, first[feature.ServedClock].Tag); !was || err != nil {
			t.Errorf("unpin %s: %v, %v", table, was, err)
		}
		if was, err := w.lake.Unpin(ctx, table, first[feature.EventClock].Tag); !was || err != nil {
			t.Errorf("unpin %s: %v, %v", table, was, err)
		}
	}
	w.maintain("thing")
	w.maintain("fact")
	if _, err := w.rebuild("served.card.json", "", "again3.parquet"); !errors.Is(err, lake.ErrGone) || !strings.Contains(err.Error(), "it was unpinned, and has expired") {
		t.Errorf("unpinned: %v", err)
	}
}

// A request that uses everything that changes the labels is made again the same: labels by a query or from a table of the lake,
// outcomes that were complete up to then, a sample, a split, windows over history, and features on demand.
func TestRebuildOfAllThatRequestsCanSay(t *testing.T) {
	views := oracleViews + `  - name: past
    entity: thing
    stream: thing
    aggregates: [{name: moves, fn: changes, windows: [15m]}, {name: quiet, fn: days_since_change}]
  - name: made
    on_demand: {inputs: ["plain:v", "recent:sum_15m"], request: [{name: more, type: int64}]}
    features: [{name: all, type: int64, sql: "v + more"}, {name: sums, type: double, sql: "sum_15m / 2"}]
`
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: all", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": views,
	})
	r := rand.New(rand.NewPCG(9, 9))
	n := 0
	happen := func(rows int, from int64) {
		for _, stream := range []string{"thing", "fact"} {
			var list []string
			for range rows {
				at := from + int64(r.IntN(1000))
				h := happening{id: string(rune('a' + r.IntN(4))), at: at, received: at + int64(r.IntN(100)), v: r.IntN(5)}
				list = append(list, h.event(strings.ToUpper(stream[:1])+stream[1:], n))
				n++
			}
			w.take(stream, "file:"+stream, 1, list)
		}
	}
	happen(80, 0)
	sample, err := feature.ParseSample("0.7")
	if err != nil {
		t.Fatal(err)
	}
	split, err := feature.ParseSplit("time:2026-01-01T00:08:00Z")
	if err != nil {
		t.Fatal(err)
	}
	outcome, err := feature.ParseOutcome("high=thing:5m:v > 3")
	if err != nil {
		t.Fatal(err)
	}
	for name, request := range map[string]feature.DatasetRequest{
		"sql":   {LabelsSQL: "SELECT id, event_time AS event_timestamp, 7 AS more FROM thing_log ORDER BY event_time", Sample: sample, Split: split, Outcomes: []feature.OutcomeLabel{outcome}},
		"table": {LabelsTable: "thing_log", TimeColumn: "event_time", JoinKeys: map[string]string{"id": "id"}, Features: []feature.Ref{{View: "past", Feature: "moves_15m"}}},
	} {
		request.Out = name + ".csv"
		card, err := w.build(request, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "sql" && (card.Labels.Outcomes[0].LeftOut == 0 || card.Rows == 0 || len(card.Unhashed) != 0) {
			t.Errorf("the card's labels are %+v, unhashed %v", card.Labels, card.Unhashed)
		}
		happen(80, 900)
		w.maintain("thing")
		rebuilt, err := w.rebuild(name+".card.json", "", "again.parquet")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := rebuilt.Card; len(rebuilt.Differences) > 0 || !reflect.DeepEqual(got.Labels, card.Labels) || got.RowsHash != card.RowsHash {
			t.Errorf("%s: %v\n%+v, want\n%+v", name, rebuilt.Differences, got.Labels, card.Labels)
		}
	}
}
