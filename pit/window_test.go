package pit

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

const everyTypeStream = `stream: fact
kind: event
format: envelope
key: [fact_id]
cluster_by: id
columns:
  - {name: fact_id, type: string}
  - {name: id, type: string}
  - {name: b, type: bool}
  - {name: i, type: int64}
  - {name: d, type: double}
  - {name: m, type: "decimal(12,3)"}
  - {name: s, type: string}
  - {name: ts, type: timestamp}
  - {name: dt, type: date}
`

// everyType is a fact with a value of each type, as the SQL that the oracle inserts; null where it is NULL.
type everyType struct {
	id           string
	at, received int64
	values       map[string]string
}

// event is the fact as it is read, nulls left out.
func (e everyType) event(n int) string {
	var payload strings.Builder
	for name, v := range e.values {
		if v == "NULL" {
			continue
		}
		text := strings.Trim(v, "'")
		if name == "s" || name == "ts" || name == "dt" || name == "m" {
			text = `"` + text + `"`
		}
		fmt.Fprintf(&payload, `,"%s":%s`, name, text)
	}
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Fact.updated","source":"x","occurred_at":"%s","received_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"id":"%s","fact_id":"f%d"%s}}`,
		n, stamp(e.at), stamp(e.received), e.id, n, payload.String())
}

// TestWindowsOfEveryType holds every aggregate of every type that it is defined for against a correlated subquery over the
// events that were put in, on both clocks, with ties, late events and nulls.
func TestWindowsOfEveryType(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 5))
	types := map[string]string{
		"b": "BOOLEAN", "i": "BIGINT", "d": "DOUBLE", "m": "DECIMAL(12,3)", "s": "VARCHAR", "ts": "TIMESTAMPTZ", "dt": "DATE",
	}
	windows := []time.Duration{5 * time.Minute, 15 * time.Minute, 24 * time.Hour}
	views := "entities: [{name: thing, join_keys: [id]}]\nviews:\n  - name: w\n    entity: thing\n    stream: fact\n    aggregates:\n"
	type asked struct{ name, fn, column string }
	var all []asked
	for column := range types {
		for _, fn := range []string{"count", "sum", "avg", "min", "max", "first", "last", "distinct"} {
			if number := column == "i" || column == "d" || column == "m"; (fn == "sum" || fn == "avg") && !number {
				continue
			}
			a := asked{column + "_" + fn, fn, column}
			all = append(all, a)
			views += fmt.Sprintf("      - {name: %s, fn: %s, column: %s, windows: [5m, 15m, 1d]}\n", a.name, fn, column)
		}
	}
	w := newWorld(t, map[string]string{"loam.yaml": "project: types", "streams/fact.yaml": everyTypeStream, "features/f.yaml": views})
	var rows []string
	inserts := make([]string, 0, 300)
	for n := range 300 {
		at := int64(r.IntN(4000))
		e := everyType{id: string(rune('a' + r.IntN(3))), at: at, received: at + int64(r.IntN(3)*r.IntN(400)), values: map[string]string{
			"b": fmt.Sprint(r.IntN(2) == 0), "i": fmt.Sprint(r.IntN(9) - 4), "d": fmt.Sprint(float64(r.IntN(41)-20) / 8), "m": fmt.Sprintf("%.3f", float64(r.IntN(4000)-2000)/1000),
			"s": "'" + strings.Repeat(string(rune('a'+r.IntN(4))), r.IntN(4)) + "'", "ts": "'" + stamp(int64(r.IntN(9)*3600)) + "'", "dt": fmt.Sprintf("'2026-02-%02d'", 1+r.IntN(9)),
		}}
		if r.IntN(30) == 0 {
			e.values["i"] = fmt.Sprint(math.MaxInt64) // some sums are more than their type holds
		}
		for name := range e.values {
			if r.IntN(7) == 0 {
				e.values[name] = "NULL"
			}
		}
		rows = append(rows, e.event(n))
		v := e.values
		inserts = append(inserts, fmt.Sprintf("(%d, '%s', TIMESTAMPTZ '%s', TIMESTAMPTZ '%s', %s, %s, %s, %s, %s, %s::TIMESTAMPTZ, %s::DATE)",
			n, e.id, stamp(e.at), stamp(e.received), v["b"], v["i"], v["d"], v["m"], v["s"], v["ts"], v["dt"]))
	}
	w.take("fact", "file:fact", 1, rows)
	csv := "n,id,event_timestamp\n"
	for n := range 80 {
		csv += fmt.Sprintf("%d,%c,%s\n", n, 'a'+r.IntN(4), stamp(int64(r.IntN(5000))))
	}
	w.put("labels.csv", csv)

	ctx := context.Background()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	run := func(statement string) {
		t.Helper()
		if err := db.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE TABLE ev (n BIGINT, id VARCHAR, moment TIMESTAMPTZ, received TIMESTAMPTZ, b BOOLEAN, i BIGINT, d DOUBLE, m DECIMAL(12,3), s VARCHAR, ts TIMESTAMPTZ, dt DATE)")
	run("INSERT INTO ev VALUES " + strings.Join(inserts, ", "))
	for clock, column := range map[feature.Clock]string{feature.ServedClock: "received", feature.EventClock: "moment"} {
		if _, err := w.buildBy(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock}, Options{partRows: 30}); err != nil {
			t.Fatal(err)
		}
		run(fmt.Sprintf("CREATE OR REPLACE VIEW got AS FROM '%s'", filepath.Join(w.dir, "out.parquet")))
		for _, a := range all {
			for _, window := range windows {
				hop := feature.Hop(window)
				where := fmt.Sprintf("e.id = l.id AND e.%s <= l.event_timestamp AND e.moment >= make_timestamptz(((epoch_us(l.event_timestamp) - %d) // %d) * %d) AND e.%s IS NOT NULL",
					column, window.Microseconds(), hop.Microseconds(), hop.Microseconds(), a.column)
				value := ""
				switch a.fn {
				case "first":
					value = fmt.Sprintf("(SELECT e.%s FROM ev e WHERE %s ORDER BY e.moment, e.n LIMIT 1)", a.column, where)
				case "last":
					value = fmt.Sprintf("(SELECT e.%s FROM ev e WHERE %s ORDER BY e.moment DESC, e.n DESC LIMIT 1)", a.column, where)
				case "distinct":
					value = fmt.Sprintf("(SELECT count(DISTINCT e.%s) FROM ev e WHERE %s)", a.column, where)
				case "sum":
					value = fmt.Sprintf("(SELECT TRY_CAST(sum(e.%s) AS %s) FROM ev e WHERE %s)", a.column, map[string]string{"i": "BIGINT", "d": "DOUBLE", "m": "DECIMAL(38,3)"}[a.column], where)
				case "avg":
					value = fmt.Sprintf("(SELECT sum(e.%s)::DOUBLE / count(*) FROM ev e WHERE %s)", a.column, where)
				default:
					value = fmt.Sprintf("(SELECT %s(e.%s) FROM ev e WHERE %s)", a.fn, a.column, where)
				}
				name := "w__" + a.name + "_" + feature.FormatDuration(window)
				differs := fmt.Sprintf("l.%q IS DISTINCT FROM want", name)
				if a.fn == "avg" {
					differs = fmt.Sprintf("(l.%[1]q IS NULL) <> (want IS NULL) OR abs(l.%[1]q - want) > 1e-12 * abs(want) + 1e-12", name)
				}
				var n *int64
				var got, want *string
				err := db.QueryRow(ctx, fmt.Sprintf("SELECT min(l.n), first(l.%q::VARCHAR), first(want::VARCHAR) FROM (SELECT l.*, %s AS want FROM got l) l WHERE %s", name, value, differs), nil, &n, &got, &want)
				if err != nil {
					t.Fatal(err)
				}
				if n != nil {
					t.Errorf("seed %d, clock %s, label %d: %s is %v, want %v", sd, clock, *n, name, text(got), text(want))
				}
			}
		}
	}
}

func text(s *string) string {
	if s == nil {
		return "null"
	}
	return *s
}

// An event that many labels see costs as many nodes as twice the logarithm of the labels, and every label has it once.
func TestForest(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		var s slots
		for range 1 + r.IntN(4) {
			s.starts = append(s.starts, int32(len(s.bounds)))
			s.bounds = append(s.bounds, make([]int64, 1+r.IntN(40))...)
		}
		s.starts = append(s.starts, int32(len(s.bounds)))
		f := &forest{&s}
		c := &counter{counts: make([]int64, f.nodes())}
		want := make([]int64, len(s.bounds))
		for range 30 {
			e := r.IntN(len(s.starts) - 1)
			n := s.starts[e+1] - s.starts[e]
			first := s.starts[e] + int32(r.IntN(int(n)))
			end := first + int32(r.IntN(int(s.starts[e+1]-first)+1))
			var h hits
			h.fall(f, int64(e), first, end, 0)
			if most := 2 * int(math.Ceil(math.Log2(float64(n))+1)); len(h.nodes) > most {
				t.Errorf("%d nodes for a range of %d of %d slots", len(h.nodes), end-first, n)
			}
			c.add(h, nil)
			for slot := first; slot < end; slot++ {
				want[slot]++
			}
		}
		walked := make([]int64, len(s.bounds))
		sum := int64(0)
		f.walk(func(node int32, enter bool) {
			if enter {
				sum += c.counts[node]
			} else {
				sum -= c.counts[node]
			}
		}, func(slot int32) { walked[slot] = sum })
		f.settle(c)
		slot := 0
		f.leaves(func(node int32) {
			if c.counts[node] != want[slot] || walked[slot] != want[slot] {
				t.Errorf("slot %d has %d, by the walk %d, want %d", slot, c.counts[node], walked[slot], want[slot])
			}
			slot++
		})
	}
}

// A set of more than the bound counts as null for every label that sees it, and for no other.
func TestDistinctBound(t *testing.T) {
	s := &slots{starts: []int32{0, 3}, bounds: []int64{1, 2, 3}}
	f := &forest{s}
	d := accumulatorOf(feature.Distinct, feature.Type{Kind: feature.Int64}, f.nodes())
	column := int64Column(feature.DistinctMax + 1)
	defer column.Release()
	d.bind(column)
	var h hits
	for row := range feature.DistinctMax {
		h.fall(f, 0, 0, 3, int32(row))
	}
	h.fall(f, 0, 1, 3, feature.DistinctMax) // the last value is seen from the second label on
	d.add(h, nil)
	counts := d.column(f)
	defer counts.Release()
	if got := counts.String(); got != fmt.Sprintf("[%d (null) (null)]", feature.DistinctMax) {
		t.Errorf("counts %s", got)
	}
}

func int64Column(n int) arrow.Array {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	for i := range n {
		b.Append(int64(i))
	}
	return b.NewArray()
}
