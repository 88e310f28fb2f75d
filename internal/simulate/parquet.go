package simulate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// Bounds of what a Parquet file keeps in memory.
const (
	parquetBatch       = 1024 // rows handed to the library at a time
	parquetRowGroupMax = 100_000
)

// Parquet writes a file a stream, <dir>/<stream>.parquet: the columns envelope and payload, nested as in JSON, a row a
// delivery in order of arrival. Malformed events have no place in it; they are left out and counted.
type Parquet struct {
	LeftOut int // malformed events that were not written

	contacts      *table[contactRow]
	opportunities *table[opportunityRow]
	engagements   *table[engagementRow]
}

// CreateParquet makes the files in dir, which exists, or makes them anew.
func CreateParquet(dir string) (*Parquet, error) {
	contacts, err1 := createTable[contactRow](dir, contactStream)
	opportunities, err2 := createTable[opportunityRow](dir, opportunityStream)
	engagements, err3 := createTable[engagementRow](dir, engagementStream)
	p := &Parquet{contacts: contacts, opportunities: opportunities, engagements: engagements}
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Write writes one event.
func (p *Parquet) Write(e Event) error {
	if e.Reason != "" {
		p.LeftOut++
		return nil
	}
	switch e.Stream {
	case streamNames[contactStream]:
		return p.contacts.write(e.Value)
	case streamNames[opportunityStream]:
		return p.opportunities.write(e.Value)
	default:
		return p.engagements.write(e.Value)
	}
}

// Close completes the files.
func (p *Parquet) Close() error {
	return errors.Join(p.contacts.close(), p.opportunities.close(), p.engagements.close())
}

// table is one file of rows R; nil closes as nothing.
type table[R any] struct {
	name   string
	file   *os.File
	writer *parquet.GenericWriter[R]
	rows   []R
}

func createTable[R any](dir string, of stream) (*table[R], error) {
	name := filepath.Join(dir, streamNames[of]+".parquet")
	file, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create the Parquet file of stream %s: %w", streamNames[of], err)
	}
	return &table[R]{
		name: name, file: file, rows: make([]R, 0, parquetBatch),
		writer: parquet.NewGenericWriter[R](file, parquet.Compression(&zstd.Codec{}), parquet.MaxRowsPerRowGroup(parquetRowGroupMax)),
	}, nil
}

func (t *table[R]) write(value []byte) error {
	var row R
	if err := json.Unmarshal(value, &row); err != nil {
		return fmt.Errorf("make a row of an event for %s: %w", t.name, err)
	}
	if t.rows = append(t.rows, row); len(t.rows) < cap(t.rows) {
		return nil
	}
	return t.flush()
}

func (t *table[R]) flush() error {
	_, err := t.writer.Write(t.rows)
	t.rows = t.rows[:0]
	if err != nil {
		return fmt.Errorf("write rows to %s: %w", t.name, err)
	}
	return nil
}

func (t *table[R]) close() error {
	if t == nil {
		return nil
	}
	err := t.flush()
	if closing := errors.Join(t.writer.Close(), t.file.Close()); closing != nil {
		err = errors.Join(err, fmt.Errorf("complete %s: %w", t.name, closing))
	}
	return err
}
