package ingest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
)

// pollRecords and pollBytes bound what one poll of a file or folder gives.
const (
	pollRecords = step.PollRecords
	pollBytes   = 8 << 20
)

// File is a file to backfill, told by its content.
type File struct {
	Path      string
	Topic     string // file:<sha256>
	SizeBytes int64
	kind      fileKind
}

type fileKind uint8

const (
	jsonLines fileKind = iota
	jsonLinesGzip
	csvFile
	parquetFile
)

// ErrEmptyFile: there is nothing to read.
var ErrEmptyFile = errors.New("the file is empty")

// StatFile reads a file through once to tell it by its content, and refuses one that can't be backfilled. With
// [ErrEmptyFile] the file it gives is complete.
func StatFile(ctx context.Context, path string) (File, error) {
	f := File{Path: path}
	if info, err := os.Stat(path); err != nil {
		return f, fmt.Errorf("open the file: %w", err)
	} else if info.IsDir() {
		return f, fmt.Errorf("%s is a folder; name the files in it", path)
	}
	name := strings.ToLower(filepath.Base(path))
	switch {
	case strings.HasSuffix(name, ".jsonl"), strings.HasSuffix(name, ".ndjson"):
		f.kind = jsonLines
	case strings.HasSuffix(name, ".jsonl.gz"), strings.HasSuffix(name, ".ndjson.gz"):
		f.kind = jsonLinesGzip
	case strings.HasSuffix(name, ".csv"):
		f.kind = csvFile
	case strings.HasSuffix(name, ".parquet"):
		f.kind = parquetFile
	default:
		return f, fmt.Errorf("%s: can't tell what it holds; its name must end in .jsonl, .jsonl.gz, .csv or .parquet", path)
	}
	in, err := os.Open(path)
	if err != nil {
		return f, fmt.Errorf("open the file: %w", err)
	}
	defer in.Close()
	sum := sha256.New()
	if f.SizeBytes, err = io.Copy(sum, contextReader{ctx, in}); err != nil {
		return f, fmt.Errorf("read %s: %w", path, err)
	}
	f.Topic = feature.FileTopicPrefix + hex.EncodeToString(sum.Sum(nil))
	if f.SizeBytes == 0 {
		return f, fmt.Errorf("%s: %w", path, ErrEmptyFile)
	}
	return f, nil
}

// Rows reports whether the file holds rows rather than events.
func (f File) Rows() bool { return f.kind == csvFile }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Open opens the file as a source from a line or row on. Progress, if not nil, is told the bytes of the file that were
// read so far.
func (f File) Open(from int64, progress func(bytes int64)) (Source, error) {
	if progress == nil {
		progress = func(int64) {}
	}
	switch f.kind {
	case csvFile:
		return openCSV(f, from, progress)
	case parquetFile:
		return openParquet(f, from, progress)
	default:
		return openLines(f, from, progress)
	}
}

// lineSource reads a .jsonl file, packed by gzip or not. A line is an event; empty lines count but hold none.
type lineSource struct {
	file     File
	in       *os.File
	counted  *countingReader
	lines    *lineReader
	offset   int64
	from     int64
	progress func(int64)
	records  []Record
	arena    []byte
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func openLines(f File, from int64, progress func(int64)) (*lineSource, error) {
	in, err := os.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("open the file: %w", err)
	}
	s := &lineSource{file: f, in: in, counted: &countingReader{r: in}, from: from, progress: progress}
	var r io.Reader = s.counted
	if f.kind == jsonLinesGzip {
		if r, err = gzip.NewReader(bufio.NewReaderSize(s.counted, 1<<20)); err != nil {
			return nil, errors.Join(fmt.Errorf("%s is not a gzip file; if it is not packed, end its name in .jsonl: %w", f.Path, err), in.Close())
		}
	}
	s.lines = newLineReader(r)
	return s, nil
}

func (s *lineSource) Close() error { return s.in.Close() }

// Poll reads the next lines. An error comes after everything before it has been given.
func (s *lineSource) Poll(ctx context.Context) (Poll, error) {
	s.records, s.arena = s.records[:0], s.arena[:0]
	poll := Poll{}
	size := 0
	for len(s.records) < pollRecords && size < pollBytes {
		if err := ctx.Err(); err != nil {
			return Poll{}, err
		}
		line, cut, err := s.lines.next(true)
		if errors.Is(err, io.EOF) {
			poll.Done = true
			poll.Ends = []feature.Partition{{Topic: s.file.Topic}}
			break
		}
		if err != nil {
			if len(s.records) > 0 {
				break // the reader gives the error again
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("it ends in the middle, as if it was cut off: replace it by a whole copy")
			}
			return Poll{}, fmt.Errorf("read %s behind line %d: %w", s.file.Path, s.offset, err)
		}
		offset := s.offset
		s.offset++
		if offset < s.from {
			continue
		}
		size += len(line)
		s.records = append(s.records, Record{Position: feature.Position{Topic: s.file.Topic, Offset: offset}, Value: line, Cut: cut})
	}
	s.progress(s.counted.n)
	poll.Records = s.records
	return poll, nil
}

// lineReader gives lines of any length; each line has memory of its own.
type lineReader struct {
	r    *bufio.Reader
	read int64 // bytes of the lines given so far, ends included
	err  error
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: bufio.NewReaderSize(r, 1<<20)} }

// next gives the next line without its end. A line longer than EventBytesMax is cut. With last, a last line without an
// end counts as one, too. At the end it gives io.EOF; errors repeat.
func (l *lineReader) next(last bool) (line []byte, cut bool, err error) {
	if l.err != nil {
		return nil, false, l.err
	}
	size := int64(0)
	for {
		part, err := l.r.ReadSlice('\n')
		size += int64(len(part))
		if len(line)+len(part) > EventBytesMax+1 {
			cut = true
			line = append(line, part[:max(0, min(len(part), CutBytes-len(line)))]...)
			line = line[:min(len(line), CutBytes)]
		} else if !cut {
			line = append(line, part...)
		}
		switch {
		case err == nil:
			l.read += size
			return trimEnd(line), cut, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(line) > 0 && last:
			l.err = io.EOF
			return trimEnd(line), cut, nil
		default:
			l.err = err
			return nil, false, err
		}
	}
}

func trimEnd(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if line == nil {
		line = []byte{}
	}
	return line
}
