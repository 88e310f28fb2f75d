package pit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

func parseSample(t *testing.T, text string) feature.Sample {
	t.Helper()
	s, err := feature.ParseSample(text)
	if err != nil || s.String() != text {
		t.Fatalf("%s: %v, %v", text, s, err)
	}
	return s
}

func parseSplit(t *testing.T, text string) feature.Split {
	t.Helper()
	s, err := feature.ParseSplit(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := feature.ParseSplit(s.String()); err != nil || again.String() != s.String() {
		t.Fatalf("%s: %v, %v", s, again, err)
	}
	return s
}

// A sample is the same whenever it is taken, whatever the order or format of the labels; a split keeps entities together, or
// times apart.
func TestSampleAndSplit(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"1","at":"2026-01-01T00:00:00Z","v":1}`})
	const labels = `SELECT (i % 100)::VARCHAR AS k, TIMESTAMPTZ '2026-01-01' + (i // 100) * INTERVAL 1 day AS event_timestamp, i FROM range(2000) r(i)`
	w.exec("COPY (" + labels + ") TO '$DIR/labels.csv' (HEADER)")
	w.exec("COPY (" + labels + ") TO '$DIR/labels.parquet'")
	w.exec("COPY (FROM (" + labels + ") ORDER BY i DESC) TO '$DIR/turned.parquet'")
	w.exec("COPY (SELECT k, event_timestamp, i AS split FROM (" + labels + ")) TO '$DIR/taken.csv' (HEADER)")
	w.put("empty.csv", "k,event_timestamp,i\n,2026-01-05,0\n1,,1\n1,2026-01-05,2\n")
	build := func(file string, sample, split string, seed int64) (*Card, []string) {
		t.Helper()
		request := feature.DatasetRequest{Labels: file, Seed: seed}
		if sample != "" {
			request.Sample = parseSample(t, sample)
		}
		if split != "" {
			request.Split = parseSplit(t, split)
		}
		card, err := w.buildWith(request, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return card, w.rows("SELECT i FROM '$DIR/out.parquet'")
	}
	card, some := build("labels.csv", "0.1", "", 0)
	if n := len(some); n < 140 || n > 260 || card.Rows != int64(n) || card.Labels.Read != 2000 || card.Labels.Unsampled != 2000-int64(n) || card.Request.Sample != "0.1" {
		t.Errorf("%d of 2000 rows, card %+v", n, card.Labels)
	}
	if !slices.IsSortedFunc(some, func(a, b string) int { return len(a) - len(b) }) {
		t.Errorf("the order is lost: %v", some[:5])
	}
	_, turned := build("turned.parquet", "0.1", "", 0)
	if slices.Reverse(turned); !slices.Equal(some, turned) {
		t.Error("another order or format gives another sample")
	}
	if _, other := build("labels.parquet", "0.1", "", 1); slices.Equal(some, other) {
		t.Error("another seed gives the same sample")
	}
	if _, more := build("labels.parquet", "0.2", "", 0); !contains(more, some) {
		t.Error("a greater sample lacks rows of a smaller")
	}
	_, ten := build("labels.parquet", "10", "", 0)
	if _, twenty := build("turned.parquet", "20", "", 0); len(ten) != 10 || len(twenty) != 20 || !contains(twenty, ten) {
		t.Errorf("%d and %d rows", len(ten), len(twenty))
	}
	if _, all := build("labels.parquet", "5000", "", 0); len(all) != 2000 {
		t.Errorf("%d rows of 2000", len(all))
	}

	parts := func() string {
		return strings.Join(w.rows("SELECT coalesce(split, '-') || ' ' || count(*) || ' ' || count(DISTINCT k) || ' ' || strftime(min(event_timestamp), '%d') || '-' || strftime(max(event_timestamp), '%d') AS p FROM '$DIR/out.parquet' GROUP BY split ORDER BY min(event_timestamp), split"), ",")
	}
	for split, want := range map[string]string{
		"time:2026-01-11":                           `{"p":"train 1000 100 01-10"},{"p":"test 1000 100 11-20"}`,
		"time:2026-01-11T00:00:00Z,2026-01-16":      `{"p":"train 1000 100 01-10"},{"p":"validation 500 100 11-15"},{"p":"test 500 100 16-20"}`,
		"time:2026-01-11T00:00:00.000001Z":          `{"p":"train 1100 100 01-11"},{"p":"test 900 100 12-20"}`,
		"time:2026-01-11T02:00:00+02:00,2027-01-01": `{"p":"train 1000 100 01-10"},{"p":"validation 1000 100 11-20"}`,
	} {
		if card, _ := build("labels.parquet", "", split, 0); parts() != want || card.Request.Split == "" {
			t.Errorf("%s: %s, want %s", split, parts(), want)
		}
	}
	for split, least := range map[string]int{"key:0.8": 70, "key=k:0.8,0.1": 70, "key:0.5,0.25": 38} {
		build("labels.parquet", "", split, 0)
		got := w.rows("SELECT count(DISTINCT split) AS n, count(DISTINCT split) FILTER (split = 'train') AS t, count(DISTINCT k) FILTER (split = 'train') AS keys FROM '$DIR/out.parquet'")
		var n, trains, keys int
		if _, err := fmt.Sscanf(got[0], `{"n":%d,"t":%d,"keys":%d}`, &n, &trains, &keys); err != nil || n != len(parseSplit(t, split).Parts()) || keys < least || keys > least+24 {
			t.Errorf("%s: %s", split, got)
		}
		if torn := w.rows("SELECT k FROM '$DIR/out.parquet' GROUP BY k HAVING count(DISTINCT split) > 1"); len(torn) > 0 {
			t.Errorf("%s: entities in two parts: %v", split, torn)
		}
	}
	build("empty.csv", "", "time:2026-02-01", 0)
	if got := w.rows("SELECT i, split FROM '$DIR/out.parquet'"); strings.Join(got, "") != `{"i":0,"split":"train"}{"i":1,"split":null}{"i":2,"split":"train"}` {
		t.Errorf("without a time: %v", got)
	}
	build("empty.csv", "", "key:0.999999", 0)
	if got := w.rows("SELECT i, split FROM '$DIR/out.parquet'"); strings.Join(got, "") != `{"i":0,"split":null}{"i":1,"split":"train"}{"i":2,"split":"train"}` {
		t.Errorf("without a key: %v", got)
	}
	folder := feature.DatasetRequest{Labels: "labels.parquet", Split: parseSplit(t, "time:2026-01-11"), PartitionBy: []string{"split"}, Out: "parts"}
	if _, err := w.buildWith(folder, Options{}); err != nil {
		t.Error(err)
	} else if got := w.rows("SELECT split, count(*) AS n FROM read_parquet('$DIR/parts/*/*.parquet', hive_partitioning = true) GROUP BY ALL ORDER BY ALL"); strings.Join(got, "") != `{"split":"test","n":1000}{"split":"train","n":1000}` {
		t.Errorf("a folder a part: %v", got)
	}
	for _, c := range []struct {
		request feature.DatasetRequest
		err     string
	}{
		{feature.DatasetRequest{Labels: "taken.csv", Split: parseSplit(t, "key:0.5")}, "have a column split already"},
		{feature.DatasetRequest{Labels: "labels.parquet", Split: parseSplit(t, "key=account_id:0.5")}, "split: the labels have no column account_id to hash"},
	} {
		if _, err := w.buildWith(c.request, Options{}); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v, want %q", err, c.err)
		}
	}
}

// contains reports whether all has each of some.
func contains(all, some []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}
