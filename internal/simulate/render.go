package simulate

import (
	"strconv"
	"time"
)

// renderer writes facts as canonical events. It appends bytes by hand: a simulator slower than what it feeds would be of
// no use.
type renderer struct {
	seed    uint64
	attempt int    // where in the last event its delivery_attempt stands, one digit
	scratch []byte // of deform
	day     int64
	dayText [len("2006-01-02")]byte // of day
}

// appendEvent appends the fact as one line of JSON, received at the time.
func (r *renderer) appendEvent(dst []byte, f *fact, received int64) []byte {
	begin, c := len(dst), f.contact
	dst = append(dst, idBegin...)
	event := uint64(c.number)<<32 | uint64(c.made)
	dst = appendUUID(dst, mix(r.seed, forEventID, event), mix(r.seed, forEventID, ^event))
	dst = append(dst, `","event_type":"`...)
	dst = append(dst, eventTypes[f.kind].text...)
	dst = append(dst, `","source":"`...)
	source, version := dealSource, "1.1"
	switch eventTypes[f.kind].stream {
	case contactStream:
		source, version = contactSources[c.system], "1.2"
	case engagementStream:
		source, version = engagementSource(f.engagement.kind), "1.0"
	}
	dst = append(dst, source...)
	dst = append(dst, `","occurred_at":"`...)
	dst = r.appendTime(dst, c.now)
	dst = append(dst, `","received_at":"`...)
	dst = r.appendTime(dst, received)
	dst = append(dst, `","delivery_attempt":`...)
	r.attempt = len(dst) - begin
	dst = append(dst, `1,"schema_version":"`...)
	dst = append(dst, version...)
	dst = append(dst, `"},"payload":`...)
	switch eventTypes[f.kind].stream {
	case contactStream:
		dst = r.appendContact(dst, f)
	case opportunityStream:
		dst = r.appendOpportunity(dst, f)
	default:
		dst = r.appendEngagement(dst, f)
	}
	return append(dst, '}')
}

// appendKey appends the record key: the entity's id, of an engagement its contact's.
func (r *renderer) appendKey(dst []byte, f *fact) []byte {
	if eventTypes[f.kind].stream == opportunityStream {
		return f.contact.appendOpportunityID(dst, f.deal.number)
	}
	return f.contact.appendContactID(dst)
}

func (r *renderer) appendContact(dst []byte, f *fact) []byte {
	c := f.contact
	dst = append(dst, `{"contact_id":"`...)
	dst = c.appendContactID(dst)
	if f.kind == contactDeleted {
		return append(dst, `"}`...)
	}
	dst = append(dst, `","email":"`...)
	dst = c.appendEmail(dst)
	dst = append(dst, `","phone":"`...)
	dst = c.appendPhone(dst, r.seed)
	dst = append(dst, `","name":{"first":"`...)
	dst = append(dst, firstNames[c.first].text...)
	dst = append(dst, `","last":"`...)
	dst = append(dst, lastNames[c.last].text...)
	dst = append(dst, `"},"mkt_status":"`...)
	dst = append(dst, statusNames[c.status]...)
	dst = append(dst, `","segments":[`...)
	for i, comma := 0, false; i < len(segmentNames); i++ {
		if c.segments&(1<<i) == 0 {
			continue
		}
		if comma {
			dst = append(dst, ',')
		}
		comma = true
		dst = append(dst, '"')
		dst = append(dst, segmentNames[i]...)
		dst = append(dst, '"')
	}
	dst = append(dst, `],"attributes":{`...)
	if f.repeated { // the same members in another order are the same state
		dst = appendSupport(dst, c)
		dst = append(dst, ',')
		dst = appendProfile(dst, c)
	} else {
		dst = appendProfile(dst, c)
		dst = append(dst, ',')
		dst = appendSupport(dst, c)
	}
	dst = append(dst, `},"updated_at":"`...)
	dst = r.appendTime(dst, c.now)
	dst = append(dst, `","source_metadata":{"crm_id":"003`...)
	dst = strconv.AppendInt(dst, int64(c.number)+1_000_000_000, 10)
	dst = append(dst, `","crm_record_url":"https://crm.example.com/contacts/`...)
	dst = strconv.AppendInt(dst, int64(c.number), 10)
	return append(dst, `"}}`...)
}

func appendProfile(dst []byte, c *contact) []byte {
	dst = append(dst, `"lead_score":`...)
	dst = strconv.AppendInt(dst, int64(c.score), 10)
	dst = append(dst, `,"locale":"`...)
	dst = append(dst, locales[c.locale].text...)
	dst = append(dst, `","owner":"`...)
	dst = appendOwner(dst, c.owner)
	dst = append(dst, `","plan":"`...)
	dst = append(dst, plans[c.plan]...)
	return append(dst, '"')
}

func appendSupport(dst []byte, c *contact) []byte {
	dst = append(dst, `"open_tickets":`...)
	dst = strconv.AppendInt(dst, int64(c.openTickets()), 10)
	dst = append(dst, `,"total_tickets":`...)
	return strconv.AppendInt(dst, int64(c.tickets), 10)
}

func appendOwner(dst []byte, owner uint8) []byte {
	return append(dst, 'r', 'e', 'p', '-', '0'+owner/10, '0'+owner%10)
}

func (r *renderer) appendOpportunity(dst []byte, f *fact) []byte {
	c, d := f.contact, f.deal
	dst = append(dst, `{"opportunity_id":"`...)
	dst = c.appendOpportunityID(dst, d.number)
	dst = append(dst, `","account_id":"`...)
	dst = c.appendAccountID(dst)
	dst = append(dst, `","stages":{"current":"`...)
	dst = append(dst, stages[d.stage].text...)
	dst = append(dst, `","history":[`...)
	for step := range d.steps {
		if step > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"stage":"`...)
		dst = append(dst, stages[d.stageAt(step)].text...)
		dst = append(dst, `","entered_at":"`...)
		dst = r.appendTime(dst, d.entered[step])
		dst = append(dst, `"}`...)
	}
	dst = append(dst, `]},"amount":{"currency":"`...)
	dst = append(dst, locales[c.locale].currency...)
	dst = append(dst, `","value":`...)
	dst = appendAmount(dst, d.amount)
	dst = append(dst, `},"probability":`...)
	dst = append(dst, stages[d.stage].probability...)
	dst = append(dst, `,"owner_id":"`...)
	dst = appendOwner(dst, d.owner)
	dst = append(dst, `","close_date":"`...)
	dst = appendDate(dst, d.close)
	dst = append(dst, `","updated_at":"`...)
	dst = r.appendTime(dst, c.now)
	return append(dst, `"}`...)
}

func (r *renderer) appendEngagement(dst []byte, f *fact) []byte {
	c, e := f.contact, &f.engagement
	dst = append(dst, `{"engagement_id":"`...)
	dst = c.appendEngagementID(dst, c.engagements)
	dst = append(dst, `","contact_id":"`...)
	dst = c.appendContactID(dst)
	dst = append(dst, `","type":"`...)
	dst = append(dst, e.kind...)
	dst = append(dst, `","channel":"`...)
	dst = append(dst, e.channel...)
	dst = append(dst, `","metadata":{"subject":`...)
	if e.subject == "" {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, '"')
		if e.ticket != 0 {
			dst = append(dst, `Ticket `...)
			dst = strconv.AppendUint(dst, uint64(e.ticket), 10)
			dst = append(dst, `: `...)
		}
		dst = append(dst, e.subject...)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"source_campaign":`...)
	if e.campaign == "" {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, '"')
		dst = append(dst, e.campaign...)
		dst = append(dst, '"')
	}
	dst = append(dst, `},"occurred_at":"`...)
	dst = r.appendTime(dst, c.now)
	dst = append(dst, `","outcome":"`...)
	dst = append(dst, e.outcome...)
	return append(dst, `"}`...)
}

// engagementSource is the system that reports this kind of engagement.
func engagementSource(kind string) string {
	switch kind {
	case "email":
		return "marketo:eu"
	case "support_ticket", "chat":
		return "zendesk:helpdesk"
	default:
		return "aircall:sales"
	}
}

// appendTime appends milliseconds since 1970 as RFC 3339 in UTC. The date is kept from one event to the next.
func (r *renderer) appendTime(dst []byte, at int64) []byte {
	day, ms := at/millisecondsADay, at%millisecondsADay
	if day != r.day || r.dayText[0] == 0 {
		r.day = day
		appendDate(r.dayText[:0], day)
	}
	dst = append(dst, r.dayText[:]...)
	h, m, s := ms/3_600_000, ms/60_000%60, ms/1000%60
	ms %= 1000
	return append(dst, 'T', digit(h/10), digit(h%10), ':', digit(m/10), digit(m%10), ':', digit(s/10), digit(s%10),
		'.', digit(ms/100), digit(ms/10%10), digit(ms%10), 'Z')
}

func digit(n int64) byte { return byte('0' + n) }

// appendDate appends a day since 1970 as a date.
func appendDate(dst []byte, day int64) []byte {
	return time.Unix(day*(millisecondsADay/1000), 0).UTC().AppendFormat(dst, time.DateOnly)
}

// appendAmount appends 10,000ths as a JSON number with as many decimals as it takes, four at most.
func appendAmount(dst []byte, amount int64) []byte {
	dst = strconv.AppendInt(dst, amount/10_000, 10)
	rest := amount % 10_000
	if rest == 0 {
		return dst
	}
	dst = append(dst, '.', digit(rest/1000), digit(rest/100%10), digit(rest/10%10), digit(rest%10))
	for dst[len(dst)-1] == '0' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

const hexDigits = "0123456789abcdef"

// appendUUID appends 128 bits as a UUID of version 4, of which 6 bits are given (RFC 9562).
func appendUUID(dst []byte, high, low uint64) []byte {
	high = high&^0xf000 | 0x4000
	low = low&^(3<<62) | 2<<62
	for i := 60; i >= 0; i -= 4 {
		if i == 28 || i == 12 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexDigits[high>>i&15])
	}
	for i := 60; i >= 0; i -= 4 {
		if i == 60 || i == 44 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexDigits[low>>i&15])
	}
	return dst
}
