package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/serve"
)

func (a *app) serveCommand() *cobra.Command {
	var address string
	var logged float64
	var tls certificate
	c := &cobra.Command{
		Use:   "serve",
		Short: "Answer requests for features over HTTP",
		Long: `serve answers POST /get-online-features as Feast's feature server does, from the online store that loam.yaml names, or else from
the views as they are in the lake when it starts. Each value comes with its status: PRESENT, NOT_FOUND, NULL_VALUE or OUTSIDE_MAX_AGE.
While the store is away or a view can't be read yet, the answer is 503.

POST /push makes events of rows and gives them to their stream's topic, whence ` + "`loam run`" + ` writes lake and online store. POST
/v1/datasets answers labels with their training set, both as Arrow IPC streams. docs/serve.md tells all of it.`,
		Example: "  loam serve --addr 127.0.0.1:6566",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, _, err := net.SplitHostPort(address); err != nil {
				return misused("--addr %q: give an address such as 127.0.0.1:6566", address)
			}
			if (tls.Cert == "") != (tls.Key == "") {
				return misused("--tls-cert and --tls-key go together")
			}
			for _, path := range []*string{&tls.Cert, &tls.Key} { // of where the command runs, not of the project folder
				if abs, err := filepath.Abs(*path); err == nil && *path != "" {
					*path = abs
				}
			}
			if logged < 0 || logged > 1 {
				return misused("--log-features is a share from 0 to 1, not %g", logged)
			}
			return a.serve(c.Context(), address, tls, logged)
		},
	}
	c.Flags().StringVar(&address, "addr", "127.0.0.1:6566", "address to listen at")
	c.Flags().Float64Var(&logged, "log-features", 0, "share of the requests to log in the lake's table feature_log, 0 to 1, for loam verify --served")
	c.Flags().StringVar(&tls.Cert, "tls-cert", "", "PEM file of the certificate to show, in place of serve.tls in loam.yaml")
	c.Flags().StringVar(&tls.Key, "tls-key", "", "PEM file of its key")
	return c
}

// certificate names the files of the certificate that a server shows, and of its key.
type certificate struct{ Cert, Key string }

func (a *app) serve(ctx context.Context, address string, tls certificate, logged float64) error {
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	o := serve.Options{Project: p, Say: a.say, Limits: serve.Limits{
		BodyBytes: p.Serve.BodyBytes, Entities: p.Serve.Entities, Concurrent: p.Serve.Concurrent, Timeout: p.Serve.Timeout,
		LabelBytes: p.Serve.LabelBytes,
	}, Datasets: a.serveDatasets(p)}
	if tls.Cert != "" {
		p.Serve.Cert, p.Serve.Key = tls.Cert, tls.Key
	}
	if o.TLS, err = p.Serve.TLS(p.Dir); err != nil {
		return err
	}
	for _, k := range p.Serve.Keys {
		secret, err := k.Key.Read(p.Dir)
		if err != nil {
			return fmt.Errorf("read the API key %s of serve.keys in %s: %w", k.Name, feature.ProjectFile, err)
		}
		o.Keys = append(o.Keys, serve.Key{Name: k.Name, Secret: secret, Views: k.Views, Push: k.Push})
	}
	producer, free, err := serveProducer(p)
	if err != nil {
		return err
	}
	defer free()
	o.Producer = producer
	store, from, err := a.serveStore(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close()
	o.Client = online.NewClient(store, p, a.now)
	defer o.Client.Close()
	endLog := func() error { return nil }
	if logged > 0 {
		if o.Log, endLog, err = a.logFeatures(ctx, p, store, logged); err != nil {
			return err
		}
	}
	s := serve.New(o)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %s, give another one with --addr: %w", address, err)
	}
	scheme, open := "http", ""
	if o.TLS != nil {
		scheme = "https"
	}
	if len(o.Keys) == 0 {
		open = ", to whoever reaches it: loam.yaml has no serve.keys"
	}
	a.say("serving features of %s, %s, at %s://%s%s; Ctrl-C ends", p.Name, from, scheme, l.Addr(), open)
	if err := errors.Join(s.Run(ctx, l), endLog()); err != nil {
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
