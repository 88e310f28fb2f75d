package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
)

func (a *app) datasetBuildCommand() *cobra.Command {
	f := datasetFlags{}
	c := &cobra.Command{
		Use:   "build [REQUEST.yaml | NAME]",
		Short: "Build a training set from labels",
		Long: `build gives each label the features of its entities as they were at the label's time, and writes them with a card beside
them. What is wanted is in a request under datasets/, or in flags, which go before the request.

By default a label sees what had been ingested by its time, as a model would have been given it (--as-of served). With
--as-of event it sees what was true in the source, whenever that was learnt.

Labels come from a file (.parquet, .csv, .csv.gz, .arrow, .arrows), from an Arrow IPC stream on standard input (--labels -), from
an Iceberg table of the catalog, or from a SELECT over <stream>_log, <stream>_history and <stream>_current.

--outcome "won_30d=opportunity:30d:stage = 'won'" adds a label column: whether the condition came true of the label's entity
in the 30 days after its time. Labels whose 30 days aren't over by the stream's watermark are left out, and counted.

The ending of --out says how the training set is written: .parquet, .csv, .csv.gz, .arrow or, for Arrow IPC's stream
format, .arrows; with --partition-by it is a folder of Parquet files. With --out - an Arrow IPC stream goes to standard
output and the summary to standard error.`,
		Example: "  loam dataset build datasets/churn.yaml\n" +
			"  loam dataset build --labels labels.csv --features 'profile:mkt_status,activity:*' --out few.parquet\n" +
			"  loam dataset build churn --as-of event --out churn_event.parquet\n" +
			"  loam dataset build --labels labels.csv --outcome \"left_7d=contact:7d:mkt_status <> 'customer'\" --split key:0.8 --service churn_v1 --out left.parquet\n" +
			"  loam dataset build --labels-sql 'SELECT contact_id, valid_from AS event_timestamp FROM contact_history' --service churn_v1 --out - > all.arrows",
		Args: arguments(0, 1, ""),
		RunE: func(c *cobra.Command, args []string) error {
			labels := f.labels + f.labelsTable + f.labelsSQL
			if len(args) == 0 && (labels == "" || f.out == "" || (f.service == "" && len(f.features) == 0)) {
				return misused("name a request, or give --labels, --labels-table or --labels-sql, --out, and --features or --service")
			}
			return a.buildDataset(c.Context(), args, f, c.Flags().Changed)
		},
	}
	c.Flags().SortFlags = false
	f.bind(c.Flags())
	return c
}

// datasetFlags are what a request may say on the command line.
type datasetFlags struct {
	labels, labelsTable, labelsSQL                string
	service, timeColumn, asOf, knownAt, out, card string
	features, joinKeys, partitionBy               []string
	outcomes                                      []string
	sample, split                                 string
	memory                                        string
	seed                                          int64
	exclude, complete                             bool
}

// bind declares the flags.
func (f *datasetFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.labels, "labels", "", "labels: a `file`, .parquet, .csv, .csv.gz, .arrow or .arrows, or - for an Arrow stream")
	flags.StringVar(&f.labelsTable, "labels-table", "", "labels: an Iceberg `table`, <namespace>.<name> or of the project")
	flags.StringVar(&f.labelsSQL, "labels-sql", "", "labels: a `SELECT` over the streams' tables")
	flags.StringArrayVar(&f.joinKeys, "join-key", nil, "`key=column`: the label column that holds a join key; repeatable")
	flags.StringVar(&f.timeColumn, "time-column", feature.DefaultTimeColumn, "label `column` that holds the time")
	flags.StringSliceVar(&f.features, "features", nil, "features, such as profile:mkt_status or activity:*")
	flags.StringVar(&f.service, "service", "", "feature service, in place of features")
	flags.StringVar(&f.asOf, "as-of", string(feature.ServedClock), "clock: served or event")
	flags.StringVar(&f.knownAt, "known-at", "", "use only what loam had recorded by this RFC 3339 `time`")
	flags.BoolVar(&f.exclude, "exclude-label-time", false, "leave out what happened at the very time of a label")
	flags.BoolVar(&f.complete, "require-complete", false, "fail if a label is later than the watermark")
	flags.StringVar(&f.out, "out", "", "`file` to write, a folder with --partition-by, or - for an Arrow stream")
	flags.StringArrayVar(&f.outcomes, "outcome", nil, "`name=stream:within:condition`: a label column; repeatable")
	flags.StringVar(&f.sample, "sample", "", "how many labels, or below 1 which `share` of them")
	flags.StringVar(&f.split, "split", "", "a column split: `time:T1[,T2]` or key[=COLUMN]:SHARE[,SHARE]")
	flags.Int64Var(&f.seed, "seed", 0, "`seed` of the hashes of sample and split")
	flags.StringSliceVar(&f.partitionBy, "partition-by", nil, "`columns` whose values are folders")
	flags.StringVar(&f.memory, "memory", "", "bound of DuckDB's memory, such as `2GiB`")
	flags.StringVar(&f.card, "card", "", "`file` for the card, in place of <name>.card.json beside the training set")
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
	memory := p.MemoryBytes
	if given("memory") {
		if memory, err = feature.ParseMemory(f.memory); err != nil {
			return misused("--memory: %v", err)
		}
	}
	summary := *a // what is said of the training set
	if request.Out == feature.Standard {
		if file, ok := a.out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			return misused("--out - writes bytes that a terminal can't show: send them to a program or a file")
		}
		summary.out = a.err
	}
	bar := a.progress("dataset")
	card, err := pit.Build(ctx, l, p, *request, pit.Options{
		Now: a.now, Version: version, MemoryBytes: memory, TempDir: tempDir(p), In: os.Stdin, Stream: a.out,
		Step: func(what string, done, of int) { bar.at(int64(done), int64(of), what) },
	})
	bar.end()
	if err != nil {
		return err
	}
	return summary.result(card, func(w io.Writer) { printCard(w, card) })
}

// over applies the flags that were given to a request. Paths in flags start where the command runs.
func (f datasetFlags) over(p *feature.Project, r *feature.DatasetRequest, given func(string) bool) error {
	if err := f.overPaths(r, given); err != nil {
		return err
	}
	if err := f.overLabels(r, given); err != nil {
		return err
	}
	if err := f.overTime(r, given); err != nil {
		return err
	}
	if err := f.overRows(r, given); err != nil {
		return err
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
	return nil
}

// overPaths applies the flags that say where the training set goes.
func (f datasetFlags) overPaths(r *feature.DatasetRequest, given func(string) bool) error {
	var failed error
	absolute := func(path string) string {
		if path == feature.Standard || path == "" {
			return path
		}
		abs, err := filepath.Abs(path)
		failed = errors.Join(failed, err)
		return abs
	}
	if given("labels") {
		r.Labels, r.LabelsTable, r.LabelsSQL = absolute(f.labels), "", ""
	}
	if given("out") {
		r.Out = absolute(f.out)
	}
	if given("card") {
		r.Card = absolute(f.card)
	}
	if given("partition-by") {
		r.PartitionBy = f.partitionBy
	}
	if r.Format() == "" {
		return misused("--out %s names no format: end its name in .parquet, .csv, .csv.gz, .arrow or .arrows, or give --partition-by", f.out)
	}
	return failed
}

// overLabels applies the flags that say where labels come from, and how they are joined.
func (f datasetFlags) overLabels(r *feature.DatasetRequest, given func(string) bool) error {
	sources := 0
	for _, flag := range []string{"labels", "labels-table", "labels-sql"} {
		if given(flag) {
			sources++
		}
	}
	if sources > 1 {
		return misused("--labels, --labels-table and --labels-sql exclude each other: give one")
	}
	if sources > 0 {
		r.LabelsAt = feature.Place{}
	}
	if given("labels-table") {
		r.Labels, r.LabelsTable, r.LabelsSQL = "", f.labelsTable, ""
	}
	if given("labels-sql") {
		r.Labels, r.LabelsTable, r.LabelsSQL = "", "", f.labelsSQL
	}
	if given("time-column") {
		r.TimeColumn = f.timeColumn
	}
	if given("join-key") {
		r.JoinKeys = map[string]string{}
		for _, text := range f.joinKeys {
			key, column, ok := strings.Cut(text, "=")
			if !ok || key == "" || column == "" {
				return misused("--join-key %q is not key=column, such as contact_id=customer_id", text)
			}
			r.JoinKeys[key] = column
		}
	}
	return nil
}

// overTime applies the flags that say what a label sees.
func (f datasetFlags) overTime(r *feature.DatasetRequest, given func(string) bool) error {
	if given("as-of") {
		r.AsOf = feature.Clock(f.asOf)
		if r.AsOf != feature.ServedClock && r.AsOf != feature.EventClock {
			return misused("--as-of is served or event, not %q", f.asOf)
		}
	}
	if given("known-at") {
		t, err := flagTime("--known-at", f.knownAt)
		if err != nil {
			return err
		}
		r.KnownAt = &t
	}
	if given("exclude-label-time") {
		r.ExcludeLabelTime = f.exclude
	}
	if given("require-complete") {
		r.RequireComplete = f.complete
	}
	return nil
}

// overRows applies the flags that make label columns, and choose and split the labels.
func (f datasetFlags) overRows(r *feature.DatasetRequest, given func(string) bool) error {
	var err error
	if given("outcome") {
		r.Outcomes = nil
		for _, text := range f.outcomes {
			o, err := feature.ParseOutcome(text)
			if err != nil {
				return misused("--outcome: %v", err)
			}
			r.Outcomes = append(r.Outcomes, o)
		}
	}
	if given("sample") {
		if r.Sample, err = feature.ParseSample(f.sample); err != nil {
			return misused("--sample: %v", err)
		}
	}
	if given("split") {
		if r.Split, err = feature.ParseSplit(f.split); err != nil {
			return misused("--split: %v", err)
		}
	}
	if given("seed") {
		r.Seed = f.seed
	}
	return nil
}
