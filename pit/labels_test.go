package pit

import (
	"bytes"
	"errors"
	"fmt"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
)

// Labels that would be misread are refused.
func TestLabelsRefused(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-15T00:00:00Z","v":1}`})
	for _, c := range []struct{ labels, err string }{
		{"k,event_timestamp\na,01/02/2026\n", "1 values of time column event_timestamp are no times as ISO 8601"},
		{"k,event_timestamp\na,2026-01-20\nb,not a time\n", "1 values of time column event_timestamp are no times"},
		{"k,at\na,2026-01-20\n", `there is no time column "event_timestamp"`},
		{"k,event_timestamp,V__v\na,2026-01-20,1\n", "have a column V__v already"},
		{"k,event_timestamp\na,2026-01-20\nb,\nc,2026-01-20T10:00:00.5+02:00\nd,2026-01-20 10:00:00\n", ""},
		{"k,event_timestamp\n", ""},
	} {
		w.put("labels.csv", c.labels)
		_, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
		if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: error %v, want %q", c.labels, err, c.err)
		}
	}
}

// Labels whose times or places could be taken for others are refused, or read as what they are.
func TestLabelsThatCouldBeTakenForOthers(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: odd", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews + `
  - {name: alone, on_demand: {request: [{name: n, type: int64}]}, features: [{name: twice, type: int64, sql: "n * 2"}]}
`,
	})
	w.take("thing", "file:x", 1, []string{happening{id: "a", at: 100, received: 100, v: 1}.event("Thing", 0)})
	features, err := w.project.Resolve([]string{"plain:v"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ csv, err string }{
		"infinity":         {"id,event_timestamp\na,2026-01-01T00:10:00Z\na,infinity\n", "1 values of time column event_timestamp"},
		"two digits":       {"id,event_timestamp\na,01-02-26\n", "no times as ISO 8601 writes them"},
		"a year too great": {"id,event_timestamp\na,2026-01-01T00:10:00Z\na,20260-01-01T00:00:00Z\n", "not in the years 1 to 9999, the first in row 1"},
	} {
		w.put("labels.csv", c.csv)
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", Features: features}, 0); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
	w.exec("COPY (SELECT unnest([1, 2]) AS n, 'a' AS id, unnest([TIMESTAMPTZ '-infinity', TIMESTAMPTZ '2026-01-01 00:10:00Z']) AS event_timestamp) TO '" + filepath.Join(w.dir, "inf.parquet") + "'")
	if _, err := w.build(feature.DatasetRequest{Labels: "inf.parquet", Features: features}, 0); err == nil || !strings.Contains(err.Error(), "the first in row 0") {
		t.Errorf("-infinity: %v", err)
	}
	// What would be a pattern is a name, and the name of a folder is no column.
	w.put("l1.csv", "id,event_timestamp\nother,2026-01-01T00:10:00Z\n")
	w.put("l[1].csv", "id,event_timestamp\na,2026-01-01T00:10:00Z\n")
	if err := os.Mkdir(filepath.Join(w.dir, "part=7"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.put("part=7/l.csv", "id,event_timestamp\na,2026-01-01T00:10:00Z\n")
	for _, path := range []string{"l[1].csv", "part=7/l.csv"} {
		if _, err := w.build(feature.DatasetRequest{Labels: path, Features: features}, 0); err != nil {
			t.Fatal(err)
		}
		if got := w.read(); len(got) != 1 || got[0]["id"] != "a" || len(got[0]) != 3 {
			t.Errorf("%s: %v", path, got)
		}
	}
	// A split by the first entity's key where no feature has one.
	split, err := feature.ParseSplit("key:0.5")
	if err != nil {
		t.Fatal(err)
	}
	w.put("n.csv", "n,event_timestamp\n1,2026-01-01T00:10:00Z\n")
	alone, err := w.project.Resolve([]string{"alone"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.build(feature.DatasetRequest{Labels: "n.csv", Features: alone, Split: split}, 0); err == nil || !strings.Contains(err.Error(), "name a column, as in key=COLUMN:0.8") {
		t.Errorf("a split without a key: %v", err)
	}
	// A split by an outcome, which is no column of the labels.
	if split, err = feature.ParseSplit("key=rose:0.5"); err != nil {
		t.Fatal(err)
	}
	rose := []feature.OutcomeLabel{{Name: "rose", Stream: "thing", When: "v > 1", Within: time.Hour}}
	if _, err := w.build(feature.DatasetRequest{Labels: "n.csv", Features: features, Outcomes: rose, Split: split}, 0); !errors.Is(err, ErrRequest) ||
		!strings.HasPrefix(err.Error(), "the request can't be built: split: key=rose is an outcome") {
		t.Errorf("a split by an outcome: %v", err)
	}
	// What loam had recorded by then was nothing, so no label was complete.
	known := time.Unix(0, 0)
	w.put("good.csv", "id,event_timestamp\na,2026-01-01T00:01:00Z\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "good.csv", Features: features, KnownAt: &known, RequireComplete: true}, 0); !errors.Is(err, ErrIncomplete) {
		t.Errorf("known at a time before all: %v", err)
	}
	if _, err := w.build(feature.DatasetRequest{LabelsTable: "thing_history", TimeColumn: "valid_from", Features: features, KnownAt: &known}, 0); err == nil || !strings.Contains(err.Error(), "isn't cut to known_at") {
		t.Errorf("labels of a history, with known_at: %v", err)
	}
}

// A training set that stood where one is asked for stays if the new one's card can't be kept; what is no card isn't replaced by one.
func TestWhatIsReplacedStaysUntilAllIsKept(t *testing.T) {
	w := newWorld(t, map[string]string{
		"loam.yaml": "project: stays", "streams/thing.yaml": thingStream, "streams/fact.yaml": factStream, "features/f.yaml": oracleViews,
	})
	w.put("labels.csv", "id,event_timestamp\na,2026-01-01T00:01:00Z\n")
	if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	card := filepath.Join(w.dir, "out.card.json")
	if err := os.Remove(card); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"loam.yaml", "labels.csv/card.json"} {
		w.put("two.csv", "id,event_timestamp\na,2026-01-01T00:01:00Z\nb,2026-01-01T00:01:00Z\n")
		if _, err := w.build(feature.DatasetRequest{Labels: "two.csv", Card: where}, 0); err == nil {
			t.Errorf("a card at %s was kept", where)
		}
		after, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
		if err != nil || !bytes.Equal(before, after) {
			t.Errorf("with a card at %s what stood there is gone: %v", where, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "out.parquet.*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// An Arrow stream file may end in .arrows, as Arrow itself names it.
func TestLabelsOfAnArrowStreamFile(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-15T00:00:00Z","v":1}`})
	w.put("labels.arrows", string(arrowOf(t, "SELECT 'a' AS k, TIMESTAMPTZ '2026-01-20 00:00:00Z' AS event_timestamp", false)))
	if _, err := w.build(feature.DatasetRequest{Labels: "labels.arrows"}, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.read(); len(got) != 1 || got[0]["k"] != "a" {
		t.Errorf("rows %v", got)
	}
}

// A key that the stream's type would round is refused; one that it can't be is no entity's, and the card counts it.
func TestLabelKeysOfOtherTypes(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "int64"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":2,"at":"2026-01-15T00:00:00Z","v":1}`})
	for _, c := range []struct{ labels, err, warning string }{
		{"k,event_timestamp\n1.5,2026-01-20\n2.0,2026-01-20\n", "1 values of column k, the join key k, can't be int64 without loss, the first in row 0", ""},
		{"k,event_timestamp\n2.0,2026-01-20\n,2026-01-20\n", "", ""},
		{"k,event_timestamp\n2,2026-01-20\nabc,2026-01-20\n", "", "1 values of label column k can't be int64, the type of join key k, so they match nothing"},
	} {
		w.put("labels.csv", c.labels)
		card, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.labels, err, c.err)
			}
		case err != nil:
			t.Errorf("%q: %v", c.labels, err)
		case strings.Contains(strings.Join(card.Warnings, "\n"), "match nothing") != (c.warning != "") || !strings.Contains(strings.Join(card.Warnings, "\n"), c.warning):
			t.Errorf("%q: warnings %q, want %q", c.labels, card.Warnings, c.warning)
		}
	}
}

// Whole numbers that a double would round are read from CSV with all their digits, be one of them too wide for 64 bits or not, and a key
// that is a double already, where doubles are more than 1 apart, is refused: it would be another entity's.
func TestWideNumbersOfLabels(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "int64"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":9007199254740993,"at":"2026-01-15T00:00:00Z","v":1}`, `{"k":9007199254740992,"at":"2026-01-15T00:00:00Z","v":2}`})
	for _, c := range []struct{ wide, typ string }{
		{"12345678901234567890", "DECIMAL(38,0)"}, {"-99999999999999999999999999999999999999", "DECIMAL(38,0)"}, {"100000000000000000000000000000000000000", "VARCHAR"},
		{"1234567890123456789", "BIGINT"}, {"1e19", "DOUBLE"}, {"12345678901234567890.5", "DOUBLE"}, {"", "BIGINT"},
	} {
		w.put("labels.csv", "k,event_timestamp,n\n9007199254740993,2026-01-20,7\n,2026-01-20,\n9007199254740992,2026-01-20,"+c.wide+"\n"+c.wide+",2026-01-20,8\n")
		_, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
		if c.typ == "DOUBLE" {
			if want := "2 values of column k, the join key k, can't be int64 without loss, the first in row 0"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", c.wide, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.wide, err)
			continue
		}
		got := w.rows("SELECT typeof(n) AS typ, n::VARCHAR AS n, k::VARCHAR AS k, v__v AS v FROM '$DIR/out.parquet' WHERE n::VARCHAR IS DISTINCT FROM '8' AND k IS NOT NULL")
		n := `"` + c.wide + `"`
		if c.wide == "" {
			n = "null"
		}
		want := []string{`{"typ":"` + c.typ + `","n":"7","k":"9007199254740993","v":1}`, `{"typ":"` + c.typ + `","n":` + n + `,"k":"9007199254740992","v":2}`}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", c.wide, got, want)
		}
	}
	// Beyond the rows that are looked at first, too.
	for last, typ := range map[string]string{"12345678901234567890": "DECIMAL(38,0)", "0.5": "DOUBLE"} {
		w.put("labels.csv", "k,event_timestamp,n\n"+strings.Repeat("1,2026-01-20,7\n", 3000)+"1,2026-01-20,"+last+"\n")
		if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0); err != nil {
			t.Fatal(err)
		}
		want := []string{`{"typ":"` + typ + `","n":"` + last + `"}`}
		if got := w.rows("SELECT typeof(n) AS typ, n::VARCHAR AS n FROM '$DIR/out.parquet' WHERE n <> 7"); !slices.Equal(got, want) {
			t.Errorf("%s at the end: %v, want %v", last, got, want)
		}
	}
	for key, err := range map[string]string{
		"9007199254740992::DOUBLE": "without loss", "-9007199254740994::DOUBLE": "without loss", "16777216::FLOAT": "without loss",
		"9007199254740991::DOUBLE": "", "16777215::FLOAT": "", "1e30::DOUBLE": "", "'nan'::DOUBLE": "",
	} {
		w.exec("COPY (SELECT " + key + " AS k, TIMESTAMPTZ '2026-01-20' AS event_timestamp) TO '$DIR/labels.parquet'")
		if _, failed := w.build(feature.DatasetRequest{Labels: "labels.parquet"}, 0); (err == "") != (failed == nil) || failed != nil && !strings.Contains(failed.Error(), err) {
			t.Errorf("%s: %v, want %q", key, failed, err)
		}
	}
}

// Numbers with a point for a key that is text, as pandas makes them of whole ones with an empty value among them, are refused: they would
// match nothing.
func TestLabelKeysOfTextWithAPoint(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"7","at":"2026-01-15T00:00:00Z","v":1}`})
	for _, c := range []struct{ key, err string }{
		{"7::DOUBLE", `column who, the join key k, is DOUBLE, and its stream has it as text: 7 would be looked for as 7.0, and match nothing. Write the column as text, or as whole numbers`},
		{"7::FLOAT", "column who, the join key k, is FLOAT, "},
		{"7::DECIMAL(9,2)", "is DECIMAL(9,2), and its stream has it as text"},
		{"NULL::DOUBLE", ""}, {"7::DECIMAL(9,0)", ""}, {"7::INTEGER", ""}, {"7::UBIGINT", ""}, {"'7'", ""},
	} {
		for _, format := range []string{"parquet", "arrow"} {
			query := "SELECT " + c.key + " AS who, unnest([TIMESTAMPTZ '2026-01-20', NULL]) AS event_timestamp UNION ALL SELECT NULL, NULL"
			if format == "arrow" {
				w.put("labels.arrow", string(arrowOf(t, query, true)))
			} else {
				w.exec("COPY (" + query + ") TO '$DIR/labels.parquet'")
			}
			_, err := w.build(feature.DatasetRequest{Labels: "labels." + format, JoinKeys: map[string]string{"k": "who"}}, 0)
			if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s in %s: %v, want %q", c.key, format, err, c.err)
			}
		}
	}
}

// Nanoseconds are cut to the microsecond before them, of times before 1970 and since, with a zone and without, whatever brings them: a
// label sees nothing that came after it.
func TestNanosecondsOfLabels(t *testing.T) {
	w := newWorld(t, map[string]string{"loam.yaml": "project: nanos", "streams/phase.yaml": phaseStream, "features/f.yaml": `entities: [{name: phase, join_keys: [id]}]
views: [{name: now, entity: phase, stream: phase, features: [v]}]
`})
	var rows []string
	for i, us := range []int64{-2, -1, 0, 1} {
		v := us
		rows = append(rows, phase{id: "a", offset: i, at: us, received: us, v: &v}.event())
	}
	w.take("phase", "file:x", 1, rows)
	times, want := []int64{-1001, -1000, -999, -1, 0, 999, 1999}, []int64{-2, -1, -1, -1, 0, 0, 1} // nanoseconds, microseconds
	for _, zone := range []string{"UTC", "Europe/Berlin", ""} {
		schema := arrow.NewSchema([]arrow.Field{
			{Name: "id", Type: arrow.BinaryTypes.String}, {Name: "event_timestamp", Type: &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: zone}, Nullable: true},
			{Name: "n", Type: arrow.PrimitiveTypes.Int64},
		}, nil)
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		defer b.Release()
		for i, ns := range append(times, 0) {
			b.Field(0).(*array.StringBuilder).Append("a")
			b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(ns))
			b.Field(2).(*array.Int64Builder).Append(int64(i))
		}
		b.Field(0).(*array.StringBuilder).Append("a")
		b.Field(1).AppendNull()
		b.Field(2).(*array.Int64Builder).Append(8)
		batch := b.NewRecordBatch()
		defer batch.Release()
		var stream, file, parquet bytes.Buffer
		s := ipc.NewWriter(&stream, ipc.WithSchema(schema))
		f, err := ipc.NewFileWriter(&file, ipc.WithSchema(schema))
		if err != nil {
			t.Fatal(err)
		}
		p, err := pqarrow.NewFileWriter(schema, &parquet, nil, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.Write(batch), s.Close(), f.Write(batch), f.Close(), p.Write(batch), p.Close()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for name, labels := range map[string][]byte{"labels.arrows": stream.Bytes(), "labels.arrow": file.Bytes(), "labels.parquet": parquet.Bytes(), feature.Standard: stream.Bytes()} {
			w.put("labels.parquet", "")
			if name != feature.Standard {
				w.put(name, string(labels))
			}
			if _, err := w.buildBy(feature.DatasetRequest{Labels: name, AsOf: feature.EventClock}, Options{In: bytes.NewReader(labels)}); err != nil {
				t.Fatalf("%q, %s: %v", zone, name, err)
			}
			for i, row := range w.rows("SELECT n, now__v, epoch_us(event_timestamp) AS at FROM '$DIR/out.parquet'") {
				expected := fmt.Sprintf(`{"n":%d,"now__v":null,"at":null}`, i)
				if i < len(times) {
					us := want[i]
					expected = fmt.Sprintf(`{"n":%d,"now__v":%d,"at":%d}`, i, us, us)
				} else if i == len(times) {
					expected = fmt.Sprintf(`{"n":%d,"now__v":0,"at":0}`, i)
				}
				if zone == "" {
					row, expected = strings.Split(row, `,"at"`)[0], strings.Split(expected, `,"at"`)[0] // its digits are kept
				}
				if row != expected {
					t.Errorf("%q, %s: %s, want %s", zone, name, row, expected)
				}
			}
		}
	}
}
