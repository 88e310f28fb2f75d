package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
)

// endsWait is how long status waits for what tells where topics end.
const endsWait = 3 * time.Second

// endsOf tells where the topics of the streams end, by topic. What can't be told is an error that stands with them.
func endsOf(ctx context.Context, p *feature.Project, streams []*feature.Stream) map[string]ingest.Ends {
	var topics []string
	for _, s := range streams {
		if !s.Full() && !slices.Contains(topics, s.Topic) {
			topics = append(topics, s.Topic)
		}
	}
	all := map[string]ingest.Ends{}
	if len(p.Broker.Seeds) == 0 {
		ctx, cancel := context.WithTimeout(ctx, endsWait)
		defer cancel()
		for _, topic := range topics {
			all[topic] = ingest.FolderEnds(ctx, topic, topicDir(p, topic))
		}
		return all
	}
	if len(topics) == 0 {
		return all
	}
	access, err := ingest.AccessOf(p.Broker, p.Dir)
	if err == nil {
		all, err = ingest.KafkaEnds(ctx, ingest.KafkaOptions{Seeds: p.Broker.Seeds, Access: access, Topics: topics}, endsWait)
	}
	if err != nil {
		all = map[string]ingest.Ends{}
		for _, topic := range topics {
			all[topic] = ingest.Ends{Err: err}
		}
	}
	return all
}

// hold tells the stream's lag by where its topic ends.
func (s *streamStatus) hold(def *feature.Stream, ends ingest.Ends) {
	unknown := func(format string, args ...any) {
		s.Lag, s.LagUnknown = nil, fmt.Sprintf(format, args...)
		for i := range s.Partitions {
			s.Partitions[i].End, s.Partitions[i].Lag, s.Partitions[i].Gone = nil, nil, 0
		}
	}
	switch {
	case errors.Is(ends.Err, fs.ErrNotExist) && len(s.Partitions) == 0:
		return // without a folder there is no topic: files alone feed the stream
	case ends.Err != nil:
		unknown("%v", ends.Err)
		return
	}
	var sum int64
	for _, index := range slices.Sorted(maps.Keys(ends.Partitions)) {
		extent := ends.Partitions[index]
		i := slices.IndexFunc(s.Partitions, func(p partitionStatus) bool { return p.Topic == def.Topic && p.Partition == index })
		if i < 0 {
			i = len(s.Partitions)
			s.Partitions = append(s.Partitions, partitionStatus{Topic: def.Topic, Partition: index, topicID: ends.TopicID})
		}
		p := &s.Partitions[i]
		switch {
		case p.topicID != ends.TopicID:
			unknown("topic %s was made anew since it was read", def.Topic)
			return
		case p.Next > extent.End:
			unknown("partition %d of %s ends at offset %d, and %d has been read: the topic lost records or was made anew", index, def.Topic, extent.End, p.Next)
			return
		}
		lag := extent.End - max(p.Next, extent.First)
		p.End, p.Lag = &extent.End, &lag
		if p.Next > 0 {
			p.Gone = max(extent.First-p.Next, 0)
		}
		sum += lag
	}
	s.Lag = &sum
	slices.SortFunc(s.Partitions, func(a, b partitionStatus) int {
		return feature.Partition{Topic: a.Topic, Index: a.Partition}.Compare(feature.Partition{Topic: b.Topic, Index: b.Partition})
	})
}
