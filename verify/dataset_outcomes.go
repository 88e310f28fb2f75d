package verify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// outcomeCheck is the part of the verification that one outcome has: of its view it uses what reads labels and logs.
type outcomeCheck struct {
	viewCheck
	label   feature.OutcomeLabel
	said    cardOutcome // by the card
	reading *lake.Reading
}

// planOutcomes opens the streams of the outcomes as they were, and reads the split.
func (c *datasetCheck) planOutcomes(ctx context.Context) error {
	for _, text := range c.card.Request.Outcomes {
		o, err := feature.ParseOutcome(text)
		if err != nil {
			return fmt.Errorf("read the card: outcome %w", err)
		}
		i := slices.IndexFunc(c.card.Labels.Outcomes, func(of cardOutcome) bool { return of.Column == o.Name })
		stream := c.project.Stream(o.Stream)
		if i < 0 || stream == nil {
			return fmt.Errorf("the card asks for outcome %s, and says nothing of it or of stream %s", o.Name, o.Stream)
		}
		if _, err := c.options.Check(o.When, stream.Columns, feature.Type{Kind: feature.Bool}); err != nil {
			return fmt.Errorf("read the card: outcome %s: %w", o.Name, err)
		}
		reading, err := c.lake.ReadAt(ctx, stream, c.card.Tables)
		if err != nil {
			return err
		}
		c.outcomes = append(c.outcomes, &outcomeCheck{label: o, said: c.card.Labels.Outcomes[i], reading: reading, viewCheck: viewCheck{
			datasetCheck: c, stream: reading.Stream, joinKeys: stream.Keys(), log: reading.Log, beyond: c.card.Tables[reading.Log.Name()].Beyond,
			features: []featureCheck{{name: o.Name, column: o.Name, typ: feature.Type{Kind: feature.Bool}}},
		}})
	}
	if text := c.card.Request.Split; text != "" {
		var err error
		if c.split, err = feature.ParseSplit(text); err != nil {
			return fmt.Errorf("read the card: split %w", err)
		}
	}
	return nil
}

// check recomputes the outcome of the picked rows, and compares: whether the condition came true after the label's time and no
// later than its horizon.
func (o *outcomeCheck) check(ctx context.Context) error {
	labels, err := o.labels(ctx)
	if err != nil {
		return fmt.Errorf("read the rows of %s: %w", o.options.File, err)
	}
	changes, err := o.read(ctx, labels)
	if err != nil {
		return fmt.Errorf("read the log of %s: %w", o.stream.Name, err)
	}
	came, err := o.came(ctx, changes)
	if err != nil {
		return err
	}
	want := make([][]wanted, len(labels))
	for i, l := range labels {
		want[i] = make([]wanted, 1)
		if l.keyed && l.at != nil {
			last := *l.at + o.label.Within.Microseconds()
			want[i][0].value = slices.ContainsFunc(came[l.key], func(at int64) bool { return *l.at < at && at <= last })
		}
	}
	o.compare(labels, o.features, want, o.keyColumns())
	return nil
}

// came gives, by key, the times at which the condition came true. Of an event stream these are the events of which it is true. Of a
// state stream they are the changes after which it is true and before which it wasn't, the last counting of those at one time.
func (o *outcomeCheck) came(ctx context.Context, changes map[string][]*logged) (map[string][]int64, error) {
	var rows []*logged
	for key, list := range changes {
		slices.SortFunc(list, inOrder)
		if o.stream.Kind == feature.StateStream && o.stream.Payload == feature.PatchPayload {
			list = o.whole(list)
			changes[key] = list
		}
		rows = append(rows, list...)
	}
	values, err := o.evaluate(ctx, rows, []sql.Fragment{sql.Try(o.label.When, "BOOLEAN")})
	if err != nil {
		return nil, fmt.Errorf("evaluate its condition: %w", err)
	}
	came := map[string][]int64{}
	for key, list := range changes {
		held := false
		for i, r := range list {
			holds := !r.deleted && values[r.number][0] == true
			switch {
			case o.stream.Kind == feature.EventStream:
				if holds {
					came[key] = append(came[key], r.at)
				}
			case i+1 < len(list) && list[i+1].at == r.at: // a later one counts
			default:
				if holds && !held {
					came[key] = append(came[key], r.at)
				}
				held = holds
			}
		}
	}
	return came, nil
}

// inOrder compares by the one order.
func inOrder(a, b *logged) int {
	switch {
	case a.after(b):
		return 1
	case b.after(a):
		return -1
	}
	return 0
}

// whole makes of the patches of an entity, in their order, what they and those before them make together.
func (v *viewCheck) whole(patches []*logged) []*logged {
	all := make([]*logged, len(patches))
	state := make([]any, len(v.stream.Columns))
	for i, p := range patches {
		for n, column := range v.stream.Columns {
			switch {
			case slices.Contains(v.stream.Key, column.Name):
				state[n] = p.values[n]
			case p.deleted:
				state[n] = nil
			case v.carries(p, column.Name):
				state[n] = p.values[n]
			}
		}
		made := *p
		made.values = slices.Clone(state)
		all[i] = &made
	}
	return all
}

// complete holds up to when the card says that the stream was complete against the newest events that the training set could know
// of: of topics the partition that had brought least, of files the newest. Where a topic is read as of now its clock moves that, too,
// and nothing in the log tells.
func (o *outcomeCheck) complete(ctx context.Context) error {
	if o.said.CompleteUntil == nil {
		return nil
	}
	offsets, err := o.reading.Offsets()
	if err != nil {
		return err
	}
	if err := o.reading.LogView(ctx, o.db, "verify_outcome", nil, false); err != nil {
		return err
	}
	known := sql.Fragment("true")
	if at := o.card.Request.KnownAt; at != nil {
		known = sql.Fragment(fmt.Sprintf("epoch_us(recorded_at) <= %d", at.UnixMicro()))
	}
	rows, err := o.db.Query(ctx, sql.Render(`SELECT topic, epoch_us(max(event_time)) FROM verify_outcome WHERE {known} GROUP BY topic, "partition"`, sql.Args{"known": known}))
	if err != nil {
		return err
	}
	defer rows.Close()
	var least, newest *int64 // of topics, and of files
	for rows.Next() {
		var topic string
		var at int64
		if err := rows.Scan(&topic, &at); err != nil {
			return err
		}
		switch {
		case feature.Live(topic) && (least == nil || at < *least):
			least = &at
		case !feature.Live(topic) && (newest == nil || at > *newest):
			newest = &at
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	most := newest
	if least != nil || len(offsets.Partitions) > 0 {
		if most = least; o.card.Request.KnownAt == nil {
			return nil
		}
	}
	if most != nil && o.said.CompleteUntil.UnixMicro() > *most {
		o.report.add(DatasetFinding{
			Column: o.label.Name, Text: "up to when stream " + o.stream.Name + " was complete is later than the log shows",
			Want: "at most " + showTime(*most), Got: showTime(o.said.CompleteUntil.UnixMicro()),
		})
	}
	return nil
}

// ripe reports whether the outcome of a label with that time, or none, could be known.
func (o *outcomeCheck) ripe(at *int64) bool {
	return at == nil || o.said.CompleteUntil != nil && *at+o.label.Within.Microseconds() <= o.said.CompleteUntil.UnixMicro()
}

func showTime(us int64) string { return time.UnixMicro(us).UTC().Format(time.RFC3339Nano) }
