package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the CRMs that the tests simulate")

// dirty is a small CRM with every irregularity there is.
func dirty(t *testing.T) Config {
	t.Helper()
	t.Logf("-seed %d", *seed)
	return Config{
		Seed: *seed, Contacts: 400, Days: 90, Events: 10_000,
		Duplicates: 0.03, Late: 0.05, OutOfOrder: 0.1, Malformed: 0.03, Deletes: 0.006,
	}
}

// simulated is what a run handed over.
func simulated(t *testing.T, c Config) ([]Event, Summary) {
	t.Helper()
	var events []Event
	summary, err := Run(context.Background(), c, func(e Event) error {
		e.Key, e.Value = bytes.Clone(e.Key), bytes.Clone(e.Value)
		events = append(events, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, summary
}

// read is a good event as the standard library reads it.
type read struct {
	Envelope struct {
		ID       string    `json:"event_id"`
		Type     string    `json:"event_type"`
		Occurred time.Time `json:"occurred_at"`
		Received time.Time `json:"received_at"`
		Attempt  int       `json:"delivery_attempt"`
	}
	Payload json.RawMessage
}

func parse(t *testing.T, e Event) (r read) {
	t.Helper()
	if err := json.Unmarshal(e.Value, &r); err != nil {
		t.Fatalf("%v: %s", err, e.Value)
	}
	return r
}

// occurred is the event time of a good event alone, in a fraction of the time.
func occurred(t *testing.T, e Event) time.Time {
	t.Helper()
	_, text, _ := bytes.Cut(e.Value, []byte(`"occurred_at":"`))
	at, err := time.Parse(time.RFC3339, string(text[:len(millis)]))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestSameSeedSameBytes(t *testing.T) {
	c := dirty(t)
	first, firstSummary := simulated(t, c)
	second, secondSummary := simulated(t, c)
	same := func(a, b Event) bool {
		return a.Stream == b.Stream && a.At.Equal(b.At) && a.Reason == b.Reason && bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
	}
	if !slices.EqualFunc(first, second, same) || fmt.Sprint(firstSummary) != fmt.Sprint(secondSummary) {
		t.Error("one seed gives two runs")
	}
	c.Seed++
	if other, _ := simulated(t, c); slices.EqualFunc(first, other, same) {
		t.Error("two seeds give one run")
	}
}

// How events are delivered doesn't change which there are.
func TestDeliveryLeavesLivesAlone(t *testing.T) {
	c := dirty(t)
	good := func(c Config) []string {
		var all []string
		events, _ := simulated(t, c)
		for _, e := range events {
			if e.Reason != "" {
				continue
			}
			r := parse(t, e)
			if r.Envelope.Attempt == 1 {
				all = append(all, fmt.Sprintln(r.Envelope.ID, r.Envelope.Type, r.Envelope.Occurred, string(r.Payload)))
			}
		}
		slices.Sort(all)
		return all
	}
	want := good(c)
	c.Duplicates, c.Late, c.OutOfOrder, c.Malformed = 0, 0, 0, 0
	if !slices.Equal(good(c), want) {
		t.Error("a clean delivery has other events")
	}
	events, _ := simulated(t, c)
	last := time.Time{}
	for _, e := range events {
		if at := occurred(t, e); at.Before(last) {
			t.Fatalf("nothing is late or out of order, yet %s follows %s", at, last)
		} else {
			last = at
		}
	}
}

// The shares of a run are counted from what it handed over, and the summary says the same.
func TestShares(t *testing.T) {
	c := dirty(t)
	c.Contacts, c.Events = 1000, 30_000
	events, summary := simulated(t, c)
	got := Summary{Events: len(events), Malformed: map[string]int{}, ByType: map[string]int{}}
	ids := map[string]bool{}
	last := time.Time{}
	for _, e := range events {
		if e.At.Before(last) {
			t.Fatalf("an arrival at %s follows one at %s", e.At, last)
		}
		last = e.At
		if e.Reason != "" {
			got.Malformed[string(e.Reason)]++
			continue
		}
		r := parse(t, e)
		if ids[r.Envelope.ID] != (r.Envelope.Attempt == 2) {
			t.Fatalf("attempt %d of %s, seen before: %v", r.Envelope.Attempt, r.Envelope.ID, ids[r.Envelope.ID])
		}
		if ids[r.Envelope.ID] {
			got.Duplicates++
			continue
		}
		ids[r.Envelope.ID] = true
		got.Unique++
		got.ByType[r.Envelope.Type]++
		if r.Envelope.Type == "Contact.deleted" {
			got.Deletes++
		}
		switch held := e.At.Sub(r.Envelope.Occurred); {
		case held >= time.Minute:
			got.Late++
		case held >= time.Second:
			got.OutOfOrder++
		}
		if !r.Envelope.Received.Equal(e.At) {
			t.Fatalf("received at %s, arrived at %s", r.Envelope.Received, e.At)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(summary) {
		t.Errorf("the events show\n%+v, the summary says\n%+v", got, summary)
	}
	malformed := 0
	for _, n := range got.Malformed {
		malformed += n
	}
	for _, share := range []struct {
		name  string
		n     int
		asked float64
	}{
		{"duplicates", got.Duplicates, c.Duplicates}, {"late", got.Late, c.Late}, {"out of order", got.OutOfOrder, c.OutOfOrder},
		{"malformed", malformed, c.Malformed}, {"deletes", got.Deletes, c.Deletes},
	} {
		want := share.asked * float64(got.Unique)
		if math.Abs(float64(share.n)-want) > 5*math.Sqrt(want)+0.03*want { // a failure in two million, and the events that are "about" as many
			t.Errorf("%s: %d, asked for %.0f", share.name, share.n, want)
		}
	}
	for _, reason := range []feature.Reason{
		feature.NotJSON, feature.BadEnvelope, feature.UnknownType, feature.UnknownSchema, feature.MissingKey, feature.BadValue, feature.DeletedEvent,
	} {
		if got.Malformed[string(reason)] == 0 {
			t.Errorf("no event is refused for %s", reason)
		}
	}
}

func TestEventsSpreadOverTheSpan(t *testing.T) {
	for _, c := range []Config{
		{Contacts: 2000, Days: 90}, {Contacts: 300, Days: 30, Events: 40_000, Deletes: 0.0005}, {Contacts: 5000, Days: 365, Events: 40_000, Deletes: 0.01},
	} {
		c.Seed = *seed
		events, summary := simulated(t, c)
		if asked := float64(c.events()); math.Abs(float64(summary.Unique)-asked) > 0.05*asked {
			t.Errorf("%+v: %d events", c, summary.Unique)
		}
		var tenths [10]int
		begin, end := time.UnixMilli(c.start()), time.UnixMilli(c.start()+c.length())
		for _, e := range events {
			at := occurred(t, e)
			if at.Before(begin) || !at.Before(end) {
				t.Fatalf("%+v: an event at %s", c, at)
			}
			tenths[int(10*at.Sub(begin)/end.Sub(begin))]++
		}
		for i, n := range tenths {
			if share := float64(n) / float64(len(events)); share < 0.02 || share > 0.25 {
				t.Errorf("%+v: %.3f of the events in tenth %d of the span, -seed %d", c, share, i, *seed)
			}
		}
	}
}

func TestSmallAndBusy(t *testing.T) {
	for _, c := range []Config{
		{Contacts: 1, Days: 1, Events: 1}, {Contacts: 1, Days: 1, Events: 10_000}, {Contacts: 3, Days: 1, Deletes: 1},
		{Contacts: 1, Days: 3660, Events: 1, Deletes: 1},
		{Contacts: 1, Days: 1, Events: 10_000, Seed: 280}, // revises a deal so often that its amount would leave an int64
	} {
		if c.Seed == 0 {
			c.Seed = *seed
		}
		events, summary := simulated(t, c)
		if summary.Unique < c.Contacts || summary.ByType["Contact.created"] != c.Contacts {
			t.Errorf("%+v: %+v", c, summary)
		}
		if _, problem := tellLives(t, events); problem != "" {
			t.Errorf("%+v: %s", c, problem)
		}
	}
}

func TestValidate(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"contacts: 0 is not":          func(c *Config) { c.Contacts = 0 },
		"days: 0 is not":              func(c *Config) { c.Days = 0 },
		"start: 1969-":                func(c *Config) { c.Start = time.Unix(-1, 0) },
		"duplicates: -0.1 is not":     func(c *Config) { c.Duplicates = -0.1 },
		"malformed: NaN is not":       func(c *Config) { c.Malformed = math.NaN() },
		"late: 0.6 and out of order":  func(c *Config) { c.Late, c.OutOfOrder = 0.6, 0.6 },
		"events: 9 are fewer than":    func(c *Config) { c.Events = 9 },
		"events: -1 are fewer than":   func(c *Config) { c.Events = -1 },
		"events: 100001 are more":     func(c *Config) { c.Events, c.Days = 100_001, 1 },
		"deletes: 0.5 of 1000 events": func(c *Config) { c.Deletes, c.Events = 0.5, 1000 },
	} {
		c := Config{Contacts: 10, Days: 30}
		edit(&c)
		_, err := Run(context.Background(), c, func(Event) error { t.Error("an event of a refused configuration"); return nil })
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// A run ends at once with its context or with its taker's error, whatever is left of it.
func TestRunStops(t *testing.T) {
	c := Config{Seed: *seed, Contacts: 1000, Days: 90, Events: 100_000_000, Late: 0.5, Duplicates: 0.5}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	summary, err := Run(ctx, c, func(Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || summary.Events < 1 || summary.Events > 4*cancelEvery {
		t.Errorf("cancelled at the first event: %v after %d", err, summary.Events)
	}
	if _, err := Run(ctx, c, func(Event) error { t.Error("an event after the cancellation"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	full := errors.New("disk full")
	if summary, err := Run(context.Background(), c, func(Event) error { return full }); err != full || summary.Events != 1 {
		t.Errorf("taker: %v after %d", err, summary.Events)
	}
	if _, err := WriteLabels(ctx, &bytes.Buffer{}, c, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("labels: %v", err)
	}
}
