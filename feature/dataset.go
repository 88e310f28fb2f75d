package feature

import "time"

// Clock says which of an event's two times decides whether a label may see it.
type Clock string

// The two clocks of a training set.
const (
	ServedClock Clock = "served" // what the model would have been given at the label's time: the default
	EventClock  Clock = "event"  // what was true in the source at the label's time
)

// DefaultTimeColumn is the label column that holds the time unless a request names another.
const DefaultTimeColumn = "event_timestamp"

// DatasetRequest asks for a training set.
type DatasetRequest struct {
	Name       string
	Labels     string // path of a .parquet or .csv file; relative ones start at the project folder
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
	Out             string // path of the Parquet file; relative ones start at the project folder

	At Place
}
