package pit

import (
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

const onDemandViews = oracleViews + `
  - name: derived
    on_demand:
      inputs: ["plain:*", "short:v", "recent:n_5m", "recent:sum_5m"]
      request: [{name: cart, type: "decimal(10,2)"}, {name: code, type: string}, {name: since, type: timestamp}]
    features:
      - {name: mean, type: double, sql: "sum_5m / nullif(n_5m, 0)"}
      - {name: fresh, type: bool, sql: "plain__v = short__v"}
      - {name: each, type: "decimal(10,2)", sql: "cart / twice"}
      - {name: room, type: int64, sql: "(9223372036854775807 - cart)::BIGINT + n_5m"}
      - {name: code, type: string, sql: "upper(code)"}
      - {name: age, type: int64, sql: "date_diff('second', since, timestamptz '2026-01-01 00:02:00Z')"}
  - name: loose
    on_demand: {request: [{name: extra, type: json}]}
    features: [{name: plan, type: string, sql: "extra->>'plan'"}]
services: [{name: checkout, features: ["derived:mean", "plain:v"]}]
`

func onDemandWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: demand", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": onDemandViews,
	})
	w.take("thing", "file:thing", 1, []string{happening{id: "a", at: 100, received: 100, v: 4}.event("Thing", 0), happening{id: "b", at: 10, received: 10, v: 0}.event("Thing", 1)})
	w.take("fact", "file:fact", 1, []string{happening{id: "a", at: 90, received: 90, v: 3}.event("Fact", 0), happening{id: "a", at: 95, received: 95, v: 4}.event("Fact", 1)})
	return w
}

// A feature on demand is computed of what a label sees and brings; what it reads is joined and not put out.
func TestOnDemand(t *testing.T) {
	w := onDemandWorld(t)
	// The label's own column plain__v is none of an expression's, nor is n_5m.
	w.put("labels.csv", "id,event_timestamp,cart,code,since,n_5m\n"+
		"a,"+stamp(120)+",10.5,007,2026-01-01T00:01:00+00:00,70\n"+
		"b,"+stamp(120)+",3,x,2026-01-01T01:00:00+01:00,70\n"+
		"e,"+stamp(120)+",,,,70\n")
	row := func(id, cart, code, since string, derived ...string) string {
		names := []string{"mean", "fresh", "each", "room", "code", "age"}
		text := `{"id":"` + id + `","event_timestamp":"2026-01-01 00:02:00+00","cart":` + cart + `,"code":` + code + `,"since":` + since + `,"n_5m":70`
		for i, v := range derived {
			text += `,"derived__` + names[i] + `":` + v
		}
		return text + "}"
	}
	features, err := w.project.Resolve([]string{"derived"})
	if err != nil {
		t.Fatal(err)
	}
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		card, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, Features: features}, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			row("a", "10.5", `"007"`, `"2026-01-01 00:01:00+00"`, "3.5", "true", "1.31", "9223372036854775799", `"007"`, "60"),
			// The view with a time to live has nothing for b, whose v is 0, and something overflows for e and not for b.
			row("b", "3.0", `"x"`, `"2026-01-01 00:00:00+00"`, "null", "null", "null", "9223372036854775804", `"X"`, "120"),
			row("e", "null", "null", "null", "null", "null", "null", "null", "null", "null"),
		}
		if got := w.texts(); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", clock, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if c := card.Features[2]; c.Column != "derived__each" || c.Type != "decimal(10,2)" || c.NullRate < 0.6 || len(card.Request.Features) != 6 {
			t.Errorf("card %+v", card)
		}
		var views []string
		for _, d := range card.Definitions {
			if d.Kind == feature.ViewDefinition {
				views = append(views, d.Name)
			}
		}
		if want := []string{"derived", "recent", "plain", "short"}; !slices.Equal(views, want) {
			t.Errorf("definitions of %v, want %v", views, want)
		}
	}
	// Of a service that asks for one feature the request's columns aren't needed.
	w.put("few.csv", "id,event_timestamp\na,"+stamp(120)+"\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "few.csv", Features: w.project.Service("checkout").Features}, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := w.texts()[0], `{"id":"a","event_timestamp":"2026-01-01 00:02:00+00","derived__mean":3.5,"plain__v":4}`; got != want {
		t.Errorf("service gives %s, want %s", got, want)
	}
	// Nor is an entity, where nothing is read of any.
	w.put("json.csv", "event_timestamp,extra\n"+stamp(120)+",\"{\"\"plan\"\":\"\"pro\"\"}\"\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "json.csv", Features: []feature.Ref{{View: "loose", Feature: "plan"}}}, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.read()[0]["loose__plan"]; got != "pro" {
		t.Errorf("plan is %v", got)
	}
	w.put("bare.csv", "event_timestamp,code\n"+stamp(120)+",y\n")
	card, err := w.build(feature.DatasetRequest{Labels: "bare.csv", Features: []feature.Ref{{View: "derived", Feature: "code"}}}, 0)
	if err != nil || len(card.Warnings) != 0 || len(card.Snapshots) != 0 {
		t.Fatalf("%+v, %v", card, err)
	}
	if got, want := w.texts()[0], `{"event_timestamp":"2026-01-01 00:02:00+00","code":"y","derived__code":"Y"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// An error on a row is null, and of that row alone.
func TestOnDemandErrorOfARow(t *testing.T) {
	w := onDemandWorld(t)
	w.put("labels.csv", "id,event_timestamp,cart\na,"+stamp(120)+",-1\na,"+stamp(120)+",2\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", Features: []feature.Ref{{View: "derived", Feature: "room"}}}, 0); err != nil {
		t.Fatal(err)
	}
	rows := w.read()
	if rows[0]["derived__room"] != nil || jsonOf(rows[1]["derived__room"]) != "9223372036854775807" {
		t.Errorf("rows %v", rows)
	}
}

func TestLabelsThatDontFitOnDemand(t *testing.T) {
	w := onDemandWorld(t)
	w.put("none.csv", "id,event_timestamp,Cart\na,"+stamp(120)+",1\n")
	w.put("text.csv", "id,event_timestamp,cart\na,"+stamp(120)+",much\na,"+stamp(120)+",5\n")
	w.put("digits.csv", "id,event_timestamp,cart\na,"+stamp(120)+",1.005\n")
	w.put("day.csv", "id,event_timestamp,cart\na,"+stamp(120)+",2026-01-01\n")
	w.put("nokey.csv", "event_timestamp,cart\n"+stamp(120)+",1.05\n")
	w.put("taken.csv", "id,event_timestamp,cart,derived__each\na,"+stamp(120)+",1,2\n")
	w.query("COPY (SELECT 'a' AS id, TIMESTAMPTZ '2026-01-01 00:02:00Z' AS event_timestamp, {'much': 5} AS cart) TO '" + w.dir + "/struct.parquet'")
	for file, want := range map[string]string{
		"none.csv":       "feature view derived needs the label column cart, a column of its request that is decimal(10,2), and the labels have [id event_timestamp Cart]",
		"text.csv":       "text.csv: 1 values of column cart are no decimal(10,2), as which feature view derived takes it: mend them",
		"digits.csv":     "digits.csv: 1 values of column cart are no decimal(10,2)",
		"struct.parquet": "struct.parquet: 1 values of column cart are no decimal(10,2)",
		"day.csv":        "day.csv: 1 values of column cart are no decimal(10,2)",
		"nokey.csv":      "feature view plain needs the label column id",
		"taken.csv":      "derived__each already, which is the name of a feature",
	} {
		_, err := w.build(feature.DatasetRequest{Labels: file, Features: []feature.Ref{{View: "derived", Feature: "each"}}}, 0)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	w.query("COPY (SELECT TIMESTAMPTZ '2026-01-01 00:02:00Z' AS event_timestamp, {'plan': 'pro'} AS extra) TO '" + w.dir + "/json.parquet'")
	_, err := w.build(feature.DatasetRequest{Labels: "json.parquet", Features: []feature.Ref{{View: "loose", Feature: "plan"}}}, 0)
	if err == nil || !strings.Contains(err.Error(), "column extra is STRUCT(plan VARCHAR), and feature view loose takes it as JSON: write it as text") {
		t.Errorf("a struct as JSON: %v", err)
	}
}
