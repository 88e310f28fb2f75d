package verify

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/murmur3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// feast reports whether the view is in Feast's layout, where all views of a project share an entity's hash: docs/redis.md.
func (c *onlineCheck) feast() bool { return c.view.Layout == feature.FeastLayout }

// Digits of a guard: of its order, without a sequence and with one, and of the generation behind it.
const (
	feastOrderDigits      = 44
	feastSequenceDigits   = 16
	feastGenerationDigits = 4
)

// loadFeast fills verify_hashes with what the hashes in Feast's layout hold of the view, in the terms of loam's own.
func (c *onlineCheck) loadFeast(ctx context.Context, table *textRows, generation int64, only []string, next map[source]int64) error {
	field := func(name string) string {
		return string(binary.LittleEndian.AppendUint32(nil, murmur3.Sum32([]byte(c.view.Name+":"+name))))
	}
	take := func(h online.Hash) error {
		keys, ours := c.feastEntity(h.Key)
		guard, guarded := h.Fields["_v:"+c.view.Name]
		at, live := h.Fields["_ts:"+c.view.Name]
		any := guarded || live
		for i, f := range c.view.Features {
			if value, there := h.Fields[field(f.Name)]; there {
				any = true
				if value != "" {
					table.set(colFeatures+i, feastText(f.Type.Kind, value))
				}
			}
		}
		switch {
		case !any:
			return nil // another view's
		case !ours:
			table.set(colEntity, joinEntity(c.entity.Name, []string{fmt.Sprintf("%q", h.Key)}))
		default:
			table.set(colEntity, joinEntity(c.entity.Name, keys))
		}
		if guarded {
			order := c.feastOrder(guard, generation)
			table.set(colOrder, order)
			if beyond(order, next) {
				table.set(colBeyond, "1")
			}
		}
		switch {
		case live:
			table.set(colAt, feastMicros(at))
		case guarded:
			table.set(colDeleted, "1")
		}
		return table.add(ctx)
	}
	if only == nil {
		return c.store.EachFeastHash(ctx, take)
	}
	keys := make([]string, len(only))
	for i, entity := range only {
		keys[i] = c.feastKey(splitEntity(entity))
	}
	return c.store.Hashes(ctx, keys, take)
}

// feastOrder is the order in a guard, or all of the guard where it is none of a generation that there was.
func (c *onlineCheck) feastOrder(guard string, generation int64) string {
	digits := len(guard) - feastGenerationDigits
	if digits != feastOrderDigits && digits != feastOrderDigits+feastSequenceDigits {
		return guard
	}
	// One that is building may be written beside the one that is read.
	if number, err := strconv.ParseInt(guard[digits:], 16, 64); err != nil || number < 1 || number > generation+generationsAhead {
		return guard
	}
	return guard[:digits]
}

// generationsAhead bounds how many generations may have been begun since the one that is read.
const generationsAhead = 1000

// feastKey is the key of an entity: the number of its join keys, their names with their types and lengths, their values likewise,
// and the project.
func (c *onlineCheck) feastKey(values []string) string {
	var b []byte
	number := func(n int) { b = binary.LittleEndian.AppendUint32(b, uint32(n)) }
	number(len(c.joins))
	for _, name := range c.joins {
		number(2)
		number(len(name))
		b = append(b, name...)
	}
	for i, name := range c.joins {
		column, _ := c.def.Column(name)
		if n, err := strconv.ParseInt(values[i], 10, 64); column.Type.Kind == feature.Int64 && err == nil {
			number(4)
			number(8)
			b = binary.LittleEndian.AppendUint64(b, uint64(n))
			continue
		}
		number(2)
		number(len(values[i]))
		b = append(b, values[i]...)
	}
	return string(b) + c.project.Name
}

// feastEntity gives the join keys of a hash, if it is one of the view's entity.
func (c *onlineCheck) feastEntity(key string) (values []string, ours bool) {
	names := 4
	for _, name := range c.joins {
		names += 8 + len(name)
	}
	if len(key) < names || key[:names] != c.feastKey(make([]string, len(c.joins)))[:names] {
		return nil, false
	}
	rest := []byte(key[names:])
	for range c.joins {
		if len(rest) < 8 {
			return nil, false
		}
		kind, n := binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
		if rest = rest[8:]; uint64(n) > uint64(len(rest)) || kind == 4 && n != 8 {
			return nil, false
		}
		if kind == 4 {
			values = append(values, strconv.FormatInt(int64(binary.LittleEndian.Uint64(rest)), 10))
		} else {
			values = append(values, string(rest[:n]))
		}
		rest = rest[n:]
	}
	return values, c.feastKey(values) == key
}

// feastMicros reads a google.protobuf.Timestamp; what is none stays as it is, in hexadecimal digits.
func feastMicros(at string) string {
	seconds, nanos, rest := uint64(0), uint64(0), []byte(at)
	for len(rest) > 1 && (rest[0] == 0x08 || rest[0] == 0x10) {
		v, n := binary.Uvarint(rest[1:])
		if n <= 0 {
			break
		}
		if rest[0] == 0x08 {
			seconds = v
		} else {
			nanos = v
		}
		rest = rest[1+n:]
	}
	if len(rest) > 0 || at == "" {
		return hex.EncodeToString([]byte(at))
	}
	return strconv.FormatInt(int64(seconds)*1e6+int64(nanos)/1000, 10)
}

// feastText is a feast.types.Value of the kind as text; what is none stays as it is, in hexadecimal digits.
func feastText(k feature.Kind, value string) string {
	raw := []byte(value)
	number, n := binary.Uvarint(raw[1:])
	whole := n > 0 && n == len(raw)-1
	switch {
	case (k == feature.String || k == feature.JSON) && raw[0] == 0x12 && n > 0 && uint64(len(raw)-1-n) == number:
		return value[1+n:]
	case k == feature.Int64 && raw[0] == 0x20 && whole:
		return strconv.FormatInt(int64(number), 10)
	case k == feature.Double && raw[0] == 0x29 && len(raw) == 9:
		return strconv.FormatFloat(math.Float64frombits(binary.LittleEndian.Uint64(raw[1:])), 'g', -1, 64)
	case k == feature.Bool && value == "\x38\x01":
		return "true"
	case k == feature.Bool && value == "\x38\x00":
		return "false"
	case k == feature.Date && raw[0] == 0x40 && whole:
		return strings.TrimSuffix(time.Unix(int64(number), 0).UTC().Format("2006-01-02T15:04:05"), "T00:00:00")
	}
	return "0x" + hex.EncodeToString(raw)
}
