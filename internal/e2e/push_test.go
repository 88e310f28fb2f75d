package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/loamdata/loam/ingest"
)

// pushProject makes a project with a stream that is pushed to, and serves it. Its topics end in what is given.
func pushProject(t *testing.T, extraYAML, topics string) (dir, address string) {
	t.Helper()
	dir = newProject(t, extraYAML)
	text, err := os.ReadFile(filepath.Join(dir, "loam.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "loam.yaml"), strings.Replace(string(text), "project: crm", fmt.Sprintf("project: push_%d", time.Now().UnixNano()), 1))
	write(t, filepath.Join(dir, "streams", "score.yaml"), `stream: score
kind: state
format: row
topic: score`+topics+`
key: [contact_id]
event_time: at
columns:
  - {name: contact_id, type: string}
  - {name: points, type: int64}
  - {name: share, type: "decimal(20,4)"}
`)
	for _, name := range streamNames {
		write(t, filepath.Join(dir, "streams", name+".yaml"), fmt.Sprintf("stream: %s\nextend: true\ntopic: %s%s\n", name, name, topics))
	}
	write(t, filepath.Join(dir, "features", "scores.yaml"), "views:\n  - {name: scores, entity: contact, stream: score, features: [points, share]}\n")
	run(t, dir, "apply")
	return dir, startServer(t, dir)
}

// startServer serves a project until the test ends, and gives its address.
func startServer(t *testing.T, dir string) string {
	t.Helper()
	address, _ := startServing(t, dir)
	return address
}

// startServing is startServer, by a command that runs the one behind it, if any is given, and gives the process, too.
func startServing(t *testing.T, dir string, by ...string) (address string, process *os.Process) {
	t.Helper()
	args := append(by, bin, "serve", "--addr", "127.0.0.1:0")
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Dir = dir
	said, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	for address == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the server ended: %s%v", line, err)
		}
		address = regexp.MustCompile(`http://[0-9.:]+`).FindString(line)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, lines) // it goes on telling
	}()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		_ = c.Wait()
	})
	return address, c.Process
}

// push pushes rows under a key, and gives status and answer.
func push(t *testing.T, address, key, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address+"/push", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func scoreOf(points int, at time.Time) string {
	return fmt.Sprintf(`{"push_source_name":"scores_push","df":{"contact_id":["c1","c2"],"points":[9007199254740993,%d],"share":[0.1,1234567890123456.7891],"event_timestamp":[%q,%[2]q]}}`,
		points, at.UTC().Format(time.RFC3339Nano))
}

func callOf(at time.Time) string {
	return fmt.Sprintf(`{"push_source_name":"engagement","df":{"engagement_id":["e1","e2"],"contact_id":["c1","c1"],"type":["email","email"],"outcome":["opened","opened"],"event_timestamp":[%q,%[1]q]},"to":"online_and_offline"}`,
		at.UTC().Format(time.RFC3339Nano))
}

// pushesAgree pushes rows, some of them again, has a worker take them, and holds what the stores have against what was pushed.
func pushesAgree(t *testing.T, dir, address string) {
	t.Helper()
	at := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	for _, p := range []struct{ key, body string }{
		{"score 1", scoreOf(1, at)}, {"score 1", scoreOf(1, at)}, {"score 2", scoreOf(2, at.Add(time.Second))},
		{"", scoreOf(2, at.Add(time.Second))}, // a row without an id is told by its content
		{"call", callOf(at)}, {"call", callOf(at)}, {"call again", callOf(at)},
	} {
		if status, answer := push(t, address, p.key, p.body); status != http.StatusOK || !strings.HasPrefix(answer, `{"accepted":2,`) {
			t.Fatalf("%s: %d %s", p.key, status, answer)
		}
	}
	for _, refused := range []string{scoreOf(1, time.Now().Add(time.Hour)), strings.Replace(callOf(at), `"email"`, `"fax"`, 1)} {
		if status, answer := push(t, address, "bad", refused); status != http.StatusUnprocessableEntity {
			t.Errorf("%d %s", status, answer)
		}
	}
	did := runJSON[taken](t, dir, "run", "--until-end")
	if got, want := did.Streams["score"], (counts{8, 4, 0, 4}); got != want {
		t.Errorf("score: %+v, want %+v", got, want)
	}
	if got, want := did.Streams["engagement"], (counts{6, 4, 0, 2}); got != want {
		t.Errorf("engagement: %+v, want %+v", got, want)
	}
	if rows := verifyClean(t, dir); rows["score"] != 4 {
		t.Errorf("the logs have %v", rows)
	}
	var history []string
	for _, row := range historyRows(t, dir, "score") {
		var v struct {
			Contact string      `json:"contact_id"`
			Points  json.Number `json:"points"`
			Share   json.Number `json:"share"`
			Current bool        `json:"is_current"`
		}
		if err := json.Unmarshal([]byte(row), &v); err != nil {
			t.Fatal(err)
		}
		history = append(history, fmt.Sprintf("%s %s %s %t", v.Contact, v.Points, v.Share, v.Current))
	}
	slices.Sort(history)
	// c1 was pushed unchanged, which opens no version.
	want := []string{"c1 9007199254740993 0.1000 true", "c2 1 1234567890123456.7891 false", "c2 2 1234567890123456.7891 true"}
	if !slices.Equal(history, want) {
		t.Errorf("the history has\n%s\nwant\n%s", strings.Join(history, "\n"), strings.Join(want, "\n"))
	}
	type entity struct {
		Features []struct {
			Value  json.RawMessage
			Status string
		}
	}
	online := runJSON[[]entity](t, dir, "get", "--features", "scores:*", "--entity", "contact_id=c1", "--entity", "contact_id=c2")
	if got, want := fmt.Sprintf("%s", online), `[{[{9007199254740993 PRESENT} {"0.1000" PRESENT}]} {[{2 PRESENT} {"1234567890123456.7891" PRESENT}]}]`; got != want {
		t.Errorf("online there is %s, want %s", got, want)
	}
}

func TestPushToFolders(t *testing.T) {
	dir, address := pushProject(t, "", ".v1")
	pushesAgree(t, dir, address)
}

// On a broker the same holds, each key stands in the partition that Kafka's clients give it, and while the broker is away a push says so in
// time; pushed again under its key, it counts once whatever had become of it.
func TestPushToKafka(t *testing.T) {
	service(t, "LOAM_TEST_KAFKA") // told of one, a machine can start another
	redisAt := service(t, "LOAM_TEST_REDIS")
	seed, kill, start := kafkaOf(t)
	topics := fmt.Sprintf(".%d", time.Now().UnixNano())
	client, err := kgo.NewClient(kgo.SeedBrokers(seed))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, name := range append(slices.Clone(streamNames), "score") {
		made, err := kadm.NewClient(client).CreateTopic(t.Context(), 3, 1, nil, name+topics)
		if err != nil || made.Err != nil {
			t.Fatal(err, made.Err)
		}
	}
	dir, address := pushProject(t, fmt.Sprintf("broker: {seeds: [%q]}\nonline: {redis: %q}", seed, redisAt), topics)
	pushesAgree(t, dir, address)
	reader := openLake(t, dir)
	for _, row := range reader.logRows(t, "engagement") {
		var v struct {
			Partition int    `json:"partition"`
			Contact   string `json:"contact_id"`
		}
		if err := json.Unmarshal([]byte(row), &v); err != nil {
			t.Fatal(err)
		}
		want := kgo.StickyKeyPartitioner(nil).ForTopic("engagement").Partition(&kgo.Record{Key: []byte(v.Contact)}, 3)
		if v.Partition != want {
			t.Errorf("%s is in partition %d, not %d", v.Contact, v.Partition, want)
		}
	}
	kill()
	body := scoreOf(3, time.Now().Add(-time.Minute).Truncate(time.Microsecond))
	begun := time.Now()
	status, answer := push(t, address, "while away", body)
	if status != http.StatusServiceUnavailable || !strings.Contains(answer, `"code":"broker_away"`) || !strings.Contains(answer, "0 of 2 rows are acknowledged") {
		t.Errorf("%d %s", status, answer)
	}
	if took := time.Since(begun); took > ingest.ProduceTimeout+5*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	start()
	for range 2 {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if status, answer = push(t, address, "while away", body); status == http.StatusOK {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%d %s", status, answer)
			}
		}
	}
	if did := runJSON[taken](t, dir, "run", "--until-end").Streams["score"]; did.Accepted != 2 || did.Refused != 0 {
		t.Errorf("pushed three times at least, it counts as %+v", did)
	}
	verifyClean(t, dir)
}
