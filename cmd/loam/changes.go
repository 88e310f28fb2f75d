package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// mark says what became of a change.
type mark string

// Marks of changes.
const (
	openedMark     mark = "opened"     // it opened a version
	noOpMark       mark = "no-op"      // it left every tracked column as it was, or deleted what did not exist
	supersededMark mark = "superseded" // a later one in the order has its event time
	combinedMark   mark = "combined"   // a patch that another of its event time adds to
	deleteMark     mark = "delete"     // it ended a version
)

// changeRow is a change of an entity.
type changeRow struct {
	EventTime  time.Time `json:"event_time"`
	Sequence   *int64    `json:"sequence,omitempty"`
	Op         string    `json:"op"`
	Mark       mark      `json:"mark"`
	SettledBy  string    `json:"settled_by,omitempty"` // of one superseded or combined: the last change of its event time
	LateAfter  string    `json:"late_after,omitempty"` // a change with a later event time that was recorded before
	Changed    []string  `json:"changed"`              // tracked columns that differ from the state just before the event time
	Untracked  []string  `json:"untracked"`            // columns that are not tracked but for the clocks, and differ from it
	RecordedAt time.Time `json:"recorded_at"`
	IngestedAt time.Time `json:"ingested_at"`
	cause
	Values map[string]any `json:"values"` // what it carried

	carried       map[string]*string // nil of a delete
	before, after map[string]*string // states; nil where the entity does not exist
	at            feature.Position
	lateTime      int64 // event time of LateAfter, microseconds
}

func (a *app) changes(ctx context.Context, name string, key []string) error {
	e, err := a.entity(ctx, name, key)
	if err != nil {
		return err
	}
	return a.result(e.changes, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s: %s, %s\n", name, strings.Join(key, ", "), count(int64(len(e.changes)), "change"), count(int64(len(e.versions)), "version"))
		drawChanges(w, e.stream, e.changes)
	})
}

// readChanges reads all changes of the entity that a reading is of, in their order, and judges them.
func readChanges(ctx context.Context, db *sql.DB, reading *lake.Reading) ([]changeRow, error) {
	if err := reading.LogView(ctx, db, "changes", feature.ColumnNames(reading.Stream.LogColumns()), false); err != nil {
		return nil, err
	}
	s := reading.Stream
	columns := shownColumns(s)
	present := sql.Fragment("NULL::VARCHAR")
	if s.Payload == feature.PatchPayload {
		present = "array_to_string(present, ',')"
	}
	rows, err := db.Query(ctx, sql.Render(sql.Statement("history_changes"), sql.Args{"values": textsOf(columns), "present": present}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	changes := []changeRow{}
	for rows.Next() {
		var c changeRow
		texts, into := scanTexts(columns)
		var carried, eventType, source, actor, reason *string
		var event, recorded, ingested int64
		into = append(into, &carried, &event, &recorded, &ingested, &c.Sequence, &c.Op, &c.EventID, &eventType, &source, &actor, &reason,
			&c.at.Topic, &c.at.Partition, &c.at.Offset)
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("read the log of %s: %w", s.Name, err)
		}
		c.EventTime, c.RecordedAt, c.IngestedAt = time.UnixMicro(event).UTC(), time.UnixMicro(recorded).UTC(), time.UnixMicro(ingested).UTC()
		c.EventType, c.Source, c.Actor, c.Reason = text(eventType), text(source), text(actor), text(reason)
		c.Position = c.at.String()
		c.Values = map[string]any{}
		if c.Op != feature.OpDelete {
			c.carried = map[string]*string{}
			for i, column := range columns {
				if carried == nil || slices.Contains(strings.Split(*carried, ","), column.Name) {
					c.carried[column.Name] = texts[i]
					c.Values[column.Name] = value(texts[i])
				}
			}
		}
		changes = append(changes, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", s.Name, err)
	}
	judge(s, changes)
	findLate(changes)
	return changes, nil
}

// judge marks the changes of an entity, given in their order, and gives each the state before its event time and after it.
func judge(s *feature.Stream, changes []changeRow) {
	columns := shownColumns(s)
	untracked := func(name string) bool { return !s.Tracked(name) && name != s.EventTime && name != s.Sequence }
	var before map[string]*string
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].EventTime.Equal(changes[0].EventTime) {
			n++
		}
		state := before
		for i := range changes[:n] {
			c := &changes[i]
			if state = c.carried; state != nil && s.Payload == feature.PatchPayload {
				state = map[string]*string{}
				if i > 0 {
					maps.Copy(state, changes[i-1].after)
				} else {
					maps.Copy(state, before)
				}
				maps.Copy(state, c.carried)
			}
			c.before, c.after = before, state
			c.Changed, c.Untracked = []string{}, []string{}
			if state != nil {
				c.Changed = differing(columns, s.Tracked, before, state)
				c.Untracked = differing(columns, untracked, before, state)
			}
		}
		for i := range changes[:n] {
			changes[i].Mark = markOf(s, &changes[i], changes[i+1:n])
			if i < n-1 {
				changes[i].SettledBy = changes[n-1].Position
			}
		}
		before, changes = state, changes[n:]
	}
}

// markOf says what became of a change; rest are those of its event time that come after it.
func markOf(s *feature.Stream, c *changeRow, rest []changeRow) mark {
	deletes := func(o changeRow) bool { return o.Op == feature.OpDelete }
	switch {
	case len(rest) > 0 && s.Payload == feature.PatchPayload && !deletes(*c) && !slices.ContainsFunc(rest, deletes):
		return combinedMark
	case len(rest) > 0:
		return supersededMark
	case deletes(*c) && c.before != nil:
		return deleteMark
	case !deletes(*c) && (c.before == nil || len(c.Changed) > 0):
		return openedMark
	default:
		return noOpMark
	}
}

// findLate finds the changes that were recorded after one with a later event time: of their partition by offset, of
// others by the time they were recorded.
func findLate(changes []changeRow) {
	arrived := make([]*changeRow, len(changes))
	for i := range changes {
		arrived[i] = &changes[i]
	}
	slices.SortStableFunc(arrived, func(a, b *changeRow) int {
		return cmp.Or(a.RecordedAt.Compare(b.RecordedAt), cmp.Compare(a.at.Offset, b.at.Offset))
	})
	var newest *changeRow // of all that were recorded earlier
	ofPartition := map[feature.Partition]*changeRow{}
	for from := 0; from < len(arrived); {
		to := from
		for ; to < len(arrived) && arrived[to].RecordedAt.Equal(arrived[from].RecordedAt); to++ {
			c := arrived[to]
			p := feature.Partition{Topic: c.at.Topic, Index: c.at.Partition}
			if o := later(newest, ofPartition[p]); o != nil && o.EventTime.After(c.EventTime) {
				c.LateAfter, c.lateTime = o.Position, o.EventTime.UnixMicro()
			}
			ofPartition[p] = later(ofPartition[p], c)
		}
		for _, c := range arrived[from:to] {
			newest = later(newest, c)
		}
		from = to
	}
}

// later is the one of two changes with the later event time, a where they have the same. Either may be missing.
func later(a, b *changeRow) *changeRow {
	if a == nil || b != nil && b.EventTime.After(a.EventTime) {
		return b
	}
	return a
}

// text is a value that may be absent, "" where it is.
func text(value *string) string {
	if value == nil {
		return ""
	}
	return *value
}
