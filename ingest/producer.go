package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ProduceTimeout bounds how long events wait for their brokers.
const ProduceTimeout = 10 * time.Second

// ErrTooLarge: an event is larger than its topic takes.
var ErrTooLarge = errors.New("an event is larger than the topic takes")

// KafkaProducer produces events to topics of a broker. It is safe for concurrent use.
type KafkaProducer struct {
	client *kgo.Client
	o      KafkaOptions
}

// OpenKafkaProducer makes a producer, which connects once there is something to produce. Of the options it reads how the brokers are reached.
func OpenKafkaProducer(o KafkaOptions) (*KafkaProducer, error) {
	client, err := kgo.NewClient(append(o.connection(),
		// That a topic isn't there is told well before the time to produce is over: by default 5 s lie between two looks at it.
		kgo.UnknownTopicRetries(2), kgo.MetadataMinAge(250*time.Millisecond),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordDeliveryTimeout(ProduceTimeout), kgo.ProducerLinger(0),
		// What was sent and not answered would else be waited for without a bound. Whoever pushes it again names it by an idempotency key.
		kgo.AllowIdempotentProduceCancellation(),
		// A key's partition is the one that Kafka's own clients give it.
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("set up a producer for %v: %w", o.Seeds, err)
	}
	return &KafkaProducer{client, o}, nil
}

// Produce gives events to a topic, and returns once all in-sync replicas have them, within [ProduceTimeout]. It gives how many are
// acknowledged; with an error, others may have been produced, or may still be.
func (k *KafkaProducer) Produce(ctx context.Context, topic string, events []Event) (acknowledged int, err error) {
	ctx, cancel := context.WithTimeout(ctx, ProduceTimeout)
	defer cancel()
	settled := make(chan error, len(events))
	for _, e := range events {
		k.client.TryProduce(ctx, &kgo.Record{Topic: topic, Key: e.Key, Value: e.Value}, func(_ *kgo.Record, err error) { settled <- err })
	}
	for range events {
		failed := context.DeadlineExceeded // the client itself may wait far longer for what was sent and not answered
		select {
		case failed = <-settled:
		case <-ctx.Done():
		}
		if failed == nil {
			acknowledged++
		} else if err == nil {
			err = k.explain(topic, failed)
		}
	}
	return acknowledged, err
}

// explain says what to do where a topic did not take an event.
func (k *KafkaProducer) explain(topic string, err error) error {
	switch {
	case errors.Is(err, kerr.MessageTooLarge):
		return fmt.Errorf("produce to %s: %w: raise its max.message.bytes to 1048588: %w", topic, ErrTooLarge, err)
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return fmt.Errorf("the broker has no topic %s: make it, or name another with `topic:` in the stream's file: %w", topic, err)
	case errors.Is(err, kgo.ErrMaxBuffered):
		return fmt.Errorf("produce to %s: too many events are on their way already: %w", topic, err)
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("produce to %s: no broker of %v took the events within %s: %w", topic, k.o.Seeds, ProduceTimeout, err)
	}
	return k.o.unreachable(fmt.Errorf("produce to %s: %w", topic, err))
}

// Close ends the connection.
func (k *KafkaProducer) Close() error {
	k.client.Close()
	return nil
}

// FolderProducer appends events to topics that are folders, as [OpenFolder] reads them. It is safe for concurrent use.
type FolderProducer struct {
	dir func(topic string) string
	mu  sync.Mutex
}

// NewFolderProducer makes a producer; dir gives the folder of a topic.
func NewFolderProducer(dir func(topic string) string) *FolderProducer {
	return &FolderProducer{dir: dir}
}

// Produce appends events to a topic's partitions, by their keys as Kafka's own clients do, and returns once the disk has them. It gives how
// many it has; with an error, others may stand there, too. A topic without a folder gets one, of one partition.
func (f *FolderProducer) Produce(ctx context.Context, topic string, events []Event) (acknowledged int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir := f.dir(topic)
	partitions, err := folderPartitions(dir)
	if err != nil {
		return 0, fmt.Errorf("produce to topic %s: %w", topic, err)
	}
	of := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
	lines := map[int32][]byte{}
	counts := map[int32]int{}
	for _, e := range events {
		p := partitions[of.Partition(&kgo.Record{Topic: topic, Key: e.Key}, len(partitions))]
		lines[p] = append(append(lines[p], e.Value...), '\n')
		counts[p]++
	}
	for _, p := range partitions {
		if counts[p] == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return acknowledged, err
		}
		if err := appendLines(filepath.Join(dir, fmt.Sprintf("%d.jsonl", p)), lines[p]); err != nil {
			return acknowledged, fmt.Errorf("produce to partition %d of topic %s: %w", p, topic, err)
		}
		acknowledged += counts[p]
	}
	return acknowledged, nil
}

// Close is there for the sake of [KafkaProducer.Close]: nothing is kept open.
func (f *FolderProducer) Close() error { return nil }

// folderPartitions are the partitions of a topic's folder, sorted. One that has none is to have the first.
func folderPartitions(dir string) ([]int32, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = syncFolder(filepath.Dir(dir))
		}
	}
	if err != nil {
		return nil, err
	}
	var partitions []int32
	for _, e := range entries {
		if index, ok := partitionOf(e.Name()); ok {
			partitions = append(partitions, index)
		}
	}
	if len(partitions) == 0 {
		partitions = []int32{0}
	}
	slices.Sort(partitions)
	return partitions, nil
}

// appendLines appends whole lines to a file by one write, and waits for the disk. Where a write before it was cut short, its line is ended
// first: that was never acknowledged, and becomes a dead letter or, where it lacked only its end, an event.
func appendLines(path string, lines []byte) (err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size == 0 {
		if err := syncFolder(filepath.Dir(path)); err != nil {
			return err
		}
	} else {
		var last [1]byte
		if _, err := file.ReadAt(last[:], size-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			lines = append([]byte{'\n'}, lines...)
		}
	}
	if _, err := file.Write(lines); err != nil {
		return err
	}
	return file.Sync()
}

// syncFolder has the disk know what stands in a folder.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
