package bench

import (
	"fmt"
	"math/rand/v2"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
)

const (
	second = int64(1_000_000) // microseconds
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// contacts makes the changes of some number of contacts. Contacts are drawn uniformly: the worst case for whatever keeps
// the keys of a batch together.
type contacts struct {
	def    *feature.Stream
	random *rand.Rand
	states []uint32 // by contact: the number of its newest state
	now    int64    // event time of what isn't late
	offset int64
	mix    Mix
}

// Mix says what a batch is made of.
type Mix struct {
	Late float64 // share of changes that are late: nine of ten by under an hour, the others by up to 90 days
	NoOp float64 // share of changes that change nothing
}

// change is one event to make.
type change struct {
	contact int
	state   uint32
	at      int64
}

// first makes the contacts [from, from+n), created at random times in the 120 days before the run.
func (c *contacts) first(from, n int) []change {
	changes := make([]change, n)
	for i := range changes {
		changes[i] = change{contact: from + i, at: c.now - hour - c.random.Int64N(120*day)}
	}
	return changes
}

// next makes n changes, a second of event time after those before.
func (c *contacts) next(n int) []change {
	c.now += second
	changes := make([]change, n)
	for i := range changes {
		contact := c.random.IntN(len(c.states))
		if c.random.Float64() >= c.mix.NoOp {
			c.states[contact]++
		}
		// Within the second, so that few changes share an event time.
		at := c.now - c.random.Int64N(second)
		if c.random.Float64() < c.mix.Late {
			if c.random.IntN(10) > 0 {
				at -= c.random.Int64N(hour)
			} else {
				at -= c.random.Int64N(90 * day)
			}
		}
		changes[i] = change{contact, c.states[contact], at}
	}
	return changes
}

// identity is the identity of an event that batch has made.
func (c *contacts) identity(id string, ch change) feature.Identity {
	return feature.Identity{EventID: id, Key: key(ch.contact), EventTime: ch.at}
}

func key(contact int) string { return fmt.Sprintf("c%08d", contact) }

var statuses = []string{"lead", "opportunity", "customer"}

// batch makes a micro-batch of changes, all of one partition, and their event ids. The caller releases it.
func (c *contacts) batch(changes []change) (*feature.Batch, []string) {
	schema := c.def.LogSchema()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Reserve(len(changes))
	ids := make([]string, len(changes))
	p := feature.Partition{Topic: c.def.Topic}
	span := feature.Span{Partition: p, TopicID: "bench", From: c.offset, To: c.offset + int64(len(changes)), Watermark: c.now, RecordedAt: c.now}
	span.Counts.Read, span.Counts.Accepted = int64(len(changes)), int64(len(changes))
	var raw [16]byte
	for i, ch := range changes {
		for j := 0; j < 16; j += 8 {
			v := c.random.Uint64()
			for k := range 8 {
				raw[j+k] = byte(v >> (8 * k))
			}
		}
		ids[i] = uuid.UUID(raw).String()
		for j, f := range schema.Fields() {
			appendValue(b.Field(j), c.value(f.Name, ch, ids[i]))
		}
		c.offset++
	}
	return &feature.Batch{Stream: c.def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}, Spans: []feature.Span{span}}, ids
}

// value is a change's value of a log column.
func (c *contacts) value(column string, ch change, id string) any {
	switch column {
	case "contact_id":
		return key(ch.contact)
	case "email":
		return fmt.Sprintf("person%d.%d@example.com", ch.contact, ch.state)
	case "phone":
		return fmt.Sprintf("+1555%07d", ch.contact%10_000_000)
	case "first_name":
		return fmt.Sprintf("First%d", ch.contact%997)
	case "last_name":
		return fmt.Sprintf("Last%d", ch.contact%9973)
	case "mkt_status":
		return statuses[(ch.contact+int(ch.state))%3]
	case "segments":
		segments := []string{}
		for i := range (ch.contact + int(ch.state)) % 4 {
			segments = append(segments, fmt.Sprintf("segment-%d", (ch.contact+i)%50))
		}
		return segments
	case "attributes":
		return fmt.Sprintf(`{"open_tickets":%d,"plan":"plan-%d","score":%d}`, ch.state%10, ch.contact%4, ch.state)
	case "source_metadata":
		return fmt.Sprintf(`{"crm_id":"%08d","crm_record_url":"https://crm.example.com/contacts/%08d"}`, ch.contact, ch.contact)
	case feature.ColEventTime, "updated_at":
		return ch.at
	case feature.ColRecordedAt, feature.ColIngestedAt:
		return c.now
	case feature.ColAssumed:
		return false
	case feature.ColEventID:
		return id
	case feature.ColEventType:
		return "Contact.updated"
	case feature.ColSource:
		return "bench:contacts"
	case feature.ColSchemaVersion:
		return "1.0"
	case feature.ColTopic:
		return c.def.Topic
	case feature.ColPartition:
		return int64(0)
	case feature.ColOffset:
		return c.offset
	case feature.ColOp:
		return feature.OpUpsert
	case feature.ColJobID:
		return "bench"
	default:
		return nil
	}
}

func appendValue(b array.Builder, value any) {
	switch v := value.(type) {
	case nil:
		b.AppendNull()
	case string:
		b.(*array.StringBuilder).Append(v)
	case bool:
		b.(*array.BooleanBuilder).Append(v)
	case float64:
		b.(*array.Float64Builder).Append(v)
	case int64:
		if t, ok := b.(*array.TimestampBuilder); ok {
			t.Append(arrow.Timestamp(v))
		} else {
			b.(*array.Int64Builder).Append(v)
		}
	case []string:
		list := b.(*array.ListBuilder)
		list.Append(true)
		for _, s := range v {
			list.ValueBuilder().(*array.StringBuilder).Append(s)
		}
	}
}
