package feature

import (
	"cmp"

	"github.com/apache/arrow-go/v18/arrow"
)

// Counts say what became of the events of a partition. Read = Accepted + Refused + Duplicate always holds.
type Counts struct {
	Read      int64 `json:"read"`
	Accepted  int64 `json:"accepted"`
	Refused   int64 `json:"refused"`
	Duplicate int64 `json:"duplicate"`
	IDReuse   int64 `json:"id_reuse,omitempty"` // accepted events whose id came before with another key or event time
	Extra     int64 `json:"extra,omitempty"`    // accepted events with fields outside the schema
	Ahead     int64 `json:"ahead,omitempty"`    // accepted events of files with an event time after they were read
	Unkeyed   int64 `json:"unkeyed,omitempty"`  // accepted events of a keyed stream whose record key is another
	Late      int64 `json:"late,omitempty"`     // accepted events older than one that their partition had before
	// Ties are changes that came when another of their key with their event time and sequence was there, or with it: their
	// position alone orders them. A history counts them, its log doesn't.
	Ties int64 `json:"ties,omitempty"`
}

// Add adds the counts of o.
func (c *Counts) Add(o Counts) {
	c.Read += o.Read
	c.Accepted += o.Accepted
	c.Refused += o.Refused
	c.Duplicate += o.Duplicate
	c.IDReuse += o.IDReuse
	c.Extra += o.Extra
	c.Ahead += o.Ahead
	c.Unkeyed += o.Unkeyed
	c.Late += o.Late
	c.Ties += o.Ties
}

// Partition names a partition of a topic.
type Partition struct {
	Topic string
	Index int32
}

// Compare orders partitions by topic and index.
func (p Partition) Compare(o Partition) int {
	return cmp.Or(cmp.Compare(p.Topic, o.Topic), cmp.Compare(p.Index, o.Index))
}

// CompareSpans orders spans by their partitions.
func CompareSpans(a, b Span) int { return a.Partition.Compare(b.Partition) }

// Span is what a batch covers of one partition: every offset in [From, To), whatever became of it.
type Span struct {
	Partition
	TopicID    string // the broker's id of the topic; "" where there is none
	From, To   int64
	Watermark  int64 // event time up to which the partition is complete, microseconds since 1970 UTC
	RecordedAt int64 // newest recorded_at of the partition, microseconds since 1970 UTC
	// Newest is the newest event time of the partition's accepted events, microseconds since 1970 UTC, nil where there are none.
	// The log finds it, as it does Counts.Late: makers of batches leave both out.
	Newest *int64
	Counts Counts
	Done   bool // of a file: To is its end
}

// Batch is a micro-batch of one stream: what ingest makes and the lake and the online store take.
type Batch struct {
	Stream  *Stream
	Rows    []arrow.RecordBatch // accepted events in the schema LogSchema, in order of arrival
	Refused []DeadLetter
	Spans   []Span // one a partition
}

// NumRows is the number of accepted events.
func (b *Batch) NumRows() int64 {
	var n int64
	for _, r := range b.Rows {
		n += r.NumRows()
	}
	return n
}

// Release releases the Arrow memory of the rows.
func (b *Batch) Release() {
	for _, r := range b.Rows {
		r.Release()
	}
	b.Rows = nil
}

// Reason says why an event was refused. The words are frozen: they are what dead letters are counted and looked up by.
type Reason string

// Reasons for which events are refused.
const (
	NotJSON         Reason = "not_json"           // bytes that don't parse, or aren't one JSON object
	BadEnvelope     Reason = "bad_envelope"       // an envelope field missing or malformed
	UnknownType     Reason = "unknown_event_type" // an event type of no stream, or of another than the topic's
	UnknownSchema   Reason = "unknown_schema_version"
	MissingKey      Reason = "missing_key"
	BadValue        Reason = "bad_value" // a type, enum value, bound or decimal that doesn't fit
	NoEventTime     Reason = "no_event_time"
	FutureEventTime Reason = "future_event_time" // ahead of recorded_at by more than max_clock_skew
	DeletedEvent    Reason = "delete_of_event"   // a delete on an event stream
	Truncate        Reason = "truncate"          // of everything at once, which a history of entities has no word for
	TooLarge        Reason = "too_large"         // longer than an event may be, of which only the beginning is kept; or of more values
	UnknownSchemaID Reason = "unknown_schema_id" // framed by the id of a schema that the registry doesn't have
	Undecodable     Reason = "undecodable"       // not framed, or not of the schema that the frame names
)

// Reasons are all of them.
var Reasons = []Reason{
	NotJSON, BadEnvelope, UnknownType, UnknownSchema, MissingKey, BadValue, NoEventTime, FutureEventTime, DeletedEvent, Truncate,
	TooLarge, UnknownSchemaID, Undecodable,
}
