package ingest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/loamdata/loam/feature"
)

// What is longer than a topic takes is cut, and says so; all else is as it came.
func TestLetterRecord(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		body   []byte
		reason feature.Reason
		length int
		cut    bool
	}{
		{nil, feature.MissingKey, 0, false},
		{[]byte("x"), feature.NotJSON, 1, false},
		{bytes.Repeat([]byte("x"), letterBytesMax), feature.NotJSON, letterBytesMax, false},
		{bytes.Repeat([]byte("x"), letterBytesMax+1), feature.NotJSON, CutBytes, true},
		{bytes.Repeat([]byte("x"), CutBytes), feature.TooLarge, CutBytes, true},
	} {
		r := letterRecord("dead", feature.DeadLetter{
			Position: feature.Position{Topic: "t", Partition: 3, Offset: 4}, Stream: "s", Reason: c.reason, Detail: "d", RecordKey: []byte("k"), Body: c.body,
			Headers: []feature.Header{{Key: "loam-topic", Value: nil}},
		})
		headers := ""
		for _, h := range r.Headers {
			headers += fmt.Sprintf("%s=%s;", h.Key, h.Value)
		}
		want := fmt.Sprintf("loam-topic=;loam-stream=s;loam-reason=%s;loam-detail=d;loam-topic=t;loam-partition=3;loam-offset=4;", c.reason)
		if c.cut {
			want += "loam-cut=true;"
		}
		if headers != want || len(r.Value) != c.length || (r.Value == nil) != (c.body == nil) || r.Topic != "dead" || string(r.Key) != "k" {
			t.Errorf("%d bytes: %s, %d bytes", len(c.body), headers, len(r.Value))
		}
	}
}
