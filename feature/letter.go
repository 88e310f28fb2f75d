package feature

import "strings"

// DeadLetter is a refused event: what it was, where it was, why it was refused, and what became of it since.
type DeadLetter struct {
	Position
	Stream     string // "" where no stream takes it
	Reason     Reason
	Detail     string   // the field and what was wrong with it, without its value
	RecordKey  []byte   // of a Kafka record; nil elsewhere
	Body       []byte   // the original bytes; of a Parquet row its JSON
	Headers    []Header // of a Kafka record
	RecordTime int64    // of a Kafka record, microseconds since 1970 UTC; 0 where there is none
	Text       bool     // values of every type may be text, as in a row of CSV
	RecordedAt int64    // when it was refused first, microseconds since 1970 UTC
	JobID      string   // the run or backfill that refused it
	Redriven   *Redriven
}

// Header is a header of a Kafka record. Its value may be nil.
type Header struct {
	Key   string
	Value []byte
}

// Redriven says what became of a dead letter when it was taken again.
type Redriven struct {
	Outcome  Outcome
	Stream   string // that took it or refused it; "" where it is still of none
	At       int64  // microseconds since 1970 UTC
	By       string // who had it taken
	JobID    string
	Repaired bool // a repaired record was taken in its place
}

// Outcome is what became of a dead letter when it was taken again. The words are frozen.
type Outcome string

// Outcomes. A letter that was refused again waits as one that never was taken again.
const (
	RedriveAccepted  Outcome = "accepted"  // it stands in its stream's log, at its own position
	RedriveDuplicate Outcome = "duplicate" // its event had been accepted at another position, or it stood in the log already
	RedriveRefused   Outcome = "refused"
)

// RedriveJobPrefix begins the job id of every row that was a dead letter before. It is frozen.
const RedriveJobPrefix = "redrive-"

// RedriveTopic names the rows of a redrive as a topic, among spans. No row stands there: each stands at its letter's own position.
func RedriveTopic(jobID string) string { return RedriveTopicPrefix + jobID }

// RedriveJob is the job id of a redrive's topic, and false of any other topic: it takes both prefixes.
func RedriveJob(topic string) (string, bool) {
	job, ok := strings.CutPrefix(topic, RedriveTopicPrefix)
	if !ok || !strings.HasPrefix(job, RedriveJobPrefix) {
		return "", false
	}
	return job, true
}
