package pit

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// historyWindowed makes the feature table of a view over a state stream whose aggregates are over history. Versions are derived
// from the changes that the label sees, as the history's are from all: by the clock `event` they are a beginning of the history,
// by the clock `served` the history as it was known, which late changes have made another since. What was known changes by two
// neighbours for each change that comes ([followers]), and each pair of them is seen by a range of its entity's labels. So what a
// change costs grows with the logarithm of its entity's labels and changes, however late it came.
func (b *build) historyWindowed(ctx context.Context, j *viewJob) error {
	s, err := b.slotsOf(ctx, j)
	if err != nil {
		return err
	}
	log := "log_" + j.view.Name
	if err := j.reading.LogView(ctx, b.db, log, nil, false); err != nil {
		return err
	}
	w := historyPlan{job: j, slots: s, served: b.request.AsOf != feature.EventClock}
	w.plan()
	d := newDiffer(s, 0)
	if j.stream.Payload == feature.PatchPayload {
		err = b.patchedHistory(ctx, &w, log, d)
	} else {
		err = w.read(ctx, b.db, sql.Render(sql.Statement("pit_history_changes"), sql.Args{
			"log": sql.Ident(log), "entities": sql.Ident(s.entities), "key": key("g.", j.entity.JoinKeys, j.stream),
			"present": notNull("g.", j.entity.JoinKeys), "recorded": b.recorded(), "items": w.items(), "names": w.names(),
		}), d)
	}
	if err != nil {
		return err
	}
	d.rows(b.differs)
	if err := w.write(ctx, b.db); err != nil {
		return err
	}
	return b.audit(ctx, j.featureTable())
}

// read derives what labels see from the changes that a statement gives, and has d, if there is one, count them.
func (w *historyPlan) read(ctx context.Context, db *sql.DB, statement string, d *differ) error {
	one := history{entity: -1}
	err := db.Batches(ctx, statement, func(batch arrow.RecordBatch) error {
		entities, event, ingested := int64s(batch.Column(0)), int64s(batch.Column(1)), int64s(batch.Column(2))
		for i, e := range entities {
			if e != one.entity {
				w.derive(&one)
				one.begin(e)
			}
			if d != nil {
				d.take(e, event[i], ingested[i])
			}
			one.add(w, batch, i, event[i], ingested[i])
		}
		return nil
	})
	if err == nil {
		w.derive(&one)
	}
	return err
}

// history is what windows over history need of the changes of one entity, in their order.
type history struct {
	entity       int64
	event, clock []int64 // microseconds
	deleted      []bool
	holds        [][]bool  // by aggregate, whether its condition is true
	states       [][]int64 // by state, a number that two changes share if what is looked at is the same
}

func (h *history) begin(entity int64) {
	h.entity = entity
	h.event, h.clock, h.deleted = h.event[:0], h.clock[:0], h.deleted[:0]
	for i := range h.holds {
		h.holds[i] = h.holds[i][:0]
	}
	for i := range h.states {
		h.states[i] = h.states[i][:0]
	}
}

// add takes a change from a row of a batch.
func (h *history) add(w *historyPlan, batch arrow.RecordBatch, row int, event, ingested int64) {
	if h.holds == nil {
		h.holds, h.states = make([][]bool, len(w.aggregates)), make([][]int64, len(w.states))
	}
	clock := ingested
	if !w.served {
		clock = event
	}
	h.event, h.clock = append(h.event, event), append(h.clock, clock)
	h.deleted = append(h.deleted, batch.Column(3).(*array.Boolean).Value(row))
	for i := range h.holds {
		h.holds[i] = append(h.holds[i], batch.Column(4+i).(*array.Boolean).Value(row))
	}
	for i := range h.states {
		h.states[i] = append(h.states[i], int64s(batch.Column(4 + len(h.holds) + i))[row])
	}
}

// historyPlan says which aggregates of a view over history are asked for, and gathers them.
type historyPlan struct {
	job        *viewJob
	slots      *slots
	served     bool // whether the clock is that
	features   []historyFeature
	aggregates []int    // theirs, numbers in the view, distinct
	states     []string // columns whose changes they count, distinct; "" for all that are tracked
	newest     peaks    // the clock's time of the newest change that is seen
}

// historyFeature is an aggregate over one of its windows.
type historyFeature struct {
	name      string
	fn        feature.Fn
	aggregate int        // in the plan's
	state     int        // in the plan's; -1 for a time in a state
	span      windowSpan // without a window for days since a change
	sums      stays      // of changes, which are counted, and of time in a state
	last      peaks      // of days since a change: when the last version began
}

func (w *historyPlan) plan() {
	add := func(name string, i int, window time.Duration) {
		if !slices.Contains(w.job.features, name) {
			return
		}
		a := w.job.view.Aggregates[i]
		f := historyFeature{name: name, fn: a.Fn, state: -1, span: windowSpan{window: window.Microseconds()}}
		if window > 0 {
			f.span.hop = feature.Hop(window).Microseconds()
		}
		if f.aggregate = slices.Index(w.aggregates, i); f.aggregate < 0 {
			f.aggregate, w.aggregates = len(w.aggregates), append(w.aggregates, i)
		}
		if a.Fn != feature.TimeInState {
			if f.state = slices.Index(w.states, a.Column); f.state < 0 {
				f.state, w.states = len(w.states), append(w.states, a.Column)
			}
		}
		if a.Fn == feature.DaysSinceChange {
			f.last = newPeaks(w.slots)
		} else {
			f.sums = newStays(w.slots, a.Fn == feature.TimeInState)
		}
		w.features = append(w.features, f)
	}
	for i, a := range w.job.view.Aggregates {
		if a.Fn == feature.DaysSinceChange {
			add(a.Name, i, 0)
		}
		for _, window := range a.Windows {
			add(a.FeatureName(window), i, window)
		}
	}
	w.newest = newPeaks(w.slots)
}

// items are the conditions and the states, each of a change.
func (w *historyPlan) items() sql.Fragment {
	var items []sql.Fragment
	for n, i := range w.aggregates {
		condition := sql.Fragment("true")
		if where := w.job.view.Aggregates[i].Where; where != "" {
			condition = "coalesce(" + sql.Try(where, "BOOLEAN") + ", false)"
		}
		items = append(items, condition+sql.Fragment(fmt.Sprintf(" AS loam_holds_%d", n)))
	}
	for n, column := range w.states {
		items = append(items, w.state(column)+sql.Fragment(fmt.Sprintf(" AS loam_state_%d", n)))
	}
	return sql.Join(", ", items)
}

// state is a number of what is looked at in a change: a column, or else all that are tracked, those that the stream had in former
// definitions included. Null equals null there, and NaN equals NaN.
func (w *historyPlan) state(column string) sql.Fragment {
	columns := w.stateColumns(column)
	if len(columns) == 0 {
		return "0::BIGINT"
	}
	return "dense_rank() OVER (PARTITION BY loam_entity ORDER BY " + sql.Idents("", columns) + ")"
}

// stateColumns are those of a state.
func (w *historyPlan) stateColumns(column string) []string {
	if column != "" {
		return []string{column}
	}
	var columns []string
	for _, c := range w.job.reading.Stream.Columns {
		if w.job.reading.Stream.Tracked(c.Name) {
			columns = append(columns, c.Name)
		}
	}
	return columns
}

// names are those of the items.
func (w *historyPlan) names() sql.Fragment {
	var names []sql.Fragment
	for n := range w.aggregates {
		names = append(names, sql.Fragment(fmt.Sprintf("v.loam_holds_%d", n)))
	}
	for n := range w.states {
		names = append(names, sql.Fragment(fmt.Sprintf("v.loam_state_%d", n)))
	}
	return sql.Join(", ", names)
}

// derive gives the labels of an entity what they see of its history.
func (w *historyPlan) derive(h *history) {
	if h.entity < 0 {
		return
	}
	followers(h.event, h.clock, func(first, second int32, from, to int64) { w.pair(h, first, second, from, to) })
}

// pair gives the labels to which it is known, from a time on and before another, that a change follows another what comes of that:
// the second may begin a version, and the first stands until then. -1 is none, before the first change and after the last.
func (w *historyPlan) pair(h *history, first, second int32, from, to int64) {
	begin, end := w.slots.from(h.entity, from), w.slots.starts[h.entity+1]
	if to != forever {
		end = w.slots.from(h.entity, to)
	}
	if begin >= end {
		return
	}
	if second >= 0 {
		w.newest.raise(h.entity, begin, end, h.clock[second])
	}
	for i := range w.features {
		f := &w.features[i]
		switch {
		case f.fn == feature.TimeInState:
			if first >= 0 && !h.deleted[first] && h.holds[f.aggregate][first] {
				until := int64(forever)
				if second >= 0 {
					until = h.event[second]
				}
				f.stand(w.slots, h.entity, begin, end, h.event[first], until)
			}
		case second < 0 || h.deleted[second] || !h.holds[f.aggregate][second]:
		case first >= 0 && !h.deleted[first] && h.states[f.state][first] == h.states[f.state][second]:
		case f.fn == feature.DaysSinceChange:
			f.last.raise(h.entity, begin, end, h.event[second])
		default:
			at := h.event[second]
			f.sums.add(begin, min(end, w.slots.from(h.entity, f.span.leaves(at)-w.slots.early)), 1)
		}
	}
}

// stand adds to the labels from begin to before end the part of the time from one event to another that is in their windows and
// not after them.
func (f *historyFeature) stand(s *slots, entity int64, begin, end int32, from, until int64) {
	begin = max(begin, s.from(entity, from+1-s.early)) // the first label after it has begun
	past := end
	if until != forever {
		end = min(end, s.from(entity, f.span.leaves(until-1)-s.early)) // the first whose window begins when it has ended
		past = s.from(entity, until-s.early)                           // the first after it has ended
		f.sums.add(max(begin, past), end, until)
	}
	f.sums.addTimes(begin, min(end, past), 1)
	cut := s.from(entity, f.span.leaves(from)-s.early) // the first whose window begins after it has
	f.sums.add(begin, min(end, cut), -from)
	f.sums.addFloors(max(begin, cut), end, -1)
}

// stays sum numbers over ranges of labels, and of a time in a state how often a label's own time and the beginning of its window
// are added: each is noted where a range begins and where it ends. Sums that wrap around on the way come out right.
type stays struct{ numbers, times, floors []int64 }

func newStays(s *slots, timed bool) stays {
	n := len(s.bounds) + 1
	if !timed {
		return stays{numbers: make([]int64, n)}
	}
	return stays{make([]int64, n), make([]int64, n), make([]int64, n)}
}

func (s *stays) add(begin, end int32, v int64)       { spread(s.numbers, begin, end, v) }
func (s *stays) addTimes(begin, end int32, v int64)  { spread(s.times, begin, end, v) }
func (s *stays) addFloors(begin, end int32, v int64) { spread(s.floors, begin, end, v) }

func spread(steps []int64, begin, end int32, v int64) {
	if begin < end {
		steps[begin] += v
		steps[end] -= v
	}
}

// peaks keep the greatest of the numbers that ranges of labels are given, at the nodes of a [forest].
type peaks struct {
	forest
	most  []int64 // by node; none is least
	nodes []int32
}

const none = math.MinInt64

func newPeaks(s *slots) peaks {
	p := peaks{forest: forest{s}}
	p.most = make([]int64, p.forest.nodes())
	for i := range p.most {
		p.most[i] = none
	}
	return p
}

func (p *peaks) raise(entity int64, begin, end int32, v int64) {
	p.nodes = p.cover(p.nodes[:0], entity, begin, end)
	for _, node := range p.nodes {
		p.most[node] = max(p.most[node], v)
	}
}

// each calls use with the greatest number of every label, none where it was given none.
func (p *peaks) each(use func(slot int32, v int64)) {
	s := p.slots
	for e := range len(s.starts) - 1 {
		base, n := s.starts[e], s.starts[e+1]-s.starts[e]
		for node := int32(2); node < 2*n; node++ { // parents come first
			p.most[2*base+node] = max(p.most[2*base+node], p.most[2*base+node/2])
		}
		for i := range n {
			use(base+i, p.most[2*base+n+i])
		}
	}
}

// write makes the feature table of the view: label_row, loam_time and the features.
func (w *historyPlan) write(ctx context.Context, db *sql.DB) error {
	rows := array.NewInt64Builder(memory.DefaultAllocator)
	defer rows.Release()
	rows.AppendValues(w.slots.rows, nil)
	fields := []arrow.Field{{Name: "label_row", Type: arrow.PrimitiveTypes.Int64}, {Name: "loam_time", Type: arrow.PrimitiveTypes.Int64, Nullable: true}}
	newest := array.NewInt64Builder(memory.DefaultAllocator)
	defer newest.Release()
	w.newest.each(func(_ int32, v int64) {
		if v == none {
			newest.AppendNull()
		} else {
			newest.Append(v)
		}
	})
	columns := []arrow.Array{rows.NewArray(), newest.NewArray()}
	items := []sql.Fragment{"label_row", "make_timestamptz(loam_time) AS loam_time"}
	for i := range w.features {
		f := &w.features[i]
		column := f.column(w.slots)
		columns = append(columns, column)
		fields = append(fields, arrow.Field{Name: f.name, Type: column.DataType(), Nullable: true})
		items = append(items, sql.Ident(f.name))
	}
	schema := arrow.NewSchema(fields, nil)
	batch := array.NewRecordBatch(schema, columns, int64(len(w.slots.rows)))
	defer batch.Release()
	for _, c := range columns {
		c.Release()
	}
	if err := db.ImportBatches(ctx, "aggregated", schema, []arrow.RecordBatch{batch}); err != nil {
		return err
	}
	return db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {table} AS SELECT {items} FROM aggregated; DROP TABLE aggregated",
		sql.Args{"table": sql.Ident(w.job.featureTable()), "items": sql.Join(", ", items)}))
}

// column gives the values of a feature, by slot.
func (f *historyFeature) column(s *slots) arrow.Array {
	doubles := array.NewFloat64Builder(memory.DefaultAllocator)
	defer doubles.Release()
	switch f.fn {
	case feature.DaysSinceChange:
		f.last.each(func(slot int32, v int64) {
			if v == none {
				doubles.AppendNull()
			} else {
				doubles.Append(float64(max(0, s.time(slot)-v)) / 86400e6)
			}
		})
	case feature.TimeInState:
		var number, times, floors int64
		for slot := range s.bounds {
			number, times, floors = number+f.sums.numbers[slot], times+f.sums.times[slot], floors+f.sums.floors[slot]
			at := s.time(int32(slot))
			doubles.Append(float64(number+times*at+floors*f.span.begins(at)) / 1e6)
		}
	default:
		counts := array.NewInt64Builder(memory.DefaultAllocator)
		defer counts.Release()
		n := int64(0)
		for slot := range s.bounds {
			n += f.sums.numbers[slot]
			counts.Append(n)
		}
		return counts.NewArray()
	}
	return doubles.NewArray()
}

// begins is where the window of a label begins: at the hop that holds the label's time less the window.
func (s *windowSpan) begins(at int64) int64 {
	from := at - s.window
	return from - ((from%s.hop)+s.hop)%s.hop
}
