package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// A running worker whose stream is rewound opens it anew at its next commit, and takes again what the topic holds.
func TestWorkerGoesOnThroughARewind(t *testing.T) {
	redis := miniredis.RunT(t)
	dir := newProject(t, fmt.Sprintf("online: {redis: %q}", redis.Addr()))
	evolvingStream(t, dir, `{name: n, type: int64}`, "n")
	run(t, dir, "apply")
	topic := filepath.Join(dir, ".loam", "topics", "score.v1")
	if err := os.MkdirAll(topic, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(topic, "0.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	produced := 0
	produce := func(n int) {
		for range n {
			value := fmt.Sprint(produced)
			if produced%10 == 9 {
				value = `"none"` // refused
			}
			at := begun.Add(time.Duration(produced) * time.Second).Format(time.RFC3339)
			if _, err := fmt.Fprintf(file, `{"id":"k%d","n":%s,"at":%q}`+"\n", produced%7, value, at); err != nil {
				t.Fatal(err)
			}
			produced++
		}
	}
	produce(100)
	w := startWorker(t, dir, "--commit-every", "50ms")
	took := func(n int) func() bool {
		return func() bool { s := statusOf(t, dir)["score"]; return s.Accepted+s.Refused == int64(n) }
	}
	w.await("all was taken", took(100))
	w.awaitSaid("feature view score is served")
	if out := run(t, dir, "rewind", "score", "--to", "score.v1/0@25", "--yes"); !strings.Contains(out, "score was taken back") {
		t.Errorf("rewind: %s", out)
	}
	if !took(25)() {
		t.Errorf("the stream has %+v", statusOf(t, dir)["score"])
	}
	produce(30)
	w.await("all was taken again", took(130))
	w.await("the view was built anew", func() bool { return strings.Count(w.stderr(), "feature view score is served") == 2 })
	if !strings.Contains(w.stderr(), "a stream was rewound: going on from where it stands") {
		t.Errorf("it didn't say so: %s", w.stderr())
	}
	if out := run(t, dir, "get", "--features", "score:n", "--entity", "id=k3"); !strings.Contains(out, "122") {
		t.Errorf("get: %s", out)
	}
	w.stop()
	verifyClean(t, dir)
}

// A running worker goes on beside rebuilds, and through a change of what its stream tracks, while events come in all the time.
func TestWorkerGoesOnThroughRebuilds(t *testing.T) {
	dir := newProject(t, "")
	columns := `{name: n, type: int64}, {name: plan, type: string}`
	evolvingStream(t, dir, columns, "n")
	run(t, dir, "apply")
	topic := filepath.Join(dir, ".loam", "topics", "score.v1")
	if err := os.MkdirAll(topic, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(topic, "0.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := startWorker(t, dir, "--commit-every", "50ms")
	produced := 0
	var producing sync.WaitGroup
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	stop := make(chan struct{})
	producing.Go(func() {
		for ; ; produced++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			at := begun.Add(time.Duration(produced-produced%7*3) * time.Second).Format(time.RFC3339)
			if _, err := fmt.Fprintf(file, `{"id":"k%d","n":%d,"plan":"p%d","at":%q}`+"\n", produced%7, produced/9%4, produced%3, at); err != nil {
				t.Error(err)
				return
			}
		}
	})
	taken := func() int64 { return statusOf(t, dir)["score"].Accepted }
	for range 2 {
		before := taken()
		w.await("it had taken some", func() bool { return taken() > before+20 })
		run(t, dir, "rebuild", "score")
	}
	evolvingStream(t, dir, columns+"]\ntrack: [n", "n")
	if out := run(t, dir, "plan"); !strings.Contains(out, "since plan is tracked otherwise") {
		t.Errorf("plan: %s", out)
	}
	run(t, dir, "apply")
	before := taken()
	w.await("it went on", func() bool { return strings.Contains(w.stderr(), "going on by the new ones") && taken() > before+20 })
	run(t, dir, "rebuild", "score")
	close(stop)
	producing.Wait()
	w.await("all was taken", func() bool { return taken() == int64(produced) })
	w.stop()
	t.Logf("%d events", produced)
	verifyClean(t, dir)
}
