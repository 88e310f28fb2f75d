package lake

import (
	"context"
	dbsql "database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/apache/iceberg-go"
	iceio "github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// disk stands under the files of one lake: it notes the steps that are taken, so that it knows at any of them what a
// power cut would leave. Of a file that is not synced nothing is sure, nor of an entry in a folder that is not. The
// catalog is sqlite's own to keep: a transaction of it is committed or not.
type disk struct {
	t    *testing.T
	dir  string // of the lake
	omit stepIs // steps that are left out, for tests of the tests
	kill stepIs // the step before which the process is killed
	// onStep is called before each step with where the catalog has moved since the last one, by table.
	onStep func(moved map[string]string)

	mu      sync.Mutex // guards what follows
	made    map[string]*inode
	steps   int
	killed  bool
	named   bool              // whether the catalog's own entry in its folder is synced
	catalog *dbsql.DB         // for reading alone
	at      map[string]string // where the catalog stands, by table
}

// stepIs picks steps, by their number, what they do, and the path below the lake's folder, "." for that; nil picks none.
type stepIs func(step int, op diskOp, path string) bool

// inode is a file or a folder.
type inode struct {
	folder bool
	synced bool // a file's content
	named  bool // its entry in the folder that holds it
}

var errKilled = errors.New("the process was killed")

// newDisk puts a disk under a new lake until the test ends.
func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir(), made: map[string]*inode{}, at: map[string]string{}}
	before := diskStep
	diskStep = d.step
	entered.Clear()
	t.Cleanup(func() {
		diskStep = before
		entered.Clear()
		if d.catalog != nil {
			d.catalog.Close()
		}
	})
	return d
}

// restart goes on after the process was killed: a new one knows nothing of what the old one did.
func (d *disk) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killed, d.kill = false, nil
	entered.Clear()
}

func (d *disk) step(op diskOp, path string, take func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	below, err := filepath.Rel(d.dir, path)
	if err != nil || strings.HasPrefix(below, "..") {
		return take() // in folders above, which are not the lake's to make
	}
	if d.killed {
		return errKilled
	}
	d.settle()
	d.steps++
	if d.kill != nil && d.kill(d.steps, op, below) {
		d.killed = true
		return errKilled
	}
	if d.omit != nil && d.omit(d.steps, op, below) {
		return nil
	}
	if err := take(); err != nil {
		return err
	}
	switch op {
	case opCreate:
		d.made[path] = &inode{}
	case opMkdir:
		d.made[path] = &inode{folder: true}
	case opSyncFile:
		d.made[path].synced = true
	case opSyncDir:
		for p, e := range d.made {
			if filepath.Dir(p) == path {
				e.named = true
			}
		}
		if _, err := os.Stat(filepath.Join(d.dir, "catalog.db")); err == nil && path == d.dir {
			d.named = true
		}
	}
	return nil
}

// settle looks where the catalog stands, and tells onStep.
func (d *disk) settle() {
	now := d.locations()
	moved := map[string]string{}
	for name, location := range now {
		if d.at[name] != location {
			moved[name] = location
		}
	}
	d.at = now
	if d.onStep != nil {
		d.onStep(moved)
	}
}

// locations are the metadata files of the tables, by name.
func (d *disk) locations() map[string]string {
	now := map[string]string{}
	path := filepath.Join(d.dir, "catalog.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return now
	}
	if d.catalog == nil {
		var err error
		if d.catalog, err = dbsql.Open("sqlite", "file:"+path+"?mode=ro"); err != nil {
			d.t.Fatal(err)
		}
	}
	rows, err := d.catalog.Query("SELECT table_name, metadata_location FROM iceberg_tables")
	if err != nil {
		return now // the catalog has no tables of its own yet
	}
	defer rows.Close()
	for rows.Next() {
		var name, location string
		if err := rows.Scan(&name, &location); err != nil {
			d.t.Fatal(err)
		}
		now[name] = location
	}
	if err := rows.Err(); err != nil {
		d.t.Fatal(err)
	}
	return now
}

// lasts reports whether a power cut now would leave the file whole; if not, what is not synced.
func (d *disk) lasts(path string) error {
	if e := d.made[path]; e != nil && !e.folder && !e.synced {
		return fmt.Errorf("%s is not synced", path)
	}
	for p := path; p != d.dir && p != filepath.Dir(p); p = filepath.Dir(p) {
		if e := d.made[p]; e != nil && !e.named {
			return fmt.Errorf("%s is not synced, in which %s is", filepath.Dir(p), filepath.Base(p))
		}
	}
	return nil
}

// leads lists all files that a metadata file leads to, itself among them.
func leads(ctx context.Context, location string) ([]string, error) {
	files := durableFS{}
	if strings.Contains(location, "_current/") { // a view has no other files
		path, err := localPath(location)
		return []string{path}, err
	}
	tbl, err := table.NewFromLocation(ctx, table.Identifier{"test", "any"}, location,
		func(context.Context) (iceio.IO, error) { return files, nil }, nil)
	if err != nil {
		return nil, err
	}
	uris := map[string]bool{location: true}
	for _, snapshot := range tbl.Metadata().Snapshots() {
		uris[snapshot.ManifestList] = true
		manifests, err := snapshot.Manifests(files)
		if err != nil {
			return nil, err
		}
		for _, m := range manifests {
			if uris[m.FilePath()] {
				continue
			}
			uris[m.FilePath()] = true
			for e, err := range m.Entries(files, false) {
				if err != nil {
					return nil, err
				}
				if e.Status() != iceberg.EntryStatusDELETED {
					uris[e.DataFile().FilePath()] = true
				}
			}
		}
	}
	var paths []string
	for uri := range uris {
		path, err := localPath(uri)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// leaveBehind copies the lake to another folder as a power cut now would leave it. What isn't synced is gone, or half there,
// or, where that is decided by a coin, all there.
func (d *disk) leaveBehind(r *rand.Rand, to string) {
	d.t.Helper()
	err := filepath.WalkDir(d.dir, func(path string, item fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e := d.made[path]
		rest := strings.TrimPrefix(path, d.dir)
		switch {
		case e != nil && !e.named && r.IntN(3) > 0, strings.HasPrefix(rest, "/catalog.db") && !d.named:
			if item.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case item.IsDir():
			return os.MkdirAll(filepath.Join(to, rest), 0o755)
		case strings.HasSuffix(path, "-shm"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if e != nil && !e.synced {
			text = text[:r.IntN(len(text)+1)*r.IntN(2)]
		}
		return os.WriteFile(filepath.Join(to, rest), text, 0o644)
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// durableRows are what the workload commits, a batch each: changes of two topics that go the fast way and the late one.
func durableRows() [][]row {
	var batches [][]row
	next := map[string]int64{}
	r := rand.New(rand.NewPCG(3, 3))
	for i := range 6 {
		var rows []row
		for range 5 {
			topic := []string{"thing.v1", "file:abc"}[r.IntN(2)]
			rows = append(rows, row{
				id: string(rune('a' + r.IntN(4))), v: string(rune('A' + r.IntN(3))), at: int64(1000 + 10*i - r.IntN(30)*r.IntN(2)), topic: topic,
				offset: next[topic], deleted: r.IntN(6) == 0,
			})
			next[topic]++
		}
		batches = append(batches, rows)
	}
	return batches
}

// commitRest opens the lake in dir and commits what it has not taken of the batches. It calls acknowledge with the number
// of rows of each topic that are committed, whenever a commit has returned.
func commitRest(dir string, acknowledge func(map[string]int64)) (err error) {
	ctx := context.Background()
	l, err := Open(ctx, durableConfig(dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	def := testStream()
	if err := l.CreateStream(ctx, def); err != nil {
		return err
	}
	s, err := l.OpenStream(ctx, def, StreamOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	offsets, err := s.Offsets()
	if err != nil {
		return err
	}
	from := map[string]int64{}
	for _, topic := range []string{"thing.v1", "file:abc"} {
		at, _ := offsets.Of(feature.Partition{Topic: topic})
		from[topic] = at.Next
	}
	for _, rows := range durableRows() {
		var left []row
		for _, one := range rows {
			if one.offset >= from[one.topic] {
				left = append(left, one)
			}
		}
		if len(left) == 0 {
			continue
		}
		b := batchOf(def, left, from)
		_, err := s.Commit(ctx, b, s.Head())
		b.Release()
		if err != nil {
			return err
		}
		acknowledge(maps.Clone(from))
	}
	return nil
}

func durableConfig(dir string) Config {
	return Config{Lake: feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3}, Namespace: "test", Dir: dir}
}
