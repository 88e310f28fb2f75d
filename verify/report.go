package verify

import (
	"context"
	"time"
)

// Options bound and inform a check.
type Options struct {
	// Buckets is how many parts the keys are taken in; 0 means one a million rows of the log.
	Buckets     int
	MemoryBytes int64  // of DuckDB; 0 leaves its default
	TempDir     string // where it spills to
	// Progress, if not nil, is told how many buckets of how many have been compared.
	Progress func(done, of int)

	// Now is the clock of [Online]; nil means time.Now.
	Now func() time.Time
	// Wait returns after the next commit to the lake. [Online] calls it, three times at most, before it compares again
	// what Redis or the lake alone had taken. nil means that nobody commits, and nothing is compared again.
	Wait func(context.Context) error
}

// rowsPerBucket is how many rows of a log a bucket has unless Options say otherwise.
const rowsPerBucket = 1_000_000

// bucketsFor is the number of buckets for a log of so many rows.
func (o Options) bucketsFor(rows int64) int {
	if o.Buckets > 0 {
		return o.Buckets
	}
	return int(max(1, (rows+rowsPerBucket-1)/rowsPerBucket))
}

// Kind says what a finding is about.
type Kind string

// Kinds of findings. The words are frozen: they are what a machine reads.
const (
	// Of a history against what its log makes.
	MissingVersion Kind = "missing_version" // the log makes a version that the history lacks
	ExtraVersion   Kind = "extra_version"   // the history has a version that the log doesn't make
	WrongVersion   Kind = "wrong_version"   // columns of a version differ

	// Of a history by itself.
	EmptyInterval Kind = "empty_interval" // valid_from is null, or not before valid_to
	Overlap       Kind = "overlap"        // a version begins before the one before it ends
	CurrentFlag   Kind = "current_flag"   // is_current where valid_to is set, or the other way round
	OpenVersions  Kind = "open_versions"  // more than one open version of a key

	// Of a log.
	DuplicatePosition Kind = "duplicate_position" // rows that share a position
	DuplicateEvent    Kind = "duplicate_event"    // rows that share event id, key and event time
	BeyondOffset      Kind = "beyond_offset"      // rows at or after the offset where the table stands
	WrongCounts       Kind = "wrong_counts"       // read, accepted, refused and duplicate don't add up, or not to the rows
	HistoryAhead      Kind = "history_ahead"      // the history has taken offsets that the log has not

	// Of a view in Redis.
	MissingEntity Kind = "missing_entity" // the lake serves an entity that Redis lacks
	ExtraEntity   Kind = "extra_entity"   // Redis has an entity that the lake doesn't know
	WrongGuard    Kind = "wrong_guard"    // its order, or that of a column, is another change's
	WrongTile     Kind = "wrong_tile"     // a tile of a windowed view, or the values of a distinct, are other than its events make
	WrongValue    Kind = "wrong_value"    // a value, event time or tombstone differs

	// Of what was served.
	WrongServed Kind = "wrong_served" // a value, or its status, is another than the log makes of it for that time
)

// Finding is one thing that is not as it must be.
type Finding struct {
	Kind Kind   `json:"kind"`
	Key  string `json:"key,omitempty"` // the entity's, its parts joined by |
	Text string `json:"text"`
	// Drawing is the key's history, as it should be and as it is, for the first keys whose histories differ.
	Drawing string `json:"drawing,omitempty"`
}

// Bounds of what a report holds; what goes beyond is counted.
const (
	findingsMax = 100 // a kind
	drawingsMax = 10
)

// Findings collect what was found: all of it counted, the first of each kind kept.
type Findings struct {
	Total  int64          `json:"differences"`
	ByKind map[Kind]int64 `json:"by_kind,omitempty"`
	First  []Finding      `json:"findings,omitempty"`
}

// add counts a finding, and keeps it unless there are many of its kind.
func (f *Findings) add(found Finding) {
	f.Total++
	if f.ByKind == nil {
		f.ByKind = map[Kind]int64{}
	}
	f.ByKind[found.Kind]++
	if f.ByKind[found.Kind] <= findingsMax {
		f.First = append(f.First, found)
	}
}

// full reports whether a further finding of the kind would only be counted.
func (f *Findings) full(k Kind) bool { return f.ByKind[k] >= findingsMax }

// count counts findings that are not kept.
func (f *Findings) count(k Kind, n int64) {
	if n > 0 {
		f.Total += n
		f.ByKind[k] += n
	}
}

// Report says what [History] has checked, and what it found.
type Report struct {
	Stream     string `json:"stream"`
	Buckets    int    `json:"buckets"`
	Partitions int    `json:"partitions"`         // partitions and files that the log has rows of
	LogRows    int64  `json:"log_rows"`           // rows of the log
	Changes    int64  `json:"changes,omitempty"`  // those that the history has taken
	Keys       int64  `json:"keys,omitempty"`     // keys that those are of
	Versions   int64  `json:"versions,omitempty"` // versions that they make
	Findings
}

// OK reports whether nothing was found.
func (r *Report) OK() bool { return r.Total == 0 }

// OnlineReport says what [Online] has compared, and what it found.
type OnlineReport struct {
	View       string    `json:"view"`
	Generation int64     `json:"generation"`
	At         time.Time `json:"at"`          // the instant that was compared
	Buckets    int       `json:"buckets"`     //
	Entities   int64     `json:"entities"`    // entities that the lake knows, deleted ones included
	Values     int64     `json:"values"`      // values compared
	Compared   int       `json:"compared"`    // how many times entities were compared
	NotSettled int64     `json:"not_settled"` // entities that the lake and Redis had not both taken at the end
	// AsOf is the instant of a generation whose values no change moves; nil of others.
	AsOf *time.Time `json:"as_of,omitempty"`
	Findings
}

// OK reports whether nothing differs and everything was settled.
func (r *OnlineReport) OK() bool { return r.Total == 0 && r.NotSettled == 0 }
