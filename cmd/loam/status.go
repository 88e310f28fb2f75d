package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) statusCommand() *cobra.Command {
	var streams []string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what each stream has taken, and how far it is behind",
		Long: `status shows, per stream and partition, what was read and what became of it (read = accepted + refused + duplicate), and how far
behind it is. Files are summed up.

lag is how many offsets of the topic are still to be read, ? where the broker doesn't tell. freshness is how long ago the watermark was,
the event time up to which all is taken as complete; last read is how long ago the newest event was read.`,
		Example: "  loam status\n  loam status --stream contact --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.status(c.Context(), streams)
		},
	}
	c.Flags().StringSliceVar(&streams, "stream", nil, "only these streams")
	return c
}

// reasonCounts are refused events that wait as dead letters, by why they were refused.
type reasonCounts map[feature.Reason]int64

// streamStatus is where a stream stands, for machines.
type streamStatus struct {
	Stream     string            `json:"stream"`
	Counts     feature.Counts    `json:"counts"`
	Refused    reasonCounts      `json:"refused_by_reason,omitempty"`
	Lag        *int64            `json:"lag"` // offsets of the topic that are still to be read; null where that isn't known
	LagUnknown string            `json:"lag_unknown,omitempty"`
	Watermark  *time.Time        `json:"watermark"`
	Freshness  *float64          `json:"freshness_seconds,omitempty"` // now less the watermark
	RecordedAt *time.Time        `json:"recorded_at,omitempty"`       // the newest of the partitions'
	Snapshot   int64             `json:"log_snapshot"`
	Behind     int64             `json:"history_behind"` // offsets that the log has taken and the history hasn't
	Partitions []partitionStatus `json:"partitions"`
	Files      int               `json:"files"`
	// Frozen are the instants that views of the stream are frozen as of.
	Frozen map[string]time.Time `json:"frozen,omitempty"`
	// Redrive says that dead letters are being taken again, or that it was cut off.
	Redrive bool `json:"redrive_open,omitempty"`
}

// partitionStatus is where a partition of a topic stands. One of which nothing was read has no times.
type partitionStatus struct {
	Topic      string         `json:"topic"`
	Partition  int32          `json:"partition"`
	Next       int64          `json:"next_offset"`
	End        *int64         `json:"end_offset,omitempty"`
	Lag        *int64         `json:"lag,omitempty"`
	Gone       int64          `json:"offsets_gone,omitempty"` // offsets that were still to be read, and that the broker has removed
	Watermark  time.Time      `json:"watermark,omitzero"`
	Freshness  *float64       `json:"freshness_seconds,omitempty"`
	RecordedAt time.Time      `json:"recorded_at,omitzero"`
	Counts     feature.Counts `json:"counts"`
	Refused    reasonCounts   `json:"refused_by_reason,omitempty"`

	topicID string
}

type projectStatus struct {
	Project string         `json:"project"`
	Streams []streamStatus `json:"streams"`
	Stray   feature.Counts `json:"of_no_stream"`
	Refused reasonCounts   `json:"of_no_stream_by_reason,omitempty"`
}

func (a *app) status(ctx context.Context, names []string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	streams, err := pickStreams(p, names)
	if err != nil {
		return err
	}
	all, err := statusOf(ctx, l, streams)
	if err != nil {
		return err
	}
	all.Project = p.Name
	ends := endsOf(ctx, p, streams)
	now := a.now()
	for i, s := range streams {
		if !s.Full() {
			all.Streams[i].hold(s, ends[s.Topic])
		}
		all.Streams[i].refresh(now)
	}
	return a.result(all, func(w io.Writer) { all.print(w, now) })
}

// statusOf tells what the lake has of the streams. The logs are looked at before the dead letters: which of those they have passed
// by then is known, and so what they count as refused is what waits, and what was taken again since.
func statusOf(ctx context.Context, l *lake.Lake, streams []*feature.Stream) (projectStatus, error) {
	all := projectStatus{Streams: []streamStatus{}}
	logs := map[string]lake.Offsets{}
	for _, s := range streams {
		one, log, err := streamStatusOf(ctx, l, s)
		if err != nil {
			return all, err
		}
		all.Streams, logs[s.Name] = append(all.Streams, one), log
	}
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		return all, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return all, err
	}
	defer db.Close()
	became, err := letters.Count(ctx, db, logs)
	if err != nil {
		return all, err
	}
	for i := range all.Streams {
		all.Streams[i].add(became, logs[all.Streams[i].Stream])
	}
	strays, err := letters.Offsets()
	if err != nil {
		return all, err
	}
	all.Stray, all.Refused = strays.Counts(), reasonCounts{}
	for _, m := range became.Redriven {
		if _, known := strays.Of(m.Partition); known { // else the file is forgotten, with its counts
			m.Move("", &all.Stray)
		}
	}
	for _, r := range became.Waiting {
		if _, known := strays.Of(r.Partition); known && r.Stream == "" {
			all.Refused[r.Reason] += r.Count
		}
	}
	return all, nil
}

// streamStatusOf tells what the tables of a stream have, and where its log stands.
func streamStatusOf(ctx context.Context, l *lake.Lake, s *feature.Stream) (streamStatus, lake.Offsets, error) {
	one := streamStatus{Stream: s.Name, Partitions: []partitionStatus{}, Refused: reasonCounts{}}
	reading, err := l.Read(ctx, s)
	if errors.Is(err, lake.ErrNoTable) {
		return one, lake.Offsets{}, nil // nothing was applied yet
	} else if err != nil {
		return one, lake.Offsets{}, err
	}
	log, err := reading.Log.Offsets()
	if err != nil {
		return one, log, err
	}
	taken, err := reading.Offsets()
	if err != nil {
		return one, log, err
	}
	one.Counts, one.Files, one.Snapshot = log.Counts(), len(log.Files), reading.Log.SnapshotID()
	one.Counts.Ties = taken.Counts().Ties // which histories count
	one.Redrive = log.Redrive.Open()
	if one.Frozen, err = reading.Frozen(); err != nil {
		return one, log, err
	}
	if mark, ok := log.Watermark(); ok {
		at := time.UnixMicro(mark).UTC()
		one.Watermark = &at
	}
	for _, p := range slices.SortedFunc(maps.Keys(log.Partitions), feature.Partition.Compare) {
		at := log.Partitions[p]
		h, _ := taken.Of(p)
		one.Behind += max(at.Next-h.Next, 0)
		at.Ties = h.Ties
		recorded := time.UnixMicro(at.RecordedAt).UTC()
		if one.RecordedAt == nil || recorded.After(*one.RecordedAt) {
			one.RecordedAt = &recorded
		}
		one.Partitions = append(one.Partitions, partitionStatus{
			Topic: p.Topic, Partition: p.Index, Next: at.Next, Watermark: time.UnixMicro(at.Watermark).UTC(),
			RecordedAt: recorded, Counts: at.Counts, Refused: reasonCounts{}, topicID: at.TopicID,
		})
	}
	for _, f := range log.Files {
		h, _ := taken.Of(feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256})
		one.Behind += max(f.Next-h.Next, 0)
	}
	return one, log, nil
}

// add tells refused events apart by what became of them since.
func (s *streamStatus) add(became lake.LetterCounts, log lake.Offsets) {
	of := func(p feature.Partition) *partitionStatus {
		i := slices.IndexFunc(s.Partitions, func(o partitionStatus) bool { return o.Topic == p.Topic && o.Partition == p.Index })
		if i < 0 {
			return nil
		}
		return &s.Partitions[i]
	}
	for _, m := range became.Redriven {
		if _, known := log.Of(m.Partition); known || m.From != s.Stream { // else the file is forgotten, with its counts
			m.Move(s.Stream, &s.Counts)
		}
		if p := of(m.Partition); p != nil {
			m.Move(s.Stream, &p.Counts)
		}
	}
	for _, r := range became.Waiting {
		if _, known := log.Of(r.Partition); !known || r.Stream != s.Stream {
			continue
		}
		s.Refused[r.Reason] += r.Count
		if p := of(r.Partition); p != nil {
			p.Refused[r.Reason] += r.Count
		}
	}
}

// refresh tells how fresh the stream is at a time.
func (s *streamStatus) refresh(now time.Time) {
	since := func(at time.Time) *float64 {
		seconds := now.Sub(at).Seconds()
		return &seconds
	}
	if s.Watermark != nil {
		s.Freshness = since(*s.Watermark)
	}
	for i := range s.Partitions {
		if p := &s.Partitions[i]; !p.Watermark.IsZero() {
			p.Freshness = since(p.Watermark)
		}
	}
}

func (p projectStatus) print(w io.Writer, now time.Time) {
	ago := func(at time.Time) string {
		if at.IsZero() {
			return ""
		}
		return elapsed(now.Sub(at).Truncate(time.Second))
	}
	lag := func(n *int64, unknown string) string {
		switch {
		case unknown != "":
			return "?"
		case n == nil:
			return ""
		}
		return number(*n)
	}
	row := func(name, lag string, c feature.Counts, mark, recorded time.Time) []string {
		return []string{name, lag, number(c.Read), number(c.Accepted), number(c.Refused), number(c.Duplicate), ago(mark), ago(recorded)}
	}
	rows := [][]string{{"stream", ">lag", ">read", ">accepted", ">refused", ">duplicate", ">freshness", ">last read"}}
	for _, s := range p.Streams {
		var mark, recorded time.Time
		if s.Watermark != nil {
			mark = *s.Watermark
		}
		if s.RecordedAt != nil {
			recorded = *s.RecordedAt
		}
		name := s.Stream
		if s.Files > 0 {
			name += ", " + count(int64(s.Files), "file")
		}
		rows = append(rows, row(name, lag(s.Lag, s.LagUnknown), s.Counts, mark, recorded))
		for _, one := range s.Partitions {
			name := fmt.Sprintf("  %s/%d", one.Topic, one.Partition)
			rows = append(rows, row(name, lag(one.Lag, s.LagUnknown), one.Counts, one.Watermark, one.RecordedAt))
		}
	}
	table(w, rows)
	for _, s := range p.Streams {
		s.notes(w)
	}
	if p.Stray.Refused > 0 {
		fmt.Fprintf(w, "  refused, being of no stream: %s (%s)\n", count(p.Stray.Refused, "event"), p.Refused)
	}
}

// notes says below the table what it has no column for.
func (s streamStatus) notes(w io.Writer) {
	if s.Watermark != nil {
		fmt.Fprintf(w, "  %s: complete up to %s\n", s.Stream, moment(s.Watermark.UnixMicro()))
	}
	if s.LagUnknown != "" {
		fmt.Fprintf(w, "  %s: the lag is unknown: %s\n", s.Stream, s.LagUnknown)
	}
	for _, p := range s.Partitions {
		if p.Gone > 0 {
			fmt.Fprintf(w, "  %s/%d: the broker has removed %s before they were read: loam run --on-gap earliest goes on without them\n",
				p.Topic, p.Partition, count(p.Gone, "offset"))
		}
	}
	if s.Behind > 0 {
		fmt.Fprintf(w, "  the history of %s is %s behind its log; the next run or backfill catches it up\n", s.Stream, count(s.Behind, "offset"))
	}
	for _, view := range slices.Sorted(maps.Keys(s.Frozen)) {
		fmt.Fprintln(w, frozenText(view, s.Frozen[view]))
	}
	if s.Redrive {
		fmt.Fprintf(w, "  dead letters of %s are being taken again, or that was cut off: `loam dlq redrive` ends it\n", s.Stream)
	}
	if len(s.Refused) > 0 {
		fmt.Fprintf(w, "  %s: refused for %s\n", s.Stream, s.Refused)
	}
	for _, c := range []struct {
		n          int64
		what, does string
	}{
		{s.Counts.Late, "event", "came late: older than one of their partition before them"},
		{s.Counts.Ties, "change", "tied with another of their key: the same event time and sequence"},
		{s.Counts.IDReuse, "event", "reused an event id with another key or time"},
		{s.Counts.Extra, "event", "had fields outside the schema"},
		{s.Counts.Ahead, "event", "from files with a time ahead of the clock"},
		{s.Counts.Unkeyed, "event", "had a record key that is not the entity's"},
	} {
		if c.n > 0 {
			fmt.Fprintf(w, "  %s: %s %s\n", s.Stream, count(c.n, c.what), c.does)
		}
	}
}

// String is the counts as text, the greatest first.
func (r reasonCounts) String() string {
	reasons := slices.SortedFunc(maps.Keys(r), func(a, b feature.Reason) int {
		return cmp.Or(cmp.Compare(r[b], r[a]), cmp.Compare(a, b))
	})
	texts := make([]string, len(reasons))
	for i, reason := range reasons {
		texts[i] = fmt.Sprintf("%s %s", reason, number(r[reason]))
	}
	return strings.Join(texts, ", ")
}
