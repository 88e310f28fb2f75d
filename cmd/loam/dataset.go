package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
)

func (a *app) datasetCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "dataset",
		Short:   "Build training sets, show, verify and rebuild them",
		Example: "  loam dataset build datasets/churn.yaml\n  loam dataset show churn.card.json",
	}, a.datasetBuildCommand(), a.datasetShowCommand(), a.datasetListCommand(), a.datasetDiffCommand(), a.datasetVerifyCommand(),
		a.datasetRebuildCommand(), a.datasetUnpinCommand())
}

func (a *app) datasetBuildCommand() *cobra.Command {
	f := datasetFlags{}
	c := &cobra.Command{
		Use:   "build [REQUEST.yaml | NAME]",
		Short: "Build a training set from labels",
		Long: `build gives each label the features of its entity as they were at the label's time, and writes them as Parquet with a
card beside it. What is wanted is in a request under datasets/, or in flags; flags go before the request.

By default a label sees what had been ingested by its time, as a model would have been given it (--as-of served). With
--as-of event it sees what was true in the source, whenever that was learnt.`,
		Example: "  loam dataset build datasets/churn.yaml\n" +
			"  loam dataset build --labels labels.csv --features 'profile:mkt_status,activity:*' --out few.parquet\n" +
			"  loam dataset build churn --as-of event --out churn_event.parquet",
		Args: arguments(0, 1, ""),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && (f.labels == "" || f.out == "" || (f.service == "" && len(f.features) == 0)) {
				return misused("name a request, or give --labels, --out, and --features or --service")
			}
			return a.buildDataset(c.Context(), args, f, c.Flags().Changed)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.labels, "labels", "", "file with the labels, .parquet or .csv")
	flags.StringSliceVar(&f.features, "features", nil, "features, such as profile:mkt_status or activity:*")
	flags.StringVar(&f.service, "service", "", "feature service, in place of features")
	flags.StringVar(&f.timeColumn, "time-column", feature.DefaultTimeColumn, "label column that holds the time")
	flags.StringVar(&f.asOf, "as-of", string(feature.ServedClock), "clock: served or event")
	flags.StringVar(&f.knownAt, "known-at", "", "use only what loam had recorded by this RFC 3339 time")
	flags.BoolVar(&f.exclude, "exclude-label-time", false, "leave out what happened at the very time of a label")
	flags.BoolVar(&f.complete, "require-complete", false, "fail if a label is later than the watermark")
	flags.StringVar(&f.out, "out", "", "Parquet file to write")
	return c
}

// datasetFlags are what a request may say on the command line.
type datasetFlags struct {
	labels, service, timeColumn, asOf, knownAt, out string
	features                                        []string
	exclude, complete                               bool
}

func (a *app) buildDataset(ctx context.Context, args []string, f datasetFlags, given func(string) bool) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	request := &feature.DatasetRequest{TimeColumn: f.timeColumn, AsOf: feature.ServedClock}
	if len(args) == 1 {
		named, err := findRequest(p, args[0])
		if err != nil {
			return err
		}
		copied := *named
		request = &copied
	}
	if err := f.over(p, request, given); err != nil {
		return err
	}
	bar := a.progress("dataset")
	card, err := pit.Build(ctx, l, p, *request, pit.Options{
		Now: a.now, Version: version, TempDir: tempDir(p),
		Step: func(what string, done, of int) { bar.at(int64(done), int64(of), what) },
	})
	bar.end()
	if err != nil {
		return err
	}
	return a.result(card, func(w io.Writer) { printCard(w, card) })
}

// over applies the flags that were given to a request. Paths in flags start where the command runs.
func (f datasetFlags) over(p *feature.Project, r *feature.DatasetRequest, given func(string) bool) error {
	var err error
	absolute := func(path string) string {
		abs, failed := filepath.Abs(path)
		err = errors.Join(err, failed)
		return abs
	}
	if given("labels") {
		r.Labels = absolute(f.labels)
	}
	if given("out") {
		r.Out = absolute(f.out)
	}
	if !strings.HasSuffix(strings.ToLower(r.Out), ".parquet") {
		return misused("--out %s is not a Parquet file: end its name in .parquet", f.out)
	}
	if given("time-column") {
		r.TimeColumn = f.timeColumn
	}
	if given("as-of") {
		r.AsOf = feature.Clock(f.asOf)
		if r.AsOf != feature.ServedClock && r.AsOf != feature.EventClock {
			return misused("--as-of is served or event, not %q", f.asOf)
		}
	}
	if given("known-at") {
		t, err := time.Parse(time.RFC3339Nano, f.knownAt)
		if err != nil {
			return misused("--known-at %q is not a time: write RFC 3339, such as 2026-11-01T00:00:00Z", f.knownAt)
		}
		t = t.UTC().Truncate(time.Microsecond)
		r.KnownAt = &t
	}
	if given("exclude-label-time") {
		r.ExcludeLabelTime = f.exclude
	}
	if given("require-complete") {
		r.RequireComplete = f.complete
	}
	switch {
	case given("service") && given("features"):
		return misused("--service and --features exclude each other: give one")
	case given("service"):
		s := p.Service(f.service)
		if s == nil {
			return noService(p, f.service)
		}
		r.Service, r.Features = s.Name, s.Features
	case given("features"):
		refs, err := p.Resolve(f.features)
		if err != nil {
			return err
		}
		r.Service, r.Features = "", refs
	}
	return err
}

// findRequest finds a request by its name or its file.
func findRequest(p *feature.Project, text string) (*feature.DatasetRequest, error) {
	for _, d := range p.Datasets {
		if d.Name == text || d.At.File == text {
			return d, nil
		}
		if same(filepath.Join(p.Dir, d.At.File), text) {
			return d, nil
		}
	}
	if _, err := os.Stat(text); errors.Is(err, fs.ErrNotExist) {
		var names []string
		for _, d := range p.Datasets {
			names = append(names, d.Name)
		}
		if len(names) == 0 {
			names = []string{"none: write one under datasets/, or give flags"}
		}
		return nil, fmt.Errorf("there is no request %s; the project has %s", text, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%s is not under %s: move it there, so that it is checked with the project", text, filepath.Join(p.Dir, "datasets"))
}

func noService(p *feature.Project, name string) error {
	known := "the project has none"
	if len(p.Services) > 0 {
		names := make([]string, len(p.Services))
		for i, s := range p.Services {
			names[i] = s.Name
		}
		known = "known: " + strings.Join(names, ", ")
	}
	return fmt.Errorf("there is no feature service %q; %s", name, known)
}

// same reports whether two paths lead to one file.
func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
