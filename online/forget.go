package online

import (
	"context"
	"fmt"

	"github.com/loamdata/loam/feature"
)

// Forget removes all generations of a view, those that are building, too, so that the view is built anew from what the lake
// holds. Until then its reads say that it isn't there. A build that is at work fails, and is begun again.
func (s *Store) Forget(ctx context.Context, view string) error {
	if err := s.redis.HDel(ctx, generationsKey(s.project, view), "current").Err(); err != nil {
		return fmt.Errorf("forget the generations of %s: %w", view, err)
	}
	all, err := s.Generations(ctx, view)
	if err != nil {
		return err
	}
	for _, g := range all.All {
		if g.Layout == feature.FeastLayout {
			if err := s.clearFeastView(ctx, view, g.Features); err != nil {
				return err
			}
		}
		if err := s.remove(ctx, view, g); err != nil {
			return err
		}
	}
	return nil
}
