package feature

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Place is where a user wrote something.
type Place struct {
	File string // relative to the project folder; "built-in/<file>" for the streams that loam brings
	Line int    // from 1; 0 where the file as a whole is meant
}

func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Problem is one thing wrong in a project folder, and what to do about it.
type Problem struct {
	Place  Place
	Field  string // the key, such as views.profile.ttl; empty where the file as a whole is meant
	What   string
	Remedy string
}

func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Place.String())
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field)
		b.WriteString(": ")
	}
	b.WriteString(p.What)
	if p.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(p.Remedy)
	}
	return b.String()
}

// Problems are all problems of a folder, in order of file and line.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

func (ps *Problems) add(at Place, field, what, remedy string) {
	*ps = append(*ps, Problem{Place: at, Field: field, What: what, Remedy: remedy})
}

// err gives the problems sorted, or nil where there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	sort.SliceStable(ps, func(i, j int) bool {
		a, b := ps[i].Place, ps[j].Place
		if a.File != b.File {
			return a.File < b.File
		}
		return a.Line < b.Line
	})
	return ps
}

// nearest gives the name among known that text was probably meant to be, or "".
func nearest(text string, known []string) string {
	best, bestDistance := "", len(text)/3+2
	for _, k := range known {
		if d := editDistance(text, k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// editDistance is Levenshtein's distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next := min(row[j]+1, row[j-1]+1, diagonal+cost)
			diagonal, row[j] = row[j], next
		}
	}
	return row[len(b)]
}

// knownMax bounds how many names a remedy lists.
const knownMax = 40

// didYouMean is a remedy that lists what is known, nearest first where one is near.
func didYouMean(text string, known []string) string {
	sorted := append([]string(nil), known...)
	sort.Strings(sorted)
	sorted = slices.Compact(sorted) // a key of several streams is one
	if n := nearest(text, sorted); n != "" {
		return fmt.Sprintf("did you mean %s?", n)
	}
	if len(sorted) == 0 {
		return "none is declared"
	}
	if len(sorted) > knownMax {
		sorted = append(sorted[:knownMax], "…")
	}
	return "known: " + strings.Join(sorted, ", ")
}
