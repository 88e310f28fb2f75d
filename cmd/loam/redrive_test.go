package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// scoreProject is a project with a stream of scores whose numbers have so many digits, and a view of them.
type scoreProject struct {
	t   *testing.T
	dir string
}

func newScoreProject(t *testing.T, digits int, more string) *scoreProject {
	t.Helper()
	p := &scoreProject{t, t.TempDir()}
	for name, text := range map[string]string{
		feature.ProjectFile: "project: scores\n" + more,
		"features/score.yaml": "entities: [{name: thing, join_keys: [id]}]\n" +
			"views: [{name: scores, entity: thing, stream: score, features: [{name: n, type: double, sql: n}]}]\n",
	} {
		p.write(name, text)
	}
	p.declare(digits)
	return p
}

func (p *scoreProject) write(name, text string) {
	p.t.Helper()
	writeFile(p.t, filepath.Join(p.dir, name), text)
}

func (p *scoreProject) declare(digits int) {
	p.t.Helper()
	p.write("streams/score.yaml", fmt.Sprintf("stream: score\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ncolumns: [{name: id, type: string}, {name: n, type: 'decimal(%d,1)'}]\n", digits))
}

func (p *scoreProject) app() *app {
	return &app{dir: p.dir, out: io.Discard, err: io.Discard, now: time.Now}
}

func (p *scoreProject) loam(args ...string) string {
	p.t.Helper()
	a := p.app()
	var text bytes.Buffer
	a.out = &text
	root := a.root()
	root.SetArgs(append(args, "-C", p.dir))
	if err := root.ExecuteContext(p.t.Context()); err != nil {
		p.t.Fatalf("loam %s: %v\n%s", strings.Join(args, " "), err, &text)
	}
	return text.String()
}

// scores are lines of a topic of which those with a number beyond 99 are too wide for three digits. Times go back and forth, and
// events come twice.
func scores(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		n := i % 7 * 30
		at := time.Date(2026, 1, 1, 0, (i*37)%500, 0, 0, time.UTC)
		if i%11 == 10 { // the event before, again
			n, at = (i-1)%7*30, time.Date(2026, 1, 1, 0, ((i-1)*37)%500, 0, 0, time.UTC)
			fmt.Fprintf(&b, `{"id": "k%d", "n": %d, "at": %q}`+"\n", (i-1)%5, n, at.Format(time.RFC3339))
			continue
		}
		fmt.Fprintf(&b, `{"id": "k%d", "n": %d, "at": %q}`+"\n", i%5, n, at.Format(time.RFC3339))
	}
	return b.String()
}

// state is all that log and history say, but for when and by whom it was taken; and what is served where there is a store.
func (p *scoreProject) state(online bool) string {
	p.t.Helper()
	ctx := p.t.Context()
	project, l, err := p.app().open(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	var all strings.Builder
	for _, table := range []string{"score_log", "score_history"} {
		tbl, err := l.OpenTable(ctx, table)
		if err != nil {
			p.t.Fatal(err)
		}
		relation, err := tbl.Scan(ctx, lake.ScanOptions{})
		if err != nil {
			p.t.Fatal(err)
		}
		if err := db.LakeView(ctx, table, relation, false); err != nil {
			p.t.Fatal(err)
		}
		columns := `id, n::DECIMAL(9,1), topic, "partition", "offset", event_id, op, event_time`
		if table == "score_history" {
			columns = `id, n::DECIMAL(9,1), topic, "partition", "offset", event_id, valid_from, coalesce(valid_to::VARCHAR, 'open')`
		}
		var text string
		if err := db.QueryRow(ctx, "SELECT coalesce(string_agg(line, chr(10) ORDER BY line), '') FROM (SELECT concat_ws(' ', "+columns+") AS line FROM "+table+")", nil, &text); err != nil {
			p.t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s\n%s\n", table, text)
	}
	if online {
		for _, key := range []string{"k0", "k1", "k2", "k3", "k4"} {
			fmt.Fprintf(&all, "%s %s\n", key, p.loam("get", "--features", "scores:n", "--entity", "id="+key))
		}
	}
	_ = project
	return all.String()
}

// counts are those that status tells of the stream.
func (p *scoreProject) counts() feature.Counts {
	p.t.Helper()
	_, l, err := p.app().open(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	project, err := p.app().load(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	all, err := statusOf(p.t.Context(), l, []*feature.Stream{project.Stream("score")})
	if err != nil {
		p.t.Fatal(err)
	}
	one := all.Streams[0]
	var waiting int64
	for _, n := range one.Refused {
		waiting += n
	}
	if waiting != one.Counts.Refused {
		p.t.Errorf("%d refused, for %s", one.Counts.Refused, one.Refused)
	}
	if c := one.Counts; c.Read != c.Accepted+c.Refused+c.Duplicate || len(one.Partitions) > 0 && one.Partitions[0].Counts != c {
		p.t.Errorf("%+v, %+v", c, one.Partitions)
	}
	one.Counts.Late = 0 // of what was accepted when it was read first
	return one.Counts
}

// neverRefused is a project that has taken the lines by the wide definition alone.
func neverRefused(t *testing.T, lines string) *scoreProject {
	t.Helper()
	p := newScoreProject(t, 9, "")
	p.write(".loam/topics/score.v1/0.jsonl", lines)
	p.loam("apply")
	p.loam("run", "--until-end")
	return p
}

// A redrive that ends at any of its steps, as a process that is killed does, is ended by the next: what it took is there once, in
// log, history, Redis and counts, as if it had never been refused.
func TestRedriveCrash(t *testing.T) {
	t.Parallel()
	lines := scores(0, 40)
	oracle := neverRefused(t, lines)
	want, counted := oracle.state(true), oracle.counts()
	for _, at := range []string{"committed", "online", "marked", ""} {
		t.Run(at, func(t *testing.T) {
			redis := miniredis.RunT(t)
			p := newScoreProject(t, 3, "online: {redis: "+redis.Addr()+"}\n")
			p.write(".loam/topics/score.v1/0.jsonl", lines)
			p.loam("apply")
			p.loam("run", "--until-end")
			if c := p.counts(); c.Refused == 0 || c.Duplicate == 0 {
				t.Fatalf("%+v", c)
			}
			p.declare(9)
			p.loam("apply")
			p.loam("materialize")
			crash := errors.New("crash")
			r, done, err := p.app().openRedrive(t.Context(), redriveOptions{by: "me"})
			if err != nil {
				t.Fatal(err)
			}
			r.after = func(step string) error {
				if step == at {
					return crash
				}
				return nil
			}
			err = r.run(t.Context(), redriveOptions{}, time.Now)
			done()
			if at != "" && !errors.Is(err, crash) || at == "" && err != nil {
				t.Fatal(err)
			}
			p.counts() // hold between, too
			if at != "" {
				if text := p.loam("status"); !strings.Contains(text, "dead letters of score are being taken again, or that was cut off") {
					t.Errorf("status: %s", text)
				}
			}
			p.loam("dlq", "redrive")
			if got := p.state(true); got != want {
				t.Errorf("%s\nwant\n%s", got, want)
			}
			if got := p.counts(); got != counted {
				t.Errorf("%+v, want %+v", got, counted)
			}
			if text := p.loam("status"); strings.Contains(text, "cut off") {
				t.Errorf("status: %s", text)
			}
			p.loam("verify")
			if text := p.loam("dlq", "redrive"); !strings.Contains(text, "no dead letters to take again") {
				t.Errorf("again: %s", text)
			}
			p.loam("rebuild", "score")
			if got := p.state(true); got != want {
				t.Errorf("rebuilt: %s\nwant\n%s", got, want)
			}
			p.loam("verify")
		})
	}
}

// Several redrives at once, beside a worker that goes on taking the topic, take each letter once.
func TestRedriveBesideWorker(t *testing.T) {
	t.Parallel()
	p := newScoreProject(t, 3, "")
	topic := ".loam/topics/score.v1/0.jsonl"
	p.write(topic, scores(0, 60))
	p.loam("apply")
	p.loam("run", "--until-end")
	p.declare(9)
	p.loam("apply")
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		a := p.app()
		if err := a.run(ctx, workerOptions{commitEvery: 20 * time.Millisecond, commitRows: 1000, commitBytes: 1 << 20}, nil); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	var redrives sync.WaitGroup
	for range 3 {
		redrives.Go(func() {
			r, done, err := p.app().openRedrive(ctx, redriveOptions{by: "me"})
			if err != nil {
				t.Error(err)
				return
			}
			defer done()
			if err := r.run(ctx, redriveOptions{}, time.Now); err != nil {
				t.Errorf("redrive: %v", err)
			}
		})
	}
	file, err := os.OpenFile(filepath.Join(p.dir, topic), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for from := 60; from < 120; from += 5 {
		if _, err := file.WriteString(scores(from, from+5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // nothing is waited for: the worker and the redrives get in each other's way
	}
	redrives.Wait()
	stop()
	group.Wait()
	p.loam("run", "--until-end")
	p.loam("dlq", "redrive")
	oracle := neverRefused(t, scores(0, 120))
	want, got := oracle.counts(), p.counts()
	// Whether the first or the second of two occurrences is the accepted one depends on when the letter was taken again.
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	p.loam("verify")
	if text := p.loam("dlq", "list"); text != "no dead letters\n" {
		t.Errorf("left: %s", text)
	}
}

// Repaired records are read from what export wrote and DuckDB mended; a body of null is a tombstone, whose time is the record's.
func TestRepairsFromParquet(t *testing.T) {
	t.Parallel()
	p := newScoreProject(t, 9, "")
	p.write(".loam/topics/score.v1/0.jsonl", "what\nwhere\nwhen\n")
	p.loam("apply")
	p.loam("run", "--until-end")
	out, mended := filepath.Join(p.dir, "letters.parquet"), filepath.Join(p.dir, "mended.parquet")
	p.loam("dlq", "export", "--out", out)
	db, err := sql.Open(t.Context(), sql.Options{Files: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	mend := func(query string) {
		t.Helper()
		if err := db.Exec(t.Context(), fmt.Sprintf("COPY (%s) TO %s (FORMAT parquet)", strings.ReplaceAll(query, "letters", fmt.Sprintf("read_parquet(%s)", sql.Literal(out))), sql.Literal(mended))); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string]string{
		"SELECT position FROM letters":                        "has no column body of text or bytes",
		"SELECT position, 5 AS body FROM letters":             "has no column body of text or bytes",
		"SELECT position, body FROM letters WHERE false":      "holds no records",
		"SELECT NULL::VARCHAR AS position, body FROM letters": "row 1: position is missing",
		"SELECT 'x' AS position, body FROM letters":           `"x" is not a position`,
	} {
		mend(query)
		if _, err := readRepairs(mended); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
	}
	mend(`SELECT * REPLACE ('{"id": "' || decode(body) || '", "n": 1, "at": "2026-01-01T00:00:00Z"}' AS body) FROM letters WHERE "offset" < 2`)
	if text := p.loam("dlq", "redrive", "--with", mended); !strings.Contains(text, "score         2         2          0              0") {
		t.Errorf("%s", text)
	}
	if text := p.loam("history", "score", "where"); !strings.Contains(text, "1.0") {
		t.Errorf("%s", text)
	}
	// A tombstone needs a key and a time, which a line of a folder hasn't.
	p.write("deleted.jsonl", `{"position": "score.v1/0@2", "record_key": "what", "body": null}`)
	p.loam("dlq", "redrive", "--with", filepath.Join(p.dir, "deleted.jsonl"))
	if text := p.loam("dlq", "list"); !strings.Contains(text, "no_event_time") {
		t.Errorf("%s", text)
	}
	p.loam("verify")
}
