package main

import (
	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// lakeOffsets are where a stream's log stands.
type lakeOffsets struct{ lake.Offsets }

func (o lakeOffsets) of(p feature.Partition) lake.Offset {
	at, _ := o.Of(p)
	return at
}

// topicID is the id that a topic had when it was read, "" where it wasn't.
func (o lakeOffsets) topicID(topic string) string {
	for p, at := range o.Partitions {
		if p.Topic == topic && at.TopicID != "" {
			return at.TopicID
		}
	}
	return ""
}
