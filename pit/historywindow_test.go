package pit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

const (
	phaseStream = `stream: phase
kind: state
format: envelope
key: [id]
sequence: seq
track: [v, w]
columns: [{name: id, type: string}, {name: v, type: int64}, {name: w, type: double}, {name: note, type: int64}]
`
	phaseViews = `entities: [{name: phase, join_keys: [id]}]
views:
  - name: past
    entity: phase
    stream: phase
    aggregates:
      - {name: changes, fn: changes, windows: [5m, 15m, 1d, 30d]}
      - {name: v_changes, fn: changes, column: v, windows: [15m, 30d]}
      - {name: w_rises, fn: changes, column: w, where: "v > 1", windows: [15m, 30d]}
      - {name: in_two, fn: time_in_state, where: "v = 2", windows: [5m, 15m, 1d, 30d]}
      - {name: there, fn: time_in_state, where: "true", windows: [15m, 30d]}
      - {name: days, fn: days_since_change}
      - {name: v_days, fn: days_since_change, column: v}
      - {name: two_days, fn: days_since_change, where: "v = 2"}
  - {name: only_days, entity: phase, stream: phase, aggregates: [{name: days, fn: days_since_change}]}
`
)

// phase is a change of the oracle; times are microseconds since 1970.
type phase struct {
	id                     string
	at, received, recorded int64
	offset                 int
	seq                    *int64
	deleted                bool
	v                      *int64
	w                      float64
	noW                    bool
	note                   int
	leavesV, leavesW       bool // a patch that doesn't carry them
}

func rfc(us int64) string { return time.UnixMicro(us).UTC().Format(time.RFC3339Nano) }

func (p phase) event() string {
	verb := "updated"
	if p.deleted {
		verb = "deleted"
	}
	number := func(n *int64) string {
		if n == nil {
			return "null"
		}
		return fmt.Sprint(*n)
	}
	fields := fmt.Sprintf(`"id":"%s","seq":%s,"note":%d`, p.id, number(p.seq), p.note)
	if !p.leavesV {
		fields += `,"v":` + number(p.v)
	}
	switch {
	case p.leavesW:
	case p.noW:
		fields += `,"w":null`
	default:
		fields += fmt.Sprint(`,"w":`, p.w)
	}
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Phase.%s","source":"x","occurred_at":"%s","received_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{%s}}`,
		p.offset, verb, rfc(p.at), rfc(p.received), fields)
}

// patchPhases is phaseStream with events that are patches.
var patchPhases = strings.Replace(phaseStream, "key:", "payload: patch\nkey:", 1)

// eachPayload runs a test over streams of whole states and of patches; draw gives random changes.
func eachPayload(t *testing.T, test func(t *testing.T, stream string, draw func(r *rand.Rand, from, span int64, n int) []phase)) {
	t.Run("full", func(t *testing.T) { test(t, phaseStream, phases) })
	t.Run("patch", func(t *testing.T) {
		test(t, patchPhases, func(r *rand.Rand, from, span int64, n int) []phase {
			all := phases(r, from, span, n)
			for i := range all {
				all[i].leavesV, all[i].leavesW = r.IntN(2) == 0, r.IntN(3) > 0
			}
			return all
		})
	})
}

// phases are random changes of the entities a to t within a span, of which some arrive as they happen, some late, some late or
// early, some anyhow, and some in order but for those of one moment.
func phases(r *rand.Rand, from, span int64, n int) []phase {
	const grid = 40 // moments, so that there are ties
	all := make([]phase, n)
	for i := range all {
		p := phase{offset: i, id: string(rune('a' + r.IntN(20))), deleted: r.IntN(7) == 0, w: float64(r.IntN(2)), noW: r.IntN(6) == 0, note: r.IntN(9)}
		p.at = from + span/grid*r.Int64N(grid)
		kind := p.id[0] % 5
		if kind != 4 && r.IntN(4) == 0 {
			p.at += r.Int64N(span / grid)
		}
		if r.IntN(3) > 0 {
			s := r.Int64N(3)
			p.seq = &s
		}
		if r.IntN(6) > 0 {
			v := r.Int64N(4)
			p.v = &v
		}
		p.received = p.at
		switch kind {
		case 1:
			p.received += r.Int64N(2) * r.Int64N(span/5)
		case 2:
			p.received += r.Int64N(span/5) - span/10
		case 3:
			p.received = from + r.Int64N(span)
		case 4:
			p.received += r.Int64N(span / grid)
		}
		all[i] = p
	}
	return all
}

// past gives what a label sees of history, by looking at everything: at is its time, sees which changes it may know of.
func past(all []phase, sees func(phase) bool, at int64) map[string]any {
	var seen []phase
	for _, p := range all {
		if sees(p) {
			seen = append(seen, p)
		}
	}
	slices.SortFunc(seen, func(a, b phase) int {
		sequence := func(p phase) int64 {
			if p.seq == nil {
				return -1
			}
			return *p.seq
		}
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(sequence(a), sequence(b)), cmp.Compare(a.offset, b.offset))
	})
	for i := range seen { // what a patch leaves is as what comes before it has left it
		p, before := &seen[i], phase{noW: true}
		if i > 0 && !seen[i-1].deleted {
			before = seen[i-1]
		}
		if p.leavesV {
			p.v = before.v
		}
		if p.leavesW {
			p.w, p.noW = before.w, before.noW
		}
	}
	type version struct {
		phase
		to int64
	}
	// The versions as they would be if these columns alone were tracked.
	versions := func(state func(phase) string) []version {
		var made []version
		open := false
		for i, p := range seen {
			switch {
			case i+1 < len(seen) && seen[i+1].at == p.at: // settled by a later one
			case p.deleted:
				if open {
					made[len(made)-1].to, open = p.at, false
				}
			case !open || state(made[len(made)-1].phase) != state(p):
				if open {
					made[len(made)-1].to = p.at
				}
				made, open = append(made, version{p, max(at, p.at)}), true
			}
		}
		return made
	}
	text := func(n *int64) string {
		if n == nil {
			return "null"
		}
		return fmt.Sprint(*n)
	}
	ofV := func(p phase) string { return text(p.v) }
	ofW := func(p phase) string {
		if p.noW {
			return "null"
		}
		return fmt.Sprint(p.w)
	}
	whole := func(p phase) string { return ofV(p) + " " + ofW(p) }
	more := func(p phase, than int64) bool { return p.v != nil && *p.v > than }
	always := func(phase) bool { return true }
	two := func(p phase) bool { return more(p, 1) && !more(p, 2) }
	high := func(p phase) bool { return more(p, 1) }
	row := map[string]any{}
	windows := map[string]time.Duration{"5m": 5 * time.Minute, "15m": 15 * time.Minute, "1d": 24 * time.Hour, "30d": 30 * 24 * time.Hour}
	hops := map[string]time.Duration{"5m": 5 * time.Minute, "15m": 5 * time.Minute, "1d": time.Hour, "30d": 24 * time.Hour}
	began := func(name string, state func(phase) string, where func(phase) bool, over ...string) {
		for _, w := range over {
			n := 0
			for _, v := range versions(state) {
				if v.at >= floorTo(at-windows[w].Microseconds(), hops[w].Microseconds()) && where(v.phase) {
					n++
				}
			}
			row["past__"+name+"_"+w] = json.Number(fmt.Sprint(n))
		}
	}
	spent := func(name string, where func(phase) bool, over ...string) {
		for _, w := range over {
			from, total := floorTo(at-windows[w].Microseconds(), hops[w].Microseconds()), int64(0)
			for _, v := range versions(whole) {
				if begin, end := max(v.at, from), min(v.to, at); where(v.phase) && end > begin {
					total += end - begin
				}
			}
			row["past__"+name+"_"+w] = float64(total) / 1e6
		}
	}
	days := func(name string, state func(phase) string, where func(phase) bool) {
		row[name] = nil
		for _, v := range versions(state) {
			if where(v.phase) {
				row[name] = float64(max(0, at-v.at)) / 86400e6
			}
		}
	}
	began("changes", whole, always, "5m", "15m", "1d", "30d")
	began("v_changes", ofV, always, "15m", "30d")
	began("w_rises", ofW, high, "15m", "30d")
	spent("in_two", two, "5m", "15m", "1d", "30d")
	spent("there", always, "15m", "30d")
	days("past__days", whole, always)
	days("past__v_days", ofV, always)
	days("past__two_days", whole, two)
	row["only_days__days"] = row["past__days"]
	return row
}

// TestHistoryWindowsAgainstTheOracle holds windows over random histories, with ties, deletes, gaps, no-ops, late and early
// arrivals, against nested loops: within minutes, and over a leap day and the changes of clocks in spring.
func TestHistoryWindowsAgainstTheOracle(t *testing.T) { eachPayload(t, testHistoryWindows) }

func testHistoryWindows(t *testing.T, stream string, draw func(r *rand.Rand, from, span int64, n int) []phase) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 4))
	day := (24 * time.Hour).Microseconds()
	for _, scale := range []struct{ from, span int64 }{
		{epoch * 1e6, (40 * time.Minute).Microseconds()},
		{time.Date(2024, 2, 20, 0, 0, 0, 0, time.UTC).UnixMicro(), 45 * day},
		{-100 * day, 90 * day}, // before 1970
	} {
		w := newWorld(t, map[string]string{"loam.yaml": "project: oracle", "streams/phase.yaml": stream, "features/f.yaml": phaseViews})
		all := draw(r, scale.from, scale.span, 240)
		for i := 0; i < len(all); i += 40 {
			var rows []string
			for k := i; k < i+40; k++ {
				all[k].recorded = int64(i + 1)
				rows = append(rows, all[k].event())
			}
			w.take("phase", "file:phase", int64(i+1), rows)
		}
		type label struct {
			id string
			at int64
		}
		csv := "id,event_timestamp\n"
		var labels []label
		for range 120 {
			l := label{string(rune('a' + r.IntN(21))), scale.from + r.Int64N(scale.span+scale.span/4)} // u is unknown
			switch p := all[r.IntN(len(all))]; r.IntN(4) {
			case 0:
				l.id, l.at = p.id, p.at
			case 1:
				l.id, l.at = p.id, p.received
			}
			labels = append(labels, l)
			// Berlin's and New York's clocks, before and after they change.
			zone := time.FixedZone("", []int{3600, 7200, -18000, -14400}[r.IntN(4)])
			csv += l.id + "," + time.UnixMicro(l.at).In(zone).Format("2006-01-02T15:04:05.000000-07:00") + "\n"
		}
		w.put("labels.csv", csv)
		known := time.UnixMicro(81)
		for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
			for _, exclude := range []bool{false, true} {
				for _, knownAt := range []*time.Time{nil, &known} {
					card, err := w.buildBy(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, ExcludeLabelTime: exclude, KnownAt: knownAt}, Options{foldRows: int64(40 + r.IntN(400))})
					if err != nil {
						t.Fatal(err)
					}
					if card.Rows != 120 || *card.Audit.MaxUS > 0 {
						t.Errorf("%d rows, audit %d", card.Rows, *card.Audit.MaxUS)
					}
					got := w.read()
					differ := 0
					for i, l := range labels {
						clocksDiffer := false
						sees := func(p phase) bool {
							if p.id != l.id || knownAt != nil && p.recorded > knownAt.UnixMicro() {
								return false
							}
							clocksDiffer = clocksDiffer || p.at <= l.at && p.received > l.at
							time := p.received
							if clock == feature.EventClock {
								time = p.at
							}
							return time < l.at || time == l.at && !exclude
						}
						want := past(all, sees, l.at)
						for name, v := range want {
							have := got[i][name]
							if f, ok := v.(float64); ok {
								if n, _ := have.(json.Number); n != "" {
									have, _ = n.Float64()
								}
								v = f
							}
							if have != v {
								t.Fatalf("seed %d, %s, exclude %v, known at %v, label %+v: %s is %v, want %v", sd, clock, exclude, knownAt, l, name, have, v)
							}
						}
						if len(got[i]) != len(want)+2 {
							t.Fatalf("row %v, want columns %v", got[i], want)
						}
						if clocksDiffer {
							differ++
						}
					}
					if want := float64(differ) / 120; card.Labels.ClocksDiffer != want {
						t.Errorf("clocks differ for %v of the labels, want %v", card.Labels.ClocksDiffer, want)
					}
				}
			}
		}
	}
}

// The audit sees windows over history that let a label see one microsecond too far, whether late changes have come or not.
func TestTheAuditSeesLooseHistory(t *testing.T) {
	for i, late := range []bool{false, true, false, true} {
		stream := []string{phaseStream, patchPhases}[i/2]
		w := newWorld(t, map[string]string{"loam.yaml": "project: audit", "streams/phase.yaml": stream, "features/f.yaml": phaseViews})
		at := int64(epoch*1e6 + 100e6)
		rows := []string{phase{id: "a", at: at + 1, received: at + 1}.event()}
		if late {
			rows = append(rows, phase{id: "a", offset: 1, at: at - 10, received: at + 2}.event())
		}
		w.take("phase", "file:x", 1, rows)
		w.put("labels.csv", "id,event_timestamp\na,"+rfc(at)+"\n")
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0); err != nil {
			t.Error(err)
		}
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 1); err == nil || !strings.Contains(err.Error(), "1 us after its label") {
			t.Errorf("%d, late %v: a loose join passed the audit: %v", i, late, err)
		}
	}
}

// A window that holds everything counts the versions that the history has: of a key of two columns, of numbers and lists that
// are the same written otherwise, and of a column that later definitions lack.
func TestHistoryWindowsCountTheHistory(t *testing.T) {
	t.Run("full", func(t *testing.T) { testCountTheHistory(t, "full") })
	t.Run("patch", func(t *testing.T) { testCountTheHistory(t, "patch") })
}

func testCountTheHistory(t *testing.T, payload string) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 5))
	stream := func(more string) string {
		return "stream: account\nkind: state\nformat: envelope\npayload: " + payload + "\nkey: [org, n]\ncolumns: [{name: org, type: string}, {name: n, type: int64}, " +
			"{name: x, type: double}, {name: tags, type: list<string>}, {name: price, type: \"decimal(10,2)\"}" + more + "]\n"
	}
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: count", "streams/account.yaml": stream(", {name: former, type: int64}"),
		"features/f.yaml": `entities: [{name: account, join_keys: [n, org]}]
views: [{name: past, entity: account, stream: account, aggregates: [{name: n, fn: changes, windows: [36500d]}]}]
`,
	})
	id := 0
	rows := func(former bool) []string {
		all := make([]string, 60)
		pick := func(values ...string) string { return values[r.IntN(len(values))] }
		for i := range all {
			id++
			all[i] = fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Account.%s","source":"x","occurred_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"org":"%s","n":%d`,
				id, pick("updated", "updated", "updated", "deleted"), rfc(epoch*1e6+r.Int64N(1e9)), pick("o", "p"), r.IntN(3))
			add := func(name, value string) {
				if payload == "full" || r.IntN(2) == 0 {
					all[i] += `,"` + name + `":` + value
				}
			}
			add("x", pick("0.0", "-0.0", "1", "1.0", "null"))
			add("tags", pick(`["a"]`, `["a",null]`, "[]", "null"))
			add("price", pick("1", "1.00", `"1.0"`))
			if former {
				add("former", pick("1", "null"))
			}
			all[i] += "}}"
		}
		return all
	}
	w.take("account", "file:one", 1, rows(true))
	w.put("first.csv", "org,n,event_timestamp\no,1,2027-01-01\np,2,2027-01-01\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "first.csv", Out: "first.parquet"}, 0); err != nil {
		t.Fatal(err)
	}
	w.put("streams/account.yaml", stream(""))
	w.load()
	w.apply()
	w.take("account", "file:two", 2, rows(false))
	reading, err := w.lake.Read(t.Context(), w.project.Stream("account"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(t.Context(), sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := reading.HistoryView(t.Context(), db, "history", nil); err != nil {
		t.Fatal(err)
	}
	csv := "org,n,event_timestamp\n"
	want := make([]int64, 6)
	for i := range want {
		org, n := string(rune('o'+i/3)), i%3
		csv += fmt.Sprintf("%s,%d,2027-01-01\n", org, n)
		if err := db.QueryRow(t.Context(), "SELECT count(*) FROM history WHERE org = $1 AND n = $2", []any{org, n}, &want[i]); err != nil {
			t.Fatal(err)
		}
		if want[i] < 5 {
			t.Errorf("the history of %s, %d has %d versions", org, n, want[i])
		}
	}
	w.put("labels.csv", csv)
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock}, 0); err != nil {
			t.Fatal(err)
		}
		for i, row := range w.read() {
			if got := jsonOf(row["past__n_36500d"]); got != fmt.Sprint(want[i]) {
				t.Errorf("seed %d, %s: %v, want %d versions", sd, clock, row, want[i])
			}
		}
		for _, card := range []string{"out.card.json", "first.card.json"} { // with and without the column in its definition
			if again, err := w.rebuild(card, "", "again.parquet"); err != nil || len(again.Differences) > 0 {
				t.Errorf("seed %d, %s: rebuilt from %s: %+v, %v", sd, clock, card, again, err)
			}
		}
	}
}

// A label without a key or a time, or of an unknown entity, has 0 and null, and a view on demand is given those.
func TestHistoryWindowsOfNothing(t *testing.T) {
	w := newWorld(t, map[string]string{"loam.yaml": "project: none", "streams/phase.yaml": phaseStream, "features/f.yaml": phaseViews + `
  - name: derived
    on_demand: {inputs: ["past:changes_5m", "past:there_30d", "past:days"]}
    features:
      - {name: busy, type: double, sql: "changes_5m + there_30d"}
      - {name: new, type: bool, sql: "days IS NULL"}
`})
	at := int64(epoch * 1e6)
	w.take("phase", "file:x", 1, []string{phase{id: "a", at: at, received: at}.event()})
	w.put("labels.csv", "id,event_timestamp\na,"+rfc(at+7_500_000)+"\nb,"+rfc(at)+"\n,"+rfc(at+1)+"\na,\n")
	features, err := w.project.Resolve([]string{"derived", "past:changes_15m", "past:days"})
	if err != nil {
		t.Fatal(err)
	}
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, Features: features}, 0); err != nil {
			t.Fatal(err)
		}
		for i, row := range w.read() {
			delete(row, "id")
			delete(row, "event_timestamp")
			want := `{"derived__busy":0.0,"derived__new":true,"past__changes_15m":0,"past__days":null}`
			if i == 0 {
				want = `{"derived__busy":8.5,"derived__new":false,"past__changes_15m":1,"past__days":0.00008680555555555556}`
			}
			if got := jsonOf(row); got != want {
				t.Errorf("%s, label %d: %s, want %s", clock, i, got, want)
			}
		}
	}
}
