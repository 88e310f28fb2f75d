package ingest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// RouterOptions configure a [Router].
type RouterOptions struct {
	Streams []*feature.Stream // that records may go to
	// Only sends every record to one stream, as a live topic or --stream does; nil sends each event by its event_type.
	Only  *feature.Stream
	JobID string
	// Dedups know the streams' identities, by the streams' names.
	Dedups map[string]*Dedup
	// Deletes evaluate the delete_when of the streams that have one, by the streams' names.
	Deletes map[string]Condition
	// Mappings make rows of the records of streams that have a mapping, by the streams' names.
	Mappings map[string]Mapper
	// Starts gives the offset from which a stream takes a partition: what lies before has been taken already. It is asked
	// once a partition.
	Starts func(stream string, p feature.Partition) int64
	// RecordedAt gives the newest recorded_at of a partition, microseconds since 1970 UTC; nil stands for none.
	RecordedAt func(p feature.Partition) int64
	// TopicID gives the broker's id of a topic; nil stands for none.
	TopicID func(topic string) string
	// Refused tells of positions that are dead letters already, and why, so that a replay refuses them again, though their
	// time may have come or a definition become wider.
	Refused map[feature.Position]feature.Reason
}

// Router hands records to their streams and gathers what came of them. It is not safe for concurrent use.
type Router struct {
	o        RouterOptions
	decoders map[string]*decoder
	json     *jsontext.Decoder
	inner    *jsontext.Decoder
	buffer   bytes.Buffer
	innerBuf bytes.Buffer
	envelope envelope
	fields   fields
	recorded map[feature.Partition]int64
	next     map[feature.Partition]int64 // one past the newest offset that was read
	lost     map[feature.Partition]*feature.Span
	strays   []feature.DeadLetter // refused records of no stream
}

// NewRouter makes a router. Every stream must have its Dedup, and one with a delete_when its Condition.
func NewRouter(o RouterOptions) *Router {
	r := &Router{
		o: o, decoders: map[string]*decoder{}, recorded: map[feature.Partition]int64{}, next: map[feature.Partition]int64{},
		lost: map[feature.Partition]*feature.Span{},
	}
	for _, s := range o.Streams {
		r.decoders[s.Name] = newDecoder(s, o)
	}
	r.json, r.inner = jsontext.NewDecoder(&r.buffer), jsontext.NewDecoder(&r.innerBuf)
	return r
}

// Add takes one record, read at now, microseconds since 1970 UTC.
func (r *Router) Add(rec *Record, now int64) {
	p := feature.Partition{Topic: rec.Topic, Index: rec.Partition}
	before, read := r.next[p]
	r.next[p] = rec.Offset + 1
	recordedAt := r.recordedAt(p, now)
	d, refused, parsed := r.parse(rec)
	if d == nil {
		s := r.lost[p]
		if s == nil {
			s = &feature.Span{Partition: p}
			r.lost[p] = s
		}
		s.To, s.RecordedAt = rec.Offset+1, recordedAt
		s.Counts.Read++
		s.Counts.Refused++
		r.strays = append(r.strays, r.letter(rec, refused, recordedAt))
		return
	}
	if _, known := d.from[p]; !known {
		d.from[p] = r.o.Starts(d.stream.Name, p)
	}
	if rec.Offset < d.from[p] {
		return // taken already
	}
	if !read {
		before = d.from[p]
	}
	s := d.span(p)
	s.To, s.RecordedAt = rec.Offset+1, max(s.RecordedAt, recordedAt)
	s.Counts.Read++
	if why, before := r.o.Refused[rec.Position]; refused == nil && before {
		refused = &refusal{why, "refused before, and a dead letter since"}
	}
	if refused == nil {
		switch {
		case rec.Value == nil && d.debezium != nil:
			refused = d.debezium.tombstoneOf(rec.Offset, before, s)
		case rec.Value == nil:
			refused = d.tombstone(rec, &r.fields, s, recordedAt)
		case parsed:
			refused = d.accept(rec, &r.envelope, &r.fields, s, recordedAt)
		default:
			refused = d.accept(rec, nil, &r.fields, s, recordedAt)
		}
	}
	if refused != nil {
		d.refuse(r.letter(rec, refused, recordedAt), s)
	}
}

// Restart forgets where partitions stand, so that Starts and RecordedAt are asked anew: others may have read them meanwhile. Nothing
// of them may wait for a flush.
func (r *Router) Restart(partitions []feature.Partition) {
	for _, p := range partitions {
		delete(r.recorded, p)
		delete(r.next, p)
		for _, d := range r.decoders {
			delete(d.from, p)
		}
	}
}

// Refuse adds to the positions that are known as dead letters.
func (r *Router) Refuse(refused map[feature.Position]feature.Reason) { maps.Copy(r.o.Refused, refused) }

// recordedAt is now, but never before what the partition has had.
func (r *Router) recordedAt(p feature.Partition, now int64) int64 {
	last, ok := r.recorded[p]
	if !ok && r.o.RecordedAt != nil {
		last = r.o.RecordedAt(p)
	}
	now = max(now, last)
	r.recorded[p] = now
	return now
}

func (r *Router) letter(rec *Record, why *refusal, recordedAt int64) feature.DeadLetter {
	l := feature.DeadLetter{
		Position: rec.Position, Reason: why.reason, Detail: why.detail, RecordedAt: recordedAt, RecordTime: max(rec.Timestamp, 0), Text: rec.Text,
		RecordKey: bytes.Clone(rec.Key), Body: bytes.Clone(rec.Value),
	}
	for _, h := range rec.Headers {
		l.Headers = append(l.Headers, feature.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	return l
}

// parse reads a record into the router's envelope and fields. It gives the decoder of the stream it goes to, nil for
// none, why it is refused already, and whether it has an envelope.
func (r *Router) parse(rec *Record) (d *decoder, refused *refusal, enveloped bool) {
	if r.o.Only != nil {
		d = r.decoders[r.o.Only.Name]
	}
	switch {
	case rec.Value == nil && d != nil:
		return d, nil, false
	case rec.Value == nil:
		return nil, &refusal{feature.MissingKey, "a record without a value says nothing of its stream"}, false
	case rec.Cut:
		return d, &refusal{feature.TooLarge, fmt.Sprintf("longer than %d bytes; its first %d are kept", EventBytesMax, CutBytes)}, false
	case rec.Malformed != "":
		return d, &refusal{cmp.Or(rec.Reason, feature.NotJSON), rec.Malformed}, false
	case manyValues(rec.event()):
		return d, &refusal{feature.TooLarge, fmt.Sprintf("more than %d values", ValuesMax)}, false
	case d != nil && d.stream.Format == feature.RowFormat:
		return d, r.parseRow(d, rec), false
	case d != nil && d.debezium != nil:
		return d, r.parseDebezium(d, rec), true
	}
	return r.parseEvent(d, rec)
}

func (r *Router) parseRow(d *decoder, rec *Record) *refusal {
	r.buffer = *bytes.NewBuffer(rec.event())
	r.json.Reset(&r.buffer)
	r.fields.reset(len(d.stream.Columns))
	if r.json.PeekKind() != '{' {
		return r.notAnObject()
	}
	if err := d.plan.object(r.json, rec.event(), d.plan.root, &r.fields, rec.Text); err != nil {
		return &refusal{feature.NotJSON, err.Error()}
	}
	return r.atEnd()
}

// notAnObject tells bytes that aren't JSON from JSON that is no object.
func (r *Router) notAnObject() *refusal {
	if _, err := r.json.ReadValue(); err != nil {
		if err == io.EOF {
			return &refusal{feature.NotJSON, "no bytes"}
		}
		return &refusal{feature.NotJSON, syntax(err).Error()}
	}
	return &refusal{feature.NotJSON, "JSON, but no object"}
}

// atEnd refuses anything behind the object.
func (r *Router) atEnd() *refusal {
	if _, err := r.json.ReadToken(); err != io.EOF {
		return &refusal{feature.NotJSON, "more than one JSON value"}
	}
	return nil
}

// parseEvent reads a canonical event. The payload is read in the same pass where the envelope stands before it.
func (r *Router) parseEvent(d *decoder, rec *Record) (*decoder, *refusal, bool) {
	r.buffer = *bytes.NewBuffer(rec.event())
	r.json.Reset(&r.buffer)
	r.fields.reset(0)
	r.envelope = envelope{}
	if r.json.PeekKind() != '{' {
		return d, r.notAnObject(), true
	}
	var payload []byte // read only once the envelope is known
	var refused *refusal
	done := false
	malformed := func(err error) (*decoder, *refusal, bool) {
		return d, &refusal{feature.NotJSON, err.Error()}, true
	}
	if _, err := r.json.ReadToken(); err != nil {
		return malformed(syntax(err))
	}
	for r.json.PeekKind() != '}' {
		quoted, err := r.json.ReadValue()
		if err != nil {
			return malformed(syntax(err))
		}
		switch name := string(quoted); name {
		case `"envelope"`:
			if err := r.envelope.read(r.json, rec.event(), &r.fields); err != nil {
				return malformed(err)
			}
			d, refused = r.route(d)
		case `"payload"`:
			if refused == nil && r.envelope.seen && d != nil && r.json.PeekKind() == '{' {
				extra := r.fields.extra
				r.fields.reset(len(d.stream.Columns))
				r.fields.extra = extra
				if err := d.plan.object(r.json, rec.event(), d.plan.root, &r.fields, rec.Text); err != nil {
					return malformed(err)
				}
				done = true
				continue
			}
			if payload, err = value(r.json, rec.event()); err != nil {
				return malformed(err)
			}
		default:
			raw, err := value(r.json, rec.event())
			if err != nil {
				return malformed(err)
			}
			if unquoted, err := unquote([]byte(name)); err == nil {
				r.fields.extra = append(r.fields.extra, extraField{path: []string{string(unquoted)}, raw: raw})
			}
		}
	}
	if _, err := r.json.ReadToken(); err != nil {
		return malformed(syntax(err))
	}
	if refused := r.atEnd(); refused != nil {
		return d, refused, true
	}
	if !r.envelope.seen {
		_, refused = r.route(d)
	}
	switch {
	case refused != nil || done:
		return d, refused, true
	case payload == nil:
		return d, &refusal{feature.BadEnvelope, "payload: missing"}, true
	case payload[0] != '{':
		return d, &refusal{feature.BadEnvelope, "payload: want an object"}, true
	}
	extra := r.fields.extra
	r.fields.reset(len(d.stream.Columns))
	r.fields.extra = extra
	r.innerBuf = *bytes.NewBuffer(payload)
	r.inner.Reset(&r.innerBuf)
	if err := d.plan.object(r.inner, payload, d.plan.root, &r.fields, rec.Text); err != nil {
		return malformed(err)
	}
	return d, nil, true
}

// route gives the decoder of the stream that the envelope's event type belongs to, and why the event is refused by its
// envelope. Where the stream is settled already, the type must be one of its own.
func (r *Router) route(only *decoder) (*decoder, *refusal) {
	d := only
	eventType := string(r.envelope.eventType)
	if d == nil {
		for _, s := range r.o.Streams {
			if s.Format == feature.EnvelopeFormat && s.Takes(eventType) {
				d = r.decoders[s.Name]
			}
		}
	}
	reason, detail := r.envelope.check()
	switch {
	case reason == feature.BadEnvelope:
		return d, &refusal{reason, detail}
	case d == nil:
		return nil, &refusal{feature.UnknownType, "event_type: belongs to no stream"}
	case !d.stream.Takes(eventType):
		return d, &refusal{feature.UnknownType, "event_type: does not belong to stream " + d.stream.Name}
	case reason != "":
		return d, &refusal{reason, detail}
	case feature.Truncates(eventType):
		return d, &refusal{feature.Truncate, "event_type: loam has no truncate; send a delete of each entity"}
	}
	return d, nil
}

// Pending is how many accepted events, and how many bytes of them and of refused ones, wait for the next flush.
func (r *Router) Pending() (rows, size int) {
	for _, d := range r.decoders {
		rows += d.count
		size += d.bytes
	}
	for i := range r.strays {
		size += letterBytes(&r.strays[i])
	}
	return rows, size
}

// End says what a flush shall note of partitions of which nothing more was there to read.
type End struct {
	Partition feature.Partition
	At        int64 // when it was seen, microseconds since 1970 UTC
	Done      bool  // the partition is a file, and this is its end
	Idle      bool  // note it also where no record was read since the last flush
}

// Flush gives a batch for every stream that records were read of since the last one, and then, where records of no
// stream were refused, a batch without a stream. The batches' spans start where the streams stand.
func (r *Router) Flush(ctx context.Context, ends []End) ([]*feature.Batch, error) {
	var batches []*feature.Batch
	fail := func(err error) ([]*feature.Batch, error) {
		for _, b := range batches {
			b.Release()
		}
		return nil, err
	}
	for _, s := range r.o.Streams {
		d := r.decoders[s.Name]
		for _, e := range ends {
			d.end(e, r.next[e.Partition])
		}
		b, err := d.flush(ctx)
		if err != nil {
			return fail(fmt.Errorf("finish a batch of %s: %w", s.Name, err))
		}
		if b != nil {
			batches = append(batches, b)
		}
	}
	if len(r.strays) > 0 {
		b := &feature.Batch{Refused: r.strays}
		for _, s := range r.lost {
			b.Spans = append(b.Spans, *s)
		}
		batches = append(batches, b)
		r.strays = nil
		clear(r.lost)
	}
	return batches, nil
}

// end moves the span of a partition to where reading it has come, and its watermark to when its end was seen.
func (d *decoder) end(e End, next int64) {
	s := d.spans[e.Partition]
	if _, known := d.from[e.Partition]; s == nil && e.Idle && known {
		s = d.span(e.Partition)
	}
	if s == nil {
		return
	}
	s.To = max(s.To, next)
	s.Done = s.Done || e.Done
	if feature.Live(s.Topic) {
		s.Watermark = max(s.Watermark, e.At-d.stream.AllowedLateness.Microseconds())
	}
}
