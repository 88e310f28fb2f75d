package lake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"time"

	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// Orphans are files below the tables' folders that no snapshot names: a writer that was killed leaves them, and so does
// the expiry of snapshots.
type Orphans struct {
	Removed int
	Bytes   int64 // of those removed
	Waiting int   // that are to be removed once they have been orphans for long enough
}

// orphanAgeMin is how long a file must have been an orphan at the least. No commit takes so long, so what is written for
// one on its way is never taken for an orphan; and who reads a snapshot that has expired has this time to come to an end.
const orphanAgeMin = time.Hour

// orphanList is the file below a table's metadata folder that tells since when its orphans have been known as such. Its
// name and format, an object of paths and RFC 3339 times, are frozen.
const orphanList = "loam-orphans.json"

// RemoveOrphans removes what has been known as an orphan for the age. A file is first noted, by whoever finds it, and
// removed by a later call: how old a file is doesn't tell since when nothing names it.
func (m *Maintainer) RemoveOrphans(ctx context.Context, age time.Duration) (Orphans, error) {
	var all Orphans
	if age < orphanAgeMin {
		return all, fmt.Errorf("a file may be named by a commit on its way, or read, for %s after it became an orphan: "+
			"remove those that are older than that", orphanAgeMin)
	}
	tables, err := m.tables(ctx)
	if err != nil {
		return all, err
	}
	for _, t := range tables {
		o, err := t.removeOrphans(ctx, m.now(), age)
		if err != nil {
			return all, fmt.Errorf("remove orphans of %s: %w", t.Name(), err)
		}
		all.Removed, all.Bytes, all.Waiting = all.Removed+o.Removed, all.Bytes+o.Bytes, all.Waiting+o.Waiting
	}
	return all, nil
}

func (t *Table) removeOrphans(ctx context.Context, now time.Time, age time.Duration) (Orphans, error) {
	var o Orphans
	fsys, err := t.tbl.FS(ctx)
	if err != nil {
		return o, err
	}
	wfs, ok := fsys.(iceio.WriteFileIO)
	if !ok {
		return o, errors.New("the table's files can't be written")
	}
	name := strings.TrimSuffix(t.tbl.Location(), "/") + "/metadata/" + orphanList
	before, err := readOrphans(wfs, name)
	if err != nil {
		return o, err
	}
	plan, err := t.tbl.PlanOrphanFiles(ctx, table.WithFilesOlderThan(orphanAgeMin))
	if err != nil {
		return o, err
	}
	after := map[string]time.Time{}
	for _, f := range plan.OrphanFiles() {
		if strings.HasSuffix(f.Path, "/"+orphanList) {
			continue
		}
		since, known := before[f.Path]
		switch {
		case !known:
			after[f.Path] = now.UTC()
		case now.Sub(since) < age:
			after[f.Path] = since
		default:
			if err := wfs.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return o, err
			}
			o.Removed++
			o.Bytes += f.SizeBytes
		}
	}
	o.Waiting = len(after)
	if maps.EqualFunc(before, after, time.Time.Equal) {
		return o, nil
	}
	text, err := json.MarshalIndent(after, "", " ")
	if err != nil {
		return o, err
	}
	return o, wfs.WriteFile(name, text)
}

// readOrphans reads the list of a table's orphans, which may not be there yet.
func readOrphans(fsys iceio.IO, name string) (map[string]time.Time, error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var known map[string]time.Time
	if err := json.Unmarshal(text, &known); err != nil {
		return nil, fmt.Errorf("%s is no list of orphans: %w; remove it, and they are noted anew", name, err)
	}
	return known, nil
}
