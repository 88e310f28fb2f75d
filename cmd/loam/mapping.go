package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/sql"
)

// openMapping opens a stream's mapping, nil where it has none.
func openMapping(ctx context.Context, s *feature.Stream) (*sql.Mapping, error) {
	if len(s.Mapping) == 0 {
		return nil, nil
	}
	var columns []sql.Mapped
	for _, m := range s.Mapping {
		columns = append(columns, sql.Mapped{Name: m.Name, Expr: m.SQL, Type: m.Type.SQL(), JSON: m.Type.Kind == feature.JSON && !m.Type.List})
	}
	return sql.OpenMapping(ctx, columns)
}

// mapperOf has a mapping read records.
func mapperOf(m *sql.Mapping) ingest.Mapper {
	return func(ctx context.Context, records []*ingest.Record) ([][]byte, []error, error) {
		given := make([]sql.MappingRecord, len(records))
		for i, r := range records {
			given[i].JSON = string(r.Event())
			if r.Key != nil {
				key := strings.ToValidUTF8(string(r.Key), "\uFFFD")
				given[i].Key = &key
			}
			if r.Timestamp > 0 {
				given[i].Time = &r.Timestamp
			}
		}
		rows, failed, err := m.Rows(ctx, given)
		made := make([][]byte, len(rows))
		for i, row := range rows {
			made[i] = []byte(row)
		}
		return made, failed, err
	}
}

func (a *app) mappingCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "mapping",
		Short:   "Try what turns a vendor's records into a stream's rows",
		Example: "  loam mapping test",
	}, a.mappingTestCommand())
}

func (a *app) mappingTestCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "test [STREAM...]",
		Short: "Run the examples of mappings, and tell what no mapping reads",
		Long: `test makes rows of the examples that stand in the streams' files, all of them or those of the named streams, and tells where what comes
of one is not what it says; then it ends with 1. It also tells which fields of the examples' records no expression reads: it changes one
after the other and looks whether the row does. --file takes the records of a .jsonl file instead, of one stream: of those only the
refused ones and the fields that nothing reads are told, of the first 200 records.`,
		Example: "  loam mapping test",
		Args:    arguments(0, -1, ""),
		RunE: func(c *cobra.Command, args []string) error {
			if file != "" && len(args) != 1 {
				return misused("--file is of one stream: name it")
			}
			return a.testMappings(c.Context(), args, file)
		},
	}
	c.Flags().StringVar(&file, "file", "", "a .jsonl file of records, a line each")
	return c
}

// mappingTest is what the examples of a stream's mapping gave.
type mappingTest struct {
	Stream   string         `json:"stream"`
	Records  int            `json:"records"`
	Failures []mappingFault `json:"failures"`
	Unread   []string       `json:"unread_fields"`
}

// mappingFault is a record of which something else came than is expected. Line is that of the example, or of the record in its file.
type mappingFault struct {
	File string `json:"file"`
	Line int    `json:"line"`
	What string `json:"what"`
}

// mappedExample is a record, where it stands, and what it is to become.
type mappedExample struct {
	feature.Example
	record ingest.Record
}

// mappedSample bounds how many records of a file are tried.
const mappedSample = 200

func (a *app) testMappings(ctx context.Context, names []string, file string) error {
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	streams, err := pickStreams(p, names)
	if err != nil {
		return err
	}
	all := []mappingTest{}
	for _, s := range streams {
		switch {
		case len(s.Mapping) == 0 && len(names) > 0:
			return fmt.Errorf("stream %s has no mapping", s.Name)
		case len(s.Mapping) == 0:
			continue
		}
		var examples []mappedExample
		if file != "" {
			if examples, err = recordsOf(file); err != nil {
				return err
			}
		} else {
			for _, e := range s.Examples {
				examples = append(examples, mappedExample{Example: e})
			}
		}
		one, err := testMapping(ctx, s, examples, a.now().UnixMicro())
		if err != nil {
			return fmt.Errorf("test the mapping of %s: %w", s.Name, err)
		}
		all = append(all, one)
	}
	failed := slices.ContainsFunc(all, func(t mappingTest) bool { return len(t.Failures) > 0 })
	if err := a.result(all, func(w io.Writer) {
		if len(all) == 0 {
			fmt.Fprintln(w, "no stream has a mapping")
		}
		for _, t := range all {
			t.print(w)
		}
	}); err != nil || !failed {
		return err
	}
	return errReported
}

// recordsOf reads the first records of a file, of which nothing is expected but that they aren't refused.
func recordsOf(file string) ([]mappedExample, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	var all []mappedExample
	line := 0
	for one := range bytes.Lines(text) {
		line++
		if one = bytes.TrimSpace(one); len(one) > 0 && len(all) < mappedSample {
			all = append(all, mappedExample{Example: feature.Example{Record: one, Want: []byte("{}"), At: feature.Place{File: file, Line: line}}})
		}
	}
	return all, nil
}

func testMapping(ctx context.Context, s *feature.Stream, examples []mappedExample, now int64) (mappingTest, error) {
	t := mappingTest{Stream: s.Name, Records: len(examples), Failures: []mappingFault{}, Unread: []string{}}
	mapping, err := openMapping(ctx, s)
	if err != nil {
		return t, err
	}
	defer mapping.Close()
	mapper := mapperOf(mapping)
	options := ingest.RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Starts: func(string, feature.Partition) int64 { return 0 },
		Mappings: map[string]ingest.Mapper{s.Name: mapper}, Deletes: map[string]ingest.Condition{},
	}
	if s.DeleteWhen != "" {
		condition, err := sql.OpenCondition(ctx, s.DeleteWhen, s.DeleteReads)
		if err != nil {
			return t, err
		}
		defer condition.Close()
		options.Deletes[s.Name] = condition.True
	}
	unread := map[string]bool{}
	for i := range examples {
		e := &examples[i]
		e.record = ingest.Record{Value: e.Record, Timestamp: now}
		if e.Key != "" {
			e.record.Key = []byte(e.Key)
		}
		// Each is the first of its stream: none is another's duplicate.
		options.Dedups = map[string]*ingest.Dedup{s.Name: ingest.NewDedup(1, nil)}
		what, err := e.try(ctx, ingest.NewRouter(options), now)
		if err != nil {
			return t, err
		}
		if what != "" {
			t.Failures = append(t.Failures, mappingFault{File: e.At.File, Line: e.At.Line, What: what})
		}
		if err := readsOf(ctx, mapper, e.record, unread); err != nil {
			return t, err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(unread)) {
		if !unread[path] {
			t.Unread = append(t.Unread, path)
		}
	}
	return t, nil
}

// try takes the example's record, and says how what comes of it differs, "" where it doesn't.
func (e *mappedExample) try(ctx context.Context, r *ingest.Router, now int64) (string, error) {
	if err := r.AddAll(ctx, []ingest.Record{e.record}, now); err != nil {
		return "", err
	}
	batches, err := r.Flush(ctx, nil)
	if err != nil {
		return "", err
	}
	var row map[string]any
	for _, b := range batches {
		defer b.Release()
		for _, l := range b.Refused {
			why := string(l.Reason) + ": " + l.Detail
			if e.Want == nil && strings.Contains(why, e.Refused) {
				return "", nil
			}
			return "it is refused, " + why, nil
		}
		for _, rows := range b.Rows {
			text, err := rows.MarshalJSON()
			if err != nil {
				return "", err
			}
			var some []map[string]any
			if err := json.Unmarshal(text, &some); err != nil {
				return "", err
			}
			row = some[0]
		}
	}
	if e.Want == nil {
		return fmt.Sprintf("it is accepted, and was to be refused with %q", e.Refused), nil
	}
	var want map[string]any
	if err := json.Unmarshal(e.Want, &want); err != nil {
		return "want is no object", nil
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		got, known := row[name]
		if !known {
			return fmt.Sprintf("there is no column %s", name), nil
		}
		if !sameValue(got, want[name]) {
			return fmt.Sprintf("%s is %s, want %s", name, asJSON(got), asJSON(want[name])), nil
		}
	}
	return "", nil
}

// sameValue compares a value of a row with one that is wanted, which may be written as text or as the document that the text is.
func sameValue(got, want any) bool {
	if reflect.DeepEqual(got, want) {
		return true
	}
	text, isText := got.(string)
	if wanted, ok := want.(string); ok {
		return !isText && asJSON(got) == wanted
	}
	var document any
	return isText && json.Unmarshal([]byte(text), &document) == nil && reflect.DeepEqual(document, want)
}

func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// readsOf notes of each field of the record whether the row changes with it. A list is one field.
func readsOf(ctx context.Context, mapper ingest.Mapper, record ingest.Record, read map[string]bool) error {
	var document map[string]any
	if json.Unmarshal(record.Value, &document) != nil {
		return nil // no object: its fields have no names
	}
	var paths []string
	variants := []*ingest.Record{&record}
	var walk func(fields map[string]any, at string)
	walk = func(fields map[string]any, at string) {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			value, path := fields[name], strings.TrimPrefix(at+"."+name, ".")
			if inner, ok := value.(map[string]any); ok && len(inner) > 0 {
				walk(inner, path)
				continue
			}
			for _, other := range []any{nil, "loam", 8.0} {
				fields[name] = other
				text, err := json.Marshal(document)
				if err == nil {
					paths = append(paths, path)
					variants = append(variants, &ingest.Record{Value: text, Key: record.Key, Timestamp: record.Timestamp})
				}
			}
			fields[name] = value
		}
	}
	walk(document, "")
	rows, failed, err := mapper(ctx, variants)
	if err != nil {
		return err
	}
	for i, path := range paths {
		changed := !bytes.Equal(rows[i+1], rows[0]) || (failed[i+1] == nil) != (failed[0] == nil)
		read[path] = read[path] || changed
	}
	return nil
}

func (t mappingTest) print(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, %d as expected\n", t.Stream, count(int64(t.Records), "record"), t.Records-len(t.Failures))
	for _, f := range t.Failures {
		fmt.Fprintf(w, "  %s:%d: %s\n", f.File, f.Line, f.What)
	}
	if len(t.Unread) > 0 {
		fmt.Fprintf(w, "  no expression reads %s\n", strings.Join(t.Unread, ", "))
	}
}
