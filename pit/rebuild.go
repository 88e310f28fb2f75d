package pit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// ErrLabelsChanged: the labels are not those that the training set was made from.
var ErrLabelsChanged = errors.New("the labels have changed")

// Rebuilt says whether a training set that was made again is the one that it was made from.
type Rebuilt struct {
	Card *Card `json:"card"` // of the training set that was made
	// Differences are texts, none where the two are the same.
	Differences []string `json:"differences"`
}

// Rebuild makes a training set again, as Parquet at out with a card beside it: by the definitions, the snapshots and the
// request that its card holds, whatever the project's files and tables are today. Labels are read from where they were, or
// from labels where that isn't "". What can't be had any more, labels or snapshots, is [ErrLabelsChanged] or
// [lake.ErrGone]; rows that are not those of the card are no error, and said.
func Rebuild(ctx context.Context, l *lake.Lake, today *feature.Project, card *Card, labels, out string, check feature.CheckExpr, o Options) (*Rebuilt, error) {
	if card.RowsHash == "" || len(card.Tables) == 0 {
		return nil, fmt.Errorf("the card of %s is of a loam that kept less in it: build the training set anew", card.Out)
	}
	if card.Project != today.Name {
		return nil, fmt.Errorf("the card is of project %s, and this is %s: name the folder with -C", card.Project, today.Name)
	}
	p, err := feature.Recall(today, card.Definitions, check)
	if err != nil {
		return nil, err
	}
	request := card.Asked
	request.Out, request.Card, request.PartitionBy, request.RequireComplete = out, "", nil, false // what it requires was so when it was built
	if labels != "" {
		if request.Labels == "" {
			return nil, fmt.Errorf("rebuild %s: its labels came from %s, which is read again as it was: leave --labels out", card.Out, card.Labels)
		}
		request.Labels = labels
	}
	made, err := produce(ctx, l, p, request, o, card)
	if err != nil {
		return nil, fmt.Errorf("rebuild %s: %w", card.Out, err)
	}
	return &Rebuilt{Card: made, Differences: card.differences(made)}, nil
}

// differences tells in what the rows of a training set that was made again are others.
func (c *Card) differences(made *Card) []string {
	all := []string{}
	if made.Rows != c.Rows {
		all = append(all, fmt.Sprintf("%d rows, and the card says %d", made.Rows, c.Rows))
	}
	if made.RowsHash != c.RowsHash {
		all = append(all, fmt.Sprintf("the rows' hash is %s, and the card says %s", made.RowsHash, c.RowsHash))
	}
	if !slices.Equal(made.Unhashed, c.Unhashed) {
		all = append(all, fmt.Sprintf("the hash leaves out %v, and the card's %v", made.Unhashed, c.Unhashed))
	}
	for i, f := range made.Features {
		if i < len(c.Features) && f.NullRate != c.Features[i].NullRate {
			all = append(all, fmt.Sprintf("%s is null in %g of the rows, and the card says %g", f.Column, f.NullRate, c.Features[i].NullRate))
		}
	}
	if c.DuckDB != made.DuckDB && len(all) > 0 {
		all = append(all, fmt.Sprintf("it was built by DuckDB %s, and this is %s", c.DuckDB, made.DuckDB))
	}
	return all
}

// rebuilds takes over from the card what a training set that is made again has in common with it.
func (b *build) rebuilds() {
	if b.again == nil {
		return
	}
	b.card.Tag, b.card.RebuiltFrom = b.again.Tag, b.again.Out
	b.card.Request.RequireComplete, b.card.Asked.RequireComplete = b.again.Request.RequireComplete, b.again.Asked.RequireComplete
}

// read opens a stream's tables: as they are now, or as they were read before.
func (b *build) read(ctx context.Context, s *feature.Stream) (*lake.Reading, error) {
	if b.again != nil {
		return b.lake.ReadAt(ctx, s, b.again.Tables)
	}
	return b.lake.Read(ctx, s)
}

// sameLabels holds the labels against those that a training set that is made again was made from.
func (b *build) sameLabels() error {
	if b.again == nil || b.labels.sha256 == b.again.Labels.SHA256 {
		return nil
	}
	return fmt.Errorf("%w: %s has the sha256 %.12s, and the card says %.12s: bring the file back, or name it with --labels",
		ErrLabelsChanged, b.request.Labels, b.labels.sha256, b.again.Labels.SHA256)
}

// sameWatermarks takes over up to when the streams were complete.
func (b *build) sameWatermarks() {
	b.card.Watermarks, b.card.Watermark = maps.Clone(b.again.Watermarks), b.again.Watermark
	b.card.Labels.AfterWatermark = b.again.Labels.AfterWatermark
	b.card.Warnings = slices.Clone(b.again.Warnings)
}
