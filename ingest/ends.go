package ingest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// Ends are where the partitions of a topic begin and end now.
type Ends struct {
	TopicID    string           // the broker's id of the topic; "" of a folder
	Partitions map[int32]Extent // by number
	Err        error            // why nothing is known of the topic; the others are then unset
}

// Extent is what a partition holds: the offsets in [First, End).
type Extent struct{ First, End int64 }

// KafkaEnds asks the brokers for the ends of topics, as far as transactions have ended, by topic. It waits so long for them, at least
// 100 ms, and little longer. What is wrong with one topic alone stands with it.
func KafkaEnds(ctx context.Context, o KafkaOptions, wait time.Duration) (map[string]Ends, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// A broker that takes the connection and says nothing is waited for by these, whatever the context says.
	client, err := kgo.NewClient(append(o.connection(), kgo.DialTimeout(wait), kgo.RequestTimeoutOverhead(wait), kgo.RetryTimeout(wait))...)
	if err != nil {
		return nil, fmt.Errorf("connect to the brokers %v: %w", o.Seeds, err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topics, err := admin.ListTopics(ctx, o.Topics...)
	if err != nil {
		return nil, o.unreachable(err)
	}
	oldest, err := admin.ListStartOffsets(ctx, o.Topics...)
	if err != nil {
		return nil, fmt.Errorf("list the oldest offsets of %v: %w", o.Topics, err)
	}
	newest, err := admin.ListCommittedOffsets(ctx, o.Topics...)
	if err != nil {
		return nil, fmt.Errorf("list the newest offsets of %v: %w", o.Topics, err)
	}
	all := make(map[string]Ends, len(o.Topics))
	for _, name := range o.Topics {
		topic := topics[name]
		e := Ends{TopicID: hex.EncodeToString(topic.ID[:]), Partitions: map[int32]Extent{}}
		if errors.Is(topic.Err, kerr.UnknownTopicOrPartition) || (topic.Err == nil && len(topic.Partitions) == 0) {
			e.Err = fmt.Errorf("the broker has no topic %s", name)
		} else if topic.Err != nil {
			e.Err = fmt.Errorf("look topic %s up: %w", name, topic.Err)
		}
		for index := range topic.Partitions {
			first, _ := oldest.Lookup(name, index)
			last, _ := newest.Lookup(name, index)
			if err := errors.Join(first.Err, last.Err); err != nil && e.Err == nil {
				e.Err = fmt.Errorf("list the offsets of partition %d of %s: %w", index, name, err)
			}
			e.Partitions[index] = Extent{first.Offset, last.Offset}
		}
		all[name] = e
	}
	return all, nil
}

// FolderEnds counts the lines of a topic that is the folder dir, but for a last one without its end. Its error is fs.ErrNotExist
// where the topic has no folder.
func FolderEnds(ctx context.Context, topic, dir string) Ends {
	e := Ends{Partitions: map[int32]Extent{}}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		e.Err = fmt.Errorf("topic %s has no folder: %w", topic, err)
	} else if err != nil {
		e.Err = fmt.Errorf("list the partitions of topic %s: %w", topic, err)
	}
	for _, entry := range entries {
		index, ok := partitionOf(entry.Name())
		if !ok {
			continue
		}
		n, err := countLines(ctx, filepath.Join(dir, entry.Name()))
		if err != nil {
			e.Err = fmt.Errorf("count the lines of partition %d of topic %s: %w", index, topic, err)
			break
		}
		e.Partitions[index] = Extent{End: n}
	}
	return e
}

// partitionOf is the partition that a file of a topic's folder is, by its name.
func partitionOf(name string) (int32, bool) {
	number, ok := strings.CutSuffix(name, ".jsonl")
	index, err := strconv.ParseInt(number, 10, 32)
	return int32(index), ok && err == nil && index >= 0 && index <= feature.PartitionMax
}

func countLines(ctx context.Context, path string) (int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	buffer := make([]byte, 1<<20)
	for n := int64(0); ; {
		read, err := contextReader{ctx, in}.Read(buffer)
		n += int64(bytes.Count(buffer[:read], []byte("\n")))
		if errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return 0, err
		}
	}
}
