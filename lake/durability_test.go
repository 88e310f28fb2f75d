package lake

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// missingSync takes the workload through a process that may be killed at a step and another that goes on, and tells of the
// first file that the catalog leads to and that a power cut could take: each must be synced, and every folder that it is in,
// before the catalog moves to it.
func missingSync(t *testing.T, omit, kill stepIs) (missing error, moves int) {
	t.Helper()
	d := newDisk(t)
	d.omit, d.kill = omit, kill
	fine := map[string]bool{}
	d.onStep = func(moved map[string]string) {
		for name, location := range moved {
			moves++
			if missing == nil && !d.named {
				missing = fmt.Errorf("the catalog's entry in its folder is not synced when table %s is in it", name)
			}
			files, err := leads(context.Background(), location)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if fine[file] || missing != nil {
					continue
				}
				missing = d.lasts(file)
				fine[file] = missing == nil
			}
		}
		d.killed = d.killed || missing != nil // there is no more to be found
	}
	err := commitRest(d.dir, func(map[string]int64) {})
	if missing != nil {
		return missing, moves
	}
	if d.killed {
		d.restart()
		err = commitRest(d.dir, func(map[string]int64) {})
	}
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	return missing, moves
}

// All that the catalog leads to is synced before it moves, also where another process made it and was killed.
func TestSyncedBeforeTheCatalogMoves(t *testing.T) {
	missing, moves := missingSync(t, nil, nil)
	if missing != nil {
		t.Error(missing)
	}
	if want := 2 + 2*len(durableRows()); moves < want {
		t.Errorf("the catalog moved %d times, want %d at least", moves, want)
	}
	for _, folder := range []string{
		".", "warehouse", "warehouse/test.db", "warehouse/test.db/thing_log", "warehouse/test.db/thing_log/data",
		"warehouse/test.db/thing_history/data/is_current=true",
	} {
		kill := func(_ int, op diskOp, path string) bool { return op == opSyncDir && path == folder }
		if missing, _ := missingSync(t, nil, kill); missing != nil {
			t.Errorf("killed before %s is synced: %v", folder, missing)
		}
	}
	r := durabilityRandom(t)
	for range durabilityTries(3, 20) {
		at := 1 + r.IntN(150)
		if missing, _ := missingSync(t, nil, killAt(at)); missing != nil {
			t.Errorf("killed at step %d: %v", at, missing)
		}
	}
}

func killAt(n int) stepIs { return func(step int, _ diskOp, _ string) bool { return step == n } }

// Whatever sync is left out, it is missed.
func TestMissingSyncIsTold(t *testing.T) {
	file := func(pattern string) stepIs {
		return func(_ int, op diskOp, path string) bool {
			matches, _ := filepath.Match(pattern, filepath.Base(path))
			return op == opSyncFile && matches
		}
	}
	folder := func(pattern string) stepIs {
		return func(_ int, op diskOp, path string) bool {
			matches, _ := filepath.Match(pattern, filepath.Base(path))
			return op == opSyncDir && matches
		}
	}
	for name, omit := range map[string]stepIs{
		"data files":           file("*.parquet"),
		"deletion vectors":     file("*.puffin"),
		"manifests":            file("*-m*.avro"),
		"manifest lists":       file("snap-*.avro"),
		"metadata":             file("*.metadata.json"),
		"folders of data":      folder("key_bucket=*"),
		"folders of metadata":  folder("metadata"),
		"a folder of folders":  folder("data"),
		"the warehouse":        folder("warehouse"),
		"the catalog's folder": folder("."),
	} {
		t.Run(name, func(t *testing.T) {
			if missing, _ := missingSync(t, omit, nil); missing == nil {
				t.Error("it is not missed")
			} else {
				t.Log(missing)
			}
		})
	}
}

// VerifyHistory checks a history against its log; the tests outside the package set it, as what does so imports lake.
var VerifyHistory func(context.Context, *Lake, *feature.Stream) error

// image is a lake as a power cut left it.
type image struct {
	dir          string // where it is kept
	lake         string // where it was: its files name each other by whole paths
	step         int
	acknowledged map[string]int64 // rows of each topic whose commit had returned
}

// cutPower takes the workload through a process that may be killed at a step and another that goes on, and gives what power
// cuts at some of the steps leave, most of them just after the catalog has moved.
func cutPower(t *testing.T, r *rand.Rand, omit, kill stepIs, most int) []image {
	t.Helper()
	d := newDisk(t)
	d.omit, d.kill = omit, kill
	acknowledged := map[string]int64{}
	var images []image
	cut := func() {
		i := image{t.TempDir(), d.dir, d.steps, maps.Clone(acknowledged)}
		d.leaveBehind(r, i.dir)
		images = append(images, i)
	}
	d.onStep = func(moved map[string]string) {
		if len(images) < most && (len(moved) > 0 && r.IntN(3) == 0 || r.IntN(60) == 0) {
			cut()
		}
	}
	acknowledge := func(rows map[string]int64) {
		d.mu.Lock()
		defer d.mu.Unlock()
		acknowledged = rows
	}
	err := commitRest(d.dir, acknowledge)
	if d.killed {
		d.restart()
		err = commitRest(d.dir, acknowledge)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	cut()
	d.onStep, d.omit = nil, nil // the disk is left alone from here on
	return images
}

// whole opens the lake anew and tells what is wrong with it: what was acknowledged must be there, history must follow from
// the log, and the rest must be taken so that all ends as if nothing had happened.
func (i image) whole(t *testing.T) error {
	t.Helper()
	ctx := context.Background()
	aside := i.lake + ".aside"
	for _, move := range [][2]string{{i.lake, aside}, {i.dir, i.lake}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, move := range [][2]string{{i.lake, i.dir}, {aside, i.lake}} {
			if err := os.Rename(move[0], move[1]); err != nil {
				t.Fatal(err)
			}
		}
	}()
	l, err := Open(ctx, durableConfig(i.lake))
	if err != nil {
		return err
	}
	defer l.Close()
	def := testStream()
	if err := l.CreateStream(ctx, def); err != nil {
		return err
	}
	s, err := l.OpenStream(ctx, def, StreamOptions{}) // which catches the history up
	if err != nil {
		return err
	}
	defer s.Close()
	offsets, err := s.Offsets()
	if err != nil {
		return err
	}
	for topic, rows := range i.acknowledged {
		if at, _ := offsets.Of(feature.Partition{Topic: topic}); at.Next < rows {
			return fmt.Errorf("%d rows of %s were acknowledged, and %d are there", rows, topic, at.Next)
		}
	}
	if err := VerifyHistory(ctx, l, def); err != nil {
		return err
	}
	if err := commitRest(i.lake, func(map[string]int64) {}); err != nil {
		return err
	}
	if err := VerifyHistory(ctx, l, def); err != nil {
		return err
	}
	if got, want := read(t, l, def), want(slices.Concat(durableRows()...)); !slices.Equal(got, want) {
		return fmt.Errorf("history\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	return nil
}

// A power cut at any step leaves a lake in which every commit that had returned is whole.
func TestPowerCut(t *testing.T) {
	r := durabilityRandom(t)
	for n := range durabilityTries(2, 5) {
		at := 0
		if n%2 == 1 {
			at = 1 + r.IntN(150)
		}
		for _, i := range cutPower(t, r, nil, killAt(at), durabilityTries(4, 10)) {
			if err := i.whole(t); err != nil {
				t.Errorf("power cut at step %d, the process killed at %d (0: not): %v", i.step, at, err)
			}
		}
	}
}

// Without syncs, power cuts are told by what they leave.
func TestPowerCutIsTold(t *testing.T) {
	for name, left := range map[string]diskOp{"files": opSyncFile, "folders": opSyncDir} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 1))
			for _, i := range cutPower(t, r, func(_ int, op diskOp, _ string) bool { return op == left }, nil, 0) {
				if err := i.whole(t); err != nil {
					t.Log(err)
					return
				}
			}
			t.Error("nothing is lost")
		})
	}
}

// The catalog's transactions are on disk when they return: sqlite says nothing of that to whoever opens it otherwise.
func TestCatalogIsSynchronous(t *testing.T) {
	ctx := context.Background()
	l := openLake(t)
	l.sqlite.SetMaxIdleConns(0) // each use opens a connection anew
	for range 3 {
		var synchronous int
		var journal string
		if err := l.sqlite.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous); err != nil {
			t.Fatal(err)
		}
		if err := l.sqlite.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
			t.Fatal(err)
		}
		const full = 2
		if synchronous != full || journal != "wal" {
			t.Errorf("synchronous is %d and the journal %s, want %d and wal", synchronous, journal, full)
		}
	}
}

func durabilityRandom(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(seedOf(t), 4))
}

// durabilityTries is few, and many in CI.
func durabilityTries(few, many int) int {
	if os.Getenv("LOAM_CI") == "1" {
		return many
	}
	return few
}
