package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/ingest/schema"
)

// What a worker does while its registry is away: it asks again after a wait that doubles, for as long as it runs, or where it
// is to end with what is there for registryPatience.
const (
	registryWaitMin  = 100 * time.Millisecond
	registryWaitMax  = 10 * time.Second
	registryPatience = time.Minute
	// decodedBytesMax bounds the JSON that is held at once, beside that of one event.
	decodedBytesMax = 64 << 20
)

// openDecoders makes the decoders of framed streams, by topic. The registry is asked nothing yet: it may be away.
func openDecoders(p *feature.Project, streams []*openStream, now func() time.Time) (map[string]*schema.Decoder, error) {
	registry, err := schema.Open(p.Registry, p.Dir)
	if err != nil {
		return nil, err
	}
	decoders := map[string]*schema.Decoder{}
	for _, o := range streams {
		decoders[o.def.Topic] = schema.NewDecoder(o.def, registry, now)
	}
	return decoders, nil
}

// going are the records of topics that haven't stopped, in the same memory.
func (s *source) going(records []ingest.Record) []ingest.Record {
	if len(s.stopped) == 0 {
		return records
	}
	return slices.DeleteFunc(records, func(r ingest.Record) bool { return s.stopped[r.Topic] != nil })
}

// goingEnds are the ends of topics that haven't stopped: of one that has more is there.
func (s *source) goingEnds(ends []ingest.End) []ingest.End {
	return slices.DeleteFunc(ends, func(e ingest.End) bool { return s.stopped[e.Partition.Topic] != nil })
}

// decode makes JSON of records that name a schema, the first n of them: all, unless they become too much to hold at once, or one is of
// a schema that doesn't fit its stream. That one stops, and the others go on. A source of topics that hold JSON has nothing to decode.
func (w *worker) decode(ctx context.Context, s *source, records []ingest.Record) (n int, err error) {
	if s.decoders == nil {
		return len(records), nil
	}
	held := 0
	for i := range records {
		r := &records[i]
		if held > decodedBytesMax {
			return i, nil
		}
		if r.Value == nil || r.Cut {
			continue
		}
		var refused *schema.Refusal
		if r.JSON, refused, err = w.decodeOne(ctx, s.decoders[r.Topic], r); err != nil {
			err = fmt.Errorf("read offset %d of partition %d of %s: %w", r.Offset, r.Partition, r.Topic, err)
			if !errors.As(err, new(*schema.Incompatible)) {
				return 0, err
			}
			if s.stopped == nil {
				s.stopped = map[string]error{}
			}
			s.stopped[r.Topic] = err
			if k, ok := s.Source.(*ingest.Kafka); ok {
				k.Pause(r.Topic)
			}
			w.say("topic %s has stopped, and what else there is goes on; once this is mended and applied it does, too: %v", r.Topic, err)
			return i, nil
		}
		if refused != nil {
			r.Malformed, r.Reason = refused.Detail, refused.Reason
		}
		held += len(r.JSON)
	}
	return len(records), nil
}

// decodeOne decodes one record, and waits for a registry that is away.
func (w *worker) decodeOne(ctx context.Context, d *schema.Decoder, r *ingest.Record) ([]byte, *schema.Refusal, error) {
	var begun, told time.Time
	for wait := registryWaitMin; ; wait = min(2*wait, registryWaitMax) {
		event, refused, err := d.Decode(ctx, r.Value)
		if !errors.Is(err, schema.ErrAway) || ctx.Err() != nil {
			if err == nil && !begun.IsZero() {
				w.say("the registry answers again")
			}
			return event, refused, err
		}
		now := w.now()
		if begun.IsZero() {
			begun = now
		}
		if w.options.untilEnd && now.Sub(begun) > registryPatience {
			return nil, nil, fmt.Errorf("%w; start it or mend registry.url in %s: nothing is lost, the next `loam run` goes on here", err, feature.ProjectFile)
		}
		if now.Sub(told) > tellEvery {
			told = now
			w.say("waiting for the registry: %v", err)
		}
		pause(ctx, wait)
	}
}
