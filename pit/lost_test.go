package pit

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// The card counts, feature by feature, the labels whose value is null for a sum that overflows, for too many distinct values and
// for an error of the expression, and no nulls that have another reason; over all parts of the labels.
func TestTheCardCountsWhatIsLost(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: lost",
		"streams/s.yaml": `stream: s
kind: state
format: row
key: [id]
event_time: at
columns: [{name: id, type: string}, {name: text, type: string}]
`,
		"streams/p.yaml": `stream: p
kind: state
format: row
payload: patch
id: position
key: [id]
event_time: at
columns: [{name: id, type: string}, {name: text, type: string}, {name: n, type: int64}]
`,
		"streams/e.yaml": `stream: e
kind: event
format: row
key: [id]
id: position
cluster_by: id
event_time: at
columns: [{name: id, type: string}, {name: n, type: int64}, {name: m, type: "decimal(38,0)"}]
`,
		"features/f.yaml": `entities: [{name: e, join_keys: [id]}]
views:
  - {name: state, entity: e, stream: s, features: [text, {name: number, type: int64, sql: "text::INTEGER"}]}
  - {name: patch, entity: e, stream: p, features: [{name: number, type: int64, sql: "text::INTEGER"}, n]}
  - name: win
    entity: e
    stream: e
    aggregates:
      - {name: n, fn: sum, column: n, windows: [5m, 1d]}
      - {name: m, fn: sum, column: m, windows: [1d]}
      - {name: mean, fn: avg, column: n, windows: [1d]}
      - {name: many, fn: distinct, column: n, windows: [5m, 1d]}
  - name: made
    on_demand: {inputs: ["state:text"], request: [{name: y, type: int64}]}
    features: [{name: both, type: int64, sql: "text::INTEGER + y"}, {name: never, type: int64, sql: "y"}]
`,
	})
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	stamp := func(after time.Duration) string { return at.Add(after).Format(time.RFC3339Nano) }
	w.take("s", "file:s", 1, []string{
		fmt.Sprintf(`{"id":"a","text":"x","at":"%s"}`, stamp(0)), fmt.Sprintf(`{"id":"b","text":"7","at":"%s"}`, stamp(0)), fmt.Sprintf(`{"id":"c","text":null,"at":"%s"}`, stamp(0)),
	})
	w.take("p", "file:p", 1, []string{
		fmt.Sprintf(`{"id":"a","text":"x","n":1,"at":"%s"}`, stamp(0)), fmt.Sprintf(`{"id":"b","n":1,"at":"%s"}`, stamp(0)), fmt.Sprintf(`{"id":"c","text":"y","at":"%s"}`, stamp(0)),
		fmt.Sprintf(`{"id":"c","n":5,"at":"%s"}`, stamp(time.Second)),
	})
	rows := []string{
		fmt.Sprintf(`{"id":"a","n":9223372036854775807,"m":"99999999999999999999999999999999999999","at":"%s"}`, stamp(0)),
		fmt.Sprintf(`{"id":"a","n":1,"m":"1","at":"%s"}`, stamp(time.Minute)),
		fmt.Sprintf(`{"id":"b","n":1,"at":"%s"}`, stamp(time.Minute)),
	}
	for i := range feature.DistinctMax + 1 {
		rows = append(rows, fmt.Sprintf(`{"id":"c","n":%d,"at":"%s"}`, i, stamp(0)))
	}
	w.take("e", "file:e", 1, rows)
	csv := "id,event_timestamp,y\n"
	for _, id := range []string{"a", "b", "c", "d", ""} { // d is unknown
		for _, after := range []time.Duration{-time.Hour, time.Minute, time.Hour, 72 * time.Hour} {
			csv += fmt.Sprintf("%s,%s,1\n", id, stamp(after))
		}
		csv += id + ",,1\n"
	}
	w.put("labels.csv", csv)
	card, err := w.buildBy(feature.DatasetRequest{Labels: "labels.csv", AsOf: feature.EventClock}, Options{partRows: 4})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range card.Features {
		if f.Overflows+f.Uncounted+f.Errors > 0 {
			got = append(got, fmt.Sprintf("%s %d %d %d", f.Column, f.Overflows, f.Uncounted, f.Errors))
		}
	}
	want := `made__both 0 0 3
patch__number 0 0 6
state__number 0 0 3
win__n_5m 1 0 0
win__n_1d 2 0 0
win__m_1d 2 0 0
win__many_5m 0 1 0
win__many_1d 0 2 0`
	if strings.Join(got, "\n") != want {
		t.Errorf("the card counts\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// A label without a time sees nothing, so it is after no watermark, not even that of an empty stream.
func TestLabelsWithoutTimeAreComplete(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.put("labels.csv", "k,event_timestamp\na,2026-01-01\nb,\na,\nc,\n")
	card, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
	if err != nil || card.Labels.AfterWatermark != 0.25 {
		t.Errorf("%g of the labels are after the watermark, want 0.25; %v", card.Labels.AfterWatermark, err)
	}
}
