package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/loamdata/loam/internal/step"
)

// Table is one Iceberg table. It is not safe for concurrent use; other workers' commits are.
type Table struct {
	lake    *Lake
	ident   table.Identifier
	tbl     *table.Table // as it was last loaded or committed
	commits int          // since the table's manifests were merged and its snapshots expired
	schema  *int         // id of the schema that a stream's writer was opened with, nil where any will do
	rests   *string      // what the history rested on then, see [propertyStream]; nil where that may change
	rewound *string      // the last rewind of the log then, see [propertyRewind]; nil where that may change
	holds   bool         // it asked others to wait, see hold
	pin     *Pin         // what is read of it, nil for the newest
	// recovered says that the last commit was found to have succeeded after an error, so that the loaded table may hold
	// later commits of others.
	recovered bool
}

// openTable loads a table, and refuses one whose head loam did not write.
func (l *Lake) openTable(ctx context.Context, name string) (*Table, error) {
	t := &Table{lake: l, ident: table.Identifier{l.config.Namespace, name}}
	if err := t.reload(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// Name is the table's full name.
func (t *Table) Name() string { return strings.Join(t.ident, ".") }

// SnapshotID is the id of the snapshot that is read, which is the newest that was loaded unless one was asked for; 0 for an
// empty table.
func (t *Table) SnapshotID() int64 {
	if t.pin != nil {
		return t.pin.Snapshot
	}
	return headID(t.tbl)
}

// Refresh loads what others have committed since.
func (t *Table) Refresh(ctx context.Context) error { return t.reload(ctx) }

// Offsets is where the table stands.
func (t *Table) Offsets() (Offsets, error) {
	o, err := parseOffsets(t.tbl.Properties())
	if err != nil {
		return o, fmt.Errorf("read the offsets of %s: %w", t.Name(), err)
	}
	return o, nil
}

func (t *Table) reload(ctx context.Context) error {
	tbl, err := t.lake.catalog.LoadTable(ctx, t.ident)
	if errors.Is(err, catalog.ErrNoSuchTable) {
		return fmt.Errorf("%w: %s; run `loam apply` to make it", ErrNoTable, t.Name())
	} else if err != nil {
		return fmt.Errorf("load table %s: %w", t.Name(), err)
	}
	if err := checkHead(tbl); err != nil {
		return fmt.Errorf("load table %s: %w", t.Name(), err)
	}
	if t.schema != nil && tbl.Schema().ID != *t.schema || t.rests != nil && tbl.Properties()[propertyStream] != *t.rests {
		return fmt.Errorf("load table %s: %w since it was opened: run the same again", t.Name(), ErrChanged)
	}
	if t.rewound != nil && tbl.Properties()[propertyRewind] != *t.rewound {
		return fmt.Errorf("load table %s: %w since it was opened: run the same again", t.Name(), ErrRewound)
	}
	t.tbl = tbl
	return nil
}

func headID(tbl *table.Table) int64 {
	if s := tbl.CurrentSnapshot(); s != nil {
		return s.SnapshotID
	}
	return 0
}

// checkHead holds the head against the one loam wrote last: the same, or a rewrite of it that changed no rows.
func checkHead(tbl *table.Table) error {
	want, _ := strconv.ParseInt(tbl.Properties()[propertyHead], 10, 64)
	for s := tbl.CurrentSnapshot(); ; s = tbl.SnapshotByID(*s.ParentSnapshotID) {
		switch {
		case s == nil && want == 0, s != nil && s.SnapshotID == want:
			return nil
		case s == nil || s.ParentSnapshotID == nil || s.Summary == nil || s.Summary.Operation != table.OpReplace:
			return fmt.Errorf("%w: its head is snapshot %d, loam's last is %d; it was rolled back, or another engine wrote rows: "+
				"roll it to snapshot %d, or remove the table and read the topics again", ErrForeign, headID(tbl), want, want)
		}
	}
}

// errNothing is what a build function returns when there is nothing to commit.
var errNothing = errors.New("nothing to commit")

// errUnsettled marks the error of a commit that may yet take effect: the catalog did not say, or could not be asked. What
// it wrote must stay, for the table may name it; if it doesn't, maintenance removes it.
var errUnsettled = errors.New("the catalog may still have taken the commit")

// buildFunc stages a commit on a transaction of the freshly loaded table. It may run several times. It puts what its
// snapshots shall say into summary before it stages them.
type buildFunc func(ctx context.Context, base *table.Table, tx *table.Transaction, summary iceberg.Properties) error

// Bounds of the loop that settles conflicts with other writers.
const (
	commitAttemptsMax = 30
	commitBackoffMax  = 500 * time.Millisecond
)

// commit loads the table, lets build stage a commit on it and commits that, again from the start when another writer
// was faster. Its commit id stands in the summary and in properties, so an unknown outcome can be settled.
func (t *Table) commit(ctx context.Context, build buildFunc) error {
	t.recovered = false
	begin := time.Now()
	for attempt := 1; ; attempt++ {
		id := uuid.NewString()
		next, sent, err := t.attempt(ctx, id, time.Since(begin) < holdMax, build)
		switch {
		case errors.Is(err, errHeld):
			if err := pause(ctx, holdBackoff); err != nil {
				return fmt.Errorf("commit to %s: %w", t.Name(), err)
			}
			attempt--
			continue
		case err == nil:
			t.tbl = next
			t.commits++
			return nil
		case errors.Is(err, errNothing):
			return nil
		case !sent && !isConflict(err):
			return fmt.Errorf("commit to %s: %w", t.Name(), err)
		case !isConflict(err):
			done, lookErr := t.committed(ctx, id)
			if lookErr == nil && done {
				t.recovered = true
				return nil
			}
			// A transaction of the local catalog is over; a request to a remote one may still be on its way.
			if lookErr != nil || t.lake.sqlite == nil {
				err = fmt.Errorf("%w: %w", errUnsettled, err)
			}
			return fmt.Errorf("commit to %s: %w", t.Name(), err)
		case attempt == commitAttemptsMax:
			return fmt.Errorf("commit to %s: gave up after %d conflicts with other writers: %w", t.Name(), attempt, err)
		}
		if err := pause(ctx, attempt); err != nil {
			return fmt.Errorf("commit to %s: %w", t.Name(), err)
		}
	}
}

// A commit that takes long to build would be overtaken for ever where others are quick. It asks them to wait, no longer than
// holdMax, by a property of the table.
const (
	holdMax     = 20 * time.Second
	holdBackoff = 5 // the attempt after which is waited as long as before it is looked again
)

// hold asks all others to wait with their commits until the next one of this table, which is to remove the property.
func (t *Table) hold(ctx context.Context) error {
	t.holds = true
	return t.commit(ctx, func(_ context.Context, _ *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		return tx.SetProperties(iceberg.Properties{propertyHold: strconv.FormatInt(time.Now().Add(holdMax).UnixMicro(), 10)})
	})
}

// held reports whether somebody else asks to wait.
func (t *Table) held() bool {
	until, err := strconv.ParseInt(t.tbl.Properties()[propertyHold], 10, 64)
	return err == nil && !t.holds && time.Now().UnixMicro() < until
}

// errHeld ends an attempt because another commit asks to wait.
var errHeld = errors.New("another commit asks to wait")

// attempt loads the table and tries to commit to it, while no other commit of this process does. Where it may, it waits for
// whoever asks to, which is errHeld.
func (t *Table) attempt(ctx context.Context, id string, mayWait bool, build buildFunc) (next *table.Table, sent bool, err error) {
	done, err := t.lake.turn(ctx, t.Name())
	if err != nil {
		return nil, false, err
	}
	defer done()
	if err := t.reload(ctx); err != nil {
		return nil, false, err
	}
	if mayWait && t.held() {
		return nil, false, errHeld
	}
	return t.try(ctx, id, build)
}

// turn waits until no other commit of this process to the table is on its way, so that those of a worker and of its own
// maintenance never cost each other an attempt. Commits of other processes are settled by attempts.
func (l *Lake) turn(ctx context.Context, table string) (done func(), err error) {
	l.mu.Lock()
	if l.turns == nil {
		l.turns = map[string]chan struct{}{}
	}
	turn := l.turns[table]
	if turn == nil {
		turn = make(chan struct{}, 1)
		l.turns[table] = turn
	}
	l.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pause waits before the next attempt, longer with every one and never as long as another writer does.
func pause(ctx context.Context, attempt int) error {
	backoff := min(time.Duration(attempt)*10*time.Millisecond, commitBackoffMax)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(backoff/2 + rand.N(backoff)):
		return nil
	}
}

// try builds a commit and sends it to the catalog, and says whether it came to that.
func (t *Table) try(ctx context.Context, id string, build buildFunc) (next *table.Table, sent bool, err error) {
	tx := t.tbl.NewTransaction()
	// Every commit rests on the head that it was built on, also one that only moves offsets.
	if err := tx.AssertRefSnapshotID(""); err != nil {
		return nil, false, err
	}
	summary := iceberg.Properties{summaryCommit: id}
	if err := build(ctx, t.tbl, tx, summary); err != nil {
		return nil, false, err
	}
	staged, err := tx.StagedTable()
	if err != nil {
		return nil, false, err
	}
	if head := headID(staged.Table); head != headID(t.tbl) {
		if err := tx.SetProperties(iceberg.Properties{propertyHead: strconv.FormatInt(head, 10)}); err != nil {
			return nil, false, err
		}
	}
	next, err = t.send(ctx, tx)
	return next, true, err
}

// send commits what is staged without the library's own checks: the commit rests on the head that it was built on, as every
// one does, so nothing can have come between. They would read every manifest, and know no deletion vectors of files that the
// same commit adds.
func (t *Table) send(ctx context.Context, tx *table.Transaction) (*table.Table, error) {
	staged, err := tx.TableCommit()
	if err != nil {
		return nil, err
	}
	// Of two commits that move offsets alone neither moves the head, so that the second must see the first by the offsets. Only the local
	// catalog can be asked to.
	if t.lake.sqlite != nil {
		staged.Requirements = append(staged.Requirements, unmoved{offsetProperties(t.tbl.Properties())})
	}
	metadata, location, err := t.lake.catalog.CommitTable(ctx, staged.Identifier, staged.Requirements, staged.Updates)
	if err != nil {
		return nil, err
	}
	step.At(step.CatalogMoved)
	tx.MarkCommitted()
	next := table.New(t.ident, metadata, location, t.tbl.FS, t.lake.catalog)
	t.removeMetadata(ctx, next)
	return next, nil
}

// offsetProperties are the properties that say where a table stands.
func offsetProperties(properties iceberg.Properties) iceberg.Properties {
	offsets := iceberg.Properties{}
	for key, value := range properties {
		if strings.HasPrefix(key, propertyOffset) || key == propertyFiles || key == propertyRedrive {
			offsets[key] = value
		}
	}
	return offsets
}

// unmoved requires that a table stands where it stood.
type unmoved struct{ offsets iceberg.Properties }

// GetType names the requirement, which no remote catalog knows.
func (unmoved) GetType() string { return "loam-unmoved" }

// Validate fails where the table stands elsewhere.
func (u unmoved) Validate(m table.Metadata) error {
	if m == nil || !maps.Equal(offsetProperties(m.Properties()), u.offsets) {
		return errors.New("requirement failed: another commit has moved the offsets")
	}
	return nil
}

// removeMetadata removes the metadata files that the next state of the table no longer remembers.
func (t *Table) removeMetadata(ctx context.Context, next *table.Table) {
	io, err := t.tbl.FS(ctx)
	if err != nil || !next.Properties().GetBool(table.MetadataDeleteAfterCommitEnabledKey, false) {
		return
	}
	remembered := map[string]bool{}
	for f := range next.Metadata().PreviousFiles() {
		remembered[f.MetadataFile] = true
	}
	for f := range t.tbl.Metadata().PreviousFiles() {
		if !remembered[f.MetadataFile] {
			// Best effort: what stays is an orphan, which maintenance removes.
			_ = io.Remove(f.MetadataFile)
		}
	}
}

// isConflict reports whether another writer was faster. The SQL catalog returns a head that moved as a plain error.
func isConflict(err error) bool {
	return errors.Is(err, table.ErrCommitFailed) || strings.Contains(err.Error(), "requirement failed:")
}

// committed looks for a commit after an error that leaves its outcome open: in the summaries of the snapshots, or as the
// one that moved an offset.
func (t *Table) committed(ctx context.Context, id string) (bool, error) {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
	}
	if err := t.reload(ctx); err != nil {
		return false, err
	}
	for _, s := range t.tbl.Metadata().Snapshots() {
		if s.Summary != nil && s.Summary.Properties[summaryCommit] == id {
			return true, nil
		}
	}
	offsets, err := t.Offsets()
	if err != nil {
		return false, err
	}
	for _, o := range offsets.Partitions {
		if o.Commit == id {
			return true, nil
		}
	}
	for _, f := range offsets.Files {
		if f.Commit == id {
			return true, nil
		}
	}
	return false, nil
}

// Upkeep that keeps the time of a commit flat: it runs in line, every upkeepCommits commits.
const (
	upkeepCommits   = 25
	snapshotsKept   = 50
	manifestsTarget = 8 << 20
)

// upkeep merges small manifests and expires old snapshots when enough commits have been made. Files that only expired
// snapshots name stay: somebody may be reading them, and maintenance removes them by age.
func (t *Table) upkeep(ctx context.Context) error {
	if t.commits < upkeepCommits {
		return nil
	}
	if err := t.mergeManifests(ctx); err != nil {
		return err
	}
	if err := t.expire(ctx, 0); err != nil {
		return err
	}
	t.commits = 0
	return nil
}
