package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
)

// evolvingStream declares a stream with these columns, its view the features.
func evolvingStream(t *testing.T, dir, columns, features string) {
	t.Helper()
	write(t, filepath.Join(dir, "streams", "score.yaml"), `stream: score
kind: state
format: row
key: [id]
event_time: at
id: position
columns: [{name: id, type: string}, `+columns+`]
`)
	write(t, filepath.Join(dir, "features", "score.yaml"), `entities: [{name: scored, join_keys: [id]}]
views: [{name: score, entity: scored, stream: score, features: [`+features+`]}]
`)
}

// A running worker goes on through columns that are added, renamed and widened beside it, while events come in all the
// time: it loses and repeats none, writes none of them as null, and serves the newest values of the newest view.
func TestWorkerGoesOnThroughChanges(t *testing.T) {
	redis := miniredis.RunT(t)
	dir := newProject(t, fmt.Sprintf("online: {redis: %q}", redis.Addr()))
	evolvingStream(t, dir, `{name: n, type: "decimal(9,2)"}`, "n")
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

	const keys = 7
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
			// Every seventh comes late.
			at := begun.Add(time.Duration(produced-produced%7*3) * time.Second).Format(time.RFC3339)
			if _, err := fmt.Fprintf(file, `{"id":"k%d","n":"%d.50","plan":"p%d","at":%q}`+"\n", produced%keys, produced, produced%3, at); err != nil {
				t.Error(err)
				return
			}
		}
	})
	taken := func() int64 { return statusOf(t, dir)["score"].Accepted }
	w.await("it had taken some", func() bool { return taken() > 0 })
	w.awaitSaid("feature view score is served")
	changes := []struct{ columns, features string }{
		{`{name: n, type: "decimal(9,2)"}, {name: plan, type: string}`, "n, plan"},
		{`{name: number, type: "decimal(9,2)", renamed_from: n, path: n}, {name: plan, type: string}`, "number, plan"},
		{`{name: number, type: "decimal(18,2)", path: n}, {name: plan, type: string}`, "number, plan"},
	}
	for i, c := range changes {
		before := taken()
		evolvingStream(t, dir, c.columns, c.features)
		run(t, dir, "apply")
		w.await("it went on", func() bool {
			return strings.Count(w.stderr(), "going on by the new ones") == i+1 && taken() > before+20
		})
		w.await("the new view was served", func() bool { return strings.Count(w.stderr(), "feature view score is served") == i+2 })
	}

	// What tables can't follow is refused, and the worker goes on by what is applied.
	before := taken()
	evolvingStream(t, dir, `{name: number, type: double, path: n}, {name: plan, type: string}`, "number, plan")
	if _, errs, code := runErr(t, dir, "apply"); code != 1 || !strings.Contains(errs, "nothing was applied: stream score: column number can't become double") {
		t.Errorf("apply: %d, %s", code, errs)
	}
	w.await("it went on by what is applied", func() bool { return taken() > before+20 })
	evolvingStream(t, dir, changes[2].columns, changes[2].features)

	close(stop)
	producing.Wait()
	w.await("all was taken", func() bool { return taken() == int64(produced) })
	w.stop()
	if n := strings.Count(w.stderr(), "going on by the new ones"); n != len(changes) {
		t.Errorf("it went on %d times, want %d:\n%s", n, len(changes), w.stderr())
	}
	t.Logf("%d events through %d changes", produced, len(changes))
	verifyClean(t, dir)

	r := openLake(t, dir)
	reading, err := r.Read(t.Context(), r.project.Stream("score"))
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.LogView(t.Context(), r.db, "log", nil, false); err != nil {
		t.Fatal(err)
	}
	rows := r.texts(t, `SELECT "offset" || ' ' || id || ' ' || coalesce(number::VARCHAR, 'null') || ' ' || coalesce(plan, 'null') FROM log ORDER BY "offset"`)
	if len(rows) != produced {
		t.Errorf("the log has %d rows, %d were produced", len(rows), produced)
	}
	planned := false
	for i, row := range rows {
		plan := fmt.Sprintf("p%d", i%3)
		planned = planned || strings.HasSuffix(row, plan)
		if !planned {
			plan = "null" // read before the column was declared
		}
		if want := fmt.Sprintf("%d k%d %d.50 %s", i, i%keys, i, plan); row != want {
			t.Fatalf("row %d of the log is %q, want %q", i, row, want)
		}
	}
	if !planned || strings.HasSuffix(rows[0], "p0") {
		t.Error("the column was added before the first event, or never")
	}
	current := r.texts(t, sqlOfCurrent(t, r))
	var served []string
	for k := range keys {
		line := fmt.Sprintf("k%d", k)
		for _, e := range runJSON[[]struct {
			Features []struct{ Value json.RawMessage }
		}](t, dir, "get", "--features", "score:*", "--entity", "id="+line) {
			for _, f := range e.Features {
				line += " " + strings.Trim(string(f.Value), `"`)
			}
		}
		served = append(served, line)
	}
	sameRows(t, "served values", served, current)
}

// sqlOfCurrent makes the view history, and gives the statement that reads what should be served.
func sqlOfCurrent(t *testing.T, r *reader) string {
	t.Helper()
	reading, err := r.Read(t.Context(), r.project.Stream("score"))
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.HistoryView(t.Context(), r.db, "history", nil); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("SELECT id || ' ' || number || ' ' || plan FROM history WHERE %s ORDER BY id", feature.ColIsCurrent)
}
