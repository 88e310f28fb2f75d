package verify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
)

// storedTiles is an entity of a windowed view as docs/redis.md reads its string, in text.
type storedTiles struct {
	guards []storedGuard
	newest int64
	tiles  []storedTile
	values []storedValue
}

type storedGuard struct {
	source string // <topic hash>:<partition>
	next   int64
}

type storedTile struct {
	level  int
	begins int64    // microseconds since 1970
	parts  []string // of the aggregates that have anything, <name> <value>
	sums   []string // of doubles
}

// storedValue is a value of a distinct, and the beginning of the newest hop that has it.
type storedValue struct {
	set    int
	text   string
	begins int64
}

var errStored = errors.New("it is none of loam's")

// tileBytes takes a string apart. What is missing is failed, and zeros from there on.
type tileBytes struct {
	text   string
	failed bool
}

func (b *tileBytes) bytes(n uint64) string {
	if b.failed = b.failed || n > uint64(len(b.text)); b.failed {
		return strings.Repeat("\x00", int(min(n, 8)))
	}
	taken := b.text[:n]
	b.text = b.text[n:]
	return taken
}

func (b *tileBytes) unsigned() uint64 {
	v, n := binary.Uvarint([]byte(b.text[:min(len(b.text), binary.MaxVarintLen64)]))
	if n <= 0 {
		b.failed = true
		return 0
	}
	b.text = b.text[n:]
	return v
}

func (b *tileBytes) signed() int64 {
	v, n := binary.Varint([]byte(b.text[:min(len(b.text), binary.MaxVarintLen64)]))
	if n <= 0 {
		b.failed = true
		return 0
	}
	b.text = b.text[n:]
	return v
}

// parse takes an entity's string apart, by the view's aggregates.
func (c *tileCheck) parse(text string) (*storedTiles, error) {
	b, s := &tileBytes{text: text}, &storedTiles{}
	if flags := b.bytes(1)[0]; flags != 0x10 && flags != 0x11 {
		return nil, errStored
	}
	for range b.unsigned() {
		if b.failed {
			break
		}
		topic := fmt.Sprintf("%x", b.bytes(4))
		s.guards = append(s.guards, storedGuard{source: fmt.Sprintf("%s:%d", topic, b.unsigned()), next: int64(b.unsigned())})
	}
	s.newest = b.signed()
	for l, level := range c.levels {
		number := int64(0)
		for i := range b.unsigned() {
			if b.failed {
				break
			}
			if i == 0 {
				number = b.signed()
			} else {
				number += int64(b.unsigned())
			}
			t := storedTile{level: l, begins: number * level.hop}
			for _, a := range level.aggregates {
				c.parsePart(b, &t, a)
			}
			s.tiles = append(s.tiles, t)
		}
	}
	for n, set := range c.sets {
		for range b.unsigned() {
			if b.failed {
				break
			}
			text := storedText(c.typeOf(set.aggregate), b.bytes(b.unsigned()))
			s.values = append(s.values, storedValue{n, text, b.signed() * set.hop})
		}
	}
	if b.failed || b.text != "" {
		return nil, errStored
	}
	return s, nil
}

func (c *tileCheck) parsePart(b *tileBytes, t *storedTile, a int) {
	of, name := c.typeOf(a), c.view.Aggregates[a].Name
	var text string
	switch fn := c.view.Aggregates[a].Fn; fn {
	case feature.Count, feature.Sum, feature.Avg:
		n := b.unsigned()
		if n == 0 {
			return
		}
		text = strconv.FormatUint(n, 10)
		switch {
		case fn == feature.Count:
		case of.Kind == feature.Double:
			t.sums = append(t.sums, strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64([]byte(b.bytes(8)))), 'g', -1, 64))
		default:
			text += " make " + bigOf(b.bytes(b.unsigned())).String()
		}
	default:
		n := b.unsigned()
		if n == 0 {
			return
		}
		if text = storedText(of, b.bytes(n-1)); text == "" {
			text = "''"
		}
		if fn == feature.First || fn == feature.Last {
			o := feature.Order{EventTime: t.begins + int64(b.unsigned())}
			flags := b.bytes(1)[0]
			if o.HasSequence, o.Live = flags&1 != 0, flags&2 != 0; o.HasSequence {
				o.Sequence = b.signed()
			}
			o.TopicHash = binary.BigEndian.Uint32([]byte(b.bytes(4)))
			o.Partition, o.Offset = int32(b.unsigned()), int64(b.unsigned())
			text += " at " + o.String()
		}
	}
	t.parts = append(t.parts, name+" "+text)
}

// bigOf reads two's complement, high byte first.
func bigOf(text string) *big.Int {
	n := new(big.Int).SetBytes([]byte(text))
	if text != "" && text[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(text))))
	}
	return n
}

// storedText is a value as valueText would write it.
func storedText(t feature.Type, text string) string {
	switch t.Kind {
	case feature.String, feature.JSON:
		return text
	case feature.Double:
		if len(text) != 8 {
			return "no double"
		}
		return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64([]byte(text))), 'g', -1, 64)
	}
	n := bigOf(text)
	switch t.Kind {
	case feature.Decimal:
		return decimalText(n.String(), int(t.Scale))
	case feature.Bool:
		return strconv.FormatBool(n.Sign() != 0)
	case feature.Timestamp:
		return time.UnixMicro(n.Int64()).UTC().Format("2006-01-02T15:04:05.000000Z07:00")
	case feature.Date:
		return time.Unix(86400*n.Int64(), 0).UTC().Format("2006-01-02")
	default:
		return n.String()
	}
}
