package online

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
)

const tileStream = `stream: thing
kind: event
format: row
key: [id]
id: id
event_time: at
sequence: seq
cluster_by: who
keyed: %v
columns:
  - {name: id, type: string}
  - {name: who, type: string}
  - {name: team, type: int64}
  - {name: n, type: int64}
  - {name: x, type: double}
  - {name: m, type: "decimal(38,4)"}
  - {name: yes, type: bool}
  - {name: ts, type: timestamp}
  - {name: day, type: date}
  - {name: s, type: string}
  - {name: seq, type: int64}
`

const tileViews = `entities: [{name: who, join_keys: [who]}, {name: both, join_keys: [who, team]}]
views:
  - name: all
    entity: who
    stream: thing
    aggregates:
      - {name: rows, fn: count, windows: [1h, 1d, 30d]}
      - {name: odd, fn: count, where: "n %% 2 = 1", windows: [1d, 7d]}
      - {name: xs, fn: count, column: x, windows: [30d]}
%s
  - name: few
    entity: both
    stream: thing
    aggregates:
      - {name: rows, fn: count, windows: [7d]}
      - {name: ends, fn: last, column: s, where: "s <> 'a'", windows: [7d, 20d]}
`

// tileProject has every aggregate of every type that it is for, in every size of hop.
func tileProject(t *testing.T, keyed bool) *feature.Project {
	var list strings.Builder
	for _, column := range []string{"n", "x", "m", "yes", "ts", "day", "s"} {
		for _, fn := range []string{"sum", "avg", "min", "max", "first", "last", "distinct"} {
			if (fn == "sum" || fn == "avg") && !strings.Contains("n x m", column) {
				continue
			}
			fmt.Fprintf(&list, "      - {name: %s_%s, fn: %s, column: %s, windows: [1h, 7d, 30d]}\n", fn, column, fn, column)
		}
	}
	return loadFiles(t, fmt.Sprintf(tileStream, keyed), fmt.Sprintf(tileViews, list.String()))
}

// tileFact is an event as a test made it; values as JSON, "" for null.
type tileFact struct {
	who    string
	team   int64
	at     int64 // microseconds
	seq    string
	values map[string]string
	part   int32
	offset int64
}

// tileWorld is a project with a windowed view, its lake and its store, and what its topics hold.
type tileWorld struct {
	t       *testing.T
	project *feature.Project
	lake    *lake.Lake
	store   *Store
	random  *rand.Rand
	now     time.Time
	topics  [3][]tileFact
}

func newTileWorld(t *testing.T, s *Store, keyed bool, seed uint64) *tileWorld {
	p := tileProject(t, keyed)
	w := &tileWorld{
		t: t, project: p, lake: openLake(t, p), store: s, random: rand.New(rand.NewPCG(seed, 1)), now: time.Now().UTC().Truncate(time.Microsecond),
	}
	return w
}

func (w *tileWorld) fatal(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *tileWorld) clock() time.Time { return w.now }

func (w *tileWorld) open() *Live {
	w.t.Helper()
	live, err := NewLive(context.Background(), w.store, w.lake, w.project)
	w.fatal(err)
	for _, views := range live.views {
		for _, v := range views {
			v.clock = w.clock
		}
	}
	w.t.Cleanup(func() { w.fatal(live.Close()) })
	return live
}

// partition is one of the topic's.
func (w *tileWorld) partition(index int) feature.Partition {
	return feature.Partition{Topic: w.project.Stream("thing").Topic, Index: int32(index)}
}

// produce puts an event at the end of a partition; ago is how long before now it happened.
func (w *tileWorld) produce(index int, who string, ago time.Duration, values map[string]string) {
	w.topics[index] = append(w.topics[index], tileFact{
		who: who, at: w.now.Add(-ago).UnixMicro(), values: values, part: int32(index), offset: int64(len(w.topics[index])),
	})
}

// random makes an event of any entity.
func (w *tileWorld) produceAny(index int) {
	r := w.random
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	ago := time.Duration(r.Int64N(int64(40 * 24 * time.Hour)))
	switch r.IntN(4) {
	case 0:
		ago = time.Duration(r.Int64N(int64(2*time.Hour))) - 5*time.Minute // also ahead of the clock
	case 1:
		ago = time.Duration(r.IntN(4)) * time.Hour // ties, and the edges of hops
	}
	w.produce(index, string(rune('a'+r.IntN(6))), ago, map[string]string{
		"n":   pick("", "0", "1", "-1", "7", "127", "128", "-129", "9223372036854775807", "-9223372036854775808"),
		"x":   pick("", "0", "0.1", "-2.5", "1e300", "3"),
		"m":   pick("", "0", "-0.0001", "12.5", "9999999999999999999999999999999999.9999", "-7"),
		"yes": pick("", "true", "false"),
		"ts":  pick("", `"2026-01-01T00:00:00Z"`, `"1969-12-31T23:59:59.999999Z"`, `"2026-01-01T00:00:00.000001Z"`),
		"day": pick("", `"2026-02-28"`, `"1969-12-31"`),
		"s":   pick("", `""`, `"a"`, `"é"`, `"`+strings.Repeat("long ", 30)+`"`),
	})
	f := &w.topics[index][len(w.topics[index])-1]
	f.team, f.seq = r.Int64N(2), pick("", "", "0", "-5", "3")
}

// batch is what a reader makes of a partition's events in [from, to).
func (w *tileWorld) batch(index, from, to int) *feature.Batch {
	w.t.Helper()
	s, p := w.project.Stream("thing"), w.partition(index)
	r := ingest.NewRouter(ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: map[string]*ingest.Dedup{s.Name: ingest.NewDedup(1<<20, nil)},
		Starts: func(string, feature.Partition) int64 { return int64(from) },
	})
	for i := from; i < to; i++ {
		w.add(r, p, i, w.topics[index][i])
	}
	batches, err := r.Flush(context.Background(), []ingest.End{{Partition: p}})
	w.fatal(err)
	if len(batches) == 0 { // a batch without events tells how far they were read
		return &feature.Batch{Stream: s, Spans: []feature.Span{{Partition: p, From: int64(from), To: int64(to)}}}
	}
	if len(batches) != 1 || len(batches[0].Refused) > 0 {
		w.t.Fatalf("%+v", batches)
	}
	w.t.Cleanup(batches[0].Release)
	return batches[0]
}

func (w *tileWorld) add(r *ingest.Router, p feature.Partition, offset int, f tileFact) {
	fields := []string{
		fmt.Sprintf(`"id":"%s-%d-%d"`, p.Topic, p.Index, offset), fmt.Sprintf(`"who":%q`, f.who), fmt.Sprintf(`"team":%d`, f.team),
		fmt.Sprintf(`"at":%q`, time.UnixMicro(f.at).UTC().Format(time.RFC3339Nano)),
	}
	for name, v := range f.values {
		if v != "" {
			fields = append(fields, fmt.Sprintf("%q:%s", name, v))
		}
	}
	if f.seq != "" {
		fields = append(fields, `"seq":`+f.seq)
	}
	r.Add(&ingest.Record{
		Position: feature.Position{Topic: p.Topic, Partition: p.Index, Offset: int64(offset)}, Value: []byte("{" + strings.Join(fields, ",") + "}"),
	}, w.now.UnixMicro())
}

func (w *tileWorld) write(l *Live, b *feature.Batch) {
	w.t.Helper()
	_, err := l.Write(context.Background(), b, allKnown)
	w.fatal(err)
}

func (w *tileWorld) build(view string) Generation {
	w.t.Helper()
	v := writer(w.t, w.store, w.project, view)
	g, err := v.Build(context.Background(), w.lake, BuildOptions{Now: w.clock})
	w.fatal(err)
	w.fatal(w.store.Switch(context.Background(), view, g))
	return g
}

// read reads a view of an entity as feature=status or value.
func (w *tileWorld) read(view string, entity map[string]string, now time.Time) map[string]Feature {
	w.t.Helper()
	refs, err := w.project.Resolve([]string{view + ":*"})
	w.fatal(err)
	rows, err := NewClient(w.store, w.project, func() time.Time { return now }).Read(context.Background(), refs, []map[string]string{entity})
	w.fatal(err)
	all := map[string]Feature{}
	for _, f := range rows[0] {
		all[f.Ref.Feature] = f
	}
	return all
}

// check holds what is read of every entity against what the facts say by definition.
func (w *tileWorld) check(what string, facts []tileFact, now time.Time) {
	w.t.Helper()
	for who := 'a'; who < 'h'; who++ {
		entity := map[string]string{"who": string(who)}
		w.compare(what, "all", entity, slices.DeleteFunc(slices.Clone(facts), func(f tileFact) bool { return f.who != string(who) }), now)
		for team := range int64(2) {
			entity := map[string]string{"who": string(who), "team": fmt.Sprint(team)}
			of := slices.DeleteFunc(slices.Clone(facts), func(f tileFact) bool { return f.who != string(who) || f.team != team })
			w.compare(what, "few", entity, of, now)
		}
	}
}

func (w *tileWorld) compare(what, view string, entity map[string]string, facts []tileFact, now time.Time) {
	w.t.Helper()
	v := w.project.View(view)
	read := w.read(view, entity, now)
	for _, a := range v.Aggregates {
		for _, window := range a.Windows {
			f := read[a.FeatureName(window)]
			want := oracle(a, v.FeatureType(w.project.Stream("thing"), f.Ref.Feature), window, facts, now)
			got := string(f.Status)
			if f.Status == Present {
				got = f.Value.Text
			}
			if got != want.text && !want.near(f.Value.Text) {
				w.t.Fatalf("%s: %v %s of %d events: %s, want %s", what, entity, f.Ref, len(facts), got, want.text)
			}
		}
	}
}

// facts are those that all topics hold.
func (w *tileWorld) facts() []tileFact { return slices.Concat(w.topics[0], w.topics[1], w.topics[2]) }

// wanted is what a feature must be; of doubles it may differ by the bound.
type wanted struct {
	text   string
	double bool
	value  float64
	bound  float64
}

func (o wanted) near(text string) bool {
	v, err := strconv.ParseFloat(text, 64)
	return o.double && err == nil && math.Abs(v-o.value) <= o.bound
}

// oracle is an aggregate by its definition.
func oracle(a feature.Aggregate, typ feature.Type, window time.Duration, facts []tileFact, now time.Time) wanted {
	hop := int64(24 * time.Hour / time.Microsecond)
	if window < 12*time.Hour {
		hop = int64(5 * time.Minute / time.Microsecond)
	} else if window < 12*24*time.Hour {
		hop = int64(time.Hour / time.Microsecond)
	}
	from := now.Add(-window).UnixMicro()
	from -= ((from % hop) + hop) % hop
	var in []tileFact
	for _, f := range facts {
		switch {
		case f.at < from:
		case a.Where == "n % 2 = 1" && (f.values["n"] == "" || new(big.Int).Rem(whole(f.values["n"]), big.NewInt(2)).Int64() != 1):
		case a.Where == "s <> 'a'" && (f.values["s"] == "" || f.values["s"] == `"a"`):
		case a.Column != "" && f.values[a.Column] == "":
		default:
			in = append(in, f)
		}
	}
	if a.Fn == feature.Count {
		return wanted{text: fmt.Sprint(len(in))}
	}
	values := make([]string, len(in))
	different := map[string]bool{}
	for i, f := range in {
		values[i] = f.values[a.Column]
		key := values[i]
		if key == "-0.0" {
			key = "0"
		}
		different[key] = true
	}
	if a.Fn == feature.Distinct {
		return wanted{text: fmt.Sprint(len(different))}
	}
	if len(in) == 0 {
		return wanted{text: string(NullValue)}
	}
	switch a.Fn {
	case feature.Sum, feature.Avg:
		return oracleSum(a, typ, values)
	case feature.First, feature.Last:
		slices.SortFunc(in, compareFacts)
		f := in[0]
		if a.Fn == feature.Last {
			f = in[len(in)-1]
		}
		return wanted{text: shown(a.Column, f.values[a.Column])}
	}
	slices.SortFunc(values, func(x, y string) int { return compareShown(a.Column, x, y) })
	if a.Fn == feature.Max {
		slices.Reverse(values)
	}
	return wanted{text: shown(a.Column, values[0])}
}

func whole(text string) *big.Int { n, _ := new(big.Int).SetString(text, 10); return n }

func oracleSum(a feature.Aggregate, typ feature.Type, values []string) wanted {
	sum, size := new(big.Rat), new(big.Rat)
	for _, v := range values {
		r, _ := new(big.Rat).SetString(v)
		sum.Add(sum, r)
		size.Add(size, r.Abs(r))
	}
	if a.Fn == feature.Avg {
		sum.Quo(sum, big.NewRat(int64(len(values)), 1))
	}
	f, _ := sum.Float64()
	if a.Fn == feature.Avg || typ.Kind == feature.Double {
		bound, _ := size.Float64()
		return wanted{text: strconv.FormatFloat(f, 'g', -1, 64), double: true, value: f, bound: 1e-12*bound + 1e-300}
	}
	if typ.Kind == feature.Int64 {
		if !sum.Num().IsInt64() {
			return wanted{text: string(NullValue)}
		}
		return wanted{text: sum.Num().String()}
	}
	text := sum.FloatString(4)
	if len(strings.Trim(text, "-.")) > 39 {
		return wanted{text: string(NullValue)}
	}
	return wanted{text: text}
}

// compareFacts is the one order, of one topic.
func compareFacts(a, b tileFact) int {
	key := func(f tileFact) []int64 {
		seq, has := int64(0), int64(0)
		if f.seq != "" {
			has = 1
			seq, _ = strconv.ParseInt(f.seq, 10, 64)
		}
		return []int64{f.at, has, seq, int64(f.part), f.offset}
	}
	return slices.Compare(key(a), key(b))
}

// shown is a JSON value as features are written.
func shown(column, v string) string {
	switch column {
	case "m":
		r, _ := new(big.Rat).SetString(v)
		return r.FloatString(4)
	case "x":
		f, _ := strconv.ParseFloat(v, 64)
		return strconv.FormatFloat(f, 'g', -1, 64)
	case "ts":
		var at time.Time
		_ = json.Unmarshal([]byte(v), &at)
		return at.Format("2006-01-02T15:04:05.000000Z")
	case "s", "day":
		var text string
		_ = json.Unmarshal([]byte(v), &text)
		return text
	}
	return v
}

func compareShown(column, a, b string) int {
	switch column {
	case "n", "m", "x":
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		if c := x.Cmp(y); c != 0 || a == b {
			return c
		}
		return strings.Compare(b, a) // of zeros the negative is lower: "-0.0" < "0"
	}
	return strings.Compare(shown(column, a), shown(column, b))
}
