package verify

import (
	"context"
	"fmt"
	"math"
	"math/big"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// sees reports whether a label at the time at may see a change, by the clock of the card.
func (c *datasetCheck) sees(r *logged, at int64) bool {
	clock := r.ingested
	if c.card.Request.AsOf == string(feature.EventClock) {
		clock = r.at
	}
	if c.card.Request.AtLabelTime == "exclude" {
		return clock < at
	}
	return clock <= at
}

// attributes recomputes an attribute view: of the changes that bear on a feature and that the label sees, the last in the
// order, unless it is a delete or older than the view's ttl.
func (v *viewCheck) attributes(ctx context.Context, labels []*label, changes map[string][]*logged) ([][]wanted, error) {
	chosen := make([][]*logged, len(labels)) // by label and feature
	needed := map[int]*logged{}
	for i, l := range labels {
		chosen[i] = make([]*logged, len(v.features))
		if l.at == nil {
			continue
		}
		for n, f := range v.features {
			last := v.last(changes[l.key], *l.at, v.feature(f.name).Column)
			if last == nil || last.deleted || v.view.TTL > 0 && *l.at-last.at > v.view.TTL.Microseconds() {
				continue
			}
			chosen[i][n], needed[last.number] = last, last
		}
	}
	rows := make([]*logged, 0, len(needed))
	for _, r := range needed {
		rows = append(rows, r)
	}
	expressions := make([]sql.Fragment, len(v.features))
	for n, f := range v.features {
		expressions[n] = sql.Try(v.feature(f.name).Expr(), f.typ.SQL())
	}
	values, err := v.evaluate(ctx, rows, expressions)
	if err != nil {
		return nil, err
	}
	want := make([][]wanted, len(labels))
	for i := range labels {
		want[i] = make([]wanted, len(v.features))
		for n := range v.features {
			if r := chosen[i][n]; r != nil {
				want[i][n].value = values[r.number][n]
			}
		}
	}
	return want, nil
}

func (v *viewCheck) feature(name string) feature.Feature {
	return v.view.Features[slices.IndexFunc(v.view.Features, func(f feature.Feature) bool { return f.Name == name })]
}

// last is the last change that a label sees, of a patch stream among those that bear on the column.
func (v *viewCheck) last(changes []*logged, at int64, column string) *logged {
	var last *logged
	for _, r := range changes {
		if !v.sees(r, at) {
			continue
		}
		if v.stream.Payload == feature.PatchPayload && !r.deleted && !v.carries(r, column) {
			continue
		}
		if last == nil || r.after(last) {
			last = r
		}
	}
	return last
}

// carries reports whether a change of a patch stream that is no delete carried a column. Each carries the key.
func (v *viewCheck) carries(r *logged, column string) bool {
	return r.present == nil || slices.Contains(v.stream.Key, column) || slices.Contains(r.present, any(column))
}

// windows recomputes a windowed view: each aggregate over the events that the label sees, from the hop on that holds the
// window's beginning.
func (v *viewCheck) windows(ctx context.Context, labels []*label, changes map[string][]*logged) ([][]wanted, error) {
	if err := v.conditions(ctx, changes); err != nil {
		return nil, err
	}
	want := make([][]wanted, len(labels))
	for i, l := range labels {
		want[i] = make([]wanted, len(v.features))
		for n, f := range v.features {
			aggregate, window := v.aggregate(f.name)
			a := v.view.Aggregates[aggregate]
			var in []*logged
			if l.at != nil {
				from := windowStart(*l.at, window)
				for _, r := range changes[l.key] {
					if r.at >= from && v.sees(r, *l.at) && r.conditions[aggregate] == true && (a.Column == "" || r.arguments[aggregate] != nil) {
						in = append(in, r)
					}
				}
			}
			argument, _ := v.stream.Column(a.Column)
			want[i][n] = aggregated(a.Fn, in, aggregate, argument.Type, f.typ)
		}
	}
	return want, nil
}

// conditions evaluates the conditions of the aggregates on all events, and sets their arguments.
func (v *viewCheck) conditions(ctx context.Context, changes map[string][]*logged) error {
	var rows []*logged
	for _, list := range changes {
		rows = append(rows, list...)
	}
	expressions := make([]sql.Fragment, len(v.view.Aggregates))
	for i, a := range v.view.Aggregates {
		if expressions[i] = "true"; a.Where != "" {
			expressions[i] = sql.Try(a.Where, "BOOLEAN")
		}
	}
	values, err := v.evaluate(ctx, rows, expressions)
	if err != nil {
		return err
	}
	for _, r := range rows {
		r.conditions, r.arguments = values[r.number], make([]any, len(v.view.Aggregates))
		for i, a := range v.view.Aggregates {
			if n := slices.IndexFunc(v.stream.Columns, func(c feature.Column) bool { return c.Name == a.Column }); n >= 0 {
				r.arguments[i] = r.values[n]
			}
		}
	}
	return nil
}

// aggregate finds the aggregate and the window of a feature.
func (v *viewCheck) aggregate(name string) (index int, window time.Duration) {
	for i, a := range v.view.Aggregates {
		for _, w := range a.Windows {
			if a.FeatureName(w) == name {
				return i, w
			}
		}
	}
	panic("view " + v.view.Name + " has no feature " + name)
}

// windowStart is where a window that ends at a time begins: at the hop that holds the time less the window. Hops are 5
// minutes for windows below 12 hours, 1 hour below 12 days, else a day.
func windowStart(at int64, window time.Duration) int64 {
	hop := int64(5 * 60e6)
	if window >= 12*time.Hour {
		hop = 3600e6
	}
	if window >= 288*time.Hour {
		hop = 86400e6
	}
	return floorDiv(at-window.Microseconds(), hop) * hop
}

// nearness is how far sums of doubles may be apart, by the sum of what is added without signs.
const nearness = 1e-12

// distinctMax is the number of values beyond which distinct values are not counted.
const distinctMax = 10_000

// aggregated is an aggregate over events whose condition is true and whose argument, if there is one, is not null.
func aggregated(fn feature.Fn, in []*logged, aggregate int, argument, t feature.Type) wanted {
	switch fn {
	case feature.Count:
		return wanted{value: int64(len(in))}
	case feature.Distinct:
		seen := map[string]bool{}
		for _, r := range in {
			seen[distinctText(r.arguments[aggregate])] = true
		}
		if len(seen) > distinctMax {
			return wanted{}
		}
		return wanted{value: int64(len(seen))}
	}
	if len(in) == 0 {
		return wanted{}
	}
	best := in[0]
	for _, r := range in[1:] {
		v, was := r.arguments[aggregate], best.arguments[aggregate]
		switch fn {
		case feature.Min:
			if compareValues(v, was) < 0 {
				best = r
			}
		case feature.Max:
			if compareValues(v, was) > 0 {
				best = r
			}
		case feature.First:
			if best.after(r) {
				best = r
			}
		case feature.Last:
			if r.after(best) {
				best = r
			}
		}
	}
	if fn != feature.Sum && fn != feature.Avg {
		return wanted{value: best.arguments[aggregate]}
	}
	return added(fn, in, aggregate, argument, t)
}

// added is a sum or an average: exact for whole numbers and decimals, null where a sum doesn't fit its type.
func added(fn feature.Fn, in []*logged, aggregate int, argument, t feature.Type) wanted {
	exact, double, plain := new(big.Int), 0.0, 0.0
	isDouble := false
	for _, r := range in {
		switch v := r.arguments[aggregate].(type) {
		case int64:
			exact.Add(exact, big.NewInt(v))
		case *big.Int:
			exact.Add(exact, v)
		case float64:
			isDouble = true
			double += v
			plain += math.Abs(v)
		}
	}
	n := float64(len(in))
	switch {
	case isDouble && fn == feature.Sum:
		return wanted{double, nearness * plain}
	case isDouble:
		return wanted{double / n, nearness * plain / n}
	case fn == feature.Avg:
		scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(argument.Scale)), nil)
		sum, _ := new(big.Rat).SetFrac(exact, scale).Float64()
		return wanted{sum / n, nearness * math.Abs(sum) / n}
	case t.Kind == feature.Decimal:
		if most := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(t.Precision)), nil); exact.CmpAbs(most) >= 0 {
			return wanted{}
		}
		return wanted{value: exact}
	case !exact.IsInt64():
		return wanted{}
	default:
		return wanted{value: exact.Int64()}
	}
}

// distinctText is the same for values that are not distinct, and for no others of their type.
func distinctText(v any) string {
	if d, ok := v.(float64); ok {
		switch {
		case math.IsNaN(d):
			return "NaN"
		case d == 0:
			return "0"
		}
	}
	return fmt.Sprint(v)
}
