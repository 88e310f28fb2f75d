package simulate

// population lets the contacts live side by side, in the order of their steps. It holds the contacts alive: those that
// are created and have something to come.
type population struct {
	life     *life
	unborn   int   // number of the next contact to be created
	birth    int64 // and when; never after the last
	contacts []contact
	free     []int32 // of contacts
	schedule queue
}

func newPopulation(l *life) *population {
	p := &population{life: l}
	p.birth = l.born(0)
	return p
}

// nextStep is the time of the next step of any contact, never if there is none.
func (p *population) nextStep() int64 {
	if p.schedule.empty() {
		return p.birth
	}
	return min(p.birth, p.schedule.first().at)
}

// step takes the next step of the population.
func (p *population) step() {
	if p.schedule.empty() || p.birth <= p.schedule.first().at {
		p.create()
		return
	}
	e := p.schedule.first()
	next := p.life.step(&p.contacts[e.slot], e.at)
	if next == never {
		p.schedule.pop()
		p.free = append(p.free, e.slot)
		return
	}
	e.at = next
	p.schedule.replaceFirst(e)
}

// create brings the next contact to life.
func (p *population) create() {
	var slot int32
	if n := len(p.free); n > 0 {
		slot = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		slot = int32(len(p.contacts))
		p.contacts = append(p.contacts, contact{})
	}
	c := &p.contacts[slot]
	*c = p.life.newContact(p.unborn)
	next, turn := p.life.step(c, p.birth), uint64(p.unborn)
	p.unborn++
	p.birth = never
	if p.unborn < p.life.config.Contacts {
		p.birth = p.life.born(p.unborn)
	}
	if next == never {
		p.free = append(p.free, slot)
		return
	}
	p.schedule.push(entry{at: next, turn: turn, slot: slot})
}
