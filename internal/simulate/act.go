package simulate

// An action is what a contact's step may be.
type action uint8

const (
	openEmail action = iota
	answerEmail
	call
	chat
	changeProfile
	repeatProfile
	openDeal
	advanceDeal
	reviseDeal
	openTicket
	answerTicket
	escalateTicket
	closeTicket
	actionCount
)

// weights are how likely each action is, relative to the others, in the contact's state. An impossible one has 0.
func (c *contact) weights() (w [actionCount]int) {
	deals, ready := c.countDeals()
	happy := 2
	if c.unhappy {
		happy = 1
	}
	w[openEmail] = 12 * happy
	if c.unanswered > 0 {
		w[answerEmail] = 4 * happy
	}
	w[call], w[chat] = 3, 2
	w[changeProfile], w[repeatProfile] = 8, 6
	w[advanceDeal], w[reviseDeal] = 20*ready, 4*deals
	if c.now >= c.nextDeal {
		switch {
		case deals == 0 && c.status != customer:
			w[openDeal] = 8
		case deals < dealsOpenMax && c.status == customer:
			w[openDeal] = 2
		}
	}
	if c.status != customer {
		return w
	}
	open := 0
	for _, t := range c.waiting {
		if t.number == 0 {
			continue
		}
		open++
		if !t.answered {
			w[answerTicket] += 30
			continue
		}
		w[closeTicket] += 20
		if !t.escalated {
			w[escalateTicket] += 12 / (happy * happy)
		}
	}
	if open < ticketsOpenMax {
		w[openTicket] = 16 / happy
	}
	return w
}

// act draws an action and does it.
func (l *life) act(c *contact) {
	w := c.weights()
	total := 0
	for _, n := range w {
		total += n
	}
	drawn, a := c.below(total), action(0)
	for drawn >= w[a] {
		drawn -= w[a]
		a++
	}
	switch a {
	case openEmail, answerEmail, call, chat:
		l.talk(c, a)
	case changeProfile:
		c.changeProfile()
		l.emit(c, contactUpdated)
	case repeatProfile:
		l.fact.repeated = true
		l.emit(c, contactUpdated)
	case openDeal:
		l.openDeal(c)
	case advanceDeal:
		l.advanceDeal(c)
	case reviseDeal:
		l.reviseDeal(c)
	default:
		l.support(c, a)
	}
}

// engage emits an engagement.
func (l *life) engage(c *contact, e engagement) {
	c.engagements++
	l.fact.engagement = e
	l.emit(c, engagementCreated)
}

// talk is an email opened or responded to, a call or a chat. It may move the lead's score.
func (l *life) talk(c *contact, a action) {
	e, gain := engagement{outcome: "responded"}, 8
	switch a {
	case openEmail, answerEmail:
		e.kind, e.channel = "email", "marketing"
		e.campaign, e.subject = campaigns[c.below(len(campaigns))], emailSubjects[c.below(len(emailSubjects))]
		if a == answerEmail {
			c.unanswered--
			break
		}
		e.outcome, gain = "opened", 3
		c.unanswered = min(c.unanswered+1, 5)
	case call:
		e.kind, e.channel = "call", "phone"
	case chat:
		e.kind, e.channel = "chat", "web"
		if c.chance(0.5) {
			e.outcome = "closed"
		}
	}
	l.engage(c, e)
	if c.chance(0.5) && c.score < 100 {
		c.score = uint8(min(int(c.score)+gain, 100))
		l.sync(c)
	}
}

// changeProfile changes something of the contact, never nothing.
func (c *contact) changeProfile() {
	switch n := c.below(20); {
	case n < 10 && c.score > 0:
		c.score -= uint8(1 + c.below(min(int(c.score), 10)))
	case n < 13:
		c.owner = uint8((int(c.owner) + 1 + c.below(owners-1)) % owners)
	case n < 14:
		c.phones++
	default:
		c.segments ^= 1 << c.below(len(segmentNames)-1) // support alone sets churn-risk
	}
}

// support is a step of a support ticket: a new one, or the next of one that waits for it.
func (l *life) support(c *contact, a action) {
	i := c.drawTicket(a)
	t := &c.waiting[i]
	if a == openTicket {
		c.tickets++
		*t = ticket{number: c.tickets}
	}
	number := int(t.number) + c.number
	e := engagement{
		kind: "support_ticket", channel: ticketChannels[number%len(ticketChannels)],
		subject: ticketSubjects[number%len(ticketSubjects)], ticket: t.number,
	}
	switch a {
	case openTicket:
		e.outcome = "opened"
	case answerTicket:
		e.outcome, t.answered = "responded", true
	case escalateTicket:
		e.outcome, t.escalated = "escalated", true
		c.segments |= churnRiskSegment
	case closeTicket:
		e.outcome, *t = "closed", ticket{}
	}
	l.engage(c, e)
	if a != answerTicket {
		l.sync(c)
	}
}

// drawTicket draws one of the tickets that the action is possible on; for a new one, an empty place.
func (c *contact) drawTicket(a action) int {
	var fit [ticketsOpenMax]int
	n := 0
	for i, t := range c.waiting {
		var ok bool
		switch a {
		case openTicket:
			ok = t.number == 0
		case answerTicket:
			ok = t.number != 0 && !t.answered
		case escalateTicket:
			ok = t.answered && !t.escalated
		case closeTicket:
			ok = t.answered
		}
		if ok {
			fit[n] = i
			n++
		}
	}
	return fit[c.below(n)]
}
