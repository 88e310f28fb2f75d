package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
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
		Short: "Show what each stream has taken, and how complete it is",
		Long: `status shows, per stream and partition, what was read and what became of it (read = accepted + refused + duplicate), the next
offset, and the watermark: the event time up to which it is taken as complete. Files are summed up.`,
		Example: "  loam status\n  loam status --stream contact --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.status(c.Context(), streams)
		},
	}
	c.Flags().StringSliceVar(&streams, "stream", nil, "only these streams")
	return c
}

// streamStatus is where a stream stands, for machines.
type streamStatus struct {
	Stream     string            `json:"stream"`
	Counts     feature.Counts    `json:"counts"`
	Watermark  *time.Time        `json:"watermark"`
	Snapshot   int64             `json:"log_snapshot"`
	Behind     int64             `json:"history_behind"` // offsets that the log has taken and the history hasn't
	Partitions []partitionStatus `json:"partitions"`
	Files      int               `json:"files"`
	// Redrive says that dead letters are being taken again, or that it was cut off.
	Redrive bool `json:"redrive_open,omitempty"`
}

type partitionStatus struct {
	Topic      string         `json:"topic"`
	Partition  int32          `json:"partition"`
	Next       int64          `json:"next_offset"`
	Watermark  time.Time      `json:"watermark"`
	RecordedAt time.Time      `json:"recorded_at"`
	Counts     feature.Counts `json:"counts"`
}

type projectStatus struct {
	Project string         `json:"project"`
	Streams []streamStatus `json:"streams"`
	Stray   feature.Counts `json:"of_no_stream"`
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
	all := projectStatus{Project: p.Name, Streams: []streamStatus{}}
	// Before the streams: what was taken again by then, they have.
	letters, moves, err := redrivenOf(ctx, l)
	if err != nil {
		return err
	}
	for _, s := range streams {
		one, err := statusOf(ctx, l, s, moves)
		if err != nil {
			return err
		}
		all.Streams = append(all.Streams, one)
	}
	strays, err := letters.Offsets()
	if err != nil {
		return err
	}
	all.Stray = strays.Counts()
	for _, m := range moves {
		if _, known := strays.Of(m.Partition); known { // else the file is forgotten, with its counts
			m.Move("", &all.Stray)
		}
	}
	return a.result(all, func(w io.Writer) { all.print(w, a.now()) })
}

// redrivenOf opens the dead letters, and tells which of them were taken again.
func redrivenOf(ctx context.Context, l *lake.Lake) (*lake.DeadLetters, []lake.RedrivenCount, error) {
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		return nil, nil, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, nil, err
	}
	defer db.Close()
	moves, err := letters.Redriven(ctx, db)
	return letters, moves, err
}

func statusOf(ctx context.Context, l *lake.Lake, s *feature.Stream, moves []lake.RedrivenCount) (streamStatus, error) {
	one := streamStatus{Stream: s.Name, Partitions: []partitionStatus{}}
	reading, err := l.Read(ctx, s)
	if errors.Is(err, lake.ErrNoTable) {
		return one, nil // nothing was applied yet
	} else if err != nil {
		return one, err
	}
	log, err := reading.Log.Offsets()
	if err != nil {
		return one, err
	}
	taken, err := reading.Offsets()
	if err != nil {
		return one, err
	}
	one.Counts, one.Files, one.Snapshot = log.Counts(), len(log.Files), reading.Log.SnapshotID()
	for _, m := range moves {
		if _, known := log.Of(m.Partition); known || m.From != s.Name { // else the file is forgotten, with its counts
			m.Move(s.Name, &one.Counts)
		}
	}
	one.Redrive = log.Redrive.Open()
	if mark, ok := log.Watermark(); ok {
		at := time.UnixMicro(mark).UTC()
		one.Watermark = &at
	}
	for _, p := range slices.SortedFunc(maps.Keys(log.Partitions), feature.Partition.Compare) {
		at := log.Partitions[p]
		for _, m := range moves {
			if m.Partition == p {
				m.Move(s.Name, &at.Counts)
			}
		}
		if h, _ := taken.Of(p); h.Next < at.Next {
			one.Behind += at.Next - h.Next
		}
		one.Partitions = append(one.Partitions, partitionStatus{
			Topic: p.Topic, Partition: p.Index, Next: at.Next, Watermark: time.UnixMicro(at.Watermark).UTC(),
			RecordedAt: time.UnixMicro(at.RecordedAt).UTC(), Counts: at.Counts,
		})
	}
	for _, f := range log.Files {
		if h, _ := taken.Of(feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}); h.Next < f.Next {
			one.Behind += f.Next - h.Next
		}
	}
	return one, nil
}

func (p projectStatus) print(w io.Writer, now time.Time) {
	rows := [][]string{{"stream", "partition", ">next", ">read", ">accepted", ">refused", ">duplicate", "watermark", ">age"}}
	for _, s := range p.Streams {
		mark, age := "", ""
		if s.Watermark != nil {
			mark, age = moment(s.Watermark.UnixMicro()), elapsed(now.Sub(*s.Watermark).Truncate(time.Second))
		}
		what := fmt.Sprintf("all, %s", count(int64(s.Files), "file"))
		rows = append(rows, []string{s.Stream, what, "", number(s.Counts.Read), number(s.Counts.Accepted), number(s.Counts.Refused),
			number(s.Counts.Duplicate), mark, age})
		for _, one := range s.Partitions {
			rows = append(rows, []string{"", fmt.Sprintf("%s/%d", one.Topic, one.Partition), number(one.Next), number(one.Counts.Read),
				number(one.Counts.Accepted), number(one.Counts.Refused), number(one.Counts.Duplicate), moment(one.Watermark.UnixMicro()),
				elapsed(now.Sub(one.Watermark).Truncate(time.Second))})
		}
	}
	table(w, rows)
	for _, s := range p.Streams {
		if s.Behind > 0 {
			fmt.Fprintf(w, "  the history of %s is %s behind its log; the next run or backfill catches it up\n", s.Stream, count(s.Behind, "offset"))
		}
		if s.Redrive {
			fmt.Fprintf(w, "  dead letters of %s are being taken again, or that was cut off: `loam dlq redrive` ends it\n", s.Stream)
		}
		for _, c := range []struct {
			n    int64
			what string
		}{
			{s.Counts.IDReuse, "reused an event id with another key or time"}, {s.Counts.Extra, "had fields outside the schema"},
			{s.Counts.Ahead, "from files with a time ahead of the clock"}, {s.Counts.Unkeyed, "had a record key that is not the entity's"},
		} {
			if c.n > 0 {
				fmt.Fprintf(w, "  %s: %s %s\n", s.Stream, count(c.n, "event"), c.what)
			}
		}
	}
	if p.Stray.Refused > 0 {
		fmt.Fprintf(w, "  refused, being of no stream: %s\n", count(p.Stray.Refused, "event"))
	}
}
