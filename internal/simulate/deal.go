package simulate

// amountMax is the amount, in 10,000ths, above which a deal is only revised downwards.
const amountMax = 10_000_000 * 10_000

// openDeal opens a deal; a lead becomes an opportunity.
func (l *life) openDeal(c *contact) {
	place := 0
	for c.open[place] != nil {
		place++
	}
	c.deals++
	d := &deal{
		number: c.deals, owner: c.owner,
		amount: int64(5+c.below(400)) * 100 * 10_000, // 500 to 40,400
		close:  c.now/millisecondsADay + 20 + int64(c.below(100)),
	}
	if c.chance(0.3) { // a price of so many seats is not round
		d.amount += int64(c.below(1_000_000))
	}
	d.enter(prospecting, c.now)
	l.rest(c, d)
	c.nextDeal = c.now + c.between(l.dealGap/2, l.dealGap*3/2)
	c.open[place] = d
	l.fact.deal = d
	l.emit(c, opportunityCreated)
	if c.status == lead {
		c.status = opportunity
		l.sync(c)
	}
}

// rest keeps a deal in its stage for a while, however busy its contact is.
func (l *life) rest(c *contact, d *deal) {
	d.rests = c.now + c.between(l.stageMax/10, l.stageMax)
}

func (c *contact) hasDeal() bool { return c.open != [dealsOpenMax]*deal{} }

// countDeals counts the open deals, and those of them that no longer rest.
func (c *contact) countDeals() (open, ready int) {
	for _, d := range c.open {
		if d != nil {
			open++
			if d.rests <= c.now {
				ready++
			}
		}
	}
	return open, ready
}

// drawDeal draws one of the open deals or, with ready, of those that no longer rest. There is at least one.
func (c *contact) drawDeal(ready bool) int {
	var fit [dealsOpenMax]int
	n := 0
	for i, d := range c.open {
		if d != nil && (!ready || d.rests <= c.now) {
			fit[n] = i
			n++
		}
	}
	return fit[c.below(n)]
}

// advanceDeal moves an open deal to its next stage, or ends it.
func (l *life) advanceDeal(c *contact) {
	place := c.drawDeal(true)
	d, lose := c.open[place], 0.1
	if c.unhappy {
		lose = 0.3
	}
	switch {
	case c.chance(lose):
		l.endDeal(c, place, lost)
		l.afterLoss(c)
	case d.stage == negotiation:
		l.endDeal(c, place, won)
		c.status = customer
		c.plan = min(c.plan+1, uint8(len(plans)-1))
		if d.amount > 30_000*10_000 {
			c.segments |= vipSegment
		}
		l.sync(c)
	default:
		d.enter(d.stage+1, c.now)
		l.rest(c, d)
		if d.stage == proposal && c.chance(0.5) {
			d.amount -= d.amount / 20 // a discount
		}
		l.fact.deal = d
		l.emit(c, opportunityAdvanced)
	}
}

// endDeal ends an open deal as won or lost.
func (l *life) endDeal(c *contact, place int, stage uint8) {
	d := c.open[place]
	c.open[place] = nil
	d.enter(stage, c.now)
	d.close = c.now / millisecondsADay
	l.fact.deal = d
	if stage == won {
		l.emit(c, opportunityWon)
	} else {
		l.emit(c, opportunityLost)
	}
}

// afterLoss changes the contact after a lost deal: who has no deal and never bought is a lead again.
func (l *life) afterLoss(c *contact) {
	switch {
	case c.status == opportunity && !c.hasDeal():
		c.status = lead
	case c.unhappy && c.segments&churnRiskSegment == 0:
		c.segments |= churnRiskSegment
	default:
		return
	}
	l.sync(c)
}

// reviseDeal changes the amount, the day or the owner of an open deal.
func (l *life) reviseDeal(c *contact) {
	d := c.open[c.drawDeal(false)]
	switch c.below(3) {
	case 0:
		rise := d.amount / int64(5+c.below(20))
		if d.amount > amountMax {
			rise = -d.amount / 2 // scaled down, however often a busy contact's deal is revised
		}
		d.amount += rise
	case 1:
		d.close += int64(1 + c.below(30))
	default:
		d.owner = uint8((int(d.owner) + 1 + c.below(owners-1)) % owners)
	}
	l.fact.deal = d
	l.emit(c, opportunityUpdated)
}
