package pit

import (
	"context"
	"fmt"
	"maps"
	"slices"

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

// unpinReplaced lets go of the snapshots of the training set whose card was replaced, unless a card elsewhere goes by the same
// tag, as those of training sets that were made again do.
func (b *build) unpinReplaced(ctx context.Context) error {
	if b.replaced == nil {
		return nil
	}
	err := b.unpinCard(ctx, b.replaced)
	if err != nil {
		return fmt.Errorf("%s is written; the snapshots of the one that it replaces are still pinned, `loam dataset unpin %s` lets them go: %w",
			b.card.Out, b.replaced.Tag, err)
	}
	return nil
}

func (b *build) unpinCard(ctx context.Context, c *Card) error {
	kept, err := b.lake.Cards(ctx, b.db)
	if err != nil {
		return err
	}
	for _, k := range kept {
		other, err := ParseCard("of "+k.Out, []byte(k.Card))
		if err != nil {
			return err
		}
		if other.Tag == c.Tag && other.stands() {
			return nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Snapshots)) {
		if _, err := b.lake.Unpin(ctx, name, c.Tag); err != nil {
			return err
		}
	}
	return nil
}

// stands reports whether the card is where it was put, in its file or in the lake alone, and not replaced.
func (c *Card) stands() bool {
	path := cardFile(&c.Asked)
	if path == "" {
		return true
	}
	there, err := ReadCard(path)
	return err == nil && there.Tag == c.Tag
}
