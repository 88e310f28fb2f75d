package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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

// streamEvents is how many events a worker that is killed takes: a million in CI.
func streamEvents() int {
	if os.Getenv("LOAM_CI") == "1" {
		return 1_000_000
	}
	return 100_000
}

// kills is how often a worker is killed: LOAM_TEST_KILLS, or 20 times in CI.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("LOAM_TEST_KILLS")
	switch {
	case text == "" && os.Getenv("LOAM_CI") == "1":
		return 20
	case text == "":
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("LOAM_TEST_KILLS is a number, not %q", text)
	}
	return n
}

// A worker that is killed at any moment, again and again while there is more to take than it can, leaves the log, the history, the
// counts and the online values of one that ran through.
func TestKilledWorker(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	events := streamEvents()
	killed := newStream(t, kafkaAt, redisAt)
	killed.simulate(1, events)
	chosen := *seed
	if chosen == 0 {
		chosen = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", chosen)
	random := rand.New(rand.NewPCG(chosen, 0))
	settings := []string{"--commit-rows", strconv.Itoa(events / 50), "--commit-every", "300ms"}
	progressed, simulations := 0, 1
	for i := range kills(t) {
		before := killed.committed()
		if killed.produced()-before < int64(events/4) {
			simulations++
			killed.simulate(simulations, events/2)
		}
		w := killed.start(settings...)
		switch i % 4 {
		case 0: // it may be killed while it opens what it needs
		case 1:
			w.awaitSaid("taking ")
		default:
			w.await("it had committed something", func() bool { return killed.committed() > before })
		}
		time.Sleep(time.Duration(random.Int64N(int64(1200 * time.Millisecond)))) // no signal: at any moment
		if code := w.signal(syscall.SIGKILL); code != -1 {
			t.Fatalf("it ended with %d before it was killed:\n%s", code, w.stderr())
		}
		if killed.committed() > before {
			progressed++
		}
	}
	produced := killed.produced()
	t.Logf("killed %d times, after %d of %d records; %d of the workers had committed something", kills(t), killed.committed(), produced, progressed)
	run(t, killed.dir, append([]string{"run", "--until-end"}, settings...)...)

	through := newStreamOf(t, kafkaAt, redisAt, killed.topic)
	begun := time.Now()
	took := runJSON[taken](t, through.dir, "run", "--until-end")
	addUp(t, took)
	if took.Total.Read != produced {
		t.Errorf("%d records are read, %d are there", took.Total.Read, produced)
	}
	t.Logf("uninterrupted: %d records in %s, %.0f a second to log, history and Redis", produced, time.Since(begun).Round(time.Millisecond),
		float64(produced)/time.Since(begun).Seconds())

	// Live events are ingested when they are read, which differs.
	without := append(slices.Clone(recordedColumns), feature.ColIngestedAt)
	for _, name := range streamNames {
		sameRows(t, name+" log", logRows(t, killed.dir, name, without...), logRows(t, through.dir, name, without...))
		if killed.lake.project.Stream(name).Kind == feature.StateStream {
			sameRows(t, name+" history", historyRows(t, killed.dir, name, without...), historyRows(t, through.dir, name, without...))
		}
	}
	if got, want := killed.status(), through.status(); !maps.Equal(got, want) {
		t.Errorf("counts are %v, want %v", got, want)
	}
	for _, view := range streamViews {
		sameServed(t, view+" of the killed worker", killed.served(view), through.served(view))
	}
	for _, s := range []*stream{killed, through} {
		s.whole()
	}
}

// A worker that is asked to end as soon as it has begun ends well, and the next one takes everything.
func TestWorkerStopsAtOnce(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 20_000)
	w := s.start("--commit-every", "1h")
	w.awaitSaid("taking ")
	w.stop()
	run(t, s.dir, "run", "--until-end")
	s.whole()
}

// A Redis that restarts empty, too fast for the worker to miss it, is filled again.
func TestRedisRestartsEmpty(t *testing.T) {
	kafkaAt := service(t, "LOAM_TEST_KAFKA")
	service(t, "LOAM_TEST_REDIS") // told of one, a machine can start another
	address, kill, start := redisOf(t)
	s := newStream(t, kafkaAt, address)
	s.simulate(1, 20_000)
	w := s.start("--commit-every", "200ms")
	w.awaitSaid("feature view profile is served")
	w.await("all was committed", func() bool { return s.committed() == s.produced() })
	kill()
	start()
	w.await("the view was served again", func() bool { return s.served("profile") != nil })
	w.stop()
	run(t, s.dir, "run", "--until-end")
	s.whole()
}

// A Redis that dies in the middle of a run, and comes back empty, holds the lake up never, and is filled again.
func TestRedisDies(t *testing.T) {
	kafkaAt := service(t, "LOAM_TEST_KAFKA")
	service(t, "LOAM_TEST_REDIS") // told of one, a machine can start another
	address, kill, start := redisOf(t)
	s := newStream(t, kafkaAt, address)
	s.simulate(1, 20_000)
	w := s.start("--commit-every", "200ms")
	w.awaitSaid("feature view profile is served")
	w.awaitSaid("feature view deal is served")
	kill()
	s.simulate(2, 20_000)
	w.awaitSaid("the online store is away")
	w.await("the lake had gone on", func() bool { return s.committed() == s.produced() })
	start()
	w.awaitSaid("the online store is back")
	s.simulate(3, 20_000)
	w.await("the views were served again", func() bool { return strings.Count(w.stderr(), "is served") >= 4 })
	w.await("all was committed", func() bool { return s.committed() == s.produced() })
	w.stop()
	s.whole()
}

// Views that are built while a worker writes them lack nothing.
func TestMaterializeBesideWorker(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 10_000)
	w := s.start("--commit-every", "300ms")
	w.awaitSaid("feature view profile is served")
	for seed := 2; seed < 5; seed++ {
		var building sync.WaitGroup
		building.Go(func() {
			if out, errs, code := runErr(t, s.dir, "materialize"); code != 0 {
				t.Errorf("materialize: %d\n%s%s", code, out, errs)
			}
		})
		s.simulate(seed, 20_000)
		building.Wait()
	}
	w.await("all was committed", func() bool { return s.committed() == s.produced() })
	w.stop()
	s.whole()
}

// A worker that is asked to end commits what it has read, ends well, and the next one goes on there.
func TestWorkerStops(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 5000)
	first := runJSON[taken](t, s.dir, "run", "--until-end")
	if produced := s.produced(); first.Total.Read != produced || s.committed() != produced {
		t.Errorf("taken %d and committed %d of %d records", first.Total.Read, s.committed(), produced)
	}
	before := s.produced()
	s.simulate(2, 20_000)
	w := s.start("--commit-every", "1h", "--commit-rows", "1000000") // nothing is committed by itself
	w.await("it had read everything", func() bool { return s.marked("profile")+s.marked("deal") == s.produced()-s.endOf("engagement") })
	if n := s.committed(); n != before {
		t.Errorf("%d records are committed before it is stopped, want %d", n, before)
	}
	w.stop()
	if committed, produced := s.committed(), s.produced(); committed != produced {
		t.Errorf("stopped, it has committed %d of %d records", committed, produced)
	}
	s.simulate(3, 5000)
	fresh := s.produced() - s.committed()
	last := runJSON[taken](t, s.dir, "run", "--until-end")
	if last.Total.Read != fresh {
		t.Errorf("the next worker reads %d records, %d are new", last.Total.Read, fresh)
	}
	s.whole()
}

// marked sums the offsets up to which a view is written.
func (s *stream) marked(view string) int64 {
	s.t.Helper()
	fields, err := s.redis.HGetAll(s.t.Context(), s.name+":"+view+":generations").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	var sum int64
	for field, text := range fields {
		if strings.HasPrefix(field, fields["current"]+":") && strings.Contains(field, "."+s.topic+":") {
			offset, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			sum += offset
		}
	}
	return sum
}

// endOf is how many records a stream's topic has.
func (s *stream) endOf(name string) int64 {
	s.t.Helper()
	ends, err := s.kafka.ListEndOffsets(s.t.Context(), s.topicOf(name))
	if err != nil {
		s.t.Fatal(err)
	}
	var sum int64
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum
}

// How long an event takes from the producer to a value that can be read. It is held to a bound where nothing else runs, as
// LOAM_TEST_ALONE=1 says (make freshness); beside other packages' tests it is what their load makes it.
func TestFreshness(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 10_000)
	w := s.start("--commit-every", "10s")
	w.awaitSaid("feature view profile is served")
	w.await("all was committed", func() bool { return s.committed() == s.produced() })
	ctx := t.Context()
	current, err := s.redis.HGet(ctx, s.name+":profile:generations", "current").Result()
	if err != nil {
		t.Fatal(err)
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt), kgo.ProducerLinger(0), kgo.DefaultProduceTopic(s.topicOf("contact")))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	rate := 1000
	if text := os.Getenv("LOAM_TEST_RATE"); text != "" {
		if rate, err = strconv.Atoi(text); err != nil || rate < 100 {
			t.Fatalf("LOAM_TEST_RATE is %q, want a number of events a second from 100", text)
		}
	}
	events := 10 * rate
	type sent struct {
		key string
		at  time.Time
	}
	arrivals := make(chan sent, events)
	go func() {
		defer close(arrivals)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for i := range events {
			if i%(rate/100) == 0 {
				<-ticker.C
			}
			id, now := fmt.Sprintf("fresh-%d", i), time.Now()
			text := fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-9000-%012d","event_type":"Contact.updated","source":"test","occurred_at":%q,"delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":%q,"mkt_status":"lead","updated_at":%[2]q}}`,
				i, now.UTC().Format(time.RFC3339Nano), id)
			producer.Produce(ctx, &kgo.Record{Key: []byte(id), Value: []byte(text)}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
			arrivals <- sent{fmt.Sprintf("%s:profile:%s:{contact|%s}", s.name, current, id), now}
		}
	}()
	var outstanding []sent
	var took []time.Duration
	for open, deadline := true, time.Now().Add(awaitMax); open || len(outstanding) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d events never arrived:\n%s", len(outstanding), w.stderr())
		}
		for more := true; more && open; {
			select {
			case one, ok := <-arrivals:
				if open = ok; ok {
					outstanding = append(outstanding, one)
				}
			default:
				more = false
			}
		}
		commands, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, one := range outstanding {
				p.Exists(ctx, one.key)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		var waiting []sent
		for i, one := range outstanding {
			if commands[i].(*redis.IntCmd).Val() == 0 {
				waiting = append(waiting, one)
			} else {
				took = append(took, now.Sub(one.at))
			}
		}
		if outstanding = waiting; len(waiting) == 0 {
			time.Sleep(time.Millisecond) // nothing is looked for
		}
	}
	w.stop()
	slices.Sort(took)
	at := func(share float64) time.Duration {
		return took[int(share*float64(len(took)-1))].Round(time.Millisecond)
	}
	t.Logf("%d events at %d a second, from produced to readable: p50 %s, p95 %s, p99 %s, most %s", len(took), rate, at(0.5), at(0.95), at(0.99), at(1))
	if os.Getenv("LOAM_TEST_ALONE") == "1" && at(0.95) > 3*time.Second {
		t.Errorf("p95 is %s, want 3s at most", at(0.95))
	}
	s.whole()
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
