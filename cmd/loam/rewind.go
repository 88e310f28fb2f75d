package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
)

func (a *app) rewindCommand() *cobra.Command {
	var to []string
	var yes bool
	c := &cobra.Command{
		Use:   "rewind STREAM --to POSITION",
		Short: "Take a stream back, as if events had never been taken",
		Long: `rewind takes a stream back to a position, <topic>/<partition>@<offset>: what it took of that partition from that offset on is
gone from the log, the history and the dead letters, and is taken again, from what the topic holds then. It is for events that
were taken wrongly: by a wrong definition, or from a producer that has sent corrected ones since. A file that was backfilled goes by
--to file:<hash>@0, the SHA-256 of its bytes, which may be cut. --to may be repeated, once for each partition.

Without --yes it tells what would go, and changes nothing. The history is derived anew from the log, and feature views of the
stream are built anew. A worker that runs goes on from where the stream then stands, once it notices: at its next commit. Where
rewind is cut off, the stream can't be written until the same command has ended it.`,
		Example: "  loam rewind contact --to contact.v1/0@50\n  loam rewind contact --to contact.v1/0@50 --to file:3f2a@0 --yes",
		Args:    arguments(1, 1, "name the stream to take back: loam rewind STREAM --to POSITION"),
		RunE: func(c *cobra.Command, args []string) error {
			if len(to) == 0 {
				return misused("say where to go back to: --to <topic>/<partition>@<offset>; `loam status` tells where the stream stands")
			}
			var positions []feature.Position
			for _, text := range to {
				p, err := parseRewind(text)
				if err != nil {
					return misuse{err}
				}
				positions = append(positions, p)
			}
			return a.rewind(c.Context(), args[0], positions, yes)
		},
	}
	c.Flags().StringArrayVar(&to, "to", nil, "position to go back to, such as contact.v1/0@117, or file:3f2a@0")
	c.Flags().BoolVar(&yes, "yes", false, "do it, and don't only tell what would go")
	return c
}

// parseRewind reads a position, which of a file needs no partition.
func parseRewind(text string) (feature.Position, error) {
	name, offset, ok := strings.Cut(text, "@")
	if ok && strings.HasPrefix(name, feature.FileTopicPrefix) && !strings.Contains(name, "/") {
		text = name + "/0@" + offset
	}
	return parsePosition(text)
}

// rewound is what a rewind did, or would do, for machines.
type rewound struct {
	Stream     string         `json:"stream"`
	Done       bool           `json:"done"`
	Partitions []lake.Rewound `json:"partitions"`
	Versions   *int64         `json:"versions,omitempty"` // that the history holds
	Views      []string       `json:"views,omitempty"`    // that are built anew
}

func (a *app) rewind(ctx context.Context, name string, to []feature.Position, yes bool) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	s, err := streamOf(p, name)
	if err != nil {
		return err
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		return err
	}
	if err := wholeHashes(ctx, l, s, to); err != nil {
		return err
	}
	store, err := openStore(ctx, p) // before anything is done: without it the rewind has no end
	if err != nil {
		return err
	}
	if store != nil {
		defer store.Close()
	}
	r, err := l.OpenRewind(ctx, s, to, lake.StreamOptions{MemoryBytes: streamMemoryBytes, TempDir: tempDir(p)})
	if err != nil {
		return err
	}
	defer r.Close()
	told := rewound{Stream: name}
	if told.Partitions, err = r.Look(ctx); err != nil {
		return err
	}
	nothing := !r.Again()
	for _, w := range told.Partitions {
		nothing = nothing && w.None()
	}
	if !yes || nothing {
		return a.result(told, func(w io.Writer) { told.print(w, nothing) })
	}
	if r.Again() {
		a.say("a rewind that was cut off goes on")
	}
	if err := r.Take(ctx); err != nil {
		return err
	}
	bar := a.progress("rebuild " + s.Name)
	done, err := r.History(ctx, lake.RebuildOptions{
		MemoryBytes: streamMemoryBytes, TempDir: tempDir(p), Progress: func(done, of int64) { bar.at(done, of, "") },
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("%w; the stream can't be written until the same command has ended this", err)
	}
	step.At(step.RewindHistory)
	if s.Kind == feature.StateStream {
		told.Versions = &done.Versions
	}
	if told.Views, err = forgetViews(ctx, p, s, store); err != nil {
		return fmt.Errorf("%w; the stream can't be written until the same command has ended this", err)
	}
	step.At(step.RewindViews)
	if err := r.End(ctx); err != nil {
		return err
	}
	told.Done = true
	return a.result(told, func(w io.Writer) { told.print(w, false) })
}

// wholeHashes completes hashes of files that are cut, by the files that the stream has taken.
func wholeHashes(ctx context.Context, l *lake.Lake, s *feature.Stream, to []feature.Position) error {
	t, err := l.OpenTable(ctx, lake.LogName(s.Name))
	if err != nil {
		return err
	}
	offsets, err := t.Offsets()
	if err != nil {
		return err
	}
	for i, p := range to {
		cut, isFile := strings.CutPrefix(p.Topic, feature.FileTopicPrefix)
		if !isFile {
			continue
		}
		var found []string
		for _, f := range offsets.Files {
			if strings.HasPrefix(f.SHA256, cut) {
				found = append(found, f.SHA256)
			}
		}
		if len(found) > 1 {
			return fmt.Errorf("%s: %d files that stream %s has taken begin so: give more of the hash", p.Topic, len(found), s.Name)
		}
		if len(found) == 1 {
			to[i].Topic = feature.FileTopicPrefix + found[0]
		}
	}
	return nil
}

// forgetViews has the views of a stream built anew, and gives their names.
func forgetViews(ctx context.Context, p *feature.Project, s *feature.Stream, store *online.Store) ([]string, error) {
	if store == nil {
		return nil, nil
	}
	var names []string
	for _, v := range p.Views {
		if v.Stream != s.Name || p.Unserved(v) != "" {
			continue
		}
		if err := store.Forget(ctx, v.Name); err != nil {
			return names, err
		}
		names = append(names, v.Name)
	}
	return names, nil
}

func (r rewound) print(w io.Writer, nothing bool) {
	rows := [][]string{{"back to", ">stood at", ">accepted", ">refused", ">duplicate", ">entities"}}
	for _, p := range r.Partitions {
		rows = append(rows, []string{p.Position, number(p.From), number(p.Accepted), number(p.Refused), number(p.Duplicate), number(p.Entities)})
	}
	table(w, rows)
	switch {
	case nothing:
		fmt.Fprintf(w, "%s stands there: nothing is to be taken back\n", r.Stream)
		return
	case !r.Done:
		fmt.Fprintln(w, "nothing was changed: the same with --yes takes these events back")
		return
	}
	fmt.Fprintf(w, "%s was taken back", r.Stream)
	if r.Versions != nil {
		fmt.Fprintf(w, "; its history has %s", count(*r.Versions, "version"))
	}
	fmt.Fprintln(w)
	if len(r.Views) > 0 {
		fmt.Fprintf(w, "to be built anew, by the worker or `loam materialize`: %s\n", strings.Join(r.Views, ", "))
	}
}
