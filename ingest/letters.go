package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// Headers that a dead letter has on its topic, behind those of its record. Their names are frozen.
const (
	headerStream    = "loam-stream"
	headerReason    = "loam-reason"
	headerDetail    = "loam-detail"
	headerTopic     = "loam-topic"
	headerPartition = "loam-partition"
	headerOffset    = "loam-offset"
	headerCut       = "loam-cut" // "true" where the value is the record's beginning
)

// letterBytesMax bounds the value of a dead letter on its topic, below what a broker takes unless it is told otherwise. Of longer ones the
// first CutBytes are produced.
const letterBytesMax = 900_000

// letterTimeout bounds how long a dead letter waits for its brokers.
const letterTimeout = 30 * time.Second

// Letters produces dead letters to topics of a broker.
type Letters struct{ client *kgo.Client }

// OpenLetters connects to the brokers of o, which must have the topics.
func OpenLetters(ctx context.Context, o KafkaOptions, topics []string) (*Letters, error) {
	client, err := kgo.NewClient(append(o.connection(), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordDeliveryTimeout(letterTimeout))...)
	if err != nil {
		return nil, fmt.Errorf("connect to the brokers %v: %w", o.Seeds, err)
	}
	l := &Letters{client}
	if err := l.check(ctx, o, topics); err != nil {
		client.Close()
		return nil, err
	}
	return l, nil
}

func (l *Letters) check(ctx context.Context, o KafkaOptions, topics []string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	found, err := kadm.NewClient(l.client).ListTopics(ctx, topics...)
	if err != nil {
		return o.unreachable(err)
	}
	for _, name := range topics {
		topic := found[name]
		if errors.Is(topic.Err, kerr.UnknownTopicOrPartition) || topic.Err == nil && len(topic.Partitions) == 0 {
			return fmt.Errorf("the broker has no topic %s for dead letters: make it, or remove `dead_letter_topic` from the stream's file", name)
		} else if topic.Err != nil {
			return fmt.Errorf("look topic %s for dead letters up: %w", name, topic.Err)
		}
	}
	return nil
}

// Produce gives the letters to a topic, and returns once all in-sync replicas have them.
func (l *Letters) Produce(ctx context.Context, topic string, letters []feature.DeadLetter) error {
	records := make([]*kgo.Record, len(letters))
	for i, d := range letters {
		records[i] = letterRecord(topic, d)
	}
	for _, r := range l.client.ProduceSync(ctx, records...) {
		if errors.Is(r.Err, kerr.MessageTooLarge) {
			return fmt.Errorf("produce dead letters to %s: a letter is larger than the topic takes: raise its max.message.bytes to 1048588: %w", topic, r.Err)
		} else if r.Err != nil {
			return fmt.Errorf("produce dead letters to %s: %w", topic, r.Err)
		}
	}
	return nil
}

// letterRecord is a letter as it stands on its topic: key, value and headers as they were, and more headers that say what it is.
func letterRecord(topic string, d feature.DeadLetter) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: d.RecordKey, Value: d.Body}
	for _, h := range d.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	more := []kgo.RecordHeader{
		{Key: headerStream, Value: []byte(d.Stream)}, {Key: headerReason, Value: []byte(d.Reason)}, {Key: headerDetail, Value: []byte(d.Detail)},
		{Key: headerTopic, Value: []byte(d.Topic)}, {Key: headerPartition, Value: strconv.AppendInt(nil, int64(d.Partition), 10)},
		{Key: headerOffset, Value: strconv.AppendInt(nil, d.Offset, 10)},
	}
	if cut := len(r.Value) > letterBytesMax; cut || (d.Reason == feature.TooLarge && len(d.Body) <= CutBytes) {
		r.Value = r.Value[:min(len(r.Value), CutBytes)]
		more = append(more, kgo.RecordHeader{Key: headerCut, Value: []byte("true")})
	}
	r.Headers = slices.Concat(r.Headers, more)
	return r
}

// Close ends the connection.
func (l *Letters) Close() error {
	l.client.Close()
	return nil
}
