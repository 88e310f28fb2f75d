package metamorphic

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/loamdata/loam/feature"
)

// key is an entity's: columns b and a of the stream.
type key struct {
	b int64
	a string
}

// text is the key as identities have it.
func (k key) text() string { return fmt.Sprintf("%d%s%s", k.b, feature.KeySeparator, k.a) }

// change is what happened to an entity, wherever it is delivered.
type change struct {
	key      key
	id       string
	at       int64  // event time, microseconds
	sequence *int64 // nil for none
	deleted  bool
	values   map[string]any // by column; nil is null
	present  []string       // of a patch; nil for a whole state
}

func (c *change) identity() feature.Identity {
	return feature.Identity{EventID: c.id, Key: c.key.text(), EventTime: c.at}
}

// delivery is a change at a position. Some changes are delivered twice.
type delivery struct {
	*change
	feature.Position
	batch string // that last brought it to a commit, for whom reads a timeline
}

func (d *delivery) recordedAt() int64 { return 5e15 + d.Offset }
func (d *delivery) ingestedAt() int64 { return 4e15 + d.Offset }

// columns are the stream's besides its key, in its order; the last two are not tracked.
var columns = []struct {
	name, typ string
	values    []any // to choose from
}{
	{"s", "string", []any{nil, "", "A", "B", "ü\x1f"}},
	{"x", "double", []any{nil, 1.5, math.NaN(), 0.0, math.Copysign(0, -1), math.Inf(1)}},
	{"m", "decimal(18,4)", []any{nil, "1.5000", "-2.0001", "12345678901234.5678"}},
	{"l", "list<double>", []any{nil, []any{}, []any{nil}, []any{1.5, nil, math.NaN()}, []any{0.0}, []any{math.Copysign(0, -1)}}},
	{"day", "date", []any{nil, "2024-02-29", "1969-12-31"}},
	{"yes", "bool", []any{nil, true, false}},
	{"seen", "timestamp", []any{nil, int64(-1), int64(1_700_000_000_000_001)}},
	{"u", "int64", []any{nil, int64(1), int64(math.MinInt64)}},
	{"j", "json", []any{nil, `{"a":1}`, `[]`}},
}

const untracked = 2

// testStream is a state stream with those columns.
func testStream(payload feature.Payload) *feature.Stream {
	s := &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "thing.v1", Key: []string{"b", "a"}, ClusterBy: "b",
		EventTime: "changed", Payload: payload,
	}
	add := func(name, text string) {
		typ, err := feature.ParseType(text)
		if err != nil {
			panic(err)
		}
		s.Columns = append(s.Columns, feature.Column{Name: name, Type: typ, Path: []string{name}})
	}
	add("a", "string")
	add("b", "int64")
	for i, c := range columns {
		add(c.name, c.typ)
		if i < len(columns)-untracked {
			s.Track = append(s.Track, c.name)
		}
	}
	return s
}

// randomChanges are the changes of so many keys, in order of event time within each: few values and times, so that ties,
// changes that change nothing, deletes of what isn't there and states that come back abound.
func randomChanges(r *rand.Rand, keys int, payload feature.Payload) []*change {
	var all []*change
	for k := range keys {
		id := key{int64(k) - int64(keys)/2, []string{"", "x", "k" + strconv.Itoa(k)}[r.IntN(3)]}
		n, span := 1+r.IntN(12), 1+r.IntN(20)
		var past []*change
		for range n {
			c := &change{key: id, id: fmt.Sprintf("%d-%d", k, len(past)), at: int64(1_000_000 + r.IntN(span)), deleted: r.IntN(6) == 0}
			if r.IntN(2) == 0 {
				sequence := int64(r.IntN(3) - 1)
				c.sequence = &sequence
			}
			if !c.deleted {
				c.fill(r, past, payload)
			}
			past = append(past, c)
		}
		slices.SortStableFunc(past, func(a, b *change) int { return cmp.Compare(a.at, b.at) })
		all = append(all, past...)
	}
	return all
}

// fill gives a change its values: those of one before it, or those of one with a column altered, or others altogether.
func (c *change) fill(r *rand.Rand, past []*change, payload feature.Payload) {
	c.values = map[string]any{}
	like := -1
	if len(past) > 0 {
		like = r.IntN(len(past))
	}
	if like >= 0 && past[like].values != nil && r.IntN(3) > 0 {
		for name, v := range past[like].values {
			c.values[name] = v
		}
		if r.IntN(2) == 0 {
			column := columns[r.IntN(len(columns))]
			c.values[column.name] = column.values[r.IntN(len(column.values))]
		}
	} else {
		for _, column := range columns {
			c.values[column.name] = column.values[r.IntN(len(column.values))]
		}
	}
	if payload != feature.PatchPayload || r.IntN(5) == 0 {
		return
	}
	c.present = []string{}
	for _, column := range columns {
		if r.IntN(3) == 0 {
			c.present = append(c.present, column.name)
		} else {
			delete(c.values, column.name)
		}
	}
}

// plain is the text of a value as DuckDB writes it. In a history every NaN is one and minus zero is zero; a log keeps
// what came.
func plain(value any, settled bool) string {
	switch v := value.(type) {
	case nil:
		return "NULL"
	case float64:
		if settled && v == 0 {
			v = 0
		}
		switch {
		case math.IsNaN(v):
			return "nan"
		case math.IsInf(v, 1):
			return "inf"
		case v == math.Trunc(v):
			return strconv.FormatFloat(v, 'f', 1, 64)
		default:
			return strconv.FormatFloat(v, 'f', -1, 64)
		}
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = plain(e, settled)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	default:
		return fmt.Sprint(v)
	}
}

// separator stands between the columns of a row as text.
const separator = " | "

// logRow is the text of the delivery's row in the log.
func (d *delivery) logRow() string {
	parts := []string{d.key.a, fmt.Sprint(d.key.b)}
	for _, c := range columns {
		parts = append(parts, plain(d.values[c.name], false))
	}
	op, present := "upsert", "NULL"
	if d.deleted {
		op = "delete"
	}
	if d.present != nil {
		present = "[" + strings.Join(d.present, ", ") + "]"
	}
	parts = append(parts, present, fmt.Sprint(d.at), d.sequenceText(), fmt.Sprint(d.recordedAt()), fmt.Sprint(d.ingestedAt()), d.id, op,
		d.Topic, fmt.Sprint(d.Partition), fmt.Sprint(d.Offset))
	return strings.Join(parts, separator)
}

func (c *change) sequenceText() string {
	if c.sequence == nil {
		return "NULL"
	}
	return fmt.Sprint(*c.sequence)
}

// timeline draws deliveries of one entity in the order that counts.
func timeline(deliveries []*delivery) string {
	sorted := slices.Clone(deliveries)
	slices.SortFunc(sorted, func(a, b *delivery) int { return slices.Compare(a.rank(), b.rank()) })
	first := sorted[0].at
	var b strings.Builder
	for _, d := range sorted {
		fmt.Fprintf(&b, "%s|%-4s seq %-4s %-20s %-10s ", strings.Repeat(" ", int(d.at-first)), fmt.Sprintf("+%d", d.at-first), d.sequenceText(), d.Position, d.batch)
		switch {
		case d.deleted:
			b.WriteString("deleted")
		case d.present != nil:
			fmt.Fprintf(&b, "patch of %v:", d.present)
		}
		for _, c := range columns {
			if v, there := d.values[c.name]; there {
				fmt.Fprintf(&b, " %s=%s", c.name, plain(v, false))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
