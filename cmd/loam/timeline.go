package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
)

// timelineCells is the width of a drawn timeline, and lineLetters about that of the lines below it.
const (
	timelineCells = 48
	lineLetters   = 110
)

// drawVersions draws when each version was valid on one scale, and what it changed.
func drawVersions(w io.Writer, s *feature.Stream, versions []versionRow) {
	if len(versions) == 0 {
		return
	}
	first := versions[0].ValidFrom
	last := versions[len(versions)-1].ValidFrom
	if to := versions[len(versions)-1].ValidTo; to != nil {
		last = *to
	}
	span := last.Sub(first)
	cell := func(t time.Time) int {
		if span <= 0 {
			return 0
		}
		return int(float64(t.Sub(first)) / float64(span) * (timelineCells - 6))
	}
	for i, v := range versions {
		from, to := cell(v.ValidFrom), timelineCells
		end, mark := "now", ">"
		if v.ValidTo != nil {
			to = max(cell(*v.ValidTo), from+1)
			end, mark = moment(v.ValidTo.UnixMicro()), ")"
		}
		bar := strings.Repeat(" ", from) + "[" + strings.Repeat("=", max(to-from-2, 0)) + mark
		fmt.Fprintf(w, "  %s  %s to %s\n", pad(bar, timelineCells+1), moment(v.ValidFrom.UnixMicro()), end)
		var before map[string]*string
		if i > 0 {
			before = versions[i-1].texts
			if versions[i-1].ValidTo.Before(v.ValidFrom) {
				fmt.Fprintf(w, "      created again after %s without it\n", elapsed(v.ValidFrom.Sub(*versions[i-1].ValidTo)))
			}
		}
		if who := v.who(); who != "" {
			fmt.Fprintln(w, "      "+who)
		}
		drawFields(w, "", s, v.Changed, before, v.texts)
		if v.DeletedBy != nil && v.DeletedBy.who() != "" && i < len(versions)-1 {
			fmt.Fprintln(w, "      deleted "+v.DeletedBy.who())
		}
	}
	if v := versions[len(versions)-1]; v.ValidTo != nil {
		line := "deleted at " + moment(v.ValidTo.UnixMicro())
		if v.DeletedBy != nil {
			line += " " + v.DeletedBy.who()
		}
		fmt.Fprintln(w, "  "+strings.TrimRight(line, " "))
	}
}

// drawChanges lists changes with what became of each.
func drawChanges(w io.Writer, s *feature.Stream, changes []changeRow) {
	for _, c := range changes {
		fmt.Fprintf(w, "  %s  %s  %s\n", pad(moment(c.EventTime.UnixMicro()), len("2006-01-02 15:04:05.000000")), pad(string(c.Mark), len(supersededMark)), shortPosition(c.Position))
		switch {
		case c.Mark == supersededMark:
			fmt.Fprintf(w, "      by %s at the same time\n", shortPosition(c.SettledBy))
		case c.Mark == combinedMark:
			fmt.Fprintf(w, "      with %s at the same time\n", shortPosition(c.SettledBy))
		case c.Mark == noOpMark && c.Op == feature.OpDelete:
			fmt.Fprintln(w, "      a delete of what did not exist")
		}
		if c.LateAfter != "" {
			fmt.Fprintf(w, "      late: recorded after %s of %s\n", shortPosition(c.LateAfter), moment(c.lateTime))
		}
		if who := c.who(); who != "" {
			fmt.Fprintln(w, "      "+who)
		}
		drawFields(w, "", s, c.Changed, c.before, c.after)
		drawFields(w, "not tracked: ", s, c.Untracked, c.before, c.after)
	}
}

// drawFields writes how the named columns changed. Without a state before, in which the entity did not exist, it writes
// what the tracked ones are.
func drawFields(w io.Writer, title string, s *feature.Stream, changed []string, before, after map[string]*string) {
	var parts []string
	for _, c := range s.Columns {
		switch {
		case before == nil && title == "" && s.Tracked(c.Name) && after[c.Name] != nil:
			parts = append(parts, c.Name+" "+short(after[c.Name]))
		case before != nil && slices.Contains(changed, c.Name):
			parts = append(parts, changeTexts(c, before[c.Name], after[c.Name])...)
		}
	}
	for i, line := range wrap(parts, lineLetters) {
		if i == 0 {
			line = title + line
		}
		fmt.Fprintln(w, "      "+line)
	}
}

// who says who made a change and why, "" where the envelope didn't.
func (c cause) who() string {
	actor, reason := plain(c.Actor), plain(c.Reason)
	switch {
	case actor != "" && reason != "":
		return "by " + actor + ": " + reason
	case actor != "":
		return "by " + actor
	case reason != "":
		return "for the reason: " + reason
	default:
		return ""
	}
}

// changeTexts tell how a column's value changed; of a JSON object, how its members did.
func changeTexts(c feature.Column, was, is *string) []string {
	var before, after map[string]json.RawMessage
	if c.Type.Kind != feature.JSON || c.Type.List || was == nil || is == nil ||
		json.Unmarshal([]byte(*was), &before) != nil || json.Unmarshal([]byte(*is), &after) != nil {
		return []string{c.Name + " " + short(was) + " -> " + short(is)}
	}
	text := func(m map[string]json.RawMessage, name string) *string {
		if v, ok := m[name]; ok {
			s := string(v)
			return &s
		}
		return nil
	}
	names := maps.Clone(before)
	maps.Copy(names, after)
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if x, y := text(before, name), text(after, name); !sameText(x, y) {
			texts = append(texts, c.Name+"."+name+" "+short(x)+" -> "+short(y))
		}
	}
	return texts
}

func pad(text string, n int) string {
	return text + strings.Repeat(" ", max(n-len(text), 0))
}

// short is a value as it is drawn: not too long.
func short(text *string) string {
	if text == nil {
		return "null"
	}
	runes := []rune(plain(*text))
	if len(runes) > 40 {
		return string(runes[:39]) + "…"
	}
	return string(runes)
}

// wrap joins parts by commas into lines of about so many letters.
func wrap(parts []string, width int) []string {
	var lines []string
	line := ""
	for i, p := range parts {
		if i < len(parts)-1 {
			p += ","
		}
		if line != "" && len(line)+1+len(p) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += p
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
