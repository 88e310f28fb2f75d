package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/loamdata/loam/pit"
)

// A card is drawn in 80 columns, however long its names are: bars for nulls, strips for coverage.
func TestPrintFeatures(t *testing.T) {
	at := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	half, none, all := 0.5, 0.0, 1.0
	strip := func(shares ...*float64) []*float64 {
		for len(shares) < 20 {
			shares = append(shares, &all)
		}
		return shares
	}
	labels := make([]int64, 20)
	labels[1], labels[2] = 10, 5
	c := &pit.Card{
		Coverage: &pit.CardCoverage{From: at, To: at.AddDate(0, 1, 0), Labels: labels},
		Features: []pit.CardFeature{
			{Column: "profile__mkt_status", Type: "string", NullRate: 0.5, Coverage: strip(nil, &none, &half)},
			{Column: "a_view_with_a_long_name__and_a_feature_with_one", Type: "list<decimal(38,10)>", NullRate: 0.0001, Coverage: strip()},
			{Column: "p__x", Type: "bool", NullRate: 1, Coverage: strip()},
		},
	}
	var b strings.Builder
	printFeatures(&b, c)
	want := `  feature                   type             null           26-01-02    26-02-02
  profile__mkt_status       string         50.0 % ████       ·▅█████████████████
  a_view_with_a_long_name…  list<decimal… < 0.1 % ▏         ████████████████████
  p__x                      bool          100.0 % ████████  ████████████████████
  labels                                                     █▅
`
	if b.String() != want {
		t.Errorf("drawn\n%s\nwant\n%s", b.String(), want)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("a line has %d columns: %s", n, line)
		}
	}
	b.Reset()
	printFeatures(&b, &pit.Card{Features: []pit.CardFeature{{Column: "p__x", Type: "bool", NullRate: 1, Coverage: []*float64{}}}})
	if want := "  feature  type    null\n  p__x     bool 100.0 % ████████\n"; b.String() != want {
		t.Errorf("without a label that has a time:\n%s\nwant\n%s", b.String(), want)
	}
	c.Coverage.To = at.Add(time.Hour)
	b.Reset()
	printFeatures(&b, c)
	if !strings.Contains(b.String(), "00:00:00    01:00:00\n") {
		t.Errorf("a day's labels:\n%s", b.String())
	}
}

// What was asked beyond features, which labels were taken, the parts of the split, and values that are null for a reason are
// drawn.
func TestPrintCard(t *testing.T) {
	at := time.Date(2026, 1, 2, 0, 0, 0, 500_000_000, time.UTC)
	var b strings.Builder
	printCard(&b, &pit.Card{
		Name: "churn", Clock: "served: so", Rows: 1500, Out: "churn.parquet",
		Request: pit.CardRequest{KnownAt: &at, AtLabelTime: "exclude", Sample: "0.5", Split: "key:0.8", Seed: 7},
		Labels: pit.CardLabels{
			Path: "labels.csv", SHA256: "0123456789abcdef", Read: 4000, LeftOut: 1000, Unsampled: 1500, Rows: 1500,
			Outcomes: []pit.CardOutcome{{Column: "won", Within: "30d", LeftOut: 1000, True: 12}},
			Parts:    []pit.CardPart{{Part: "train", Rows: 1200}, {Part: "test", Rows: 299}, {Rows: 1}},
		},
		Features: []pit.CardFeature{{Column: "a__sum_7d", Type: "int64", Overflows: 1}, {Column: "a__kinds_7d", Type: "int64", Uncounted: 2000}, {Column: "p__x", Type: "bool", Errors: 3}},
	})
	want := `churn: 1,500 rows, 3 features
  clock      served: so
  known at   2026-01-02T00:00:00.5Z: nothing that loam recorded later
  bound      what happened at the very time of a label is left out
  audit      no label sees a feature
  labels     labels.csv, sha256 0123456789ab
             4,000 read, 1,500 taken, 1,000 left out as immature, 1,500 not in the sample
  outcome    won came true for 12 labels; 1,000 labels left out, whose 30d had not ended
  sample     0.5 by seed 7
  split      key:0.8 by seed 7
             train 1,200               80.0 % ██████
             test 299                  19.9 % ██
             none 1                   < 0.1 % ▏
  clocks     could differ for 0.0 % of the labels
  feature      type     null
  a__sum_7d    int64   0.0 %
  a__kinds_7d  int64   0.0 %
  p__x         bool    0.0 %
    null for 1 label of a__sum_7d: the sum overflows
    null for 2,000 labels of a__kinds_7d: there are more than 10,000 distinct values
    null for 3 labels of p__x: the expression fails
  written to churn.parquet in 0s
`
	if b.String() != want {
		t.Errorf("drawn\n%s\nwant\n%s", b.String(), want)
	}
}

// A training set that was moved with its card is found by both of its endings.
func TestTrainingSetBesideItsCard(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"x.csv.gz", "y.parquet"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for was, card := range map[string]string{"/gone/was.csv.gz": "x.card.json", "/gone/was.parquet": "y.card.json"} {
		if path, ok := trainingSet(filepath.Join(dir, card), &pit.Card{Out: was}); !ok {
			t.Errorf("%s: looked for %s", card, path)
		}
	}
}
