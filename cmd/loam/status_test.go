package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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

// statusJSON is what status tells of the stream score.
func (p *scoreProject) statusJSON() streamStatus {
	p.t.Helper()
	var all projectStatus
	if err := json.Unmarshal([]byte(p.loam("status", "--stream", "score", "--json")), &all); err != nil || len(all.Streams) != 1 {
		p.t.Fatalf("%v, %+v", err, all)
	}
	return all.Streams[0]
}

// The lag is what the broker holds and loam has not read, by partition, also of partitions of which it has read nothing.
func TestLag(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "score.v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	producer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	produced := 0
	produce := func(partition int32, n int) {
		t.Helper()
		for range n {
			produced++
			text := fmt.Sprintf(`{"id": "a%d", "n": 1, "at": "2026-01-01T00:00:00Z"}`, produced)
			if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: "score.v1", Partition: partition, Value: []byte(text)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	lags := func(s streamStatus) string {
		text := "all ?"
		if s.Lag != nil {
			text = fmt.Sprintf("all %d", *s.Lag)
		}
		for _, p := range s.Partitions {
			text += fmt.Sprintf(", %s/%d %d", p.Topic, p.Partition, p.Next)
			if p.Lag != nil {
				text += fmt.Sprintf("+%d=%d", *p.Lag, *p.End)
			}
			if p.Gone > 0 {
				text += fmt.Sprintf(" gone %d", p.Gone)
			}
		}
		return text
	}
	p := newScoreProject(t, 3, fmt.Sprintf("broker: {seeds: %q}\n", cluster.ListenAddrs()[0]))
	p.loam("apply")
	produce(0, 3)
	expect := func(what, want string) streamStatus {
		t.Helper()
		s := p.statusJSON()
		if got := lags(s); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
		return s
	}
	expect("nothing read", "all 3, score.v1/0 0+3=3, score.v1/1 0+0=0")
	p.loam("run", "--until-end", "--stream", "score")
	produce(0, 2)
	produce(1, 4)
	expect("some read", "all 6, score.v1/0 3+2=5, score.v1/1 0+4=4")

	// What the broker has removed can't be read any more.
	admin := kadm.NewClient(producer)
	offsets := kadm.Offsets{}
	offsets.AddOffset("score.v1", 0, 4, -1)
	if _, err := admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	expect("some removed", "all 5, score.v1/0 3+1=5 gone 1, score.v1/1 0+4=4")
	if text := p.loam("status", "--stream", "score"); !strings.Contains(text, "score.v1/0: the broker has removed 1 offset before they were read") {
		t.Errorf("%s", text)
	}

	// A topic that was made anew has offsets that mean nothing here.
	if _, err := admin.DeleteTopics(t.Context(), "score.v1"); err != nil {
		t.Fatal(err)
	}
	if s := expect("no topic", "all ?, score.v1/0 3"); s.LagUnknown != "the broker has no topic score.v1" {
		t.Errorf("%q", s.LagUnknown)
	}
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "score.v1"); err != nil {
		t.Fatal(err)
	}
	if s := expect("another topic", "all ?, score.v1/0 3"); s.LagUnknown != "topic score.v1 was made anew since it was read" {
		t.Errorf("%q", s.LagUnknown)
	}

	// The broker is away: all else is told.
	cluster.Close()
	if s := expect("no broker", "all ?, score.v1/0 3"); !strings.HasPrefix(s.LagUnknown, "no broker answers at ") || s.Counts.Accepted != 3 || s.Freshness == nil {
		t.Errorf("%+v", s)
	}
}

// A broker that takes connections and answers nothing makes status wait for so long, and no longer.
func TestLagOfASilentBroker(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, c)
		}
	}()
	p := newScoreProject(t, 3, fmt.Sprintf("broker: {seeds: %q}\n", listener.Addr()))
	p.loam("apply")
	begun := time.Now()
	s := p.statusJSON()
	if s.Lag != nil || !strings.HasPrefix(s.LagUnknown, "no broker answers at ") {
		t.Errorf("%+v", s)
	}
	if took := time.Since(begun); took > endsWait+3*time.Second { // the rest is opening the lake, beside other tests
		t.Errorf("it took %s", took)
	}
}

// A stream's lag is that of its topic, or unknown as a whole.
func TestHold(t *testing.T) {
	def := &feature.Stream{Name: "score", Topic: "score.v1"}
	read := func() streamStatus {
		return streamStatus{Partitions: []partitionStatus{{Topic: "score.v0", Next: 9}, {Topic: "score.v1", Partition: 1, Next: 4, topicID: "ab"}}}
	}
	ends := ingest.Ends{TopicID: "ab", Partitions: map[int32]ingest.Extent{0: {First: 2, End: 5}, 1: {End: 6}}}
	s := read()
	s.hold(def, ends)
	if *s.Lag != 5 || s.LagUnknown != "" || len(s.Partitions) != 3 || s.Partitions[0].Lag != nil || *s.Partitions[1].Lag != 3 || *s.Partitions[2].Lag != 2 ||
		s.Partitions[1].Gone != 0 {
		t.Errorf("%+v", s)
	}
	for what, bad := range map[string]ingest.Ends{
		"ends at offset 3, and 4 has been read": {TopicID: "ab", Partitions: map[int32]ingest.Extent{0: {First: 2, End: 5}, 1: {End: 3}}},
		"made anew":                             {TopicID: "cd", Partitions: ends.Partitions},
		"away":                                  {Err: errors.New("it is away")},
	} {
		s := read()
		s.hold(def, bad)
		if s.Lag != nil || !strings.Contains(s.LagUnknown, what) ||
			slices.ContainsFunc(s.Partitions, func(p partitionStatus) bool { return p.Lag != nil || p.End != nil }) {
			t.Errorf("%s: %+v", what, s)
		}
	}
}

// What status draws of long streams can be read at 100 columns.
func TestStatusWidth(t *testing.T) {
	mark := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	lag := int64(1_234_567)
	c := feature.Counts{Read: 12_345_678, Accepted: 12_345_678, Refused: 12_345, Duplicate: 1_234_567, Late: 3, Ties: 4, IDReuse: 5, Extra: 6, Ahead: 7, Unkeyed: 8}
	refused := reasonCounts{}
	for _, r := range feature.Reasons[:3] {
		refused[r] = 12_345
	}
	p := projectStatus{Streams: []streamStatus{{
		Stream: "opportunity", Files: 12, Counts: c, Lag: &lag, Watermark: &mark, RecordedAt: &mark, Refused: refused,
		Partitions: []partitionStatus{{Topic: "opportunity.v1", Partition: 12, Lag: &lag, Counts: c, Watermark: mark, RecordedAt: mark}},
	}}}
	var text strings.Builder
	p.print(&text, mark.Add(100*24*time.Hour))
	for line := range strings.SplitSeq(text.String(), "\n") {
		if len(line) > 100 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	if !strings.Contains(text.String(), "not_json 12,345") {
		t.Errorf("%s", &text)
	}
}
