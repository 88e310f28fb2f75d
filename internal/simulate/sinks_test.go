package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// reading is what loam's ingest made of a source.
type reading struct {
	counts  feature.Counts
	rows    map[string]map[string]any // accepted, by event id
	refused map[feature.Position]feature.DeadLetter
}

// ingested reads sources to their end through one router: each event to the stream that its type names or, where only is
// given, to that one.
func ingested(t *testing.T, only string, sources ...ingest.Source) reading {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, feature.ProjectFile), []byte("project: test"), 0o644); err != nil {
		t.Fatal(err)
	}
	project, err := feature.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := ingest.RouterOptions{
		Streams: project.Streams, Dedups: map[string]*ingest.Dedup{}, Starts: func(string, feature.Partition) int64 { return 0 },
	}
	for _, s := range project.Streams {
		o.Dedups[s.Name] = ingest.NewDedup(1<<20, func(context.Context, []feature.Identity) (map[feature.Identity]feature.Position, error) {
			t.Error("the log is asked, though the window holds all")
			return nil, nil
		})
		if s.Name == only {
			o.Only = s
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := reading{rows: map[string]map[string]any{}, refused: map[feature.Position]feature.DeadLetter{}}
	router, now := ingest.NewRouter(o), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	for _, source := range sources {
		defer source.Close()
		for done := false; !done; {
			poll, err := source.Poll(ctx)
			if err != nil {
				t.Fatal(err)
			}
			done = poll.Done
			for i := range poll.Records {
				router.Add(&poll.Records[i], now)
			}
			batches, err := router.Flush(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range batches {
				r.take(t, b)
			}
		}
	}
	if r.counts.Read != r.counts.Accepted+r.counts.Refused+r.counts.Duplicate {
		t.Errorf("counts don't add up: %+v", r.counts)
	}
	return r
}

func (r *reading) take(t *testing.T, b *feature.Batch) {
	t.Helper()
	defer b.Release()
	for _, s := range b.Spans {
		r.counts.Add(s.Counts)
	}
	for _, l := range b.Refused {
		r.refused[l.Position] = l
	}
	for _, batch := range b.Rows {
		text, err := batch.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var rows []map[string]any
		if err := json.Unmarshal(text, &rows); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			r.rows[row[feature.ColEventID].(string)] = row
		}
	}
}

// bare is the row without what depends on where and when it was read.
func bare(row map[string]any) string {
	row = maps.Clone(row)
	for _, column := range []string{feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColRecordedAt, feature.ColIngestedAt} {
		delete(row, column)
	}
	return fmt.Sprint(row)
}

func fileSource(t *testing.T, path string) ingest.Source {
	t.Helper()
	f, err := ingest.StatFile(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Open(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// written simulates into a sink and closes it, and gives the events too.
func written(t *testing.T, c Config, write func(Event) error, done func() error) ([]Event, Summary) {
	t.Helper()
	events, summary := simulated(t, c)
	for _, e := range events {
		if err := write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	return events, summary
}

// loam takes every good event and none of the malformed ones, each for its own reason, and counts every duplicate.
func (r reading) check(t *testing.T, events []Event, summary Summary) {
	t.Helper()
	malformed := 0
	for _, n := range summary.Malformed {
		malformed += n
	}
	want := feature.Counts{
		Read: int64(summary.Events), Accepted: int64(summary.Unique), Duplicate: int64(summary.Duplicates), Refused: int64(malformed),
	}
	if r.counts != want || len(r.refused) != malformed { // so no event is odd either: with extra fields, an id used again, a strange key
		t.Errorf("counts %+v and %d dead letters, want %+v", r.counts, len(r.refused), want)
	}
	why := map[string]feature.Reason{} // by the bytes
	for _, e := range events {
		if e.Reason != "" {
			why[string(e.Value)] = e.Reason
		}
	}
	for at, l := range r.refused {
		if l.Reason != why[string(l.Body)] {
			t.Errorf("%v is refused for %s, %s; want %q: %s", at, l.Reason, l.Detail, why[string(l.Body)], l.Body)
		}
	}
}

func TestJSONL(t *testing.T) {
	for _, name := range []string{"events.jsonl", "events.jsonl.gz"} {
		path := filepath.Join(t.TempDir(), name)
		s, err := CreateJSONL(path)
		if err != nil {
			t.Fatal(err)
		}
		events, summary := written(t, dirty(t), s.Write, s.Close)
		r := ingested(t, "", fileSource(t, path))
		r.check(t, events, summary)
		for _, l := range r.refused {
			if e := events[l.Offset]; !bytes.Equal(e.Value, l.Body) {
				t.Fatalf("line %d is not event %d", l.Offset, l.Offset)
			}
		}
		for _, e := range events {
			if e.Reason != "" {
				continue
			}
			in := parse(t, e)
			ingestedAt, _ := r.rows[in.Envelope.ID][feature.ColIngestedAt].(string)
			if at, err := time.Parse(time.RFC3339, ingestedAt); err != nil || !at.Equal(in.Envelope.Received) {
				t.Fatalf("ingested at %q, want %s: %v", ingestedAt, in.Envelope.Received, err)
			}
		}
	}
	if _, err := CreateJSONL(filepath.Join(t.TempDir(), "none", "events.jsonl")); err == nil || !strings.HasPrefix(err.Error(), "create the events' file: ") {
		t.Errorf("no folder: %v", err)
	}
}

// The Parquet files hold what the good lines hold, field by field.
func TestParquet(t *testing.T) {
	c, dir, lines := dirty(t), t.TempDir(), &bytes.Buffer{}
	p, err := CreateParquet(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := NewJSONL(lines)
	events, summary := written(t, c, func(e Event) error {
		if e.Reason == "" {
			if err := out.Write(e); err != nil {
				return err
			}
		}
		return p.Write(e)
	}, p.Close)
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "good.jsonl")
	if err := os.WriteFile(path, lines.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	want := ingested(t, "", fileSource(t, path))
	var sources []ingest.Source
	for _, stream := range streamNames {
		sources = append(sources, fileSource(t, filepath.Join(dir, stream+".parquet")))
	}
	got := ingested(t, "", sources...)
	if got.counts.Accepted != int64(summary.Unique) || got.counts.Duplicate != int64(summary.Duplicates) || got.counts.Read != int64(len(events)-p.LeftOut) ||
		got.counts.Extra != 0 {
		t.Errorf("%+v of %d events, %d left out; the summary says %+v", got.counts, len(events), p.LeftOut, summary)
	}
	if len(got.rows) != len(want.rows) {
		t.Errorf("%d rows, want %d", len(got.rows), len(want.rows))
	}
	for id, row := range want.rows {
		if bare(got.rows[id]) != bare(row) || got.rows[id][feature.ColIngestedAt] != row[feature.ColIngestedAt] {
			t.Fatalf("in Parquet\n%v, in JSON\n%v", got.rows[id], row)
		}
	}
	if _, err := CreateParquet(filepath.Join(dir, "none")); err == nil || !strings.HasPrefix(err.Error(), "create the Parquet file of stream contact: ") {
		t.Errorf("no folder: %v", err)
	}
}

var topics = Topics{"contact.v1", "opportunity.v1", "engagement.v1"}

func TestFolder(t *testing.T) {
	c, dir := dirty(t), filepath.Join(t.TempDir(), "[topics]*")
	const partitions = 3
	f, err := OpenFolder(dir, topics, partitions)
	if err != nil {
		t.Fatal(err)
	}
	events, summary := written(t, c, f.Write, f.Close)
	total := reading{rows: map[string]map[string]any{}, refused: map[feature.Position]feature.DeadLetter{}}
	for i, topic := range topics {
		source, err := ingest.OpenFolder(topic, filepath.Join(dir, topic), func(feature.Partition) int64 { return 0 }, true)
		if err != nil {
			t.Fatal(err)
		}
		r := ingested(t, streamNames[i], source)
		total.counts.Add(r.counts)
		maps.Copy(total.rows, r.rows)
		maps.Copy(total.refused, r.refused)
	}
	total.check(t, events, summary)
	// A key has one partition, in which its events stand in order of arrival; each partition has some.
	places := map[string]string{}
	for _, row := range total.rows {
		for _, key := range []string{"contact_id", "opportunity_id"} {
			if id, ok := row[key].(string); ok {
				place := fmt.Sprint(row[feature.ColTopic], row[feature.ColPartition])
				key := fmt.Sprint(row[feature.ColTopic], id)
				if before, ok := places[key]; ok && before != place {
					t.Errorf("%s is in two partitions", key)
				}
				places[key] = place
			}
		}
	}
	if n := len(slices.Compact(slices.Sorted(maps.Values(places)))); n != partitions*len(topics) {
		t.Errorf("%d partitions have events", n)
	}
	// What is there stays, and more is appended.
	before, err := os.ReadFile(filepath.Join(dir, topics[0], "0.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err = OpenFolder(dir, topics, partitions); err != nil {
		t.Fatal(err)
	}
	written(t, c, f.Write, f.Close)
	after, err := os.ReadFile(filepath.Join(dir, topics[0], "0.jsonl"))
	if err != nil || !bytes.Equal(after, append(before, before...)) {
		t.Errorf("the second run isn't appended: %d bytes, then %d, %v", len(before), len(after), err)
	}
	if _, err := OpenFolder(dir, topics, partitions+1); err == nil || !strings.Contains(err.Error(), "has 3 partitions") {
		t.Errorf("another number of partitions: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, topics[1], "0.jsonl"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(dir, topics, partitions); err == nil || !strings.Contains(err.Error(), "ends within a line") {
		t.Errorf("half a line: %v", err)
	}
	if _, err := OpenFolder(dir, topics, 0); err == nil {
		t.Error("no partitions are taken")
	}
	named := TopicsOf(func(stream string) string { return "crm." + stream })
	if f, err = OpenFolder(dir, named, partitions); err != nil {
		t.Fatal(err)
	}
	written(t, c, f.Write, f.Close)
	if again, err := os.ReadFile(filepath.Join(dir, "crm.contact", "0.jsonl")); err != nil || !bytes.Equal(again, before) {
		t.Errorf("a topic by another name has other events: %d bytes, %v", len(again), err)
	}
}

func TestKafka(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(5, topics[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	k, err := DialKafka(ctx, cluster.ListenAddrs(), topics, 2)
	if err != nil {
		t.Fatal(err)
	}
	events, summary := written(t, dirty(t), func(e Event) error { return k.Write(ctx, e) }, func() error { return k.Close(ctx) })
	total := reading{rows: map[string]map[string]any{}, refused: map[feature.Position]feature.DeadLetter{}}
	for i, topic := range topics {
		source, err := ingest.OpenKafka(ctx, ingest.KafkaOptions{
			Seeds: cluster.ListenAddrs(), Topics: []string{topic}, UntilEnd: true,
			Starts: func(feature.Partition) int64 { return 0 }, TopicID: func(string) string { return "" },
		})
		if err != nil {
			t.Fatal(err)
		}
		r := ingested(t, streamNames[i], source)
		total.counts.Add(r.counts)
		maps.Copy(total.rows, r.rows)
		maps.Copy(total.refused, r.refused)
	}
	total.check(t, events, summary)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	there, err := kadm.NewClient(client).ListTopics(ctx)
	if err != nil || len(there[topics[0]].Partitions) != 5 || len(there[topics[1]].Partitions) != 2 {
		t.Errorf("topics %v, %v", there, err)
	}
}

func TestKafkaThatIsAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := DialKafka(ctx, []string{"127.0.0.1:1"}, topics, 1); err == nil || !strings.HasPrefix(err.Error(), "make the topics at [127.0.0.1:1]: ") {
		t.Errorf("no broker: %v", err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	k, err := DialKafka(context.Background(), cluster.ListenAddrs(), topics, 1)
	if err != nil {
		t.Fatal(err)
	}
	cluster.Close()
	if err := k.Write(ctx, Event{Stream: streamNames[0], Value: []byte("{}")}); err != nil {
		t.Errorf("what is on its way fails later: %v", err)
	}
	if err := k.Close(ctx); err == nil {
		t.Error("an event is lost without an error")
	}
}
