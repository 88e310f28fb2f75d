package feature

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Clock says which of an event's two times decides whether a label may see it.
type Clock string

// The two clocks of a training set.
const (
	ServedClock Clock = "served" // what the model would have been given at the label's time: the default
	EventClock  Clock = "event"  // what was true in the source at the label's time
)

// DefaultTimeColumn is the label column that holds the time unless a request names another.
const DefaultTimeColumn = "event_timestamp"

// Standard is the path that means standard input for labels, and standard output for a training set.
const Standard = "-"

// DatasetRequest asks for a training set. Labels come from one of a file, a table and a query.
type DatasetRequest struct {
	Name string
	// Labels is the path of a file, by its ending Parquet, CSV or Arrow IPC, or [Standard] for an Arrow IPC stream; relative
	// ones start at the project folder. "" where a table or a query gives them.
	Labels      string
	LabelsTable string // an Iceberg table of the catalog, <namespace>.<name> or a name in the project's; or ""
	LabelsSQL   string // a SELECT over the streams' tables; or ""
	// JoinKeys says which label column holds a join key, by the join key's name, where the two have different names.
	JoinKeys   map[string]string
	TimeColumn string
	Service    string // either a service
	Features   []Ref  // or features; resolved: no wildcards, no repeats
	AsOf       Clock
	// KnownAt limits the log to what loam had recorded by then; nil means all of it.
	KnownAt *time.Time
	// ExcludeLabelTime makes the bound on time at a label strict.
	ExcludeLabelTime bool
	// RequireComplete turns labels later than the watermark from a warning into an error.
	RequireComplete bool
	// Out is the path of the training set, a file of the format that its ending names, a folder where PartitionBy is given, or
	// [Standard] for an Arrow IPC stream; relative ones start at the project folder.
	Out string
	// Outcomes are label columns that are made of what came true after a label's time. A label for which one can't be known yet is
	// left out.
	Outcomes    []OutcomeLabel
	Sample      Sample
	Split       Split
	Seed        int64    // of the hashes that sample and split go by
	PartitionBy []string // columns of the training set whose values are folders
	Card        string   // path of the card; "" means beside the training set, and in the lake alone where that is a stream

	At       Place
	LabelsAt Place // where the file says which labels are meant; a zero place where flags or Go do
}

// OutFormat is how a training set is written.
type OutFormat string

// Formats of training sets.
const (
	ParquetOut   OutFormat = "parquet"
	CSVOut       OutFormat = "csv"
	ArrowOut     OutFormat = "arrow"  // a file of Arrow IPC's file format
	ArrowsOut    OutFormat = "arrows" // one of its stream format
	StreamOut    OutFormat = "arrow stream"
	PartitionOut OutFormat = "partitions" // a folder of Parquet files, a folder a value of the partition columns
)

// Format is how the training set is written; "" where nothing can be told from its name.
func (d *DatasetRequest) Format() OutFormat {
	lower := strings.ToLower(filepath.Base(d.Out))
	switch {
	case d.Out == Standard:
		return StreamOut
	case len(d.PartitionBy) > 0:
		return PartitionOut
	case strings.HasSuffix(lower, ".parquet"):
		return ParquetOut
	case strings.HasSuffix(lower, ".csv"), strings.HasSuffix(lower, ".csv.gz"):
		return CSVOut
	case strings.HasSuffix(lower, ".arrow"):
		return ArrowOut
	case strings.HasSuffix(lower, ".arrows"):
		return ArrowsOut
	}
	return ""
}

// Check is an error that says what is wrong with a request in a project, for requests that no file of the project has; each
// problem names the key. Features must be resolved.
func (d *DatasetRequest) Check(p *Project, expr CheckExpr) error {
	problems := d.check(p, expr)
	if len(d.Features) == 0 {
		problems.add(Place{}, "features", "missing", "name a service or features, such as profile:mkt_status")
	}
	var texts []string
	for _, problem := range problems {
		texts = append(texts, fmt.Sprintf("%s: %s; %s", problem.Field, problem.What, problem.Remedy))
	}
	if len(texts) == 0 {
		return nil
	}
	return fmt.Errorf("the request can't be built: %s", strings.Join(texts, "\n"))
}

// check finds what is wrong with a request in a project, apart from its features; each problem names the key. It is the
// same for requests of files, of flags and of Go.
func (d *DatasetRequest) check(p *Project, expr CheckExpr) Problems {
	var problems Problems
	add := func(field, what, remedy string) { problems.add(d.At, field, what, remedy) }
	given := 0
	for _, source := range []string{d.Labels, d.LabelsTable, d.LabelsSQL} {
		if source != "" {
			given++
		}
	}
	if given != 1 {
		add("labels", "want labels from one place", "name a file, a table or sql")
	}
	d.checkJoinKeys(p, add)
	d.checkOut(add)
	d.checkOutcomes(p, expr, &problems)
	if of := d.Split.Column; of != "" && slices.ContainsFunc(d.Outcomes, func(o OutcomeLabel) bool { return o.Name == of }) {
		add("split", fmt.Sprintf("key=%s is an outcome, so the parts would tell what is to be learnt", of), "name a join key, or another column of the labels")
	}
	return problems
}

func (d *DatasetRequest) checkJoinKeys(p *Project, add func(field, what, remedy string)) {
	var known []string
	for _, e := range p.Entities {
		known = append(known, e.JoinKeys...)
	}
	for _, s := range p.Streams {
		known = append(known, s.Key...)
		if s.ClusterBy != "" {
			known = append(known, s.ClusterBy)
		}
	}
	taken := map[string]bool{}
	for _, k := range known {
		taken[k] = true
	}
	for _, key := range slices.Sorted(maps.Keys(d.JoinKeys)) {
		switch column := d.JoinKeys[key]; {
		case !taken[key]:
			add("join_keys."+key, "it is no join key", didYouMean(key, known))
		case column == "":
			add("join_keys."+key, "missing", "name the label column that holds it, such as customer_id")
		}
	}
}

func (d *DatasetRequest) checkOut(add func(field, what, remedy string)) {
	switch format := d.Format(); {
	case d.Out == "":
		add("out", "missing", "name the file to write, such as out: churn.parquet")
	case format == "":
		add("out", fmt.Sprintf("%q", d.Out)+" names no format", "end its name in .parquet, .csv, .csv.gz, .arrow or .arrows, or write - for an Arrow stream on standard output")
	case format == StreamOut && len(d.PartitionBy) > 0:
		add("partition_by", "a stream has no folders", "name a folder with out, or leave it out")
	case format == PartitionOut && (&DatasetRequest{Out: d.Out}).Format() != "":
		add("out", fmt.Sprintf("%q", d.Out)+" is the name of a file, and with partition_by a folder is written", "name a folder, such as "+
			strings.TrimSuffix(d.Out, filepath.Ext(d.Out)))
	}
	seen := map[string]bool{}
	for _, c := range d.PartitionBy {
		if seen[c] || c == "" {
			add("partition_by", "column "+fmt.Sprintf("%q", c)+" stands twice, or has no name", "name columns of the training set, each once")
		}
		seen[c] = true
	}
}
