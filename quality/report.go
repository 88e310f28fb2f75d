package quality

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/loamdata/loam/feature"
)

// Report is what was measured of a stream.
type Report struct {
	Stream   string    `json:"stream"`
	Changes  int64     `json:"changes"`
	Keys     int64     `json:"keys"`
	Versions int64     `json:"versions"`
	Buckets  int       `json:"buckets"`
	Measures []Measure `json:"measures"` // one of each kind, in one order
}

// Found are the measures that are beyond their bounds.
func (r *Report) Found() []Measure {
	var found []Measure
	for _, m := range r.Measures {
		if m.Found {
			found = append(found, m)
		}
	}
	return found
}

// Measure is how often a thing was found.
type Measure struct {
	Kind    Kind     `json:"kind"`
	Found   bool     `json:"found"` // whether it is beyond its bound
	What    string   `json:"what"`
	Count   int64    `json:"count"`
	Of      int64    `json:"of"`    // of how many that could be it
	Share   float64  `json:"share"` // Count of Of; 0 of none
	Detail  string   `json:"detail,omitempty"`
	Columns []Column `json:"columns,omitempty"` // the most frequent first
	Keys    []string `json:"keys,omitempty"`    // a few keys that have it, their parts joined by |
	Remedy  string   `json:"remedy,omitempty"`  // of one that was found
}

// Column is how often a measure concerns a column.
type Column struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
	Alone int64  `json:"alone"` // and no other column beside it
}

// Kind says what a measure is about.
type Kind string

// Kinds of measures. The words are frozen: they are what a machine reads.
const (
	Ties         Kind = "ties"
	Disputed     Kind = "disputed_ties"
	Noise        Kind = "noise"
	OutOfOrder   Kind = "out_of_order"
	Ahead        Kind = "ahead"
	Shifted      Kind = "shifted"
	Truncated    Kind = "truncated"
	Assumed      Kind = "ingested_assumed"
	SparseNulls  Kind = "sparse_nulls"
	NoOps        Kind = "no_ops"
	Late         Kind = "late"
	Duplicates   Kind = "duplicates"
	CreatedAgain Kind = "created_again"
)

// rule says of a kind what it counts, and from where on it is an error.
type rule struct {
	kind   Kind
	what   string
	above  float64 // the share beyond which it is found
	least  int64   // and how many there must be; 0 means that it never is
	remedy string
}

// truncatedAbove is the share of event times at whole units beyond which they are taken as cut to them.
const truncatedAbove = 0.99

// rules are those of all kinds, in the order in which they are reported. The bounds are chosen, not measured: a stream that
// is right stays below them by far, and one of the errors goes far beyond.
var rules = []rule{
	{kind: Ties, what: "changes that share event time and sequence with another of their key: their position alone orders them"},
	{kind: Disputed, what: "ties that disagree in a tracked column, or of which one deletes: the position decides what is true",
		above: 0, least: 1, remedy: "name the source's version number or log position as the stream's `sequence:`, or a finer clock as its `event_time:`"},
	{kind: Noise, what: "versions in which one column alone changed",
		above: 0.5, least: 20, remedy: "if no feature needs each of its values, leave the column out of `track:`: it then opens no version; " +
			"a stream that has tables can't change that, so declare it under another name and take its events in anew"},
	{kind: OutOfOrder, what: "changes with an event time before that of an earlier offset of their partition and key",
		above: 0.05, least: 3, remedy: "see whether `event_time:` names the clock of the change itself, and whether all producers use the same one; key the records by entity"},
	{kind: Ahead, what: "event times more than a second after the change was recorded",
		above: 0.001, least: 1, remedy: "see whether the producer's clock is set, and whether it writes local time as UTC; `max_clock_skew:` bounds what a topic may hold"},
	{kind: Shifted, what: "changes ingested hours after their event time, or before, to the quarter of an hour",
		above: 0.5, least: 20, remedy: "the producer seems to write local time as UTC: let it write the zone, or UTC"},
	{kind: Truncated, what: "event times without the finer part of a clock",
		above: truncatedAbove, least: 20, remedy: "name a finer clock as `event_time:`, or a `sequence:` that orders what shares an event time"},
	{kind: Assumed, what: "changes of files whose ingested_at was taken from the event time, for want of another",
		above: 0.1, least: 1, remedy: "give the files the time when the source processed each event: `received_at` of an envelope, or the stream's `processed_time:`; " +
			"until then training sets on the clock `served` see these changes too early"},
	{kind: SparseNulls, what: "changes that made several tracked columns null at once, of which the next change has some again",
		above: 0.01, least: 3, remedy: "these look like patches taken for full states: declare the stream with `payload: patch`, or let the producer send all columns"},
	{kind: NoOps, what: "changes that left every tracked column as it was, or deleted what did not exist",
		above: 0.5, least: 20, remedy: "harmless to the history, and most of the log: let the producer send changes only, or track the column that they are about"},
	{kind: Late, what: "changes recorded after one of their key with a later event time",
		above: 0.05, least: 3, remedy: "give the stream an `allowed_lateness:` that covers them, and train on the clock `served`, which knows when each was there"},
	{kind: Duplicates, what: "events read that had been taken before, and were refused as duplicates",
		above: 0.05, least: 20, remedy: "harmless to the history; see whether the producer or a connector repeats whole batches"},
	{kind: CreatedAgain, what: "deletes after which the entity was created again",
		above: 0.2, least: 3, remedy: "see whether the source deletes and inserts where it updates: each such gap is an absence to a training set"},
}

// measure is a rule's measure of so many of so many.
func (r rule) measure(count, of int64) Measure {
	m := Measure{Kind: r.kind, What: r.what, Count: count, Of: of}
	if of > 0 {
		m.Share = float64(count) / float64(of)
	}
	if r.least > 0 && count >= r.least && m.Share > r.above {
		m.Found, m.Remedy = true, r.remedy
	}
	return m
}

// report makes the report of the sums; read counts the events that the log's table has read.
func (r *run) report(read feature.Counts) *Report {
	n := r.counts
	loudest := loudestOf(r.columns[Noise])
	alone := r.columns[Noise][loudest].Alone
	if len(tracked(r.def)) < 2 {
		alone = 0 // the one column there is makes all versions, as it should
	}
	shifted, shift := shiftOf(r.shifts)
	truncated, unit := truncationOf(n)
	of := map[Kind][2]int64{
		Ties: {n["tied"], n["changes"]}, Disputed: {n["disputed"], n["changes"]},
		Noise:      {alone, n["successors"]},
		OutOfOrder: {n["behind"], n["follows"]}, Ahead: {n["ahead"], n["changes"]},
		Shifted: {shifted, n["known"]}, Truncated: {truncated, n["changes"]}, Assumed: {n["assumed"], n["changes"]},
		SparseNulls: {n["sparse"], n["judged"]},
		// A settled change opened a version, ended one, or did neither.
		NoOps: {n["settles"] - n["versions"] - n["deleted"], n["changes"]},
		Late:  {n["late"], n["changes"]}, Duplicates: {read.Duplicate, read.Read}, CreatedAgain: {n["created_again"], n["deleted"]},
	}
	report := &Report{Stream: r.def.Name, Changes: n["changes"], Keys: n["keys"], Versions: n["versions"], Buckets: r.buckets}
	for _, rule := range rules {
		m := rule.measure(of[rule.kind][0], of[rule.kind][1])
		m.Columns = mostFrequent(r.columns[rule.kind])
		m.Keys = r.keys[string(rule.kind)]
		switch {
		case m.Kind == Noise && alone > 0:
			m.Detail, m.Keys = "column "+loudest, r.keys[noiseKeys(loudest)]
		case m.Kind == Shifted && shifted > 0:
			m.Detail = "most of them by " + shift
		case m.Kind == Truncated && unit != "":
			m.Detail = "cut to whole " + unit
		}
		report.Measures = append(report.Measures, m)
	}
	return report
}

// loudestOf is the column that alone made most versions, "" where there is none.
func loudestOf(columns map[string]Column) string {
	most := Column{}
	for _, c := range columns {
		if c.Alone > most.Alone || c.Alone == most.Alone && c.Name < most.Name {
			most = c
		}
	}
	return most.Name
}

// columnsMax is how many columns of a measure are told.
const columnsMax = 10

// mostFrequent are the columns in order of how often they are counted.
func mostFrequent(columns map[string]Column) []Column {
	list := slices.SortedFunc(maps.Values(columns), func(a, b Column) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(b.Alone, a.Alone), cmp.Compare(a.Name, b.Name))
	})
	return list[:min(len(list), columnsMax)]
}

// shiftOf says how many changes are off by hours, and by which time most of them are.
func shiftOf(quarters map[int64]int64) (n int64, most string) {
	var greatest int64
	for _, q := range slices.Sorted(maps.Keys(quarters)) {
		n += quarters[q]
		if quarters[q] > greatest {
			greatest, most = quarters[q], fmt.Sprintf("%+dh%02dm", q/4, max(q, -q)%4*15)
		}
	}
	return n, most
}

// truncationOf says how many event times lack the finer part of a clock, and to which unit they are cut: the coarsest one
// that is as good as all of them.
func truncationOf(n map[string]int64) (truncated int64, unit string) {
	for _, unit := range []string{"days", "hours", "minutes", "seconds"} {
		if n[unit] > 0 && float64(n[unit]) > truncatedAbove*float64(n["changes"]) {
			return n[unit], unit
		}
	}
	return n["seconds"], ""
}
