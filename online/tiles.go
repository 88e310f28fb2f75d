package online

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/numeric"
)

// An entity of a windowed view is one string: how far it is written, and for each hop of the view's windows a tile for every
// step of event time that has events, with a partial of each aggregate. One string takes 0.6 of the memory of a hash with a
// field a tile, and for a hot entity half of it; it is read and written as one, and needs no bound of what a value takes.
// docs/redis.md gives it byte by byte. The format is frozen.

// First byte of an entity's string: the format's version and whether it holds the generation's base.
const (
	tilesVersion = 0x10
	tilesBase    = 0x01
)

// guardKey is a partition as a guard names it.
type guardKey struct {
	topic     uint32
	partition int32
}

func guardKeyOf(p feature.Partition) guardKey {
	return guardKey{feature.TopicHash(p.Topic), p.Index}
}

func (k guardKey) compare(o guardKey) int {
	return cmp.Or(cmp.Compare(k.topic, o.topic), cmp.Compare(k.partition, o.partition))
}

// guard says that the entity's events of a partition before an offset are in its tiles.
type guard struct {
	guardKey
	next int64
}

// tile holds a partial of each aggregate of its level, of one step of event time.
type tile struct {
	number   int64 // times the level's hop is when it begins, in microseconds since 1970
	partials []partial
}

// tileSet is what a distinct aggregate keeps of an entity: of each value the number of the newest hop that has it. That is
// enough, for every window ends now: it holds a value if it holds that hop.
type tileSet map[string]int64

// entityTiles is an entity of a windowed view. The zero value is one that has no events.
type entityTiles struct {
	base   bool    // what the generation was built from is in it
	guards []guard // ascending; of a partition without one the entity is as far as the generation's base
	newest int64   // event time of the newest event, microseconds since 1970
	known  bool    // whether there was an event
	levels [][]tile
	sets   []tileSet
}

// errTiles says that a string is none of loam's.
var errTiles = errors.New("its tiles are not loam's")

// header is the part of an entity's string that tells which events are in it: two strings of an entity with the same header
// hold the same.
func (e *entityTiles) header() []byte {
	b := []byte{tilesVersion | byte(numeric.One(e.base))*tilesBase}
	b = binary.AppendUvarint(b, uint64(len(e.guards)))
	for _, g := range e.guards {
		b = binary.BigEndian.AppendUint32(b, g.topic)
		b = binary.AppendUvarint(b, uint64(g.partition))
		b = binary.AppendUvarint(b, uint64(g.next))
	}
	return b
}

// encode writes an entity as it stands in Redis. Tiles of which no aggregate has anything are left out.
func (p *tilePlan) encode(e *entityTiles) []byte {
	b := e.header()
	b = binary.AppendVarint(b, e.newest)
	for l, level := range p.levels {
		tiles := slices.DeleteFunc(e.levels[l], func(t tile) bool {
			return !slices.ContainsFunc(t.partials, func(o partial) bool { return !o.empty() })
		})
		b = binary.AppendUvarint(b, uint64(len(tiles)))
		for i := range tiles {
			t := &tiles[i]
			if i == 0 {
				b = binary.AppendVarint(b, t.number)
			} else {
				b = binary.AppendUvarint(b, uint64(t.number-tiles[i-1].number))
			}
			for k, a := range level.aggregates {
				b = p.aggregates[a].append(b, &t.partials[k], t.number*level.hop)
			}
		}
		e.levels[l] = tiles
	}
	for _, set := range e.sets {
		b = binary.AppendUvarint(b, uint64(len(set)))
		for _, value := range sortedKeys(set) {
			b = appendText(b, value)
			b = binary.AppendVarint(b, set[value])
		}
	}
	return b
}

// decode reads what encode wrote; "" is an entity without events.
func (p *tilePlan) decode(text string) (*entityTiles, error) {
	e := p.empty()
	if text == "" {
		return e, nil
	}
	r := &tileReader{rest: text}
	e.decodeHeader(r)
	e.newest, e.known = r.varint(), true
	for l, level := range p.levels {
		n := r.count()
		e.levels[l] = make([]tile, n, n+2)
		for i := range n {
			t := tile{partials: make([]partial, len(level.aggregates))}
			if i == 0 {
				t.number = r.varint()
			} else {
				t.number = e.levels[l][i-1].number + int64(r.uvarint())
			}
			for k, a := range level.aggregates {
				p.aggregates[a].read(r, &t.partials[k], t.number*level.hop)
			}
			e.levels[l][i] = t
		}
	}
	for s, set := range p.sets {
		for range r.count() {
			value := r.text()
			if !checkCell(p.aggregates[set.aggregate].of, value) {
				r.fail()
			}
			e.sets[s][value] = r.varint()
		}
	}
	if r.bad || r.rest != "" {
		return nil, errTiles
	}
	return e, nil
}

// count reads how many parts of a byte at least follow.
func (r *tileReader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.fail()
		return 0
	}
	return int(n)
}

func (e *entityTiles) decodeHeader(r *tileReader) {
	flags := r.byte()
	if flags&^tilesBase != tilesVersion {
		r.fail()
	}
	e.base = flags&tilesBase != 0
	for range r.count() {
		g := guard{guardKey: guardKey{topic: r.uint32(), partition: int32(r.uvarint())}}
		g.next = int64(r.uvarint())
		e.guards = append(e.guards, g)
	}
}

// readGuards reads the guards of an entity's string alone.
func readGuards(text string) ([]guard, error) {
	e, r := &entityTiles{}, &tileReader{rest: text}
	if text != "" {
		e.decodeHeader(r)
	}
	if r.bad {
		return nil, errTiles
	}
	return e.guards, nil
}

func (e *entityTiles) guard(k guardKey) (at int, found bool) {
	return slices.BinarySearchFunc(e.guards, k, func(g guard, k guardKey) int { return g.compare(k) })
}

// tile is the tile of that number, which is made if there is none.
func (e *entityTiles) tile(level int, number int64, aggregates int) *tile {
	tiles := e.levels[level]
	at, found := slices.BinarySearchFunc(tiles, number, func(t tile, n int64) int { return cmp.Compare(t.number, n) })
	if !found {
		tiles = slices.Insert(tiles, at, tile{number: number, partials: make([]partial, aggregates)})
		e.levels[level] = tiles
	}
	return &tiles[at]
}

// merge takes the events of another entity's tiles, of which none is in these.
func (p *tilePlan) merge(e, o *entityTiles) {
	if o.known && (!e.known || o.newest > e.newest) {
		e.newest, e.known = o.newest, true
	}
	for l, level := range p.levels {
		for i := range o.levels[l] {
			from := &o.levels[l][i]
			to := e.tile(l, from.number, len(level.aggregates))
			for k, a := range level.aggregates {
				p.aggregates[a].merge(&to.partials[k], &from.partials[k])
			}
		}
	}
	for s, set := range o.sets {
		for value, number := range set {
			e.sets[s].see(value, number)
		}
	}
}

func (s tileSet) see(value string, number int64) {
	if was, there := s[value]; !there || was < number {
		s[value] = number
	}
}

// bound keeps of the values the newest, as many as decide whether a window has more than it may.
func (s tileSet) bound() {
	const most = feature.DistinctMax + 1
	if len(s) <= most {
		return
	}
	values := sortedKeys(s)
	slices.SortStableFunc(values, func(a, b string) int { return cmp.Compare(s[b], s[a]) })
	for _, v := range values[most:] {
		delete(s, v)
	}
}

func sortedKeys(s tileSet) []string {
	keys := make([]string, 0, len(s))
	for k := range s {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
