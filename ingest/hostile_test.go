package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/gzip"

	"github.com/loamdata/loam/feature"
)

// allocated is how many bytes f allocates, which bounds what it holds at any time.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// Bounds of what an event may make its decoder allocate.
const (
	timesItsBytes = 12
	bytesAValue   = 1536
	bytesAtLeast  = 1 << 20
)

// hostile is an event: whole, or what stands in an object behind a key and a time.
type hostile struct {
	name, whole, rest string
	values            int            // that it has more than a few
	reason            feature.Reason // for which it is refused; "" where it is accepted
}

func hostileEvents() []hostile {
	const mib = 1 << 20
	repeat := func(open, part, end string, size int) string {
		return open + strings.Repeat(part, (size-len(open)-len(end))/len(part)) + end
	}
	members := func(n int, first string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"%06x":1,`, i)
		}
		return b.String() + first
	}
	nest := func(open, end string, n int) string { return strings.Repeat(open, n) + "1" + strings.Repeat(end, n) }
	all := []hostile{
		{name: "depth in json", rest: `"j":` + nest("[", "]", 100_000), reason: feature.NotJSON},
		{name: "depth in unknown field", rest: `"z":` + nest("[", "]", 100_000), reason: feature.NotJSON},
		{name: "depth of objects in json", rest: `"j":` + nest(`{"a":`, "}", 100_000), reason: feature.NotJSON},
		{name: "depth of objects in unknown field", rest: `"z":` + nest(`{"a":`, "}", 100_000), reason: feature.NotJSON},
		{name: "depth in list", rest: `"tags":` + nest("[", "]", 100_000), reason: feature.NotJSON},
		{name: "depth where an object leads to a column", rest: `"amount":` + nest(`{"value":`, "}", 100_000), reason: feature.NotJSON},
		{name: "depth at its most", rest: `"j":` + nest("[", "]", 9_998)},
		{name: "depth without an end", whole: `{"j":` + strings.Repeat("[", 9*mib), reason: feature.TooLarge},
		{name: "depth without an end, shorter", whole: `{"j":` + strings.Repeat("[", 100_000), reason: feature.NotJSON},
		{name: "a million keys", rest: members(1_000_000, `"n":1`), reason: feature.TooLarge},
		{name: "a million keys in json", rest: `"j":{` + members(1_000_000, `"a":1}`), reason: feature.TooLarge},
		{name: "as many keys as may be", rest: members(ValuesMax-10, `"n":1`), values: ValuesMax},
		{name: "as many keys as may be in json", rest: `"j":{` + members(ValuesMax-10, `"a":1}`), values: ValuesMax},
		{name: "as many items as may be", rest: `"tags":[` + strings.Repeat(`"",`, ValuesMax-10) + `""]`, values: ValuesMax},
		{name: "more items than may be", rest: `"tags":[` + strings.Repeat(`"",`, ValuesMax) + `""]`, reason: feature.TooLarge},
		{name: "a key twice", rest: `"n":1,"n":1`, reason: feature.NotJSON},
		{name: "a key twice, escaped", rest: `"n":1,"\u006e":1`, reason: feature.NotJSON},
		{name: "a key twice in json", rest: `"j":{"a":1,"a":2}`, reason: feature.NotJSON},
		{name: "a key twice in unknown field", rest: `"z":[{"a":1,"a":2}]`, reason: feature.NotJSON},
		{name: "a key twice behind many", rest: members(100_000, `"000000":1`), values: 100_000, reason: feature.NotJSON},
		{name: "1e400 in a double", rest: `"x":-1e400`, reason: feature.BadValue},
		{name: "1e400 in an int64", rest: `"n":1e400`, reason: feature.BadValue},
		{name: "1e400 in a decimal", rest: `"amount":{"value":1e400}`, reason: feature.BadValue},
		{name: "1e400 in json", rest: `"j":1e400`},
		{name: "1e-400 in a double", rest: `"x":1e-400`},
		{name: "an exponent of many digits", rest: `"n":1e` + strings.Repeat("9", mib), reason: feature.BadValue},
		{name: "an exponent of many digits in a decimal", rest: `"amount":{"value":1e-` + strings.Repeat("9", mib) + `}`, reason: feature.BadValue},
		{name: "10^10000 in an int64", rest: `"n":1` + strings.Repeat("0", 10_000), reason: feature.BadValue},
		{name: "10^10000 in a decimal", rest: `"amount":{"value":"1` + strings.Repeat("0", 10_000) + `"}`, reason: feature.BadValue},
		{name: "10^10000 in a double", rest: `"x":-1` + strings.Repeat("0", 10_000), reason: feature.BadValue},
		{name: "10^10000 in a sequence", rest: `"seq":1` + strings.Repeat("0", 10_000), reason: feature.BadValue},
		{name: "10^10000 in json", rest: `"j":1` + strings.Repeat("0", 10_000)},
		{name: "many zeros behind the point", rest: `"amount":{"value":1.` + strings.Repeat("0", 10_000) + `}`, reason: feature.BadValue},
		{name: "-0", rest: `"n":-0,"x":-0.0,"amount":{"value":-0}`},
		{name: "the least int64", rest: `"n":-9223372036854775808`},
		{name: "one less than that", rest: `"n":-9223372036854775809`, reason: feature.BadValue},
		{name: "one more than the greatest", rest: `"n":9223372036854775808`, reason: feature.BadValue},
		{name: "a decimal beyond its scale", rest: `"amount":{"value":0.001}`, reason: feature.BadValue},
		{name: "a decimal beyond its precision", rest: `"amount":{"value":10000}`, reason: feature.BadValue},
		{name: "NaN", rest: `"x":NaN`, reason: feature.NotJSON},
		{name: "Infinity", rest: `"x":-Infinity`, reason: feature.NotJSON},
		{name: "NaN as text", rest: `"x":"NaN"`, reason: feature.BadValue},
		{name: "no UTF-8", rest: "\"kind2\":\"\xc3\x28\"", reason: feature.NotJSON},
		{name: "an overlong slash", rest: "\"kind2\":\"\xc0\xaf\"", reason: feature.NotJSON},
		{name: "a surrogate in UTF-8", rest: "\"kind2\":\"\xed\xa0\x80\"", reason: feature.NotJSON},
		{name: "a lone surrogate", rest: `"kind2":"\ud800"`, reason: feature.NotJSON},
		{name: "a lone low surrogate in json", rest: `"j":["\udc00x"]`, reason: feature.NotJSON},
		{name: "a lone surrogate in a name", rest: `"\ud800":1`, reason: feature.NotJSON},
		{name: "a byte order mark", whole: "\ufeff{}", reason: feature.NotJSON},
		{name: "UTF-16", whole: "\xff\xfe{\x00}\x00", reason: feature.NotJSON},
		{name: "NUL", rest: "\"kind2\":\"\x00\"", reason: feature.NotJSON},
		{name: "NUL, escaped", rest: `"tags":["\u0000"],"j":"\u0000","\u0000":"\u0000"`},
		{name: "NULs", whole: strings.Repeat("\x00", mib), reason: feature.NotJSON},
		{name: "no bytes", whole: "", reason: feature.NotJSON},
		{name: "white space", whole: strings.Repeat(" \t\r\n", mib/4), reason: feature.NotJSON},
		{name: "white space inside", rest: strings.Repeat(" ", mib) + `"n":1`},
		{name: "two values", rest: `"n":1} {`, reason: feature.NotJSON},
		{name: "a text", whole: `{"` + strings.Repeat("x", mib), reason: feature.NotJSON},
		{name: "the names of columns deep down", rest: `"z":{"id":{"at":{"n":"x"}}}`},
	}
	for _, size := range []int{1, 10} { // MiB
		all = append(all,
			hostile{name: fmt.Sprint("unknown text ", size), rest: repeat(`"kind2":"`, "x", `"`, size*mib)},
			hostile{name: fmt.Sprint("escaped text ", size), rest: repeat(`"j":"`, `\u00e9`, `"`, size*mib)},
			hostile{name: fmt.Sprint("text of quotes ", size), rest: repeat(`"j":"`, `\"`, `"`, size*mib)},
			hostile{name: fmt.Sprint("text of commas ", size), rest: repeat(`"j":"`, `,[{`, `"`, size*mib)},
			hostile{name: fmt.Sprint("a name ", size), rest: repeat(`"`, "x", `":1`, size*mib)},
			hostile{name: fmt.Sprint("digits ", size), rest: repeat(`"n":`, "9", "", size*mib), reason: feature.BadValue},
			hostile{name: fmt.Sprint("digits of a double ", size), rest: repeat(`"x":0.`, "1", "", size*mib)},
			hostile{name: fmt.Sprint("a text for a number ", size), rest: repeat(`"n":"`, "9", `"`, size*mib), reason: feature.BadValue},
			hostile{name: fmt.Sprint("items ", size), rest: repeat(`"j":[`, `"`+strings.Repeat("x", 61)+`",`, "1]", size*mib), values: size * mib / 64},
			hostile{name: fmt.Sprint("objects ", size), rest: repeat(`"j":[`, `{"`+strings.Repeat("x", 120)+`":""},`, "1]", size*mib), values: size * mib / 64},
		)
	}
	return all
}

// Whatever an event holds, it is accepted as what it says or refused for the reason that it should be, by memory in proportion to its
// bytes and values.
func TestHostileEvents(t *testing.T) {
	s := wide()
	for _, c := range hostileEvents() {
		event := c.whole
		if c.rest != "" {
			event = `{"id":"k","at":"2026-10-01T00:00:00Z",` + c.rest + "}"
		}
		if c.reason == feature.TooLarge {
			c.values = 0 // it is refused before it is read
		}
		for _, text := range []bool{false, true} {
			if text && len(event) > 2<<20 {
				continue
			}
			rec := record("wide.v1", 0, event)
			rec.Text = text
			var batches []*feature.Batch
			took := allocated(func() { batches = batchesOf(t, s, rec) })
			if most := bytesAtLeast + timesItsBytes*len(event) + bytesAValue*c.values; took > most && !underRace {
				t.Errorf("%s: %d bytes allocated for an event of %d, want at most %d", c.name, took, len(event), most)
			}
			why := feature.Reason("")
			if refused := whole(t, event, batches); refused != nil {
				why = refused.Reason
			}
			// As text a number may stand, or one that JSON lacks.
			if lax := text && c.reason == feature.BadValue && strings.Contains(c.rest, `:"`); why != c.reason && !lax {
				t.Errorf("%s: refused for %q, want %q", c.name, why, c.reason)
			}
			if why == "" && !text && c.values < 1000 {
				sameRow(t, event, batches[0].Rows[0])
			}
			release(batches)
		}
	}
}

// batchesOf routes a record to a stream.
func batchesOf(t *testing.T, s *feature.Stream, rec Record) []*feature.Batch {
	t.Helper()
	r := NewRouter(RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Dedups: newDedups(t, []*feature.Stream{s}), JobID: "job",
		Starts: func(string, feature.Partition) int64 { return 0 },
	})
	r.Add(&rec, testNow)
	batches, err := r.Flush(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return batches
}

func release(batches []*feature.Batch) {
	for _, b := range batches {
		b.Release()
	}
}

// whole holds that one event became one row of text that any reader takes, or one dead letter with all of its bytes and why; it gives the
// letter.
func whole(t *testing.T, event string, batches []*feature.Batch) *feature.DeadLetter {
	t.Helper()
	var counts feature.Counts
	var refused []feature.DeadLetter
	for _, b := range batches {
		for _, s := range b.Spans {
			counts.Add(s.Counts)
		}
		refused = append(refused, b.Refused...)
	}
	if counts.Read != 1 || counts.Accepted+counts.Refused != 1 || len(refused) != int(counts.Refused) {
		t.Fatalf("%.200q: %+v, %d letters", event, counts, len(refused))
	}
	if len(refused) == 1 {
		l := &refused[0]
		if l.Detail == "" || len(l.Detail) > 300 || !utf8.ValidString(l.Detail) || !slices.Contains(feature.Reasons, l.Reason) || string(l.Body) != event {
			t.Fatalf("%.200q: refused for %q, %.400q, with %d bytes of %d", event, l.Reason, l.Detail, len(l.Body), len(event))
		}
		return l
	}
	if len(batches) != 1 || batches[0].NumRows() != 1 {
		t.Fatalf("%.200q: %d batches", event, len(batches))
	}
	rows := batches[0].Rows[0]
	for i, c := range rows.Columns() {
		for _, text := range texts(c) {
			if !utf8.ValidString(text) {
				t.Fatalf("%.200q: column %s is no UTF-8: %.200q", event, rows.ColumnName(i), text)
			}
		}
		column, declared := batches[0].Stream.Column(rows.ColumnName(i))
		if name := rows.ColumnName(i); c.IsValid(0) && (name == feature.ColExtra || declared && column.Type.Kind == feature.JSON && !column.Type.List) &&
			!jsontext.Value(c.(*array.String).Value(0)).IsValid() {
			t.Fatalf("%.200q: column %s is no JSON: %.200q", event, name, c.(*array.String).Value(0))
		}
	}
	return nil
}

func texts(c arrow.Array) []string {
	var all []string
	switch c := c.(type) {
	case *array.String:
		for i := range c.Len() {
			all = append(all, c.Value(i))
		}
	case *array.List:
		all = texts(c.ListValues())
	}
	return all
}

// sameRow holds the row of an event of the stream wide, which wasn't text, against what another reader of JSON makes of it.
func sameRow(t *testing.T, event string, rows arrow.RecordBatch) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(event))
	d.UseNumber()
	var e map[string]any
	if err := d.Decode(&e); err != nil {
		if strings.Contains(err.Error(), "exceeded max depth") {
			return
		}
		t.Fatalf("%.200q was accepted: %v", event, err)
	}
	column := func(name string) arrow.Array { return rows.Column(rows.Schema().FieldIndices(name)[0]) }
	fail := func(name string, want any) {
		t.Helper()
		t.Fatalf("%.200q: column %s is %.200s, want %.200v", event, name, column(name).ValueStr(0), want)
	}
	number := func(name string, v any, is func() string) {
		t.Helper()
		want, ok := new(big.Rat).SetString(fmt.Sprint(v))
		got, ok2 := new(big.Rat).SetString(is())
		if v == nil != column(name).IsNull(0) || v != nil && (!ok || !ok2 || got.Cmp(want) != 0) {
			fail(name, v)
		}
	}
	document := func(name string, want any) {
		t.Helper()
		if want == nil {
			if column(name).IsValid(0) {
				fail(name, nil)
			}
			return
		}
		d := json.NewDecoder(strings.NewReader(column(name).(*array.String).Value(0)))
		d.UseNumber()
		var got any
		if err := d.Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
			fail(name, want)
		}
	}
	for _, name := range []string{"id", "kind"} {
		if v := e[name]; v == nil != column(name).IsNull(0) || v != nil && column(name).(*array.String).Value(0) != v {
			fail(name, v)
		}
	}
	number("n", e["n"], func() string { return fmt.Sprint(column("n").(*array.Int64).Value(0)) })
	amount, _ := e["amount"].(map[string]any)
	number("money", amount["value"], func() string { return column("money").(*array.Decimal128).ValueStr(0) })
	if v, ok := e["x"].(json.Number); ok == column("x").IsNull(0) {
		fail("x", v)
	} else if f, err := v.Float64(); ok && (err != nil || f != column("x").(*array.Float64).Value(0)) {
		fail("x", v)
	}
	if v, ok := e["b"].(bool); ok == column("b").IsNull(0) || ok && v != column("b").(*array.Boolean).Value(0) {
		fail("b", e["b"])
	}
	if v, ok := e["day"].(string); ok == column("day").IsNull(0) || ok && column("day").ValueStr(0) != v {
		fail("day", v)
	}
	if v, ok := e["tags"].([]any); ok == column("tags").IsNull(0) {
		fail("tags", v)
	} else if ok {
		items := column("tags").(*array.List).ListValues().(*array.String)
		if items.Len() != len(v) {
			fail("tags", v)
		}
		for i, item := range v {
			if item == nil != items.IsNull(i) || item != nil && items.Value(i) != item {
				fail("tags", v)
			}
		}
	}
	document("j", e["j"])
	for _, name := range []string{"id", "b", "n", "x", "t", "day", "j", "tags", "kind", "at", "seq", "loaded"} {
		delete(e, name)
	}
	if delete(amount, "value"); len(amount) == 0 {
		delete(e, "amount")
	}
	var extra any
	if len(e) > 0 {
		extra = e
	}
	document(feature.ColExtra, extra)
}

// bomb is a file that inflates to so many times a part, packed as gzip.
func bomb(t *testing.T, name, part string, times int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	for range times {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// A packed file that inflates to gigabytes is read by bounded memory: a line of it is cut.
func TestZipBombs(t *testing.T) {
	for name, c := range map[string]struct {
		part    string // of 1 MiB
		times   int
		letters int
	}{
		"one line":   {strings.Repeat("x", 1<<20), 2048, 1},
		"deep":       {strings.Repeat("[", 1<<20), 64, 1},
		"long lines": {strings.Repeat(" ", 1<<20-1) + "\n", 256, 256},
	} {
		f, err := StatFile(context.Background(), bomb(t, "bomb.jsonl.gz", c.part, c.times))
		if err != nil {
			t.Fatal(err)
		}
		s, err := f.Open(0, nil)
		if err != nil {
			t.Fatal(err)
		}
		def := wide()
		r := NewRouter(RouterOptions{
			Streams: []*feature.Stream{def}, Only: def, Dedups: newDedups(t, []*feature.Stream{def}), JobID: "job",
			Starts: func(string, feature.Partition) int64 { return 0 },
		})
		letters, most := 0, uint64(0)
		for {
			poll, err := s.Poll(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for i := range poll.Records {
				r.Add(&poll.Records[i], testNow)
			}
			batches, err := r.Flush(context.Background(), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _, refused := total(batches)
			letters += len(refused)
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if most = max(most, m.HeapAlloc); poll.Done {
				break
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if letters != c.letters || most > 512<<20 {
			t.Errorf("%s: %d dead letters, want %d, with %d MiB held", name, letters, c.letters, most>>20)
		}
	}
}

// Dead letters that are short wait for a flush by what they take, not by their bytes.
func TestShortLettersAreBounded(t *testing.T) {
	s := wide()
	for _, streams := range [][]*feature.Stream{{s}, {fuzzContact}} {
		o := RouterOptions{Streams: streams, Dedups: newDedups(t, streams), JobID: "job", Starts: func(string, feature.Partition) int64 { return 0 }}
		if streams[0] == s {
			o.Only = s // else the letters are of no stream
		}
		r := NewRouter(o)
		for i := range int64(1000) {
			rec := record("file:x", i, "")
			r.Add(&rec, testNow)
		}
		if rows, size := r.Pending(); rows != 0 || size < 1000*int(unsafe.Sizeof(feature.DeadLetter{})) {
			t.Errorf("%d rows and %d bytes wait", rows, size)
		}
	}
}

// A quote that is never closed makes all behind it one field. It is refused where the file ends soon, and else ends the reading, with what came
// before it taken.
func TestOpenQuotes(t *testing.T) {
	for name, c := range map[string]struct {
		text, err string
		want      []string
	}{
		"short":         {"id,n\nk1,1\nk2,\"x\nk3,2\n", "", []string{`0 {"id":"k1","n":"1"}`, "1 k2"}},
		"long":          {"id,n\nk1,1\nk2,\"x\n" + strings.Repeat("k3,1\n", EventBytesMax/4), "behind row 1: the next row is longer than 33554432 bytes: close the quote", []string{`0 {"id":"k1","n":"1"}`}},
		"first field":   {"id,n\nk1,1\n\"k2,1\n" + strings.Repeat("k3,1\n", EventBytesMax/4), "behind row 1: the next row is longer", []string{`0 {"id":"k1","n":"1"}`}},
		"no quote":      {"id,n\nk1,1\nk2," + strings.Repeat("x", EventBytesMax+8192) + "\nk3,1\n", "behind row 1: the next row is longer", []string{`0 {"id":"k1","n":"1"}`}},
		"in the header": {"id,\"n\n" + strings.Repeat("k3,1\n", EventBytesMax/4), "which names the columns: the next row is longer", nil},
	} {
		f, err := StatFile(context.Background(), put(t, "rows.csv", []byte(c.text)))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		took := allocated(func() {
			var s Source
			if s, err = f.Open(0, nil); err != nil {
				return
			}
			defer s.Close()
			for {
				var poll Poll
				if poll, err = s.Poll(context.Background()); err != nil || poll.Done && len(poll.Records) == 0 {
					return
				}
				for _, r := range poll.Records {
					got = append(got, fmt.Sprintf("%d %s", r.Offset, r.Value))
				}
				if poll.Done {
					return
				}
			}
		})
		if !slices.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %.200q, %v", name, got, err)
		}
		if took > 10*EventBytesMax {
			t.Errorf("%s: %d MiB allocated", name, took>>20)
		}
	}
}
