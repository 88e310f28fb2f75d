package simulate

import "slices"

// eventType is a type of event the simulator makes.
type eventType uint8

const (
	contactCreated eventType = iota
	contactUpdated
	contactDeleted
	opportunityCreated
	opportunityUpdated
	opportunityAdvanced
	opportunityWon
	opportunityLost
	engagementCreated
)

// stream is one of the three canonical streams.
type stream uint8

const (
	contactStream stream = iota
	opportunityStream
	engagementStream
	streamCount
)

var streamNames = [streamCount]string{"contact", "opportunity", "engagement"}

// Topics are the topics that events are written to, by stream: contact, opportunity, engagement.
type Topics [streamCount]string

// TopicsOf are the topics that topic names for the streams.
func TopicsOf(topic func(stream string) string) Topics {
	var t Topics
	for i, name := range streamNames {
		t[i] = topic(name)
	}
	return t
}

// of is the topic of an event.
func (t Topics) of(e Event) string { return t[slices.Index(streamNames[:], e.Stream)] }

var eventTypes = [...]struct {
	text   string
	stream stream
}{
	contactCreated:      {"Contact.created", contactStream},
	contactUpdated:      {"Contact.updated", contactStream},
	contactDeleted:      {"Contact.deleted", contactStream},
	opportunityCreated:  {"Opportunity.created", opportunityStream},
	opportunityUpdated:  {"Opportunity.updated", opportunityStream},
	opportunityAdvanced: {"Opportunity.stage_changed", opportunityStream},
	opportunityWon:      {"Opportunity.won", opportunityStream},
	opportunityLost:     {"Opportunity.lost", opportunityStream},
	engagementCreated:   {"Engagement.created", engagementStream},
}

// fact is one thing that happened in a contact's life, as of the moment it happened: contact and deal are in the state
// after it, and are valid only until the life goes on.
type fact struct {
	kind       eventType
	contact    *contact // its now is the event time
	deal       *deal    // of an opportunity event
	engagement engagement
	repeated   bool // a contact update that changes nothing
}

// engagement is what an engagement event says beside its ids and time.
type engagement struct {
	kind, channel, outcome string
	campaign               string // "" is null
	subject                string // "" is null
	ticket                 uint32 // stands before the subject where it isn't 0
}
