package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// consume gives the records of a topic, as text.
func consume(t *testing.T, seeds []string, topic string, n int) []string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var all []string
	for len(all) < n {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			text := fmt.Sprintf("%q %q nil=%v", r.Key, r.Value, r.Value == nil)
			for _, h := range r.Headers {
				text += fmt.Sprintf(" %s=%s", h.Key, h.Value)
			}
			all = append(all, text)
		})
	}
	slices.Sort(all)
	return all
}

// Dead letters are on their topic before any offset moves, with all that they had and what is said of them; where the broker
// doesn't take them nothing is committed, and they are produced again.
func TestDeadLetterTopic(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "score.v1", "score.dead"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	producer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, r := range []*kgo.Record{
		{Value: []byte(`{"id": "a", "n": 1, "at": "2026-01-01T00:00:00Z"}`)},
		{Key: []byte("k\xff"), Value: []byte("what\x00"), Headers: []kgo.RecordHeader{{Key: "trace", Value: []byte("1")}, {Key: "trace", Value: []byte("2")}}},
		{Timestamp: time.UnixMilli(1770000000000)}, // a tombstone of nobody
	} {
		r.Topic = "score.v1"
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	p := newScoreProject(t, 3, fmt.Sprintf("broker: {seeds: %q}\n", cluster.ListenAddrs()[0]))
	p.write("streams/score.yaml", "stream: score\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ndead_letter_topic: score.dead\ncolumns: [{name: id, type: string}, {name: n, type: 'decimal(3,1)'}]\n")
	run := func() error {
		root := p.app().root()
		root.SetArgs([]string{"run", "--until-end", "--stream", "score", "-C", p.dir})
		return root.ExecuteContext(t.Context())
	}
	p.loam("apply")
	var refusing atomic.Bool
	refusing.Store(true)
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !refusing.Load() {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.ProduceResponse)
		for _, topic := range r.(*kmsg.ProduceRequest).Topics {
			refused := kmsg.ProduceResponseTopic{Topic: topic.Topic, TopicID: topic.TopicID}
			for _, partition := range topic.Partitions {
				refused.Partitions = append(refused.Partitions, kmsg.ProduceResponseTopicPartition{Partition: partition.Partition, ErrorCode: kerr.TopicAuthorizationFailed.Code})
			}
			answer.Topics = append(answer.Topics, refused)
		}
		return answer, nil, true
	})
	if err := run(); err == nil || !strings.Contains(err.Error(), "produce dead letters to score.dead") {
		t.Fatalf("run: %v", err)
	}
	if c := p.counts(); c.Read != 0 {
		t.Errorf("offsets moved before the letters were produced: %+v", c)
	}
	if text := p.loam("dlq", "list"); text != "no dead letters\n" {
		t.Errorf("%s", text)
	}
	refusing.Store(false)
	if err := run(); err != nil {
		t.Fatal(err)
	}
	said := func(reason, detail string, offset int) string {
		return fmt.Sprintf("loam-stream=score loam-reason=%s loam-detail=%s loam-topic=score.v1 loam-partition=0 loam-offset=%d", reason, detail, offset)
	}
	got := consume(t, cluster.ListenAddrs(), "score.dead", 2)
	if len(got) != 2 || !strings.HasPrefix(got[0], `"" "" nil=true loam-stream=score loam-reason=missing_key`) || !strings.HasSuffix(got[0], "loam-offset=2") ||
		!strings.HasPrefix(got[1], `"k\xff" "what\x00" nil=false trace=1 trace=2 `+strings.Split(said("not_json", "", 1), " loam-detail")[0]) {
		t.Errorf("%q", got)
	}
	// What came by Kafka is kept whole, and a tombstone that is repaired has the time of its record.
	var shown letter
	if err := json.Unmarshal([]byte(p.loam("dlq", "show", "score.v1/0@1", "--json")), &shown); err != nil || len(shown.Headers) != 2 || !shown.Base64 || *shown.Headers[1].Value != "Mg==" {
		t.Errorf("%+v, %v", shown, err)
	}
	p.write("deleted.jsonl", `{"position": "score.v1/0@2", "record_key": "a", "body": null}`)
	p.loam("dlq", "redrive", "--with", filepath.Join(p.dir, "deleted.jsonl"))
	if text := p.loam("history", "score", "a"); !strings.Contains(text, "2026-02-02 02:40:00") {
		t.Errorf("%s", text)
	}
	p.loam("verify", "--stream", "score")
	// Files go there, too; run again nothing is produced again.
	p.write("more.jsonl", "from a file\n")
	p.loam("backfill", "--stream", "score", filepath.Join(p.dir, "more.jsonl"))
	if err := run(); err != nil {
		t.Fatal(err)
	}
	got = consume(t, cluster.ListenAddrs(), "score.dead", 3)
	if len(got) != 3 || !strings.Contains(strings.Join(got, "\n"), `"from a file"`) {
		t.Errorf("%q", got)
	}
	p.write("streams/score.yaml", "stream: score\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ndead_letter_topic: no.such\ncolumns: [{name: id, type: string}, {name: n, type: 'decimal(3,1)'}]\n")
	p.loam("apply")
	if err := run(); err == nil || !strings.Contains(err.Error(), "the broker has no topic no.such for dead letters") {
		t.Errorf("%v", err)
	}
}
