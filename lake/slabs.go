package lake

import (
	"fmt"
	"os"
)

// slabs are append-only chunks of records. A record is at most chunkBytes long, or has a chunk of its own. Chunks beyond the
// memory that slabs may take are mapped from a file, which the system keeps in memory where it has some to spare, and drops
// from it where it hasn't.
type slabs struct {
	memoryBytes int64  // on the heap at most; 0 means no bound
	dir         string // where the file stands; it has no name once it is open

	chunks [][]byte
	used   int64 // bytes of live records
	total  int64 // bytes of all records
	heap   int64 // bytes of chunks on the heap
	file   *os.File
	mapped []byte   // the rest of the last segment that was mapped
	maps   [][]byte // all segments
}

const (
	chunkBytes   = 1 << 20
	segmentBytes = 64 << 20
)

// grow gives the free end of the last chunk, to append one record to.
func (s *slabs) grow() ([]byte, error) {
	if n := len(s.chunks); n > 0 && cap(s.chunks[n-1])-len(s.chunks[n-1]) >= chunkBytes/16 {
		last := s.chunks[n-1]
		return last[len(last):len(last):cap(last)], nil
	}
	if err := s.more(); err != nil {
		return nil, err
	}
	return s.chunks[len(s.chunks)-1][:0], nil
}

// more begins a chunk.
func (s *slabs) more() error {
	if s.memoryBytes == 0 || s.heap+chunkBytes <= s.memoryBytes {
		s.heap += chunkBytes
		s.chunks = append(s.chunks, make([]byte, 0, chunkBytes))
		return nil
	}
	if len(s.mapped) == 0 {
		if err := s.mapSegment(); err != nil {
			return fmt.Errorf("keep open versions in a file below %s: %w", s.dir, err)
		}
	}
	s.chunks = append(s.chunks, s.mapped[:0:chunkBytes])
	s.mapped = s.mapped[chunkBytes:]
	return nil
}

// mapSegment lengthens the file by a segment and maps that.
func (s *slabs) mapSegment() error {
	if s.file == nil {
		if err := os.MkdirAll(s.dir, 0o755); err != nil {
			return err
		}
		f, err := os.CreateTemp(s.dir, "versions-*")
		if err != nil {
			return err
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil { // its space is free again however the process ends
			return err
		}
	}
	at := int64(len(s.maps)) * segmentBytes
	if err := s.file.Truncate(at + segmentBytes); err != nil {
		return err
	}
	segment, err := mapFile(s.file, at, segmentBytes)
	if err != nil {
		return err
	}
	s.maps, s.mapped = append(s.maps, segment), segment
	return nil
}

// close frees what stands in the file. Nothing of the slabs may be used afterwards.
func (s *slabs) close() {
	for _, m := range s.maps {
		unmapFile(m)
	}
	if s.file != nil {
		s.file.Close()
	}
	*s = slabs{}
}

// add keeps the record that was appended to what grow gave.
func (s *slabs) add(record []byte) (uint64, uint32) {
	n := len(s.chunks) - 1
	start := len(s.chunks[n])
	s.used += int64(len(record))
	s.total += int64(len(record))
	if start+len(record) <= cap(s.chunks[n]) {
		s.chunks[n] = s.chunks[n][:start+len(record)]
		return uint64(n)<<32 | uint64(start), uint32(len(record))
	}
	// The record outgrew the chunk, so append moved it to memory of its own; an empty chunk takes later records.
	s.heap += int64(len(record))
	s.chunks = append(s.chunks, record, nil)
	return uint64(n+1) << 32, uint32(len(record))
}

func (s *slabs) at(record uint64, size uint32) []byte {
	start := uint32(record)
	return s.chunks[record>>32][start : start+size : start+size]
}

func (s *slabs) free(size uint32) { s.used -= int64(size) }

// wasteful reports whether more than a third of a good amount is dead.
func (s *slabs) wasteful() bool { return s.total > 16*chunkBytes && s.total > s.used+s.used/2 }
