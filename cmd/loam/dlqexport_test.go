package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// keepLetters puts dead letters into a project's table.
func keepLetters(t *testing.T, a *app, letters ...feature.DeadLetter) {
	t.Helper()
	_, l, err := a.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	table, err := l.OpenDeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var spans []feature.Span
	for _, d := range letters {
		spans = append(spans, feature.Span{Partition: feature.Partition{Topic: d.Topic, Index: d.Partition}, To: d.Offset + 1})
	}
	if err := table.Commit(t.Context(), letters, spans, "run-1"); err != nil {
		t.Fatal(err)
	}
}

// What is exported is what was refused, byte by byte, as DuckDB reads it.
func TestExportLetters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var text bytes.Buffer
	a := &app{dir: dir, out: &text, err: io.Discard, now: func() time.Time { return now }}
	at := func(days int) int64 { return now.AddDate(0, 0, -days).UnixMicro() }
	keepLetters(t, a,
		feature.DeadLetter{
			Position: feature.Position{Topic: "contact.v1", Partition: 2, Offset: 7}, Stream: "contact", Reason: feature.NotJSON, Detail: "no JSON", RecordedAt: at(1),
			RecordKey: []byte("c\xff"), Body: []byte{0, 0xff, '\n'}, RecordTime: at(2),
			Headers: []feature.Header{{Key: "trace", Value: []byte{1, 0}}, {Key: "trace", Value: nil}, {Key: "", Value: []byte{}}},
		},
		feature.DeadLetter{Position: feature.Position{Topic: "contact.v1", Partition: 2, Offset: 8}, Stream: "contact", Reason: feature.MissingKey, RecordedAt: at(3), Body: []byte{}},
		feature.DeadLetter{Position: feature.Position{Topic: "contact.v1", Partition: 3, Offset: 0}, Stream: "contact", Reason: feature.MissingKey, RecordedAt: at(9)},
		feature.DeadLetter{Position: feature.Position{Topic: "file:aa", Offset: 5}, Reason: feature.NotJSON, RecordedAt: at(0), Body: []byte("what")},
	)
	db, err := sql.Open(t.Context(), sql.Options{Files: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	export := func(flags ...string) string {
		t.Helper()
		out := filepath.Join(dir, "letters.parquet")
		root := a.root()
		root.SetArgs(append([]string{"dlq", "export", "-C", dir, "--out", out}, flags...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		var found string
		err := db.QueryRow(t.Context(), `SELECT coalesce(string_agg(concat_ws(' ', position, stream, reason, hex(record_key),
coalesce(hex(body), 'none'), epoch_us(record_time), epoch_us(recorded_at), job_id, coalesce(outcome, '-'),
list_transform(headers, lambda h: h.key || '=' || coalesce(hex(h.value), 'null'))::VARCHAR), ';' ORDER BY topic, "partition", "offset"), '')
FROM read_parquet(`+string(sql.Literal(out))+")", nil, &found)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	one := "contact.v1/2@7 contact not_json 63FF 00FF0A 1772193600000000 1772280000000000 run-1 - ['trace=0100', 'trace=null', '=']"
	two := "contact.v1/2@8 contact missing_key  1772107200000000 run-1 - []"
	three := "contact.v1/3@0 contact missing_key none 1771588800000000 run-1 - []"
	four := "file:aa/0@5  not_json 77686174 1772366400000000 run-1 - []"
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{nil, one + ";" + two + ";" + three + ";" + four},
		{[]string{"--stream", "contact", "--reason", "missing_key"}, two + ";" + three},
		{[]string{"--since", "2d"}, one + ";" + four},
		{[]string{"--since", "2026-02-26", "--stream", "contact"}, one + ";" + two},
		{[]string{"--since", "2026-03-01T12:00:00Z"}, four},
		{[]string{"--redriven"}, ""},
		{[]string{"--stream", "engagement"}, ""},
	} {
		if got := export(c.flags...); got != c.want {
			t.Errorf("%v:\n%s\nwant\n%s", c.flags, got, c.want)
		}
	}
	none := filepath.Join(dir, "none.parquet")
	for _, flags := range [][]string{{"--out", "letters.csv"}, {"--out", none, "--since", "yesterday"}, {"--out", none, "--reason", "nosuch"},
		{"--out", none, "--stream", "nosuch"}, {"--out", filepath.Join(dir, "no", "x.parquet")}, nil} {
		root := a.root()
		root.SetArgs(append([]string{"dlq", "export", "-C", dir}, flags...))
		err := root.ExecuteContext(t.Context())
		if err == nil || slices.Contains(flags, "--stream") && !strings.Contains(err.Error(), `there is no stream "nosuch"`) {
			t.Errorf("%v: %v", flags, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*none.parquet*")); err != nil || left != nil {
		t.Errorf("written in spite of an error: %v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".letters.parquet.*")); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
