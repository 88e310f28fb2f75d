package simulate

// The statuses of a contact, an index into statusNames.
const (
	lead uint8 = iota
	opportunity
	customer
)

var statusNames = [...]string{"lead", "opportunity", "customer"}

// Bounds on what a contact has open at one time.
const (
	dealsOpenMax   = 2
	ticketsOpenMax = 3
)

// contact is one contact's life so far. Its next event is decided by it and its source alone.
type contact struct {
	source
	person
	end     int64 // time of the delete, or the end of the span; milliseconds since 1970 UTC, as all times here
	now     int64 // newest event time
	left    int32 // events still to come, the delete among them
	made    uint32
	doomed  bool // is deleted at end
	unhappy bool // opens fewer emails, escalates more tickets, loses more deals

	status      uint8
	plan        uint8 // of plans
	score       uint8 // 0..100
	owner       uint8
	segments    uint8 // a bit a segment
	unanswered  uint8 // emails opened and not responded to
	engagements uint32
	tickets     uint32 // opened ever
	deals       uint32 // opened ever
	open        [dealsOpenMax]*deal
	nextDeal    int64 // before it none is opened
	waiting     [ticketsOpenMax]ticket
}

// ticket is an open support ticket; the zero value is none.
type ticket struct {
	number    uint32 // from 1, a contact's own
	answered  bool
	escalated bool
}

func (c *contact) openTickets() (n int) {
	for i := range c.waiting {
		if c.waiting[i].number != 0 {
			n++
		}
	}
	return n
}

// The stages of a deal in their order, and the two ends.
const (
	prospecting uint8 = iota
	qualified
	proposal
	negotiation
	won
	lost
)

var stages = [...]struct {
	text        string
	probability string // a JSON number
}{
	prospecting: {"prospecting", "0.1"}, qualified: {"qualified", "0.25"}, proposal: {"proposal", "0.5"},
	negotiation: {"negotiation", "0.75"}, won: {"won", "1"}, lost: {"lost", "0"},
}

// deal is an opportunity. Its stages are those from prospecting on in order, the last of them won or lost once it ended.
type deal struct {
	number  uint32 // from 1, a contact's own
	owner   uint8
	stage   uint8
	entered [5]int64 // when it entered each stage it had; at most four and an end
	steps   uint8    // stages it had
	amount  int64    // 10,000ths of the currency
	close   int64    // day it is to close, or did; days since 1970
	rests   int64    // until then it stays in its stage
}

// enter moves the deal to a stage.
func (d *deal) enter(stage uint8, at int64) {
	d.stage = stage
	d.entered[d.steps] = at
	d.steps++
}

// stageAt is the stage of a step of the deal.
func (d *deal) stageAt(step uint8) uint8 {
	if step == d.steps-1 {
		return d.stage
	}
	return step
}
