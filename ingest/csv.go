package ingest

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// csvSource reads a .csv file whose first line names its columns; a dot in a name leads into an object. Every row is
// rendered as a JSON object of strings; an empty field is null. The offset of a row is its number behind the first line, from 0.
type csvSource struct {
	file     File
	in       *os.File
	bound    *boundedReader
	failed   error // what ended the reading, given once all before it has been
	csv      *csv.Reader
	header   *tree
	columns  int
	offset   int64
	from     int64
	progress func(int64)
	records  []Record
}

func openCSV(f File, from int64, progress func(int64)) (*csvSource, error) {
	in, err := os.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("open the file: %w", err)
	}
	bound := &boundedReader{r: in}
	s := &csvSource{file: f, in: in, bound: bound, csv: csv.NewReader(bound), from: from, progress: progress}
	s.csv.FieldsPerRecord = -1
	s.csv.LazyQuotes = false
	names, err := s.read()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the first line of %s, which names the columns: %w", f.Path, err), in.Close())
	}
	s.columns = len(names)
	s.header = &tree{}
	for i, name := range names {
		name = strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))
		if name == "" {
			return nil, errors.Join(fmt.Errorf("column %d of %s has no name", i+1, f.Path), in.Close())
		}
		if !s.header.put(strings.Split(name, "."), i) {
			return nil, errors.Join(fmt.Errorf("column %q stands twice in %s", name, f.Path), in.Close())
		}
	}
	return s, nil
}

// read gives the next row. One longer than an event may be is an error: what comes behind a quote that is never closed is one field, and
// where the next row begins can't be told.
func (s *csvSource) read() ([]string, error) {
	s.bound.until = s.csv.InputOffset() + EventBytesMax + csvBufferBytes
	row, err := s.csv.Read()
	if s.bound.over {
		return nil, fmt.Errorf("the next row is longer than %d bytes: close the quote that may be open in it, or leave the row out", EventBytesMax)
	}
	return row, err
}

// csvBufferBytes is what the reader of CSV may have read beyond the end of a row.
const csvBufferBytes = 4096

// boundedReader ends with an error at so many bytes, which may be moved on.
type boundedReader struct {
	r     io.Reader
	n     int64
	until int64
	over  bool
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.over = b.n >= b.until; b.over {
		return 0, errTooLong
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.until-b.n)])
	b.n += int64(n)
	return n, err
}

var errTooLong = errors.New("too long")

func (s *csvSource) Close() error { return s.in.Close() }

// Poll reads the next rows. An error comes after everything before it has been given.
func (s *csvSource) Poll(ctx context.Context) (Poll, error) {
	s.records = s.records[:0]
	poll := Poll{}
	size := 0
	for s.failed == nil && len(s.records) < pollRecords && size < pollBytes {
		if err := ctx.Err(); err != nil {
			return Poll{}, err
		}
		row, err := s.read()
		if errors.Is(err, io.EOF) {
			poll.Done = true
			poll.Ends = []feature.Partition{{Topic: s.file.Topic}}
			break
		}
		value, malformed, err := s.render(row, err)
		if err != nil {
			s.failed = fmt.Errorf("read %s behind row %d: %w", s.file.Path, s.offset, err)
			break
		}
		offset := s.offset
		s.offset++
		if offset < s.from {
			continue
		}
		size += len(value)
		s.records = append(s.records, Record{Position: feature.Position{Topic: s.file.Topic, Offset: offset}, Value: value, Text: true, Malformed: malformed})
	}
	if s.failed != nil && len(s.records) == 0 {
		return Poll{}, s.failed
	}
	s.progress(s.csv.InputOffset())
	poll.Records = s.records
	return poll, nil
}

// render gives a row as a JSON object, or where the row is malformed as what could be read of it, and why it is.
func (s *csvSource) render(row []string, err error) (value []byte, malformed string, _ error) {
	var syntax *csv.ParseError
	switch {
	case errors.As(err, &syntax):
		return []byte(strings.Join(row, ",")), fmt.Sprintf("not CSV: line %d, column %d: %v", syntax.Line, syntax.Column, syntax.Err), nil
	case err != nil:
		return nil, "", err
	case len(row) != s.columns:
		return []byte(strings.Join(row, ",")), fmt.Sprintf("not CSV: the number of fields is %d, and %d in the first line", len(row), s.columns), nil
	}
	value = s.header.append(nil, func(b []byte, column int) []byte {
		if row[column] == "" {
			return append(b, "null"...)
		}
		b, err := jsontext.AppendQuote(b, row[column])
		if err != nil { // text that isn't UTF-8 is refused as JSON, too
			b = append(append(append(b, '"'), row[column]...), '"')
		}
		return b
	})
	return value, "", nil
}

// tree says how columns nest in a JSON object.
type tree struct {
	names    []string
	children []*tree
	column   int
}

// put places a column at a path; it is false where something is there already.
func (t *tree) put(path []string, column int) bool {
	for i, name := range t.names {
		if name == path[0] {
			return len(path) > 1 && t.children[i].names != nil && t.children[i].put(path[1:], column)
		}
	}
	child := &tree{column: column}
	t.names = append(t.names, path[0])
	t.children = append(t.children, child)
	return len(path) == 1 || child.put(path[1:], column)
}

// append renders the object; value appends the value of a column.
func (t *tree) append(b []byte, value func(b []byte, column int) []byte) []byte {
	b = append(b, '{')
	for i, child := range t.children {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, t.names[i])
		b = append(b, ':')
		if child.names != nil {
			b = child.append(b, value)
		} else {
			b = value(b, child.column)
		}
	}
	return append(b, '}')
}
