package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
)

// decoder makes the batches of one stream.
type decoder struct {
	stream *feature.Stream
	plan   *plan
	rows   *builder
	dedup  *Dedup
	// deletes says which rows are deletes by the stream's delete_when; nil where it has none.
	deletes Condition
	// topicID gives the broker's id of a topic; nil stands for none.
	topicID func(topic string) string
	// clusterColumn is the column whose text a keyed record's Kafka key must be.
	clusterColumn int
	debezium      *debezium // reads the stream's change events; nil where they are no Debezium's

	from    map[feature.Partition]int64 // where the next span of a partition starts
	spans   map[feature.Partition]*feature.Span
	refused []feature.DeadLetter
	asked   []askedRow
	count   int
	bytes   int
}

// askedRow is an appended row whose event is older than the resident window.
type askedRow struct {
	occurrence
	row int
}

func newDecoder(s *feature.Stream, o RouterOptions) *decoder {
	d := &decoder{
		stream: s, plan: newPlan(s), rows: newBuilder(s, o.JobID), dedup: o.Dedups[s.Name], topicID: o.TopicID,
		from: map[feature.Partition]int64{}, spans: map[feature.Partition]*feature.Span{},
	}
	if s.DeleteWhen != "" {
		if d.deletes = o.Deletes[s.Name]; d.deletes == nil {
			panic("stream " + s.Name + " has a delete_when that nobody evaluates")
		}
	}
	if s.Format == feature.DebeziumFormat {
		d.debezium = newDebezium(s)
	}
	for i, c := range s.Columns {
		if c.Name == s.ClusterBy {
			d.clusterColumn = i
		}
	}
	return d
}

// refusal is why an event is refused.
type refusal struct {
	reason feature.Reason
	detail string
}

// span gives the span of a partition, which starts where the last one ended.
func (d *decoder) span(p feature.Partition) *feature.Span {
	s := d.spans[p]
	if s == nil {
		s = &feature.Span{Partition: p, From: d.from[p], To: d.from[p]}
		if d.topicID != nil {
			s.TopicID = d.topicID(p.Topic)
		}
		d.spans[p] = s
	}
	return s
}

// accept checks a parsed event and appends it, counting it in its span, or returns why it is refused. e is nil for rows.
func (d *decoder) accept(rec *Record, e *envelope, f *fields, s *feature.Span, recordedAt int64) *refusal {
	a := accepted{fields: f, envelope: e, position: rec.Position, recordedAt: recordedAt, op: feature.OpUpsert}
	if d.stream.Kind == feature.EventStream {
		a.op = feature.OpEvent
	}
	if e != nil && e.deletes() {
		if d.stream.Kind == feature.EventStream {
			return &refusal{feature.DeletedEvent, "events are facts, which aren't deleted"}
		}
		a.op, a.deleted = feature.OpDelete, true
	}
	if f.bad != "" && (!a.deleted || f.badKey) {
		reason := feature.BadValue
		return &refusal{reason, f.bad}
	}
	key, missing := d.keyText(f)
	if missing != "" {
		return &refusal{feature.MissingKey, missing + ": missing"}
	}
	if r := d.setTimes(&a, rec); r != nil {
		return r
	}
	var err error
	if a.extra, err = extraJSON(f.extra); err != nil {
		return &refusal{feature.NotJSON, "a field outside the schema: " + err.Error()}
	}
	if e != nil {
		a.eventID = e.eventID
	} else {
		a.eventID = d.rowID(&a, rec)
	}
	d.append(&a, rec, key, s)
	return nil
}

// tombstone takes a record without a value, which deletes the entity of its key.
func (d *decoder) tombstone(rec *Record, f *fields, s *feature.Span, recordedAt int64) *refusal {
	if d.stream.Kind == feature.EventStream {
		return &refusal{feature.DeletedEvent, "events are facts, which aren't deleted"}
	}
	f.reset(len(d.stream.Columns))
	if len(d.plan.key) != 1 || len(rec.Key) == 0 {
		return &refusal{feature.MissingKey, "a tombstone's record key can't be read as the entity's key"}
	}
	column := d.plan.key[0]
	quoted, err := jsontext.AppendQuote(nil, rec.Key)
	if err == nil {
		err = f.columns[column].parse(quoted, &d.stream.Columns[column], true)
	}
	if err != nil {
		return &refusal{feature.BadValue, "record key: " + err.Error()}
	}
	if rec.Timestamp <= 0 {
		return &refusal{feature.NoEventTime, "a tombstone without a record timestamp"}
	}
	key, missing := d.keyText(f)
	if missing != "" {
		return &refusal{feature.MissingKey, missing + ": missing"}
	}
	a := accepted{fields: f, position: rec.Position, recordedAt: recordedAt, op: feature.OpDelete, deleted: true,
		eventTime: rec.Timestamp, ingestedAt: recordedAt, eventID: positionID(rec.Position)}
	if r := d.checkSkew(&a, rec); r != nil {
		return r
	}
	d.append(&a, rec, key, s)
	return nil
}

// append decides whether the event is a duplicate, and appends it where it isn't.
func (d *decoder) append(a *accepted, rec *Record, key string, s *feature.Span) {
	id := feature.Identity{EventID: string(a.eventID), Key: key, EventTime: a.eventTime}
	decision := d.dedup.decide(id, rec.Position)
	switch {
	case decision == twin, decision == own && !feature.Live(rec.Topic):
		// An own event of a file has been logged: the file is read anew after it was forgotten.
		s.Counts.Duplicate++
		return
	case decision == unsure:
		d.asked = append(d.asked, askedRow{occurrence{id, rec.Position}, d.count})
	case decision == freshReuse:
		s.Counts.IDReuse++
	}
	s.Counts.Accepted++
	if a.extra != nil {
		s.Counts.Extra++
	}
	if a.eventTime > a.recordedAt {
		s.Counts.Ahead++
	}
	if d.stream.Keyed && rec.Key != nil && string(rec.Key) != d.clusterText(a.fields) {
		s.Counts.Unkeyed++
	}
	s.Watermark = max(s.Watermark, a.eventTime-d.stream.AllowedLateness.Microseconds())
	d.rows.add(a)
	d.count++
	d.bytes += len(rec.event())
}

// setTimes settles event time, sequence and ingested_at.
func (d *decoder) setTimes(a *accepted, rec *Record) *refusal {
	f, e := a.fields, a.envelope
	switch {
	case e != nil && (a.deleted || f.eventTime.state != present):
		a.eventTime = e.occurredAt
	case f.eventTime.state == present:
		a.eventTime = f.eventTime.integer
	default:
		return &refusal{feature.NoEventTime, d.stream.EventTime + ": missing"}
	}
	if f.sequence.state == present {
		a.sequence, a.sequenced = f.sequence.integer, true
	}
	switch {
	case feature.Live(rec.Topic):
		a.ingestedAt = a.recordedAt
	case e != nil && e.received:
		a.ingestedAt = e.receivedAt
	case f.processed.state == present:
		a.ingestedAt = f.processed.integer
	default:
		a.ingestedAt, a.assumed = a.eventTime, true
	}
	return d.checkSkew(a, rec)
}

// checkSkew refuses live events from the future; files may hold any time.
func (d *decoder) checkSkew(a *accepted, rec *Record) *refusal {
	if feature.Live(rec.Topic) && a.eventTime > a.recordedAt+d.stream.MaxClockSkew.Microseconds() {
		return &refusal{feature.FutureEventTime, fmt.Sprintf("event time is more than %s ahead of the time it was read", feature.FormatDuration(d.stream.MaxClockSkew))}
	}
	return nil
}

// keyText is the text of the event's key, or the name of the key column that is missing.
func (d *decoder) keyText(f *fields) (text, missing string) {
	var parts []string
	for _, i := range d.plan.key {
		if f.columns[i].state != present {
			return "", d.stream.Columns[i].Name
		}
		part := cellText(&f.columns[i], d.stream.Columns[i].Type)
		if len(d.plan.key) == 1 {
			return part, ""
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, feature.KeySeparator), ""
}

func (d *decoder) clusterText(f *fields) string {
	return cellText(&f.columns[d.clusterColumn], d.stream.Columns[d.clusterColumn].Type)
}

// cellText is a key column's part of [feature.Identity]'s key.
func cellText(c *cell, t feature.Type) string {
	if t.Kind == feature.String {
		return string(c.text)
	}
	return strconv.FormatInt(c.integer, 10)
}

// positionSpace is the name space of ids that stand for positions.
var positionSpace = uuid.MustParse("6f6d1f5e-7f0c-5f2e-9a43-6c6f616d0001")

// positionID is the id of an event that has none but its position: a UUID of version 5 of topic/partition/offset.
func positionID(p feature.Position) []byte {
	name := fmt.Appendf(nil, "%s/%d/%d", p.Topic, p.Partition, p.Offset)
	return []byte(uuid.NewSHA1(positionSpace, name).String())
}

// rowID is the id of a row: a column of it, its position, or the SHA-256 of its content.
func (d *decoder) rowID(a *accepted, rec *Record) []byte {
	switch {
	case d.stream.ID == feature.PositionID:
		return positionID(rec.Position)
	case a.fields.id != nil:
		return a.fields.id
	}
	content := binary.LittleEndian.AppendUint64(nil, uint64(a.eventTime))
	content = appendCell(content, &a.fields.sequence, feature.Type{Kind: feature.Int64})
	for i, c := range d.stream.Columns {
		content = appendCell(content, &a.fields.columns[i], c.Type)
	}
	content = append(content, a.extra...)
	sum := sha256.Sum256(content)
	return []byte(hex.EncodeToString(sum[:16]))
}

// appendCell appends bytes that equal values share and others don't.
func appendCell(b []byte, c *cell, t feature.Type) []byte {
	b = append(b, byte(c.state))
	if c.state != present {
		return b
	}
	if t.List {
		b = binary.AppendUvarint(b, uint64(len(c.list)))
		for i := range c.list {
			b = appendCell(b, &c.list[i], t.Elem())
		}
		return b
	}
	switch t.Kind {
	case feature.String, feature.JSON:
		b = binary.AppendUvarint(b, uint64(len(c.text)))
		return append(b, c.text...)
	case feature.Double:
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(c.double))
	case feature.Decimal:
		b = binary.LittleEndian.AppendUint64(b, c.decimal.LowBits())
		return binary.LittleEndian.AppendUint64(b, uint64(c.decimal.HighBits()))
	default:
		return binary.LittleEndian.AppendUint64(b, uint64(c.integer))
	}
}

// refuse makes a dead letter of a record.
func (d *decoder) refuse(letter feature.DeadLetter, s *feature.Span) {
	letter.Stream = d.stream.Name
	d.refused = append(d.refused, letter)
	s.Counts.Refused++
	d.bytes += letterBytes(&letter)
}

// letterBytes is about the memory that a dead letter takes: many that are short must be bounded, too.
func letterBytes(l *feature.DeadLetter) int {
	n := 256 + len(l.Detail) + len(l.Body) + len(l.RecordKey)
	for _, h := range l.Headers {
		n += 64 + len(h.Key) + len(h.Value)
	}
	return n
}

// flush gives what came of the spans since the last flush, or nil where nothing was read.
func (d *decoder) flush(ctx context.Context) (*feature.Batch, error) {
	if len(d.spans) == 0 {
		return nil, nil
	}
	occurrences := make([]occurrence, len(d.asked))
	for i, a := range d.asked {
		occurrences[i] = a.occurrence
	}
	twins, err := d.dedup.resolve(ctx, occurrences)
	if err != nil {
		return nil, err
	}
	var drop []int
	for _, a := range d.asked {
		if twins[a.Position] {
			drop = append(drop, a.row)
			s := d.spans[feature.Partition{Topic: a.Topic, Index: a.Partition}]
			s.Counts.Accepted--
			s.Counts.Duplicate++
		}
	}
	rows, err := d.rows.flush(ctx, drop)
	if err != nil {
		return nil, fmt.Errorf("drop old duplicates: %w", err)
	}
	if d.deletes != nil && rows.NumRows() > 0 {
		if rows, err = markDeletes(ctx, d.stream, rows, d.deletes); err != nil {
			return nil, err
		}
	}
	b := &feature.Batch{Stream: d.stream, Refused: d.refused, Rows: []arrow.RecordBatch{rows}}
	for _, p := range slices.SortedFunc(maps.Keys(d.spans), feature.Partition.Compare) {
		b.Spans = append(b.Spans, *d.spans[p])
		d.from[p] = d.spans[p].To
	}
	clear(d.spans)
	d.refused, d.asked, d.count, d.bytes = nil, d.asked[:0], 0, 0
	return b, nil
}
