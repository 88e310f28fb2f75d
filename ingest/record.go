package ingest

import (
	"context"

	"github.com/loamdata/loam/feature"
)

// Record is one event as it was read, before anything is known of it.
type Record struct {
	feature.Position
	Key       []byte           // of a Kafka record; nil elsewhere
	Value     []byte           // as it was read; nil is a tombstone
	JSON      []byte           // the event, where Value was decoded by a schema; nil where Value is JSON itself
	Headers   []feature.Header // of a Kafka record
	Timestamp int64            // of a Kafka record, microseconds since 1970 UTC; 0 or less where there is none
	// Text says that values of every type may be written as text, and times without a zone are UTC: rows of CSV and
	// Parquet files.
	Text bool
	// Cut says that the event was longer than EventBytesMax and Value is its beginning.
	Cut bool
	// Malformed says why Value is not what was meant as one event, "" where it may be.
	Malformed string
	// Reason is why a malformed value is refused; [feature.NotJSON] where none is given.
	Reason feature.Reason
}

// Event is the JSON of the record.
func (r *Record) Event() []byte { return r.event() }

func (r *Record) event() []byte {
	if r.JSON != nil {
		return r.JSON
	}
	return r.Value
}

// EventBytesMax bounds an event. Longer ones become dead letters that keep their first CutBytes.
const (
	EventBytesMax = 32 << 20
	CutBytes      = 64 << 10
)

// ValuesMax bounds the values of an event: members of objects, items of lists, and these themselves. Each takes up to a kilobyte and a half
// while it is read, which the bytes of the event don't bound: two of them may hold one.
const ValuesMax = 1 << 18

// manyValues reports whether a JSON text has more than ValuesMax values. Of what is no JSON it may report either.
func manyValues(text []byte) bool {
	if len(text) <= 2*ValuesMax {
		return false
	}
	n := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case ',', '[', '{':
			n++
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		}
		if n > ValuesMax {
			return true
		}
	}
	return false
}

// Poll is what a source gave.
type Poll struct {
	Records []Record            // in order of offset within each partition; valid until the next call
	Ends    []feature.Partition // partitions of which nothing more was there to read
	Done    bool                // the source has ended: nothing will ever follow
	Given   []feature.Partition // partitions whose records come from now on, from where they are to be read then
}

// Source gives records from where it was opened on. A source that tails waits for records until the context is done,
// and then returns what it has without an error.
type Source interface {
	Poll(ctx context.Context) (Poll, error)
	Close() error
}
