package scd

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the goldens under testdata with what the code gives")

// A timeline case draws event time from left to right, a column a microsecond, and changes in order of arrival, a line
// each. A line starts with the change's sequence, or . for none; at its time stands the entity's state as one letter, x
// for a delete, or a patch in parentheses. The line = is the history: a version's letter at its start, dashes until its
// end, nothing where the entity does not exist; a version that reaches the ruler's end is open. A second letter, lower
// case, is an untracked column.
type timelineCase struct {
	name        string
	changes     []Change
	width       int
	history     string
	historyLine int // of the file, from 0
}

const timelineIndent = 4

func parseTimelines(t *testing.T, text []byte) []timelineCase {
	t.Helper()
	var cases []timelineCase
	for number, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "case "):
			cases = append(cases, timelineCase{name: line[5:]})
		default:
			c := &cases[len(cases)-1]
			body := ""
			if len(line) > timelineIndent {
				body = line[timelineIndent:]
			}
			switch key := strings.TrimSpace(line[:min(len(line), timelineIndent)]); key {
			case "":
				c.width = len(body)
			case "=":
				c.history, c.historyLine = strings.TrimRight(body, " "), number
			default:
				c.changes = append(c.changes, parseChange(t, key, body, len(c.changes)))
			}
		}
	}
	return cases
}

func parseChange(t *testing.T, sequence, body string, offset int) Change {
	t.Helper()
	state := strings.TrimSpace(body)
	c := Change{Order: feature.Order{EventTime: int64(len(body) - len(strings.TrimLeft(body, " "))), Live: true, Offset: int64(offset)}}
	if sequence != "." {
		c.Order.HasSequence = true
		if _, err := fmt.Sscan(sequence, &c.Order.Sequence); err != nil {
			t.Fatalf("sequence %q: %v", sequence, err)
		}
	}
	switch {
	case state == "x":
		c.Delete = true
	case strings.HasPrefix(state, "("):
		// (A) carries the tracked column, (a) the other one.
		letter := strings.Trim(state, "()")
		if letter == strings.ToUpper(letter) {
			c.Row, c.Present = letterRow(letter, ""), []bool{true, false}
		} else {
			c.Row, c.Present = letterRow("", letter), []bool{false, true}
		}
	default:
		c.Row = letterRow(state[:1], state[1:])
	}
	return c
}

// letterRow is a row of one tracked and one other column; "" is null.
func letterRow(tracked, other string) Row {
	part := func(s string) []byte {
		if s == "" {
			return AppendNull(nil)
		}
		return AppendValue(nil, []byte(s))
	}
	_, row := AppendRow(nil, part(tracked), part(other))
	return row
}

func draw(versions []Version, width int) string {
	line := []byte(strings.Repeat(" ", width))
	for _, v := range versions {
		var letters string
		for _, value := range v.Row.Values {
			if value == nil {
				continue
			}
			letters += string(value)
		}
		if letters == "" {
			letters = "?" // every column is null
		}
		for i := v.From; i < min(v.To, int64(width)); i++ {
			line[i] = '-'
		}
		copy(line[v.From:], letters)
	}
	return strings.TrimRight(string(line), " ")
}

// TestTimelines holds every case, whatever the order and batches its changes arrive in.
func TestTimelines(t *testing.T) {
	const file = "testdata/timelines.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, c := range parseTimelines(t, text) {
		if *rewrite {
			s := &store{}
			s.apply(c.changes)
			lines[c.historyLine] = strings.TrimRight("=   "+draw(s.versions, c.width), " ")
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(len(c.changes))))
			for range 50 {
				s := &store{}
				order := r.Perm(len(c.changes))
				for len(order) > 0 {
					n := 1 + r.IntN(len(order))
					var batch []Change
					for _, i := range order[:n] {
						batch = append(batch, c.changes[i])
					}
					order = order[n:]
					s.apply(batch)
				}
				if got := draw(s.versions, c.width); got != c.history {
					t.Fatalf("history\n  got  %s\n  want %s", got, c.history)
				}
			}
		})
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
