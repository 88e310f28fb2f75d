package online

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// feastHashes is the layout of a view in Feast's: features and event time as Feast has them, and loam's guard.
type feastHashes struct {
	*viewRead
	feast   *feastView
	command []any
}

func newFeastHashes(v *viewRead, feast *feastView) *feastHashes {
	fields := []string{feast.guard, feast.time}
	for _, name := range v.features {
		fields = append(fields, feast.features[name])
	}
	return &feastHashes{v, feast, hmgetOf(fields...)}
}

func (f *feastHashes) key(_ string, keys []string) string { return f.feast.key(keys) }

func (f *feastHashes) ask(ctx context.Context, p redis.Pipeliner, key string, _ int64, _ bool) redis.Cmder {
	return hmget(ctx, p, f.command, key)
}

func (f *feastHashes) decode(answer redis.Cmder, now int64, row []Feature, seen *Seen) (Trace, error) {
	raw := answer.(*redis.SliceCmd).Val()
	guard, guarded := raw[0].(string)
	at, live := raw[1].(string)
	if seen != nil && guarded {
		seen.Order = guard
		if order, _, err := ParseFeastGuard(guard); err == nil {
			seen.Order = order.String()
		}
	}
	if !guarded || !live {
		return Trace(guarded), nil // not loam's, or a tombstone
	}
	eventTime, err := feastTime(at)
	if err != nil {
		return Something, fmt.Errorf("its field %s: %w", f.feast.time, err)
	}
	for i, place := range f.places {
		var value any
		if encoded, present := raw[i+2].(string); present && encoded != "" {
			text, err := feastText(row[place].Value.Type, encoded)
			if err != nil {
				return Something, fmt.Errorf("feature %s: %w", f.features[i], err)
			}
			value = text
		}
		f.put(&row[place], value, eventTime, now)
	}
	return Something, nil
}
