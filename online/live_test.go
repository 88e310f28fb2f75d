package online

import (
	"context"
	"testing"

	"github.com/loamdata/loam/feature"
)

// A batch that was dropped while a generation was building is caught up once that is read.
func TestGapWhileBuilding(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		p := loadProject(t)
		l := openLake(t, p)
		stream := p.Stream("thing")
		w := writer(t, s, p, "calc")
		live, err := NewLive(ctx, s, l, p)
		if err != nil {
			t.Fatal(err)
		}
		defer live.Close()

		g, err := w.begin(ctx, Generation{}, base) // from a lake that is empty
		if err != nil {
			t.Fatal(err)
		}
		if err := live.Join(ctx, "worker", map[string]map[feature.Partition]int64{"thing": {{Topic: stream.Topic}: 0}}); err != nil {
			t.Fatal(err)
		}
		for i, key := range []string{"a", "b", "c"} {
			b := batchOf(t, stream, int64(i), []string{event(i, key, 1, i, "updated", `,"n":1`)})
			commitTo(t, l, b)
			switch key {
			case "a": // dropped: the online store could not take it
			case "b":
				_, err = live.Write(ctx, b, allKnown)
			case "c":
				if err = s.Switch(ctx, "calc", g); err == nil {
					_, err = live.Write(ctx, b, allKnown)
				}
			}
			b.Release()
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []string{"a", "b", "c"} {
			if got := show(t, s, p, base, key, "1", "calc:n"); got != "n=2" {
				t.Errorf("%s: %s", key, got)
			}
		}
	})
}
