package simulate

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"
)

// Every label is found again in the events of a run.
func TestLabels(t *testing.T) {
	for _, c := range []Config{
		dirty(t),
		{Seed: *seed, Contacts: 400, Days: 365, Events: 8000, Deletes: 0.01},
		{Seed: *seed, Contacts: 200, Days: 40, Events: 4000},
		{Seed: *seed, Contacts: 100, Days: 30, Events: 20_000}, // busy
	} {
		const n = 2000
		var text, again bytes.Buffer
		churned, err := WriteLabels(context.Background(), &text, c, n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := WriteLabels(context.Background(), &again, c, n); err != nil || !bytes.Equal(text.Bytes(), again.Bytes()) {
			t.Errorf("one seed gives two files of labels: %v", err)
		}
		rows, err := csv.NewReader(&text).ReadAll()
		if err != nil || len(rows) != n+1 || !slices.Equal(rows[0], []string{"contact_id", "event_timestamp", "churned"}) {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		events, _ := simulated(t, c)
		facts := factsOf(t, events)
		begin, end := time.UnixMilli(c.start()), time.UnixMilli(c.start()+c.length())
		counted := 0
		for _, row := range rows[1:] {
			at, err := time.Parse(time.RFC3339, row[1])
			if err != nil {
				t.Fatal(err)
			}
			if at.Before(begin.Add(end.Sub(begin)/2)) || at.After(end) || (c.Days > 60 && at.After(end.Add(-30*24*time.Hour))) {
				t.Errorf("a label at %s", at)
			}
			exists, churns := facts[row[0]].at(at)
			if churns {
				counted++
			}
			if !exists || strconv.FormatBool(churns) != row[2] {
				t.Errorf("%v: it exists: %v, it churns: %v", row, exists, churns)
			}
		}
		share := float64(churned) / n
		t.Logf("%d contacts, %d days: %.3f churn", c.Contacts, c.Days, share)
		if counted != churned || share < 0.02 || share > 0.3 {
			t.Errorf("%d of %d labels churn, counted %d", churned, n, counted)
		}
	}
}

func TestLabelsThatCantBe(t *testing.T) {
	for _, c := range []Config{{}, {Seed: 1, Contacts: 10, Days: 30, Deletes: 2}} {
		if _, err := WriteLabels(context.Background(), &bytes.Buffer{}, c, 1); err == nil {
			t.Errorf("%+v: labels of a refused configuration", c)
		}
	}
	if _, err := WriteLabels(context.Background(), &bytes.Buffer{}, Config{Contacts: 10, Days: 30}, -1); err == nil {
		t.Error("labels less than none")
	}
}

// A contact's facts are what its labels are made of.
type facts struct {
	created, deleted time.Time
	over             []time.Time // a deal was lost and none was open any more
}

func factsOf(t *testing.T, events []Event) map[string]*facts {
	t.Helper()
	type deal struct {
		at   time.Time
		id   string
		kind string
	}
	deals := map[string][]deal{} // by contact
	of := map[string]*facts{}
	for _, e := range events {
		if e.Reason != "" {
			continue
		}
		id := "c" + number(string(e.Key))
		if of[id] == nil {
			of[id] = &facts{}
		}
		if e.Stream == "engagement" {
			continue
		}
		switch r := parse(t, e); {
		case r.Envelope.Attempt != 1:
		case r.Envelope.Type == "Contact.created":
			of[id].created = r.Envelope.Occurred
		case r.Envelope.Type == "Contact.deleted":
			of[id].deleted = r.Envelope.Occurred
		case e.Stream == "opportunity":
			var o struct {
				ID string `json:"opportunity_id"`
			}
			if err := json.Unmarshal(r.Payload, &o); err != nil {
				t.Fatal(err)
			}
			deals[id] = append(deals[id], deal{r.Envelope.Occurred, o.ID, r.Envelope.Type})
		}
	}
	for id, all := range deals {
		slices.SortFunc(all, func(a, b deal) int { return a.at.Compare(b.at) })
		open := map[string]bool{}
		for _, d := range all {
			switch d.kind {
			case "Opportunity.won", "Opportunity.lost":
				delete(open, d.id)
			default:
				open[d.id] = true
			}
			if d.kind == "Opportunity.lost" && len(open) == 0 {
				of[id].over = append(of[id].over, d.at)
			}
		}
	}
	return of
}

// at says whether the contact exists at the time, and whether it churns within the 30 days after.
func (f *facts) at(at time.Time) (exists, churns bool) {
	if f == nil {
		return false, false
	}
	soon := func(t time.Time) bool { return t.After(at) && !t.After(at.Add(30*24*time.Hour)) }
	exists = !f.created.After(at) && (f.deleted.IsZero() || f.deleted.After(at))
	return exists, soon(f.deleted) || slices.ContainsFunc(f.over, soon)
}
