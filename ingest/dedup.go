package ingest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
)

// LookUp finds which identities a stream's log holds, and the positions at which they were accepted.
type LookUp func(ctx context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error)

// Dedup knows the identities of a stream's newest events by event time, the resident window, and asks the log for older
// ones. An occurrence of an event is a duplicate only of the first accepted one at another position, so a replay never
// takes its own event for one.
//
// What was decided last stays in the window however old it is, half a window of it: it may be on its way to the log, which
// can't tell of it yet. So no more than that may wait to be committed.
//
// An entry takes some 110 bytes of memory. A window of a million ids takes some 110 MB, and up to half as much again
// where what was decided last is old.
type Dedup struct {
	idsMax int
	// shrinkAt is the size at which old ids are forgotten next.
	shrinkAt int
	turn     int64 // counts what was put in
	lookUp   LookUp
	// byID has the first identity seen of an event id; others of the same id, which reuse it, are in reused.
	byID    map[xxh3.Uint128]seen
	reused  map[xxh3.Uint128]seen
	floor   int64 // event times below it are older than the window
	topics  []string
	numbers map[string]uint32
	buffer  []byte
}

// seen is an accepted event: a hash of its key and event time, and its position.
type seen struct {
	rest      uint64
	eventTime int64
	turn      int64
	offset    int64
	topic     uint32
	partition int32
}

// verdict is what is known of an occurrence.
type verdict uint8

const (
	fresh      verdict = iota // not seen before
	freshReuse                // its id came before with another key or event time
	own                       // seen before at this very position
	twin                      // seen before at another position
	unsure                    // older than the window: the log must be asked
)

// NewDedup makes an index of at most idsMax ids for a stream whose log is empty. lookUp answers for events older than
// the window.
func NewDedup(idsMax int, lookUp LookUp) *Dedup {
	return &Dedup{
		idsMax: idsMax, shrinkAt: idsMax, lookUp: lookUp, byID: map[xxh3.Uint128]seen{}, reused: map[xxh3.Uint128]seen{},
		floor: math.MinInt64, numbers: map[string]uint32{},
	}
}

// Remember takes an event that the log holds.
func (d *Dedup) Remember(id feature.Identity, p feature.Position) {
	if id.EventTime < d.floor {
		return
	}
	d.put(id, d.hashID(id), p)
}

// Older tells that the log holds events that are not remembered, all older than the newest of those that are.
func (d *Dedup) Older() {
	least := int64(math.MaxInt64)
	for _, s := range d.byID {
		least = min(least, s.eventTime)
	}
	if least != math.MaxInt64 {
		// Others of the least event time may be missing.
		d.floor = least + 1
	}
}

func (d *Dedup) hashID(id feature.Identity) xxh3.Uint128 { return xxh3.HashString128(id.EventID) }

// hashRest hashes what an identity is besides its id.
func (d *Dedup) hashRest(id feature.Identity) uint64 {
	d.buffer = binary.LittleEndian.AppendUint64(d.buffer[:0], uint64(id.EventTime))
	d.buffer = append(d.buffer, id.Key...)
	return xxh3.Hash(d.buffer)
}

// hashWhole hashes a whole identity.
func (d *Dedup) hashWhole(id feature.Identity) xxh3.Uint128 {
	rest := d.hashRest(id)
	d.buffer = binary.LittleEndian.AppendUint64(d.buffer[:0], rest)
	d.buffer = append(d.buffer, id.EventID...)
	return xxh3.Hash128(d.buffer)
}

// decide gives the verdict on an occurrence, and remembers it where it is fresh or unsure.
func (d *Dedup) decide(id feature.Identity, p feature.Position) verdict {
	hash := d.hashID(id)
	first, known := d.byID[hash]
	if known && first.rest == d.hashRest(id) {
		return d.compare(first, p)
	}
	if len(d.reused) > 0 { // the first of its id may have been forgotten before it
		if again, ok := d.reused[d.hashWhole(id)]; ok {
			return d.compare(again, p)
		}
	}
	d.put(id, hash, p)
	switch {
	case id.EventTime < d.floor:
		return unsure
	case known:
		return freshReuse
	default:
		return fresh
	}
}

func (d *Dedup) compare(s seen, p feature.Position) verdict {
	if s.offset == p.Offset && s.partition == p.Partition && d.topics[s.topic] == p.Topic {
		return own
	}
	return twin
}

func (d *Dedup) put(id feature.Identity, hash xxh3.Uint128, p feature.Position) {
	number, ok := d.numbers[p.Topic]
	if !ok {
		number = uint32(len(d.topics))
		d.topics = append(d.topics, p.Topic)
		d.numbers[p.Topic] = number
	}
	d.turn++
	s := seen{rest: d.hashRest(id), eventTime: id.EventTime, turn: d.turn, offset: p.Offset, topic: number, partition: p.Partition}
	if first, known := d.byID[hash]; known && first.rest != s.rest {
		d.reused[d.hashWhole(id)] = s
	} else {
		d.byID[hash] = s
	}
	if len(d.byID)+len(d.reused) > d.shrinkAt {
		d.shrink()
	}
}

// shrink forgets the older half of the window by event time, but for what was decided last. Its cost, linear in the
// window, is spread over the quarter of a window, at least, that fills it again.
func (d *Dedup) shrink() {
	times := make([]int64, 0, len(d.byID))
	for _, s := range d.byID {
		times = append(times, s.eventTime)
	}
	slices.Sort(times)
	floor := times[len(times)/2]
	if floor == times[0] {
		floor++ // half of them or more have one event time: all of that go, or none would
	}
	d.floor = max(d.floor, floor)
	for _, m := range []map[xxh3.Uint128]seen{d.byID, d.reused} {
		for hash, s := range m {
			if s.eventTime < d.floor && s.turn <= d.turn-int64(d.idsMax/2) {
				delete(m, hash)
			}
		}
	}
	d.shrinkAt = max(d.idsMax, len(d.byID)+len(d.reused)+d.idsMax/4)
}

// resolve asks the log for unsure occurrences and returns which of them are twins; the others are the first of their
// event, or their own replay.
func (d *Dedup) resolve(ctx context.Context, asked []occurrence) (map[feature.Position]bool, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	ids := make([]feature.Identity, len(asked))
	for i, a := range asked {
		ids[i] = a.Identity
	}
	found, err := d.lookUp(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("look old event ids up in the log: %w", err)
	}
	twins := map[feature.Position]bool{}
	for _, a := range asked {
		if first, ok := found[a.Identity]; ok && (first != a.Position || !feature.Live(a.Topic)) {
			twins[a.Position] = true
		}
	}
	return twins, nil
}

// occurrence is an event at the position where it was read.
type occurrence struct {
	feature.Identity
	feature.Position
}
