package online

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/loamdata/loam/feature"
)

// Every hash of a generation comes, and no other's.
func TestEachHash(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		p := loadProject(t)
		ctx := context.Background()
		l := openLake(t, p)
		const entities = pipelineCalls + 7
		var events []string
		for i := range entities {
			events = append(events, event(i, "a", int64(i), i, "updated", fmt.Sprintf(`,"n":%d`, i)))
		}
		events[3] = event(3, "a", 3, 3, "deleted", "")
		b := batchOf(t, p.Stream("thing"), 0, events)
		defer b.Release()
		commitTo(t, l, b)
		built(t, s, writer(t, s, p, "calc"), l)
		g := built(t, s, writer(t, s, p, "all"), l)
		seen := map[string]map[string]string{}
		if err := s.EachHash(ctx, "all", g.Number, func(h Hash) error {
			seen[h.Key] = h.Fields
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		key := func(i int) string {
			return fmt.Sprintf("%s:all:%d:{thing|a|%d}", s.project, g.Number, i)
		}
		if len(seen) != entities || seen[key(7)][FeatureField(0)] != "7" || seen[key(3)][FieldDeleted] != "1" || len(seen[key(7)][FieldOrder]) != feature.OrderDigits {
			t.Errorf("%d hashes, %v, %v", len(seen), seen[key(7)], seen[key(3)])
		}
		found := map[string]bool{}
		if err := s.Hashes(ctx, []string{key(5), key(entities), key(6)}, func(h Hash) error {
			found[h.Key] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []string{key(5), key(6)}) {
			t.Errorf("found %v", got)
		}
	})
}
