package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// contact is an event of a contact, other ones for each n.
func contact(n int) string {
	at := time.Now().Add(-time.Hour).Add(time.Duration(n) * time.Millisecond).UTC().Format(time.RFC3339Nano)
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012d","event_type":"Contact.updated","source":"test","occurred_at":%q,`+
		`"delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":"c%d","mkt_status":"lead","updated_at":%[2]q}}`, n, at, n%50)
}

// makeTopics makes the topics, which the simulator would, with settings.
func (s *stream) makeTopics(partitions int32, settings map[string]*string) {
	s.t.Helper()
	made, err := s.kafka.CreateTopics(s.t.Context(), partitions, 1, settings, s.topics()...)
	if err != nil || made.Error() != nil {
		s.t.Fatal(err, made.Error())
	}
}

// producer produces to the topic of contacts.
func (s *stream) producer(options ...kgo.Opt) *kgo.Client {
	s.t.Helper()
	p, err := kgo.NewClient(append(options, kgo.SeedBrokers(s.seed), kgo.DefaultProduceTopic(s.topicOf("contact")))...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Close)
	return p
}

func (s *stream) produce(p *kgo.Client, from, to int) {
	s.t.Helper()
	var records []*kgo.Record
	for n := from; n < to; n++ {
		records = append(records, &kgo.Record{Key: fmt.Appendf(nil, "c%d", n%50), Value: []byte(contact(n))})
	}
	if err := p.ProduceSync(s.t.Context(), records...).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
}

// A broker that is killed and comes back is waited for; nothing is lost or taken twice.
func TestBrokerRestarts(t *testing.T) {
	service(t, "LOAM_TEST_KAFKA") // told of one, a machine can start another
	redisAt := service(t, "LOAM_TEST_REDIS")
	address, kill, start := kafkaOf(t)
	s := newStream(t, address, redisAt)
	s.simulate(1, 10_000)
	w := s.start("--commit-every", "100ms", "--commit-rows", "1000")
	w.await("it had committed something", func() bool { return s.committed() > 0 })
	kill()
	start()
	s.simulate(2, 10_000)
	w.await("all was committed", func() bool { return s.committed() == s.produced() })
	w.stop()
	run(t, s.dir, "run", "--until-end")
	s.whole()
}

// A topic that was deleted and made anew is told from the one that was read, however many records it has.
func TestRecreatedTopic(t *testing.T) {
	s := newStream(t, service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS"))
	s.makeTopics(1, nil)
	s.produce(s.producer(), 0, 50)
	run(t, s.dir, "run", "--until-end")
	before := s.status()
	if _, err := s.kafka.DeleteTopic(t.Context(), s.topicOf("contact")); err != nil {
		t.Fatal(err)
	}
	for {
		made, err := s.kafka.CreateTopic(t.Context(), 1, 1, nil, s.topicOf("contact"))
		if err == nil && made.Err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond) // it is still being deleted
	}
	s.produce(s.producer(), 100, 200)
	_, errs, code := runErr(t, s.dir, "run", "--until-end")
	if code != 1 || !strings.Contains(errs, "topic "+s.topicOf("contact")+" was made anew since it was read") {
		t.Errorf("code %d, %s", code, errs)
	}
	if after := s.status(); after["contact"] != before["contact"] {
		t.Errorf("counts are %v, want %v", after, before)
	}
	verifyClean(t, s.dir)
}

// Records of transactions that were aborted are never taken, nor is one of a transaction that is open; the end is reached all the same.
func TestAbortedTransactions(t *testing.T) {
	s := newStream(t, service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS"))
	s.makeTopics(1, nil)
	p := s.producer(kgo.TransactionalID(s.name))
	transaction := func(from, to int, end kgo.TransactionEndTry) {
		t.Helper()
		if err := p.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		s.produce(p, from, to)
		if err := p.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	transaction(0, 30, kgo.TryCommit)
	transaction(30, 60, kgo.TryAbort)
	transaction(60, 70, kgo.TryCommit)
	transaction(70, 80, kgo.TryAbort)
	took := runJSON[taken](t, s.dir, "run", "--until-end")
	if took.Total != (counts{Read: 40, Accepted: 40}) {
		t.Errorf("taken: %+v", took.Total)
	}
	for _, row := range logRows(t, s.dir, "contact") {
		for n := 30; n < 80; n++ {
			if (n < 60 || n >= 70) && strings.Contains(row, fmt.Sprintf("-4000-8000-%012d", n)) {
				t.Errorf("an event of an aborted transaction was taken: %s", row)
			}
		}
	}
	// An aborted record may be sent again, and is then no duplicate.
	transaction(30, 60, kgo.TryCommit)
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	s.produce(p, 80, 90)
	if took = runJSON[taken](t, s.dir, "run", "--until-end"); took.Total != (counts{Read: 30, Accepted: 30}) {
		t.Errorf("taken again: %+v", took.Total)
	}
	if err := p.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if took = runJSON[taken](t, s.dir, "run", "--until-end"); took.Total != (counts{Read: 10, Accepted: 10}) {
		t.Errorf("taken at last: %+v", took.Total)
	}
	verifyClean(t, s.dir)
}

// Records that the broker removed before they were read stop the worker, unless it is told to go on without them.
func TestRetentionOvertakes(t *testing.T) {
	s := newStream(t, service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS"))
	s.makeTopics(1, nil)
	p := s.producer()
	s.produce(p, 0, 50)
	run(t, s.dir, "run", "--until-end")
	s.produce(p, 50, 100)
	removed := kadm.Offsets{}
	removed.AddOffset(s.topicOf("contact"), 0, 70, -1)
	if _, err := s.kafka.DeleteRecords(t.Context(), removed); err != nil {
		t.Fatal(err)
	}
	_, errs, code := runErr(t, s.dir, "run", "--until-end")
	if code != 1 || !strings.Contains(errs, "starts at offset 70, and 50 is to be read next") || !strings.Contains(errs, "--on-gap earliest") {
		t.Errorf("code %d, %s", code, errs)
	}
	if c := s.status()["contact"]; c.Read != 50 {
		t.Errorf("%d records are read, want those of before", c.Read)
	}
	if took := runJSON[taken](t, s.dir, "run", "--until-end", "--on-gap", "earliest"); took.Total != (counts{Read: 30, Accepted: 30}) {
		t.Errorf("taken: %+v", took.Total)
	}
	if n := s.committed(); n != 100 {
		t.Errorf("the log stands at %d, want 100", n)
	}
	if c := s.status()["contact"]; c.Read != 80 || c.Accepted != 80 {
		t.Errorf("%+v", c)
	}
	verifyClean(t, s.dir)
	for _, view := range streamViews[1:] {
		before := s.served(view)
		run(t, s.dir, "materialize")
		sameServed(t, view, before, s.served(view))
	}
}

// A compacted topic has gaps between its offsets, and tombstones; both are nothing unusual.
func TestCompactedTopic(t *testing.T) {
	s := newStream(t, service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS"))
	text := func(v string) *string { return &v }
	s.makeTopics(1, map[string]*string{
		"cleanup.policy": text("compact"), "segment.ms": text("200"), "min.cleanable.dirty.ratio": text("0.001"), "min.compaction.lag.ms": text("0"), "max.compaction.lag.ms": text("300"),
	})
	p := s.producer()
	s.produce(p, 0, 200) // 50 keys
	tombstone := &kgo.Record{Key: []byte("c7")}
	if err := p.ProduceSync(t.Context(), tombstone).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// What lies in the segment that is written to is not compacted, so another one is begun now and then.
	records := func() (n int64) {
		client, err := kgo.NewClient(kgo.SeedBrokers(s.seed), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.topicOf("contact"): {0: kgo.NewOffset().AtStart()}}))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for end := s.endOf("contact"); ; {
			fetches := client.PollFetches(t.Context())
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			last := int64(0)
			fetches.EachRecord(func(r *kgo.Record) { n++; last = r.Offset + 1 })
			if last >= end {
				return n
			}
		}
	}
	next := 200
	for deadline := time.Now().Add(awaitMax); records() > s.endOf("contact")-100; next++ {
		if time.Now().After(deadline) {
			t.Fatalf("the broker compacts nothing: %d records", records())
		}
		time.Sleep(300 * time.Millisecond)
		s.produce(p, next, next+1)
	}
	took := runJSON[taken](t, s.dir, "run", "--until-end")
	if took.Total.Read == 0 || took.Total.Read >= int64(next) || took.Total.Read != took.Total.Accepted {
		t.Errorf("taken: %+v of %d", took.Total, next+1)
	}
	if n, end := s.committed(), s.produced(); n != end {
		t.Errorf("the log stands at %d, want %d", n, end)
	}
	if !slices.ContainsFunc(logRows(t, s.dir, "contact"), func(row string) bool {
		return strings.Contains(row, `"contact_id":"c7"`) && strings.Contains(row, `"op":"delete"`)
	}) {
		t.Error("the tombstone is not in the log")
	}
	s.produce(p, next, next+5)
	if took = runJSON[taken](t, s.dir, "run", "--until-end"); took.Total.Accepted != 5 {
		t.Errorf("taken behind the gaps: %+v", took.Total)
	}
	verifyClean(t, s.dir)
}

// A disk that fills up ends the worker with one clear error; with room again the next one takes the rest.
func TestFullDiskOfWorker(t *testing.T) {
	kafkaAt, redisAt := service(t, "LOAM_TEST_KAFKA"), service(t, "LOAM_TEST_REDIS")
	if os.Getuid() != 0 {
		t.Skip("a small disk can be mounted by root alone")
	}
	s := newStream(t, kafkaAt, redisAt)
	warehouse := filepath.Join(s.dir, ".loam")
	disk := func(command ...string) error {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
		}
		return nil
	}
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.CopyFS(kept, os.DirFS(warehouse)); err != nil {
		t.Fatal(err)
	}
	if err := disk("mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", warehouse); err != nil {
		if os.Getenv("LOAM_CI") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := disk("umount", "-l", warehouse); err != nil {
			t.Error(err)
		}
	})
	if err := os.CopyFS(warehouse, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	s.lake = openLake(t, s.dir)
	s.simulate(1, 40_000)
	_, errs, code := runErr(t, s.dir, "run", "--until-end", "--commit-rows", "2000")
	if code != 1 || !strings.Contains(errs, "no space left on device") && !strings.Contains(errs, "disk is full") {
		t.Fatalf("code %d, %s", code, errs)
	}
	if err := disk("mount", "-o", "remount,size=200m", warehouse); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d records were committed when the disk was full", s.committed(), s.produced())
	run(t, s.dir, "run", "--until-end")
	s.whole()
}
