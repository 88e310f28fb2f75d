package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/feature"
)

// awaitMax bounds how long a test waits for a worker to come somewhere.
const awaitMax = 3 * time.Minute

// A stream is a project on a real broker, whose streams have topics of their own, and on a real Redis.
type stream struct {
	t     *testing.T
	dir   string
	name  string // of the project
	topic string // the end of its topics' names
	kafka *kadm.Client
	seed  string // the broker's address
	redis *redis.Client
	lake  *reader
}

var streamNames = []string{"contact", "engagement", "opportunity"}

// deals are a feature view without a time to live, besides those of `loam init`.
const deals = `entities: [{name: opportunity, join_keys: [opportunity_id]}]
views:
  - {name: deal, entity: opportunity, stream: opportunity, features: [amount, stage, {name: likely, type: bool, sql: "probability > 0.5"}]}
`

var streamViews = []string{"deal", "profile"}

// newStream makes a project on the broker and the Redis.
func newStream(t *testing.T, kafkaAt, redisAt string) *stream {
	t.Helper()
	return newStreamOf(t, kafkaAt, redisAt, "")
}

// newStreamOf makes one that reads the topics of another, where topic is that one's. The file of each of its streams has more lines,
// in which PROJECT is the project's name.
func newStreamOf(t *testing.T, kafkaAt, redisAt, topic string, more ...string) *stream {
	t.Helper()
	s := &stream{t: t, name: fmt.Sprintf("e2e_%d", time.Now().UnixNano()), topic: topic, seed: kafkaAt}
	if topic == "" {
		s.topic = s.name
	}
	s.dir = newProject(t, fmt.Sprintf("broker: {seeds: [%q]}\nonline: {redis: %q}", kafkaAt, redisAt))
	s.edit(func(text string) string {
		return regexp.MustCompile(`(?m)^project: \S+`).ReplaceAllString(text, "project: "+s.name)
	})
	for _, name := range streamNames {
		write(t, filepath.Join(s.dir, "streams", name+".yaml"),
			fmt.Sprintf("stream: %s\nextend: true\ntopic: %s\n%s\n", name, s.topicOf(name), strings.ReplaceAll(strings.Join(more, "\n"), "PROJECT", s.name)))
	}
	write(t, filepath.Join(s.dir, "features", "deal.yaml"), deals)
	client, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	if err != nil {
		t.Fatal(err)
	}
	s.kafka = kadm.NewClient(client)
	s.redis = redis.NewClient(&redis.Options{Addr: redisAt, DisableIdentity: true})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if topic == "" {
			_, _ = s.kafka.DeleteTopics(ctx, s.topics()...) // it may have made none
		}
		for _, key := range s.keys(ctx, s.name+":*") {
			s.redis.Unlink(ctx, key)
		}
		client.Close()
		s.redis.Close()
	})
	run(t, s.dir, "apply")
	s.lake = openLake(t, s.dir)
	return s
}

func (s *stream) edit(change func(string) string) {
	s.t.Helper()
	path := filepath.Join(s.dir, feature.ProjectFile)
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	write(s.t, path, change(string(text)))
}

func (s *stream) topicOf(name string) string { return name + "." + s.topic }

func (s *stream) topics() (topics []string) {
	for _, name := range streamNames {
		topics = append(topics, s.topicOf(name))
	}
	return topics
}

// simulate produces about so many events, other ones for each seed, a month old at most.
func (s *stream) simulate(seed, events int) {
	s.t.Helper()
	run(s.t, s.dir, "simulate", "--topics", "--partitions", "3", "--days", "30", "--seed", strconv.Itoa(seed), "--events", strconv.Itoa(events),
		"--contacts", strconv.Itoa(events/20), "--duplicates", "0.02", "--late", "0.02")
}

// produced is how many records the topics have.
func (s *stream) produced() int64 {
	s.t.Helper()
	ends, err := s.kafka.ListEndOffsets(s.t.Context(), s.topics()...)
	if err != nil || ends.Error() != nil {
		s.t.Fatal(err, ends.Error())
	}
	var sum int64
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum
}

// committed is how many records the logs have taken.
func (s *stream) committed() int64 {
	s.t.Helper()
	var sum int64
	for _, name := range streamNames {
		reading, err := s.lake.Read(s.t.Context(), s.lake.project.Stream(name))
		if err != nil {
			s.t.Fatal(err)
		}
		offsets, err := reading.Offsets()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, at := range offsets.Partitions {
			sum += at.Next
		}
	}
	return sum
}

// keys are Redis's keys of a pattern.
func (s *stream) keys(ctx context.Context, pattern string) (keys []string) {
	for i := s.redis.Scan(ctx, 0, pattern, 10_000).Iterator(); i.Next(ctx); {
		keys = append(keys, i.Val())
	}
	return keys
}

// served are the hashes of the generation of a view that is read, by entity, expiry aside; nil where there is none.
func (s *stream) served(view string) map[string]string {
	s.t.Helper()
	ctx := s.t.Context()
	current, err := s.redis.HGet(ctx, s.name+":"+view+":generations", "current").Result()
	if err != nil {
		return nil
	}
	prefix := s.name + ":" + view + ":" + current + ":"
	keys := s.keys(ctx, prefix+"*")
	hashes := map[string]string{}
	for part := range slices.Chunk(keys, 1000) {
		commands, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range part {
				p.HGetAll(ctx, k)
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		for i, c := range commands {
			hashes[strings.TrimPrefix(part[i], prefix)] = fmt.Sprint(c.(*redis.MapStringStringCmd).Val())
		}
	}
	return hashes
}

// sameServed fails the test where what is served of a view differs.
func sameServed(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(want) == 0 {
		t.Errorf("%s: nothing is served", what)
	}
	different := 0
	for _, entity := range slices.Sorted(maps.Keys(want)) {
		if got[entity] != want[entity] {
			if different++; different == 1 {
				t.Errorf("%s: of %s is served\n%s\nwant\n%s", what, entity, got[entity], want[entity])
			}
		}
	}
	if different > 0 || len(got) != len(want) {
		t.Errorf("%s: %d entities are served, want %d; %d differ", what, len(got), len(want), different)
	}
}

// whole fails the test unless everything that was produced was taken once, histories are what their logs make them, and
// Redis serves what a materialize of now gives.
func (s *stream) whole() {
	s.t.Helper()
	if committed, produced := s.committed(), s.produced(); committed != produced {
		s.t.Errorf("%d of %d records are committed", committed, produced)
	}
	var sum counts
	for _, one := range s.status() {
		sum.Read += one.Read
		if one.Read != one.Accepted+one.Refused+one.Duplicate {
			s.t.Errorf("the counts of a stream don't add up: %+v", one)
		}
	}
	if produced := s.produced(); sum.Read != produced {
		s.t.Errorf("%d records were read, %d are there", sum.Read, produced)
	}
	verifyClean(s.t, s.dir)
	before := map[string]map[string]string{}
	for _, view := range streamViews {
		before[view] = s.served(view)
	}
	run(s.t, s.dir, "materialize")
	for _, view := range streamViews {
		sameServed(s.t, view+" against a fresh materialize", before[view], s.served(view))
	}
}

func (s *stream) status() map[string]counts {
	s.t.Helper()
	return statusOf(s.t, s.dir)
}

// A worker is a running `loam run`.
type worker struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	said  bytes.Buffer // stderr
}

func (w *worker) Write(text []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.Write(text)
}

// stderr is what the worker has said so far.
func (w *worker) stderr() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()
}

// start starts a worker. It is killed with the test.
func (s *stream) start(args ...string) *worker {
	s.t.Helper()
	return startWorker(s.t, s.dir, args...)
}

// startWorker starts a worker on a project folder. It is killed with the test.
func startWorker(t *testing.T, dir string, args ...string) *worker {
	t.Helper()
	w := &worker{t: t, cmd: command(t, dir, append([]string{"run"}, args...)...), ended: make(chan struct{})}
	w.cmd.Stderr = w
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = w.cmd.Wait() // its code is looked at
		close(w.ended)
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // unless it ended
		<-w.ended
	})
	return w
}

// await waits until something is so, while the worker runs.
func (w *worker) await(what string, so func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(awaitMax); !so(); {
		select {
		case <-w.ended:
			if so() {
				return
			}
			w.t.Fatalf("the worker ended with %d before %s:\n%s", w.cmd.ProcessState.ExitCode(), what, w.stderr())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("in %s not: %s; the worker says\n%s", awaitMax, what, w.stderr())
		}
	}
}

func (w *worker) awaitSaid(text string) {
	w.t.Helper()
	w.await(fmt.Sprintf("it said %q", text), func() bool { return strings.Contains(w.stderr(), text) })
}

// signal sends a signal and gives the code with which the worker then ends, -1 for a killed one.
func (w *worker) signal(signal os.Signal) int {
	w.t.Helper()
	if err := w.cmd.Process.Signal(signal); err != nil {
		w.t.Fatalf("the worker has ended already: %v\n%s", err, w.stderr())
	}
	select {
	case <-w.ended:
	case <-time.After(awaitMax):
		w.t.Fatalf("the worker goes on for %s after %s:\n%s", awaitMax, signal, w.stderr())
	}
	return w.cmd.ProcessState.ExitCode()
}

// stop ends a worker as a service manager does, which must end well.
func (w *worker) stop() {
	w.t.Helper()
	if code := w.signal(syscall.SIGTERM); code != 0 {
		w.t.Errorf("after SIGTERM the worker ends with %d:\n%s", code, w.stderr())
	}
}

// redisOf starts a Redis of the test's own, and gives its address, and functions that kill it and start it again, empty.
func redisOf(t *testing.T) (address string, kill, start func()) {
	t.Helper()
	port, data := freePort(t), t.TempDir()
	kill, start = daemonOf(t, "redis.sh", data, port, "REDIS_PORT="+port, "REDIS_DATA="+data)
	return "127.0.0.1:" + port, kill, start
}

// kafkaOf starts a broker of the test's own, and gives its address, and functions that kill it and start it again, with what it had.
func kafkaOf(t *testing.T) (address string, kill, start func()) {
	t.Helper()
	port, data := freePort(t), t.TempDir()
	kill, start = daemonOf(t, "kafka.sh", data, port, "KAFKA_PORT="+port, "KAFKA_CONTROLLER_PORT="+freePort(t), "KAFKA_HEAP=512m", "KAFKA_DATA="+data)
	return "127.0.0.1:" + port, kill, start
}

// daemonOf starts a service by its script, which keeps its pid in the folder data, and gives functions that kill it and start it again.
func daemonOf(t *testing.T, name, data, port string, settings ...string) (kill, start func()) {
	t.Helper()
	script, err := filepath.Abs(filepath.Join(root, "scripts", "services", name))
	if err != nil {
		t.Fatal(err)
	}
	control := func(command string) {
		t.Helper()
		c := exec.Command(script, command)
		c.Env = append(os.Environ(), settings...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, command, err, out)
		}
	}
	start = func() {
		t.Helper()
		control("start")
		control("wait")
	}
	kill = func() {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(data, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		pid, err := strconv.Atoi(first)
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Fatalf("kill the process of %s: %v", name, err)
		}
		control("stop")
		// Its threads may hold the port a while longer than the process is there.
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			c, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err != nil {
				return
			}
			c.Close()
		}
		t.Fatalf("port %s of %s is open though its process was killed", port, name)
	}
	t.Cleanup(func() { control("stop") })
	start()
	return kill, start
}

// freePort is a port that nobody listens on, of those that no system gives out by itself.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(20_000 + rand.IntN(10_000))
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}
