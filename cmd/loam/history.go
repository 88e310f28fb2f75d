package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) historyCommand() *cobra.Command {
	var changes, whole bool
	c := &cobra.Command{
		Use:   "history STREAM KEY...",
		Short: "Draw the versions of one entity on a timeline",
		Long: `history shows every version of one entity: when it was valid, what it changed and, where the envelopes say so, who opened or
deleted it and why. A stream whose key has several columns takes as many values, in the key's order.

With --changes it lists every change of the entity in the one order, each with what became of it: it opened a version, was a
no-op, was superseded by another of the same event time (or, of a patch, combined with it), or deleted the entity. A late
change was recorded after one with a later event time.

With --report, which takes no key, it looks at the whole stream for what nothing refuses: ties that only the position settles,
columns that make most versions, wrong clocks, patches taken for full states, and changes that say nothing or come late. It
names what is beyond its bound, with examples of keys and the remedy, and never shows values.`,
		Example: "  loam history contact c1\n  loam history contact c1 --json\n  loam history contact c1 --changes\n  loam history contact --report",
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case !whole:
				return arguments(2, -1, "name a stream and a key, such as contact c1")(c, args)
			case changes:
				return misused("--report and --changes exclude each other: give one")
			case len(args) > 1:
				return misused("--report is of a whole stream: leave the key out")
			}
			return arguments(1, 1, "name a stream, such as contact")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case whole:
				return a.report(c.Context(), args[0])
			case changes:
				return a.changes(c.Context(), args[0], args[1:])
			}
			return a.history(c.Context(), args[0], args[1:])
		},
	}
	c.Flags().BoolVar(&changes, "changes", false, "list every change, no-ops, deletes and late ones included")
	c.Flags().BoolVar(&whole, "report", false, "look at the whole stream for errors that nothing refuses")
	return c
}

// cause is a change as the reason of something: what it was, where it stands, who made it and why.
type cause struct {
	EventID   string `json:"event_id"`
	EventType string `json:"event_type,omitempty"`
	Source    string `json:"source,omitempty"`
	Actor     string `json:"actor,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Position  string `json:"position"`
}

// versionRow is a version of an entity.
type versionRow struct {
	ValidFrom  time.Time      `json:"valid_from"`
	ValidTo    *time.Time     `json:"valid_to"`
	Values     map[string]any `json:"values"`
	Changed    []string       `json:"changed"` // tracked columns that differ from the version before
	IngestedAt time.Time      `json:"ingested_at"`
	cause
	DeletedBy *cause `json:"deleted_by,omitempty"` // the delete that ended it
	texts     map[string]*string
}

func (a *app) history(ctx context.Context, name string, key []string) error {
	e, err := a.entity(ctx, name, key)
	if err != nil {
		return err
	}
	return a.result(e.versions, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s: %s\n", name, strings.Join(key, ", "), count(int64(len(e.versions)), "version"))
		drawVersions(w, e.stream, e.versions)
	})
}

// entity is what the lake holds of one entity.
type entity struct {
	stream   *feature.Stream
	versions []versionRow
	changes  []changeRow // in their order
}

// entity reads the versions and the changes of one entity. One that has neither is an error.
func (a *app) entity(ctx context.Context, name string, key []string) (*entity, error) {
	p, l, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	s, err := stateStream(p, l, name)
	if err != nil {
		return nil, err
	}
	if len(key) != len(s.Key) {
		return nil, fmt.Errorf("the key of %s is %s: give %s", name, strings.Join(s.Key, ", "), count(int64(len(s.Key)), "value"))
	}
	all, err := l.Read(ctx, s)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	reading, err := all.Of(ctx, db, key)
	if err != nil {
		return nil, err
	}
	e := &entity{stream: all.Stream} // what dropped columns held is history, too
	if e.versions, err = readVersions(ctx, db, reading); err != nil {
		return nil, err
	}
	if e.changes, err = readChanges(ctx, db, reading); err != nil {
		return nil, err
	}
	if len(e.changes) == 0 && len(e.versions) == 0 {
		return nil, fmt.Errorf("%s has no %s %s", l.TableName(lake.HistoryName(name)), name, strings.Join(key, ", "))
	}
	explain(e.versions, e.changes)
	return e, nil
}

// stateStream is the project's stream of that name, which must have a history.
func stateStream(p *feature.Project, l *lake.Lake, name string) (*feature.Stream, error) {
	s, err := streamOf(p, name)
	if err != nil {
		return nil, err
	}
	if s.Kind != feature.StateStream {
		return nil, fmt.Errorf("%s is an event stream, which has no history: its events are in %s", name, l.TableName(lake.LogName(name)))
	}
	return s, nil
}

// shownColumns are the stream's columns that are shown of an entity: all but its key.
func shownColumns(s *feature.Stream) []feature.Column {
	return slices.DeleteFunc(slices.Clone(s.Columns), func(c feature.Column) bool { return slices.Contains(s.Key, c.Name) })
}

// textsOf are the expressions of columns as text. Equal values have equal texts: 0 is not written as -0.
func textsOf(columns []feature.Column) sql.Fragment {
	items := make([]sql.Fragment, len(columns))
	for i, c := range columns {
		items[i] = sql.Ident(c.Name) + "::VARCHAR"
		if c.Type.Kind == feature.Double && !c.Type.List {
			items[i] = "(" + sql.Ident(c.Name) + " + 0)::VARCHAR"
		}
	}
	if items == nil {
		items = append(items, "NULL")
	}
	return sql.Join(", ", items)
}

// scanTexts are the places that the columns of textsOf are scanned into.
func scanTexts(columns []feature.Column) (texts []*string, into []any) {
	texts = make([]*string, max(1, len(columns)))
	for i := range texts {
		into = append(into, &texts[i])
	}
	return texts, into
}

func readVersions(ctx context.Context, db *sql.DB, reading *lake.Reading) ([]versionRow, error) {
	if err := reading.HistoryView(ctx, db, "versions", feature.ColumnNames(reading.Stream.HistoryColumns())); err != nil {
		return nil, err
	}
	s := reading.Stream
	columns := shownColumns(s)
	rows, err := db.Query(ctx, sql.Render(sql.Statement("history_versions"), sql.Args{"values": textsOf(columns)}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	versions := []versionRow{}
	for rows.Next() {
		v := versionRow{Values: map[string]any{}, Changed: []string{}, texts: map[string]*string{}}
		texts, into := scanTexts(columns)
		var from, ingested int64
		var to *int64
		var position feature.Position
		into = append(into, &from, &to, &ingested, &v.EventID, &position.Topic, &position.Partition, &position.Offset)
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("read the history of %s: %w", s.Name, err)
		}
		v.ValidFrom, v.IngestedAt, v.Position = time.UnixMicro(from).UTC(), time.UnixMicro(ingested).UTC(), position.String()
		if to != nil {
			end := time.UnixMicro(*to).UTC()
			v.ValidTo = &end
		}
		for i, c := range columns {
			v.texts[c.Name] = texts[i]
			v.Values[c.Name] = value(texts[i])
		}
		if n := len(versions); n > 0 {
			v.Changed = differing(columns, s.Tracked, versions[n-1].texts, v.texts)
		}
		versions = append(versions, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", s.Name, err)
	}
	return versions, nil
}

// explain gives the versions what the log says of the changes that opened them, and of the deletes that ended them.
func explain(versions []versionRow, changes []changeRow) {
	opened := map[string]cause{}
	deleted := map[time.Time]cause{}
	for _, c := range changes {
		opened[c.Position] = c.cause
		if c.Mark == deleteMark {
			deleted[c.EventTime] = c.cause
		}
	}
	for i := range versions {
		v := &versions[i]
		if by, ok := opened[v.Position]; ok {
			v.cause = by
		}
		if v.ValidTo == nil {
			continue
		}
		if by, ok := deleted[*v.ValidTo]; ok {
			v.DeletedBy = &by
		}
	}
}

// value is a text as it is printed in JSON.
func value(text *string) any {
	if text == nil {
		return nil
	}
	return *text
}

// differing are the names of those columns that differ between two states.
func differing(columns []feature.Column, which func(name string) bool, was, is map[string]*string) []string {
	names := []string{}
	for _, c := range columns {
		if which(c.Name) && !sameText(was[c.Name], is[c.Name]) {
			names = append(names, c.Name)
		}
	}
	return names
}

func sameText(a, b *string) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}
