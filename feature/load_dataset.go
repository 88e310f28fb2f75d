package feature

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// loadDataset reads one file of datasets/: a request for a training set.
func (l *loader) loadDataset(r *reader, root *yaml.Node) {
	d := request{DatasetRequest: &DatasetRequest{At: r.place(root), TimeColumn: DefaultTimeColumn, AsOf: ServedClock}}
	var knownAt, atLabelTime string
	seen := r.mapping(root, "", fields{
		"dataset": r.str(&d.Name), "labels": r.labels(d.DatasetRequest), "join_keys": r.stringMap(&d.JoinKeys),
		"time_column": r.str(&d.TimeColumn), "service": r.str(&d.Service), "features": r.strs(&d.features),
		"as_of": enum(r, &d.AsOf, ServedClock, EventClock), "known_at": r.str(&knownAt),
		"at_label_time":    enum(r, &atLabelTime, "include", "exclude"),
		"require_complete": r.boolean(&d.RequireComplete), "out": r.str(&d.Out), "partition_by": r.strs(&d.PartitionBy), "card": r.str(&d.Card),
		"outcomes": r.outcomes(&d.Outcomes), "sample": parsed(r, &d.Sample, ParseSample), "split": parsed(r, &d.Split, ParseSplit), "seed": parsed(r, &d.Seed, parseSeed),
	})
	if seen == nil {
		return
	}
	for _, key := range []string{"dataset", "labels", "out"} {
		if seen[key] == nil {
			r.problem(root, key, "missing", map[string]string{
				"dataset": "name the training set, such as dataset: churn", "labels": "name the file with the labels, such as labels: labels.csv",
				"out": "name the file to write, such as out: churn.parquet",
			}[key])
		}
	}
	if seen["dataset"] != nil {
		r.name(seen["dataset"], "dataset", d.Name)
	}
	if (seen["service"] == nil) == (seen["features"] == nil) {
		r.problem(root, "features", "want a service or features", "name one: service: churn_v1, or features: [\"profile:mkt_status\"]")
	}
	if seen["known_at"] != nil {
		t, err := time.Parse(time.RFC3339Nano, knownAt)
		if err != nil {
			r.problem(seen["known_at"], "known_at", fmt.Sprintf("%q is not a time", knownAt), "write RFC 3339, such as 2026-11-01T00:00:00Z")
		}
		t = t.UTC().Truncate(time.Microsecond)
		d.KnownAt = &t
	}
	d.ExcludeLabelTime = atLabelTime == "exclude"
	d.keys = seen
	d.reader = r
	l.project.Datasets = append(l.project.Datasets, d.DatasetRequest)
	l.requests = append(l.requests, d)
}

// labels reads where labels come from: the path of a file, or a mapping with one of path, table and sql.
func (r *reader) labels(d *DatasetRequest) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		d.LabelsAt = r.place(n)
		if n.Kind != yaml.MappingNode {
			r.str(&d.Labels)(n, field)
			return
		}
		seen := r.mapping(n, field, fields{"path": r.str(&d.Labels), "table": r.str(&d.LabelsTable), "sql": r.str(&d.LabelsSQL)})
		if len(seen) != 1 {
			r.problem(n, field, "want one of path, table and sql", "such as {table: crm.outcomes}")
		}
	}
}

// checkRequest resolves what a request refers to, and adds what is wrong with it at the line of its key.
func (l *loader) checkRequest(d request) {
	l.checkFeatures(d)
	for _, problem := range d.check(l.project, l.expr) {
		key, _, _ := strings.Cut(problem.Field, ".")
		key, _, _ = strings.Cut(key, "[")
		if n := d.keys[key]; n != nil && (problem.Place == d.At || problem.Place == Place{}) {
			problem.Place = d.reader.place(n)
		}
		noted := slices.ContainsFunc(*l.problems, func(p Problem) bool { return p.Place.File == d.At.File && p.Field == problem.Field })
		if !noted {
			*l.problems = append(*l.problems, problem)
		}
	}
}

// checkFeatures resolves the features or the service that a request asks for.
func (l *loader) checkFeatures(d request) {
	p := l.project
	if d.Service != "" {
		s := p.Service(d.Service)
		if s == nil {
			var known []string
			for _, s := range p.Services {
				known = append(known, s.Name)
			}
			l.problems.add(d.At, "service", fmt.Sprintf("there is no feature service %q", d.Service), didYouMean(d.Service, known))
			return
		}
		d.DatasetRequest.Features = s.Features
		return
	}
	if d.features == nil {
		return
	}
	refs, err := p.Resolve(d.features)
	if err != nil {
		l.problems.add(d.At, "features", err.Error(), "")
	}
	d.DatasetRequest.Features = refs
}
