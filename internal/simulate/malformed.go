package simulate

import (
	"bytes"

	"github.com/loamdata/loam/feature"
)

// A defect makes a malformed event of a good one. The event that results has this one defect, so the reason is the only
// one that can refuse it.
type defect struct {
	reason feature.Reason
	// make appends to dst the good event with the defect, or reports that the event has no place for it.
	make func(dst, good []byte, of stream) ([]byte, bool)
}

var defects = [...]defect{
	{feature.NotJSON, func(dst, good []byte, _ stream) ([]byte, bool) { return append(dst, good[:len(good)*2/3]...), true }},
	{feature.NotJSON, func(dst, _ []byte, _ stream) ([]byte, bool) { return append(dst, "GET /webhook HTTP/1.1"...), true }},
	{feature.NotJSON, replaceString(`"source":"`, "b\xfcro")}, // Latin-1
	{feature.BadEnvelope, func(dst, good []byte, _ stream) ([]byte, bool) {
		return append(append(dst, '{'), good[bytes.Index(good, []byte(`"payload":`)):]...), true
	}},
	{feature.BadEnvelope, replaceString(`"event_id":"`, `4711`)},
	{feature.BadEnvelope, replaceString(`"occurred_at":"`, `yesterday at 10`)},
	{feature.UnknownType, replaceString(`"event_type":"`, `Invoice.voided`)},
	{feature.UnknownSchema, replaceString(`"schema_version":"`, `9.0`)},
	{feature.MissingKey, withoutKey},
	{feature.BadValue, outsideBounds},
	{feature.BadValue, wrongType},
	{feature.DeletedEvent, deletedEvent},
}

// keyFields are how the key stands in the payload.
var keyFields = [streamCount]string{`"contact_id":"`, `"opportunity_id":"`, `"engagement_id":"`}

// replaceString gives the good event another text behind the first occurrence of a string's beginning. Every such text
// stands in the envelope, which comes first.
func replaceString(begin, text string) func(dst, good []byte, _ stream) ([]byte, bool) {
	return func(dst, good []byte, _ stream) ([]byte, bool) { return replace(dst, good, begin, `"`, text) }
}

// replace appends good with what stands between the first begin and the next end replaced by text.
func replace(dst, good []byte, begin, end, text string) ([]byte, bool) {
	i := bytes.Index(good, []byte(begin))
	if i < 0 {
		return dst, false
	}
	i += len(begin)
	n := bytes.Index(good[i:], []byte(end))
	dst = append(dst, good[:i]...)
	dst = append(dst, text...)
	return append(dst, good[i+n:]...), true
}

// withoutKey takes the key's member out of the payload.
func withoutKey(dst, good []byte, of stream) ([]byte, bool) {
	payload := bytes.Index(good, []byte(`"payload":`))
	i := payload + bytes.Index(good[payload:], []byte(keyFields[of]))
	n := bytes.IndexAny(good[i:], ",}")
	if good[i+n] == ',' {
		n++ // the next member comes first
	}
	return append(append(dst, good[:i]...), good[i+n:]...), true
}

// outsideBounds gives a value of the right type that the stream doesn't know.
func outsideBounds(dst, good []byte, of stream) ([]byte, bool) {
	switch of {
	case contactStream:
		return replace(dst, good, `"mkt_status":"`, `"`, `prospect`)
	case opportunityStream:
		return replace(dst, good, `"probability":`, `,`, `1.7`)
	default:
		return replace(dst, good, `"outcome":"`, `"`, `bounced`)
	}
}

// deletedEvent makes a delete of a fact, which nothing can undo.
func deletedEvent(dst, good []byte, of stream) ([]byte, bool) {
	if of != engagementStream {
		return dst, false
	}
	return replace(dst, good, `"event_type":"`, `"`, `Engagement.deleted`)
}

// wrongType gives a value of another type.
func wrongType(dst, good []byte, of stream) ([]byte, bool) {
	switch of {
	case contactStream:
		return replace(dst, good, `"segments":`, `,"attributes"`, `{"vip":true}`)
	case opportunityStream:
		return replace(dst, good, `"value":`, `}`, `"a lot"`)
	default:
		return replace(dst, good, `"channel":`, `,`, `{"name":"web"}`)
	}
}

// idBegin is how every good event begins.
const idBegin = `{"envelope":{"event_id":"`

// deform appends a malformed event made of a good one: defect number n, or, where the event has no place for that, the
// next it has. It has an id of its own, made of id.
func (r *renderer) deform(dst, good []byte, of stream, n int, id uint64) ([]byte, feature.Reason) {
	r.scratch = append(r.scratch[:0], good...)
	appendUUID(r.scratch[:len(idBegin)], mix(r.seed, forMalformed, id), mix(r.seed, forMalformed, ^id))
	for {
		d := &defects[n%len(defects)]
		if made, ok := d.make(dst, r.scratch, of); ok {
			return made, d.reason
		}
		n++
	}
}
