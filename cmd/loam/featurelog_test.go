package main

import (
	"strings"
	"testing"

	"github.com/loamdata/loam/verify"
)

// Each row is said to be what it was: recomputed, not settled, or left out and why.
func TestPrintServed(t *testing.T) {
	for _, c := range []struct {
		what   string
		report verify.ServedReport
		want   string
	}{
		{"all", verify.ServedReport{View: "v", Rows: 10, Values: 30},
			"v: 30 values in 10 rows recomputed, 0 differ (0 %), 0 rows not settled\n"},
		{"windows whose base isn't known", verify.ServedReport{View: "v", Rows: 6, OtherBase: 6},
			"v: 0 values in 0 rows recomputed, 0 differ (0 %), 0 rows not settled\n" +
				"  6 rows of windows were left out: they rest on other rows of files and redrives than the log has now\n"},
		{"some of each", verify.ServedReport{View: "v", Rows: 10, Values: 12, Differing: 3, Share: 0.25, NotSettled: 1, Unmarked: 2, OtherBase: 5, Other: 7, AsOf: 8},
			"v: 12 values in 4 rows recomputed, 3 differ (25 %), 1 row not settled\n" +
				"  7 rows were served by another definition of the view, and were left out\n" +
				"  8 rows were served as of an instant, and were left out: `loam verify --online` compares what is served so\n" +
				"  of 2 rows it isn't known how far Redis was written, so only what they rest on was looked at\n" +
				"  5 rows of windows were left out: they rest on other rows of files and redrives than the log has now\n"},
		{"nothing", verify.ServedReport{View: "v", Skipped: "for a reason"}, "v: left out, for a reason\n"},
	} {
		var b strings.Builder
		if printServed(&b, &c.report); b.String() != c.want {
			t.Errorf("%s:\n%swant\n%s", c.what, b.String(), c.want)
		}
	}
}
