package main

import (
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
