package simulate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Bounds of what is on its way to the broker.
const (
	producedRecordsMax = 50_000
	producedBytesMax   = 64 << 20
	deliveryMax        = time.Minute // a record that takes longer has failed
	connectMax         = 10 * time.Second
)

// Kafka produces events to topics. Records carry the key; their partition is the one that Kafka's own clients give the
// key, and their timestamp the time of the call, as of any producer: a broker throws away records whose timestamps are
// older than its retention, and refuses those of the future.
type Kafka struct {
	client *kgo.Client
	topics Topics

	mutex sync.Mutex
	err   error // of the first record that failed
}

// DialKafka connects to the brokers, host:port each. Of the topics it makes those that are missing, with so many
// partitions each and the broker's defaults; one that exists stays as it is. access has the client's options for TLS and login.
func DialKafka(ctx context.Context, seeds []string, topics Topics, partitions int, access ...kgo.Opt) (*Kafka, error) {
	if partitions < 1 || partitions > partitionsMax {
		return nil, fmt.Errorf("%d is not a number of partitions; give 1 to %d", partitions, partitionsMax)
	}
	client, err := kgo.NewClient(append(access,
		kgo.SeedBrokers(seeds...),
		kgo.MaxBufferedRecords(producedRecordsMax),
		kgo.MaxBufferedBytes(producedBytesMax),
		kgo.RecordDeliveryTimeout(deliveryMax),
		kgo.ProducerLinger(10*time.Millisecond),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
		kgo.DialTimeout(connectMax/2), kgo.RetryTimeout(connectMax),
	)...)
	if err != nil {
		return nil, fmt.Errorf("set up a producer for %v: %w", seeds, err)
	}
	if err := makeTopics(ctx, client, topics, partitions); err != nil {
		client.Close()
		return nil, fmt.Errorf("make the topics at %v: %w", seeds, err)
	}
	return &Kafka{client: client, topics: topics}, nil
}

func makeTopics(ctx context.Context, client *kgo.Client, topics Topics, partitions int) error {
	const brokersDefault = -1
	made, err := kadm.NewClient(client).CreateTopics(ctx, int32(partitions), brokersDefault, nil, topics[:]...)
	if err != nil {
		return err
	}
	for _, topic := range made.Sorted() {
		if topic.Err != nil && !errors.Is(topic.Err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("topic %s: %w", topic.Topic, topic.Err)
		}
	}
	return nil
}

// Write sends one event on its way; it waits where too many are. It returns the error of an earlier one that failed.
func (k *Kafka) Write(ctx context.Context, e Event) error {
	if err := k.failure(); err != nil {
		return err
	}
	k.client.Produce(ctx, &kgo.Record{
		Topic: k.topics.of(e), Key: slices.Clone(e.Key), Value: slices.Clone(e.Value),
	}, k.produced)
	return nil
}

func (k *Kafka) produced(r *kgo.Record, err error) {
	if err == nil {
		return
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if k.err == nil {
		k.err = fmt.Errorf("produce to topic %s: %w", r.Topic, err)
	}
}

func (k *Kafka) failure() error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.err
}

// Close waits until every event has arrived or failed, or the context ends, and disconnects.
func (k *Kafka) Close(ctx context.Context) error {
	defer k.client.Close()
	if err := k.client.Flush(ctx); err != nil {
		return errors.Join(k.failure(), fmt.Errorf("wait for the broker to take the last events: %w", err))
	}
	return k.failure()
}
