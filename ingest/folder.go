package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
)

// folderSource tails a topic that is a folder: <partition>.jsonl, a line an event, the offset its number from 0. Only
// lines that have their end are read, for a writer may be at work on the last one.
type folderSource struct {
	topic      string
	dir        string
	starts     func(feature.Partition) int64
	partitions map[int32]*partitionFile
	untilEnd   bool
	records    []Record
}

type partitionFile struct {
	in     *os.File
	lines  *lineReader
	offset int64
}

// folderWait is how long a tailing source waits before it looks for new lines again.
const folderWait = 20 * time.Millisecond

// OpenFolder opens the topic folder dir. starts gives the offset to read each partition from. With untilEnd the source is
// done once all that is there has been read.
func OpenFolder(topic, dir string, starts func(feature.Partition) int64, untilEnd bool) (Source, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("topic %s has no folder: make %s and put <partition>.jsonl files there, or name a broker in %s",
			topic, dir, feature.ProjectFile)
	} else if err != nil {
		return nil, fmt.Errorf("open topic %s: %w", topic, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("topic %s: %s is no folder", topic, dir)
	}
	return &folderSource{topic: topic, dir: dir, starts: starts, partitions: map[int32]*partitionFile{}, untilEnd: untilEnd}, nil
}

func (s *folderSource) Close() error {
	var errs []error
	for _, p := range s.partitions {
		errs = append(errs, p.in.Close())
	}
	return errors.Join(errs...)
}

func (s *folderSource) Poll(ctx context.Context) (Poll, error) {
	for {
		s.records = s.records[:0]
		poll, err := s.read()
		if err != nil || len(poll.Records) > 0 {
			return poll, err
		}
		if s.untilEnd {
			poll.Done = true
			return poll, nil
		}
		select {
		case <-ctx.Done():
			return poll, nil
		case <-time.After(folderWait):
		}
		if ctx.Err() != nil {
			return poll, nil
		}
	}
}

func (s *folderSource) read() (Poll, error) {
	if err := s.discover(); err != nil {
		return Poll{}, err
	}
	var poll Poll
	size := 0
	for _, index := range sortedKeys(s.partitions) {
		p := s.partitions[index]
		ended := false
		for len(s.records) < pollRecords && size < pollBytes {
			line, cut, err := p.next()
			if errors.Is(err, io.EOF) {
				ended = true
				break
			} else if err != nil {
				return Poll{}, fmt.Errorf("read partition %d of topic %s behind line %d: %w", index, s.topic, p.offset, err)
			}
			size += len(line)
			s.records = append(s.records, Record{
				Position: feature.Position{Topic: s.topic, Partition: index, Offset: p.offset}, Value: line, Cut: cut,
			})
			p.offset++
		}
		if ended {
			poll.Ends = append(poll.Ends, feature.Partition{Topic: s.topic, Index: index})
		}
	}
	poll.Records = s.records
	return poll, nil
}

// discover opens partitions that have come into being.
func (s *folderSource) discover() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list the partitions of topic %s: %w", s.topic, err)
	}
	for _, e := range entries {
		index, ok := partitionOf(e.Name())
		if !ok || s.partitions[index] != nil {
			continue
		}
		in, err := os.Open(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return fmt.Errorf("open partition %d of topic %s: %w", index, s.topic, err)
		}
		p := &partitionFile{in: in, lines: newLineReader(in)}
		start := s.starts(feature.Partition{Topic: s.topic, Index: index})
		for p.offset < start {
			if _, _, err := p.next(); errors.Is(err, io.EOF) {
				return errors.Join(fmt.Errorf("partition %d of topic %s has %d lines, and offset %d has been taken before: the file was cut or "+
					"made anew; give the stream another topic, or remove its tables", index, s.topic, p.offset, start), in.Close())
			} else if err != nil {
				return errors.Join(fmt.Errorf("read partition %d of topic %s: %w", index, s.topic, err), in.Close())
			}
			p.offset++
		}
		s.partitions[index] = p
	}
	return nil
}

// next gives the next line that has its end, or io.EOF for now.
func (p *partitionFile) next() ([]byte, bool, error) {
	line, cut, err := p.lines.next(false)
	if errors.Is(err, io.EOF) {
		// What was read of a line without its end is read again when more is there.
		if _, err := p.in.Seek(p.lines.read, io.SeekStart); err != nil {
			return nil, false, err
		}
		p.lines.r.Reset(p.in)
		p.lines.err = nil
		return nil, false, io.EOF
	}
	return line, cut, err
}

func sortedKeys(m map[int32]*partitionFile) []int32 {
	keys := make([]int32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
