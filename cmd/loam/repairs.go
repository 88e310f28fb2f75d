package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/parquet-go/parquet-go"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// repair is a repaired record for a dead letter.
type repair struct {
	body  []byte // nil is a tombstone
	key   []byte // nil for the letter's own
	place string // where it stands, for errors
}

// readRepairs reads a file of repaired records, by the positions of their letters.
func readRepairs(path string) (map[feature.Position]repair, error) {
	repairs := map[feature.Position]repair{}
	add := func(position string, one repair) error {
		p, err := parsePosition(position)
		if err != nil {
			return fmt.Errorf("%s: %w", one.place, err)
		}
		if before, twice := repairs[p]; twice {
			return fmt.Errorf("%s: %s stands at %s, too: give one record for it", one.place, p, before.place)
		}
		repairs[p] = one
		return nil
	}
	var err error
	switch name := strings.ToLower(path); {
	case strings.HasSuffix(name, ".jsonl"):
		err = readRepairLines(path, add)
	case strings.HasSuffix(name, ".parquet"):
		err = readRepairRows(path, add)
	default:
		return nil, misused("--with %s: can't tell what it holds; its name must end in .jsonl or .parquet", path)
	}
	if err == nil && len(repairs) == 0 {
		err = fmt.Errorf("%s holds no records", path)
	}
	return repairs, err
}

// repairLine is a line of a .jsonl file of repaired records, and what `loam dlq show --json` prints of a letter.
type repairLine struct {
	Position string          `json:"position"`
	Body     json.RawMessage `json:"body"`
	Key      *string         `json:"record_key"`
	Base64   bool            `json:"base64"`
}

func readRepairLines(path string, add func(string, repair) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the repaired records: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 2*ingest.EventBytesMax)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		place := fmt.Sprintf("%s:%d", path, n)
		var line repairLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf(`%s: not a repaired record: %w; write {"position": "contact.v1/0@117", "body": {...}}`, place, err)
		}
		one, err := line.repair(place)
		if err != nil {
			return err
		}
		if err := add(line.Position, one); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// repair reads a line's record. A body that is text is the record's bytes; null is a tombstone.
func (l *repairLine) repair(place string) (repair, error) {
	one := repair{place: place}
	bytesOf := func(text string) ([]byte, error) {
		if !l.Base64 {
			return []byte(text), nil
		}
		return base64.StdEncoding.DecodeString(text)
	}
	var err error
	switch {
	case l.Body == nil:
		return one, fmt.Errorf("%s: body is missing; a tombstone says null", place)
	case l.Body[0] == '"':
		var text string
		if err = json.Unmarshal(l.Body, &text); err == nil {
			one.body, err = bytesOf(text)
		}
	case string(l.Body) != "null":
		one.body = bytes.Clone(l.Body)
	}
	if err == nil && l.Key != nil {
		one.key, err = bytesOf(*l.Key)
	}
	if err != nil {
		return one, fmt.Errorf("%s: body or record_key is not base64, as it says: %w", place, err)
	}
	return one, nil
}

// repairRow is what is read of a row of a Parquet file of repaired records.
type repairRow struct {
	Position *string `parquet:"position"`
	Body     []byte  `parquet:"body,optional"`
	Key      []byte  `parquet:"record_key,optional"`
}

func readRepairRows(path string, add func(string, repair) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the repaired records: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("open the repaired records: %w", err)
	}
	opened, err := parquet.OpenFile(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s is no Parquet file: %w", path, err)
	}
	for _, name := range []string{"position", "body"} {
		if column, ok := opened.Schema().Lookup(name); !ok || column.Node.Type().Kind() != parquet.ByteArray {
			return fmt.Errorf("%s has no column %s of text or bytes; `loam dlq export` writes a file to start from", path, name)
		}
	}
	defer func() {
		if broken := recover(); broken != nil { // what the library does with columns of other types
			err = fmt.Errorf("read %s: %v", path, broken)
		}
	}()
	rows := parquet.NewGenericReader[repairRow](opened)
	defer rows.Close()
	for n := 1; ; n++ {
		var row [1]repairRow
		_, err := rows.Read(row[:])
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if row[0].Position != nil {
			one := repair{body: bytes.Clone(row[0].Body), key: bytes.Clone(row[0].Key), place: fmt.Sprintf("%s, row %d", path, n)}
			if err := add(*row[0].Position, one); err != nil {
				return err
			}
		} else if err == nil {
			return fmt.Errorf("%s, row %d: position is missing", path, n)
		}
		if err != nil {
			return nil
		}
	}
}
