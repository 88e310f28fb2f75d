package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/serve"
)

func (a *app) serveCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Answer requests for features over HTTP",
		Long: `serve answers POST /get-online-features as Feast's feature server does, from the online store that loam.yaml names, or else from
the views as they are in the lake when it starts. Each value comes with its status: PRESENT, NOT_FOUND, NULL_VALUE or OUTSIDE_MAX_AGE.
While the store is away or a view can't be read yet, the answer is 503.`,
		Example: "  loam serve --addr 127.0.0.1:6566",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, _, err := net.SplitHostPort(address); err != nil {
				return misused("--addr %q: give an address such as 127.0.0.1:6566", address)
			}
			return a.serve(c.Context(), address)
		},
	}
	c.Flags().StringVar(&address, "addr", "127.0.0.1:6566", "address to listen at")
	return c
}

func (a *app) serve(ctx context.Context, address string) error {
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	store, from, err := a.serveStore(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close()
	s := serve.New(serve.Options{Project: p, Client: online.NewClient(store, p, a.now), Say: a.say})
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %s, give another one with --addr: %w", address, err)
	}
	a.say("serving features of %s, %s, at http://%s; Ctrl-C ends", p.Name, from, l.Addr())
	if err := s.Run(ctx, l); err != nil {
		return err
	}
	a.say("stopped")
	return nil
}

// serveStore connects to the project's Redis; without one it loads all views from the lake. from says which it is.
func (a *app) serveStore(ctx context.Context, p *feature.Project) (store *online.Store, from string, err error) {
	if store, err = openStore(ctx, p); store != nil || err != nil {
		return store, "from Redis at " + p.Online.Redis, err
	}
	var refs []feature.Ref
	var names []string
	for _, v := range p.Views {
		if p.Unserved(v) == "" {
			refs, names = append(refs, feature.Ref{View: v.Name}), append(names, v.Name)
		}
	}
	store, err = a.fromLake(ctx, p, refs)
	return store, "as the lake has " + strings.Join(names, ", ") + " now", err
}
