package pit

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

const (
	patchStream = `stream: thing
kind: state
format: envelope
payload: patch
key: [id]
sequence: seq
track: [v, w]
columns: [{name: id, type: string}, {name: v, type: int64}, {name: w, type: int64}]
`
	patchViews = `entities: [{name: thing, join_keys: [id]}]
views:
  - name: plain
    entity: thing
    stream: thing
    features: [v, w, {name: twice, type: int64, sql: "v + v"}, {name: has_w, type: bool, sql: "w IS NOT NULL"}, id]
  - {name: short, entity: thing, stream: thing, ttl: 40s, features: [v, w, id]}
`
)

// patch is a change of the oracle: what it carries, with nil for an explicit null.
type patch struct {
	id           string
	at, received int64 // seconds
	sequence     *int
	offset       int
	deleted      bool
	carries      map[string]*int
}

func (p patch) event() string {
	verb := "updated"
	if p.deleted {
		verb = "deleted"
	}
	payload := fmt.Sprintf(`{"id":%q`, p.id)
	for _, name := range []string{"v", "w"} {
		if value, carried := p.carries[name]; carried {
			payload += fmt.Sprintf(`,%q:%s`, name, jsonOf(value))
		}
	}
	if p.sequence != nil {
		payload += fmt.Sprintf(`,"seq":%d`, *p.sequence)
	}
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Thing.%s","source":"x","occurred_at":"%s","received_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":%s}}`,
		p.offset, verb, stamp(p.at), stamp(p.received), payload)
}

// patchRow gives the features of a label: it takes the changes that the label sees one after the other, in their order,
// and keeps of every column what it was last carried with.
func patchRow(changes []patch, sees func(patch) bool, at int64) map[string]any {
	type field struct {
		value any
		at    int64
	}
	state := map[string]field{}
	for _, p := range changes { // in their order
		switch {
		case !sees(p):
		case p.deleted:
			clear(state)
		default:
			state["id"] = field{p.id, p.at}
			for name, value := range p.carries {
				state[name] = field{nil, p.at}
				if value != nil {
					state[name] = field{*value, p.at}
				}
			}
		}
	}
	row := map[string]any{"plain__twice": nil, "plain__has_w": nil}
	for _, name := range []string{"v", "w", "id"} {
		f := state[name]
		row["plain__"+name], row["short__"+name] = f.value, f.value
		if at-f.at > 40 {
			row["short__"+name] = nil
		}
	}
	if v, ok := state["v"].value.(int); ok {
		row["plain__twice"] = 2 * v
	}
	if w, carried := state["w"]; carried {
		row["plain__has_w"] = w.value != nil
	}
	return row
}

// TestPatchesAgainstTheOracle builds training sets over random patches, with ties, deletes, explicit nulls, and patches
// that arrive late, and holds every value against one that takes them one by one.
func TestPatchesAgainstTheOracle(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 4))
	for range 2 {
		w := newWorld(t, map[string]string{"loam.yaml": "project: oracle", "streams/thing.yaml": patchStream, "features/f.yaml": patchViews})
		changes := make([]patch, 150)
		var rows []string
		for i := range changes {
			at := int64(r.IntN(400))
			p := patch{
				id: string(rune('a' + r.IntN(4))), at: at, received: at + int64(r.IntN(3)*r.IntN(150)) - int64(r.IntN(2)*r.IntN(5)),
				offset: i, deleted: r.IntN(8) == 0, carries: map[string]*int{},
			}
			if r.IntN(2) == 0 {
				sequence := r.IntN(3)
				p.sequence = &sequence
			}
			for _, name := range []string{"v", "w"} {
				switch r.IntN(5) {
				case 0:
					p.carries[name] = nil
				case 1, 2:
					value := r.IntN(5)
					p.carries[name] = &value
				}
			}
			if p.deleted {
				p.carries = nil
			}
			changes[i] = p
			rows = append(rows, p.event())
		}
		for left := rows; len(left) > 0; left = left[min(40, len(left)):] {
			w.take("thing", "file:thing", 1, left[:min(40, len(left))])
		}
		slices.SortFunc(changes, func(a, b patch) int {
			sequence := func(p patch) int {
				if p.sequence == nil {
					return -1
				}
				return *p.sequence
			}
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(sequence(a), sequence(b)), cmp.Compare(a.offset, b.offset))
		})
		type label struct {
			id string
			at int64
		}
		var labels []label
		csv := "id,event_timestamp\n"
		for range 200 {
			l := label{string(rune('a' + r.IntN(5))), int64(r.IntN(500))} // e is unknown
			labels = append(labels, l)
			csv += l.id + "," + stamp(l.at) + "\n"
		}
		w.put("labels.csv", csv)
		for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
			for _, exclude := range []bool{false, true} {
				card, err := w.build(feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, ExcludeLabelTime: exclude}, 0)
				if err != nil {
					t.Fatal(err)
				}
				if card.Rows != 200 || *card.Audit.MaxUS > 0 {
					t.Errorf("%d rows, audit %d", card.Rows, *card.Audit.MaxUS)
				}
				got := w.read()
				for i, l := range labels {
					sees := func(p patch) bool {
						clockTime := p.received
						if clock == feature.EventClock {
							clockTime = p.at
						}
						return p.id == l.id && (clockTime < l.at || (clockTime == l.at && !exclude))
					}
					want := patchRow(changes, sees, l.at)
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

// Patches of one entity whose features are known by heart.
func TestPatchesByHand(t *testing.T) {
	w := newWorld(t, map[string]string{"loam.yaml": "project: hand", "streams/thing.yaml": patchStream, "features/f.yaml": patchViews})
	one, two, three := 1, 2, 3
	changes := []patch{
		{at: 10, received: 10, carries: map[string]*int{"v": &one, "w": &one}},
		{at: 20, received: 20, carries: map[string]*int{"w": &two}},
		{at: 15, received: 30, carries: map[string]*int{"v": &two, "w": &three}}, // late: v is new, w is not
		{at: 60, received: 60, deleted: true},
		{at: 50, received: 70, carries: map[string]*int{"v": &three}}, // late, before the delete
		{at: 80, received: 80, carries: map[string]*int{"w": nil}},
		{at: 90, received: 90, carries: map[string]*int{}}, // carries the key alone
	}
	var rows []string
	for i := range changes {
		changes[i].id, changes[i].offset = "a", i
		rows = append(rows, changes[i].event())
	}
	w.take("thing", "file:thing", 1, rows)
	csv := "id,event_timestamp\n"
	for _, c := range []int64{9, 10, 20, 30, 50, 51, 60, 61, 75, 80, 120, 121} {
		csv += "a," + stamp(c) + "\n"
	}
	w.put("labels.csv", csv)
	if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0); err != nil {
		t.Fatal(err)
	}
	want := []string{ // v, w, has_w; v, w and id with a ttl of 40 s
		"9: - - -; - - -",
		"10: 1 1 true; 1 1 \"a\"",
		"20: 1 2 true; 1 2 \"a\"",
		"30: 2 2 true; 2 2 \"a\"",
		"50: 2 2 true; 2 2 \"a\"",
		"51: 2 2 true; 2 2 \"a\"",
		"60: - - -; - - -",
		"61: - - -; - - -",
		"75: - - -; - - -",
		"80: - - false; - - \"a\"",
		"120: - - false; - - \"a\"",
		"121: - - false; - - \"a\"",
	}
	var got []string
	for i, row := range w.read() {
		at, text := []int{9, 10, 20, 30, 50, 51, 60, 61, 75, 80, 120, 121}[i], ""
		for _, name := range []string{"plain__v", "plain__w", "plain__has_w", "short__v", "short__w", "short__id"} {
			text += " " + strings.ReplaceAll(jsonOf(row[name]), "null", "-")
			if name == "plain__has_w" {
				text += ";"
			}
		}
		got = append(got, fmt.Sprintf("%d:%s", at, text))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The audit sees a join of patches that lets a label see one microsecond too far.
func TestTheAuditSeesALooseJoinOfPatches(t *testing.T) {
	w := newWorld(t, map[string]string{"loam.yaml": "project: audit", "streams/thing.yaml": patchStream, "features/f.yaml": patchViews})
	one := 1
	late := strings.ReplaceAll(patch{id: "a", at: 100, received: 100, carries: map[string]*int{"w": &one}}.event(), stamp(100), "2026-01-01T00:01:40.000001Z")
	w.take("thing", "file:x", 1, []string{late})
	w.put("labels.csv", "id,event_timestamp\na,"+stamp(100)+"\n")
	for _, clock := range []feature.Clock{feature.ServedClock, feature.EventClock} {
		request := feature.DatasetRequest{Labels: "labels.csv", AsOf: clock, Features: []feature.Ref{{View: "plain", Feature: "w"}}}
		if _, err := w.build(request, 0); err != nil {
			t.Errorf("%s: %v", clock, err)
		}
		if _, err := w.build(request, 1); err == nil || !strings.Contains(err.Error(), "1 us after its label") {
			t.Errorf("%s: a loose join passed the audit: %v", clock, err)
		}
	}
}
