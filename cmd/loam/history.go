package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

func (a *app) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history STREAM KEY...",
		Short: "Draw the versions of one entity on a timeline",
		Long: `history shows every version of one entity: when it was valid, and what each changed. A stream whose key has several columns
takes as many values, in the key's order.`,
		Example: "  loam history contact c1\n  loam history contact c1 --json",
		Args:    arguments(2, -1, "name a stream and a key, such as contact c1"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.history(c.Context(), args[0], args[1:])
		},
	}
}

// versionRow is a version of an entity.
type versionRow struct {
	ValidFrom  time.Time      `json:"valid_from"`
	ValidTo    *time.Time     `json:"valid_to"`
	Values     map[string]any `json:"values"`
	Changed    []string       `json:"changed"` // tracked columns that differ from the version before
	EventID    string         `json:"event_id"`
	Position   string         `json:"position"`
	IngestedAt time.Time      `json:"ingested_at"`
	texts      map[string]*string
}

func (a *app) history(ctx context.Context, name string, key []string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	s, err := streamOf(p, name)
	if err != nil {
		return err
	}
	if s.Kind != feature.StateStream {
		return fmt.Errorf("%s is an event stream, which has no history: its events are in %s", name, l.TableName(name+"_log"))
	}
	if len(key) != len(s.Key) {
		return fmt.Errorf("the key of %s is %s: give %s", name, strings.Join(s.Key, ", "), count(int64(len(s.Key)), "value"))
	}
	reading, err := l.Read(ctx, s)
	if err != nil {
		return err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := reading.HistoryView(ctx, db, "history", nil); err != nil {
		return err
	}
	versions, err := readVersions(ctx, db, s, key)
	if err != nil {
		return err
	}
	if len(versions) == 0 {
		return fmt.Errorf("%s has no %s %s", l.TableName(name+"_history"), name, strings.Join(key, ", "))
	}
	return a.result(versions, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s: %s\n", name, strings.Join(key, ", "), count(int64(len(versions)), "version"))
		drawVersions(w, s, versions)
	})
}

func readVersions(ctx context.Context, db *sql.DB, s *feature.Stream, key []string) ([]versionRow, error) {
	var names []string
	for _, c := range s.Columns {
		if !slices.Contains(s.Key, c.Name) {
			names = append(names, c.Name)
		}
	}
	var values, where []sql.Fragment
	for _, n := range names {
		values = append(values, sql.Ident(n)+"::VARCHAR")
	}
	args := make([]any, len(key))
	for i, k := range s.Key {
		c, _ := s.Column(k)
		where = append(where, sql.Ident(k)+sql.Fragment(fmt.Sprintf(" = TRY_CAST($%d AS %s)", i+1, c.Type.SQL())))
		args[i] = key[i]
	}
	values = append(values, "epoch_us(valid_from)", "epoch_us(valid_to)", "event_id", "topic", `"partition"`, `"offset"`, "epoch_us(ingested_at)")
	rows, err := db.Query(ctx, sql.Render("SELECT {values} FROM history WHERE {where} ORDER BY valid_from",
		sql.Args{"values": sql.Join(", ", values), "where": sql.Join(" AND ", where)}), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var versions []versionRow
	for rows.Next() {
		v := versionRow{Values: map[string]any{}, Changed: []string{}, texts: map[string]*string{}}
		texts := make([]*string, len(names))
		dst := make([]any, 0, len(names)+7)
		for i := range texts {
			dst = append(dst, &texts[i])
		}
		var from, ingested int64
		var to *int64
		var position feature.Position
		dst = append(dst, &from, &to, &v.EventID, &position.Topic, &position.Partition, &position.Offset, &ingested)
		if err := rows.Scan(dst...); err != nil {
			return nil, fmt.Errorf("read the history of %s: %w", s.Name, err)
		}
		v.ValidFrom, v.IngestedAt, v.Position = time.UnixMicro(from).UTC(), time.UnixMicro(ingested).UTC(), position.String()
		if to != nil {
			end := time.UnixMicro(*to).UTC()
			v.ValidTo = &end
		}
		for i, n := range names {
			v.texts[n] = texts[i]
			v.Values[n] = nil
			if texts[i] != nil {
				v.Values[n] = *texts[i]
			}
		}
		if n := len(versions); n > 0 {
			for _, c := range names {
				if s.Tracked(c) && !sameText(versions[n-1].texts[c], v.texts[c]) {
					v.Changed = append(v.Changed, c)
				}
			}
		}
		versions = append(versions, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", s.Name, err)
	}
	return versions, nil
}

func sameText(a, b *string) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}

// timelineCells is the width of a drawn timeline.
const timelineCells = 48

// drawVersions draws when each version was valid on one scale, and what it changed.
func drawVersions(w io.Writer, s *feature.Stream, versions []versionRow) {
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
		if i > 0 && versions[i-1].ValidTo.Before(v.ValidFrom) {
			fmt.Fprintf(w, "      created again after %s without it\n", elapsed(v.ValidFrom.Sub(*versions[i-1].ValidTo)))
		}
		var parts []string
		if i == 0 {
			for _, c := range s.Columns {
				if text := v.texts[c.Name]; text != nil && !slices.Contains(s.Key, c.Name) && s.Tracked(c.Name) {
					parts = append(parts, c.Name+" "+short(text))
				}
			}
		}
		for _, c := range v.Changed {
			column, _ := s.Column(c)
			parts = append(parts, changeTexts(column, versions[i-1].texts[c], v.texts[c])...)
		}
		for _, line := range wrap(parts, 110) {
			fmt.Fprintln(w, "      "+line)
		}
	}
	if to := versions[len(versions)-1].ValidTo; to != nil {
		fmt.Fprintf(w, "  deleted at %s\n", moment(to.UnixMicro()))
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
