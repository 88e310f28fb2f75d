package ingest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// Kafka is a connection to a broker that reads topics, all of their partitions or those that a consumer group gives it. Offsets
// come from the lake, not from the broker's groups.
type Kafka struct {
	o      KafkaOptions
	client *kgo.Client
	admin  *kadm.Client
	ids    map[string]string           // topic -> its id
	until  map[feature.Partition]int64 // where to end, of every partition; nil for never
	buffer []Record

	mu     sync.Mutex                  // a group gives and takes partitions while others are polled
	next   map[feature.Partition]int64 // the next offset to read, of the partitions that are read
	ends   map[feature.Partition]int64 // one past the newest record that is known of
	given  []feature.Partition         // since the last poll
	failed error                       // why partitions that were given can't be read
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
	// UntilEnd makes the source done once every partition has been read to where it ended when the source was opened. Those that
	// other members of the group read count by Starts.
	UntilEnd bool
	// EarliestOnGap goes on at the oldest record where the ones to read from have been removed; otherwise that stops.
	EarliestOnGap bool
	// Group shares the partitions with the group's other members; without one all are read here.
	Group *KafkaGroup
}

// KafkaGroup makes a source a member of a consumer group. Its functions are called beside Poll, but never while what was polled is in
// use, which it is until the next Poll.
type KafkaGroup struct {
	Name string
	// Instance, unless it is "", names this member across restarts: it is then given the partitions that it had, at once. No other
	// member may have it.
	Instance string
	// Given is told which partitions are to be read here from now on. Starts is asked for their offsets after it.
	Given func(ctx context.Context, partitions []feature.Partition) error
	// Taken is told which are no longer. What was polled of them is settled when it returns, or won't be.
	Taken func(ctx context.Context, partitions []feature.Partition)
}

// connectTimeout bounds the first contact with the brokers.
const connectTimeout = 10 * time.Second

// A member that isn't heard of for groupSession loses its partitions to others; one that has to give some of them back has
// groupRebalance to settle what it has polled.
const (
	groupSession   = 15 * time.Second
	groupHeartbeat = 2 * time.Second
	groupRebalance = time.Minute
)

// OpenKafka connects, holds the topics against what was read of them before, and starts to read. A topic that is
// missing, was made anew, has lost records that are still to be read, or ends before them is an error that says what to
// do.
func OpenKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	k := &Kafka{o: o, ids: map[string]string{}, ends: map[feature.Partition]int64{}, next: map[feature.Partition]int64{}}
	// Records that the broker removes while they are waited for are a gap, too: without a word it must not be jumped.
	onGap := kgo.NoResetOffset()
	if o.EarliestOnGap {
		onGap = kgo.NewOffset().AtStart()
	}
	options := append(o.connection(),
		kgo.ConsumeResetOffset(onGap),
		// Control records mark where transactions end: without them the end of a topic could never be reached.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(4<<20), kgo.MaxConcurrentFetches(4),
		kgo.FetchMaxWait(50*time.Millisecond),
	)
	if o.Group != nil {
		options = append(options, k.group()...)
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("connect to the brokers %v: %w", o.Seeds, err)
	}
	k.client, k.admin = client, kadm.NewClient(client)
	all, err := k.check(ctx, o.Topics)
	if err != nil {
		client.Close()
		return nil, err
	}
	if o.UntilEnd {
		k.until = map[feature.Partition]int64{}
		for p, at := range all {
			k.until[p] = at.end
		}
	}
	if o.Group != nil {
		client.AddConsumeTopics(o.Topics...)
		return k, nil
	}
	starts := map[string]map[int32]kgo.Offset{}
	for p, at := range all {
		k.next[p], k.ends[p] = at.from, at.end
		if starts[p.Topic] == nil {
			starts[p.Topic] = map[int32]kgo.Offset{}
		}
		starts[p.Topic][p.Index] = kgo.NewOffset().At(at.from)
	}
	client.AddConsumePartitions(starts)
	return k, nil
}

// group are the options of a member of a consumer group.
func (k *Kafka) group() []kgo.Opt {
	taken := func(ctx context.Context, _ *kgo.Client, partitions map[string][]int32) {
		k.take(ctx, partitionsOf(partitions))
	}
	options := []kgo.Opt{
		kgo.ConsumerGroup(k.o.Group.Name), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(groupSession), kgo.HeartbeatInterval(groupHeartbeat), kgo.RebalanceTimeout(groupRebalance),
		kgo.AdjustFetchOffsetsFn(k.give), kgo.OnPartitionsRevoked(taken), kgo.OnPartitionsLost(taken),
	}
	if k.o.Group.Instance != "" {
		options = append(options, kgo.InstanceID(k.o.Group.Instance))
	}
	return options
}

// partitionsOf lists partitions by topic, sorted.
func partitionsOf(byTopic map[string][]int32) []feature.Partition {
	var all []feature.Partition
	for topic, indexes := range byTopic {
		for _, i := range indexes {
			all = append(all, feature.Partition{Topic: topic, Index: i})
		}
	}
	slices.SortFunc(all, feature.Partition.Compare)
	return all
}

// give begins to read partitions, where the lake stands in them.
func (k *Kafka) give(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	indexes := map[string][]int32{}
	for topic, partitions := range offsets {
		indexes[topic] = slices.Collect(maps.Keys(partitions))
	}
	given := partitionsOf(indexes)
	if len(given) == 0 {
		return offsets, nil
	}
	err := k.o.Group.Given(ctx, given)
	var all map[feature.Partition]extent
	if err == nil {
		all, err = k.check(ctx, slices.Collect(maps.Keys(offsets)))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil { // else they are taken back already
			k.failed = err
		}
		return nil, err
	}
	for _, p := range given {
		at, ok := all[p]
		if !ok {
			return nil, fmt.Errorf("the broker gave partition %d of %s, which it doesn't list", p.Index, p.Topic)
		}
		k.next[p], k.ends[p] = at.from, at.end
		offsets[p.Topic][p.Index] = kgo.NewOffset().At(at.from)
	}
	k.given = append(k.given, given...)
	return offsets, nil
}

// take ends the reading of partitions.
func (k *Kafka) take(ctx context.Context, partitions []feature.Partition) {
	k.mu.Lock()
	for _, p := range partitions {
		delete(k.next, p)
		delete(k.ends, p)
	}
	k.given = slices.DeleteFunc(k.given, func(p feature.Partition) bool { return slices.Contains(partitions, p) })
	k.mu.Unlock()
	k.o.Group.Taken(ctx, partitions)
}

// extent is where a partition is read from, and one past its newest record.
type extent struct{ from, end int64 }

// check gives where each partition of the topics is to be read from, all things checked.
func (k *Kafka) check(ctx context.Context, topics []string) (map[feature.Partition]extent, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	details, err := k.admin.ListTopics(ctx, topics...)
	if err != nil {
		return nil, k.o.unreachable(err)
	}
	oldest, err := k.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list the oldest offsets of %v: %w", topics, err)
	}
	newest, err := k.admin.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list the newest offsets of %v: %w", topics, err)
	}
	all := map[feature.Partition]extent{}
	for _, name := range topics {
		topic := details[name]
		if errors.Is(topic.Err, kerr.UnknownTopicOrPartition) || (topic.Err == nil && len(topic.Partitions) == 0) {
			return nil, fmt.Errorf("the broker has no topic %s: make it, or name another with `topic:` in the stream's file", name)
		} else if topic.Err != nil {
			return nil, fmt.Errorf("look topic %s up: %w", name, topic.Err)
		}
		id := hex.EncodeToString(topic.ID[:])
		if before := k.o.TopicID(name); before != "" && before != id {
			return nil, fmt.Errorf("topic %s was made anew since it was read: its id was %s and is %s; "+
				"give the stream another topic, or remove its tables", name, before, id)
		}
		k.mu.Lock()
		k.ids[name] = id
		k.mu.Unlock()
		for index := range topic.Partitions {
			p := feature.Partition{Topic: name, Index: index}
			first, _ := oldest.Lookup(name, index)
			last, _ := newest.Lookup(name, index)
			if err := errors.Join(first.Err, last.Err); err != nil {
				return nil, fmt.Errorf("list the offsets of partition %d of %s: %w", index, name, err)
			}
			from := k.o.Starts(p)
			switch {
			case from > last.Offset:
				return nil, fmt.Errorf("partition %d of %s ends at offset %d, and %d has been read: the topic lost records or was made anew; "+
					"give the stream another topic, or remove its tables", index, name, last.Offset, from)
			case from > 0 && from < first.Offset && !k.o.EarliestOnGap:
				return nil, fmt.Errorf("partition %d of %s starts at offset %d, and %d is to be read next: the broker has removed records that loam "+
					"has not read; run with --on-gap earliest to go on without them", index, name, first.Offset, from)
			}
			all[p] = extent{max(from, first.Offset), last.Offset}
		}
	}
	return all, nil
}

// TopicID is the broker's id of a topic that is read.
func (k *Kafka) TopicID(topic string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ids[topic]
}

// Pause ends the fetching of a topic. What was fetched may still come.
func (k *Kafka) Pause(topic string) { k.client.PauseFetchTopics(topic) }

// Close ends the connection. A member of a group that has a name across restarts stays one for a while, so that it finds its partitions
// again; see Leave.
func (k *Kafka) Close() error {
	k.client.CloseAllowingRebalance()
	return nil
}

// Leave gives the partitions of a group's member to the others at once. It comes before Close, and after what was polled is settled.
func (k *Kafka) Leave(ctx context.Context) error {
	if k.o.Group == nil || k.o.Group.Instance == "" {
		return nil // Close does
	}
	_, err := k.admin.LeaveGroup(ctx, kadm.LeaveGroup(k.o.Group.Name).InstanceIDs(k.o.Group.Instance))
	if err != nil {
		return fmt.Errorf("leave consumer group %s: %w", k.o.Group.Name, err)
	}
	return nil
}

// Poll waits for records and gives them, until the context is done.
func (k *Kafka) Poll(ctx context.Context) (Poll, error) {
	var poll Poll
	if k.o.Group != nil {
		k.client.AllowRebalance()
	}
	if k.until != nil && k.atEnd() {
		poll.Done = true
		k.mu.Lock()
		defer k.mu.Unlock()
		poll.Ends = slices.Collect(maps.Keys(k.next))
		return poll, nil
	}
	wait, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	fetches := k.client.PollRecords(wait, pollRecords*4)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed != nil {
		return Poll{}, k.failed
	}
	for _, e := range fetches.Errors() {
		if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled) || passing(e.Err) {
			continue
		}
		if errors.Is(e.Err, kerr.OffsetOutOfRange) {
			return Poll{}, fmt.Errorf("partition %d of %s no longer holds offset %d, which is to be read next: the broker has removed records that "+
				"loam has not read; run with --on-gap earliest to go on without them: %w",
				e.Partition, e.Topic, k.next[feature.Partition{Topic: e.Topic, Index: e.Partition}], e.Err)
		}
		if e.Topic == "" {
			return Poll{}, fmt.Errorf("share %v in consumer group %s: %w", k.o.Topics, k.o.Group.Name, e.Err)
		}
		return Poll{}, fmt.Errorf("read partition %d of %s: %w", e.Partition, e.Topic, e.Err)
	}
	k.buffer = k.buffer[:0]
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		p := feature.Partition{Topic: f.Topic, Index: f.Partition}
		if _, ours := k.next[p]; !ours {
			return
		}
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
	poll.Given, k.given = k.given, nil
	return poll, nil
}

// passing reports whether a group's session ended for a reason that passes, such as a coordinator that moves: the client joins again.
func passing(err error) bool {
	var session *kgo.ErrGroupSession
	if !errors.As(err, &session) {
		return false
	}
	for _, lasting := range []error{
		kerr.FencedInstanceID, kerr.UnreleasedInstanceID, kerr.GroupAuthorizationFailed, kerr.TopicAuthorizationFailed, kerr.InvalidGroupID,
		kerr.InconsistentGroupProtocol, kerr.GroupMaxSizeReached, kerr.InvalidSessionTimeout, kerr.UnsupportedVersion,
	} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	return true
}

// atEnd reports whether every partition has come to where it ended, here or where another member reads it.
func (k *Kafka) atEnd() bool {
	var elsewhere []feature.Partition
	k.mu.Lock()
	for p, end := range k.until {
		next, ours := k.next[p]
		if ours && next < end {
			k.mu.Unlock()
			return false
		} else if !ours {
			elsewhere = append(elsewhere, p)
		}
	}
	k.mu.Unlock()
	for _, p := range elsewhere {
		if k.o.Starts(p) < k.until[p] {
			return false
		}
	}
	return true
}
