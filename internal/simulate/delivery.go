package simulate

import (
	"time"

	"github.com/loamdata/loam/feature"
)

// delivery decides when events arrive and hands them over in that order. It holds an event from when it happened until
// the simulated time of its arrival, so what it holds is what is late or to be delivered again.
type delivery struct {
	config     Config
	renderer   renderer
	delays     source
	duplicates source
	malformed  source
	arrivals   queue
	held       []held
	free       []int32 // of held
	turn       uint64
	yield      func(Event) error
	summary    Summary
	byType     [len(eventTypes)]int
}

// held is an event on its way. Its bytes are used again for another.
type held struct {
	bytes  []byte // the key, then the value
	key    int    // length of the key
	of     stream
	reason feature.Reason
}

// latency is how long an event takes that nothing holds back, in milliseconds. It is the same for all of them: without
// Late and OutOfOrder events arrive in the order of their event times.
const latency = 250

func newDelivery(c Config, yield func(Event) error) *delivery {
	return &delivery{
		config: c, renderer: renderer{seed: c.Seed}, yield: yield,
		summary:    Summary{Malformed: map[string]int{}, ByType: map[string]int{}},
		delays:     newSource(c.Seed, forDelay, 0),
		duplicates: newSource(c.Seed, forDuplicates, 0),
		malformed:  newSource(c.Seed, forMalformed, 0),
	}
}

// accept takes a fact on its way, with the duplicate and the malformed event that may come of it.
func (d *delivery) accept(f *fact) {
	slot := d.hold()
	h := &d.held[slot]
	h.of, h.reason = eventTypes[f.kind].stream, ""
	at := f.contact.now + latency + d.delay()
	h.bytes = d.renderer.appendKey(h.bytes[:0], f)
	h.key = len(h.bytes)
	h.bytes = d.renderer.appendEvent(h.bytes, f, at)
	d.byType[f.kind]++
	d.send(slot, at)
	if d.duplicates.chance(d.config.Duplicates) {
		d.repeat(slot, at)
	}
	if d.malformed.chance(d.config.Malformed) {
		d.deform(slot, at)
	}
}

// delay draws how long the event is held back, in milliseconds.
func (d *delivery) delay() int64 {
	r := &d.delays
	switch u := r.unit(); {
	case u < d.config.Late:
		d.summary.Late++
		const minute, hour = 60_000, 3_600_000
		switch n := r.below(100); {
		case n < 85:
			return r.between(minute, hour)
		case n < 97:
			return r.between(hour, 24*hour)
		default:
			return r.between(24*hour, 72*hour)
		}
	case u < d.config.Late+d.config.OutOfOrder:
		d.summary.OutOfOrder++
		return r.between(1000, 30_000)
	default:
		return 0
	}
}

// repeat delivers an event once more, as its second attempt.
func (d *delivery) repeat(slot int32, first int64) {
	const second, hour = 1000, 3_600_000
	r := &d.duplicates
	var later int64
	switch n := r.below(100); {
	case n < 60:
		later = r.between(second, 60*second)
	case n < 95:
		later = r.between(60*second, 6*hour)
	default:
		later = r.between(6*hour, 5*24*hour)
	}
	again := d.hold()
	from, to := &d.held[slot], &d.held[again]
	to.bytes = append(to.bytes[:0], from.bytes...)
	to.key, to.of, to.reason = from.key, from.of, ""
	to.bytes[to.key+d.renderer.attempt]++
	d.summary.Duplicates++
	d.send(again, first+later)
}

// deform delivers a malformed event made of a good one, shortly after it.
func (d *delivery) deform(slot int32, first int64) {
	r := &d.malformed
	extra := d.hold()
	from, to := &d.held[slot], &d.held[extra]
	to.bytes = append(to.bytes[:0], from.bytes[:from.key]...)
	to.key, to.of = from.key, from.of
	to.bytes, to.reason = d.renderer.deform(to.bytes, from.bytes[from.key:], from.of, r.below(len(defects)), r.pcg.Uint64())
	d.summary.Malformed[string(to.reason)]++
	d.send(extra, first+r.between(1, 5000))
}

// hold finds a place for an event. Pointers into held are void after it.
func (d *delivery) hold() int32 {
	if n := len(d.free); n > 0 {
		slot := d.free[n-1]
		d.free = d.free[:n-1]
		return slot
	}
	d.held = append(d.held, held{})
	return int32(len(d.held) - 1)
}

func (d *delivery) send(slot int32, at int64) {
	d.turn++
	d.arrivals.push(entry{at: at, turn: d.turn, slot: slot})
}

// release hands over what arrives before the time.
func (d *delivery) release(before int64) error {
	for !d.arrivals.empty() && d.arrivals.first().at < before {
		e := d.arrivals.first()
		d.arrivals.pop()
		h := &d.held[e.slot]
		d.summary.Events++
		if err := d.yield(Event{
			Stream: streamNames[h.of], Key: h.bytes[:h.key:h.key], Value: h.bytes[h.key:],
			At: time.UnixMilli(e.at).UTC(), Reason: h.reason,
		}); err != nil {
			return err
		}
		d.free = append(d.free, e.slot)
	}
	return nil
}
