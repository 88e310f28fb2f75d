package verify

import (
	"strings"
	"testing"
	"time"
)

// versions reads versions written as "A[1,2) B[3,)": a state, and seconds since the epoch.
func versions(t *testing.T, text string) []interval {
	t.Helper()
	at := func(s string) moment {
		if s == "" {
			return moment{}
		}
		d, err := time.ParseDuration(s + "s")
		if err != nil {
			t.Fatal(err)
		}
		return moment{time.Unix(0, 0).Add(d), true}
	}
	var list []interval
	for _, word := range strings.Fields(text) {
		from, to, _ := strings.Cut(word[2:len(word)-1], ",")
		list = append(list, interval{state: int64(word[0]), from: at(from), to: at(to)})
	}
	return list
}

func TestTimelines(t *testing.T) {
	for name, c := range map[string]struct{ want, have, drawing string }{
		"a value, and a version that is missing": {"X[1,2) Y[2,4) X[5,)", "X[1,2) Z[2,4)", `
      1    2    3    4
want  A----B----     A----
have  A----C----
    1 = 1970-01-01T00:00:01Z
    2 = 1970-01-01T00:00:02Z
    3 = 1970-01-01T00:00:04Z
    4 = 1970-01-01T00:00:05Z
`},
		"an end": {"X[1,2) Y[2,)", "X[1,2.5) Y[2,)", `
      1    2    3
want  A----B---------
have  A----#####-----
    1 = 1970-01-01T00:00:01Z
    2 = 1970-01-01T00:00:02Z
    3 = 1970-01-01T00:00:02.5Z
`},
		"far along": {"A[1,2) B[2,3) A[3,4) B[4,5) A[5,6) B[6,7) A[7,8) B[8,9) A[9,10) B[10,11) A[11,12) B[12,13) A[13,14) B[14,15) A[15,16) B[16,)",
			"A[1,2) B[2,3) A[3,4) B[4,5) A[5,6) A[6,7) A[7,8) B[8,9) A[9,10) B[10,11) A[11,12) B[12,13) A[13,14) B[14,15) A[15,16) B[16,)", `
      1    2    3    4    5    6    7    8    9    10   11   12
want  A----B----A----B----A----B----A----B----A----B----A----B----
have  A----B----A----A----A----B----A----B----A----B----A----B----
    1 = 1970-01-01T00:00:03Z
    2 = 1970-01-01T00:00:04Z
    3 = 1970-01-01T00:00:05Z
    4 = 1970-01-01T00:00:06Z
    5 = 1970-01-01T00:00:07Z
    6 = 1970-01-01T00:00:08Z
    7 = 1970-01-01T00:00:09Z
    8 = 1970-01-01T00:00:10Z
    9 = 1970-01-01T00:00:11Z
   10 = 1970-01-01T00:00:12Z
   11 = 1970-01-01T00:00:13Z
   12 = 1970-01-01T00:00:14Z
      (4 other times are not drawn)
`},
		"nothing": {"", "", "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := timeline(versions(t, c.want), versions(t, c.have)); got != c.drawing[1:] {
				t.Errorf("drawn\n%swant\n%s", got, c.drawing[1:])
			}
		})
	}
}
