package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
)

// deadTopic is the topic of a project's dead letters.
const deadTopic = "dead.PROJECT"

// crashes are what the test of crashes works with.
type crashes struct {
	binary       string // built with the steps at which it can be ended
	kafka, redis string
	through      *stream // took the topics without a crash
	mu           sync.Mutex
	reached      map[step.Step]int // how often a process was ended there
}

// newCrashes builds the binary and starts what it needs: real services where there are any, else such as run in this process.
func newCrashes(t *testing.T) *crashes {
	t.Helper()
	c := &crashes{kafka: os.Getenv("LOAM_TEST_KAFKA"), redis: os.Getenv("LOAM_TEST_REDIS"), reached: map[step.Step]int{}}
	if os.Getenv("LOAM_CI") == "1" {
		c.kafka, c.redis = service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	}
	if _, err := exec.LookPath("go"); err != nil && os.Getenv("LOAM_CI") != "1" {
		t.Skip("no go on PATH, which the binary that crashes is built by")
	}
	c.binary = filepath.Join(t.TempDir(), "loam-crash")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-tags=duckdb_arrow,loamcrash", "-o", c.binary, "./cmd/loam")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build loam with steps: %v\n%s", err, out)
	}
	if c.kafka == "" {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		c.kafka = cluster.ListenAddrs()[0]
	}
	if c.redis == "" {
		c.redis = miniredis.RunT(t).Addr()
	}
	return c
}

// project makes a project that reads the topics, or makes them where it is the first.
func (c *crashes) project(t *testing.T) *stream {
	t.Helper()
	topic := ""
	if c.through != nil {
		topic = c.through.topic
	}
	s := newStreamOf(t, c.kafka, c.redis, topic, "dead_letter_topic: "+deadTopic)
	if _, err := s.kafka.CreateTopic(t.Context(), 1, 1, nil, s.deadTopic()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := s.kafka.DeleteTopic(ctx, s.deadTopic()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *stream) deadTopic() string { return strings.ReplaceAll(deadTopic, "PROJECT", s.name) }

// taking are the arguments of a run with many commits, ending those of one that takes what is left.
var (
	taking = []string{"run", "--until-end", "--commit-rows", "250", "--commit-every", "100ms"}
	ending = []string{"run", "--until-end"}
)

// crash runs a command that is killed at a step once it has passed that so many times before. Where it has not much left to do it may
// come to its end before, but for a step that it has to pass no time.
func (c *crashes) crash(t *testing.T, dir string, at step.Step, passed int, args ...string) {
	t.Helper()
	cmd := command(t, dir, args...)
	cmd.Path = c.binary
	cmd.Env = append(os.Environ(), fmt.Sprintf("LOAM_CRASH=%s:%d", at, passed))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if err == nil && passed > 0 {
		return
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("loam %s was not ended at step %s after %d passes, it ended with %v:\n%s", strings.Join(args, " "), at, passed, err, said.String())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached[at]++
}

// letters are the dead letters that a project has kept, and how many there are.
func (s *stream) letters() []string {
	s.t.Helper()
	letters, err := s.lake.OpenDeadLetters(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var all []string
	err = letters.Each(s.t.Context(), s.lake.db, "true", lake.ByPosition, -1, func(l feature.DeadLetter) error {
		outcome := ""
		if l.Redriven != nil {
			outcome = string(l.Redriven.Outcome) + " by " + l.Redriven.Stream
		}
		all = append(all, fmt.Sprintf("%s %s %s %q %s", l.Position, l.Stream, l.Reason, l.Body, outcome))
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// lettersProduced are the positions of the dead letters on a project's topic, each once: a letter may come there twice.
func (s *stream) lettersProduced() []string {
	s.t.Helper()
	ends, err := s.kafka.ListEndOffsets(s.t.Context(), s.deadTopic())
	if err != nil {
		s.t.Fatal(err)
	}
	end, _ := ends.Lookup(s.deadTopic(), 0)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.seed), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.deadTopic(): {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	positions := map[string]bool{}
	for read := int64(0); read < end.Offset; {
		fetches := client.PollFetches(s.t.Context())
		if err := fetches.Err(); err != nil {
			s.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			read = r.Offset + 1
			at := map[string]string{}
			for _, h := range r.Headers {
				at[h.Key] = string(h.Value)
			}
			positions[at["loam-topic"]+"/"+at["loam-partition"]+"@"+at["loam-offset"]] = true
		})
	}
	return slices.Sorted(maps.Keys(positions))
}

// kept is what a project has in log, history, dead letters, counts and Redis. Which job read what and when is left out.
type kept struct {
	rows   map[string][]string
	counts map[string]counts
	served map[string]map[string]string
}

func (s *stream) kept(t *testing.T) kept {
	t.Helper()
	s.t = t
	all := kept{rows: map[string][]string{"dead letters": s.letters()}, counts: s.status(), served: map[string]map[string]string{}}
	without := append(slices.Clone(recordedColumns), feature.ColIngestedAt)
	for _, name := range streamNames {
		all.rows[name+" log"] = s.lake.logRows(t, name, without...)
		if s.lake.project.Stream(name).Kind == feature.StateStream {
			all.rows[name+" history"] = s.lake.historyRows(t, name, without...)
		}
	}
	for _, view := range streamViews {
		all.served[view] = s.served(view)
	}
	return all
}

// same fails the test unless a project has what another one has.
func (s *stream) same(t *testing.T, want kept) {
	t.Helper()
	got := s.kept(t)
	for what, rows := range want.rows {
		sameRows(t, what, got.rows[what], rows)
	}
	if !maps.Equal(got.counts, want.counts) {
		t.Errorf("counts are %v, want %v", got.counts, want.counts)
	}
	for stream, c := range got.counts {
		if c.Read != c.Accepted+c.Refused+c.Duplicate {
			t.Errorf("the counts of %s don't add up: %+v", stream, c)
		}
	}
	for view, hashes := range want.served {
		sameServed(t, view, got.served[view], hashes)
	}
}

// redeliver produces the first records of each partition of contacts again, far behind the first time.
func (s *stream) redeliver(most int) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.seed), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ConsumeTopics(s.topicOf("contact")), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	var again []*kgo.Record
	for left := s.endOf("contact"); left > 0; {
		fetches := client.PollFetches(s.t.Context())
		if err := fetches.Err(); err != nil {
			s.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if left--; r.Offset < int64(most) {
				again = append(again, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers})
			}
		})
	}
	if err := client.ProduceSync(s.t.Context(), again...).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
}

// A process that is killed at any of its steps, and again after it has been started anew, leaves what one that ran through leaves,
// in the log, the history, the dead letters and their topic, the counts and Redis.
func TestCrashAtEveryStep(t *testing.T) {
	c := newCrashes(t)
	c.through = c.project(t)
	simulate := func(seed string) {
		run(t, c.through.dir, "simulate", "--topics", "--partitions", "3", "--days", "30", "--seed", seed, "--events", "4000",
			"--contacts", "300", "--duplicates", "0.02", "--late", "0.02", "--malformed", "0.01")
	}
	simulate("1")
	// Those whose views are served before what they are ended at, as of a worker that has run for long.
	served := map[string]*stream{}
	for _, at := range []step.Step{step.OnlineBegun, step.OnlineWritten, step.OnlineMarked, step.OnlineCaughtUp} {
		served[string(at)] = c.project(t)
		run(t, served[string(at)].dir, ending...)
	}
	simulate("2")
	c.through.redeliver(500)
	run(t, c.through.dir, ending...)
	c.through.whole()
	if letters := c.through.letters(); len(letters) == 0 {
		t.Fatal("there are no dead letters")
	} else if produced := c.through.lettersProduced(); len(produced) != len(letters) {
		t.Fatalf("%d dead letters are on their topic, want %d", len(produced), len(letters))
	}
	want, produced := c.through.kept(t), c.through.lettersProduced()
	t.Run("worker", func(t *testing.T) {
		for _, at := range []struct {
			step   step.Step
			passed []int
		}{
			{step.Polled, []int{0, 2, 5}}, {step.Decoded, []int{0, 1, 4}}, {step.Routed, []int{0, 1, 4}},
			{step.LettersProduced, []int{0, 1, 3}}, {step.LettersWritten, []int{0, 1, 3}}, {step.LettersCommitted, []int{0, 1, 3}},
			{step.LogWritten, []int{0, 1, 5}}, {step.LogStaged, []int{0, 1, 3}}, {step.LogCommitted, []int{0, 1, 5}},
			{step.CatalogMoved, []int{0, 1, 2, 3, 9}},
			{step.HistoryPlanned, []int{0, 1, 4}}, {step.HistoryWritten, []int{0, 1, 4}}, {step.HistoryStaged, []int{0, 1, 4}},
			{step.HistoryCommitted, []int{0, 1, 4}},
			{step.OnlineBegun, []int{0, 1, 3}}, {step.OnlineWritten, []int{0, 1, 3}}, {step.OnlineMarked, []int{0, 1, 3}}, {step.OnlineCaughtUp, []int{0, 1}},
			{step.GenerationEntered, []int{0, 1, 0}}, {step.GenerationPart, []int{0, 0}}, {step.GenerationFilled, []int{0, 1, 0}}, {step.GenerationCompleted, []int{0, 1, 0}},
			{step.GenerationSwitched, []int{0, 0}}, {step.GenerationAlone, []int{0, 0}},
		} {
			t.Run(string(at.step), func(t *testing.T) {
				t.Parallel()
				s := served[string(at.step)]
				if s == nil {
					s = c.project(t)
				}
				if at.step == step.OnlineCaughtUp { // the lake is ahead of what is served
					online := regexp.MustCompile(`(?m)^online: .*$`)
					var line string
					s.edit(func(text string) string { line = online.FindString(text); return online.ReplaceAllString(text, "") })
					run(t, s.dir, ending...)
					s.edit(func(text string) string { return text + line + "\n" })
				}
				for _, passed := range at.passed {
					c.crash(t, s.dir, at.step, passed, taking...)
				}
				run(t, s.dir, ending...)
				s.same(t, want)
				if got := s.lettersProduced(); !slices.Equal(got, produced) {
					t.Errorf("dead letters on their topic: %v, want %v", got, produced)
				}
			})
		}
	})
	// What is done to a project that has taken everything: ended at a step, and then again from the start.
	again := func(t *testing.T, s *stream, at step.Step, passed int, args ...string) {
		t.Run(string(at), func(t *testing.T) {
			c.crash(t, s.dir, at, passed, args...)
			run(t, s.dir, args...)
			run(t, s.dir, ending...)
		})
	}
	t.Run("commands", func(t *testing.T) {
		t.Run("maintain", func(t *testing.T) {
			t.Parallel()
			s := c.project(t)
			c.crash(t, s.dir, step.Polled, 1000, append(slices.Clone(taking), "--maintain", "0")...) // by the binary that makes many files
			for _, at := range []step.Step{step.CompactPlanned, step.CompactWritten, step.CompactCommitted, step.ManifestsMerged, step.Expired} {
				t.Run(string(at), func(t *testing.T) {
					c.crash(t, s.dir, at, 0, "maintain")
					s.same(t, want) // it changes no rows
				})
			}
			run(t, s.dir, "maintain")
			s.same(t, want)
			if out := run(t, s.dir, "maintain"); strings.Count(out, "nothing to compact") != len(streamNames) {
				t.Errorf("maintain was not ended: %s", out)
			}
		})
		t.Run("materialize", func(t *testing.T) {
			t.Parallel()
			s := c.project(t)
			run(t, s.dir, ending...)
			for _, at := range []step.Step{step.GenerationEntered, step.GenerationPart, step.GenerationFilled, step.GenerationCompleted, step.GenerationSwitched, step.GenerationAlone} {
				again(t, s, at, 1, "materialize")
				s.same(t, want)
			}
		})
		t.Run("rebuild and rewind", func(t *testing.T) {
			t.Parallel()
			s := c.project(t)
			run(t, s.dir, ending...)
			for _, at := range []step.Step{step.RebuildDerived, step.RebuildHeld, step.RebuildCommitted} {
				again(t, s, at, 0, "rebuild", "contact")
				s.same(t, want)
			}
			for i, at := range []step.Step{step.RewindLog, step.RewindLetters, step.RewindHistory, step.RewindViews} {
				to := fmt.Sprintf("%s/%d@%d", s.topicOf("contact"), i%3, 100+100*i)
				again(t, s, at, 0, "rewind", "contact", "--to", to, "--yes")
				s.same(t, want)
			}
		})
		t.Run("redrive", func(t *testing.T) {
			t.Parallel()
			s, mended := c.project(t), c.project(t)
			run(t, s.dir, ending...)
			run(t, mended.dir, ending...)
			var all []string
			for _, l := range runJSON[struct{ Letters []struct{ Position string } }](t, s.dir, "dlq", "list", "--stream", "contact", "--limit", "1000").Letters {
				repaired, err := json.Marshal(map[string]any{"position": l.Position, "body": json.RawMessage(change(len(all)%60, "lead"))})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, strings.ReplaceAll(string(repaired), "0000-4000", fmt.Sprintf("%04d-4000", len(all))))
			}
			steps := []step.Step{step.RedriveCommitted, step.RedriveOnline, step.RedriveMarked}
			if len(all) < len(steps) {
				t.Fatalf("there are %d dead letters", len(all))
			}
			file := filepath.Join(t.TempDir(), "repaired.jsonl")
			write(t, file, strings.Join(all, "\n"))
			for i, at := range steps {
				some := filepath.Join(t.TempDir(), "repaired.jsonl")
				write(t, some, strings.Join(all[i*len(all)/len(steps):(i+1)*len(all)/len(steps)], "\n"))
				again(t, s, at, 0, "dlq", "redrive", "--with", some)
			}
			run(t, mended.dir, "dlq", "redrive", "--with", file)
			s.same(t, mended.kept(t))
			if took := s.status()["contact"]; took.Accepted <= want.counts["contact"].Accepted {
				t.Errorf("nothing was taken again: %+v", took)
			}
		})
		t.Run("offsets alone", func(t *testing.T) {
			t.Parallel()
			first := &crashes{binary: c.binary, kafka: c.kafka, redis: c.redis}
			s := first.project(t)
			first.through = s
			other := first.project(t)
			s.simulate(4, 1000)
			run(t, s.dir, ending...)
			producer, err := kgo.NewClient(kgo.SeedBrokers(s.seed), kgo.DefaultProduceTopic(s.topicOf("contact")))
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			for range 2 {
				if err := producer.ProduceSync(t.Context(), kgo.StringRecord("no event"), kgo.StringRecord("none either")).FirstErr(); err != nil {
					t.Fatal(err)
				}
				c.crash(t, s.dir, step.OffsetsCommitted, 0, taking...)
			}
			run(t, s.dir, ending...)
			run(t, other.dir, ending...)
			s.same(t, other.kept(t))
		})
		t.Run("backfill", func(t *testing.T) {
			t.Parallel()
			events := t.TempDir()
			run(t, ".", "simulate", "--contacts", "200", "--days", "30", "--events", "4000", "--seed", "3", "--malformed", "0.01", "--out", events)
			file := filepath.Join(events, "events.jsonl")
			filed := c.project(t)
			run(t, filed.dir, "materialize")
			run(t, filed.dir, "backfill", file)
			taken := filed.kept(t)
			for _, at := range []step.Step{step.LettersCommitted, step.LogCommitted, step.HistoryWritten, step.BackfillCommitted, step.OnlineWritten} {
				s := c.project(t)
				run(t, s.dir, "materialize")
				t.Run(string(at), func(t *testing.T) {
					c.crash(t, s.dir, at, 0, "backfill", file)
					run(t, s.dir, "backfill", file)
					s.same(t, taken)
				})
			}
		})
	})
	for _, at := range step.All {
		if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
			break // only some were asked for
		}
		if c.reached[at] == 0 {
			t.Errorf("no process was ended at step %s", at)
		}
	}
	t.Logf("%d steps, each of which a process was ended at: %v", len(c.reached), c.reached)
}
