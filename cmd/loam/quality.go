package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/loamdata/loam/quality"
)

func (a *app) report(ctx context.Context, name string) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	s, err := stateStream(p, l, name)
	if err != nil {
		return err
	}
	bar := a.progress("report on " + name)
	r, err := quality.Of(ctx, l, s, quality.Options{
		MemoryBytes: streamMemoryBytes, TempDir: tempDir(p),
		Progress: func(done, of int) { bar.at(int64(done), int64(of), "") },
	})
	bar.end()
	if err != nil {
		return err
	}
	return a.result(r, func(w io.Writer) { drawReport(w, r) })
}

// drawReport writes what was found, each with its remedy, and then all that was measured.
func drawReport(w io.Writer, r *quality.Report) {
	found := r.Found()
	fmt.Fprintf(w, "%s: %s of %s, %s; %s found\n", r.Stream, count(r.Changes, "change"), count(r.Keys, "key"), count(r.Versions, "version"),
		count(int64(len(found)), "error"))
	for _, m := range found {
		drawFound(w, m)
	}
	fmt.Fprintln(w, "\nmeasured:")
	cells := [][]string{{"kind", ">count", ">of", ">share"}}
	for _, m := range r.Measures {
		cells = append(cells, []string{kindText(m.Kind), number(m.Count), number(m.Of), percent(m.Share)})
	}
	table(w, cells)
}

// drawFound writes one thing that was found.
func drawFound(w io.Writer, m quality.Measure) {
	fmt.Fprintf(w, "\n%s: %s of %s, %s\n  %s\n", kindText(m.Kind), number(m.Count), number(m.Of), percent(m.Share), m.What)
	if m.Detail != "" {
		fmt.Fprintln(w, "  "+m.Detail)
	}
	var columns []string
	for _, c := range m.Columns {
		text := c.Name + " " + number(c.Count)
		if m.Kind == quality.Noise {
			text += ", alone " + number(c.Alone)
		}
		columns = append(columns, text)
	}
	if len(columns) > 0 {
		fmt.Fprintln(w, "  columns: "+strings.Join(columns, "; "))
	}
	if len(m.Keys) > 0 {
		fmt.Fprintln(w, "  keys such as "+plain(strings.Join(m.Keys, ", ")))
	}
	fmt.Fprintln(w, "  remedy: "+m.Remedy)
}

func kindText(k quality.Kind) string { return strings.ReplaceAll(string(k), "_", " ") }
