package simulate

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// JSONL writes a line an event, all streams together, in order of arrival.
type JSONL struct {
	name   string // for errors
	lines  *bufio.Writer
	closes []io.Closer
}

// NewJSONL writes to w, which stays open.
func NewJSONL(w io.Writer) *JSONL {
	return &JSONL{name: "events", lines: bufio.NewWriterSize(w, 256<<10)}
}

// CreateJSONL makes the file, or makes it anew; its bytes are compressed where its name ends in .gz.
func CreateJSONL(name string) (*JSONL, error) {
	file, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create the events' file: %w", err)
	}
	s := NewJSONL(file)
	s.name, s.closes = name, []io.Closer{file}
	if strings.HasSuffix(name, ".gz") {
		compressed, _ := gzip.NewWriterLevel(file, gzip.BestSpeed) // the level is one there is
		s.lines.Reset(compressed)
		s.closes = []io.Closer{compressed, file}
	}
	return s, nil
}

// Write writes one event.
func (s *JSONL) Write(e Event) error {
	s.lines.Write(e.Value) // an error stays with the writer, and the next call returns it
	if err := s.lines.WriteByte('\n'); err != nil {
		return fmt.Errorf("write to %s: %w", s.name, err)
	}
	return nil
}

// Close writes out what is buffered and closes the file that CreateJSONL opened.
func (s *JSONL) Close() error {
	errs := []error{s.lines.Flush()}
	for _, c := range s.closes {
		errs = append(errs, c.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("finish %s: %w", s.name, err)
	}
	return nil
}
