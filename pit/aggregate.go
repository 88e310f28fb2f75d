package pit

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/numeric"
)

// accumulator holds the partial values of one aggregate at the nodes of a [forest].
type accumulator interface {
	// bind takes the aggregate's column of the next batch of events; nil where it has none.
	bind(column arrow.Array)
	// add takes events of the batch into nodes. at tells of every row of the batch where it stands in the order, where the aggregate
	// goes by it.
	add(h hits, at []change)
	// push merges a node into another.
	push(from, to int32)
	// column gives the values at the leaves of each slot, null where there is none.
	column(f *forest) arrow.Array
}

// hits are events of a batch and nodes that they fall to: that of row rows[i] to nodes[i]. An aggregate takes those of a batch one after
// the other, for its nodes alone fit into a processor's cache.
type hits struct{ nodes, rows []int32 }

func (h *hits) clear() { h.nodes, h.rows = h.nodes[:0], h.rows[:0] }

// fall appends an event that falls to an entity's slots from first to before end.
func (h *hits) fall(f *forest, entity int64, first, end, row int32) {
	h.nodes = f.cover(h.nodes, entity, first, end)
	for len(h.rows) < len(h.nodes) {
		h.rows = append(h.rows, row)
	}
}

// where appends those of other hits whose row holds.
func (h *hits) where(of hits, holds *array.Boolean) {
	for i, row := range of.rows {
		if holds.IsValid(int(row)) && holds.Value(int(row)) {
			h.nodes, h.rows = append(h.nodes, of.nodes[i]), append(h.rows, row)
		}
	}
}

// losing is an accumulator whose values may be null though there is something to aggregate: a sum that its type can't hold, or
// more distinct values than are counted.
type losing interface {
	// lost is how many of the values that column gave are null for that.
	lost() int64
}

// lost is how many values of an accumulator's column are null though there is something to aggregate.
func lost(a accumulator) int64 {
	if l, ok := a.(losing); ok {
		return l.lost()
	}
	return 0
}

// accumulatorOf makes the accumulator of an aggregate function over a column of the type. Integers, bools, dates and timestamps
// come as 64-bit integers, and go as such.
func accumulatorOf(fn feature.Fn, t feature.Type, nodes int) accumulator {
	if fn == feature.Count {
		return &counter{counts: make([]int64, nodes)}
	}
	switch t.Kind {
	case feature.Double:
		switch fn {
		case feature.Sum, feature.Avg:
			return &doubleSum{sums: make([]float64, nodes), counts: make([]int64, nodes), mean: fn == feature.Avg}
		case feature.Distinct:
			return newDistinct(nodes, doubleValues{}, distinctDouble)
		}
		return picked(fn, nodes, doubleValues{}, numeric.CompareDoubles)
	case feature.Decimal:
		switch fn {
		case feature.Sum, feature.Avg:
			return &exactSum{sums: make([]numeric.Wide, nodes), counts: make([]int64, nodes), mean: fn == feature.Avg, decimal: true, scale: int32(t.Scale)}
		case feature.Distinct:
			return newDistinct(nodes, &decimalValues{}, same[decimal128.Num])
		}
		return picked(fn, nodes, &decimalValues{precision: int32(t.Precision), scale: int32(t.Scale)}, decimal128.Num.Cmp)
	case feature.String, feature.JSON:
		if fn == feature.Distinct {
			return newDistinct(nodes, stringValues{}, strings.Clone)
		}
		return picked(fn, nodes, stringValues{}, cmp.Compare[string])
	}
	switch fn {
	case feature.Sum, feature.Avg:
		return &exactSum{sums: make([]numeric.Wide, nodes), counts: make([]int64, nodes), mean: fn == feature.Avg}
	case feature.Distinct:
		return newDistinct(nodes, intValues{}, same[int64])
	}
	return picked(fn, nodes, intValues{}, cmp.Compare[int64])
}

// counter counts events, or those with a value.
type counter struct {
	counts []int64
	values arrow.Array
}

func (c *counter) bind(column arrow.Array) { c.values = column }
func (c *counter) push(from, to int32)     { c.counts[to] += c.counts[from] }

func (c *counter) add(h hits, _ []change) {
	for i, node := range h.nodes {
		if c.values == nil || c.values.IsValid(int(h.rows[i])) {
			c.counts[node]++
		}
	}
}

func (c *counter) column(f *forest) arrow.Array {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	f.leaves(func(node int32) { b.Append(c.counts[node]) })
	return b.NewArray()
}

// exactSum sums integers and decimals without rounding; a sum that its type can't hold is null.
type exactSum struct {
	sums     []numeric.Wide
	counts   []int64
	mean     bool // the average is asked for
	decimal  bool
	scale    int32
	ints     *array.Int64
	decimals *array.Decimal128
	over     int64 // sums that didn't fit
}

func (s *exactSum) lost() int64 { return s.over }

func (s *exactSum) bind(column arrow.Array) {
	if s.decimal {
		s.decimals = column.(*array.Decimal128)
	} else {
		s.ints = column.(*array.Int64)
	}
}

func (s *exactSum) add(h hits, _ []change) {
	for i, node := range h.nodes {
		row := int(h.rows[i])
		switch {
		case s.decimal && s.decimals.IsValid(row):
			v := s.decimals.Value(row)
			s.sums[node].Add(numeric.WideOf(v.LowBits(), v.HighBits()))
		case !s.decimal && s.ints.IsValid(row):
			v := s.ints.Value(row)
			s.sums[node].Add(numeric.WideOf(uint64(v), v>>63))
		default:
			continue
		}
		s.counts[node]++
	}
}

func (s *exactSum) push(from, to int32) {
	s.sums[to].Add(s.sums[from])
	s.counts[to] += s.counts[from]
}

func (s *exactSum) column(f *forest) arrow.Array {
	if s.mean {
		b := array.NewFloat64Builder(memory.DefaultAllocator)
		defer b.Release()
		f.leaves(func(node int32) {
			if n := s.counts[node]; n > 0 {
				b.Append(s.sums[node].Float64() / math.Pow10(int(s.scale)) / float64(n))
			} else {
				b.AppendNull()
			}
		})
		return b.NewArray()
	}
	if s.decimal {
		b := array.NewDecimal128Builder(memory.DefaultAllocator, &arrow.Decimal128Type{Precision: 38, Scale: s.scale})
		defer b.Release()
		f.leaves(func(node int32) {
			switch v, ok := s.sums[node].Decimal(); {
			case s.counts[node] == 0:
				b.AppendNull()
			case !ok:
				s.over++
				b.AppendNull()
			default:
				b.Append(v)
			}
		})
		return b.NewArray()
	}
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	f.leaves(func(node int32) {
		switch v, ok := s.sums[node].Int64(); {
		case s.counts[node] == 0:
			b.AppendNull()
		case !ok:
			s.over++
			b.AppendNull()
		default:
			b.Append(v)
		}
	})
	return b.NewArray()
}

// doubleSum sums doubles. Parts are only ever added, so that an error stays one of the sum of their magnitudes.
type doubleSum struct {
	sums   []float64
	counts []int64
	mean   bool
	values *array.Float64
}

func (s *doubleSum) bind(column arrow.Array) { s.values = column.(*array.Float64) }

func (s *doubleSum) add(h hits, _ []change) {
	for i, node := range h.nodes {
		if row := int(h.rows[i]); s.values.IsValid(row) {
			s.sums[node] += s.values.Value(row)
			s.counts[node]++
		}
	}
}

func (s *doubleSum) push(from, to int32) {
	s.sums[to] += s.sums[from]
	s.counts[to] += s.counts[from]
}

func (s *doubleSum) column(f *forest) arrow.Array {
	b := array.NewFloat64Builder(memory.DefaultAllocator)
	defer b.Release()
	f.leaves(func(node int32) {
		switch n := s.counts[node]; {
		case n == 0:
			b.AppendNull()
		case s.mean:
			b.Append(s.sums[node] / float64(n))
		default:
			b.Append(s.sums[node])
		}
	})
	return b.NewArray()
}

// values reads and writes the values of a column of one type.
type values[T any] interface {
	// all gives the values of a column, of nulls any, until its batch is gone; in the room of into, if it needs some.
	all(column arrow.Array, into []T) []T
	builder() array.Builder
	append(b array.Builder, v T)
	// keep gives a value that stays when its batch is gone.
	keep(v T) T
}

type (
	intValues     struct{}
	doubleValues  struct{}
	stringValues  struct{}
	decimalValues struct{ precision, scale int32 }
)

func (intValues) all(c arrow.Array, _ []int64) []int64 { return c.(*array.Int64).Int64Values() }
func (intValues) builder() array.Builder               { return array.NewInt64Builder(memory.DefaultAllocator) }
func (intValues) append(b array.Builder, v int64)      { b.(*array.Int64Builder).Append(v) }
func (intValues) keep(v int64) int64                   { return v }
func (doubleValues) all(c arrow.Array, _ []float64) []float64 {
	return c.(*array.Float64).Float64Values()
}
func (doubleValues) builder() array.Builder {
	return array.NewFloat64Builder(memory.DefaultAllocator)
}
func (doubleValues) append(b array.Builder, v float64) { b.(*array.Float64Builder).Append(v) }
func (doubleValues) keep(v float64) float64            { return v }
func (stringValues) all(c arrow.Array, into []string) []string {
	strings := c.(*array.String)
	for row := range strings.Len() {
		into = append(into, strings.Value(row))
	}
	return into
}
func (stringValues) builder() array.Builder           { return array.NewStringBuilder(memory.DefaultAllocator) }
func (stringValues) append(b array.Builder, v string) { b.(*array.StringBuilder).Append(v) }
func (stringValues) keep(v string) string             { return strings.Clone(v) }
func (*decimalValues) all(c arrow.Array, _ []decimal128.Num) []decimal128.Num {
	return c.(*array.Decimal128).Values()
}
func (d *decimalValues) builder() array.Builder {
	return array.NewDecimal128Builder(memory.DefaultAllocator, &arrow.Decimal128Type{Precision: d.precision, Scale: d.scale})
}
func (*decimalValues) append(b array.Builder, v decimal128.Num) {
	b.(*array.Decimal128Builder).Append(v)
}
func (*decimalValues) keep(v decimal128.Num) decimal128.Num { return v }

// pick keeps of the values one: the least or the greatest, or the first or the last in the order.
type pick[T any, V values[T]] struct {
	how     V
	compare func(a, b T) int
	last    bool     // the greatest or the last is kept
	best    []T      // by node
	there   []bool   // by node: whether there is one
	orders  []change // by node: where it stands in the order; nil where that doesn't count
	of      arrow.Array
	values  []T // of the batch
}

func picked[T any, V values[T]](fn feature.Fn, nodes int, how V, compare func(a, b T) int) accumulator {
	p := &pick[T, V]{how: how, compare: compare, best: make([]T, nodes), there: make([]bool, nodes), last: fn == feature.Max || fn == feature.Last}
	if fn == feature.First || fn == feature.Last {
		p.orders = make([]change, nodes)
	}
	return p
}

func (p *pick[T, V]) bind(column arrow.Array) {
	p.of, p.values = column, p.how.all(column, p.values[:0])
}

func (p *pick[T, V]) add(h hits, at []change) {
	var order *change
	for i, node := range h.nodes {
		row := h.rows[i]
		if p.of.IsNull(int(row)) {
			continue
		}
		if p.orders != nil {
			order = &at[row]
		}
		if v := p.values[row]; p.better(node, v, order) {
			p.best[node], p.there[node] = p.how.keep(v), true
			if p.orders != nil {
				p.orders[node] = *order
			}
		}
	}
}

// better reports whether a value is to be kept in place of a node's.
func (p *pick[T, V]) better(node int32, v T, at *change) bool {
	switch {
	case !p.there[node]:
		return true
	case p.orders == nil && p.last:
		return p.compare(v, p.best[node]) > 0
	case p.orders == nil:
		return p.compare(v, p.best[node]) < 0
	case p.last:
		return at.above(&p.orders[node])
	default:
		return p.orders[node].above(at)
	}
}

func (p *pick[T, V]) push(from, to int32) {
	if !p.there[from] {
		return
	}
	var at *change
	if p.orders != nil {
		at = &p.orders[from]
	}
	if p.better(to, p.best[from], at) {
		p.best[to], p.there[to] = p.best[from], true
		if p.orders != nil {
			p.orders[to] = *at
		}
	}
}

func (p *pick[T, V]) column(f *forest) arrow.Array {
	b := p.how.builder()
	defer b.Release()
	f.leaves(func(node int32) {
		if p.there[node] {
			p.how.append(b, p.best[node])
		} else {
			b.AppendNull()
		}
	})
	return b.NewArray()
}

// distinct counts the different values of a node by their numbers. Sets aren't pushed down, for a hot entity's would be copied
// to each of its labels: the counts are made on one walk over the tree, which takes up a node's values and leaves them.
type distinct[T any, V values[T], K comparable] struct {
	how     V
	key     func(T) K
	numbers map[K]int32
	sets    [][]int32 // by node: ascending numbers; one more than feature.DistinctMax stand for any more
	of      arrow.Array
	values  []T   // of the batch
	over    int64 // counts beyond the bound
}

func newDistinct[T any, V values[T], K comparable](nodes int, how V, key func(T) K) accumulator {
	return &distinct[T, V, K]{how: how, key: key, numbers: map[K]int32{}, sets: make([][]int32, nodes)}
}

func same[T any](v T) T { return v }

func distinctDouble(v float64) uint64 { return math.Float64bits(numeric.SameDouble(v)) }

func (d *distinct[T, V, K]) push(_, _ int32) {}
func (d *distinct[T, V, K]) lost() int64     { return d.over }

func (d *distinct[T, V, K]) bind(column arrow.Array) {
	d.of, d.values = column, d.how.all(column, d.values[:0])
}

func (d *distinct[T, V, K]) add(h hits, _ []change) {
	for i, node := range h.nodes {
		row := h.rows[i]
		if d.of.IsNull(int(row)) {
			continue
		}
		v := d.values[row]
		number, known := d.numbers[d.key(v)]
		if !known {
			number = int32(len(d.numbers))
			d.numbers[d.key(d.how.keep(v))] = number
		}
		set := d.sets[node]
		if at, in := slices.BinarySearch(set, number); !in && len(set) <= feature.DistinctMax {
			d.sets[node] = slices.Insert(set, at, number)
		}
	}
}

func (d *distinct[T, V, K]) column(f *forest) arrow.Array {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	counts := make([]int64, len(f.slots.bounds))
	times := make([]int32, len(d.numbers)) // how often a number is on the way from the root
	here := int64(0)
	f.walk(func(node int32, enter bool) {
		for _, number := range d.sets[node] {
			if enter {
				if times[number]++; times[number] == 1 {
					here++
				}
			} else if times[number]--; times[number] == 0 {
				here--
			}
		}
	}, func(slot int32) { counts[slot] = here })
	for _, n := range counts {
		if n > feature.DistinctMax {
			d.over++
			b.AppendNull()
		} else {
			b.Append(n)
		}
	}
	return b.NewArray()
}
