package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/pit"
	"github.com/loamdata/loam/serve"
)

// datasetParameters are the flags of `loam dataset build` that a request over HTTP may give, with _ for -. Labels are its body, and the
// training set is its answer.
var datasetParameters = []string{
	"features", "service", "time_column", "join_key", "as_of", "known_at", "exclude_label_time", "require_complete", "outcome", "sample", "split", "seed",
}

// flagName finds flags in what is said of a command line.
var flagName = regexp.MustCompile(`--([a-z][a-z-]*)`)

// datasetOf makes a request of a URL's parameters, by the flags of the command.
func datasetOf(p *feature.Project, parameters url.Values) (*feature.DatasetRequest, error) {
	f := datasetFlags{}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.bind(flags)
	said := func(err error) error {
		return fmt.Errorf("%s", flagName.ReplaceAllStringFunc(err.Error(), func(flag string) string { return strings.ReplaceAll(flag[2:], "-", "_") }))
	}
	for name, values := range parameters {
		if !slices.Contains(datasetParameters, name) {
			return nil, fmt.Errorf("there is no parameter %q; known are %s", name, strings.Join(datasetParameters, ", "))
		}
		flag := strings.ReplaceAll(name, "_", "-")
		if kind := flags.Lookup(flag).Value.Type(); len(values) > 1 && kind != "stringArray" && kind != "stringSlice" {
			return nil, fmt.Errorf("%s is given %d times: give it once", name, len(values))
		}
		for _, v := range values {
			if err := flags.Set(flag, v); err != nil {
				return nil, said(err)
			}
		}
	}
	if f.service == "" && len(f.features) == 0 {
		return nil, fmt.Errorf("no features are asked for: give features, such as features=profile:*,activity:*, or service")
	}
	r := &feature.DatasetRequest{Labels: feature.Standard, Out: feature.Standard, TimeColumn: f.timeColumn, AsOf: feature.ServedClock}
	if err := f.over(p, r, flags.Changed); err != nil {
		return nil, said(err)
	}
	return r, nil
}

// serveDatasets builds training sets for a server.
func (a *app) serveDatasets(p *feature.Project) *serve.Datasets {
	return &serve.Datasets{
		Request: datasetOf,
		TempDir: tempDir(p),
		Build: func(ctx context.Context, request *feature.DatasetRequest, labels io.Reader, bytesMax int64, out io.Writer) (*pit.Card, error) {
			l, err := openLake(ctx, p)
			if err != nil {
				return nil, err
			}
			defer l.Close()
			return pit.Build(ctx, l, p, *request, pit.Options{
				Now: a.now, Version: version, MemoryBytes: p.MemoryBytes, TempDir: tempDir(p), In: labels, InBytesMax: bytesMax, Stream: out,
			})
		},
		Cards: func(ctx context.Context) ([]*pit.Card, error) {
			l, err := openLake(ctx, p)
			if err != nil {
				return nil, err
			}
			defer l.Close()
			kept, err := keptCards(ctx, l)
			if err != nil {
				return nil, err
			}
			var cards []*pit.Card
			for _, k := range kept {
				card, err := pit.ParseCard("of "+k.Out, []byte(k.Card))
				if err != nil {
					return nil, err
				}
				cards = append(cards, card)
			}
			return cards, nil
		},
		Unpin: func(ctx context.Context, card *pit.Card) error {
			l, err := openLake(ctx, p)
			if err != nil {
				return err
			}
			defer l.Close()
			_, err = unpin(ctx, l, card)
			return err
		},
	}
}

// serveProducer takes what is pushed to the topics of a project: its broker's, or its folders.
func serveProducer(p *feature.Project) (producer serve.Producer, free func() error, err error) {
	if len(p.Broker.Seeds) == 0 {
		f := ingest.NewFolderProducer(func(topic string) string { return topicDir(p, topic) })
		return f, f.Close, nil
	}
	access, err := ingest.AccessOf(p.Broker, p.Dir)
	if err != nil {
		return nil, nil, err
	}
	k, err := ingest.OpenKafkaProducer(ingest.KafkaOptions{Seeds: p.Broker.Seeds, Access: access})
	if err != nil {
		return nil, nil, err
	}
	return k, k.Close, nil
}
