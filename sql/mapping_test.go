//go:build duckdb_arrow

package sql

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Values are written as text that says exactly what they are; a record for which an expression fails costs no other its row.
func TestMapping(t *testing.T) {
	m, err := OpenMapping(t.Context(), []Mapped{
		{Name: "id", Expr: "record->>'$.id' -- a comment", Type: "VARCHAR"}, {Name: "n", Expr: "(record->>'$.n')::BIGINT * 2", Type: "BIGINT"},
		{Name: "amount", Expr: "record->>'$.amount'", Type: "DECIMAL(12,2)"}, {Name: "at", Expr: "record_time", Type: "TIMESTAMPTZ"},
		{Name: "on", Expr: "(record->>'$.on')::DATE", Type: "DATE"}, {Name: "times", Expr: "[record_time]", Type: "TIMESTAMPTZ[]"},
		{Name: "tags", Expr: "(record->'$.tags')::VARCHAR[]", Type: "VARCHAR[]"}, {Name: "doc", Expr: "record->'$.doc'", Type: "VARCHAR", JSON: true},
		{Name: "key", Expr: "record_key", Type: "VARCHAR"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	key, at := "k \"é\"", time.Date(2026, 11, 1, 1, 2, 3, 456789000, time.UTC).UnixMicro()
	rows, failed, err := m.Rows(t.Context(), []MappingRecord{
		{JSON: `{"id":"a","n":21,"amount":12.345,"on":"2026-11-01","tags":["x",null],"doc":{"b":[1]}}`, Key: &key, Time: &at}, {JSON: `{}`},
	})
	if err != nil || failed[0] != nil || failed[1] != nil {
		t.Fatal(err, failed)
	}
	for i, want := range []string{
		`{"id":"a","n":"42","amount":"12.345","at":"2026-11-01T01:02:03.456789Z","on":"2026-11-01","times":["2026-11-01T01:02:03.456789Z"],` +
			`"tags":["x",null],"doc":"{\"b\":[1]}","key":"k \"é\""}`,
		`{"id":null,"n":null,"amount":null,"at":null,"on":null,"times":[null],"tags":null,"doc":null,"key":null}`,
	} {
		if rows[i] != want {
			t.Errorf("row %d is\n%s\nwant\n%s", i, rows[i], want)
		}
	}

	records := make([]MappingRecord, 1000)
	for i := range records {
		n := fmt.Sprint(i)
		if i%333 == 7 {
			n = `"no number"`
		}
		records[i].JSON = fmt.Sprintf(`{"id":"r%d","n":%s}`, i, n)
	}
	rows, failed, err = m.Rows(t.Context(), records)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		switch bad := i%333 == 7; {
		case bad && (failed[i] == nil || !strings.HasPrefix(failed[i].Error(), "n: Conversion Error: ")):
			t.Errorf("record %d: %v", i, failed[i])
		case !bad && (failed[i] != nil || !strings.Contains(rows[i], fmt.Sprintf(`"id":"r%d","n":"%d"`, i, 2*i))):
			t.Errorf("record %d: %s, %v", i, rows[i], failed[i])
		}
	}
}

func BenchmarkMapping(b *testing.B) {
	m, err := OpenMapping(b.Context(), []Mapped{
		{Name: "id", Expr: "record->>'$.id'", Type: "VARCHAR"}, {Name: "name", Expr: "concat_ws(' ', record->>'$.p.first', record->>'$.p.last')", Type: "VARCHAR"},
		{Name: "at", Expr: "to_timestamp((record->>'$.updated')::BIGINT / 1000)", Type: "TIMESTAMPTZ"},
		{Name: "tags", Expr: "(record->'$.tags')::VARCHAR[]", Type: "VARCHAR[]"},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	records := make([]MappingRecord, 4096)
	for i := range records {
		records[i].JSON = fmt.Sprintf(`{"id":"r%d","updated":1793000000123,"tags":["vip"],"p":{"first":"Ada","last":"Lovelace"},"more":"%s"}`, i, strings.Repeat("x", 400))
	}
	for b.Loop() {
		if _, _, err := m.Rows(b.Context(), records); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(records)), "us/record")
}
