package ingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// debezium reads change events of Debezium: what a row was before, what it is after, and where the change stands in the source's log.
// It becomes fields and an envelope, as a canonical event does.
//
// Everything that is told of a row is told by its change: a tombstone only lets a broker compact the topic. It stands right behind the
// delete that it belongs to, at the next offset, and says nothing new; one that doesn't is what compaction has left of a delete, whose time is gone with
// it.
type debezium struct {
	stream  *feature.Stream
	columns map[string]int              // top-level members of a row that are columns
	units   map[string]map[string]*unit // by the schema that Connect's converter puts around an event
	before  []byte
	after   []byte
	op      string
	source  debeziumSource
	schema  []byte
	row     []byte // scratch
	json    *jsontext.Decoder
	buffer  bytes.Buffer
	gone    []int // columns whose values the source did not send
}

// debeziumSource is where a change comes from.
type debeziumSource struct {
	micros    int64 // when it was committed, since 1970
	timed     bool
	lsn       int64
	sequenced bool
	connector []byte
	place     [len(placeMembers)][]byte
	placed    bool // it says where in the source's log it stands
}

// placeMembers tell one change from all others, the same ones when it is delivered again. The first four say where its row is.
var placeMembers = [...]string{"name", "db", "schema", "table",
	"lsn", "txId", "gtid", "file", "pos", "row", "scn", "rs_id", "ssn", "change_lsn", "commit_lsn", "event_serial_no", "ord", "h", "offset"}

// unavailable is what Debezium says in place of a value that the source did not send, such as one that Postgres keeps out of line.
const unavailable = "__debezium_unavailable_value"

// unit is what the schema around an event says of a field's numbers and bytes.
type unit struct {
	name  string
	scale int
}

// connectSchema is a schema of Kafka Connect's JSON converter.
type connectSchema struct {
	Field      string            `json:"field"`
	Name       string            `json:"name"`
	Parameters map[string]string `json:"parameters"`
	Fields     []connectSchema   `json:"fields"`
}

// schemasMax bounds how many schemas are remembered; they are few, and change with the source's tables.
const schemasMax = 64

func newDebezium(s *feature.Stream) *debezium {
	z := &debezium{stream: s, columns: map[string]int{}, units: map[string]map[string]*unit{}}
	z.json = jsontext.NewDecoder(&z.buffer)
	for i, c := range s.Columns {
		if len(c.Path) == 1 {
			z.columns[c.Path[0]] = i
		}
	}
	return z
}

// parseDebezium reads a change event into the router's envelope and fields.
func (r *Router) parseDebezium(d *decoder, rec *Record) *refusal {
	z := d.debezium
	r.fields.reset(len(d.stream.Columns))
	r.envelope = envelope{seen: true}
	event, refused := r.readChange(z, rec.event())
	if refused != nil {
		return refused
	}
	switch z.op {
	case "":
		return &refusal{feature.BadEnvelope, "op: missing, so it is no change event of Debezium"}
	case "t":
		return &refusal{feature.Truncate, "op: loam has no truncate; send a delete of each row"}
	case "c", "u", "r":
		if z.after == nil || z.after[0] != '{' {
			return &refusal{feature.BadEnvelope, "after: want an object"}
		}
		event = z.after
	case "d":
		event = nil
		if z.before != nil && z.before[0] == '{' {
			event = z.before
		}
	default:
		return &refusal{feature.UnknownType, fmt.Sprintf("op: %q is no change of a row", clip(z.op))}
	}
	deleted := z.op == "d"
	if event != nil {
		if refused := r.parseDebeziumRow(d, event, deleted); refused != nil {
			return refused
		}
	}
	if deleted {
		// What is known of the row it was, but for its key, is gone with it.
		if _, missing := d.keyText(&r.fields); missing != "" {
			if refused := r.parseDebeziumKey(d, rec.Key); refused != nil {
				return refused
			}
		}
		r.fields.extra = r.fields.extra[:0]
	}
	return z.settle(&r.envelope, &r.fields, deleted)
}

// readChange reads the members of a change event, which Connect's converter may have wrapped together with its schema.
func (r *Router) readChange(z *debezium, event []byte) ([]byte, *refusal) {
	z.before, z.after, z.op, z.source, z.schema = nil, nil, "", debeziumSource{}, nil
	var payload []byte
	read := func(d *jsontext.Decoder, buffer *bytes.Buffer, all []byte) *refusal {
		*buffer = *bytes.NewBuffer(all)
		d.Reset(buffer)
		return members(d, all, func(name string, raw []byte) *refusal {
			switch name {
			case "before":
				z.before = raw
			case "after":
				z.after = raw
			case "op":
				if raw[0] == '"' {
					op, err := unquote(raw)
					if err != nil {
						return &refusal{feature.BadEnvelope, "op: " + err.Error()}
					}
					z.op = string(op)
				}
			case "source":
				return z.source.read(z.reader(raw), raw)
			case "schema":
				z.schema = raw
			case "payload":
				payload = raw
			}
			return nil
		})
	}
	if refused := read(r.json, &r.buffer, event); refused != nil {
		return nil, refused
	}
	if refused := r.atEnd(); refused != nil {
		return nil, refused
	}
	if z.op == "" && payload != nil && payload[0] == '{' {
		return payload, read(r.inner, &r.innerBuf, payload)
	}
	z.schema = nil
	return event, nil
}

// members calls use with the members of the object that comes next in d, whose bytes are all. A value that is no object is refused.
func members(d *jsontext.Decoder, all []byte, use func(name string, raw []byte) *refusal) *refusal {
	malformed := func(err error) *refusal { return &refusal{feature.NotJSON, err.Error()} }
	if d.PeekKind() != '{' {
		if _, err := d.ReadValue(); err != nil {
			return malformed(syntax(err))
		}
		return &refusal{feature.NotJSON, "JSON, but no object"}
	}
	if _, err := d.ReadToken(); err != nil {
		return malformed(syntax(err))
	}
	for d.PeekKind() != '}' {
		quoted, err := d.ReadValue()
		if err != nil {
			return malformed(syntax(err))
		}
		name, err := unquote(quoted)
		if err != nil {
			return malformed(syntax(err))
		}
		text := string(name)
		raw, err := value(d, all)
		if err != nil {
			return malformed(err)
		}
		if refused := use(text, raw); refused != nil {
			return refused
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return malformed(syntax(err))
	}
	return nil
}

// reader reads a value, until it is called again.
func (z *debezium) reader(raw []byte) *jsontext.Decoder {
	z.buffer = *bytes.NewBuffer(raw)
	z.json.Reset(&z.buffer)
	return z.json
}

func (s *debeziumSource) read(d *jsontext.Decoder, raw []byte) *refusal {
	if raw[0] != '{' {
		return &refusal{feature.BadEnvelope, "source: want an object"}
	}
	finest := int64(0)
	time := func(raw []byte, times, by int64) {
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err == nil && times > finest {
			finest, s.timed = times, true
			s.micros = n / by
			if times < 1000 {
				s.micros = n * (1000 / times)
			}
		}
	}
	refused := members(d, raw, func(name string, raw []byte) *refusal {
		switch name {
		case "ts_ms":
			time(raw, 1, 1)
		case "ts_us":
			time(raw, 1000, 1)
		case "ts_ns":
			time(raw, 1_000_000, 1000)
		case "connector":
			if raw[0] == '"' {
				s.connector = raw[1 : len(raw)-1]
			}
		}
		for i, member := range placeMembers {
			if name == member && raw[0] != 'n' {
				s.place[i] = raw
				s.placed = s.placed || i >= 4
			}
		}
		if name == "lsn" {
			n, err := strconv.ParseInt(string(raw), 10, 64)
			s.lsn, s.sequenced = n, err == nil
		}
		return nil
	})
	if refused != nil {
		refused.detail = "source: " + refused.detail
	}
	return refused
}

// parseDebeziumRow reads the row of a change into the router's fields.
func (r *Router) parseDebeziumRow(d *decoder, row []byte, deleted bool) *refusal {
	z := d.debezium
	row, refused := z.convert(row)
	if refused != nil && !deleted {
		return refused
	}
	r.innerBuf = *bytes.NewBuffer(row)
	r.inner.Reset(&r.innerBuf)
	if err := d.plan.object(r.inner, row, d.plan.root, &r.fields, false); err != nil {
		return &refusal{feature.NotJSON, err.Error()}
	}
	for _, i := range z.gone {
		if d.stream.Payload != feature.PatchPayload && !deleted {
			return &refusal{feature.BadValue, fmt.Sprintf("%s: the source has not sent the value, which has not changed; "+
				"ALTER TABLE … REPLICA IDENTITY FULL has it sent, or payload: patch of the stream leaves it as it is", d.stream.Columns[i].Name)}
		}
		r.fields.columns[i] = cell{}
	}
	return nil
}

// parseDebeziumKey reads the record key of a delete that doesn't hold the row's: an object, or one that Connect has wrapped.
func (r *Router) parseDebeziumKey(d *decoder, key []byte) *refusal {
	lacking := &refusal{feature.MissingKey, "before: has no key, and the record key is no object with one"}
	var payload []byte
	refused := members(d.debezium.reader(key), key, func(name string, raw []byte) *refusal {
		if name == "payload" {
			payload = raw
		}
		return nil
	})
	if refused != nil {
		return lacking
	}
	if payload != nil && payload[0] == '{' {
		key = payload
	}
	extra := r.fields.extra
	if err := d.plan.object(d.debezium.reader(key), key, d.plan.root, &r.fields, false); err != nil {
		return lacking
	}
	r.fields.extra = extra
	return nil
}

// settle makes the envelope of a change: its time, its identity, and where it stands among changes of the same time.
func (z *debezium) settle(e *envelope, f *fields, deleted bool) *refusal {
	switch {
	case !z.source.timed:
		return &refusal{feature.NoEventTime, "source.ts_ms: missing"}
	case z.source.micros < timeMin || z.source.micros > timeMax:
		return &refusal{feature.NoEventTime, "source.ts_ms: " + errRange.Error()}
	}
	e.occurredAt, e.hasTime = z.source.micros, true
	if z.op == "r" && f.eventTime.state != present {
		// A snapshot reads a row later than changes of it that are delivered behind it: by that time it would win over them.
		if z.stream.SnapshotAt.IsZero() {
			return &refusal{feature.NoEventTime, "a snapshot doesn't say since when its rows are so: set event_time of the stream to a column that does, " +
				"or snapshot_at to a time before the snapshot began"}
		}
		e.occurredAt = z.stream.SnapshotAt.UnixMicro()
	}
	if z.source.sequenced && z.stream.Sequence == "" {
		f.sequence = cell{state: present, integer: z.source.lsn}
	}
	e.eventType = rowEvents[z.op]
	e.source = z.source.connector
	z.row = append(z.row[:0], z.op...)
	add := func(part []byte) { z.row = append(append(z.row, 0), part...) }
	for _, member := range z.source.place {
		add(member)
	}
	if !z.source.placed {
		add(z.before)
		add(z.after)
	}
	sum := sha256.Sum256(z.row)
	e.eventID = []byte(hex.EncodeToString(sum[:16]))
	return nil
}

// rowEvents are the event types of what op says.
var rowEvents = map[string][]byte{"c": []byte("row.created"), "u": []byte("row.updated"), "r": []byte("row.read"), "d": []byte("row.deleted")}

// tombstoneOf takes a record without a value, at an offset, where the one before it that was read ends at next.
func (z *debezium) tombstoneOf(offset, next int64, s *feature.Span) *refusal {
	if offset == 0 || offset != next {
		return &refusal{feature.MissingKey, "a tombstone without the delete that it belongs to: the topic was compacted before loam read it. " +
			"Delete the row again at its source, or give a repaired record"}
	}
	s.Counts.Duplicate++
	return nil
}

// convert gives a row in which values are written as the columns' types want them. What Debezium writes as numbers and bytes means what
// the schema around the event says; without one only dates are sure.
func (z *debezium) convert(row []byte) ([]byte, *refusal) {
	z.gone = z.gone[:0]
	units, err := z.unitsOf(z.schema)
	if err != nil {
		return row, &refusal{feature.BadEnvelope, "schema: " + err.Error()}
	}
	z.row = z.row[:0]
	copied := 0
	d := z.reader(row)
	refused := members(d, row, func(name string, raw []byte) *refusal {
		i, ok := z.columns[name]
		if !ok || raw[0] == 'n' {
			return nil
		}
		with, err := convertValue(raw, z.stream.Columns[i].Type, units[name])
		if errors.Is(err, errUnavailable) {
			z.gone = append(z.gone, i)
			with = []byte("null")
		} else if err != nil {
			return &refusal{feature.BadValue, name + ": " + err.Error()}
		}
		if with == nil {
			return nil
		}
		end := int(d.InputOffset())
		z.row = append(append(z.row, row[copied:end-len(raw)]...), with...)
		copied = end
		return nil
	})
	if refused != nil || copied == 0 {
		return row, refused
	}
	// The fields point into the row as long as the record is.
	return append(bytes.Clone(z.row), row[copied:]...), nil
}

var (
	errUnavailable = errors.New("not sent")
	errNoUnit      = errors.New("a number, of which only a schema says what it counts; have the converter send it (value.converter.schemas.enable: true), " +
		"or times as text (time.precision.mode: isostring)")
	errNotBytes = errors.New("want a decimal's bytes in base64")
)

// convertValue writes one value as its column's type wants it; nil where it stands as it is.
func convertValue(raw []byte, t feature.Type, u *unit) ([]byte, error) {
	if raw[0] == '"' && string(raw[1:len(raw)-1]) == unavailable {
		return nil, errUnavailable
	}
	if t.List {
		return nil, nil
	}
	number := raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
	switch {
	case t.Kind == feature.Date && number:
		days, err := strconv.ParseInt(string(raw), 10, 32)
		if err != nil {
			return nil, errNotDate
		}
		return []byte(time.Unix(days*86400, 0).UTC().Format(`"2006-01-02"`)), nil
	case t.Kind == feature.Timestamp && number:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil {
			return nil, errNotTime
		}
		switch u.named() {
		case "io.debezium.time.Timestamp", "org.apache.kafka.connect.data.Timestamp":
			return []byte(time.UnixMilli(n).UTC().Format(`"2006-01-02T15:04:05.999999999Z"`)), nil
		case "io.debezium.time.MicroTimestamp":
			return []byte(time.UnixMicro(n).UTC().Format(`"2006-01-02T15:04:05.999999999Z"`)), nil
		case "io.debezium.time.NanoTimestamp":
			return []byte(time.Unix(0, n).UTC().Format(`"2006-01-02T15:04:05.999999999Z"`)), nil
		}
		return nil, errNoUnit
	case u.named() == "org.apache.kafka.connect.data.Decimal" && raw[0] == '"':
		return decimalText(raw, u.scale)
	case u.named() == "io.debezium.data.VariableScaleDecimal" && raw[0] == '{':
		var v struct {
			Scale int             `json:"scale"`
			Value json.RawMessage `json:"value"`
		}
		if err := json.Unmarshal(raw, &v); err != nil || len(v.Value) < 2 || v.Value[0] != '"' {
			return nil, errNotBytes
		}
		return decimalText(v.Value, v.Scale)
	case t.Kind == feature.JSON && raw[0] == '"':
		return unquote(raw)
	}
	return nil, nil
}

func (u *unit) named() string {
	if u == nil {
		return ""
	}
	return u.name
}

// Bounds of what a decimal's bytes may be, beyond every column's.
const (
	decimalBytesMax = 64
	decimalScaleMax = 1000
)

// decimalText writes a decimal as a number: raw is the base64 of its unscaled value, big-endian in two's complement.
func decimalText(raw []byte, scale int) ([]byte, error) {
	unscaled, err := base64.StdEncoding.DecodeString(string(raw[1 : len(raw)-1]))
	if err != nil || len(unscaled) == 0 {
		return nil, errNotBytes
	}
	if len(unscaled) > decimalBytesMax || scale > decimalScaleMax || scale < -decimalScaleMax {
		return nil, errDigits
	}
	n := new(big.Int).SetBytes(unscaled)
	if unscaled[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(unscaled))))
	}
	digits, sign := n.String(), ""
	if digits[0] == '-' {
		digits, sign = digits[1:], "-"
	}
	if scale <= 0 {
		return []byte(sign + digits + strings.Repeat("0", -scale)), nil
	}
	if len(digits) <= scale {
		digits = strings.Repeat("0", scale-len(digits)+1) + digits
	}
	return []byte(sign + digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]), nil
}

// unitsOf reads what the schema around an event says of a row's fields.
func (z *debezium) unitsOf(raw []byte) (map[string]*unit, error) {
	if raw == nil || raw[0] != '{' {
		return nil, nil
	}
	if units, known := z.units[string(raw)]; known {
		return units, nil
	}
	var schema connectSchema
	if err := json.Unmarshal(raw, &schema); err != nil {
		return nil, errors.New("want a schema of Kafka Connect")
	}
	units := map[string]*unit{}
	for _, member := range schema.Fields {
		if member.Field != "after" && member.Field != "before" {
			continue
		}
		for _, f := range member.Fields {
			u := &unit{name: f.Name}
			if text, ok := f.Parameters["scale"]; ok {
				var err error
				if u.scale, err = strconv.Atoi(text); err != nil {
					return nil, fmt.Errorf("field %s has the scale %q", clip(f.Field), clip(text))
				}
			}
			units[f.Field] = u
		}
	}
	if len(z.units) >= schemasMax {
		clear(z.units)
	}
	z.units[string(raw)] = units
	return units, nil
}

// clip shortens what a record says for the detail of a dead letter.
func clip(text string) string {
	if len(text) > 40 {
		return text[:40] + "…"
	}
	return text
}
