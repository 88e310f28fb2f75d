package online

import (
	"encoding/binary"
	"math"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/numeric"
)

// partial is what an aggregate knows of some events. The zero value is that of none.
type partial struct {
	n     int64        // events, or those with a value
	exact numeric.Wide // the sum of whole numbers and decimals
	sum   float64      // the sum of doubles
	there bool         // whether a value is kept
	value string       // the one that is kept, as bytes
	order feature.Order
}

func (p *partial) empty() bool { return p.n == 0 && !p.there }

// tileAggregate is an aggregate of a view as it is folded. What a distinct keeps isn't in tiles; see [tileSet].
type tileAggregate struct {
	fn        feature.Fn
	of        feature.Type // of its column; a whole number where it has none
	column    int          // in the plan's columns, or -1
	condition int          // in the plan's conditions, or -1
}

func (a *tileAggregate) sums() bool    { return a.fn == feature.Sum || a.fn == feature.Avg }
func (a *tileAggregate) ordered() bool { return a.fn == feature.First || a.fn == feature.Last }

// add takes one event into a partial. Events whose column is null are not for any aggregate but a count of rows.
func (a *tileAggregate) add(p *partial, value string, at *feature.Order) {
	switch {
	case a.fn == feature.Count:
		p.n++
	case a.sums() && a.of.Kind == feature.Double:
		p.n, p.sum = p.n+1, p.sum+doubleOf(value)
	case a.sums():
		p.n++
		p.exact.Add(readWide(value))
	default:
		a.pick(p, value, at)
	}
}

// pick keeps a value in place of the one that is kept, if it is to be.
func (a *tileAggregate) pick(p *partial, value string, at *feature.Order) {
	better := !p.there
	if p.there {
		switch a.fn {
		case feature.Min:
			better = compareCells(a.of, value, p.value) < 0
		case feature.Max:
			better = compareCells(a.of, value, p.value) > 0
		case feature.First:
			better = at.Compare(p.order) < 0
		case feature.Last:
			better = at.Compare(p.order) > 0
		}
	}
	if better {
		p.there, p.value = true, value
		if a.ordered() {
			p.order = *at
		}
	}
}

// merge takes what another partial knows of other events.
func (a *tileAggregate) merge(p, o *partial) {
	p.n, p.sum = p.n+o.n, p.sum+o.sum
	p.exact.Add(o.exact)
	if o.there {
		a.pick(p, o.value, &o.order)
	}
}

// result gives the value of the feature; null where there is none, or where its type can't hold it.
func (a *tileAggregate) result(p *partial) (text string, null bool) {
	switch {
	case a.fn == feature.Count:
		return cellText(feature.Type{Kind: feature.Int64}, wholeBytes(p.n)), false
	case a.sums() && p.n == 0:
		return "", true
	case a.fn == feature.Avg && a.of.Kind == feature.Double:
		return doubleText(p.sum / float64(p.n)), false
	case a.fn == feature.Avg:
		return doubleText(p.exact.Float64() / math.Pow10(int(a.of.Scale)) / float64(p.n)), false
	case a.fn == feature.Sum && a.of.Kind == feature.Double:
		return doubleText(p.sum), false
	case a.fn == feature.Sum && a.of.Kind == feature.Decimal:
		v, fits := p.exact.Decimal()
		if !fits {
			return "", true
		}
		return v.ToString(a.of.Scale), false
	case a.fn == feature.Sum:
		v, fits := p.exact.Int64()
		return cellText(a.of, wholeBytes(v)), !fits
	default:
		if !p.there {
			return "", true
		}
		return cellText(a.of, p.value), false
	}
}

// append writes a partial of a tile that begins at that time. The format is frozen.
func (a *tileAggregate) append(b []byte, p *partial, begins int64) []byte {
	switch {
	case a.fn == feature.Count || a.sums():
		b = binary.AppendUvarint(b, uint64(p.n))
		switch {
		case a.fn == feature.Count || p.n == 0:
		case a.of.Kind == feature.Double:
			b = append(b, doubleBytes(p.sum)...)
		default:
			b = appendText(b, wideText(p.exact))
		}
	case !p.there:
		b = append(b, 0)
	default:
		b = binary.AppendUvarint(b, uint64(len(p.value))+1)
		b = append(b, p.value...)
		if a.ordered() {
			b = appendOrder(b, &p.order, begins)
		}
	}
	return b
}

// read reads what append wrote.
func (a *tileAggregate) read(r *tileReader, p *partial, begins int64) {
	switch {
	case a.fn == feature.Count || a.sums():
		p.n = int64(r.uvarint())
		switch {
		case a.fn == feature.Count || p.n == 0:
		case a.of.Kind == feature.Double:
			if text := r.take(8); len(text) == 8 {
				p.sum = doubleOf(text)
			}
		default:
			if text := r.text(); len(text) <= wideBytes {
				p.exact = readWide(text)
			} else {
				r.fail()
			}
		}
	default:
		n := r.uvarint()
		if n == 0 {
			return
		}
		p.there, p.value = true, r.take(n-1)
		if r.bad || !checkCell(a.of, p.value) {
			r.fail()
			p.there = false
		}
		if a.ordered() {
			p.order = r.order(begins)
		}
	}
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// appendOrder writes where an event stands in the order, its time as of the tile's beginning.
func appendOrder(b []byte, o *feature.Order, begins int64) []byte {
	b = binary.AppendUvarint(b, uint64(o.EventTime-begins))
	flags := byte(numeric.One(o.HasSequence) | numeric.One(o.Live)<<1)
	b = append(b, flags)
	if o.HasSequence {
		b = binary.AppendVarint(b, o.Sequence)
	}
	b = binary.BigEndian.AppendUint32(b, o.TopicHash)
	b = binary.AppendUvarint(b, uint64(o.Partition))
	return binary.AppendUvarint(b, uint64(o.Offset))
}

// tileReader reads parts of a value of tiles. What can't be read is bad, and zeros from there on.
type tileReader struct {
	rest string
	bad  bool
}

func (r *tileReader) fail() { r.rest, r.bad = "", true }

func (r *tileReader) take(n uint64) string {
	if n > uint64(len(r.rest)) {
		r.fail()
		return ""
	}
	text := r.rest[:n]
	r.rest = r.rest[n:]
	return text
}

func (r *tileReader) text() string { return r.take(r.uvarint()) }

func (r *tileReader) byte() byte {
	if text := r.take(1); text != "" {
		return text[0]
	}
	return 0
}

func (r *tileReader) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64 && !r.bad; shift += 7 {
		b := r.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	r.fail()
	return 0
}

func (r *tileReader) varint() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (r *tileReader) uint32() uint32 {
	if text := r.take(4); len(text) == 4 {
		return binary.BigEndian.Uint32([]byte(text))
	}
	return 0
}

func (r *tileReader) order(begins int64) feature.Order {
	o := feature.Order{EventTime: begins + int64(r.uvarint())}
	flags := r.byte()
	o.HasSequence, o.Live = flags&1 != 0, flags&2 != 0
	if o.HasSequence {
		o.Sequence = r.varint()
	}
	o.TopicHash = r.uint32()
	o.Partition, o.Offset = int32(r.uvarint()), int64(r.uvarint())
	return o
}
