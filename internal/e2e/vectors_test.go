package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/loamdata/loam/sql"
)

// vectorCase is a case of ../shared/vectors/scd2.json: changes in order of arrival, and the history that they make by the
// documentation or the tests of another tool.
type vectorCase struct {
	Name      string
	Key       []string
	Track     []string `json:"track_columns"` // nil for all
	Untracked string   // in_place, or ignored: then only tracked columns are compared
	Changes   []vectorChange
	Rows      []struct {
		Key    json.RawMessage
		Values map[string]any
		From   time.Time  `json:"valid_from"`
		To     *time.Time `json:"valid_to"`
	} `json:"expected_rows"`
}

type vectorChange struct {
	Seq     int64
	Op      string
	Key     json.RawMessage
	Values  map[string]any
	EventTS time.Time `json:"event_ts"`
	Partial bool
}

// vectorVariant is one way in which a case's changes arrive: those before cut in the first file, the others in the second.
type vectorVariant struct {
	name    string
	changes []vectorChange
	cut     int
}

// variants are the case as it stands, whole and cut at every place into two files, and, where the sequence settles all
// ties, the same with its changes in reverse.
func (v vectorCase) variants() []vectorVariant {
	var all []vectorVariant
	add := func(name string, changes []vectorChange) {
		for cut := range len(changes) {
			all = append(all, vectorVariant{fmt.Sprintf("%s %02d", name, cut), changes, cut})
		}
	}
	add("as it stands", v.Changes)
	if v.settled() {
		reversed := slices.Clone(v.Changes)
		slices.Reverse(reversed)
		add("reversed", reversed)
	}
	return all
}

// settled reports whether no two different changes of a key have one event time and sequence.
func (v vectorCase) settled() bool {
	at := map[string]string{}
	for _, c := range v.Changes {
		place := fmt.Sprint(string(c.Key), c.EventTS.UnixMicro(), c.Seq)
		what, _ := json.Marshal(c)
		if before, tied := at[place]; tied && before != string(what) {
			return false
		}
		at[place] = string(what)
	}
	return true
}

func (v vectorCase) has(op string) bool {
	return slices.ContainsFunc(v.Changes, func(c vectorChange) bool { return c.Op == op })
}

// columns are the names of the case's values.
func (v vectorCase) columns() []string {
	var names []string
	for _, c := range v.Changes {
		for name := range c.Values {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// compared are the columns that must be as the case has them.
func (v vectorCase) compared() []string {
	if v.Untracked == "ignored" {
		return v.Track
	}
	return v.columns()
}

// typeOf is the type of a column, by the first of the values that is no null.
func (v vectorCase) typeOf(column string) string {
	for _, c := range v.Changes {
		switch value := c.Values[column].(type) {
		case nil:
			continue
		case bool:
			return "bool"
		case json.Number:
			if _, err := value.Int64(); err != nil {
				return "double"
			}
			return "int64"
		default:
			return "string"
		}
	}
	return "string"
}

// keyValues are the parts of a key, which is a list where there are several columns.
func (v vectorCase) keyValues(t *testing.T, raw json.RawMessage) []any {
	t.Helper()
	parts, composite := decodeVector[any](t, raw).([]any)
	if !composite {
		parts = []any{decodeVector[any](t, raw)}
	}
	if len(parts) != len(v.Key) {
		t.Fatalf("%s: the key %s has not the columns %v", v.Name, raw, v.Key)
	}
	return parts
}

// stream is the case's stream as YAML. Its key begins with the variant, so that one stream takes all of them.
func (v vectorCase) stream(t *testing.T, name, format string) string {
	t.Helper()
	var b strings.Builder
	key := []string{"variant"}
	columns := []string{"{name: variant, type: string}"}
	for i, k := range v.Key {
		typ := "string"
		if _, number := v.keyValues(t, v.Changes[0].Key)[i].(json.Number); number {
			typ = "int64"
		}
		key = append(key, keyColumn(k))
		columns = append(columns, fmt.Sprintf("{name: %s, type: %s}", keyColumn(k), typ))
	}
	for _, c := range v.columns() {
		columns = append(columns, fmt.Sprintf("{name: %s, type: %s}", valueColumn(c), v.typeOf(c)))
	}
	fmt.Fprintf(&b, "stream: %s\nkind: state\nformat: %s\nkey: [%s]\nsequence: seq\n", name, format, strings.Join(key, ", "))
	if format == "envelope" {
		fmt.Fprintf(&b, "event_types: [%s.*]\n", eventName(name))
	} else {
		b.WriteString("event_time: at\nid: id\n")
	}
	if slices.ContainsFunc(v.Changes, func(c vectorChange) bool { return c.Partial }) {
		b.WriteString("payload: patch\n")
	}
	if v.Track != nil {
		var tracked []string
		for _, c := range v.Track {
			tracked = append(tracked, valueColumn(c))
		}
		fmt.Fprintf(&b, "track: [%s]\n", strings.Join(tracked, ", "))
	}
	fmt.Fprintf(&b, "columns:\n  - %s\n", strings.Join(columns, "\n  - "))
	return b.String()
}

func keyColumn(name string) string   { return "key_" + strings.ToLower(name) }
func valueColumn(name string) string { return "value_" + strings.ToLower(name) }

// eventName is the part of event types before the dot.
func eventName(stream string) string { return "Vector" + strings.ReplaceAll(stream, "_", "") }

// event is a change as a line of a file. A change that comes twice is one event delivered twice.
func (v vectorCase) event(t *testing.T, stream, format, variant string, c vectorChange) string {
	t.Helper()
	id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, stream, variant, string(encodeVector(t, c)))).String()
	fields := map[string]any{"variant": variant, "seq": c.Seq}
	for i, part := range v.keyValues(t, c.Key) {
		fields[keyColumn(v.Key[i])] = part
	}
	if c.Op != "delete" {
		for name, value := range c.Values {
			fields[valueColumn(name)] = value
		}
		if !c.Partial { // in a patch stream, what isn't there is unchanged
			for _, name := range v.columns() {
				if _, there := c.Values[name]; !there {
					fields[valueColumn(name)] = nil
				}
			}
		}
	}
	at := c.EventTS.Format(time.RFC3339Nano)
	if format == "row" {
		fields["at"], fields["id"] = at, id
		return string(encodeVector(t, fields)) + "\n"
	}
	verb := "updated"
	if c.Op == "delete" {
		verb = "deleted"
	}
	return string(encodeVector(t, map[string]any{
		"envelope": map[string]any{
			"event_id": id, "event_type": eventName(stream) + "." + verb, "source": "vectors", "occurred_at": at,
			"delivery_attempt": 1, "schema_version": "1.0",
		},
		"payload": fields,
	})) + "\n"
}

// wanted are the rows of the case, a line each, sorted, without the variant.
func (v vectorCase) wanted(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, r := range v.Rows {
		to := "now"
		if r.To != nil {
			to = fmt.Sprint(r.To.UnixMicro())
		}
		line := fmt.Sprintf("[%d, %s) %v:", r.From.UnixMicro(), to, v.keyValues(t, r.Key))
		for _, c := range v.compared() {
			text := "null"
			if value := r.Values[c]; value != nil {
				text = plainNumber(fmt.Sprint(value))
			}
			line += " " + c + "=" + text
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// got are the rows of the stream's history by variant, each as wanted draws them.
func (v vectorCase) got(t *testing.T, r *reader, stream string) map[string][]string {
	t.Helper()
	reading, err := r.Read(t.Context(), r.project.Stream(stream))
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.HistoryView(t.Context(), r.db, "history", nil); err != nil {
		t.Fatal(err)
	}
	columns := []sql.Fragment{"variant", "epoch_us(valid_from)", "epoch_us(valid_to)"}
	for _, k := range v.Key {
		columns = append(columns, sql.Ident(keyColumn(k))+"::VARCHAR")
	}
	for _, c := range v.compared() {
		columns = append(columns, sql.Ident(valueColumn(c))+"::VARCHAR")
	}
	rows, err := r.db.Query(t.Context(), sql.Render("SELECT {columns} FROM history", sql.Args{"columns": sql.Join(", ", columns)}))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	found := map[string][]string{}
	for rows.Next() {
		var variant string
		var from int64
		var until *int64
		keys, values := make([]string, len(v.Key)), make([]*string, len(v.compared()))
		into := []any{&variant, &from, &until}
		for i := range keys {
			into = append(into, &keys[i])
		}
		for i := range values {
			into = append(into, &values[i])
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		to := "now"
		if until != nil {
			to = fmt.Sprint(*until)
		}
		line := fmt.Sprintf("[%d, %s) %v:", from, to, keys)
		for i, c := range v.compared() {
			text := "null"
			if values[i] != nil {
				text = plainNumber(*values[i])
			}
			line += " " + c + "=" + text
		}
		found[variant] = append(found[variant], line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for _, lines := range found {
		slices.Sort(lines)
	}
	return found
}

// plainNumber writes 10, 10.0 and 1e1 the same way, and leaves other text alone.
func plainNumber(text string) string {
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	return text
}

func decodeVector[T any](t *testing.T, text []byte) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func encodeVector(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// vectorStream is a case as one stream of the project.
type vectorStream struct {
	vectorCase
	name, format string
}

// vectorStreams are the cases as streams: an envelope's, and a row's where nothing is deleted, which rows can't say.
func vectorStreams(cases []vectorCase) []vectorStream {
	var streams []vectorStream
	for _, v := range cases {
		if v.has("truncate") {
			continue
		}
		streams = append(streams, vectorStream{v, v.Name, "envelope"})
		if !v.has("delete") {
			streams = append(streams, vectorStream{v, v.Name + "_rows", "row"})
		}
	}
	return streams
}

// Cases of other tools' documentation and tests make the rows that those say, through the binary: as they stand and in
// reverse, each whole and cut at every place into two files.
func TestVectors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(shared(t, "vectors/scd2.json"))
	if err != nil {
		t.Fatal(err)
	}
	cases := decodeVector[[]vectorCase](t, text)
	streams := vectorStreams(cases)
	dir := newProject(t, "")
	files := [2]string{filepath.Join(dir, "first.jsonl"), filepath.Join(dir, "second.jsonl")}
	var envelopes [2]strings.Builder // of all streams: an event says which it is of
	rows := map[string][2]string{}
	events := 0
	for _, s := range streams {
		write(t, filepath.Join(dir, "streams", s.name+".yaml"), s.stream(t, s.name, s.format))
		parts := &envelopes
		if s.format == "row" {
			parts = new([2]strings.Builder)
		}
		for _, variant := range s.variants() {
			for i, c := range variant.changes {
				part := &parts[0]
				if i >= variant.cut {
					part = &parts[1]
				}
				part.WriteString(s.event(t, s.name, s.format, variant.name, c))
				events++
			}
		}
		if s.format == "row" {
			var paths [2]string
			for i := range paths {
				paths[i] = filepath.Join(dir, fmt.Sprintf("%s%d.jsonl", s.name, i))
				write(t, paths[i], parts[i].String())
			}
			rows[s.name] = paths
		}
	}
	for i, path := range files {
		write(t, path, envelopes[i].String())
	}
	run(t, dir, "apply")
	took := []taken{backfill(t, dir, files[:]...)}
	for _, s := range streams {
		if paths, ok := rows[s.name]; ok {
			took = append(took, backfill(t, dir, "--stream", s.name, paths[0], paths[1]))
		}
	}
	var sum counts
	for _, one := range took {
		addUp(t, one)
		sum.Read += one.Total.Read
		sum.Refused += one.Total.Refused
	}
	if sum.Read != int64(events) || sum.Refused != 0 {
		t.Errorf("%d events were read and %d refused, want %d and none", sum.Read, sum.Refused, events)
	}
	verifyClean(t, dir)
	r := openLake(t, dir)
	for _, v := range cases {
		if v.has("truncate") {
			t.Run(v.Name, func(t *testing.T) { t.Skip("it has a truncate, which no stream takes") })
		}
	}
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			if !s.settled() {
				t.Log("only the position settles some ties, so the changes are not tried in reverse")
			}
			want, got := s.wanted(t), s.got(t, r, s.name)
			variants := s.variants()
			for _, variant := range variants {
				sameRows(t, variant.name, got[variant.name], want)
			}
			if len(got) != len(variants) {
				t.Errorf("%d variants have a history, want %d", len(got), len(variants))
			}
			s.drawn(t, dir, variants[0].name)
		})
	}
}

// drawn holds what `loam history` tells of the first key of a case against the case's rows.
func (s vectorStream) drawn(t *testing.T, dir, variant string) {
	t.Helper()
	key := s.keyValues(t, s.Rows[0].Key)
	var versions, want []string
	args := []string{"history", s.name, variant}
	for _, part := range key {
		args = append(args, fmt.Sprint(part))
	}
	for _, version := range runJSON[[]struct {
		From time.Time  `json:"valid_from"`
		To   *time.Time `json:"valid_to"`
	}](t, dir, args...) {
		versions = append(versions, interval(version.From, version.To))
	}
	for _, row := range s.Rows {
		if bytes.Equal(row.Key, s.Rows[0].Key) {
			want = append(want, interval(row.From, row.To))
		}
	}
	slices.Sort(want)
	sameRows(t, "loam "+strings.Join(args, " "), versions, want)
}

func interval(from time.Time, to *time.Time) string {
	if to == nil {
		return from.UTC().Format(time.RFC3339Nano) + " to now"
	}
	return from.UTC().Format(time.RFC3339Nano) + " to " + to.UTC().Format(time.RFC3339Nano)
}
