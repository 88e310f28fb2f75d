package feature

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// Prefixes of the topics that are not live: files and redrives carry events that a live event of the same time outranks.
const (
	FileTopicPrefix    = "file:"    // file:<sha256 of its bytes>
	RedriveTopicPrefix = "redrive:" // redrive:<job id>
)

// Position is where loam read an event: every accepted event, dead letter and duplicate has one, and no two share it.
// A file is a topic with one partition whose offsets are line or row numbers from 0.
type Position struct {
	Topic     string
	Partition int32
	Offset    int64
}

func (p Position) String() string { return fmt.Sprintf("%s/%d@%d", p.Topic, p.Partition, p.Offset) }

// Live reports whether the topic is a broker's or a topic folder's, and not a file or a redrive.
func Live(topic string) bool {
	return !strings.HasPrefix(topic, FileTopicPrefix) && !strings.HasPrefix(topic, RedriveTopicPrefix)
}

// TopicHash is the first four bytes of the SHA-256 of a topic's name. Topics compare by it, so that the order needs no
// registry of topics.
func TopicHash(topic string) uint32 {
	sum := sha256.Sum256([]byte(topic))
	return binary.BigEndian.Uint32(sum[:4])
}

// Order is the place of a change in loam's one order: (event time, sequence, live, topic, partition, offset), compared
// from left to right, a null sequence lowest. History, served values, first and last, and Redis all use it.
type Order struct {
	EventTime   int64 // microseconds since 1970 UTC
	Sequence    int64 // meaningless unless HasSequence; timestamps in microseconds
	HasSequence bool
	Live        bool
	TopicHash   uint32
	Partition   int32 // 0..2^24-1
	Offset      int64 // 0..2^48-1
}

// Compare returns -1, 0 or +1 as o stands before, at or after p.
func (o Order) Compare(p Order) int {
	if c := cmp.Compare(o.EventTime, p.EventTime); c != 0 {
		return c
	}
	if c := cmp.Compare(bit(o.HasSequence), bit(p.HasSequence)); c != 0 {
		return c
	}
	if o.HasSequence {
		if c := cmp.Compare(o.Sequence, p.Sequence); c != 0 {
			return c
		}
	}
	if c := cmp.Compare(bit(o.Live), bit(p.Live)); c != 0 {
		return c
	}
	if c := cmp.Compare(o.TopicHash, p.TopicHash); c != 0 {
		return c
	}
	if c := cmp.Compare(o.Partition, p.Partition); c != 0 {
		return c
	}
	return cmp.Compare(o.Offset, p.Offset)
}

// SettledByPosition reports whether only the position orders o and p: usually a sign of the wrong clock.
func (o Order) SettledByPosition(p Order) bool {
	return o.EventTime == p.EventTime && o.HasSequence == p.HasSequence && (!o.HasSequence || o.Sequence == p.Sequence)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Lengths of an order as text: time 16, the flag of its sequence 1, live 1, topic 8, partition 6 and offset 12 hexadecimal
// digits, and 16 more for the sequence where it has one. The format is frozen: it is the field _v of every hash in Redis.
const (
	OrderDigits         = 44
	OrderSequenceDigits = 16
)

// OrderTimeDigits is how many digits of an order as text are its event time.
const OrderTimeDigits = 16

// Bounds that the text of an order leaves to a position.
const (
	PartitionMax = 1<<24 - 1
	OffsetMax    = 1<<48 - 1
)

// AppendText appends the order as lower-case hexadecimal digits, [OrderDigits] of them or [OrderSequenceDigits] more, which
// compare as text exactly as orders compare: where one text has a sequence that the other lacks, the flag before it has
// decided. Signed numbers have their sign bit flipped. It never fails; the error is there for [encoding.TextAppender].
func (o Order) AppendText(dst []byte) ([]byte, error) {
	const sign = 1 << 63
	var raw [8]byte
	var text [16]byte
	put := func(v uint64, digits int) {
		binary.BigEndian.PutUint64(raw[:], v)
		hex.Encode(text[:], raw[:])
		dst = append(dst, text[16-digits:]...)
	}
	put(uint64(o.EventTime)^sign, 16)
	put(uint64(bit(o.HasSequence)), 1)
	if o.HasSequence {
		put(uint64(o.Sequence)^sign, OrderSequenceDigits)
	}
	put(uint64(bit(o.Live)), 1)
	put(uint64(o.TopicHash), 8)
	put(uint64(uint32(o.Partition)), 6)
	put(uint64(o.Offset), 12)
	return dst, nil
}

// String is the order as [Order.AppendText] writes it.
func (o Order) String() string {
	text, _ := o.AppendText(make([]byte, 0, OrderDigits+OrderSequenceDigits))
	return string(text)
}

// ParseOrder reads what [Order.AppendText] wrote.
func ParseOrder(text string) (Order, error) {
	bad := func() (Order, error) {
		return Order{}, fmt.Errorf("%q is not an order: want %d lower-case hexadecimal digits, or %d with a sequence", text, OrderDigits, OrderDigits+OrderSequenceDigits)
	}
	if len(text) < OrderDigits || strings.ToLower(text) != text {
		return bad()
	}
	flag, sequence, position := text[OrderTimeDigits], "", text[OrderTimeDigits+1:]
	switch {
	case flag == '0' && len(text) == OrderDigits:
		sequence = strings.Repeat("0", OrderSequenceDigits)
	case flag == '1' && len(text) == OrderDigits+OrderSequenceDigits:
		sequence, position = position[:OrderSequenceDigits], position[OrderSequenceDigits:]
	default:
		return bad()
	}
	raw, err := hex.DecodeString(text[:OrderTimeDigits] + sequence + "0" + position)
	if err != nil || raw[16] > 1 {
		return bad()
	}
	const sign = 1 << 63
	o := Order{
		EventTime:   int64(binary.BigEndian.Uint64(raw[0:8]) ^ sign),
		HasSequence: flag == '1',
		Live:        raw[16] == 1,
		TopicHash:   binary.BigEndian.Uint32(raw[17:21]),
		Partition:   int32(raw[21])<<16 | int32(raw[22])<<8 | int32(raw[23]),
	}
	if o.HasSequence {
		o.Sequence = int64(binary.BigEndian.Uint64(raw[8:16]) ^ sign)
	}
	for _, b := range raw[24:30] {
		o.Offset = o.Offset<<8 | int64(b)
	}
	return o, nil
}

// KeySeparator stands between the parts of a composite key's text.
const KeySeparator = "\x1f"

// Identity is what makes two deliveries the same event: its id, its key as text and its event time. The text of a key
// is its parts joined by [KeySeparator]: strings as they are, numbers in decimal, dates as days and timestamps as
// microseconds since 1970 UTC.
type Identity struct {
	EventID   string
	Key       string
	EventTime int64 // microseconds since 1970 UTC
}
