package pit

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

var seed = flag.Uint64("seed", 0, "seed of the random cases; 0 takes one from the clock")

// happening is an event of the oracle: a change of a thing, or a fact about one.
type happening struct {
	id       string
	at       int64 // seconds
	received int64
	offset   int
	deleted  bool
	v        int
	null     bool // v is null
}

const (
	thingStream = `stream: thing
kind: state
format: envelope
key: [id]
columns: [{name: id, type: string}, {name: v, type: int64}]
`
	factStream = `stream: fact
kind: event
format: envelope
key: [fact_id]
cluster_by: id
columns: [{name: fact_id, type: string}, {name: id, type: string}, {name: v, type: int64}]
`
	oracleViews = `entities: [{name: thing, join_keys: [id]}]
views:
  - {name: plain, entity: thing, stream: thing, features: [v, {name: twice, type: int64, sql: "v * 2"}]}
  - {name: short, entity: thing, stream: thing, ttl: 40s, features: [v]}
  - name: recent
    entity: thing
    stream: fact
    aggregates:
      - {name: n, fn: count, windows: [5m, 15m]}
      - {name: big, fn: count, where: "v > 2", windows: [15m]}
      - {name: vs, fn: count, column: v, windows: [15m]}
      - {name: sum, fn: sum, column: v, windows: [5m, 15m]}
      - {name: avg, fn: avg, column: v, windows: [15m]}
      - {name: min, fn: min, column: v, windows: [15m]}
      - {name: max, fn: max, column: v, windows: [15m]}
      - {name: first, fn: first, column: v, windows: [15m]}
      - {name: last, fn: last, column: v, windows: [15m]}
      - {name: kinds, fn: distinct, column: v, windows: [15m]}
`
)

const epoch = 1767225600 // 2026-01-01T00:00:00Z

func stamp(s int64) string { return time.Unix(epoch+s, 0).UTC().Format(time.RFC3339) }

func (h happening) event(aggregate string, n int) string {
	verb := "updated"
	if h.deleted {
		verb = "deleted"
	}
	v := fmt.Sprint(h.v)
	if h.null {
		v = "null"
	}
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"%s.%s","source":"x","occurred_at":"%s","received_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"id":"%s","fact_id":"f%d","v":%s}}`,
		n, aggregate, verb, stamp(h.at), stamp(h.received), h.id, n, v)
}

// TestAgainstTheOracle builds training sets over random histories, with ties, deletes, late and early arrivals, and holds
// every value against a nested loop.
func TestAgainstTheOracle(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 3))
	for range 3 {
		w := newWorld(t, map[string]string{
			"loam.yaml": "project: oracle", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
		})
		happen := func(n int, deletes bool) []happening {
			all := make([]happening, n)
			for i := range all {
				at := int64(r.IntN(2000))
				all[i] = happening{
					id: string(rune('a' + r.IntN(4))), at: at, received: at + int64(r.IntN(3)*r.IntN(400)) - int64(r.IntN(2)*r.IntN(5)),
					offset: i, deleted: deletes && r.IntN(6) == 0, v: r.IntN(5), null: r.IntN(6) == 0,
				}
			}
			return all
		}
		things, facts := happen(120, true), happen(200, false)
		for stream, all := range map[string][]happening{"thing": things, "fact": facts} {
			var rows []string
			for i, h := range all {
				rows = append(rows, h.event(strings.ToUpper(stream[:1])+stream[1:], i))
			}
			for len(rows) > 0 {
				n := min(50, len(rows))
				w.take(stream, "file:"+stream, 1, rows[:n])
				rows = rows[n:]
			}
		}
		type label struct {
			id string
			at int64
		}
		csv := "id,event_timestamp\n"
		var labels []label
		for range 150 {
			l := label{string(rune('a' + r.IntN(5))), int64(r.IntN(2400))} // e is unknown
			labels = append(labels, l)
			csv += l.id + "," + stamp(l.at) + "\n"
		}
		w.put("labels.csv", csv)
		for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
			for _, exclude := range []bool{false, true} {
				parts := Options{partRows: int64(20 + r.IntN(200))} // one part, or some
				card, err := w.buildBy(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, ExcludeLabelTime: exclude}, parts)
				if err != nil {
					t.Fatal(err)
				}
				if card.Rows != 150 || *card.Audit.MaxUS > 0 {
					t.Errorf("%d rows, audit %d", card.Rows, *card.Audit.MaxUS)
				}
				got := w.read()
				for i, l := range labels {
					sees := func(h happening) bool {
						clockTime := h.received
						if clock == feature.EventClock {
							clockTime = h.at
						}
						return h.id == l.id && (clockTime < l.at || (clockTime == l.at && !exclude))
					}
					want := oracleRow(things, facts, sees, l.at)
					for name, v := range want {
						if jsonOf(got[i][name]) != jsonOf(v) {
							t.Fatalf("seed %d, %s, exclude %v, label %+v: %s is %v, want %v", sd, clock, exclude, l, name, got[i][name], v)
						}
					}
					if len(got[i]) != len(want)+2 {
						t.Fatalf("row %v, want columns %v", got[i], want)
					}
				}
			}
		}
	}
}

// oracleRow gives the features of a label by looking at everything.
func oracleRow(things, facts []happening, sees func(happening) bool, at int64) map[string]any {
	row := map[string]any{"plain__v": nil, "plain__twice": nil, "short__v": nil}
	var seen []happening
	for _, h := range things {
		if sees(h) {
			seen = append(seen, h)
		}
	}
	byOrder := func(a, b happening) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.offset, b.offset)) }
	slices.SortFunc(seen, byOrder)
	if n := len(seen); n > 0 && !seen[n-1].deleted && !seen[n-1].null {
		h := seen[n-1]
		row["plain__v"], row["plain__twice"] = json.Number(fmt.Sprint(h.v)), json.Number(fmt.Sprint(2*h.v))
		if at-h.at <= 40 {
			row["short__v"] = row["plain__v"]
		}
	}
	for minutes, names := range map[int64][]string{
		5: {"n", "sum"}, 15: {"n", "big", "vs", "sum", "avg", "min", "max", "first", "last", "kinds"},
	} {
		from := floorTo(epoch+at-minutes*60, 300) - epoch
		var in []happening
		for _, h := range facts {
			if sees(h) && h.at >= from {
				in = append(in, h)
			}
		}
		slices.SortFunc(in, byOrder)
		var values []int
		big := 0
		for _, h := range in {
			if !h.null {
				values = append(values, h.v)
				if h.v > 2 {
					big++
				}
			}
		}
		sum := 0
		for _, v := range values {
			sum += v
		}
		number := func(v int) any { return json.Number(fmt.Sprint(v)) }
		all := map[string]any{"n": number(len(in)), "big": number(big), "vs": number(len(values)), "kinds": number(len(slices.Compact(slices.Sorted(slices.Values(values)))))}
		if len(values) > 0 {
			all["sum"], all["min"], all["max"] = number(sum), number(slices.Min(values)), number(slices.Max(values))
			all["first"], all["last"] = number(values[0]), number(values[len(values)-1])
			all["avg"] = json.Number(duckFloat(float64(sum) / float64(len(values))))
		}
		for _, name := range names {
			row[fmt.Sprintf("recent__%s_%dm", name, minutes)] = all[name]
		}
	}
	return row
}

// duckFloat writes a double as DuckDB's JSON does.
func duckFloat(v float64) string {
	text := fmt.Sprintf("%v", v)
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return text
}

func floorTo(v, step int64) int64 {
	q := v / step
	if v%step < 0 {
		q--
	}
	return q * step
}

// The audit sees a join that lets a label see one microsecond too far, and the training set is not written.
func TestTheAuditSeesALooseJoin(t *testing.T) {
	for _, stream := range []string{"thing", "fact"} {
		w := newWorld(t, map[string]string{
			"loam.yaml": "project: audit", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
		})
		late := strings.Replace(happening{id: "a", at: 100, received: 100, v: 1}.event(strings.ToUpper(stream[:1])+stream[1:], 0), stamp(100), "2026-01-01T00:01:40.000001Z", -1)
		w.take(stream, "file:x", 1, []string{late})
		w.put("labels.csv", "id,event_timestamp\na,"+stamp(100)+"\n")
		w.put("at.csv", "id,event_timestamp\na,2026-01-01T00:01:40.000001Z\n")
		for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
			request := feature.DatasetRequest{Labels: "labels.csv", AsOf: clock}
			if _, err := w.build(request, 0); err != nil {
				t.Errorf("%s, %s: %v", stream, clock, err)
			}
			if _, err := w.build(request, 1); err == nil || !strings.Contains(err.Error(), "1 us after its label") {
				t.Errorf("%s, %s: a loose join passed the audit: %v", stream, clock, err)
			}
			request.Labels, request.ExcludeLabelTime = "at.csv", true
			if _, err := w.build(request, 0); err != nil {
				t.Errorf("%s, %s: %v", stream, clock, err)
			}
			if _, err := w.build(request, 1); err == nil || !strings.Contains(err.Error(), "at its label's very time") {
				t.Errorf("%s, %s: a join that holds the label's time passed the audit: %v", stream, clock, err)
			}
		}
	}
}

func TestRequestsThatCantBeBuilt(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: bad", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	w.take("thing", "file:x", 1, []string{happening{id: "a", at: 100, received: 100, v: 1}.event("Thing", 0)})
	w.put("good.csv", "id,event_timestamp\na,2026-01-02T00:00:00Z\n")
	w.put("nokey.csv", "contact,event_timestamp\na,2026-01-02T00:00:00Z\n")
	w.put("notime.csv", "id,at\na,2026-01-02T00:00:00Z\n")
	w.put("number.csv", "id,event_timestamp\na,17\n")
	w.put("taken.csv", "id,event_timestamp,plain__v\na,2026-01-02T00:00:00Z,3\n")
	w.put("own.csv", "id,event_timestamp,loam_label_row\na,2026-01-02T00:00:00Z,3\n")
	w.put("what.txt", "id\n")
	features, err := w.project.Resolve([]string{"plain"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		request feature.DatasetRequest
		err     string
	}{
		{feature.DatasetRequest{Labels: "none.csv"}, "no label file"},
		{feature.DatasetRequest{Labels: "nokey.csv"}, "needs the label column id"},
		{feature.DatasetRequest{Labels: "notime.csv"}, `no time column "event_timestamp"`},
		{feature.DatasetRequest{Labels: "number.csv"}, "must be a timestamp"},
		{feature.DatasetRequest{Labels: "taken.csv"}, "plain__v already"},
		{feature.DatasetRequest{Labels: "own.csv"}, "loam uses itself"},
		{feature.DatasetRequest{Labels: "what.txt"}, "must end in"},
		{feature.DatasetRequest{Labels: "good.csv", RequireComplete: true}, "later than the watermark"},
		{feature.DatasetRequest{Labels: "out.parquet"}, "overwrite its labels"},
	} {
		c.request.Features = features
		if _, err := w.build(c.request, 0); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %v, want %q", c.request.Labels, err, c.err)
		}
	}
	card, err := w.build(feature.DatasetRequest{Labels: "good.csv", Features: features}, 0)
	if err != nil || len(card.Warnings) != 1 || card.Labels.AfterWatermark != 1 || card.Features[0].NullRate != 0 {
		t.Errorf("card %+v, %v", card, err)
	}
	if read, err := ReadCard(CardPath(card.Out)); err != nil || read.Labels.SHA256 != card.Labels.SHA256 || read.Clock[:6] != "served" {
		t.Errorf("card %+v, %v", read, err)
	}
}
