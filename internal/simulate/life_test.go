package simulate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A told life is one contact's as its events tell it.
type toldLife struct {
	created, deleted bool
	status           string
	state            map[string]any // of the newest contact event but its updated_at
	repeats          int
	deals            map[string]*toldDeal
	won              int
	tickets          map[string]string // by number, the last outcome of those not closed
	opened           int
	escalated        int
	lastAt           time.Time
}

type toldDeal struct {
	stages []string
	times  []time.Time
	over   bool
}

type toldContact struct {
	ContactID  string `json:"contact_id"`
	Status     string `json:"mkt_status"`
	Attributes struct {
		Open  int `json:"open_tickets"`
		Total int `json:"total_tickets"`
	}
}

type toldOpportunity struct {
	ID     string `json:"opportunity_id"`
	Stages struct {
		Current string
		History []struct {
			Stage   string
			Entered time.Time `json:"entered_at"`
		}
	}
	Amount struct{ Value float64 }
}

type toldEngagement struct {
	Type, Outcome string
	Metadata      struct{ Subject *string }
}

var stageOrder = []string{"prospecting", "qualified", "proposal", "negotiation"}

const millis = "2006-01-02T15:04:05.000Z"

// number is the contact's number in an id such as c7, o7-2 or e7-3.
func number(id string) string {
	id, _, _ = strings.Cut(id[1:], "-")
	return id
}

// tellLives tells the good events, each once and in the order of their times, and gives the lives and what is wrong with
// the first event that doesn't fit; "" where all do.
func tellLives(t *testing.T, events []Event) (lives map[string]*toldLife, problem string) {
	t.Helper()
	type told struct {
		read
		of, key string
	}
	var all []told
	for _, e := range events {
		if e.Reason == "" {
			if r := parse(t, e); r.Envelope.Attempt == 1 {
				all = append(all, told{r, e.Stream, string(e.Key)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b told) int { return a.Envelope.Occurred.Compare(b.Envelope.Occurred) })
	lives = map[string]*toldLife{}
	ids := map[string]bool{}
	for _, e := range all {
		l := lives[number(e.key)]
		if l == nil {
			l = &toldLife{deals: map[string]*toldDeal{}, tickets: map[string]string{}}
			lives[number(e.key)] = l
		}
		problem := l.tell(e.read, e.of)
		if problem == "" && ids[e.Envelope.ID] {
			problem = "its id came before"
		}
		ids[e.Envelope.ID] = true
		if problem != "" {
			return lives, fmt.Sprintf("%s at %s of %s: %s: %s", e.Envelope.Type, e.Envelope.Occurred, e.key, problem, e.Payload)
		}
	}
	return lives, ""
}

// tell takes the next event and says what is wrong with it.
func (l *toldLife) tell(e read, of string) (problem string) {
	at := e.Envelope.Occurred
	switch {
	case !at.After(l.lastAt):
		return "its time doesn't rise"
	case l.deleted:
		return "it comes after the delete"
	case l.created == (e.Envelope.Type == "Contact.created"):
		return "it comes before the contact's creation, or creates it again"
	}
	l.lastAt, l.created = at, true
	switch of {
	case "contact":
		return l.tellContact(e)
	case "opportunity":
		return l.tellDeal(e)
	default:
		return l.tellEngagement(e)
	}
}

func (l *toldLife) tellContact(e read) string {
	open := 0
	for _, d := range l.deals {
		if !d.over {
			open++
		}
	}
	if e.Envelope.Type == "Contact.deleted" {
		l.deleted = true
		if open > 0 {
			return "it leaves deals open"
		}
		return ""
	}
	var c toldContact
	var state map[string]any
	if err := cmp.Or(json.Unmarshal(e.Payload, &c), json.Unmarshal(e.Payload, &state)); err != nil {
		return err.Error()
	}
	if state["updated_at"] != e.Envelope.Occurred.Format(millis) {
		return "updated_at is another time"
	}
	delete(state, "updated_at")
	if reflect.DeepEqual(state, l.state) {
		l.repeats++
	}
	switch l.state = state; {
	case c.Attributes.Open != len(l.tickets) || c.Attributes.Total != l.opened:
		return fmt.Sprintf("%d tickets are open of %d", len(l.tickets), l.opened)
	case c.Status == "customer" && l.won == 0:
		return "a customer has won no deal"
	case c.Status != "customer" && l.status == "customer":
		return "a customer is none any more"
	case c.Status == "opportunity" && open == 0:
		return "an opportunity has no open deal"
	}
	l.status = c.Status
	return ""
}

func (l *toldLife) tellDeal(e read) string {
	var o toldOpportunity
	if err := json.Unmarshal(e.Payload, &o); err != nil {
		return err.Error()
	}
	d := l.deals[o.ID]
	if created := e.Envelope.Type == "Opportunity.created"; created != (d == nil) {
		return "the deal comes before its creation, or is created again"
	} else if created {
		d = &toldDeal{}
		l.deals[o.ID] = d
	}
	if d.over {
		return "the deal is over"
	}
	stages, times := []string{}, []time.Time{}
	for _, h := range o.Stages.History {
		stages, times = append(stages, h.Stage), append(times, h.Entered)
	}
	moved := len(stages) - len(d.stages)
	if moved < 0 || moved > 1 || !slices.Equal(stages[:len(d.stages)], d.stages) || !slices.EqualFunc(times[:len(d.times)], d.times, time.Time.Equal) {
		return "the deal's past has changed, or it makes two moves at once"
	}
	if moved == (map[bool]int{true: 1}[e.Envelope.Type == "Opportunity.updated"]) {
		return "it moves the deal, or doesn't, unlike its type"
	}
	last := len(stages) - 1
	if o.Stages.Current != stages[last] || (moved == 1 && !times[last].Equal(e.Envelope.Occurred)) {
		return "the current stage isn't the last entered, now"
	}
	d.stages, d.times = stages, times
	switch current := o.Stages.Current; {
	case o.Amount.Value <= 0:
		return "the deal is worth nothing"
	case current == "won" && last != len(stageOrder):
		return "the deal is won before its negotiation"
	case (current == "won") != (e.Envelope.Type == "Opportunity.won"), (current == "lost") != (e.Envelope.Type == "Opportunity.lost"):
		return "its type is another end"
	case current == "won" || current == "lost":
		d.over = true
		if current == "won" {
			l.won++
		}
	case !slices.Equal(stages, stageOrder[:len(stages)]):
		return "the stages don't come in order"
	}
	return ""
}

func (l *toldLife) tellEngagement(e read) string {
	var g toldEngagement
	if err := json.Unmarshal(e.Payload, &g); err != nil {
		return err.Error()
	}
	if g.Type != "support_ticket" {
		return ""
	}
	ticket, _, _ := strings.Cut(strings.TrimPrefix(*g.Metadata.Subject, "Ticket "), ":")
	before, open := l.tickets[ticket]
	l.tickets[ticket] = g.Outcome
	switch g.Outcome {
	case "opened":
		l.opened++
		if open || ticket != strconv.Itoa(l.opened) || l.won == 0 {
			return "it opens a ticket again, or out of turn, or of who is no customer"
		}
	case "responded":
		if before != "opened" {
			return "it responds to no new ticket"
		}
	case "escalated":
		l.escalated++
		if before != "responded" {
			return "it escalates what nobody responded to, or again"
		}
	case "closed":
		if before != "responded" && before != "escalated" {
			return "it closes what nobody responded to"
		}
		delete(l.tickets, ticket)
	}
	return ""
}

func TestLives(t *testing.T) {
	c := dirty(t)
	events, summary := simulated(t, c)
	lives, problem := tellLives(t, events)
	if problem != "" {
		t.Fatal(problem)
	}
	if len(lives) != c.Contacts {
		t.Errorf("%d contacts live, want %d", len(lives), c.Contacts)
	}
	customers, deleted, repeats, opened, escalated, deals, won, after := 0, 0, 0, 0, 0, 0, 0, 0
	for _, l := range lives {
		if l.status == "customer" {
			customers++
		}
		if l.deleted {
			deleted++
		}
		repeats, opened, escalated, deals, won = repeats+l.repeats, opened+l.opened, escalated+l.escalated, deals+len(l.deals), won+l.won
		after += len(l.tickets)
	}
	t.Logf("%d customers, %d deals, %d won, %d tickets, %d escalated, %d open, %d repeats", customers, deals, won, opened, escalated, after, repeats)
	if deleted != summary.Deletes {
		t.Errorf("%d contacts are deleted, the summary says %d", deleted, summary.Deletes)
	}
	within := func(what string, n, of int, low, high float64) {
		t.Helper()
		if share := float64(n) / float64(of); !(share >= low && share <= high) {
			t.Errorf("%s: %d of %d", what, n, of)
		}
	}
	within("leads become customers", customers, c.Contacts, 0.05, 0.7)
	within("deals are won", won, deals, 0.1, 0.8)
	within("tickets escalate", escalated, opened, 0.02, 0.5)
	within("updates repeat the state", repeats, summary.ByType["Contact.updated"], 0.02, 0.5)
}

// The checks of a life see what is wrong with it.
func TestUnbelievableLives(t *testing.T) {
	c := dirty(t)
	c.Late, c.OutOfOrder, c.Duplicates, c.Malformed = 0, 0, 0, 0
	events, _ := simulated(t, c)
	// of gives the events of the contact that the first event with the text is about, and where in them that event is.
	of := func(text string) ([]Event, int) {
		has := func(e Event) bool { return strings.Contains(string(e.Value), text) }
		i := slices.IndexFunc(events, has)
		if i < 0 {
			t.Fatalf("no event has %s", text)
		}
		contact := number(string(events[i].Key))
		its := slices.DeleteFunc(slices.Clone(events), func(e Event) bool { return number(string(e.Key)) != contact })
		return its, slices.IndexFunc(its, has)
	}
	without := func(text string) []Event {
		its, i := of(text)
		return slices.Delete(its, i, i+1)
	}
	with := func(old, new string) []Event {
		its, i := of(old)
		its[i].Value = []byte(strings.Replace(string(its[i].Value), old, new, 1))
		return its
	}
	twice := func(text string) []Event { // a millisecond later
		its, i := of(text)
		at := occurred(t, its[i])
		its = append(its, its[i])
		its[len(its)-1].Value = []byte(strings.ReplaceAll(string(its[i].Value), at.Format(millis), at.Add(time.Millisecond).Format(millis)))
		return its
	}
	for _, altered := range []struct {
		name    string
		events  []Event
		problem string
	}{
		{"an id used again", twice(`"Engagement.created"`), "its id came before"},
		{"no creation", without(`"Contact.created"`), "before the contact's creation"},
		{"a deal from nowhere", without(`"Opportunity.created"`), "has no open deal"},
		{"a stage left out", with(`"current":"qualified"`, `"current":"proposal"`), "isn't the last entered"},
		{"a deal that goes on", twice(`"Opportunity.won"`), "the deal is over"},
		{"a win unsaid", without(`"Opportunity.won"`), "has won no deal"},
		{"a ticket too many", with(`"open_tickets":0`, `"open_tickets":1`), "tickets are open"},
		{"an early customer", with(`"mkt_status":"lead"`, `"mkt_status":"customer"`), "has won no deal"},
		{"a ticket opened twice", with(`"outcome":"escalated"`, `"outcome":"opened"`), "opens a ticket again"},
		{"a life after death", twice(`"Contact.deleted"`), "after the delete"},
	} {
		if _, problem := tellLives(t, altered.events); !strings.Contains(problem, altered.problem) {
			t.Errorf("%s: %q, want %q", altered.name, problem, altered.problem)
		}
	}
}
