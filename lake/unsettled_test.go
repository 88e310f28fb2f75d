package lake

import (
	"context"
	"errors"
	"testing"

	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

// lostCatalog takes a commit and loses the answer, and then can't be asked for a while.
type lostCatalog struct {
	catalog.Catalog
	lose int // commits until the one whose answer is lost
	down int // how many loads fail after it
}

var errLost = errors.New("connection reset")

func (c *lostCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	if c.lose == 0 && c.down > 0 {
		c.down--
		return nil, errLost
	}
	t, err := c.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, c), nil
}

func (c *lostCatalog) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	metadata, location, err := c.Catalog.CommitTable(ctx, ident, reqs, updates)
	if c.lose > 0 {
		if c.lose--; c.lose == 0 {
			return nil, "", errLost
		}
	}
	return metadata, location, err
}

// A commit whose outcome stays unknown keeps its files: the table may name them, and then reads on.
func TestUnknownOutcomeKeepsFiles(t *testing.T) {
	for name, c := range map[string]lostCatalog{
		"log": {lose: 1, down: 1}, "history": {lose: 2, down: 1}, "log, found again": {lose: 1}, "history, found again": {lose: 2},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			l := openLake(t)
			def := testStream()
			s := openStream(t, l, def)
			rows := []row{{id: "a", v: "A", at: 10, topic: "t"}, {id: "a", v: "B", at: 20, topic: "t", offset: 1}, {id: "a", v: "C", at: 30, topic: "t", offset: 2}}
			from := map[string]int64{}
			commit(t, s, rows[:1], from)

			c.Catalog = l.catalog
			l.catalog = &c
			b := batchOf(def, rows[1:2], from)
			defer b.Release()
			_, err := s.Commit(ctx, b, s.Head())
			if found := name == "log, found again" || name == "history, found again"; found != (err == nil) {
				t.Fatalf("error %v", err)
			}
			l.catalog = c.Catalog

			s = openStream(t, l, def) // catches the history up
			commit(t, s, rows[2:], from)
			compare(t, read(t, l, def), want(rows))
		})
	}
}
