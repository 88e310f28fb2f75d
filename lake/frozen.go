package lake

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// Freeze notes in a stream's log that a view is served as of an instant, and goes on to be where it has to be built again; nil notes that it
// isn't.
func (l *Lake) Freeze(ctx context.Context, s *feature.Stream, view string, at *time.Time) error {
	t, err := l.openTable(ctx, LogName(s.Name))
	if err != nil {
		return err
	}
	name := propertyAsOf + view
	was, frozen := t.tbl.Properties()[name]
	var update table.Update
	switch {
	case at == nil && !frozen, at != nil && was == at.Format(time.RFC3339Nano):
		return nil
	case at == nil:
		update = table.NewRemovePropertiesUpdate([]string{name})
	default:
		update = table.NewSetPropertiesUpdate(iceberg.Properties{name: at.Format(time.RFC3339Nano)})
	}
	if err := t.update(ctx, update); err != nil {
		return fmt.Errorf("note in %s as of when feature view %s is served: %w", t.Name(), view, err)
	}
	return nil
}

// Frozen gives the instants that views of the stream are served as of, by view; of others there is none.
func (r *Reading) Frozen() (map[string]time.Time, error) {
	frozen := map[string]time.Time{}
	for name, text := range r.Log.tbl.Properties() {
		if view, ok := strings.CutPrefix(name, propertyAsOf); ok {
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				return nil, fmt.Errorf("property %s of %s: %w", name, r.Log.Name(), err)
			}
			frozen[view] = at
		}
	}
	return frozen, nil
}
