package feature

import (
	"slices"
	"strings"
	"time"
)

// StreamKind says what an event of a stream is.
type StreamKind string

// Kinds of streams.
const (
	StateStream StreamKind = "state" // each event carries the state of its entity: becomes SCD2 history
	EventStream StreamKind = "event" // each event is a fact: an append-only table
)

// Format says how an event of a stream is written.
type Format string

// Formats of streams.
const (
	EnvelopeFormat Format = "envelope" // {"envelope": {…}, "payload": {…}}, columns are payload fields
	RowFormat      Format = "row"      // flat records, columns are fields
	DebeziumFormat Format = "debezium" // change events of Debezium, columns are the row's
)

// Encoding says how the values of a stream's topic are written. Files are JSON, CSV or Parquet whatever it is.
type Encoding string

// Encodings of topics. All but the first are framed as a registry's serializers do it: a zero byte, the schema's id in
// 4 bytes, of Protobuf the message's index, and the event.
const (
	JSONEncoding       Encoding = "json"
	AvroEncoding       Encoding = "avro"
	ProtobufEncoding   Encoding = "protobuf"
	JSONSchemaEncoding Encoding = "json-schema"
)

// Payload says what a state event carries.
type Payload string

// Payloads of state streams.
const (
	FullPayload  Payload = "full"  // the whole state: an absent field is null
	PatchPayload Payload = "patch" // what changed: an absent field is unchanged, an explicit null is null
)

// LoadKind says what a file of a stream is.
type LoadKind string

// Loads of streams.
const (
	ChangesLoad LoadKind = "changes" // changes and states, some entities' or all
	FullLoad    LoadKind = "full"    // a full extract: an entity that it lacks is gone
)

// PositionID is the value of a row stream's `id:` that makes the position the event's identity.
const PositionID = "position"

// SchemaMajor is the major schema_version of envelopes that loam understands.
const SchemaMajor = 1

// Column is one column of a stream.
type Column struct {
	Name string
	Type Type
	Path []string // where the value stands in the payload or record; [Name] unless `path:` says otherwise
	// RenamedFrom is the name that the column had before, "" for none: the tables rename it, and keep its rows.
	RenamedFrom string
	Enum        []string // the values a string column may have; nil allows all
	Min         *float64 // least and greatest value of a number; nil is unbounded
	Max         *float64
}

// Mapped is a member of the row that a mapping makes of a record.
type Mapped struct {
	Name string
	SQL  string // a DuckDB expression over record, record_key and record_time
	Type Type
	At   Place
}

// Example is a record of a stream with a mapping, and what it is expected to become.
type Example struct {
	Record  []byte // JSON
	Key     string // of the record; "" for none
	Want    []byte // an object of columns, and of op where it isn't an upsert; nil where the record is to be refused
	Refused string // with this in the dead letter's detail
	At      Place
}

// ColumnNames gives the names of columns, in their order.
func ColumnNames(columns []Column) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	return names
}

// Stream is one canonical topic and what loam knows of it.
type Stream struct {
	Name          string
	Kind          StreamKind
	Format        Format
	Encoding      Encoding
	Topic         string
	Key           []string // columns that identify the entity (state) or the event (event), in declared order
	EventTime     string   // field with the event time; "" in an envelope stream means the envelope's occurred_at
	Sequence      string   // field that settles ties of event time; "" for none
	ProcessedTime string   // field with the time the source processed the event; "" for none
	ID            string   // row streams: the field with the event id, PositionID, or "" for a hash of the content
	ClusterBy     string   // column that files are clustered and bucketed by
	Columns       []Column
	Track         []string // tracked columns; nil means all that can be
	Payload       Payload
	// DeleteWhen is a condition on the columns of a row stream: a record for which it is true deletes its entity; "" for none.
	DeleteWhen  string
	DeleteReads []string // the columns that DeleteWhen reads
	Load        LoadKind // of a row stream; FullLoad has no topic, files alone feed it
	EventTypes  []string // envelope streams: exact event types, or <Name>.* for any verb
	// AllowedLateness is subtracted from the newest event time to give the watermark.
	AllowedLateness time.Duration
	// MaxClockSkew is how far ahead of recorded_at a live event's time may be.
	MaxClockSkew time.Duration
	// Mapping makes the columns, and the fields that EventTime, Sequence, ProcessedTime and ID name, of a vendor's record; nil for none.
	Mapping  []Mapped
	Examples []Example // of the mapping
	// SnapshotAt is since when the rows of Debezium's snapshots are taken to be so, where the stream has no event_time; zero for unknown.
	SnapshotAt time.Time
	// DeadLetterTopic is the broker's topic that refused events are produced to besides; "" for none.
	DeadLetterTopic string
	// Keyed promises that each record's Kafka key is its entity's key.
	Keyed bool

	At Place

	deleteAt        Place // of delete_when
	deadLetterTopic Place // of dead_letter_topic
}

// Full reports whether the stream's files are full extracts.
func (s *Stream) Full() bool { return s.Load == FullLoad }

// Framed reports whether the values of the stream's topic name schemas of a registry.
func (s *Stream) Framed() bool { return s.Encoding != "" && s.Encoding != JSONEncoding }

// Column returns the column with this name.
func (s *Stream) Column(name string) (Column, bool) {
	for _, c := range s.Columns {
		if c.Name == name {
			return c, true
		}
	}
	return Column{}, false
}

// Tracked reports whether a change of the named column opens a version.
func (s *Stream) Tracked(name string) bool {
	if s.Track != nil {
		return slices.Contains(s.Track, name)
	}
	return s.trackable(name) && name != "source_metadata"
}

// trackable reports whether the column may be tracked at all.
func (s *Stream) trackable(name string) bool {
	return !slices.Contains(s.Key, name) && name != s.EventTime && name != s.Sequence
}

// Takes reports whether an envelope of this event type belongs to the stream.
func (s *Stream) Takes(eventType string) bool {
	for _, t := range s.EventTypes {
		if aggregate, any := strings.CutSuffix(t, ".*"); any {
			if name, _, dotted := strings.Cut(eventType, "."); dotted && name == aggregate {
				return true
			}
		} else if t == eventType {
			return true
		}
	}
	return false
}

// Truncates reports whether an event type says that all entities are gone at once. No stream takes that.
func Truncates(eventType string) bool {
	_, verb, _ := strings.Cut(eventType, ".")
	return verb == "truncate" || verb == "truncated"
}

// camelCase is the aggregate's name in event types: crm_account becomes CrmAccount.
func camelCase(name string) string {
	var b strings.Builder
	for _, part := range strings.Split(name, "_") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}
