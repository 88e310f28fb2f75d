package ingest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// Kafka is a connection to a broker that reads topics. Offsets come from the lake, not from the broker's groups.
type Kafka struct {
	client *kgo.Client
	admin  *kadm.Client
	ids    map[string]string           // topic -> its id
	next   map[feature.Partition]int64 // the next offset to read
	ends   map[feature.Partition]int64 // one past the newest record that is known of
	until  map[feature.Partition]int64 // where to end, nil for never
	buffer []Record
}

// KafkaOptions say what to read.
type KafkaOptions struct {
	Seeds  []string
	Access Access
	Topics []string
	// Starts gives the offset to read a partition from, 0 where none of it has been taken.
	Starts func(p feature.Partition) int64
	// TopicID gives the id that a topic had when it was read before, "" where it wasn't.
	TopicID func(topic string) string
	// UntilEnd makes the source done once every partition has been read to where it ended when the source was opened.
	UntilEnd bool
	// EarliestOnGap goes on at the oldest record where the ones to read from have been removed; otherwise that stops.
	EarliestOnGap bool
}

// connectTimeout bounds the first contact with the brokers.
const connectTimeout = 10 * time.Second

// OpenKafka connects, holds the topics against what was read of them before, and starts to read. A topic that is
// missing, was made anew, has lost records that are still to be read, or ends before them is an error that says what to
// do.
func OpenKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	// Records that the broker removes while they are waited for are a gap, too: without a word it must not be jumped.
	onGap := kgo.NoResetOffset()
	if o.EarliestOnGap {
		onGap = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(append(o.connection(),
		kgo.ConsumeResetOffset(onGap),
		// Control records mark where transactions end: without them the end of a topic could never be reached.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(4<<20), kgo.MaxConcurrentFetches(4),
		kgo.FetchMaxWait(50*time.Millisecond),
	)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the brokers %v: %w", o.Seeds, err)
	}
	k := &Kafka{
		client: client, admin: kadm.NewClient(client), ids: map[string]string{},
		ends: map[feature.Partition]int64{}, next: map[feature.Partition]int64{},
	}
	starts, err := k.starts(ctx, o)
	if err != nil {
		client.Close()
		return nil, err
	}
	if o.UntilEnd {
		k.until = maps.Clone(k.ends)
	}
	client.AddConsumePartitions(starts)
	return k, nil
}

// starts gives where each partition is to be read from, all things checked.
func (k *Kafka) starts(ctx context.Context, o KafkaOptions) (map[string]map[int32]kgo.Offset, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	topics, err := k.admin.ListTopics(ctx, o.Topics...)
	if err != nil {
		return nil, o.unreachable(err)
	}
	oldest, err := k.admin.ListStartOffsets(ctx, o.Topics...)
	if err != nil {
		return nil, fmt.Errorf("list the oldest offsets of %v: %w", o.Topics, err)
	}
	newest, err := k.admin.ListCommittedOffsets(ctx, o.Topics...)
	if err != nil {
		return nil, fmt.Errorf("list the newest offsets of %v: %w", o.Topics, err)
	}
	starts := map[string]map[int32]kgo.Offset{}
	for _, name := range o.Topics {
		topic := topics[name]
		if errors.Is(topic.Err, kerr.UnknownTopicOrPartition) || (topic.Err == nil && len(topic.Partitions) == 0) {
			return nil, fmt.Errorf("the broker has no topic %s: make it, or name another with `topic:` in the stream's file", name)
		} else if topic.Err != nil {
			return nil, fmt.Errorf("look topic %s up: %w", name, topic.Err)
		}
		id := hex.EncodeToString(topic.ID[:])
		if before := o.TopicID(name); before != "" && before != id {
			return nil, fmt.Errorf("topic %s was made anew since it was read: its id was %s and is %s; "+
				"give the stream another topic, or remove its tables", name, before, id)
		}
		k.ids[name] = id
		starts[name] = map[int32]kgo.Offset{}
		for index := range topic.Partitions {
			p := feature.Partition{Topic: name, Index: index}
			first, _ := oldest.Lookup(name, index)
			last, _ := newest.Lookup(name, index)
			if err := errors.Join(first.Err, last.Err); err != nil {
				return nil, fmt.Errorf("list the offsets of partition %d of %s: %w", index, name, err)
			}
			from := o.Starts(p)
			switch {
			case from > last.Offset:
				return nil, fmt.Errorf("partition %d of %s ends at offset %d, and %d has been read: the topic lost records or was made anew; "+
					"give the stream another topic, or remove its tables", index, name, last.Offset, from)
			case from > 0 && from < first.Offset && !o.EarliestOnGap:
				return nil, fmt.Errorf("partition %d of %s starts at offset %d, and %d is to be read next: the broker has removed records that loam "+
					"has not read; run with --on-gap earliest to go on without them", index, name, first.Offset, from)
			}
			from = max(from, first.Offset)
			k.next[p], k.ends[p] = from, last.Offset
			starts[name][index] = kgo.NewOffset().At(from)
		}
	}
	return starts, nil
}

// TopicID is the broker's id of a topic that is read.
func (k *Kafka) TopicID(topic string) string { return k.ids[topic] }

// Close ends the connection.
func (k *Kafka) Close() error {
	k.client.Close()
	return nil
}

// Poll waits for records and gives them, until the context is done.
func (k *Kafka) Poll(ctx context.Context) (Poll, error) {
	var poll Poll
	if k.until != nil && k.atEnd() {
		poll.Done = true
		poll.Ends = slices.Collect(maps.Keys(k.until))
		return poll, nil
	}
	wait, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	fetches := k.client.PollRecords(wait, pollRecords*4)
	for _, e := range fetches.Errors() {
		if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled) {
			continue
		}
		if errors.Is(e.Err, kerr.OffsetOutOfRange) {
			return Poll{}, fmt.Errorf("partition %d of %s no longer holds offset %d, which is to be read next: the broker has removed records that "+
				"loam has not read; run with --on-gap earliest to go on without them: %w",
				e.Partition, e.Topic, k.next[feature.Partition{Topic: e.Topic, Index: e.Partition}], e.Err)
		}
		return Poll{}, fmt.Errorf("read partition %d of %s: %w", e.Partition, e.Topic, e.Err)
	}
	k.buffer = k.buffer[:0]
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		p := feature.Partition{Topic: f.Topic, Index: f.Partition}
		k.ends[p] = max(k.ends[p], f.LastStableOffset)
		for _, r := range f.Records {
			k.next[p] = r.Offset + 1
			if r.Attrs.IsControl() {
				continue
			}
			rec := Record{
				Position: feature.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
				Key:      r.Key, Value: r.Value, Timestamp: r.Timestamp.UnixMicro(),
			}
			for _, h := range r.Headers {
				rec.Headers = append(rec.Headers, feature.Header{Key: h.Key, Value: h.Value})
			}
			if len(r.Value) > EventBytesMax {
				rec.Value, rec.Cut = r.Value[:CutBytes], true
			}
			k.buffer = append(k.buffer, rec)
		}
	})
	for p, end := range k.ends {
		if k.next[p] >= end {
			poll.Ends = append(poll.Ends, p)
		}
	}
	poll.Records = k.buffer
	return poll, nil
}

func (k *Kafka) atEnd() bool {
	for p, end := range k.until {
		if k.next[p] < end {
			return false
		}
	}
	return true
}
