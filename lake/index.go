package lake

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// index knows, of every key a state stream has seen, the event time of its newest change and its open version with the
// place of that row. It is a cache of the lake in this process: rebuilt when the stream is opened, changed only after a
// commit has succeeded, and distrusted key by key where another writer was at work.
//
// An entry takes 32 bytes and a slot of the hash table 5 to 10, and the open version is kept packed in slabs beside its key:
// some 340 bytes a contact. Slabs beyond the memory that they may take stand in a file, see [slabs].
type index struct {
	slots   []uint32 // by hash of the key: its entry's number plus one, 0 for none; probed in line; a power of two of them
	entries []entry
	slabs   slabs
	topics  []topicFacts
	topicOf map[string]uint32
	old     []slabs // whose records were moved, but may still be looked at
}

type entry struct {
	newest int64  // event time of the newest change; math.MaxInt64 where the key must be read from the lake
	record uint64 // where the key and the open version stand in the slabs
	row    uint32 // position of the open version in its file
	file   int32  // number of the file of the open version; noFile where none is open
	size   uint32 // bytes of the record
	hash   uint32 // of the key
}

const (
	noFile = -1
	// unknown as an entry's newest sends every change of the key the late way, which reads the lake.
	unknown = math.MaxInt64
	// slotsMin is the size of an empty hash table.
	slotsMin = 1 << 10
)

// newIndex makes an index whose slabs take so much memory at most; 0 means no bound. What goes beyond it stands in a file
// below dir.
func newIndex(memoryBytes int64, dir string) *index {
	return &index{slots: make([]uint32, slotsMin), topicOf: map[string]uint32{}, slabs: slabs{memoryBytes: memoryBytes, dir: dir}}
}

// close frees what the index holds outside of the heap.
func (x *index) close() {
	x.tidy()
	x.slabs.close()
}

// tidy frees slabs whose records were moved. No version that was taken from the index before may be used afterwards.
func (x *index) tidy() {
	for i := range x.old {
		x.old[i].close()
	}
	x.old = nil
}

func hashOf(key []byte) uint32 { return uint32(xxh3.Hash(key)) }

// find gives the entry of the key, or nil.
func (x *index) find(key []byte) *entry {
	hash := hashOf(key)
	for at := hash & uint32(len(x.slots)-1); x.slots[at] != 0; at = (at + 1) & uint32(len(x.slots)-1) {
		if e := &x.entries[x.slots[at]-1]; e.hash == hash && bytes.Equal(x.keyOf(e), key) {
			return e
		}
	}
	return nil
}

// reserve makes room for so many keys, and a few that come later.
func (x *index) reserve(keys int) {
	keys += keys / 16
	x.entries = slices.Grow(x.entries, keys)
	n := len(x.slots)
	for keys*5 > n*4 {
		n *= 2
	}
	if n > len(x.slots) {
		x.rehash(n)
	}
}

// rehash makes the hash table one of n slots.
func (x *index) rehash(n int) {
	x.slots = make([]uint32, n)
	for i := range x.entries {
		x.link(x.entries[i].hash, uint32(i+1))
	}
}

// add makes an entry of a key that has none.
func (x *index) add(key []byte) *entry {
	if (len(x.entries)+1)*5 > len(x.slots)*4 {
		x.rehash(2 * len(x.slots))
	}
	x.entries = append(x.entries, entry{hash: hashOf(key)})
	e := &x.entries[len(x.entries)-1]
	x.link(e.hash, uint32(len(x.entries)))
	return e
}

func (x *index) link(hash, number uint32) {
	at := hash & uint32(len(x.slots)-1)
	for x.slots[at] != 0 {
		at = (at + 1) & uint32(len(x.slots)-1)
	}
	x.slots[at] = number
}

func (x *index) keyOf(e *entry) []byte {
	key, _ := scd.Next(x.slabs.at(e.record, e.size))
	return key
}

// put sets what is known of the key; open is nil where no version is.
func (x *index) put(key []byte, newest int64, open *scd.Version, file int32, row uint32) error {
	e := x.find(key)
	if e == nil {
		e = x.add(key)
	} else {
		x.slabs.free(e.size)
	}
	buffer, err := x.slabs.grow()
	if err != nil {
		return err
	}
	buffer = scd.AppendValue(buffer, key)
	if open != nil {
		buffer = x.appendVersion(buffer, open)
	} else {
		file, row = noFile, 0
	}
	e.newest, e.file, e.row = newest, file, row
	e.record, e.size = x.slabs.add(buffer)
	if x.slabs.wasteful() {
		return x.compact()
	}
	return nil
}

// version gives the open version of the entry, or nil. It shares the slab's memory.
func (x *index) version(e *entry) *scd.Version {
	if e.file == noFile {
		return nil
	}
	_, rest := scd.Next(x.slabs.at(e.record, e.size))
	return x.readVersion(rest)
}

// Flags of a packed version, below the number of its topic.
const (
	flagSequence = 1 << iota
	flagUUID     // the event's id is a UUID in its usual form, kept as 16 bytes
	flagBits     = iota
)

func (x *index) appendVersion(b []byte, v *scd.Version) []byte {
	number, ok := x.topicOf[v.Origin.Topic]
	if !ok {
		number = uint32(len(x.topics))
		x.topicOf[v.Origin.Topic] = number
		x.topics = append(x.topics, topicFacts{name: v.Origin.Topic, live: v.Order.Live, hash: v.Order.TopicHash})
	}
	flags := uint64(number) << flagBits
	if v.Order.HasSequence {
		flags |= flagSequence
	}
	id, isUUID := packUUID(v.Origin.EventID)
	if isUUID {
		flags |= flagUUID
	}
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendVarint(b, v.From)
	if v.Order.HasSequence {
		b = binary.AppendVarint(b, v.Order.Sequence)
	}
	b = binary.AppendUvarint(b, uint64(v.Order.Partition))
	b = binary.AppendUvarint(b, uint64(v.Order.Offset))
	b = binary.AppendVarint(b, v.Origin.RecordedAt-v.From)
	b = binary.AppendVarint(b, v.Origin.IngestedAt-v.Origin.RecordedAt)
	if isUUID {
		b = append(b, id[:]...)
	} else {
		b = scd.AppendValue(b, []byte(v.Origin.EventID))
	}
	return append(b, v.Row...)
}

func (x *index) readVersion(b []byte) *scd.Version {
	signed := func() int64 {
		v, n := binary.Varint(b)
		b = b[n:]
		return v
	}
	unsigned := func() uint64 {
		v, n := binary.Uvarint(b)
		b = b[n:]
		return v
	}
	flags := unsigned()
	topic := x.topics[flags>>flagBits]
	v := scd.Version{From: signed(), To: scd.Open}
	v.Order = feature.Order{EventTime: v.From, HasSequence: flags&flagSequence != 0, Live: topic.live, TopicHash: topic.hash}
	if v.Order.HasSequence {
		v.Order.Sequence = signed()
	}
	v.Order.Partition = int32(unsigned())
	v.Order.Offset = int64(unsigned())
	v.Origin = scd.Origin{Topic: topic.name, RecordedAt: v.From + signed()}
	v.Origin.IngestedAt = v.Origin.RecordedAt + signed()
	if flags&flagUUID != 0 {
		v.Origin.EventID = unpackUUID(b[:16])
		b = b[16:]
	} else {
		var id []byte
		id, b = scd.Next(b)
		v.Origin.EventID = string(id)
	}
	v.Row = scd.Row(b)
	return &v
}

// packUUID gives the bytes of a UUID in lower case with dashes; false for any other text.
func packUUID(text string) (id [16]byte, ok bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return id, false
	}
	var digits [32]byte
	copy(digits[:], text[:8])
	copy(digits[8:], text[9:13])
	copy(digits[12:], text[14:18])
	copy(digits[16:], text[19:23])
	copy(digits[20:], text[24:])
	for _, d := range digits {
		if d >= 'A' && d <= 'F' {
			return id, false
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	return id, err == nil
}

func unpackUUID(id []byte) string {
	var text [36]byte
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// compact moves the live records to new slabs.
func (x *index) compact() error {
	old := x.slabs
	x.slabs = slabs{memoryBytes: old.memoryBytes, dir: old.dir}
	for i := range x.entries {
		e := &x.entries[i]
		buffer, err := x.slabs.grow()
		if err != nil {
			return err
		}
		e.record, e.size = x.slabs.add(append(buffer, old.at(e.record, e.size)...))
	}
	x.old = append(x.old, old)
	return nil
}
