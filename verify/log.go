package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// filesRemembered is how many files a table knows the offsets of. Of a table that has so many, rows of a file that it
// doesn't know are no finding: the file was forgotten.
const filesRemembered = 1000

// openLog makes the view of the whole log.
func (c *check) openLog(ctx context.Context) error {
	columns := append(append([]string{}, c.def.Key...), feature.ColEventID, feature.ColEventTime, feature.ColTopic, feature.ColPartition, feature.ColOffset,
		feature.ColJobID)
	relation, err := c.reading.Log.Scan(ctx, lake.ScanOptions{Columns: columns})
	if err != nil {
		return err
	}
	if err := c.db.LakeView(ctx, "verify_whole_log", relation, false); err != nil {
		return err
	}
	return c.db.QueryRow(ctx, "SELECT count(*) FROM verify_whole_log", nil, &c.report.LogRows)
}

// held is what a log holds of a partition. Rows that were dead letters before are left out of the number: the counts tell what became of
// an event when it was read.
type held struct{ rows, greatest int64 }

// partitions holds the log's rows and the dead letters of every partition against the offsets and counts of the table,
// and the history's offsets against the log's.
func (c *check) partitions(ctx context.Context, l *lake.Lake) error {
	offsets, err := c.reading.Log.Offsets()
	if err != nil {
		return err
	}
	rows, err := c.readPartitions(ctx)
	if err != nil {
		return err
	}
	c.report.Partitions = len(rows)
	letters, err := c.readLetters(ctx, l, offsets)
	if err != nil {
		return err
	}
	for _, p := range sortedPartitions(rows) {
		at, known := offsets.Of(p)
		switch h := rows[p]; {
		case !known && isFile(p) && len(offsets.Files) >= filesRemembered:
		case h.greatest >= at.Next:
			c.report.add(Finding{Kind: BeyondOffset, Text: fmt.Sprintf(
				"%s: the log has a row at offset %d, and stands at offset %d", partitionText(p), h.greatest, at.Next)})
		}
	}
	for _, p := range sortedPartitions(allOf(offsets)) {
		at, _ := offsets.Of(p)
		c.counts(p, at.Counts, rows[p].rows, letters[p], isFile(p) && len(offsets.Files) >= filesRemembered)
	}
	if c.reading.History == nil {
		return nil
	}
	history, err := c.reading.History.Offsets()
	if err != nil {
		return err
	}
	for _, p := range sortedPartitions(allOf(history)) {
		taken, _ := history.Of(p)
		logged, known := offsets.Of(p)
		if !known && isFile(p) && len(offsets.Files) >= filesRemembered {
			continue
		}
		if taken.Next > logged.Next {
			c.report.add(Finding{Kind: HistoryAhead, Text: fmt.Sprintf(
				"%s: the history stands at offset %d, the log at %d", partitionText(p), taken.Next, logged.Next)})
		}
	}
	return nil
}

// counts holds the counts of a partition against each other, the rows of the log and the dead letters. Of a file that may
// have been forgotten and read again the rows are not known by its counts.
func (c *check) counts(p feature.Partition, n feature.Counts, rows, letters int64, forgetful bool) {
	wrong := func(format string, args ...any) {
		c.report.add(Finding{Kind: WrongCounts, Text: partitionText(p) + ": " + fmt.Sprintf(format, args...)})
	}
	if n.Read != n.Accepted+n.Refused+n.Duplicate {
		wrong("%d events were read, and %d accepted, %d refused, %d duplicates", n.Read, n.Accepted, n.Refused, n.Duplicate)
	}
	if forgetful {
		return
	}
	if n.Accepted != rows {
		wrong("%d events were accepted, and the log has %d rows", n.Accepted, rows)
	}
	if n.Refused != letters {
		wrong("%d events were refused, and there are %d dead letters", n.Refused, letters)
	}
}

func (c *check) readPartitions(ctx context.Context) (map[feature.Partition]held, error) {
	rows, err := c.db.Query(ctx, sql.Statement("verify_partitions"))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[feature.Partition]held{}
	for rows.Next() {
		var p feature.Partition
		var h held
		if err := rows.Scan(&p.Topic, &p.Index, &h.rows, &h.greatest); err != nil {
			return nil, fmt.Errorf("read the partitions of the log: %w", err)
		}
		all[p] = h
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the partitions of the log: %w", err)
	}
	return all, nil
}

// readLetters counts the dead letters of the stream by partition, each position once, up to where the log stands: dead
// letters are committed before it.
func (c *check) readLetters(ctx context.Context, l *lake.Lake, offsets lake.Offsets) (map[feature.Partition]int64, error) {
	counts := map[feature.Partition]int64{}
	table, err := l.OpenTable(ctx, lake.DeadLettersName)
	if errors.Is(err, lake.ErrNoTable) {
		return counts, nil
	} else if err != nil {
		return nil, err
	}
	relation, err := table.Scan(ctx, lake.ScanOptions{Columns: []string{"stream", feature.ColTopic, feature.ColPartition, feature.ColOffset}})
	if err != nil {
		return nil, err
	}
	if err := c.db.LakeView(ctx, "verify_dead_letters", relation, false); err != nil {
		return nil, err
	}
	rows, err := c.db.Query(ctx, sql.Statement("verify_letters"), c.def.Name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var last feature.Position
	for first := true; rows.Next(); first = false {
		var at feature.Position
		if err := rows.Scan(&at.Topic, &at.Partition, &at.Offset); err != nil {
			return nil, fmt.Errorf("read dead letters: %w", err)
		}
		p := feature.Partition{Topic: at.Topic, Index: at.Partition}
		if stands, _ := offsets.Of(p); at.Offset < stands.Next && (first || at != last) {
			counts[p]++
		}
		last = at
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return counts, nil
}

// duplicates finds the positions and the events of a bucket that the log has more than once.
func (c *check) duplicates(ctx context.Context, bucket int) error {
	bounds := []any{c.report.Buckets, bucket}
	rows, err := c.db.Query(ctx, sql.Statement("verify_positions"), bounds...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var p feature.Position
		var n int64
		if err := rows.Scan(&p.Topic, &p.Partition, &p.Offset, &n); err != nil {
			return fmt.Errorf("read duplicate positions: %w", err)
		}
		c.report.add(Finding{Kind: DuplicatePosition, Text: fmt.Sprintf("%d rows of the log stand at %s", n, p)})
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read duplicate positions: %w", err)
	}
	return c.duplicateEvents(ctx, bounds)
}

func (c *check) duplicateEvents(ctx context.Context, bounds []any) error {
	rows, err := c.db.Query(ctx, sql.Render(sql.Statement("verify_identities"), sql.Args{
		"key": sql.Idents("", c.def.Key), "key_text": keyText("", c.def),
	}), bounds...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, key, first, last string
		var at moment
		var n int64
		if err := rows.Scan(&id, &key, &at, &n, &first, &last); err != nil {
			return fmt.Errorf("read duplicate events: %w", err)
		}
		c.report.add(Finding{Kind: DuplicateEvent, Key: key, Text: fmt.Sprintf(
			"event %s at %s was accepted %d times, among others at %s and %s", id, at, n, first, last)})
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read duplicate events: %w", err)
	}
	return nil
}

func isFile(p feature.Partition) bool { return strings.HasPrefix(p.Topic, feature.FileTopicPrefix) }

func partitionText(p feature.Partition) string {
	if isFile(p) {
		return p.Topic
	}
	return fmt.Sprintf("%s/%d", p.Topic, p.Index)
}

// allOf lists the partitions and files that a table has taken.
func allOf(o lake.Offsets) map[feature.Partition]held {
	all := map[feature.Partition]held{}
	for p := range o.Partitions {
		all[p] = held{}
	}
	for _, f := range o.Files {
		all[feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256}] = held{}
	}
	return all
}

func sortedPartitions(of map[feature.Partition]held) []feature.Partition {
	return slices.SortedFunc(maps.Keys(of), feature.Partition.Compare)
}
