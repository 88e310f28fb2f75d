package online

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Names of the fields of an entity's hash that are no features. They are frozen.
const (
	FieldOrder   = fieldOrder
	FieldDeleted = fieldDeleted
	FieldGuard   = fieldGuard // begins the name, and a column's ends it
)

// FeatureField is the field of a feature, by its number in the view. It is frozen.
func FeatureField(feature int) string { return featureField(feature) }

// Hash is what Redis holds of one entity in a generation.
type Hash struct {
	Key    string // the whole key
	Fields map[string]string
}

// EachHash hands over every hash of a generation as it is, for those who check what was written. It is no snapshot: a
// hash that is written meanwhile is given as it is before or after, one that expires may be left out, and one may come
// more than once. Every hash that is there from the beginning to the end comes.
func (s *Store) EachHash(ctx context.Context, view string, generation int64, yield func(Hash) error) error {
	return s.eachKeys(ctx, view, generation, func(keys []string) error { return s.Hashes(ctx, keys, yield) })
}

// Hashes hands over the hashes with these keys, without those that are not there.
func (s *Store) Hashes(ctx context.Context, keys []string, yield func(Hash) error) error {
	for len(keys) > 0 {
		part := keys[:min(len(keys), pipelineCalls)]
		keys = keys[len(part):]
		commands := make([]*redis.MapStringStringCmd, len(part))
		_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, k := range part {
				commands[i] = p.HGetAll(ctx, k)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read %d hashes: %w", len(part), err)
		}
		for i, k := range part {
			if fields := commands[i].Val(); len(fields) > 0 {
				if err := yield(Hash{k, fields}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
