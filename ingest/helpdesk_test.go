package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
)

const helpdeskDir = "../../shared/data/"

// reasons are the words of the manifest of helpdesk_dirty.jsonl.gz and what loam calls them.
var reasons = map[string]feature.Reason{
	"truncated_json": feature.NotJSON, "not_json": feature.NotJSON, "json_array": feature.NotJSON, "nan_literal": feature.NotJSON,
	"missing_envelope": feature.BadEnvelope, "empty_object": feature.BadEnvelope, "missing_event_id": feature.BadEnvelope,
	"bad_timestamp": feature.BadEnvelope, "bad_uuid": feature.BadEnvelope, "missing_payload_key": feature.MissingKey,
	"negative_amount_string": feature.MissingKey, // its key is null
	"wrong_type":             feature.BadValue, "unknown_enum": feature.BadValue,
	"unknown_event_type": feature.UnknownType, "future_schema": feature.UnknownSchema,
}

// readAll reads a file through a router over the built-in streams.
func readAll(t *testing.T, path string, dedups map[string]*Dedup) (batches []*feature.Batch) {
	t.Helper()
	ctx := context.Background()
	f, err := StatFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s is absent", path)
	} else if err != nil {
		t.Fatal(err)
	}
	source, err := f.Open(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	r := NewRouter(RouterOptions{
		Streams: builtins(t), Dedups: dedups, Starts: func(string, feature.Partition) int64 { return 0 },
	})
	now := int64(1_700_000_000_000_000)
	for {
		poll, err := source.Poll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range poll.Records {
			r.Add(&poll.Records[i], now)
		}
		var ends []End
		for _, p := range poll.Ends {
			ends = append(ends, End{Partition: p, At: now, Done: poll.Done})
		}
		got, err := r.Flush(ctx, ends)
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, got...)
		if poll.Done {
			return batches
		}
	}
}

func builtins(t *testing.T) []*feature.Stream {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/loam.yaml", []byte("project: test"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := feature.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.Streams
}

func newDedups(t *testing.T, streams []*feature.Stream) map[string]*Dedup {
	t.Helper()
	dedups := map[string]*Dedup{}
	for _, s := range streams {
		dedups[s.Name] = NewDedup(1<<20, func(context.Context, []feature.Identity) (map[feature.Identity]feature.Position, error) {
			t.Error("the log is asked, though the window holds all")
			return nil, nil
		})
	}
	return dedups
}

// total sums what batches hold, and gives their event ids and dead letters.
func total(batches []*feature.Batch) (counts feature.Counts, ids []string, refused []feature.DeadLetter) {
	for _, b := range batches {
		for _, s := range b.Spans {
			counts.Add(s.Counts)
		}
		refused = append(refused, b.Refused...)
		for _, rows := range b.Rows {
			column := rows.Column(rows.Schema().FieldIndices(feature.ColEventID)[0]).(*array.String)
			for i := range column.Len() {
				ids = append(ids, strings.Clone(column.Value(i)))
			}
		}
		b.Release()
	}
	slices.Sort(ids)
	return counts, ids, refused
}

// Every real help-desk event is accepted from the clean file; the dirty one gives the same events, and each malformed
// line of its manifest as a dead letter with its reason.
func TestHelpdesk(t *testing.T) {
	clean, cleanIDs, refused := total(readAll(t, helpdeskDir+"helpdesk.jsonl.gz", newDedups(t, builtins(t))))
	if clean.Read != 27420 || clean.Accepted != 27420 || len(refused) != 0 {
		t.Errorf("clean: %+v, %d refused", clean, len(refused))
	}
	dirty, dirtyIDs, refused := total(readAll(t, helpdeskDir+"helpdesk_dirty.jsonl.gz", newDedups(t, builtins(t))))
	if dirty.Read != 29008 || dirty.Read != dirty.Accepted+dirty.Refused+dirty.Duplicate || dirty.Refused != 548 {
		t.Errorf("dirty: %+v", dirty)
	}
	if !slices.Equal(cleanIDs, dirtyIDs) {
		t.Errorf("%d events of the clean file and %d of the dirty one are not the same", len(cleanIDs), len(dirtyIDs))
	}
	text, err := os.ReadFile(helpdeskDir + "helpdesk_dirty.manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Bad [][2]any }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	byLine := map[int64]feature.DeadLetter{}
	for _, l := range refused {
		byLine[l.Offset+1] = l
	}
	for _, bad := range manifest.Bad {
		line, kind := int64(bad[0].(float64)), bad[1].(string)
		if l, ok := byLine[line]; !ok || l.Reason != reasons[kind] || len(l.Body) == 0 {
			t.Errorf("line %d, %s: dead letter %v %q, want %s", line, kind, l.Reason, l.Detail, reasons[kind])
		}
	}
	if len(byLine) != len(manifest.Bad) {
		t.Errorf("%d dead letters, want %d", len(byLine), len(manifest.Bad))
	}
}
