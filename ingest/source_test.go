package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/loamdata/loam/feature"
)

func put(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// drain polls a source until it is done and gives its values as "offset value".
func drain(t *testing.T, s Source) ([]string, error) {
	t.Helper()
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var values []string
	for {
		poll, err := s.Poll(ctx)
		if err != nil {
			return values, err
		}
		for _, r := range poll.Records {
			values = append(values, fmt.Sprintf("%d %s", r.Offset, r.Value))
		}
		if poll.Done {
			return values, nil
		}
	}
}

func readFile(t *testing.T, path string, from int64) ([]string, error) {
	t.Helper()
	f, err := StatFile(context.Background(), path)
	if err != nil {
		return nil, err
	}
	s, err := f.Open(from, nil)
	if err != nil {
		return nil, err
	}
	return drain(t, s)
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 10<<20)
	text := "{\"a\":1}\r\n\n" + long + "\nlast"
	want := []string{`0 {"a":1}`, "1 ", "2 " + long, "3 last"}
	for name, content := range map[string][]byte{"e.jsonl": []byte(text), "e.jsonl.gz": packed(t, text)} {
		got, err := readFile(t, put(t, name, content), 0)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %.200s, %v", name, got, err)
		}
		if got, err := readFile(t, put(t, name, content), 3); err != nil || !slices.Equal(got, want[3:]) {
			t.Errorf("%s from line 3: %.200s, %v", name, got, err)
		}
	}
}

func TestFilesThatCantBeRead(t *testing.T) {
	whole := packed(t, strings.Repeat("{\"a\":1}\n", 50000))
	for name, c := range map[string]struct {
		content []byte
		err     string
	}{
		"empty.jsonl":    {nil, "empty"},
		"cut.jsonl.gz":   {whole[:len(whole)/2], "cut off"},
		"plain.jsonl.gz": {[]byte("{}\n"), "not a gzip file"},
		"what.txt":       {[]byte("{}\n"), "must end in"},
		"not.parquet":    {[]byte("PAR1 or so, but not really PAR1"), "not a Parquet file"},
		"twice.csv":      {[]byte("a,a\n1,2\n"), "stands twice"},
		"noname.csv":     {[]byte("a,\n1,2\n"), "has no name"},
	} {
		if _, err := readFile(t, put(t, name, c.content), 0); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
	if _, err := readFile(t, filepath.Join(t.TempDir(), "none.jsonl"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestCSV(t *testing.T) {
	got, err := readFile(t, put(t, "rows.csv", []byte("\ufeffid,name.first,n\nk1,\"A, \"\"B\"\"\nC\",1\nk2,,\nk3,x\nk4,y,2\n")), 0)
	want := []string{
		`0 {"id":"k1","name":{"first":"A, \"B\"\nC"},"n":"1"}`, `1 {"id":"k2","name":{"first":null},"n":null}`, `2 k3,x`,
		`3 {"id":"k4","name":{"first":"y"},"n":"2"}`,
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s, %v", got, err)
	}
}

// A row that isn't one says what is wrong with it.
func TestMalformedCSV(t *testing.T) {
	f, err := StatFile(context.Background(), put(t, "rows.csv", []byte("id,n\nk1\nk2,\"x\"y\n")))
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Open(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	poll, err := s.Poll(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, refused, _ := routed(t, wide(), poll.Records)
	var got []string
	for _, l := range refused {
		got = append(got, fmt.Sprintf("%s: %s", l.Reason, l.Detail))
	}
	want := []string{
		"not_json: not CSV: the number of fields is 1, and 2 in the first line",
		`not_json: not CSV: line 3, column 6: extraneous or missing " in quoted-field`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// CSV values of every type, through the decoder.
func TestCSVValues(t *testing.T) {
	path := put(t, "rows.csv", []byte("id,b,n,x,amount.value,t,day,j,tags,kind,at,seq\n"+
		`k,TRUE,-7,0.25,12.5,2026-10-01 10:00:00,2026-10-01,"{""b"":1,""a"":2}","[""x"",null]",b,2026-10-01,3`+"\n"))
	f, err := StatFile(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Open(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	poll, err := s.Poll(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	rows, refused, _ := routed(t, wide(), poll.Records)
	if len(rows) != 1 {
		t.Fatalf("refused %+v", refused)
	}
	for column, want := range map[string]string{
		"b": "true", "n": "-7", "x": "0.25", "money": "12.5", "t": "2026-10-01T10:00:00Z", "day": "2026-10-01", "j": `{"a":2,"b":1}`,
		"tags": "[x <nil>]", "kind": "b", "event_time": "2026-10-01T00:00:00Z", "sequence": "3",
	} {
		if got := fmt.Sprint(rows[0][column]); got != want {
			t.Errorf("%s is %s, want %s", column, got, want)
		}
	}
}

// parquetRow has the shapes of columns that exports have.
type parquetRow struct {
	ID     string             `parquet:"id"`
	N      *int64             `parquet:"n,optional"`
	U      uint32             `parquet:"u"`
	X      float64            `parquet:"x"`
	Money  int64              `parquet:"money,decimal(2:18)"`
	At     time.Time          `parquet:"at,timestamp(microsecond)"`
	Day    int32              `parquet:"day,date"`
	Tags   []string           `parquet:"tags,list"`
	Nested *parquetNested     `parquet:"nested,optional"`
	Many   []parquetNested    `parquet:"many,list"`
	Pairs  map[string]float64 `parquet:"pairs"`
}

type parquetNested struct {
	A string  `parquet:"a"`
	B *string `parquet:"b,optional"`
}

func TestParquet(t *testing.T) {
	seven, text := int64(7), "ü"
	at := time.Date(2026, 10, 1, 2, 3, 4, 5000, time.UTC)
	var b bytes.Buffer
	w := parquet.NewGenericWriter[parquetRow](&b)
	if _, err := w.Write([]parquetRow{
		{ID: "a", N: &seven, U: 1 << 31, X: 1.5, Money: -1250, At: at, Day: -1, Tags: []string{"x", "y"}, Nested: &parquetNested{A: "n", B: &text},
			Many: []parquetNested{{A: "1"}, {A: "2", B: &text}}, Pairs: map[string]float64{"p": 2}},
		{ID: "b", X: nan(), At: at},
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readFile(t, put(t, "rows.parquet", b.Bytes()), 0)
	want := []string{
		`0 {"id":"a","n":7,"u":2147483648,"x":1.5,"money":-1250e-2,"at":"2026-10-01T02:03:04.000005Z","day":"1969-12-31","tags":["x","y"],` +
			`"nested":{"a":"n","b":"ü"},"many":[{"a":"1","b":null},{"a":"2","b":"ü"}],"pairs":{"p":2}}`,
		`1 {"id":"b","n":null,"u":0,"x":"NaN","money":0e-2,"at":"2026-10-01T02:03:04.000005Z","day":"1970-01-01","tags":[],"nested":null,"many":[],"pairs":{}}`,
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s\n%v", strings.Join(got, "\n"), strings.Join(want, "\n"), err)
	}
	if got, err := readFile(t, put(t, "rows.parquet", b.Bytes()), 1); err != nil || !slices.Equal(got, want[1:]) {
		t.Errorf("from row 1: %s, %v", got, err)
	}
}

// Text that isn't UTF-8 is given as it is, for the decoder to refuse; bytes that are no text become base64.
func TestParquetTextThatIsNone(t *testing.T) {
	type row struct {
		Text  string `parquet:"text"`
		Bytes []byte `parquet:"bytes"`
	}
	var b bytes.Buffer
	w := parquet.NewGenericWriter[row](&b)
	if _, err := w.Write([]row{{Text: "a\xff", Bytes: []byte{0xff}}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readFile(t, put(t, "text.parquet", b.Bytes()), 0)
	if want := "0 {\"text\":\"a\xff\",\"bytes\":\"/w==\"}"; err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func nan() float64 {
	var zero float64
	return zero / zero
}

// A file whose footer is said to be longer than the file takes no memory for it.
func TestParquetFooter(t *testing.T) {
	for _, said := range []uint32{5, 1 << 31, math.MaxUint32} {
		content := append(binary.LittleEndian.AppendUint32([]byte("PAR1----"), said), "PAR1"...)
		path := put(t, "rows.parquet", content)
		var err error
		if took := allocated(func() { _, err = readFile(t, path, 0) }); took > bytesAtLeast {
			t.Errorf("%d bytes allocated for a footer of %d", took, said)
		}
		if err == nil || !strings.Contains(err.Error(), "is not a Parquet file that can be read: its footer is said to have ") {
			t.Errorf("%d: %v", said, err)
		}
	}
}

// annotated is a type of Parquet with a logical type that a file may say it has.
type annotated struct {
	parquet.Type
	logical format.LogicalType
}

func (a annotated) LogicalType() *format.LogicalType { return &a.logical }

// A logical type that the values can't have is none.
func TestParquetWrongAnnotations(t *testing.T) {
	for _, l := range []format.LogicalTypeValue{
		&format.StringType{}, &format.UUIDType{}, &format.TimestampType{Unit: format.TimeUnit{Value: &format.MicroSeconds{}}}, &format.DateType{},
		&format.DecimalType{Scale: 2, Precision: 9}, &format.IntType{BitWidth: 64}, &format.JsonType{}, &format.EnumType{},
	} {
		for _, of := range []struct {
			t parquet.Type
			v parquet.Value
		}{
			{parquet.BooleanType, parquet.BooleanValue(true)}, {parquet.Int32Type, parquet.Int32Value(5)}, {parquet.Int64Type, parquet.Int64Value(5)},
			{parquet.DoubleType, parquet.DoubleValue(5)}, {parquet.FloatType, parquet.FloatValue(5)}, {parquet.ByteArrayType, parquet.ByteArrayValue([]byte("5"))},
			{parquet.Int96Type, parquet.Int96Value([3]uint32{5})},
		} {
			if got := renderer(annotated{of.t, format.LogicalType{Value: l}})(nil, of.v); !jsontext.Value(got).IsValid() {
				t.Errorf("%s of %s: %s", l, of.t, got)
			}
		}
	}
}

// A topic folder is tailed: a line counts once its end has been written, and partitions may come into being.
func TestFolderIsTailed(t *testing.T) {
	dir := t.TempDir()
	appendTo := func(name, text string) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	appendTo("0.jsonl", "a\nb\nc")
	appendTo("ignored.txt", "x\n")
	s, err := OpenFolder("t", dir, func(p feature.Partition) int64 { return int64(1 - p.Index) }, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	next := func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		poll, err := s.Poll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, r := range poll.Records {
			all = append(all, fmt.Sprintf("%d/%d %s", r.Partition, r.Offset, r.Value))
		}
		return strings.Join(all, " ")
	}
	if got := next(); got != "0/1 b" {
		t.Errorf("got %q", got)
	}
	appendTo("0.jsonl", "cc\n")
	if got := next(); got != "0/2 ccc" {
		t.Errorf("got %q", got)
	}
	appendTo("1.jsonl", "new\n")
	if got := next(); got != "1/0 new" {
		t.Errorf("got %q", got)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if poll, err := s.Poll(cancelled); err != nil || poll.Done || len(poll.Records) != 0 {
		t.Errorf("cancelled: %+v, %v", poll, err)
	}
}

func TestFolderProblems(t *testing.T) {
	if _, err := OpenFolder("t", filepath.Join(t.TempDir(), "none"), nil, true); err == nil || !strings.Contains(err.Error(), "make ") {
		t.Errorf("missing: %v", err)
	}
	dir := filepath.Dir(put(t, "0.jsonl", []byte("a\n")))
	s, err := OpenFolder("t", dir, func(feature.Partition) int64 { return 5 }, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := drain(t, s); err == nil || !strings.Contains(err.Error(), "has 1 lines, and offset 5") {
		t.Errorf("cut: %v", err)
	}
}

func TestKafka(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "contact.v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	producer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	ctx := context.Background()
	for i := range 10 {
		r := &kgo.Record{Topic: "contact.v1", Partition: int32(i % 2), Key: []byte("k"), Value: fmt.Append(nil, i), Timestamp: time.UnixMilli(int64(1000 + i))}
		if i == 9 {
			r.Value = nil
		}
		if err := producer.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	options := KafkaOptions{
		Seeds: cluster.ListenAddrs(), Topics: []string{"contact.v1"}, UntilEnd: true,
		Starts: func(p feature.Partition) int64 { return int64(p.Index) * 3 }, TopicID: func(string) string { return "" },
	}
	k, err := OpenKafka(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	got, err := drain(t, k)
	slices.Sort(got)
	if want := []string{"0 0", "1 2", "2 4", "3 6", "3 7", "4 ", "4 8"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	for name, c := range map[string]struct {
		edit func(*KafkaOptions)
		err  string
	}{
		"no topic":   {func(o *KafkaOptions) { o.Topics = []string{"nosuch"} }, "has no topic nosuch"},
		"past end":   {func(o *KafkaOptions) { o.Starts = func(feature.Partition) int64 { return 99 } }, "ends at offset 5, and 99"},
		"made anew":  {func(o *KafkaOptions) { o.TopicID = func(string) string { return "other" } }, "made anew"},
		"no brokers": {func(o *KafkaOptions) { o.Seeds = []string{"127.0.0.1:1"} }, "no broker answers"},
	} {
		broken := options
		c.edit(&broken)
		if _, err := OpenKafka(ctx, broken); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
}

// Records that the broker removes while they are waited for are a gap, as they are at the start.
func TestKafkaGapWhileReading(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "contact.v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range 10 {
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "contact.v1", Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for _, earliest := range []bool{false, true} {
		// Until the records are removed every fetch gives none.
		var removed atomic.Bool
		cluster.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			if removed.Load() {
				return nil, nil, false
			}
			return r.ResponseKind(), nil, true
		})
		k, err := OpenKafka(ctx, KafkaOptions{
			Seeds: cluster.ListenAddrs(), Topics: []string{"contact.v1"}, UntilEnd: true, EarliestOnGap: earliest,
			Starts: func(feature.Partition) int64 { return 2 + 4*b2i(earliest) }, TopicID: func(string) string { return "" },
		})
		if err != nil {
			t.Fatal(err)
		}
		offsets := kadm.Offsets{}
		offsets.AddOffset("contact.v1", 0, 5+3*b2i(earliest), -1)
		if _, err := kadm.NewClient(client).DeleteRecords(ctx, offsets); err != nil {
			t.Fatal(err)
		}
		removed.Store(true)
		got, err := drain(t, k)
		const gap = "the broker has removed records that loam has not read; run with --on-gap earliest"
		switch {
		case earliest && (err != nil || !slices.Equal(got, []string{"8 8", "9 9"})):
			t.Errorf("got %q, %v", got, err)
		case !earliest && (err == nil || !strings.Contains(err.Error(), gap)):
			t.Errorf("got %q, %v, want %q", got, err, gap)
		}
	}
}

// Members of a group share a topic's partitions: whatever comes and goes, each record is read once from where the lake stands, and
// what was polled is settled before a partition changes hands.
func TestKafkaGroup(t *testing.T) {
	const partitions, events = 6, 6000
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "contact.v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	producer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var mu sync.Mutex
	lake := map[feature.Partition]int64{}
	times := map[string]int{} // each record was read
	owner := map[feature.Partition]string{}
	member := func(name, instance string) (*Kafka, func()) {
		var pending map[feature.Partition]int64 // polled and not settled
		settle := func() {
			for p, next := range pending {
				lake[p] = next
			}
			pending = map[feature.Partition]int64{}
		}
		k, err := OpenKafka(ctx, KafkaOptions{
			Seeds: cluster.ListenAddrs(), Topics: []string{"contact.v1"}, TopicID: func(string) string { return "" },
			Starts: func(p feature.Partition) int64 {
				mu.Lock()
				defer mu.Unlock()
				return lake[p]
			},
			Group: &KafkaGroup{
				Name: "loam.test", Instance: instance,
				Given: func(_ context.Context, given []feature.Partition) error {
					mu.Lock()
					defer mu.Unlock()
					for _, p := range given {
						if owner[p] != "" {
							t.Errorf("%v is given to %s while %s has it", p, name, owner[p])
						}
						owner[p] = name
					}
					return nil
				},
				Taken: func(_ context.Context, taken []feature.Partition) {
					mu.Lock()
					defer mu.Unlock()
					settle()
					for _, p := range taken {
						owner[p] = ""
					}
				},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		reading, stop := context.WithCancel(ctx)
		var done sync.WaitGroup
		done.Go(func() {
			for reading.Err() == nil {
				poll, err := k.Poll(reading)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				settle()
				for _, r := range poll.Records {
					p := feature.Partition{Topic: r.Topic, Index: r.Partition}
					if owner[p] != name {
						t.Errorf("%s reads %v, which is %q's", name, p, owner[p])
					}
					if pending[p] = r.Offset + 1; r.Offset < lake[p] {
						t.Errorf("%s reads offset %d of %v again", name, r.Offset, p)
					}
					times[string(r.Value)]++
				}
				mu.Unlock()
			}
			mu.Lock()
			settle()
			mu.Unlock()
		})
		return k, func() {
			stop()
			done.Wait()
		}
	}
	shares := func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		n := map[string]int{}
		for _, name := range owner {
			n[name]++
		}
		return n
	}
	await := func(what string, so func(map[string]int) bool) {
		t.Helper()
		for !so(shares()) {
			if ctx.Err() != nil {
				t.Fatalf("not: %s; the shares are %v", what, shares())
			}
			time.Sleep(time.Millisecond)
		}
	}
	sent := 0
	send := func() {
		for range events / 4 {
			producer.Produce(ctx, &kgo.Record{Topic: "contact.v1", Value: fmt.Append(nil, sent)}, nil)
			sent++
		}
		if err := producer.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	first, stopFirst := member("first", "instance-1")
	await("one reads all", func(n map[string]int) bool { return n["first"] == partitions })
	send()
	second, stopSecond := member("second", "")
	send()
	await("two share", func(n map[string]int) bool { return n["first"] == partitions/2 && n["second"] == partitions/2 })
	send()
	stopFirst()
	if err := first.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	await("the other one reads all", func(n map[string]int) bool { return n["second"] == partitions })
	send()
	await("all were read", func(map[string]int) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(times) == events
	})
	stopSecond()
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	for value, n := range times {
		if n != 1 {
			t.Errorf("record %s was read %d times", value, n)
		}
	}
	end, err := OpenKafka(ctx, KafkaOptions{
		Seeds: cluster.ListenAddrs(), Topics: []string{"contact.v1"}, TopicID: func(string) string { return "" }, UntilEnd: true,
		Starts: func(p feature.Partition) int64 { return lake[p] },
		Group:  &KafkaGroup{Name: "loam.test", Given: func(context.Context, []feature.Partition) error { return nil }, Taken: func(context.Context, []feature.Partition) {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	if got, err := drain(t, end); err != nil || len(got) > 0 {
		t.Errorf("at the end of all %q is read, %v", got, err)
	}
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
