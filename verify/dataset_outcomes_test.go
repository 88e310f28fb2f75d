package verify

import (
	"context"
	"encoding/json"
	"fmt"

	"math/rand/v2"
	"os"
	"path/filepath"

	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// Outcomes over states, patches and events.
func datasetOutcomes() []feature.OutcomeLabel {
	return []feature.OutcomeLabel{
		{Name: "rose", Stream: "thing", When: "n > 2 AND yes", Within: 15 * time.Minute},
		{Name: "wrote", Stream: "patch", When: "n > 1 AND s <> 'a'", Within: 25 * time.Minute},
		{Name: "met", Stream: "fact", When: "x > 900", Within: 9 * time.Minute},
	}
}

func parsedSplit(t *testing.T, text string) feature.Split {
	t.Helper()
	s, err := feature.ParseSplit(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Outcomes, samples and splits of random histories are what the slow path makes of logs and labels.
func TestDatasetOutcomes(t *testing.T) {
	r := random(t)
	w := newDatasetWorld(t)
	w.step = 60 // labels and horizons meet events, and events each other
	w.fill(r)
	early := time.UnixMicro(19e14) // when patches and facts weren't known
	all := datasetOutcomes()
	for _, c := range []struct {
		request feature.DatasetRequest
		gone    bool // the labels
	}{
		{request: feature.DatasetRequest{Outcomes: all, Split: parsedSplit(t, "time:2026-01-01T00:20:00Z,2026-01-01T00:30:00Z")}},
		{request: feature.DatasetRequest{Outcomes: all, Sample: feature.Sample{Share: 0.7}, Split: parsedSplit(t, "key:0.4,0.3"), Seed: 3}},
		{request: feature.DatasetRequest{Outcomes: all[:1], KnownAt: &early, Split: parsedSplit(t, "key=part:0.5")}},
		{request: feature.DatasetRequest{Outcomes: all[1:], Sample: feature.Sample{Rows: 60}, Split: parsedSplit(t, "key=when:0.5"), Seed: -1}},
		{request: feature.DatasetRequest{Sample: feature.Sample{Rows: 1000}}},
		{request: feature.DatasetRequest{Outcomes: all, Sample: feature.Sample{Share: 0.8}}, gone: true},
	} {
		c.request.AsOf = feature.ServedClock
		card := w.build(c.request)
		if c.gone {
			if err := os.Remove(filepath.Join(w.dir, "labels.csv")); err != nil {
				t.Fatal(err)
			}
		}
		report := w.verify(DatasetOptions{All: true})
		if !report.OK() {
			t.Fatalf("%+v: %d differences, the first %s", c.request, report.Total, shown(report))
		}
		columns := len(card.Features) + len(c.request.Outcomes)
		if c.request.Split.Given() {
			columns++
		}
		if want := card.Rows * int64(columns); report.Checked != card.Rows || report.Cells != want || report.Skipped != nil || (report.Notes != nil) != c.gone {
			t.Errorf("%+v: %+v, want %d rows and %d values", c.request, report, card.Rows, want)
		}
		for _, o := range card.Labels.Outcomes {
			if o.True == 0 || o.True == card.Rows || o.LeftOut == 0 {
				t.Errorf("%+v shows little of %d rows", o, card.Rows)
			}
		}
	}
}

// Of a key that can't be the stream's nothing came true, and of one that is null nothing is known.
func TestDatasetOutcomesOfOtherKeys(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(random(t))
	w.put("labels.csv", "id,part,when,y\na,x,2026-01-01T00:05:00Z,1\na,,2026-01-01T00:05:00Z,2\n")
	card := w.build(feature.DatasetRequest{AsOf: feature.ServedClock, Outcomes: datasetOutcomes()[:1]})
	if card.Rows != 2 || card.Labels.Outcomes[0].True != 0 {
		t.Errorf("%d rows, %+v", card.Rows, card.Labels.Outcomes)
	}
	if report := w.verify(DatasetOptions{All: true}); !report.OK() || report.Checked != 2 {
		t.Errorf("found %s", shown(report))
	}
	w.alter("SELECT * REPLACE (CASE file_row_number WHEN 1 THEN false END AS rose) FROM {rows}")
	if report := w.verify(DatasetOptions{All: true}); report.Total != 2 || report.First[0].Want != "false" || report.First[1].Want != "null" {
		t.Errorf("found %s", shown(report))
	}
}

// edit changes the card.
func (w *datasetWorld) edit(change func(card map[string]any)) {
	w.t.Helper()
	path := filepath.Join(w.dir, "out.card.json")
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	var card map[string]any
	if err := decoder.Decode(&card); err != nil {
		w.t.Fatal(err)
	}
	change(card)
	if text, err = json.Marshal(card); err != nil {
		w.t.Fatal(err)
	}
	w.put("out.card.json", string(text))
}

// rehash gives the card the hash of the rows that are there.
func (w *datasetWorld) rehash() {
	w.t.Helper()
	db, err := sql.Open(context.Background(), sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	w.edit(func(card map[string]any) {
		c := &datasetCheck{db: db, report: &DatasetReport{}, options: DatasetOptions{File: filepath.Join(w.dir, "out.parquet")}}
		c.card.Rows = -1
		for _, name := range card["unhashed"].([]any) {
			c.card.Unhashed = append(c.card.Unhashed, name.(string))
		}
		if err := c.size(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		if card["rows_hash"], err = c.rowsHash(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	})
}

// An outcome or a part of the split that was altered in one row is named, though the card's hash and counts were altered with it; so is a
// label that could not be known yet, or that the sample leaves, and a count of the card that is another.
func TestDatasetOutcomesAltered(t *testing.T) {
	w := newDatasetWorld(t)
	w.fill(rand.New(rand.NewPCG(11, 3)))
	request := feature.DatasetRequest{
		AsOf: feature.ServedClock, Outcomes: datasetOutcomes(), Sample: feature.Sample{Share: 0.9}, Split: parsedSplit(t, "key=id:0.5"), Seed: 5,
	}
	made := w.build(request)
	files := map[string]string{}
	for _, name := range []string{"out.parquet", "out.card.json", "labels.csv"} {
		text, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	labels := func(card map[string]any) map[string]any { return card["labels"].(map[string]any) }
	add := func(of map[string]any, key string, n int) {
		was, err := of[key].(json.Number).Int64()
		if err != nil {
			t.Fatal(err)
		}
		of[key] = was + int64(n)
	}
	const row = "CASE WHEN file_row_number = 17 THEN "
	type found struct{ column, text string }
	for name, c := range map[string]struct {
		alter  string // columns put in the place of others
		edit   func(card map[string]any)
		gone   bool // the labels
		want   []found
		values string // want and got of the first
		keys   string
	}{
		"an outcome of states": {
			alter: row + "NOT rose ELSE rose END AS rose", want: []found{{"rose", ""}}, keys: "id,part",
			edit: func(card map[string]any) {
				n := 1
				if w.value("rose") == "true" {
					n = -1
				}
				add(labels(card)["outcomes"].([]any)[0].(map[string]any), "true", n)
			},
		},
		"an outcome of patches": {alter: row + "NOT wrote ELSE wrote END AS wrote", want: []found{{"wrote", ""}, {"wrote", "the card's count of labels for which it came true"}}, keys: "id"},
		"an outcome of events":  {alter: row + "NOT met ELSE met END AS met", want: []found{{"met", ""}, {"met", "the card's count of labels for which it came true"}}, keys: "id"},
		"an outcome that is null": {
			alter: row + "NULL ELSE met END AS met", want: []found{{"met", ""}}, keys: "id",
			edit: func(card map[string]any) {
				if w.value("met") == "true" {
					add(labels(card)["outcomes"].([]any)[2].(map[string]any), "true", -1)
				}
			},
		},
		"a part": {
			alter: row + "CASE split WHEN 'test' THEN 'train' ELSE 'test' END ELSE split END AS split", want: []found{{"split", ""}}, keys: "id",
			edit: func(card map[string]any) {
				parts, to := labels(card)["parts"].([]any), 1
				if w.value("split") == "test" {
					to = -1
				}
				add(parts[0].(map[string]any), "rows", -to)
				add(parts[1].(map[string]any), "rows", to)
			},
		},
		"counts of the parts": {
			edit: func(card map[string]any) { add(labels(card)["parts"].([]any)[1].(map[string]any), "rows", 2) },
			want: []found{{"split", `the card's count of labels in part "test"`}},
		},
		"labels left out": {
			edit: func(card map[string]any) { add(labels(card), "left_out", 1); add(labels(card), "unsampled", -1) },
			want: []found{{"", "the card's count of labels left out"}, {"", "the card's count of labels that the sample leaves"}},
		},
		"labels read": {
			edit: func(card map[string]any) { add(labels(card), "read", 1) },
			want: []found{{"", "the card's counts: rows are the labels read, less those left out and unsampled"}, {"", "the card's count of labels read"}},
		},
		"labels left out for an outcome": {
			edit: func(card map[string]any) { add(labels(card)["outcomes"].([]any)[1].(map[string]any), "left_out", 3) },
			want: []found{{"wrote", "the card's count of labels left out for it"}},
		},
		"a sample by another seed": {
			edit: func(card map[string]any) { card["request"].(map[string]any)["sample"] = "0.5" }, gone: true, want: []found{{"", "the sample leaves it: its hash"}},
		},
		"a stream that was complete later": {
			edit: func(card map[string]any) {
				labels(card)["outcomes"].([]any)[2].(map[string]any)["complete_until"] = "2026-01-01T03:00:00Z"
			},
			want: []found{{"met", "up to when stream fact was complete is later than the log shows"}}, gone: true,
		},
		"a stream that was complete before": {
			edit: func(card map[string]any) {
				labels(card)["outcomes"].([]any)[0].(map[string]any)["complete_until"] = "2026-01-01T00:10:00Z"
			},
			want: []found{{"rose", "its horizon ends when the stream was not complete, so it is to be left out"}}, gone: true,
		},
	} {
		for file, text := range files {
			w.put(file, text)
		}
		if c.edit != nil {
			w.edit(c.edit)
		}
		if c.alter != "" {
			w.alter("SELECT * REPLACE (" + c.alter + ") FROM {rows}")
			w.rehash()
		}
		if c.gone {
			if err := os.Remove(filepath.Join(w.dir, "labels.csv")); err != nil {
				t.Fatal(err)
			}
		}
		report := w.verify(DatasetOptions{All: true})
		for i, want := range c.want {
			if i >= len(report.First) || report.First[i].Column != want.column || report.First[i].Text != want.text || report.First[i].Want == report.First[i].Got {
				t.Fatalf("%s: found %s, want %v", name, shown(report), c.want)
			}
		}
		if !c.gone && report.Total != int64(len(c.want)) {
			t.Errorf("%s: found %s, want %v", name, shown(report), c.want)
		}
		if first := report.First[0]; c.alter != "" && (first.Row == nil || *first.Row != 17 || strings.Join(first.Keys, ",") != c.keys) {
			t.Errorf("%s: found %s, want row 17 by %s", name, shown(report), c.keys)
		}
	}
	if made.Rows < 18 || made.Labels.Unsampled == 0 {
		t.Errorf("%d rows, %+v", made.Rows, made.Labels)
	}
}

// value is that of row 17 of the training set.
func (w *datasetWorld) value(column string) string {
	w.t.Helper()
	db, err := sql.Open(context.Background(), sql.Options{Files: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	var text string
	err = db.QueryRow(context.Background(), fmt.Sprintf("SELECT %s::VARCHAR FROM read_parquet('%s', file_row_number = true) WHERE file_row_number = 17",
		column, filepath.Join(w.dir, "out.parquet")), nil, &text)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// The number that decides on samples and parts is DuckDB's MD5 of DuckDB's JSON, whatever is in the texts.
func TestDatasetShare(t *testing.T) {
	db, err := sql.Open(context.Background(), sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c := &datasetCheck{}
	c.card.Request.Seed = -7
	texts := []*string{nil}
	for ch := range 0x500 {
		text := "a" + string(rune(ch)) + "b"
		texts = append(texts, &text)
	}
	for _, text := range []string{"", "</script>&amp;", "\u2028\u2029", "\\u0041", "é€😀\u007f", strings.Repeat("x", 300)} {
		texts = append(texts, &text)
	}
	for _, text := range texts {
		if text != nil && strings.Contains(*text, "\x00") {
			continue // no text of DuckDB's holds it
		}
		var want float64
		err := db.QueryRow(context.Background(), "SELECT (md5_number_lower(to_json(['sample', '-7', $1::VARCHAR, 'k'])::VARCHAR) >> 11) / 9007199254740992.0", []any{textOrNil(text)}, &want)
		if err != nil {
			t.Fatal(err)
		}
		key := "k"
		if got := c.share("sample", []*string{text, &key}); got != want {
			t.Errorf("%q: %v, want %v", orNull(text), got, want)
		}
	}
}

func textOrNil(text *string) any {
	if text == nil {
		return nil
	}
	return *text
}
