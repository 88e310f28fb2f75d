package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

func (a *app) rebuildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rebuild STREAM",
		Short: "Derive a stream's history anew from its log",
		Long: `rebuild derives the history of a state stream anew from its log, and puts it in place of the old one in one commit. It is
for a history in which loam verify finds differences. A worker may go on beside it: until the commit the history is what it was,
and what is taken meanwhile is in the new one, too. loam apply does the same where what a stream tracks has changed.`,
		Example: "  loam rebuild contact",
		Args:    arguments(1, 1, "name the stream whose history to derive: loam rebuild STREAM"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.rebuild(c.Context(), args[0])
		},
	}
}

// rebuilt is what a rebuild did, for machines.
type rebuilt struct {
	Stream   string `json:"stream"`
	Changes  int64  `json:"changes"`      // read from the log
	Later    int64  `json:"keys_derived"` // again, since they changed meanwhile
	Versions int64  `json:"versions"`     // that the history holds
	WallMS   int64  `json:"wall_ms"`
}

func (a *app) rebuild(ctx context.Context, name string) error {
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
	begun := a.now()
	done, err := a.rebuildStream(ctx, p, l, s)
	if err != nil {
		return err
	}
	r := rebuilt{Stream: name, Changes: done.Changes, Later: done.Later, Versions: done.Versions, WallMS: a.now().Sub(begun).Milliseconds()}
	return a.result(r, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s derived from %s", r.Stream, count(r.Versions, "version"), count(r.Changes, "change"))
		if r.Later > 0 {
			fmt.Fprintf(w, ", %s again that changed meanwhile", count(r.Later, "key"))
		}
		fmt.Fprintf(w, ", in %s\n", time.Duration(r.WallMS)*time.Millisecond)
	})
}

func (a *app) rebuildStream(ctx context.Context, p *feature.Project, l *lake.Lake, s *feature.Stream) (lake.Rebuilt, error) {
	bar := a.progress("rebuild " + s.Name)
	defer bar.end()
	return l.Rebuild(ctx, s, lake.RebuildOptions{
		MemoryBytes: streamMemoryBytes, TempDir: tempDir(p),
		Progress: func(done, of int64) { bar.at(done, of, "") },
	})
}
