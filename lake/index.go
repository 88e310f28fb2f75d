package lake

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/scd"
)

// index knows, of every key a state stream has seen, the event time of its newest change and its open version with the
// place of that row. It is a cache of the lake in this process: rebuilt when the stream is opened, changed only after a
// commit has succeeded, and distrusted key by key where another writer was at work.
//
// An entry is 40 bytes, a slot of the hash table 12 to 24, and the open version is kept packed in slabs beside its key:
// some 280 bytes a contact.
type index struct {
	slots   map[uint64]uint32 // hash of the key -> its first entry, plus one
	entries []entry
	slabs   slabs
	topics  []topicFacts
	topicOf map[string]uint32
}

type entry struct {
	newest int64  // event time of the newest change; math.MaxInt64 where the key must be read from the lake
	record uint64 // where the key and the open version stand in the slabs
	row    uint32 // position of the open version in its file
	file   int32  // number of the file of the open version; noFile where none is open
	next   uint32 // the next entry of the same hash, plus one
	size   uint32 // bytes of the record
}

const (
	noFile = -1
	// unknown as an entry's newest sends every change of the key the late way, which reads the lake.
	unknown = math.MaxInt64
)

func newIndex(keys int) *index {
	return &index{slots: make(map[uint64]uint32, keys), entries: make([]entry, 0, keys), topicOf: map[string]uint32{}}
}

// find gives the entry of the key, or nil.
func (x *index) find(key []byte) *entry {
	for i := x.slots[xxh3.Hash(key)]; i > 0; i = x.entries[i-1].next {
		if bytes.Equal(x.keyOf(&x.entries[i-1]), key) {
			return &x.entries[i-1]
		}
	}
	return nil
}

func (x *index) keyOf(e *entry) []byte {
	key, _ := scd.Next(x.slabs.at(e.record, e.size))
	return key
}

// put sets what is known of the key; open is nil where no version is.
func (x *index) put(key []byte, newest int64, open *scd.Version, file int32, row uint32) {
	e := x.find(key)
	if e == nil {
		hash := xxh3.Hash(key)
		x.entries = append(x.entries, entry{next: x.slots[hash]})
		x.slots[hash] = uint32(len(x.entries))
		e = &x.entries[len(x.entries)-1]
	} else {
		x.slabs.free(e.size)
	}
	buffer := x.slabs.grow()
	buffer = scd.AppendValue(buffer, key)
	if open != nil {
		buffer = x.appendVersion(buffer, open)
	} else {
		file, row = noFile, 0
	}
	e.newest, e.file, e.row = newest, file, row
	e.record, e.size = x.slabs.add(buffer)
	if x.slabs.wasteful() {
		x.compact()
	}
}

// version gives the open version of the entry, or nil. It shares the slab's memory.
func (x *index) version(e *entry) *scd.Version {
	if e.file == noFile {
		return nil
	}
	_, rest := scd.Next(x.slabs.at(e.record, e.size))
	return x.readVersion(rest)
}

func (x *index) appendVersion(b []byte, v *scd.Version) []byte {
	number, ok := x.topicOf[v.Origin.Topic]
	if !ok {
		number = uint32(len(x.topics))
		x.topicOf[v.Origin.Topic] = number
		x.topics = append(x.topics, topicFacts{name: v.Origin.Topic, live: v.Order.Live, hash: v.Order.TopicHash})
	}
	b = binary.AppendVarint(b, v.From)
	b = binary.AppendUvarint(b, uint64(number)<<1|uint64(b2i(v.Order.HasSequence)))
	b = binary.AppendVarint(b, v.Order.Sequence)
	b = binary.AppendUvarint(b, uint64(v.Order.Partition))
	b = binary.AppendUvarint(b, uint64(v.Order.Offset))
	b = binary.AppendVarint(b, v.Origin.RecordedAt)
	b = binary.AppendVarint(b, v.Origin.IngestedAt-v.Origin.RecordedAt)
	b = scd.AppendValue(b, []byte(v.Origin.EventID))
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
	v := scd.Version{From: signed(), To: scd.Open}
	flags := unsigned()
	topic := x.topics[flags>>1]
	v.Order = feature.Order{EventTime: v.From, HasSequence: flags&1 == 1, Live: topic.live, TopicHash: topic.hash, Sequence: signed()}
	v.Order.Partition = int32(unsigned())
	v.Order.Offset = int64(unsigned())
	v.Origin = scd.Origin{Topic: topic.name, RecordedAt: signed()}
	v.Origin.IngestedAt = v.Origin.RecordedAt + signed()
	var id []byte
	id, b = scd.Next(b)
	v.Origin.EventID = string(id)
	v.Row = scd.Row(b)
	return &v
}

func b2i(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// compact moves the live records to new slabs.
func (x *index) compact() {
	old := x.slabs
	x.slabs = slabs{}
	for i := range x.entries {
		e := &x.entries[i]
		buffer := append(x.slabs.grow(), old.at(e.record, e.size)...)
		e.record, e.size = x.slabs.add(buffer)
	}
}

// slabs are append-only chunks of records. A record is at most chunkBytes long, or has a chunk of its own.
type slabs struct {
	chunks [][]byte
	used   int // bytes of live records
	total  int // bytes of all records
}

const chunkBytes = 1 << 20

// grow gives the free end of the last chunk, to append one record to.
func (s *slabs) grow() []byte {
	if n := len(s.chunks); n > 0 && cap(s.chunks[n-1])-len(s.chunks[n-1]) >= chunkBytes/16 {
		last := s.chunks[n-1]
		return last[len(last):len(last):cap(last)]
	}
	s.chunks = append(s.chunks, make([]byte, 0, chunkBytes))
	return s.chunks[len(s.chunks)-1][:0]
}

// add keeps the record that was appended to what grow gave.
func (s *slabs) add(record []byte) (uint64, uint32) {
	n := len(s.chunks) - 1
	start := len(s.chunks[n])
	s.used += len(record)
	s.total += len(record)
	if start+len(record) <= cap(s.chunks[n]) {
		s.chunks[n] = s.chunks[n][:start+len(record)]
		return uint64(n)<<32 | uint64(start), uint32(len(record))
	}
	// The record outgrew the chunk, so append moved it to memory of its own; an empty chunk takes later records.
	s.chunks = append(s.chunks, record, make([]byte, 0, chunkBytes))
	return uint64(n+1) << 32, uint32(len(record))
}

func (s *slabs) at(record uint64, size uint32) []byte {
	start := uint32(record)
	return s.chunks[record>>32][start : start+size : start+size]
}

func (s *slabs) free(size uint32) { s.used -= int(size) }

// wasteful reports whether more than half of a good amount is dead.
func (s *slabs) wasteful() bool { return s.total > 16*chunkBytes && s.total > 2*s.used }
