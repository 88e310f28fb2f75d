package simulate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
)

// churnWithin is how long after a label's time a churn counts, in milliseconds.
const churnWithin = 30 * millisecondsADay

// labelTries bounds how often a label is drawn anew because its contact didn't exist at its time.
const labelTries = 10_000

// WriteLabels writes n labels as CSV, contact_id,event_timestamp,churned: of contacts that exist, at random times in the
// second half of the span, churned being whether the contact is deleted or loses the last deal it has open within 30
// days after. Where the span is longer than 60 days no label is in its last 30, so that each is known to its end; in a
// shorter one what would come after the span counts as no churn. It returns how many churned.
//
// No run is needed: only the lives of the contacts drawn are lived again, one at a time.
func WriteLabels(ctx context.Context, w io.Writer, c Config, n int) (churned int, err error) {
	if err := c.Validate(); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("labels: %d is not a number of labels; give 0 or more", n)
	}
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "contact_id,event_timestamp,churned") // an error stays with the writer until Flush
	l := newLabeller(c)
	for range n {
		label, err := l.draw(ctx)
		if err != nil {
			return churned, err
		}
		if label.churned {
			churned++
		}
		out.Write(l.appendRow(out.AvailableBuffer(), label))
	}
	if err := out.Flush(); err != nil {
		return churned, fmt.Errorf("write the labels: %w", err)
	}
	return churned, nil
}

type label struct {
	contact int // index
	at      int64
	churned bool
}

// labeller draws labels. While a contact lives for it, at is the label's time and exists and churned are found out.
type labeller struct {
	life     *life
	random   source
	renderer renderer
	from, to int64 // bounds of the labels' times

	at              int64
	exists, churned bool
}

func newLabeller(c Config) *labeller {
	l := &labeller{random: newSource(c.Seed, forLabels, 0), renderer: renderer{seed: c.Seed}}
	l.life = newLife(c, l.observe)
	l.from, l.to = l.life.start+c.length()/2, l.life.end
	if known := l.life.end - churnWithin; known > l.from {
		l.to = known
	}
	return l
}

func (l *labeller) draw(ctx context.Context) (label, error) {
	for range labelTries {
		at := l.random.between(l.from, l.to)
		born := sort.Search(l.life.config.Contacts, func(i int) bool { return l.life.born(i) > at })
		if born == 0 {
			continue
		}
		index := l.random.below(born)
		l.at, l.exists, l.churned = at, false, false
		c := l.life.newContact(index)
		next := l.life.born(index)
		for steps := 0; next <= at+churnWithin; steps++ { // never is later
			if steps%cancelEvery == 0 && ctx.Err() != nil {
				return label{}, ctx.Err()
			}
			next = l.life.step(&c, next)
		}
		if l.exists {
			return label{index, at, l.churned}, nil
		}
	}
	return label{}, fmt.Errorf("labels: hardly a contact exists in the second half of the span; raise contacts or lower deletes")
}

// observe takes a fact of the life of the label's contact.
func (l *labeller) observe(f *fact) {
	switch at := f.contact.now; {
	case f.kind == contactCreated:
		l.exists = at <= l.at
	case f.kind == contactDeleted && at <= l.at:
		l.exists = false
	case f.kind == contactDeleted, f.kind == opportunityLost && !f.contact.hasDeal():
		l.churned = l.churned || (at > l.at && at <= l.at+churnWithin)
	}
}

func (l *labeller) appendRow(dst []byte, row label) []byte {
	dst = strconv.AppendInt(append(dst, 'c'), int64(row.contact)+1, 10)
	dst = l.renderer.appendTime(append(dst, ','), row.at)
	dst = strconv.AppendBool(append(dst, ','), row.churned)
	return append(dst, '\n')
}
