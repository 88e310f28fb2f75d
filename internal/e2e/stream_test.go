package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// streamEvents is how many events the tests on a real broker take: a million in CI.
func streamEvents() int {
	if os.Getenv("LOAM_CI") == "1" {
		return 1_000_000
	}
	return 100_000
}

// streamProject makes a project of its own name over topics of its own, on the real broker and Redis.
func streamProject(t *testing.T, name, topics, kafka, store string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	run(t, ".", "init", dir)
	text, err := os.ReadFile(filepath.Join(dir, "loam.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "loam.yaml"), string(text)+fmt.Sprintf("broker: {seeds: [%q]}\nonline: {redis: %q}\n", kafka, store))
	for _, s := range []string{"contact", "opportunity", "engagement"} {
		write(t, filepath.Join(dir, "streams", s+".yaml"), fmt.Sprintf("stream: %s\nextend: true\ntopic: %s.%s\n", s, s, topics))
	}
	return dir
}

// committed is how many events the project's logs hold.
func committed(t *testing.T, dir string) int64 {
	t.Helper()
	status := runJSON[struct {
		Streams []struct{ Counts counts }
	}](t, dir, "status")
	var n int64
	for _, s := range status.Streams {
		n += s.Counts.Read
	}
	return n
}

// online is what Redis holds of the view that is read, entity by entity.
func onlineValues(t *testing.T, address, project, view string) []string {
	t.Helper()
	ctx := t.Context()
	c := redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
	defer c.Close()
	current, err := c.HGet(ctx, project+":"+view+":generations", "current").Result()
	if err != nil {
		t.Fatalf("the generations of %s: %v", view, err)
	}
	prefix := project + ":" + view + ":" + current + ":"
	var all []string
	iterator := c.Scan(ctx, 0, prefix+"*", 5000).Iterator()
	var keys []string
	flush := func() {
		replies := make([]*redis.MapStringStringCmd, len(keys))
		if _, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, k := range keys {
				replies[i] = p.HGetAll(ctx, k)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for i, r := range replies {
			text, err := json.Marshal(r.Val())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, strings.TrimPrefix(keys[i], prefix)+" "+string(text))
		}
		keys = keys[:0]
	}
	for iterator.Next(ctx) {
		if keys = append(keys, iterator.Val()); len(keys) == 1000 {
			flush()
		}
	}
	if err := iterator.Err(); err != nil {
		t.Fatal(err)
	}
	flush()
	slices.Sort(all)
	return slices.Compact(all)
}

// A worker that is killed three times on the way leaves the log, the history and the online values of one that isn't.
func TestKilledWorker(t *testing.T) {
	kafka, store := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	topics := fmt.Sprintf("t%d", time.Now().UnixNano())
	calm := streamProject(t, "calm_"+topics, topics, kafka, store)
	killed := streamProject(t, "killed_"+topics, topics, kafka, store)
	made := runJSON[struct{ Events int64 }](t, calm, "simulate", "--topics", "--contacts", "50000", "--days", "60",
		"--events", fmt.Sprint(streamEvents()), "--deletes", "0.001", "--malformed", "0.001")

	begun := time.Now()
	took := runJSON[taken](t, calm, "run", "--until-end")
	addUp(t, took)
	if took.Total.Read != made.Events {
		t.Errorf("%d events read, %d were made", took.Total.Read, made.Events)
	}
	t.Logf("%d events in %s: %.0f events/s to log, history and Redis", made.Events, time.Since(begun).Round(time.Millisecond),
		float64(made.Events)/time.Since(begun).Seconds())

	for i := range int64(3) {
		killAt(t, killed, made.Events*(i+1)/5)
	}
	run(t, killed, "run", "--until-end")
	if n := committed(t, killed); n != made.Events {
		t.Errorf("%d events taken with kills, %d were made", n, made.Events)
	}
	for _, dir := range []string{calm, killed} {
		verifyClean(t, dir)
	}
	// Live events are ingested when they are read, which differs.
	without := append(slices.Clone(recordedColumns), "ingested_at")
	for _, s := range []string{"contact", "opportunity", "engagement"} {
		sameRows(t, s+" log", logRows(t, killed, s, without...), logRows(t, calm, s, without...))
	}
	for _, s := range []string{"contact", "opportunity"} {
		sameRows(t, s+" history", historyRows(t, killed, s, without...), historyRows(t, calm, s, without...))
	}
	got, want := onlineValues(t, store, "killed_"+topics, "profile"), onlineValues(t, store, "calm_"+topics, "profile")
	sameRows(t, "profile in Redis", got, want)
	if len(want) == 0 {
		t.Error("Redis has nothing of the view")
	}
}

// killAt starts a worker and kills it once so many events are committed.
func killAt(t *testing.T, dir string, events int64) {
	t.Helper()
	worker := command(t, dir, "run", "--commit-every", "500ms", "--commit-rows", "20000")
	var errs bytes.Buffer
	worker.Stderr = &errs
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- worker.Wait() }()
	deadline := time.Now().Add(commandMax)
	for ticker := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case err := <-ended:
			t.Fatalf("the worker ended by itself: %v\n%s", err, errs.String())
		case <-ticker.C:
		}
		if committed(t, dir) >= events {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the worker took less than %d events in %s\n%s", events, commandMax, errs.String())
		}
	}
	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

// SIGTERM makes a worker commit what it has read and end well; the next one goes on from there.
func TestTerminatedWorker(t *testing.T) {
	kafka, store := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	topics := fmt.Sprintf("s%d", time.Now().UnixNano())
	dir := streamProject(t, "term_"+topics, topics, kafka, store)
	made := runJSON[struct{ Events int64 }](t, dir, "simulate", "--topics", "--contacts", "500", "--days", "60", "--events", "20000")
	worker := command(t, dir, "run", "--commit-every", "1h", "--commit-rows", "100000")
	var errs bytes.Buffer
	taking := make(chan struct{})
	worker.Stderr = &watcher{to: &errs, want: "taking ", seen: taking}
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-taking: // it commits nothing by itself within the hour
	case <-time.After(time.Minute):
		t.Fatalf("the worker said only\n%s", errs.String())
	}
	if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := worker.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	run(t, dir, "run", "--until-end")
	if n := committed(t, dir); n != made.Events {
		t.Errorf("%d events taken, %d were made", n, made.Events)
	}
	verifyClean(t, dir)
}

// watcher keeps what is written and tells when a text has come.
type watcher struct {
	to   *bytes.Buffer
	want string
	seen chan struct{}
	told bool
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if !w.told && strings.Contains(w.to.String(), w.want) {
		w.told = true
		close(w.seen)
	}
	return n, err
}

// A broker or a Redis that isn't there is one clear error, and nothing is taken.
func TestServicesThatAreAway(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.jsonl")
	write(t, file, change(10, "lead")+"\n")
	for _, c := range []struct {
		yaml, want string
		args       []string
	}{
		{`broker: {seeds: ["127.0.0.1:1"]}`, `^loam: no broker answers at \[127\.0\.0\.1:1\]`, []string{"run", "--until-end"}},
		{`online: {redis: "127.0.0.1:1"}`, `^loam: open Redis at 127\.0\.0\.1:1: .*mend online\.redis`, []string{"run", "--until-end"}},
		{`online: {redis: "127.0.0.1:1"}`, `open Redis at 127\.0\.0\.1:1: .*--no-online`, []string{"backfill", file}},
		{`online: {redis: "127.0.0.1:1"}`, `^loam: open Redis at 127\.0\.0\.1:1`, []string{"get", "--features", "profile:*", "--entity", "contact_id=c"}},
	} {
		dir := newProject(t, c.yaml)
		if err := os.MkdirAll(filepath.Join(dir, ".loam/topics/contact.v1"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, errs, code := runErr(t, dir, c.args...)
		last := strings.TrimSpace(errs[strings.LastIndexByte(strings.TrimSpace(errs), '\n')+1:])
		if code != 1 || !regexp.MustCompile(c.want).MatchString(last) {
			t.Errorf("loam %s: code %d, %q, want %q", strings.Join(c.args, " "), code, errs, c.want)
		}
		if n := committed(t, dir); n != 0 {
			t.Errorf("loam %s: %d events were taken", strings.Join(c.args, " "), n)
		}
	}
}

// A Redis that restarts empty under a worker is filled again.
func TestRedisRestartsEmpty(t *testing.T) {
	kafka := service(t, "LOAM_TEST_KAFKA")
	service(t, "LOAM_TEST_REDIS")
	const port = "36379"
	address := "127.0.0.1:" + port
	script, err := filepath.Abs(filepath.Join(root, "scripts/services/redis.sh"))
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	redisScript := func(verb string) {
		t.Helper()
		c := exec.CommandContext(context.WithoutCancel(t.Context()), "bash", script, verb)
		c.Env = append(os.Environ(), "REDIS_PORT="+port, "REDIS_DATA="+data)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("redis.sh %s: %v\n%s", verb, err, out)
		}
	}
	redisScript("start")
	redisScript("wait")
	t.Cleanup(func() { redisScript("stop") })
	topics := fmt.Sprintf("r%d", time.Now().UnixNano())
	name := "empty_" + topics
	dir := streamProject(t, name, topics, kafka, address)
	run(t, dir, "simulate", "--topics", "--contacts", "2000", "--days", "60", "--events", "50000")
	worker := command(t, dir, "run", "--commit-every", "200ms")
	var errs bytes.Buffer
	served, again := make(chan struct{}), make(chan struct{})
	worker.Stderr = &watcher{to: &errs, want: "feature view profile is served", seen: served}
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(2 * time.Minute):
			_ = worker.Process.Kill()
			t.Fatalf("%s: the worker said only\n%s", what, errs.String())
		}
	}
	wait("built", served)
	redisScript("stop")
	redisScript("start")
	redisScript("wait")
	go func() {
		defer close(again)
		c := redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true})
		defer c.Close()
		for ticker := time.NewTicker(50 * time.Millisecond); ; <-ticker.C {
			if c.HExists(context.Background(), name+":profile:generations", "current").Val() || t.Context().Err() != nil {
				return
			}
		}
	}()
	wait("built again", again)
	if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := worker.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	run(t, dir, "run", "--until-end")
	got := onlineValues(t, address, name, "profile")
	run(t, dir, "materialize", "--view", "profile")
	sameRows(t, "profile after a restart of Redis", got, onlineValues(t, address, name, "profile"))
	if len(got) == 0 {
		t.Error("Redis has nothing of the view")
	}
}
