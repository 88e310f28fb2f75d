package online

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// tileSkew is how much longer than any window needs them tiles are kept, for readers whose clocks are behind the writer's.
const tileSkew = 5 * time.Minute

// tilePlan says what of a windowed view's events is kept, and how a window is made of it. Its levels are the hops that
// the view's windows have.
type tilePlan struct {
	view       *feature.View
	stream     *feature.Stream
	joins      []string // the entity's join keys in the order of keys
	aggregates []tileAggregate
	levels     []tileLevel
	sets       []tileSetPlan
	columns    []string // that aggregates take, distinct
	conditions []string // of aggregates, distinct
	widest     int64    // how long an event can be in a window: the longest and its hop, microseconds
}

// tileLevel is the tiles of one hop.
type tileLevel struct {
	hop, window int64 // microseconds; the longest window that has the hop
	aggregates  []int // of the view, those with such a window that aren't distinct
}

// tileSetPlan is a distinct aggregate.
type tileSetPlan struct {
	aggregate int
	hop       int64         // its finest, microseconds
	window    time.Duration // its longest
}

func newTilePlan(view *feature.View, stream *feature.Stream, entity *feature.Entity) *tilePlan {
	plan := &tilePlan{view: view, stream: stream, joins: joinKeys(entity)}
	for i, a := range view.Aggregates {
		t := tileAggregate{fn: a.Fn, of: feature.Type{Kind: feature.Int64}, column: -1, condition: -1}
		if a.Column != "" {
			c, _ := stream.Column(a.Column)
			t.of, t.column = c.Type, place(&plan.columns, a.Column)
		}
		if a.Where != "" {
			t.condition = place(&plan.conditions, a.Where)
		}
		plan.aggregates = append(plan.aggregates, t)
		longest := slices.Max(a.Windows)
		plan.widest = max(plan.widest, (longest + feature.Hop(longest)).Microseconds())
		if a.Fn == feature.Distinct {
			plan.sets = append(plan.sets, tileSetPlan{i, feature.Hop(slices.Min(a.Windows)).Microseconds(), longest})
			continue
		}
		for _, window := range a.Windows {
			plan.level(feature.Hop(window).Microseconds(), window.Microseconds(), i)
		}
	}
	slices.SortFunc(plan.levels, func(a, b tileLevel) int { return cmp.Compare(a.hop, b.hop) })
	return plan
}

// place finds a text in a list, to which it is added if it isn't there.
func place(list *[]string, text string) int {
	at := slices.Index(*list, text)
	if at < 0 {
		at = len(*list)
		*list = append(*list, text)
	}
	return at
}

func (p *tilePlan) level(hop, window int64, aggregate int) {
	at := slices.IndexFunc(p.levels, func(l tileLevel) bool { return l.hop == hop })
	if at < 0 {
		at = len(p.levels)
		p.levels = append(p.levels, tileLevel{hop: hop})
	}
	l := &p.levels[at]
	l.window = max(l.window, window)
	if !slices.Contains(l.aggregates, aggregate) {
		l.aggregates = append(l.aggregates, aggregate)
	}
}

func (p *tilePlan) empty() *entityTiles {
	e := &entityTiles{levels: make([][]tile, len(p.levels)), sets: make([]tileSet, len(p.sets))}
	for i := range e.sets {
		e.sets[i] = tileSet{}
	}
	return e
}

// floorDiv is how many whole hops a time is after 1970.
func floorDiv(at, hop int64) int64 {
	n := at / hop
	if at%hop < 0 {
		n--
	}
	return n
}

// begins is when the window begins that is seen at a time: the hop that holds that time less the window.
func begins(at int64, window time.Duration) int64 {
	hop := feature.Hop(window).Microseconds()
	return floorDiv(at-window.Microseconds(), hop) * hop
}

// trim drops what no window can need from now on, which is in microseconds since 1970.
func (p *tilePlan) trim(e *entityTiles, now int64) {
	now -= tileSkew.Microseconds()
	for l, level := range p.levels {
		e.levels[l] = slices.DeleteFunc(e.levels[l], func(t tile) bool { return t.number < floorDiv(now-level.window, level.hop) })
	}
	for s, set := range p.sets {
		from := begins(now, set.window)
		for value, number := range e.sets[s] {
			if number*set.hop < from {
				delete(e.sets[s], value)
			}
		}
		e.sets[s].bound()
	}
}

// needed reports whether an event of that time can be in a window from now on.
func (p *tilePlan) needed(event, now int64) bool {
	return event >= now-tileSkew.Microseconds()-p.widest
}

// expiry is when an entity's string may go, in milliseconds since 1970: a second after its newest event is in no window.
func (p *tilePlan) expiry(e *entityTiles) int64 {
	return floorDiv(e.newest+p.widest, 1000) + 1001
}

// value is a feature over one of its aggregate's windows, as of now in microseconds since 1970.
func (p *tilePlan) value(e *entityTiles, aggregate int, window time.Duration, now int64) (text string, null bool) {
	a, from := &p.aggregates[aggregate], begins(now, window)
	if a.fn == feature.Distinct {
		s := slices.IndexFunc(p.sets, func(s tileSetPlan) bool { return s.aggregate == aggregate })
		n := int64(0)
		for _, number := range e.sets[s] {
			if number*p.sets[s].hop >= from {
				n++
			}
		}
		return cellText(feature.Type{Kind: feature.Int64}, wholeBytes(n)), n > feature.DistinctMax
	}
	hop := feature.Hop(window).Microseconds()
	l := slices.IndexFunc(p.levels, func(l tileLevel) bool { return l.hop == hop })
	k := slices.Index(p.levels[l].aggregates, aggregate)
	var sum partial
	for i := range e.levels[l] {
		if t := &e.levels[l][i]; t.number >= from/hop {
			a.merge(&sum, &t.partials[k])
		}
	}
	return a.result(&sum)
}

// tileRows reads the events of a batch.
type tileRows struct {
	keys, columns, conditions []arrow.Array
	eventTime, sequence       arrow.Array
	topic, partition, offset  arrow.Array
	hashes                    map[string]uint32
}

func conditionColumn(i int) string { return fmt.Sprintf("loam_condition_%d", i) }

// selection is what is needed of a log row.
func (p *tilePlan) selection() sql.Fragment {
	names := slices.Clone(p.joins)
	for _, c := range append([]string{
		feature.ColEventTime, feature.ColSequence, feature.ColTopic, feature.ColPartition, feature.ColOffset,
	}, p.columns...) {
		place(&names, c)
	}
	items := []sql.Fragment{sql.Idents("", names)}
	for i, where := range p.conditions {
		items = append(items, sql.Try(where, "BOOLEAN")+" AS "+sql.Ident(conditionColumn(i)))
	}
	return sql.Join(", ", items)
}

func (p *tilePlan) rows(batch arrow.RecordBatch) (*tileRows, error) {
	var failed error
	must := func(name string) arrow.Array {
		if found := batch.Schema().FieldIndices(name); len(found) == 1 {
			return batch.Column(found[0])
		}
		failed = fmt.Errorf("the rows of stream %s have no column %s", p.stream.Name, name)
		return nil
	}
	all := func(names []string) (columns []arrow.Array) {
		for _, name := range names {
			columns = append(columns, must(name))
		}
		return columns
	}
	r := &tileRows{
		keys: all(p.joins), columns: all(p.columns), eventTime: must(feature.ColEventTime), sequence: must(feature.ColSequence),
		topic: must(feature.ColTopic), partition: must(feature.ColPartition), offset: must(feature.ColOffset), hashes: map[string]uint32{},
	}
	for i := range p.conditions {
		r.conditions = append(r.conditions, must(conditionColumn(i)))
	}
	return r, failed
}

// key gives the join keys of a row as text; false where one is null, which is an event of no entity.
func (r *tileRows) key(row int) ([]string, bool) {
	values := make([]string, len(r.keys))
	for i, k := range r.keys {
		if k.IsNull(row) {
			return nil, false
		}
		values[i] = keyText(k, row)
	}
	return values, true
}

func (r *tileRows) order(row int) feature.Order {
	topic := r.topic.(*array.String).Value(row)
	hash, ok := r.hashes[topic]
	if !ok {
		hash = feature.TopicHash(topic)
		r.hashes[strings.Clone(topic)] = hash
	}
	o := feature.Order{
		EventTime: int64(r.eventTime.(*array.Timestamp).Value(row)), Live: feature.Live(topic), TopicHash: hash,
		Partition: int32(r.partition.(*array.Int64).Value(row)), Offset: r.offset.(*array.Int64).Value(row),
	}
	if r.sequence.IsValid(row) {
		o.HasSequence, o.Sequence = true, r.sequence.(*array.Int64).Value(row)
	}
	return o
}

// add takes one event into an entity's tiles, unless no window can need it from now on.
func (p *tilePlan) add(e *entityTiles, r *tileRows, row int, at *feature.Order, now int64) {
	if !e.known || at.EventTime > e.newest {
		e.newest, e.known = at.EventTime, true
	}
	if !p.needed(at.EventTime, now) {
		return
	}
	takes := func(a *tileAggregate) (string, bool) {
		if a.condition >= 0 {
			if c := r.conditions[a.condition].(*array.Boolean); c.IsNull(row) || !c.Value(row) {
				return "", false
			}
		}
		if a.column < 0 {
			return "", true
		}
		return cell(r.columns[a.column], row)
	}
	for l, level := range p.levels {
		var t *tile
		for k, i := range level.aggregates {
			a := &p.aggregates[i]
			value, taken := takes(a)
			if !taken {
				continue
			}
			if t == nil {
				t = e.tile(l, floorDiv(at.EventTime, level.hop), len(level.aggregates))
			}
			a.add(&t.partials[k], value, at)
		}
	}
	for s, set := range p.sets {
		a := &p.aggregates[set.aggregate]
		if value, taken := takes(a); taken {
			e.sets[s].see(distinctCell(a.of, value), floorDiv(at.EventTime, set.hop))
		}
	}
}
