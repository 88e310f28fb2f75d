package lake

import (
	"context"
	"fmt"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/sql"
)

// Maintainer keeps tables, those of a stream or that of what was served, fast to read and to write: it compacts files, merges
// manifests, expires snapshots and removes what nothing names. It changes no rows and may work beside any number of writers. It
// is not safe for concurrent use.
type Maintainer struct {
	lake *Lake
	kept []kept
	db   *sql.DB
	now  func() time.Time
}

// MaintainOptions bound what maintenance may use.
type MaintainOptions struct {
	MemoryBytes int64            // of DuckDB, which sorts; 0 leaves its default
	TempDir     string           // where it spills to
	Threads     int              // 0 means one a core
	Now         func() time.Time // nil means time.Now
}

// OpenMaintainer prepares maintenance of a stream's tables, which must exist.
func (l *Lake) OpenMaintainer(ctx context.Context, def *feature.Stream, o MaintainOptions) (*Maintainer, error) {
	return l.openMaintainer(ctx, keptOf(def), o)
}

func (l *Lake) openMaintainer(ctx context.Context, tables []kept, o MaintainOptions) (*Maintainer, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir, Threads: o.Threads})
	if err != nil {
		return nil, err
	}
	m := &Maintainer{lake: l, kept: tables, db: db, now: o.Now}
	if m.now == nil {
		m.now = time.Now
	}
	return m, nil
}

// Close frees what the maintainer holds.
func (m *Maintainer) Close() error { return m.db.Close() }

// roundRowsMax bounds the rows that a round of compaction writes, but for one job that is larger.
const roundRowsMax = 1 << 20

// Compact does a round of compaction of one table, the one where it does away with the most files, in one commit, and
// reports false where none is due. With all, any two small files are due.
func (m *Maintainer) Compact(ctx context.Context, all bool) (Compacted, bool, error) {
	compactors, err := m.compactors(ctx)
	if err != nil {
		return Compacted{}, false, err
	}
	var chosen *compactor
	var round []job
	most := 0
	for _, c := range compactors {
		jobs, err := c.jobs(ctx, all)
		if err != nil {
			return Compacted{}, false, err
		}
		files := 0
		var rows int64
		for i, j := range jobs {
			if rows += j.rows(); i > 0 && rows > roundRowsMax {
				jobs = jobs[:i]
				break
			}
			files += len(j.files)
		}
		if files > most {
			chosen, round, most = c, jobs, files
		}
	}
	if chosen == nil {
		return Compacted{}, false, nil
	}
	done, err := chosen.compact(ctx, round)
	return done, true, err
}

// Rewrite writes all files of the tables again, a partition at a time, as if they had been written just now and by one: what
// compaction is measured by, and what brings files of an older loam into today's shape.
func (m *Maintainer) Rewrite(ctx context.Context) error {
	compactors, err := m.compactors(ctx)
	if err != nil {
		return err
	}
	for _, c := range compactors {
		files, err := c.table.plan(ctx, ScanOptions{})
		if err != nil {
			return fmt.Errorf("list the files of %s: %w", c.table.Name(), err)
		}
		for _, j := range partitions(c.table.tbl.Spec(), files) {
			if _, err := c.compact(ctx, []job{*j}); err != nil {
				return err
			}
		}
	}
	return nil
}

// tables are those that are maintained.
func (m *Maintainer) tables(ctx context.Context) ([]*Table, error) {
	tables := make([]*Table, len(m.kept))
	for i, k := range m.kept {
		var err error
		if tables[i], err = m.lake.openTable(ctx, k.name); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

// Expire merges the manifests of the tables and expires snapshots older than the age, but for the newest ones and those
// that a dataset has pinned. It returns how many.
func (m *Maintainer) Expire(ctx context.Context, age time.Duration) (int, error) {
	tables, err := m.tables(ctx)
	if err != nil {
		return 0, err
	}
	expired := 0
	for _, t := range tables {
		before := len(t.tbl.Metadata().Snapshots())
		if err := t.mergeManifests(ctx); err != nil {
			return expired, err
		}
		if err := t.expire(ctx, age); err != nil {
			return expired, err
		}
		if n := before - len(t.tbl.Metadata().Snapshots()); n > 0 {
			expired += n
		}
	}
	return expired, nil
}

// mergeManifests makes few manifests of many small ones.
func (t *Table) mergeManifests(ctx context.Context) error {
	err := t.commit(ctx, func(ctx context.Context, _ *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		_, err := tx.RewriteManifests(ctx, table.WithManifestTargetSize(manifestsTarget))
		return err
	})
	if err != nil {
		return fmt.Errorf("merge manifests: %w", err)
	}
	step.At(step.ManifestsMerged)
	return nil
}

// expire forgets snapshots older than the age, but for the newest ones and those that have a tag. Files that only they
// name stay: somebody may be reading them, and they are removed as orphans once they are old enough.
func (t *Table) expire(ctx context.Context, age time.Duration) error {
	err := t.commit(ctx, func(_ context.Context, _ *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		return tx.ExpireSnapshots(table.WithRetainLast(snapshotsKept), table.WithOlderThan(age), table.WithPostCommit(false))
	})
	if err != nil {
		return fmt.Errorf("expire snapshots: %w", err)
	}
	step.At(step.Expired)
	return nil
}
