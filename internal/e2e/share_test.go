package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// stormFor is how long workers join and leave: in LOAM_TEST_STORM, such as 5m, or some seconds.
func stormFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("LOAM_TEST_STORM")
	if text == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("LOAM_TEST_STORM: %v", err)
	}
	return d
}

// producing produces events until it is stopped, always some more than are committed.
func (s *stream) producing(ahead int64) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for seed := 100; ctx.Err() == nil; seed++ {
			s.simulate(seed, int(ahead))
			for ctx.Err() == nil && s.produced()-s.committed() > ahead {
				time.Sleep(50 * time.Millisecond)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Three workers come and go every few seconds at full load, asked to end or killed: between them they lose and repeat nothing.
func TestRebalanceStorm(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	stop := s.producing(30_000)
	workers := make([]*worker, 3)
	var starts, stops, kills int
	// On a machine that is busy with others, where a stop takes long, it goes on until it has been a storm.
	begin, long := time.Now(), stormFor(t)
	rages := func() bool {
		weak := starts < 3 || stops == 0 || kills == 0
		return time.Since(begin) < long || weak && time.Since(begin) < 5*long
	}
	for ; rages(); time.Sleep(time.Duration(1+random.IntN(3000)) * time.Millisecond) {
		i := random.IntN(len(workers))
		switch w := workers[i]; {
		case w == nil:
			workers[i] = s.start("--commit-every", "300ms")
			starts++
		case random.IntN(2) == 0:
			if code := w.signal(syscall.SIGKILL); code != -1 {
				t.Fatalf("worker %d ended with %d before it was killed:\n%s", i, code, w.stderr())
			}
			workers[i] = nil
			kills++
		default:
			// One that has said nothing yet may not have come to listen for signals.
			if code := w.signal(syscall.SIGTERM); code != 0 && (code != -1 || w.stderr() != "") {
				t.Errorf("after SIGTERM worker %d ends with %d:\n%s", i, code, w.stderr())
			}
			workers[i] = nil
			stops++
		}
	}
	stop()
	for i, w := range workers {
		if w == nil {
			continue
		}
		select {
		case <-w.ended:
			t.Errorf("worker %d ended by itself:\n%s", i, w.stderr())
		default:
			w.stop()
		}
	}
	if starts < 3 || stops == 0 || kills == 0 {
		t.Errorf("%d starts, %d stops and %d kills are no storm", starts, stops, kills)
	}
	run(t, s.dir, "run", "--until-end")
	t.Logf("%d starts, %d stops, %d kills, %d records", starts, stops, kills, s.produced())
	s.whole()
}

// Two workers share the partitions, and each commits what it reads.
func TestTwoWorkers(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 5000)
	first := s.start("--commit-every", "200ms")
	first.awaitSaid("reads 9 partitions more")
	second := s.start("--commit-every", "200ms")
	second.awaitSaid("partitions more")
	first.await("it had given some back", func() bool { return strings.Contains(first.stderr(), "gives ") })
	s.simulate(2, 20_000)
	first.await("all was committed", func() bool { return s.committed() == s.produced() })
	first.stop()
	s.simulate(3, 5000)
	second.await("all was committed by the one that is left", func() bool { return s.committed() == s.produced() })
	second.stop()
	for _, w := range []*worker{first, second} {
		if said := w.stderr(); strings.Contains(said, "taken over") {
			t.Errorf("a worker was fenced though nobody was killed:\n%s", said)
		}
	}
	s.whole()
}

// A worker that stalls with what it has read, and wakes after another has its partitions, writes nothing of it, and goes on.
func TestStalledWorker(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	s := newStream(t, kafkaAt, redisAt)
	s.simulate(1, 5000)
	stalled := s.start("--commit-every", "3s")
	stalled.await("it had begun", func() bool { return s.committed() == s.produced() })
	s.simulate(2, 20_000)
	stalled.await("it had read more", func() bool { return s.marked("profile") > s.endOf("contact")*3/4 })
	if err := stalled.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var woken atomic.Bool
	wake := func() {
		if woken.CompareAndSwap(false, true) {
			_ = stalled.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
	defer wake()
	if s.committed() == s.produced() {
		t.Error("it had committed all before it stalled")
	}
	other := s.start("--commit-every", "200ms")
	other.await("it had taken over", func() bool { return s.committed() == s.produced() })
	wake()
	stalled.await("it had found out", func() bool { return strings.Contains(stalled.stderr(), "another worker has taken") })
	stalled.await("it had partitions again", func() bool { return strings.Count(stalled.stderr(), "more") >= 2 })
	s.simulate(3, 20_000)
	stalled.await("all was committed", func() bool { return s.committed() == s.produced() })
	stalled.stop()
	other.stop()
	s.whole()
}
