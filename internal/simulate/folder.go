package simulate

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
)

// partitionsMax bounds the partitions of a topic folder: each is an open file with a buffer.
const partitionsMax = 256

// Folder writes topics as folders, the way loam reads them where there is no broker: <dir>/<topic>/<partition>.jsonl, a
// line an event, the partition by the record's key. It appends to what is there, since a line's number is its offset,
// and writes whole lines at a time, since a worker may be reading along.
type Folder struct {
	topics     Topics
	partitions map[string][]*partition // by topic
}

type partition struct {
	file   *os.File
	buffer []byte // whole lines
}

// OpenFolder opens the topics in dir with so many partitions each. It refuses a topic that has another number of them:
// its keys would move between partitions.
func OpenFolder(dir string, topics Topics, partitions int) (*Folder, error) {
	if partitions < 1 || partitions > partitionsMax {
		return nil, fmt.Errorf("%d is not a number of partitions; give 1 to %d", partitions, partitionsMax)
	}
	f := &Folder{topics: topics, partitions: map[string][]*partition{}}
	for _, topic := range f.topics {
		if err := f.open(filepath.Join(dir, topic), topic, partitions); err != nil {
			return nil, errors.Join(err, f.closeFiles())
		}
	}
	return f, nil
}

func (f *Folder) open(dir, topic string, partitions int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of topic %s: %w", topic, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the partitions of topic %s: %w", topic, err)
	}
	there := 0
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".jsonl" {
			there++
		}
	}
	if there != 0 && there != partitions {
		return fmt.Errorf("topic %s has %d partitions in %s, not %d: keep their number, or remove the folder", topic, there, dir, partitions)
	}
	for i := range partitions {
		file, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d.jsonl", i)), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("open partition %d of topic %s: %w", i, topic, err)
		}
		f.partitions[topic] = append(f.partitions[topic], &partition{file: file})
		if err := endsInLine(file); err != nil {
			return fmt.Errorf("append to partition %d of topic %s: %w", i, topic, err)
		}
	}
	return nil
}

// endsInLine refuses a file whose last line lacks its end: what is appended would become part of it.
func endsInLine(file *os.File) error {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], size-1); err != nil {
		return err
	}
	if last[0] != '\n' {
		return fmt.Errorf("%s ends within a line: end that line or cut it off", file.Name())
	}
	return nil
}

// Write writes one event.
func (f *Folder) Write(e Event) error {
	const bufferMax = 64 << 10
	hash := fnv.New32a()
	hash.Write(e.Key)
	topic := f.topics.of(e)
	of := f.partitions[topic]
	index := int(hash.Sum32() % uint32(len(of)))
	p := of[index]
	if len(p.buffer)+len(e.Value) >= bufferMax {
		if err := p.flush(); err != nil {
			return fmt.Errorf("write to partition %d of topic %s: %w", index, topic, err)
		}
	}
	p.buffer = append(append(p.buffer, e.Value...), '\n')
	return nil
}

func (p *partition) flush() error {
	_, err := p.file.Write(p.buffer)
	p.buffer = p.buffer[:0]
	return err
}

// Close writes out what is buffered and closes the files.
func (f *Folder) Close() error {
	var errs []error
	for _, topic := range f.topics {
		for i, p := range f.partitions[topic] {
			if err := p.flush(); err != nil {
				errs = append(errs, fmt.Errorf("write to partition %d of topic %s: %w", i, topic, err))
			}
		}
	}
	return errors.Join(append(errs, f.closeFiles())...)
}

func (f *Folder) closeFiles() error {
	var errs []error
	for _, of := range f.partitions {
		for _, p := range of {
			errs = append(errs, p.file.Close())
		}
	}
	return errors.Join(errs...)
}
