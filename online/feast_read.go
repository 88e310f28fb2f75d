package online

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// feastHashes is the layout of a view in Feast's: features and event time as Feast has them, and loam's guard.
type feastHashes struct {
	*viewRead
	feast *feastView
}

func (f *feastHashes) ask(ctx context.Context, p redis.Pipeliner, key string) redis.Cmder {
	fields := []string{f.feast.guard, f.feast.time}
	for _, name := range f.features {
		fields = append(fields, f.feast.features[name])
	}
	return p.HMGet(ctx, key, fields...)
}

func (f *feastHashes) decode(answer redis.Cmder, now int64, places []int, row []Feature) error {
	raw := answer.(*redis.SliceCmd).Val()
	_, guarded := raw[0].(string)
	at, live := raw[1].(string)
	if !guarded || !live {
		return nil // not loam's, or a tombstone
	}
	eventTime, err := feastTime(at)
	if err != nil {
		return fmt.Errorf("its field %s: %w", f.feast.time, err)
	}
	for i, place := range places {
		var value any
		if encoded, present := raw[i+2].(string); present && encoded != "" {
			text, err := feastText(row[place].Value.Type, encoded)
			if err != nil {
				return fmt.Errorf("feature %s: %w", f.features[i], err)
			}
			value = text
		}
		f.put(&row[place], value, eventTime, now)
	}
	return nil
}
