package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
	"github.com/loamdata/loam/verify"
)

const patchedStream = `stream: score
kind: state
format: row
payload: patch
key: [id]
event_time: at
sequence: n
id: event
delete_when: gone
track: [churn, segment]
columns: [{name: id, type: string}, {name: churn, type: double}, {name: segment, type: string}, {name: gone, type: bool}]
`

const patchedViews = `entities: [{name: scored, join_keys: [id]}]
views:
  - name: scores
    entity: scored
    stream: score
    features: [churn, segment, {name: high, type: bool, sql: "churn > 10"}, {name: told, type: bool, sql: "segment IS NOT NULL"}]
  - {name: fresh, entity: scored, stream: score, ttl: 1h, features: [churn, segment, id]}
`

// patchesMade makes random patches of few entities. What they say happened before now, long ago or lately, and not so that
// it would pass the time to live of an hour while the test runs.
type patchesMade struct {
	random *rand.Rand
	now    time.Time
	made   int
}

func (p *patchesMade) lines(n int) string {
	var b strings.Builder
	for range n {
		age := 10 + p.random.IntN(1800)
		if p.random.IntN(3) == 0 {
			age += 4800
		}
		p.made++
		row := map[string]any{
			"event": fmt.Sprint("e", p.made), "id": fmt.Sprint("s", p.random.IntN(60)), "at": p.now.Add(-time.Duration(age) * time.Second).Format(time.RFC3339),
		}
		if p.random.IntN(2) == 0 {
			row["n"] = p.random.IntN(3)
		}
		if p.random.IntN(8) == 0 {
			row["gone"] = true
		} else {
			switch p.random.IntN(5) {
			case 0, 1:
				row["churn"] = float64(p.random.IntN(20)) + 0.5
			case 2:
				row["churn"] = nil
			}
			switch p.random.IntN(5) {
			case 0, 1:
				row["segment"] = string(rune('a' + p.random.IntN(5)))
			case 2:
				row["segment"] = nil
			}
		}
		text, err := json.Marshal(row)
		if err != nil {
			panic(err)
		}
		b.Write(append(text, '\n'))
	}
	return b.String()
}

// Whatever comes when, late and by files between, and however often the worker is killed: what is served of patches is what
// a training set on the clock served has of now.
func TestPatchesOnlineAreThoseOfTrainingSets(t *testing.T) {
	redis := miniredis.RunT(t)
	dir := newProject(t, fmt.Sprintf("online: {redis: %q}", redis.Addr()))
	write(t, filepath.Join(dir, "streams", "score.yaml"), patchedStream)
	write(t, filepath.Join(dir, "features", "score.yaml"), patchedViews)
	chosen := *seed
	if chosen == 0 {
		chosen = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", chosen)
	p := &patchesMade{random: rand.New(rand.NewPCG(chosen, 9)), now: time.Now().UTC().Truncate(time.Second)}
	topic := filepath.Join(dir, ".loam", "topics", "score.v1")
	write(t, filepath.Join(topic, "0.jsonl"), p.lines(60))
	write(t, filepath.Join(topic, "1.jsonl"), p.lines(60))
	run(t, dir, "apply")
	more := func(partition string, n int) {
		t.Helper()
		file, err := os.OpenFile(filepath.Join(topic, partition+".jsonl"), os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = file.WriteString(p.lines(n))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		before := statusOf(t, dir)["score"].Accepted
		w := startWorker(t, dir, "--commit-every", "20ms")
		if round == 0 {
			w.awaitSaid("feature view scores is served")
			w.awaitSaid("feature view fresh is served")
		}
		more("0", 20)
		w.await("it had taken some", func() bool { return statusOf(t, dir)["score"].Accepted > before })
		more("1", 40)
		if p.random.IntN(2) == 0 { // else it is killed before it has, or on the way
			w.await("it had taken more", func() bool { return statusOf(t, dir)["score"].Accepted >= before+60 })
		}
		w.signal(syscall.SIGKILL)
		if round == 1 {
			file := filepath.Join(dir, "late.jsonl")
			write(t, file, p.lines(40))
			backfill(t, dir, "--stream", "score", file)
		}
	}
	run(t, dir, "run", "--until-end")
	if got := statusOf(t, dir)["score"]; got.Accepted != int64(p.made) {
		t.Fatalf("%+v of %d", got, p.made)
	}
	verifyClean(t, dir)

	// One label an entity, now.
	var ids []string
	for i := range 61 { // s60 is unknown
		ids = append(ids, fmt.Sprint("s", i))
	}
	labels := "id,event_timestamp\n"
	for _, id := range ids {
		labels += id + "," + time.Now().UTC().Format("2006-01-02T15:04:05.000000Z") + "\n"
	}
	write(t, filepath.Join(dir, "now.csv"), labels)
	out := filepath.Join(dir, "now.parquet")
	features := []string{"scores__churn", "scores__segment", "scores__high", "scores__told", "fresh__churn", "fresh__segment", "fresh__id"}
	run(t, dir, "dataset", "build", "--labels", filepath.Join(dir, "now.csv"), "--features", "scores:*,fresh:*", "--as-of", "served", "--out", out)
	r := openLake(t, dir)
	items := []sql.Fragment{"id"}
	for _, f := range features {
		items = append(items, "coalesce(to_json("+sql.Ident(f)+")::VARCHAR, 'null')")
	}
	trained := r.texts(t, sql.Render("SELECT concat_ws(' ', {items}) FROM read_parquet({path})", sql.Args{"items": sql.Join(", ", items), "path": sql.Literal(out)}))

	args := []string{"get", "--features", "scores:*,fresh:*"}
	for _, id := range ids {
		args = append(args, "--entity", "id="+id)
	}
	type read struct {
		Entity   map[string]string `json:"entity"`
		Features []struct {
			Value  json.RawMessage `json:"value"`
			Status string          `json:"status"`
		} `json:"features"`
	}
	statuses := map[string]int{}
	var served []string
	for _, e := range runJSON[[]read](t, dir, args...) {
		line := []string{e.Entity["id"]}
		for _, f := range e.Features {
			line = append(line, string(f.Value))
			statuses[f.Status]++
		}
		served = append(served, strings.Join(line, " "))
	}
	if !slices.Equal(served, trained) {
		sameRows(t, "served", served, trained)
	}
	t.Logf("%d patches, %v", p.made, statuses)
	if statuses["PRESENT"] == 0 || statuses["NULL_VALUE"] == 0 || statuses["NOT_FOUND"] == 0 {
		t.Errorf("statuses %v: the patches were not varied", statuses)
	}

	store, err := online.Open(t.Context(), r.project.Name, redis.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, view := range []string{"scores", "fresh"} {
		report, err := verify.Online(t.Context(), r.Lake, store, r.project, r.project.View(view), verify.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !report.OK() || report.Entities == 0 {
			t.Errorf("%s: %+v", view, report)
		}
	}
}
