package pit

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

const (
	killedAt  = "LOAM_TEST_KILLED_AT" // the step that a build is told before it is killed
	killedDir = "LOAM_TEST_KILLED_DIR"
)

// TestKilledBuild is the process of a build that ends itself at a step, as a kill would: nothing is cleaned up.
func TestKilledBuild(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("it is run by TestLeftovers")
	}
	w := &world{t: t, dir: dir, offsets: map[string]int64{}}
	w.load()
	var err error
	if w.lake, err = lake.Open(context.Background(), lake.Config{Lake: w.project.Lake, Namespace: w.project.Name, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	_, err = w.buildBy(feature.DatasetRequest{Labels: "labels.csv"}, Options{TempDir: filepath.Join(dir, "tmp"), partRows: 1, Step: func(what string, done, of int) {
		if what == os.Getenv(killedAt) && done > 1 {
			os.Exit(9)
		}
	}})
	t.Fatalf("it was not killed: %v", err)
}

// kill builds a training set in a process of its own, which ends at a step.
func (w *world) kill(at string) {
	w.t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestKilledBuild$")
	c.Env = append(os.Environ(), killedAt+"="+at, killedDir+"="+w.dir)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		w.t.Fatalf("%v: %s", err, out)
	}
}

func (w *world) leftovers() []Leftover {
	w.t.Helper()
	left, err := Leftovers(context.Background(), w.lake, filepath.Join(w.dir, "tmp"))
	if err != nil {
		w.t.Fatal(err)
	}
	return left
}

// tags are those of the project's tables that training sets have.
func (w *world) tags() map[string][]string {
	w.t.Helper()
	tagged, err := w.lake.Tagged(context.Background(), TagPrefix)
	if err != nil {
		w.t.Fatal(err)
	}
	return tagged
}

// written are the files of the project's folder that have something to do with training sets.
func (w *world) written() []string {
	w.t.Helper()
	var names []string
	for _, pattern := range []string{"out*", "tmp/*"} {
		found, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, f := range found {
			names = append(names, strings.TrimPrefix(f, w.dir+"/"))
		}
	}
	return names
}

func leftoverWorld(t *testing.T) *world {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-01T00:00:00Z","v":1}`})
	w.put("labels.csv", "k,event_timestamp\na,2026-01-02\na,2026-01-03\na,2026-01-04\n")
	return w
}

// A build that was killed leaves a tag, parts and a folder. They are found, with when it began, and let go; what it had moved aside
// comes back, and what a later build made stays.
func TestLeftovers(t *testing.T) {
	w := leftoverWorld(t)
	before := time.Now().Truncate(time.Millisecond)
	w.kill("joining v")
	left := w.leftovers()
	if len(left) != 1 || left[0].Begun.Before(before) || left[0].Begun.After(time.Now()) || len(left[0].Files) == 0 || len(w.tags()) != 1 ||
		!slices.Equal(left[0].Tables, []string{"vectors.s_history", "vectors.s_log"}) {
		t.Fatalf("left %+v, tags %v", left, w.tags())
	}
	if err := left[0].LetGo(t.Context(), w.lake); err != nil {
		t.Fatal(err)
	}
	if len(w.leftovers()) != 0 || len(w.tags()) != 0 || len(w.written()) != 0 {
		t.Errorf("left %+v, tags %v, files %v", w.leftovers(), w.tags(), w.written())
	}

	// It had written all, and moved what was there aside.
	card, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	w.put("labels.csv", "k,event_timestamp\na,2026-01-05\n")
	w.kill("done")
	if left = w.leftovers(); len(left) != 1 {
		t.Fatalf("left %+v", left)
	}
	scratch := filepath.Join(w.dir, "out.parquet."+left[0].Tag[len(left[0].Tag)-8:])
	if err := os.Rename(filepath.Join(w.dir, "out.parquet"), scratch+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(scratch+".part-00000", filepath.Join(w.dir, "out.parquet")); err != nil {
		t.Fatal(err)
	}
	left = w.leftovers()
	if err := left[0].LetGo(t.Context(), w.lake); err != nil {
		t.Fatal(err)
	}
	back, err := os.ReadFile(filepath.Join(w.dir, "out.parquet"))
	if err != nil || string(back) != string(good) {
		t.Errorf("what was moved aside is not back: %v", err)
	}
	if want := []string{"out.card.json", "out.parquet"}; !slices.Equal(w.written(), want) || len(w.tags()) != 1 || w.tags()[card.Tag] == nil {
		t.Errorf("files %v, want %v; tags %v", w.written(), want, w.tags())
	}

	// The lake had its card, and the card's file was still to be moved.
	w.kill("done")
	left = w.leftovers()
	tag := left[0].Tag
	text, err := os.ReadFile(filepath.Join(w.dir, "out.card.json"))
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.ReplaceAll(string(text), card.Tag, tag)
	if err := w.lake.AppendCard(t.Context(), "", filepath.Join(w.dir, "out.parquet"), newer, time.Now().UnixMicro()); err != nil {
		t.Fatal(err)
	}
	w.put("out.card.json"+tag[len(tag)-8:]+".part", newer)
	w.put("out.parquet."+tag[len(tag)-8:]+".old", "older")
	left = w.leftovers()
	if len(left) != 1 || len(left[0].Tables) != 0 {
		t.Fatalf("left %+v", left)
	}
	if err := left[0].LetGo(t.Context(), w.lake); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadCard(filepath.Join(w.dir, "out.card.json")); err != nil || c.Tag != tag || w.tags()[tag] == nil {
		t.Errorf("the card has tag %s, want %s; %v", c.Tag, tag, err)
	}
	if want := []string{"out.card.json", "out.parquet"}; !slices.Equal(w.written(), want) {
		t.Errorf("files %v, want %v", w.written(), want)
	}
}

// The training set of a card that is replaced is let go, unless one that was made again goes by its tag, too.
func TestReplacedCardsAreUnpinned(t *testing.T) {
	w := leftoverWorld(t)
	build := func(out string) *Card {
		t.Helper()
		card, err := w.build(feature.DatasetRequest{Labels: "labels.csv", Out: out}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return card
	}
	pinned := func(cards ...*Card) {
		t.Helper()
		tags := w.tags()
		for _, c := range cards {
			if len(tags[c.Tag]) != 2 {
				t.Errorf("%s is not pinned: %v", c.Tag, tags)
			}
		}
		if len(tags) != len(cards) {
			t.Errorf("tags %v, want %d", tags, len(cards))
		}
	}
	first := build("out.parquet")
	other := build("other.parquet")
	pinned(first, other)
	second := build("out.parquet")
	pinned(second, other)
	if _, err := w.rebuild("out.card.json", "", "again.parquet"); err != nil {
		t.Fatal(err)
	}
	third := build("out.parquet")
	pinned(second, third, other) // again.parquet goes by the second's tag
	fourth := build("again.parquet")
	pinned(third, fourth, other)
	if _, err := w.rebuild("out.card.json", "", "other.parquet"); err != nil { // by the third's
		t.Fatal(err)
	}
	pinned(third, fourth)
	fifth := build("other.parquet")
	pinned(third, fourth, fifth)
	if _, err := w.build(feature.DatasetRequest{Labels: "labels.csv", Out: "out.parquet", TimeColumn: "no"}, 0); err == nil {
		t.Error("there is no such column")
	}
	pinned(third, fourth, fifth) // what failed replaces nothing
	db, err := sql.Open(t.Context(), sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if kept, err := w.lake.Cards(t.Context(), db); err != nil || len(kept) != 8 {
		t.Errorf("%d cards are kept, %v", len(kept), err)
	}
}
