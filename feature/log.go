package feature

import (
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
)

// Columns that loam adds to a stream's own in its log and its history. The names are frozen: they are what other
// engines read, and no column of a stream may have one of them.
const (
	ColExtra         = "extra"            // json: payload fields outside the schema, null without any
	ColPresent       = "present"          // list<string>: patch streams only, the columns the event carried
	ColEventTime     = "event_time"       // timestamp: when it happened in the source
	ColSequence      = "sequence"         // int64: settles ties of event time; timestamps in microseconds
	ColRecordedAt    = "recorded_at"      // timestamp: when loam first read the event
	ColIngestedAt    = "ingested_at"      // timestamp: since when the event could be served
	ColAssumed       = "ingested_assumed" // bool: ingested_at was taken from the event time, the source named no other
	ColEventID       = "event_id"         // string
	ColEventType     = "event_type"       // string, null in row streams
	ColSource        = "source"           // string, null in row streams
	ColSchemaVersion = "schema_version"   // string, null in row streams
	ColActor         = "actor"            // string: who changed it, where the envelope says
	ColReason        = "reason"           // string: why, where the envelope says
	ColTopic         = "topic"            // string  \
	ColPartition     = "partition"        // int64    } the position
	ColOffset        = "offset"           // int64   /
	ColOp            = "op"               // string: OpUpsert, OpDelete or OpEvent
	ColJobID         = "job_id"           // string: the run or backfill that wrote the row
	ColPolicies      = "policies"         // list<string>: privacy policies applied to the row

	ColValidFrom = "valid_from" // history: timestamp, inclusive
	ColValidTo   = "valid_to"   // history: timestamp, exclusive; null exactly while is_current
	ColIsCurrent = "is_current" // history: bool
)

// Values of [ColOp].
const (
	OpUpsert = "upsert" // the entity exists from this event time on, with these values
	OpDelete = "delete" // the entity does not exist from this event time on; the columns but the key are null
	OpEvent  = "event"  // a fact of an event stream
)

var logColumns = []Column{
	{Name: ColExtra, Type: Type{Kind: JSON}},
	{Name: ColPresent, Type: Type{Kind: String, List: true}},
	{Name: ColEventTime, Type: Type{Kind: Timestamp}},
	{Name: ColSequence, Type: Type{Kind: Int64}},
	{Name: ColRecordedAt, Type: Type{Kind: Timestamp}},
	{Name: ColIngestedAt, Type: Type{Kind: Timestamp}},
	{Name: ColAssumed, Type: Type{Kind: Bool}},
	{Name: ColEventID, Type: Type{Kind: String}},
	{Name: ColEventType, Type: Type{Kind: String}},
	{Name: ColSource, Type: Type{Kind: String}},
	{Name: ColSchemaVersion, Type: Type{Kind: String}},
	{Name: ColActor, Type: Type{Kind: String}},
	{Name: ColReason, Type: Type{Kind: String}},
	{Name: ColTopic, Type: Type{Kind: String}},
	{Name: ColPartition, Type: Type{Kind: Int64}},
	{Name: ColOffset, Type: Type{Kind: Int64}},
	{Name: ColOp, Type: Type{Kind: String}},
	{Name: ColJobID, Type: Type{Kind: String}},
	{Name: ColPolicies, Type: Type{Kind: String, List: true}},
}

var historyColumns = []Column{
	{Name: ColValidFrom, Type: Type{Kind: Timestamp}},
	{Name: ColValidTo, Type: Type{Kind: Timestamp}},
	{Name: ColIsCurrent, Type: Type{Kind: Bool}},
	{Name: ColEventID, Type: Type{Kind: String}},
	{Name: ColSequence, Type: Type{Kind: Int64}},
	{Name: ColTopic, Type: Type{Kind: String}},
	{Name: ColPartition, Type: Type{Kind: Int64}},
	{Name: ColOffset, Type: Type{Kind: Int64}},
	{Name: ColRecordedAt, Type: Type{Kind: Timestamp}},
	{Name: ColIngestedAt, Type: Type{Kind: Timestamp}},
}

// reserved reports whether loam uses the name itself: in a log or a history, or with the prefix loam_ in statements.
func reserved(name string) bool {
	if strings.HasPrefix(name, "loam_") {
		return true
	}
	same := func(c Column) bool { return c.Name == name }
	return slices.ContainsFunc(logColumns, same) || slices.ContainsFunc(historyColumns, same)
}

// LogColumns are the columns of the stream's log in their order: its own, then loam's.
func (s *Stream) LogColumns() []Column {
	columns := slices.Clone(s.Columns)
	for _, c := range logColumns {
		if c.Name == ColPresent && s.Payload != PatchPayload {
			continue
		}
		columns = append(columns, c)
	}
	return columns
}

// HistoryColumns are the columns of a state stream's history in their order: its own, then loam's.
func (s *Stream) HistoryColumns() []Column {
	return append(slices.Clone(s.Columns), historyColumns...)
}

// LogSchema is the schema of every Arrow batch that ingest makes of the stream and the lake takes: one row an accepted
// event, the columns of [Stream.LogColumns], all nullable.
func (s *Stream) LogSchema() *arrow.Schema { return ArrowSchema(s.LogColumns()) }

// ArrowSchema is the schema of a batch with these columns, all nullable.
func ArrowSchema(columns []Column) *arrow.Schema {
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		fields[i] = arrow.Field{Name: c.Name, Type: c.Type.Arrow(), Nullable: true}
	}
	return arrow.NewSchema(fields, nil)
}
