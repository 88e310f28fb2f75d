package simulate

// life holds the rules by which the contacts of a configuration live. Facts go to out in the order in which they happen
// to a contact; a fact is valid only during the call.
type life struct {
	config     Config
	start, end int64   // of the span
	extra      float64 // events beside its creation of a contact of vigour 1
	deleted    float64 // share of contacts that are deleted
	stageMax   int64   // how long a deal must stay in a stage at most
	dealGap    int64   // from one deal of a contact to its next, on average
	out        func(*fact)
	fact       fact
}

func newLife(c Config, out func(*fact)) *life {
	l := &life{config: c, start: c.start(), end: c.start() + c.length(), out: out}
	l.stageMax = min(stageDays*millisecondsADay, c.length()/9)
	l.dealGap = min(dealGapDays*millisecondsADay, c.length()*2/3)
	vigour := 0.0
	for i := range c.Contacts {
		vigour += l.vigour(i, l.born(i))
	}
	l.extra = float64(c.events()-c.Contacts) / vigour
	l.deleted = c.Deletes * float64(c.events()) / float64(c.Contacts)
	return l
}

// Figures that shape a life.
const (
	earlyShare    = 0.4    // of the contacts: those that the CRM was filled with, in the first tenth of the span
	unhappyShare  = 0.2    // of the contacts that stay; who is deleted always is
	eventsPerStep = 1.75   // an engagement or a deal's step often changes the contact too; measured
	stageDays     = 10     // a deal must stay in a stage for a day to so many; less in a short span
	dealGapDays   = 60     // a contact opens a deal in so many days at most, on average; less in a short span
	quietEnd      = 10_000 // milliseconds without a step before a life's end, so that the last step's events fit in
)

// born is when a contact is created. Numbers rise with time: the early share within the first tenth of the span, the
// others evenly up to 85 % of it.
func (l *life) born(index int) int64 {
	jitter := float64(mix(l.config.Seed, forPerson, uint64(index))>>11) * 0x1p-53
	position := (float64(index) + jitter) / float64(l.config.Contacts)
	length := float64(l.end - l.start)
	if position < earlyShare {
		return l.start + int64(position/earlyShare*length/10)
	}
	return l.start + int64(length/10) + int64((position-earlyShare)/(1-earlyShare)*(length*3/4))
}

// vigours are how many events contacts have relative to each other in the same time: few have many. Of 16 contacts in a
// row each has one of these, so that any number of contacts is a good sample.
var vigours = [16]float64{0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 1.1, 1.4, 1.9, 2.75, 4.7}

// vigour is how many events the contact has relative to others, by its nature and by the time it has.
func (l *life) vigour(index int, born int64) float64 {
	nature := vigours[(uint64(index)*5+mix(l.config.Seed, forLife, uint64(index/len(vigours))))%uint64(len(vigours))]
	return float64(nature * (float64(l.end-born) / float64(l.end-l.start))) // rounded once, see source.unit
}

// newContact is a contact at the moment before its creation, its fate decided.
func (l *life) newContact(index int) contact {
	born := l.born(index)
	c := contact{
		source: newSource(l.config.Seed, forLife, uint64(index)),
		person: newPerson(l.config.Seed, index, l.config.Contacts),
		now:    born - 1, end: l.end,
	}
	c.left = 1 + int32(float64(l.extra*l.vigour(index, born))+c.unit())
	c.unhappy = c.chance(unhappyShare)
	if c.doomed = c.chance(l.deleted); c.doomed {
		// Any time from a fifth of what is left of the span on.
		rest := l.end - c.now - 2*quietEnd
		c.end = c.now + quietEnd + c.between(rest/5, rest)
		c.left = max(c.left, 2)
		c.unhappy = true
	}
	c.owner = uint8(c.below(owners))
	c.score = uint8(5 + c.below(30))
	if c.chance(0.6) {
		c.segments |= newsletterSegment
	}
	return c
}

// never is the time of a step that isn't taken.
const never = int64(1<<63 - 1)

// step makes what happens to the contact at the time now and returns the time of its next step, or never.
func (l *life) step(c *contact, now int64) int64 {
	c.now = now
	switch {
	case c.made == 0:
		l.emit(c, contactCreated)
	case c.doomed && now >= c.end:
		l.leave(c)
		return never
	default:
		l.act(c)
	}
	return l.nextStep(c)
}

// nextStep draws the time of the next step so that the events left spread evenly over the time left. The next of m
// points spread over a span is at about span·x/(m+x), x being exponential, which never reaches the end. A contact with
// an open ticket is in a hurry, and has a quieter time after it.
func (l *life) nextStep(c *contact) int64 {
	left, end := c.left, c.end-quietEnd
	if c.doomed {
		left--
	}
	if left <= 0 || c.now >= end {
		if c.doomed {
			return c.end
		}
		return never
	}
	x := c.exponential()
	if c.openTickets() > 0 {
		x /= 4
	}
	return c.now + 1 + int64(float64(end-c.now)*x/(max(float64(left)/eventsPerStep, 1)+x))
}

// emit hands a fact of the contact on. Every fact has a later time than the one before it.
func (l *life) emit(c *contact, kind eventType) {
	c.made++
	c.left--
	l.fact.kind, l.fact.contact = kind, c
	l.out(&l.fact)
	l.fact = fact{}
}

// sync emits the contact's state after something changed it: the CRM takes a moment.
func (l *life) sync(c *contact) {
	c.now += c.between(200, 1500)
	l.emit(c, contactUpdated)
}

// leave ends the deals that are open and deletes the contact.
func (l *life) leave(c *contact) {
	for i, d := range c.open {
		if d != nil {
			l.endDeal(c, i, lost)
			c.now += c.between(200, 1500)
		}
	}
	l.emit(c, contactDeleted)
}
