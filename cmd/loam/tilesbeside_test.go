package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/verify"
)

// windowsProject is a project with a windowed view in a Redis.
type windowsProject struct {
	*scoreProject
	server *miniredis.Miniredis
	redis  string
	random *rand.Rand
	made   int
}

func newWindowsProject(t *testing.T, keyed bool) *windowsProject {
	server := miniredis.RunT(t)
	p := &windowsProject{scoreProject: &scoreProject{t, t.TempDir()}, server: server, redis: server.Addr(), random: rand.New(rand.NewPCG(8, 1))}
	p.write("loam.yaml", fmt.Sprintf("project: test\nonline: {redis: %q}\n", p.redis))
	p.write("streams/fact.yaml", strings.Replace(windowedStream, "cluster_by: who\n", fmt.Sprintf("cluster_by: who\nkeyed: %v\n", keyed), 1))
	p.write("features/w.yaml", `entities: [{name: who, join_keys: [who]}]
views:
  - name: w
    entity: who
    stream: fact
    aggregates:
      - {name: rows, fn: count, windows: [1h, 7d, 30d]}
      - {name: n, fn: sum, column: n, where: "n > 3", windows: [7d]}
      - {name: s, fn: distinct, column: s, windows: [30d]}
      - {name: ends, fn: last, column: s, windows: [30d]}
`)
	p.loam("apply")
	return p
}

// lines makes events; every seventh is refused, and every fifth comes twice.
func (p *windowsProject) lines(n int) string {
	var b strings.Builder
	for range n {
		p.made++
		value := fmt.Sprint(p.random.IntN(10))
		if p.made%7 == 0 {
			value = `"many"`
		}
		line := fmt.Sprintf(`{"id":"e%d","who":"%c","at":%q,"n":%s,"s":"s%d"}`+"\n", p.made, 'a'+rune(p.random.IntN(6)),
			time.Now().Add(-time.Duration(p.random.Int64N(int64(20*24*time.Hour)))).UTC().Format(time.RFC3339), value, p.random.IntN(9))
		b.WriteString(line)
		if p.made%5 == 0 {
			b.WriteString(line)
		}
	}
	return b.String()
}

// topic appends events to a partition.
func (p *windowsProject) topic(partition, n int) {
	p.t.Helper()
	p.append(partition, p.lines(n))
}

func (p *windowsProject) append(partition int, lines string) {
	p.t.Helper()
	path := filepath.Join(p.dir, ".loam", "topics", "fact.v1", fmt.Sprintf("%d.jsonl", partition))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, lines); err != nil {
		p.t.Fatal(err)
	}
}

// verified is what is compared of the view.
func (p *windowsProject) verified() *verify.OnlineReport {
	p.t.Helper()
	ctx := p.t.Context()
	project, l, err := p.app().open(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	store, err := online.Open(ctx, project.Name, p.redis)
	if err != nil {
		p.t.Fatal(err)
	}
	defer store.Close()
	r, err := verify.Online(ctx, l, store, project, project.View("w"), verify.Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *windowsProject) clean(after string) {
	p.t.Helper()
	if r := p.verified(); !r.OK() || r.Entities != 6 {
		p.t.Errorf("after %s: %+v", after, r)
	}
}

// What workers, backfills and redrives leave in Redis is what the log's events make; what a backfill has taken is not settled
// until its end, and one that was cut off is made up for by whoever comes next.
func TestWindowsOnlineBesideFiles(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		t.Run(fmt.Sprintf("keyed %v", keyed), func(t *testing.T) {
			p := newWindowsProject(t, keyed)
			p.topic(0, 40)
			p.topic(1, 40)
			p.loam("run", "--until-end")
			p.clean("a first run")
			for range 2 {
				p.topic(0, 30)
				p.topic(1, 10)
				p.loam("run", "--until-end")
			}
			p.clean("more runs")

			p.write("some.jsonl", p.lines(30))
			generation := p.verified().Generation
			p.loam("backfill", "--stream", "fact", filepath.Join(p.dir, "some.jsonl"))
			p.clean("a backfill")
			if now := p.verified().Generation; now != generation+1 {
				t.Errorf("generation %d follows %d", now, generation)
			}
			p.loam("backfill", "--stream", "fact", filepath.Join(p.dir, "some.jsonl"))
			if now := p.verified().Generation; now != generation+1 {
				t.Error("a file that was taken before has the view built anew")
			}

			p.repair(p.letters()...)
			p.clean("a redrive")
			p.topic(1, 20)
			p.loam("run", "--until-end")
			p.clean("a run after them")

			p.write("more.jsonl", p.lines(30))
			p.loam("backfill", "--no-online", "--stream", "fact", filepath.Join(p.dir, "more.jsonl"))
			if r := p.verified(); r.Total != 0 || r.NotSettled == 0 {
				t.Errorf("what a generation lacks of files: %+v", r)
			}
			p.loam("run", "--until-end")
			p.clean("a run after a backfill that told Redis nothing")
		})
	}
}

// letters are the positions of the topic's dead letters.
func (p *windowsProject) letters() []string {
	p.t.Helper()
	var all []string
	for _, l := range strings.Split(p.loam("dlq", "list", "--limit", "1000"), "\n") {
		for _, word := range strings.Fields(l) {
			if strings.HasPrefix(word, "fact.v1/") {
				all = append(all, word)
				break
			}
		}
	}
	return all
}

// repair takes dead letters again, repaired.
func (p *windowsProject) repair(letters ...string) {
	p.t.Helper()
	var b strings.Builder
	for _, at := range letters {
		fmt.Fprintf(&b, `{"position": %q, "body": {"id":"repaired %s","who":"b","at":%q,"n":7,"s":"repaired"}}`+"\n",
			at, at, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	}
	if b.Len() == 0 {
		p.t.Fatal("there are no dead letters")
	}
	p.write("repaired.jsonl", b.String())
	p.loam("dlq", "redrive", "--with", filepath.Join(p.dir, "repaired.jsonl"))
}

// owing are the views that lack rows of files or redrives.
func (p *windowsProject) owing() []string {
	p.t.Helper()
	ctx := p.t.Context()
	project, l, err := p.app().open(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	store, err := online.Open(ctx, project.Name, p.redis)
	if err != nil {
		p.t.Fatal(err)
	}
	defer store.Close()
	live, err := online.NewLive(ctx, store, l, project)
	if err != nil {
		p.t.Fatal(err)
	}
	defer live.Close()
	owing, err := live.Owing(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return owing
}
