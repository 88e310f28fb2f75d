package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// reasons are the words of the manifest of helpdesk_dirty.jsonl.gz and what loam calls them.
var reasons = map[string]feature.Reason{
	"truncated_json": feature.NotJSON, "not_json": feature.NotJSON, "json_array": feature.NotJSON, "nan_literal": feature.NotJSON,
	"missing_envelope": feature.BadEnvelope, "empty_object": feature.BadEnvelope, "missing_event_id": feature.BadEnvelope,
	"bad_timestamp": feature.BadEnvelope, "bad_uuid": feature.BadEnvelope, "missing_payload_key": feature.MissingKey,
	"negative_amount_string": feature.MissingKey, "wrong_type": feature.BadValue, "unknown_enum": feature.BadValue,
	"unknown_event_type": feature.UnknownType, "future_schema": feature.UnknownSchema,
}

// The numbers of the help-desk files, from their manifests.
const (
	helpdeskEvents = 27420
	dirtyLines     = 29008
	malformedLines = 548
)

// helpdeskLines are the lines of one of the files.
func helpdeskLines(t *testing.T, name string) [][]byte {
	t.Helper()
	f, err := os.Open(shared(t, "data/"+name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]byte
	scanner := bufio.NewScanner(unpacked)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		lines = append(lines, bytes.Clone(scanner.Bytes()))
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}

// malformed are the numbers of the dirty file's malformed lines, from 0, and what is wrong with each.
func malformed(t *testing.T) map[int64]string {
	t.Helper()
	text, err := os.ReadFile(shared(t, "data/helpdesk_dirty.manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Bad [][2]any }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	lines := map[int64]string{}
	for _, b := range manifest.Bad {
		lines[int64(b[0].(float64))-1] = b[1].(string)
	}
	return lines
}

// state is what a project must agree on, however the events came in.
type state struct{ log, engagements, history []string }

func stateOf(t *testing.T, dir string) state {
	t.Helper()
	verifyClean(t, dir)
	without := append(slices.Clone(recordedColumns), positionColumns...)
	return state{logRows(t, dir, "contact", without...), logRows(t, dir, "engagement", without...), historyRows(t, dir, "contact", without...)}
}

func (s state) same(t *testing.T, want state) {
	t.Helper()
	sameRows(t, "contact log", s.log, want.log)
	sameRows(t, "engagement log", s.engagements, want.engagements)
	sameRows(t, "contact history", s.history, want.history)
}

// The dirty file ends in the state of the clean one, with its malformed lines in the dead letters: whole, in two
// backfills, loaded twice, and loaded again under another name.
func TestHelpdeskDirtyEqualsClean(t *testing.T) {
	dirty := shared(t, "data/helpdesk_dirty.jsonl.gz")
	clean := newProject(t, "")
	took := backfill(t, clean, shared(t, "data/helpdesk.jsonl.gz"))
	if took.Total != (counts{Read: helpdeskEvents, Accepted: helpdeskEvents}) {
		t.Fatalf("clean: %+v", took)
	}
	want := stateOf(t, clean)
	lines := helpdeskLines(t, "helpdesk_dirty.jsonl.gz")

	t.Run("whole, twice and renamed", func(t *testing.T) {
		dir := newProject(t, "")
		refused := map[string]letter{}
		lettersOf(t, dirty, lines, 0, refused)
		first := backfill(t, dir, dirty)
		addUp(t, first)
		if c := first.Total; c.Read != dirtyLines || c.Refused != malformedLines || c.Accepted != helpdeskEvents {
			t.Errorf("%+v", c)
		}
		stateOf(t, dir).same(t, want)
		lettersAre(t, dir, refused)
		renamed := filepath.Join(t.TempDir(), "renamed.jsonl.gz")
		text, err := os.ReadFile(dirty)
		if err != nil {
			t.Fatal(err)
		}
		write(t, renamed, string(text))
		if again := backfill(t, dir, dirty, renamed); again.Total.Accepted != 0 || again.Total.Refused != 0 {
			t.Errorf("loaded again: %+v", again)
		}
		stateOf(t, dir).same(t, want)
		lettersAre(t, dir, refused)
	})
	t.Run("in two backfills", func(t *testing.T) {
		dir := newProject(t, "")
		refused := map[string]letter{}
		half := len(lines) / 2
		var sum counts
		for i, part := range [][][]byte{lines[:half], lines[half:]} {
			path := filepath.Join(t.TempDir(), fmt.Sprintf("part%d.jsonl", i))
			write(t, path, string(bytes.Join(part, []byte("\n")))+"\n")
			lettersOf(t, path, part, i*half, refused)
			took := backfill(t, dir, path)
			addUp(t, took)
			sum = counts{sum.Read + took.Total.Read, sum.Accepted + took.Total.Accepted, sum.Refused + took.Total.Refused, sum.Duplicate + took.Total.Duplicate}
		}
		if sum.Read != dirtyLines || sum.Refused != malformedLines || sum.Accepted != helpdeskEvents {
			t.Errorf("%+v", sum)
		}
		stateOf(t, dir).same(t, want)
		lettersAre(t, dir, refused)
	})
}

func addUp(t *testing.T, took taken) {
	t.Helper()
	if c := took.Total; c.Read != c.Accepted+c.Refused+c.Duplicate {
		t.Errorf("read is not accepted + refused + duplicate: %+v", c)
	}
}

// letter is a dead letter as a test expects it.
type letter struct {
	reason feature.Reason
	body   string
}

// lettersOf are the dead letters that a file with these lines must leave, by position; the lines begin at number first of
// the dirty file.
func lettersOf(t *testing.T, path string, lines [][]byte, first int, into map[string]letter) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line, kind := range malformed(t) {
		if at := int(line) - first; at >= 0 && at < len(lines) {
			reason, known := reasons[kind]
			if !known {
				t.Fatalf("the manifest has the unknown kind %q", kind)
			}
			into[fmt.Sprintf("file:%x/0@%d", sha256.Sum256(text), at)] = letter{reason, string(lines[at])}
		}
	}
}

// lettersAre fails the test unless the dead letters are these, each once, with its reason and the bytes of its line.
func lettersAre(t *testing.T, dir string, want map[string]letter) {
	t.Helper()
	r := openLake(t, dir)
	letters, err := r.OpenDeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{}
	err = letters.Each(t.Context(), r.db, "true", lake.ByPosition, 10*malformedLines, func(l feature.DeadLetter) error {
		at := l.Position.String()
		if kept[at] {
			t.Errorf("%s is kept twice", at)
		}
		kept[at] = true
		if w, ok := want[at]; !ok || l.Reason != w.reason || string(l.Body) != w.body {
			t.Errorf("%s: %s, want %s, and the bytes of its line: %v", at, l.Reason, w.reason, string(l.Body) == w.body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(want) != malformedLines || len(kept) != len(want) {
		t.Errorf("%d dead letters, want %d of %d", len(kept), len(want), malformedLines)
	}
	// The command tells the same.
	list := runJSON[struct {
		Letters []struct{ Position, Reason string }
	}](t, dir, "dlq", "list", "--limit", "10000")
	for _, l := range list.Letters {
		if string(want[l.Position].reason) != l.Reason {
			t.Errorf("dlq list: %s: %s, want %s", l.Position, l.Reason, want[l.Position].reason)
		}
	}
	if len(list.Letters) != len(want) {
		t.Errorf("dlq list: %d dead letters, want %d", len(list.Letters), len(want))
	}
}
