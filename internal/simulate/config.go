package simulate

import (
	"fmt"
	"time"
)

// Bounds of a configuration. They keep times within four-digit years and a contact's events a second apart.
const (
	contactsMax      = 10_000_000 // each takes some 250 bytes while it lives
	daysMax          = 3660
	eventsPerDayMax  = 10_000                // of one contact
	startMin         = "1970-01-01T00:00:00" // Kafka has no negative timestamps
	startYearMax     = 9900
	naturalRateDays  = 4 // a contact of the natural rate has an event in so many days, and its creation
	millisecondsADay = 24 * 60 * 60 * 1000
)

// defaultEnd is where the span ends unless the configuration says where it begins: fixed, so that a seed says all, and
// past, so that no topic refuses an event for being from the future.
var defaultEnd = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Config says which CRM is simulated and how its events are delivered. The shares are of the good events: of 1,000 of
// them, Duplicates 0.01 delivers about 10 a second time.
type Config struct {
	Seed     uint64
	Contacts int       // contacts that are created during the span
	Start    time.Time // the span's begin, to the millisecond; zero lets the span end at 2026-01-01T00:00:00Z
	Days     int       // the span's length
	// Events is about how many good events there are; duplicates and malformed events come on top. 0 takes the natural
	// rate, a creation and an event in four days for each contact.
	Events int

	Duplicates float64 // delivered a second time, seconds to days later, as delivery_attempt 2
	Late       float64 // arrive a minute to three days after their event time, mostly within the hour
	OutOfOrder float64 // held back for seconds, so that younger events overtake them
	Malformed  float64 // followed by an extra event that loam refuses
	Deletes    float64 // are a Contact.deleted
}

// Validate reports the first thing that is wrong with the configuration, naming the field and the remedy.
func (c Config) Validate() error {
	if c.Contacts < 1 || c.Contacts > contactsMax {
		return fmt.Errorf("contacts: %d is not a number of contacts; give 1 to %d", c.Contacts, contactsMax)
	}
	if c.Days < 1 || c.Days > daysMax {
		return fmt.Errorf("days: %d is not a span; give 1 to %d days", c.Days, daysMax)
	}
	if !c.Start.IsZero() && (c.Start.Before(time.Unix(0, 0)) || c.Start.UTC().Year() > startYearMax) {
		return fmt.Errorf("start: %s is out of bounds; give a time from %sZ to the year %d", c.Start.UTC().Format(time.RFC3339), startMin, startYearMax)
	}
	for _, share := range []struct {
		field string
		value float64
	}{
		{"duplicates", c.Duplicates}, {"late", c.Late}, {"out of order", c.OutOfOrder}, {"malformed", c.Malformed}, {"deletes", c.Deletes},
	} {
		if !(share.value >= 0 && share.value <= 1) { // not (<0 or >1): that would let NaN through
			return fmt.Errorf("%s: %v is not a share of events; give 0 to 1, such as 0.01", share.field, share.value)
		}
	}
	if c.Late+c.OutOfOrder > 1 {
		return fmt.Errorf("late: %v and out of order: %v are more than all events, and none is both; lower one of them", c.Late, c.OutOfOrder)
	}
	events := c.events()
	if events < c.Contacts {
		return fmt.Errorf("events: %d are fewer than the %d contacts, and each contact is created; raise events or lower contacts", events, c.Contacts)
	}
	if most := c.Contacts * c.Days * eventsPerDayMax; events > most {
		return fmt.Errorf("events: %d are more than %d a day of each contact; raise contacts or days, or lower events to %d", events, eventsPerDayMax, most)
	}
	if deletes := c.Deletes * float64(events); deletes > float64(c.Contacts) {
		return fmt.Errorf("deletes: %v of %d events is more than the %d contacts, and each is deleted once; lower it to %.2g or raise contacts",
			c.Deletes, events, c.Contacts, float64(c.Contacts)/float64(events))
	}
	return nil
}

// events is Events, or what the natural rate makes of it.
func (c Config) events() int {
	if c.Events != 0 {
		return c.Events
	}
	return c.Contacts + c.Contacts*c.Days/naturalRateDays
}

// start is the span's begin and length is its length, both in milliseconds; the begin is since 1970 UTC.
func (c Config) start() int64 {
	if c.Start.IsZero() {
		return defaultEnd.UnixMilli() - c.length()
	}
	return c.Start.UnixMilli()
}

func (c Config) length() int64 { return int64(c.Days) * millisecondsADay }
