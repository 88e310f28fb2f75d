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

const noteStream = `stream: note
kind: state
format: envelope
payload: patch
key: [id]
columns: [{name: id, type: string}, {name: v, type: int64}, {name: s, type: int64}]
`

// note is an event of the patch stream: a column that is not carried is absent.
type note struct {
	id       string
	at       int64
	offset   int
	batch    int64 // when it was recorded, in microseconds
	deleted  bool
	carriesV bool
	carriesS bool
	v, s     int // below 0 is null
}

func (n note) event(stream string) string {
	verb := "updated"
	if n.deleted {
		verb = "deleted"
	}
	value := func(v int) string {
		if v < 0 {
			return "null"
		}
		return fmt.Sprint(v)
	}
	payload := ""
	if n.carriesV {
		payload += `,"v":` + value(n.v)
	}
	if n.carriesS {
		payload += `,"s":` + value(n.s)
	}
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"%s.%s","source":"x","occurred_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"id":"%s","fact_id":"f%d"%s}}`,
		n.offset, strings.ToUpper(stream[:1])+stream[1:], verb, stamp(n.at), n.id, n.offset, payload)
}

// holds looks at everything: whether v > 2, and with two columns also s <> 1, is true of an entity just at a time.
func holds(notes []note, id string, at int64, patch bool) bool {
	var seen []note
	for _, n := range notes {
		if n.id == id && n.at <= at {
			seen = append(seen, n)
		}
	}
	slices.SortFunc(seen, func(a, b note) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.offset, b.offset)) })
	there, v, s := false, -1, -1
	for _, n := range seen {
		there = !n.deleted
		if n.deleted || !patch {
			v, s = -1, -1
		}
		if n.deleted {
			continue
		}
		if n.carriesV {
			v = n.v
		}
		if n.carriesS {
			s = n.s
		}
	}
	if patch {
		return there && v > 2 && s >= 0 && s != 1
	}
	return there && v > 2
}

// Outcomes over states, patches and events are held against looking at every second of every label's horizon, with ties,
// deletes, nulls, conditions that come true again, and at known_at.
func TestOutcomesAgainstTheOracle(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", sd)
	r := rand.New(rand.NewPCG(sd, 6))
	for round := range 2 {
		w := newWorld(t, map[string]string{
			"loam.yaml": "project: oracle", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "streams/note.yaml": noteStream, "features/f.yaml": oracleViews,
		})
		all := map[string][]note{}
		for _, stream := range []string{"thing", "note", "fact"} {
			var notes []note
			for i := range 90 {
				notes = append(notes, note{
					id: string(rune('a' + r.IntN(3))), at: int64(r.IntN(300)), offset: i, batch: int64(1 + i/30), deleted: stream != "fact" && r.IntN(6) == 0,
					carriesV: stream != "note" || r.IntN(2) == 0, carriesS: stream == "note" && r.IntN(2) == 0, v: r.IntN(7) - 1, s: r.IntN(4) - 1,
				})
			}
			for batch := range 3 {
				var rows []string
				for _, n := range notes[batch*30 : batch*30+30] {
					rows = append(rows, n.event(stream))
				}
				w.take(stream, "file:"+stream, int64(batch+1), rows)
			}
			all[stream] = notes
		}
		csv := "who,event_timestamp,n\n"
		type label struct {
			id string
			at int64
		}
		var labels []label
		for i := range 120 {
			l := label{string(rune('a' + r.IntN(4))), int64(r.IntN(330) - 15)} // d is unknown
			labels = append(labels, l)
			csv += fmt.Sprintf("%s,%s,%d\n", l.id, stamp(l.at), i)
		}
		csv += fmt.Sprintf(",%s,120\nb,,121\n", stamp(100)) // without a key, and without a time
		w.put("labels.csv", csv)
		for _, knownAt := range []int64{0, 2} {
			request := feature.DatasetRequest{Labels: "labels.csv", JoinKeys: map[string]string{"id": "who"}, Outcomes: []feature.OutcomeLabel{
				{Name: "thing_up", Stream: "thing", When: "v > 2", Within: 20 * time.Second},
				{Name: "note_up", Stream: "note", When: "v > 2 AND s <> 1", Within: 35 * time.Second},
				{Name: "fact_up", Stream: "fact", When: "v > 2", Within: 7 * time.Second},
			}}
			known := map[string][]note{}
			marks := map[string]int64{}
			for stream, notes := range all {
				for _, n := range notes {
					if knownAt == 0 || n.batch <= knownAt {
						known[stream] = append(known[stream], n)
						marks[stream] = max(marks[stream], n.at)
					}
				}
			}
			if knownAt > 0 {
				at := epochTime(knownAt)
				request.KnownAt = &at
			}
			var want []string
			left := map[string]int64{}
			for i, l := range labels {
				keep, values := true, map[string]bool{}
				for _, o := range request.Outcomes {
					horizon := l.at + int64(o.Within/time.Second)
					if horizon > marks[o.Stream] {
						left[o.Name]++
						keep = false
					}
					for at := l.at + 1; at <= horizon; at++ {
						switch o.Stream {
						case "fact":
							for _, n := range known["fact"] {
								values[o.Name] = values[o.Name] || n.id == l.id && n.at == at && n.v > 2
							}
						default:
							patch := o.Stream == "note"
							values[o.Name] = values[o.Name] || holds(known[o.Stream], l.id, at, patch) && !holds(known[o.Stream], l.id, at-1, patch)
						}
					}
				}
				if keep {
					want = append(want, fmt.Sprintf(`{"who":"%s","n":%d,"thing_up":%v,"note_up":%v,"fact_up":%v}`, l.id, i, values["thing_up"], values["note_up"], values["fact_up"]))
				}
			}
			want = append(want, `{"who":null,"n":120,"thing_up":null,"note_up":null,"fact_up":null}`, `{"who":"b","n":121,"thing_up":null,"note_up":null,"fact_up":null}`)
			card, err := w.buildWith(request, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := w.rows("SELECT who, n, thing_up, note_up, fact_up FROM '$DIR/out.parquet'")
			if !slices.Equal(got, want) {
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("seed %d, round %d, known at %d: row %d is %s, want %s (label %+v)", sd, round, knownAt, i, got[i], want[i], labels[i])
					}
				}
				t.Fatalf("seed %d: %d rows, want %d", sd, len(got), len(want))
			}
			if card.Labels.Read != 122 || card.Labels.Rows != int64(len(want)) || card.Labels.LeftOut != 122-int64(len(want)) || len(card.Labels.Outcomes) != 3 || card.Rows != card.Labels.Rows {
				t.Errorf("card %+v", card.Labels)
			}
			for _, o := range card.Labels.Outcomes {
				ups := int64(0)
				for _, row := range want {
					if strings.Contains(row, `"`+o.Column+`":true`) {
						ups++
					}
				}
				if o.LeftOut != left[o.Column] || o.True != ups || o.CompleteUntil == nil || o.CompleteUntil.Unix() != epoch+marks[o.Stream] {
					t.Errorf("seed %d: outcome %+v, want %d left out and %d true", sd, o, left[o.Column], ups)
				}
			}
		}
	}
}

func TestOutcomesThatCantBeFound(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: bad", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	w.take("thing", "file:x", 1, []string{happening{id: "a", at: 100, received: 100, v: 1}.event("Thing", 0)})
	w.put("labels.csv", "id,event_timestamp,up\na,"+stamp(50)+",1\n")
	up := feature.OutcomeLabel{Name: "went", Stream: "thing", When: "v > 2", Within: time.Minute}
	change := func(f func(*feature.OutcomeLabel)) []feature.OutcomeLabel {
		o := up
		f(&o)
		return []feature.OutcomeLabel{o}
	}
	for _, c := range []struct {
		outcomes []feature.OutcomeLabel
		err      string
	}{
		{[]feature.OutcomeLabel{up}, "none of the 1 labels"},
		{change(func(o *feature.OutcomeLabel) { o.Stream = "fact" }), "stream fact is complete up to (a stream is empty)"},
		{change(func(o *feature.OutcomeLabel) { o.Name = "up" }), "have a column up already, which is the name of an outcome"},
		{change(func(o *feature.OutcomeLabel) { o.Name = "Up" }), `"Up" can't name a label column`},
		{change(func(o *feature.OutcomeLabel) { o.When = "random() > v" }), "outcomes.went.when: function random is not allowed"},
		{change(func(o *feature.OutcomeLabel) { o.Stream = "contact"; o.When = "mkt_status = 'x'" }), "outcome went needs the label column contact_id"},
		{[]feature.OutcomeLabel{up, up}, "column went stands twice"},
	} {
		if _, err := w.buildWith(feature.DatasetRequest{Labels: "labels.csv", Outcomes: c.outcomes}, Options{}); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %v, want %q", c.outcomes, err, c.err)
		}
	}
	if o, err := feature.ParseOutcome("won_30d=opportunity:30d:stage = 'a:b=c'"); err != nil || o.String() != "won_30d=opportunity:30d:stage = 'a:b=c'" || o.When != "stage = 'a:b=c'" {
		t.Errorf("%+v, %v", o, err)
	}
}
