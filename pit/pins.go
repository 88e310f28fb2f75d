package pit

import (
	"context"

	"github.com/loamdata/loam/lake"
)

// pin tags the snapshots that are read, so that they outlive expiry and the training set can be made again.
func (b *build) pin(ctx context.Context) error {
	if b.again != nil { // they have their tag, or do without
		return nil
	}
	return b.eachTable(func(t *lake.Table) error { return t.Tag(ctx, b.card.Tag, t.SnapshotID()) })
}

func (b *build) unpin(ctx context.Context) error {
	if b.again != nil {
		return nil
	}
	return b.eachTable(func(t *lake.Table) error { return t.Untag(ctx, b.card.Tag) })
}

// eachTable calls do with every table that is read and has a snapshot, once.
func (b *build) eachTable(do func(*lake.Table) error) error {
	for _, t := range b.tables() {
		if err := do(t); err != nil {
			return err
		}
	}
	return nil
}
