package lake_test

import (
	"context"
	"fmt"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/verify"
)

func init() {
	lake.VerifyHistory = func(ctx context.Context, l *lake.Lake, s *feature.Stream) error {
		report, err := verify.History(ctx, l, s, verify.Options{})
		if err == nil && !report.OK() {
			f := report.First[0]
			err = fmt.Errorf("verify finds %d differences, the first: %s of %s: %s\n%s", report.Total, f.Kind, f.Key, f.Text, f.Drawing)
		}
		return err
	}
}
