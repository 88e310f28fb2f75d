package main

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// redriveCount is what became of dead letters of a stream, for machines.
type redriveCount struct {
	Letters   int64 `json:"letters"`
	Accepted  int64 `json:"accepted"`
	Duplicate int64 `json:"duplicate"`
	Refused   int64 `json:"refused"`
}

// redriveReport tells what a redrive did.
type redriveReport struct {
	Streams   map[string]*redriveCount `json:"streams"`      // by the stream that the letters were of, "" for none
	Finished  int64                    `json:"finished"`     // letters of redrives that were cut off before
	Unsettled int64                    `json:"unsettled"`    // letters left, whose stream's log has not passed them
	Unknown   int64                    `json:"of_no_stream"` // letters left, whose stream the project doesn't have
	Already   int64                    `json:"already"`      // repaired records whose letters were taken before
}

func (r *redrive) count(stream string, decided map[feature.Position]*lake.Marked) {
	c := r.report.Streams[stream]
	if c == nil {
		c = &redriveCount{}
		r.report.Streams[stream] = c
	}
	for _, m := range decided {
		c.Letters++
		switch m.Outcome {
		case feature.RedriveAccepted:
			c.Accepted++
		case feature.RedriveDuplicate:
			c.Duplicate++
		case feature.RedriveRefused:
			c.Refused++
		}
	}
}

func (r redriveReport) print(w io.Writer) {
	if len(r.Streams) > 0 {
		rows := [][]string{{"stream", ">letters", ">accepted", ">duplicate", ">refused again"}}
		for _, name := range slices.Sorted(maps.Keys(r.Streams)) {
			c := r.Streams[name]
			rows = append(rows, []string{streamText(name), number(c.Letters), number(c.Accepted), number(c.Duplicate), number(c.Refused)})
		}
		table(w, rows)
	} else {
		fmt.Fprintln(w, "no dead letters to take again")
	}
	for _, note := range []struct {
		n    int64
		text string
	}{
		{r.Finished, "of a redrive that was cut off: ended"},
		{r.Already, "repaired, but taken before: left as they are"},
		{r.Unsettled, "newer than what their stream's log has: left until `loam run` or `loam backfill` has passed them"},
		{r.Unknown, "of streams that the project doesn't have: left"},
	} {
		if note.n > 0 {
			fmt.Fprintf(w, "  %s %s\n", count(note.n, "letter"), note.text)
		}
	}
	refused := int64(0)
	for _, c := range r.Streams {
		refused += c.Refused
	}
	if refused > 0 {
		fmt.Fprintln(w, "  `loam dlq list` tells why letters were refused again")
	}
}
