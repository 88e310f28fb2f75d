package ingest

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/gzip"
	"github.com/parquet-go/parquet-go"

	"github.com/loamdata/loam/feature"
)

// No bytes make the decoder panic; each event becomes one row, which is what another reader of JSON makes of it, or one dead letter with
// all of it.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"envelope":` + goodEnvelope + `,"payload":{"contact_id":"c","segments":["a"],"attributes":{"b":1},"name":{"first":"x"}}}`))
	f.Add([]byte(`{"payload":{"a":{}},"envelope":{"event_id":null}}`))
	f.Add([]byte(`{"payload":null,"envelope":` + strings.Replace(goodEnvelope, "updated", "truncated", 1) + `}`))
	f.Add([]byte(`{"id":"k","at":"2026-10-01T00:00:00Z","amount":{"value":-1e-2},"tags":[null,"\u0000"],"j":[{}]}`))
	f.Add([]byte(`{"id":"k","at":"2026-10-01T00:00:00Z","n":-5e1,"x":0.5,"b":false,"day":"0001-01-01","kind":"a","amount":{"value":"9999.990","unit":{}},"z":[1e400,{"\ud83d\ude00":-0}]}`))
	f.Add([]byte(`{"\u0069d":"k","at":"2026-10-01T02:00:00.0000001+02:00","seq":"2026-10-01T00:00:00Z","loaded":null,"j":"[","t":"9999-12-31T23:59:59Z"}`))
	for _, c := range hostileEvents() {
		if event := c.whole + c.rest; len(event) < 1000 {
			f.Add([]byte(`{"id":"k","at":"2026-10-01T00:00:00Z",` + event + "}"))
		}
	}
	s := wide()
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, s := range []*feature.Stream{s, fuzzContact} {
			for _, text := range []bool{false, true} {
				batches := batchesOf(t, s, Record{Position: feature.Position{Topic: "file:x"}, Value: bytes.Clone(value), Text: text})
				if refused := whole(t, string(value), batches); refused == nil && !text && s != fuzzContact {
					sameRow(t, string(value), batches[0].Rows[0])
				}
				release(batches)
			}
		}
	})
}

// Whatever the key, the headers, the time and the value of a Kafka record are, it becomes one row or one dead letter that has all of them.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("k"), []byte(nil), "trace", []byte("1"), int64(testNow), true)
	f.Add([]byte(`{"id":"k"}`), []byte("null"), "", []byte{0xff}, int64(-1), false)
	f.Add([]byte("\xff\x00"), []byte{}, "\xff", []byte(nil), int64(1<<62), true)
	f.Add([]byte("k"), []byte(`{"id":"other","at":"2026-10-01T00:00:00Z"}`), "a", []byte("b"), int64(0), false)
	f.Add([]byte(nil), []byte("\x00\x00\x00\x00\x01{}"), "a", []byte("b"), int64(-1<<63), false)
	s := wide()
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, at int64, tombstone bool) {
		rec := Record{
			Position: feature.Position{Topic: "wide.v1", Offset: 7}, Key: key, Value: append([]byte{}, value...),
			Headers: []feature.Header{{Key: name, Value: header}}, Timestamp: at,
		}
		if tombstone {
			rec.Value = nil
		}
		batches := batchesOf(t, s, rec)
		defer release(batches)
		refused := whole(t, string(rec.Value), batches)
		if refused == nil {
			return
		}
		h := refused.Headers
		if !bytes.Equal(refused.RecordKey, key) || (refused.Body == nil) != tombstone || len(h) != 1 || h[0].Key != name || !bytes.Equal(h[0].Value, header) {
			t.Fatalf("%+v of %q, %q: %q", refused, key, name, header)
		}
		if r := letterRecord("dead.v1", *refused); !bytes.Equal(r.Value, rec.Value) || !bytes.Equal(r.Key, key) {
			t.Fatalf("%+v of %+v", r, refused)
		}
	})
}

// Any bytes are lines, which put together are the bytes; packed ones, broken or not, are lines and perhaps an error.
func FuzzLines(f *testing.F) {
	f.Add([]byte("{}\r\n\n{\"a\":1}"), false)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(bytes.Repeat([]byte("{}\n"), 100)); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(packed.Bytes(), true)
	f.Add(append(bytes.Clone(packed.Bytes()), packed.Bytes()...), true)
	f.Add(packed.Bytes()[:packed.Len()-6], true)
	f.Fuzz(func(t *testing.T, content []byte, gz bool) {
		name := "e.jsonl"
		if gz {
			name += ".gz"
		}
		var lines [][]byte
		err := eachRecord(t, name, content, func(r *Record) { lines = append(lines, bytes.Clone(r.Value)) })
		if gz || err != nil && len(content) == 0 {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		ends := func(b []byte) []byte { return bytes.ReplaceAll(append(b, '\n'), []byte("\r\n"), []byte("\n")) }
		if got, want := ends(bytes.Join(lines, []byte("\n"))), ends(bytes.TrimSuffix(content, []byte("\n"))); !bytes.Equal(got, want) {
			t.Fatalf("%q of %q", got, want)
		}
	})
}

// Any bytes are a CSV file: rows that are objects of its columns, or say why they are none, or one error.
func FuzzCSV(f *testing.F) {
	f.Add([]byte("\ufeffid,at,amount.value,n\nk,2026-10-01,1.50,7\nk2,2026-10-01T00:00:00Z,,\n"))
	f.Add([]byte("id,n\nk1\nk2,\"x\"y\nk3,\"\"\"\r\n\",\n"))
	f.Add([]byte("id,\"n\n\xff,1\n"))
	f.Add([]byte("a.b,a.c.d,a.c.e,a\n1,2,3,4\n"))
	f.Add([]byte("id,x,b,tags,j\nk,0x1p-2,T,\"[\"\"a\"\"]\",{}\n"))
	s := wide()
	f.Fuzz(func(t *testing.T, content []byte) {
		rows := 0
		err := eachRecord(t, "rows.csv", content, func(r *Record) {
			rows++
			if v := jsontext.Value(r.Value); r.Malformed == "" && (len(v) == 0 || v[0] != '{') {
				t.Fatalf("%q became %q", content, v)
			}
			if r.Malformed == "" && !jsontext.Value(r.Value).IsValid() && bytes.Equal(r.Value, bytes.ToValidUTF8(r.Value, nil)) {
				t.Fatalf("%q became %q, which is no JSON", content, r.Value)
			}
			batches := batchesOf(t, s, *r)
			whole(t, string(r.Value), batches)
			release(batches)
		})
		if err != nil {
			return
		}
		// Another count of the rows: all that isn't the header.
		d, want := csv.NewReader(bytes.NewReader(content)), -1
		for d.FieldsPerRecord = -1; ; want++ {
			if _, err := d.Read(); errors.Is(err, io.EOF) {
				break
			}
		}
		if rows != want {
			t.Fatalf("%q: %d rows, want %d", content, rows, want)
		}
	})
}

// parquetSeed is a small file with a column of each kind.
type parquetSeed struct {
	ID    string                  `parquet:"id"`
	At    int64                   `parquet:"at,timestamp(microsecond)"`
	N     *int64                  `parquet:"n,optional"`
	X     float64                 `parquet:"x"`
	Tags  []string                `parquet:"tags,list"`
	Map   map[string]int32        `parquet:"m"`
	Money int64                   `parquet:"money,decimal(2:9)"`
	Inner []struct{ A, B *int32 } `parquet:"inner"`
	UUID  [16]byte                `parquet:"uuid,uuid"`
}

// No bytes of a Parquet file make its reader panic: rows are objects, or there is one error. Memory is not held to a bound here: for a page the
// library takes as much as the page says that it has, up to 2 GiB.
func FuzzParquet(f *testing.F) {
	n := int64(5)
	for _, option := range []parquet.WriterOption{parquet.Compression(&parquet.Uncompressed), parquet.Compression(&parquet.Snappy), parquet.DataPageVersion(1)} {
		var b bytes.Buffer
		w := parquet.NewGenericWriter[parquetSeed](&b, option)
		if _, err := w.Write([]parquetSeed{{ID: "a", At: testNow, N: &n, Tags: []string{"x"}, Map: map[string]int32{"k": 1}}, {ID: "b"}}); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 100_000 {
			return
		}
		_ = eachRecord(t, "rows.parquet", content, func(r *Record) {
			if len(r.Value) == 0 || r.Value[0] != '{' {
				t.Fatalf("%q", r.Value)
			}
		})
	})
}

// eachRecord reads a file of this content and hands its records over.
func eachRecord(t *testing.T, name string, content []byte, use func(*Record)) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := StatFile(context.Background(), path)
	if err != nil {
		return err
	}
	s, err := file.Open(0, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	for next := int64(0); ; {
		poll, err := s.Poll(context.Background())
		if err != nil {
			return err
		}
		for i := range poll.Records {
			if poll.Records[i].Offset != next {
				t.Fatalf("offset %d, want %d", poll.Records[i].Offset, next)
			}
			next++
			use(&poll.Records[i])
		}
		if poll.Done {
			return nil
		}
	}
}

var fuzzContact = &feature.Stream{
	Name: "contact", Kind: feature.StateStream, Format: feature.EnvelopeFormat, Topic: "contact.v1", Key: []string{"contact_id"}, ClusterBy: "contact_id",
	EventTime: "updated_at", EventTypes: []string{"Contact.*"}, Payload: feature.PatchPayload,
	Columns: []feature.Column{
		{Name: "contact_id", Type: feature.Type{Kind: feature.String}, Path: []string{"contact_id"}},
		{Name: "first", Type: feature.Type{Kind: feature.String}, Path: []string{"name", "first"}},
		{Name: "name", Type: feature.Type{Kind: feature.JSON}, Path: []string{"name"}},
		{Name: "segments", Type: feature.Type{Kind: feature.String, List: true}, Path: []string{"segments"}},
	},
}
