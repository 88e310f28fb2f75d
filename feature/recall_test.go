package feature

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Kept definitions give views and streams whose definitions are those that were kept, whatever the files say by then.
func TestRecall(t *testing.T) {
	stream := "stream: s\nkind: state\nformat: row\nkey: [k, n]\nevent_time: at\nsequence: seq\npayload: patch\nid: position\ntrack: [v, w]\n" +
		"columns: [{name: k, type: string}, {name: n, type: int64}, {name: v, type: 'decimal(9,2)', path: a.b}, {name: w, type: list<double>}, {name: x, type: json}]\n"
	views := `entities: [{name: e, join_keys: [k, n]}, {name: contact, join_keys: [contact_id]}]
views:
  - {name: v, entity: e, stream: s, ttl: 36h, features: [w, {name: less, type: int64, sql: "v / 2 -- half, \"so\""}]}
  - {name: p, entity: contact, stream: contact, features: [mkt_status]}
  - {name: a, entity: contact, stream: engagement, aggregates: [{name: n, fn: count, where: "type = 'email'", windows: [1d, 7d]}, {name: l, fn: last, column: type, windows: [12h]}]}
  - {name: od, on_demand: {inputs: ["v:w", "p:mkt_status"], request: [{name: cart, type: double}]}, features: [{name: big, type: bool, sql: "v > 1"}]}
  - {name: alone, on_demand: {request: [{name: cart, type: double}]}, features: [{name: big, type: bool, sql: "v > 1"}]}
  - {name: h, entity: contact, stream: contact, aggregates: [{name: moves, fn: changes, column: mkt_status, windows: [30d]}, {name: quiet, fn: days_since_change}]}
services: [{name: all, features: ["v", "a"]}]
`
	dir := write(t, map[string]string{"loam.yaml": "project: crm", "streams/s.yaml": stream, "features/f.yaml": views})
	check := func(expr string, _ []Column, _ Type) ([]string, error) {
		if strings.HasPrefix(expr, `"`) {
			return []string{strings.Trim(expr, `"`)}, nil
		}
		return []string{"v"}, nil
	}
	p, err := Load(dir, check)
	if err != nil {
		t.Fatal(err)
	}
	var kept []Definition
	for _, v := range p.Views {
		kept = append(kept, p.ViewDefinition(v))
		if v.OnDemand == nil {
			kept = append(kept, p.Stream(v.Stream).Definition())
		}
	}
	today := &Project{Name: "crm", Dir: dir}
	back, err := Recall(today, kept, check)
	if err != nil {
		t.Fatal(err)
	}
	if len(back.Views) != 6 || len(back.Streams) != 3 || len(back.Entities) != 2 || back.Dir != dir || today.Views != nil {
		t.Fatalf("recalled %+v", back)
	}
	for _, v := range p.Views {
		got := back.View(v.Name)
		if a, b := back.ViewDefinition(got), p.ViewDefinition(v); a != b {
			t.Errorf("view %s is\n%s, want\n%s", v.Name, a.Text, b.Text)
		}
		for i, f := range v.Features {
			if got.Features[i].Column != f.Column {
				t.Errorf("feature %s reads %q, want %q", f.Name, got.Features[i].Column, f.Column)
			}
		}
		if v.OnDemand != nil {
			continue
		}
		s := p.Stream(v.Stream)
		for _, c := range s.Columns {
			if back.Stream(s.Name).Tracked(c.Name) != s.Tracked(c.Name) && s.Kind == StateStream {
				t.Errorf("column %s of %s: tracked is %v", c.Name, s.Name, !s.Tracked(c.Name))
			}
		}
	}
	for _, c := range []struct{ was, now, err string }{
		{`"windows":["1d"`, `"windows":["1x"`, `"1x" is not a duration`},
		{`"decimal(9,2)"`, `"decimal(99,2)"`, "precision is 1 to 38"},
		{`"aggregates"`, `"wonders"`, "unknown field"},
	} {
		broken := make([]Definition, len(kept))
		for i, d := range kept {
			d.Text = strings.ReplaceAll(d.Text, c.was, c.now)
			broken[i] = d
		}
		if _, err := Recall(today, broken, check); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s for %s: %v, want %q", c.now, c.was, err, c.err)
		}
	}
}

// A request as JSON is the same request, whatever fields it has.
func TestRequestAsJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	request := DatasetRequest{
		Name: "churn", Labels: "a & b.csv", TimeColumn: "at", Features: []Ref{{"p", "x"}, {"q", "y"}}, AsOf: EventClock, KnownAt: &at,
		ExcludeLabelTime: true, Out: "o.parquet", At: Place{"datasets/churn.yaml", 1},
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"labels":"a \u0026 b.csv"`, `"features":["p:x","q:y"]`, `"exclude_label_time":true`, `"known_at":"2026-01-02T03:04:05.000006Z"`} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%s lacks %s", text, part)
		}
	}
	var back DatasetRequest
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	request.At = Place{}
	if !reflect.DeepEqual(back, request) {
		t.Errorf("%+v, want %+v", back, request)
	}
	// Every field is written: a new one can't be forgotten.
	v := reflect.ValueOf(&request).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if f := v.Field(i); name != "At" && f.Kind() == reflect.String {
			f.SetString("x" + name)
		}
	}
	text, err = json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, request) {
		t.Errorf("%+v, want %+v, %v", back, request, err)
	}
	if err := json.Unmarshal([]byte(`{"labels":"x","wonders":1}`), &back); err == nil || !strings.Contains(err.Error(), "wonders") {
		t.Errorf("an unknown member: %v", err)
	}
}

func TestSnakeCase(t *testing.T) {
	for name, want := range map[string]string{"TimeColumn": "time_column", "AsOf": "as_of", "LabelsSQL": "labels_sql", "SQLText": "sql_text", "Out": "out"} {
		if got := snakeCase(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
