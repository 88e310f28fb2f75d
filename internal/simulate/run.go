package simulate

import (
	"context"
	"time"

	"github.com/loamdata/loam/feature"
)

// Event is one delivery. Its bytes are valid until the function that it was handed to returns.
type Event struct {
	Stream string // contact, opportunity or engagement; of a malformed event that of the good one it was made of
	Key    []byte // the Kafka record key: a contact_id, of an opportunity its opportunity_id
	Value  []byte // one line of JSON without its end; of a malformed event what it is
	// At is when it arrives, in the simulation's time. It never goes back during a run.
	At time.Time
	// Reason is why loam refuses the event; "" where it doesn't.
	Reason feature.Reason
}

// Summary counts what a run made.
type Summary struct {
	Events     int            `json:"events"`       // handed over: Unique, Duplicates and Malformed together
	Unique     int            `json:"unique"`       // good events, each counted once
	Duplicates int            `json:"duplicates"`   // second deliveries
	Late       int            `json:"late"`         // good events a minute or more behind their event time
	OutOfOrder int            `json:"out_of_order"` // good events held back for seconds
	Deletes    int            `json:"deletes"`      // good events that delete a contact
	Malformed  map[string]int `json:"malformed"`    // by the feature.Reason that refuses them
	ByType     map[string]int `json:"by_type"`      // good events by event type
}

// cancelEvery is how many steps of a life may pass until a cancelled context is noticed.
const cancelEvery = 256

// Run simulates the CRM and hands every delivery to yield in order of arrival. It returns yield's first error as it is.
// The summary counts what was made until then.
func Run(ctx context.Context, c Config, yield func(Event) error) (Summary, error) {
	if err := c.Validate(); err != nil {
		return Summary{}, err
	}
	d := newDelivery(c, yield)
	p := newPopulation(newLife(c, d.accept))
	var err error
	for steps := 0; err == nil; steps++ {
		if steps%cancelEvery == 0 && ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		at := p.nextStep()
		// Whatever the step makes arrives after it; at the end the last step is never, which releases all.
		if err = d.release(at); err != nil || at == never {
			break
		}
		p.step()
	}
	return d.count(), err
}

// count completes the summary.
func (d *delivery) count() Summary {
	s := d.summary
	for kind, n := range d.byType {
		s.Unique += n
		if n > 0 {
			s.ByType[eventTypes[kind].text] = n
		}
	}
	s.Deletes = d.byType[contactDeleted]
	return s
}
