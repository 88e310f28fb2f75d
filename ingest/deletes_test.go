package ingest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
)

// kindIs is what the condition kind = '<kind>' says; with "" it is kind IS NULL.
func kindIs(kind string) Condition {
	return func(_ context.Context, rows arrow.RecordBatch) ([]bool, error) {
		kinds := rows.Column(rows.Schema().FieldIndices("kind")[0]).(*array.String)
		found := make([]bool, rows.NumRows())
		for i := range found {
			found[i] = kinds.IsNull(i) == (kind == "") && kinds.Value(i) == kind
		}
		return found, nil
	}
}

// deleting reads records through a router for the wide stream, whose delete_when says what the condition does.
func deleting(t *testing.T, condition Condition, edit func(*feature.Stream), d *Dedup, records []Record) []map[string]any {
	t.Helper()
	s := wide()
	s.DeleteWhen = "told by the test"
	if edit != nil {
		edit(s)
	}
	dedups := newDedups(t, []*feature.Stream{s})
	if d != nil {
		dedups[s.Name] = d
	}
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: dedups, Deletes: map[string]Condition{s.Name: condition}, JobID: "job",
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	for i := range records {
		r.Add(&records[i], testNow)
	}
	batches, err := r.Flush(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rows := jsonRows(t, batches)
	if counts, _, refused := total(batches); len(refused) > 0 || counts.Read != int64(len(records)) || counts.Read != counts.Accepted+counts.Refused+counts.Duplicate {
		t.Errorf("counts %+v, refused %+v", counts, refused)
	}
	return rows
}

// A record for which the condition is true is a delete at its event time: its columns but the key are null, and what tells
// the event is as it is without the condition.
func TestDeleteWhen(t *testing.T) {
	// Reading a record uses its bytes up.
	records := func() []Record {
		return []Record{record("file:x", 0, `{"id":"k","at":"2026-10-01T00:00:00Z","seq":4,"b":true,"n":7,"x":0.5,"amount":{"value":1.25},`+
			`"t":"2026-10-01T00:00:00Z","day":"2026-10-01","j":{"gone":"yes"},"tags":["x",null],"kind":"a","more":1}`)}
	}
	plain, refused, _ := routed(t, wide(), records())
	if len(plain) != 1 {
		t.Fatalf("refused %+v", refused)
	}
	for kind, want := range map[string]string{"a": "delete", "b": "upsert"} {
		row := deleting(t, kindIs(kind), nil, nil, records())[0]
		for name, value := range plain[0] {
			column, own := wide().Column(name)
			switch {
			case name == "op":
				value = want
			case own && column.Name != "id" && want == "delete":
				value = nil
			}
			if fmt.Sprint(row[name]) != fmt.Sprint(value) {
				t.Errorf("%s: %s is %v, want %v", want, name, row[name], value)
			}
		}
	}
}

// Which rows are duplicates is decided by what was read, whatever the condition makes of it.
func TestDeleteWhenAndDuplicates(t *testing.T) {
	rows := deleting(t, kindIs("a"), nil, nil, []Record{
		record("file:x", 0, `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"b"}`),
		record("file:x", 1, `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"a"}`),
		record("file:x", 2, `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"a"}`),
		record("file:x", 3, `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"b"}`),
	})
	if len(rows) != 2 || rows[0]["op"] != "upsert" || rows[1]["op"] != "delete" {
		t.Errorf("rows %v", rows)
	}
}

// A delete of a patch stream carries no columns; a tombstone is one where the condition is true of nulls, too.
func TestDeleteWhenOfPatches(t *testing.T) {
	patch := func(s *feature.Stream) { s.Payload, s.ID = feature.PatchPayload, feature.PositionID }
	rows := deleting(t, kindIs(""), patch, nil, []Record{
		record("wide.v1", 0, `{"id":"k","at":"2026-10-01T00:00:00Z","kind":"a"}`),
		record("wide.v1", 1, `{"id":"k","at":"2026-10-02T00:00:00Z","n":1}`),
		{Position: feature.Position{Topic: "wide.v1", Offset: 2}, Key: []byte("k"), Timestamp: testNow},
	})
	if len(rows) != 3 || fmt.Sprint(rows[0]["present"]) != "[id kind]" || rows[0]["op"] != "upsert" {
		t.Fatalf("rows %v", rows)
	}
	for _, r := range rows[1:] {
		if r["op"] != "delete" || r["present"] != nil || r["n"] != nil || r["id"] != "k" {
			t.Errorf("row %v", r)
		}
	}
}

// The condition is asked of what is left once duplicates older than the window are dropped.
func TestDeleteWhenAndOldDuplicates(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	old := map[feature.Identity]feature.Position{}
	d := NewDedup(100, func(_ context.Context, ids []feature.Identity) (map[feature.Identity]feature.Position, error) {
		for _, id := range ids {
			if random.IntN(4) == 0 {
				old[id] = feature.Position{Topic: "elsewhere", Offset: 1}
			}
		}
		return old, nil
	})
	want := map[string]string{}
	var records []Record
	for i := range 5000 {
		id, kind, op := fmt.Sprintf("k%d", i), []string{`"a"`, `"b"`, "null"}[random.IntN(3)], "upsert"
		if kind == `"a"` {
			op = "delete"
		}
		want[id] = op
		records = append(records, record("wide.v1", int64(i), fmt.Sprintf(`{"id":%q,"at":"2026-10-01T00:00:00Z","n":1,"kind":%s}`, id, kind)))
	}
	rows := deleting(t, kindIs("a"), nil, d, records)
	for id := range old {
		delete(want, id.Key)
	}
	if len(rows) != len(want) || len(old) == 0 {
		t.Errorf("%d rows, want %d; %d old", len(rows), len(want), len(old))
	}
	for _, row := range rows {
		if op := want[row["id"].(string)]; row["op"] != op || (row["n"] == nil) != (op == "delete") {
			t.Fatalf("row %v, want %s", row, op)
		}
	}
}
