package ingest

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/compute"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

// accepted is a checked event, ready to be appended.
type accepted struct {
	fields     *fields
	deleted    bool // columns but the key are null
	op         string
	eventTime  int64
	sequence   int64
	sequenced  bool
	recordedAt int64
	ingestedAt int64
	assumed    bool
	eventID    []byte
	envelope   *envelope // nil for rows and tombstones
	extra      []byte
	position   feature.Position
}

// builder appends accepted events to Arrow builders in the log's schema.
type builder struct {
	stream *feature.Stream
	rows   *array.RecordBuilder
	append []func(*cell)
	key    []bool // which columns are part of the key
	patch  bool

	extra, eventID, eventType, source, version *array.StringBuilder
	actor, reason, topic, op, job              *array.StringBuilder
	eventTime, recordedAt, ingestedAt          *array.TimestampBuilder
	sequence, partition, offset                *array.Int64Builder
	assumed                                    *array.BooleanBuilder
	present, policies                          *array.ListBuilder
	jobID                                      string
}

func newBuilder(s *feature.Stream, jobID string) *builder {
	schema := s.LogSchema()
	b := &builder{
		stream: s, rows: array.NewRecordBuilder(memory.DefaultAllocator, schema), jobID: jobID,
		patch: s.Payload == feature.PatchPayload && s.Kind == feature.StateStream,
	}
	for i, c := range s.Columns {
		b.append = append(b.append, appender(b.rows.Field(i)))
		key := false
		for _, k := range s.Key {
			key = key || k == c.Name
		}
		b.key = append(b.key, key)
	}
	field := func(name string) array.Builder { return b.rows.Field(schema.FieldIndices(name)[0]) }
	text := func(name string) *array.StringBuilder { return field(name).(*array.StringBuilder) }
	moment := func(name string) *array.TimestampBuilder { return field(name).(*array.TimestampBuilder) }
	number := func(name string) *array.Int64Builder { return field(name).(*array.Int64Builder) }
	b.extra, b.eventID, b.eventType, b.source = text(feature.ColExtra), text(feature.ColEventID), text(feature.ColEventType), text(feature.ColSource)
	b.version, b.actor, b.reason = text(feature.ColSchemaVersion), text(feature.ColActor), text(feature.ColReason)
	b.topic, b.op, b.job = text(feature.ColTopic), text(feature.ColOp), text(feature.ColJobID)
	b.eventTime, b.recordedAt, b.ingestedAt = moment(feature.ColEventTime), moment(feature.ColRecordedAt), moment(feature.ColIngestedAt)
	b.sequence, b.partition, b.offset = number(feature.ColSequence), number(feature.ColPartition), number(feature.ColOffset)
	b.assumed = field(feature.ColAssumed).(*array.BooleanBuilder)
	b.policies = field(feature.ColPolicies).(*array.ListBuilder)
	if b.patch {
		b.present = field(feature.ColPresent).(*array.ListBuilder)
	}
	return b
}

// appender gives the function that appends a cell to the builder of its column.
func appender(b array.Builder) func(*cell) {
	nullable := func(value func(*cell)) func(*cell) {
		return func(c *cell) {
			if c.state != present {
				b.AppendNull()
				return
			}
			value(c)
		}
	}
	switch b := b.(type) {
	case *array.StringBuilder:
		return nullable(func(c *cell) { b.BinaryBuilder.Append(c.text) })
	case *array.Int64Builder:
		return nullable(func(c *cell) { b.Append(c.integer) })
	case *array.TimestampBuilder:
		return nullable(func(c *cell) { b.Append(arrow.Timestamp(c.integer)) })
	case *array.Date32Builder:
		return nullable(func(c *cell) { b.Append(arrow.Date32(c.integer)) })
	case *array.Float64Builder:
		return nullable(func(c *cell) { b.Append(c.double) })
	case *array.BooleanBuilder:
		return nullable(func(c *cell) { b.Append(c.integer == 1) })
	case *array.Decimal128Builder:
		return nullable(func(c *cell) { b.Append(c.decimal) })
	case *array.ListBuilder:
		element := appender(b.ValueBuilder())
		return nullable(func(c *cell) {
			b.Append(true)
			for i := range c.list {
				element(&c.list[i])
			}
		})
	default:
		panic(fmt.Sprintf("no column of loam has the builder %T", b))
	}
}

var nothing cell

func (b *builder) add(a *accepted) {
	for i, put := range b.append {
		if a.deleted && !b.key[i] {
			put(&nothing)
		} else {
			put(&a.fields.columns[i])
		}
	}
	text := func(sb *array.StringBuilder, s []byte) {
		if s == nil {
			sb.AppendNull()
		} else {
			sb.BinaryBuilder.Append(s)
		}
	}
	text(b.extra, a.extra)
	text(b.eventID, a.eventID)
	var e envelope
	if a.envelope != nil {
		e = *a.envelope
	}
	text(b.eventType, e.eventType)
	text(b.source, e.source)
	text(b.version, e.version)
	text(b.actor, e.actor)
	text(b.reason, e.reason)
	b.topic.Append(a.position.Topic)
	b.op.Append(a.op)
	b.job.Append(b.jobID)
	b.eventTime.Append(arrow.Timestamp(a.eventTime))
	b.recordedAt.Append(arrow.Timestamp(a.recordedAt))
	b.ingestedAt.Append(arrow.Timestamp(a.ingestedAt))
	if a.sequenced {
		b.sequence.Append(a.sequence)
	} else {
		b.sequence.AppendNull()
	}
	b.partition.Append(int64(a.position.Partition))
	b.offset.Append(a.position.Offset)
	b.assumed.Append(a.assumed)
	b.policies.AppendNull()
	if b.patch {
		b.addPresent(a)
	}
}

// addPresent names the columns that a patch carries.
func (b *builder) addPresent(a *accepted) {
	if a.deleted {
		b.present.AppendNull()
		return
	}
	b.present.Append(true)
	names := b.present.ValueBuilder().(*array.StringBuilder)
	for i, c := range b.stream.Columns {
		if a.fields.columns[i].state != absent {
			names.Append(c.Name)
		}
	}
}

// flush gives what was added, without the rows in drop, as a batch that the caller releases.
func (b *builder) flush(ctx context.Context, drop []int) (arrow.RecordBatch, error) {
	batch := b.rows.NewRecordBatch()
	if len(drop) == 0 {
		return batch, nil
	}
	defer batch.Release()
	keep := array.NewBooleanBuilder(memory.DefaultAllocator)
	defer keep.Release()
	for i := range int(batch.NumRows()) {
		dropped := len(drop) > 0 && drop[0] == i
		if dropped {
			drop = drop[1:]
		}
		keep.Append(!dropped)
	}
	mask := keep.NewArray()
	defer mask.Release()
	return compute.FilterRecordBatch(ctx, batch, mask, compute.DefaultFilterOptions())
}
