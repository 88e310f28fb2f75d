package pit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// Where the card can't be kept, in the lake or beside it, there is no training set.
func TestNoTrainingSetWithoutItsCard(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *world){
		"no lake": func(t *testing.T, w *world) {
			if err := w.lake.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"no place": func(t *testing.T, w *world) {
			if err := os.MkdirAll(filepath.Join(w.dir, "out.card.json", "x"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
			w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`})
			w.put("labels.csv", "k,event_timestamp\na,2026-01-02\n")
			features, err := w.project.Resolve([]string{"v"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = Build(context.Background(), w.lake, w.project, feature.DatasetRequest{
				Labels: "labels.csv", TimeColumn: feature.DefaultTimeColumn, AsOf: feature.ServedClock, Out: "out.parquet", Features: features,
			}, Options{Now: time.Now, Version: "test", Step: func(what string, _, _ int) {
				if what == "done" {
					spoil(t, w)
				}
			}})
			if err == nil {
				t.Fatal("no error")
			}
			for _, file := range []string{"out.parquet", "out.card.json"} {
				info, err := os.Stat(filepath.Join(w.dir, file))
				if !errors.Is(err, fs.ErrNotExist) && !(err == nil && info.IsDir()) {
					t.Errorf("%s is there: %v", file, err)
				}
			}
		})
	}
}

// The card tells where values are missing, in which views the clocks could differ, and a hash of the rows.
func TestCardDescribes(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: card", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	w.take("thing", "file:things", 1, []string{happening{id: "a", at: 500, received: 650, v: 1}.event("Thing", 0)})
	w.take("fact", "file:facts", 1, []string{happening{id: "a", at: 900, received: 900, v: 2}.event("Fact", 1)})
	labels := "id,event_timestamp,y\n"
	for i := range 20 {
		labels += fmt.Sprintf("a,%s,%d\n", stamp(int64(50*i)), i) // from 0 to 950
	}
	w.put("labels.csv", labels+"a,,20\n")
	build := func(request feature.DatasetRequest) *Card {
		t.Helper()
		request.Labels = "labels.csv"
		card, err := w.build(request, 0)
		if err != nil {
			t.Fatal(err)
		}
		read, err := ReadCard(CardPath(card.Out))
		if err != nil {
			t.Fatal(err)
		}
		return read
	}
	served, event := build(feature.DatasetRequest{}), build(feature.DatasetRequest{AsOf: feature.EventClock})
	if c := served.Coverage; c == nil || !c.From.Equal(time.Unix(epoch, 0)) || !c.To.Equal(time.Unix(epoch+950, 0)) || fmt.Sprint(c.Labels) != fmt.Sprint(slices.Repeat([]int64{1}, 20)) {
		t.Errorf("coverage is of %+v", c)
	}
	strips := func(c *Card, column string) string {
		var b strings.Builder
		for _, v := range c.Features[slices.IndexFunc(c.Features, func(f CardFeature) bool { return f.Column == column })].Coverage {
			fmt.Fprint(&b, *v)
		}
		return b.String()
	}
	for _, c := range []struct {
		card         *Card
		column, want string
	}{
		{served, "plain__v", "00000000000001111111"}, {event, "plain__v", "00000000001111111111"}, {served, "short__v", "00000000000000000000"},
		{event, "short__v", "00000000001000000000"}, {served, "recent__last_15m", "00000000000000000011"}, {served, "recent__n_15m", "11111111111111111111"},
	} {
		if got := strips(c.card, c.column); got != c.want {
			t.Errorf("%.6s: coverage of %s is %s, want %s", c.card.Clock, c.column, got, c.want)
		}
	}
	// The change of 500 was ingested at 650: three labels lie between, one of them within 40 s of it.
	if got := fmt.Sprint(served.Views); got != fmt.Sprintf("[{plain %v} {recent 0} {short %v}]", 3.0/21, 1.0/21) || served.Labels.ClocksDiffer != 3.0/21 {
		t.Errorf("clocks differ by view in %s, in all %v", got, served.Labels.ClocksDiffer)
	}
	if len(served.Tables) != 3 || served.Tables["card.thing_log"].Snapshot != served.Snapshots["card.thing_log"] || served.Asked.TimeColumn != "event_timestamp" || len(served.Asked.Features) != len(served.Features) {
		t.Errorf("tables %+v, asked %+v", served.Tables, served.Asked)
	}
	if again := build(feature.DatasetRequest{}); again.RowsHash != served.RowsHash || !strings.HasPrefix(again.RowsHash, "xxh3:") || again.Unhashed != nil {
		t.Errorf("the hash is %s, then %s", served.RowsHash, again.RowsHash)
	}
	seen := map[string]string{served.RowsHash: "served", event.RowsHash: "event"}
	for what, text := range map[string]string{
		"two rows changed places": strings.NewReplacer(",1\n", ",2\n", ",2\n", ",1\n").Replace(labels) + "a,,20\n",
		"a label is another":      labels + "a,,21\n", "a row is missing": labels, "another entity": labels + "b,,20\n",
	} {
		w.put("labels.csv", text)
		h := build(feature.DatasetRequest{}).RowsHash
		if seen[h] != "" {
			t.Errorf("%s: the hash is that of %s", what, seen[h])
		}
		seen[h] = what
	}
}

// Rows hash the same in whatever parts, and otherwise in another order.
func TestRowsHash(t *testing.T) {
	var a, b, c rowsHash
	for _, row := range []string{"x", "y", "z"} {
		a.add([]byte(row))
	}
	for _, row := range []string{"z", "x", "y"} {
		b.add([]byte(row))
	}
	c.add([]byte("x"))
	if a != b || a == c || a.String() == c.String() || len(a.String()) != len("xxh3:")+32 {
		t.Errorf("hashes %s, %s, %s", a, b, c)
	}
	sum := rowsHash{hi: 1, lo: 1<<64 - 1}
	sum.add([]byte("x"))
	if one := (rowsHash{hi: c.hi + 2, lo: c.lo - 1}); sum != one {
		t.Errorf("the sum is %s, want %s", sum, one)
	}
}

// What two training sets say otherwise is told, and nothing else.
func TestDiff(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: differ", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	w.take("thing", "file:things", 1, []string{happening{id: "a", at: 500, received: 650, v: 1}.event("Thing", 0)})
	w.put("labels.csv", "id,event_timestamp\na,"+stamp(550)+"\na,"+stamp(660)+"\nb,"+stamp(660)+"\n")
	build := func(request feature.DatasetRequest) *Card {
		t.Helper()
		request.Labels = "labels.csv"
		card, err := w.build(request, 0)
		if err != nil {
			t.Fatal(err)
		}
		return card
	}
	a := build(feature.DatasetRequest{Out: "a.parquet"})
	same, err := Diff(a, build(feature.DatasetRequest{Out: "b.parquet"}))
	if err != nil || !same.Same() {
		t.Errorf("the same: %+v, %v", same, err)
	}
	w.evolve("features/f.yaml", strings.Replace(oracleViews, "ttl: 40s", "ttl: 80s", 1))
	w.take("thing", "file:things", 1, []string{happening{id: "b", at: 900, received: 900, v: 1}.event("Thing", 1)})
	b := build(feature.DatasetRequest{Out: "b.parquet", AsOf: feature.EventClock})
	d, err := Diff(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if d.Rows, err = DiffRows(context.Background(), a, b, a.Out, b.Out); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(d.Request) != "[{as_of served event}]" || d.Labels != nil || len(d.Snapshots) != 2 || len(d.Watermarks) != 1 || d.Features != nil {
		t.Errorf("%+v", d)
	}
	if len(d.Definitions) != 1 || fmt.Sprintf("%q", d.Definitions[0].Lines) != `["- \"ttl\": \"40s\"" "+ \"ttl\": \"80s\""]` {
		t.Errorf("definitions %q", d.Definitions)
	}
	if len(d.NullRates) != 3 || d.NullRates[0] != (RateDifference{"plain__v", 2.0 / 3, 1.0 / 3}) {
		t.Errorf("null rates %+v", d.NullRates)
	}
	if fmt.Sprint(d.Rows) != "[{plain__v 1} {plain__twice 1} {short__v 1}]" {
		t.Errorf("rows %+v", d.Rows)
	}
	b.Labels.SHA256 = "x"
	if _, err := DiffRows(context.Background(), a, b, a.Out, b.Out); err == nil {
		t.Error("rows of other labels were compared")
	}
	if lines := diffLines([]string{"a", "b", "c"}, []string{"b", "x", "c", "d"}); fmt.Sprint(lines) != "[- a + x + d]" {
		t.Errorf("lines %q", lines)
	}
}
