package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"
)

// visit calls f with every command that a user sees.
func visit(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		if sub.Name() != "help" && sub.Name() != "completion" {
			visit(sub, f)
		}
	}
}

// Every command says what it does and has an example.
func TestHelp(t *testing.T) {
	visit(newApp(os.Stdout, os.Stderr).root(), func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s lacks a summary or an example", c.CommandPath())
		}
	})
}

// exampleLines are the lines of all commands' examples, each once, in an order in which one finds what another made.
func exampleLines() []string {
	byCommand := map[string][]string{}
	var others []string
	seen := map[string]bool{}
	visit(newApp(os.Stdout, os.Stderr).root(), func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(line, "#")
			line = strings.TrimSpace(line)
			if line == "" || seen[line] {
				continue
			}
			seen[line] = true
			name := strings.Fields(line + " -")[1]
			if name == "simulate" {
				others = append(others, line) // after those that work on what is prepared
			} else {
				byCommand[name] = append(byCommand[name], line)
			}
		}
	})
	var all []string
	for _, name := range []string{"init", "validate", "plan", "backfill", "run", "dlq", "dataset", "materialize", "get", "history", "status", "verify", "demo"} {
		all = append(all, byCommand[name]...)
		delete(byCommand, name)
	}
	for _, lines := range byCommand {
		all = append(all, lines...)
	}
	return append(all, others...)
}

// Every line of every example works as it stands, in a folder that `loam init` made and that has the files it names.
func TestExamples(t *testing.T) {
	t.Parallel()
	dir := prepared(t)
	for _, line := range exampleLines() {
		t.Run(line, func(t *testing.T) {
			in := dir
			if strings.HasPrefix(line, "loam init") || strings.HasPrefix(line, "loam demo") {
				in = t.TempDir() // they make folders of their own
			}
			materializes := strings.HasPrefix(line, "loam materialize") && (strings.Contains(line, "--as-of") || strings.Contains(line, "--entity"))
			if materializes || strings.HasPrefix(line, "loam verify --online") || strings.HasPrefix(line, "loam verify --served") {
				in = served(t)
			}
			c := exec.CommandContext(t.Context(), "sh", "-c", line)
			if strings.HasPrefix(line, "loam run") && !strings.Contains(line, "--until-end") || strings.HasPrefix(line, "loam serve") {
				c = exec.CommandContext(t.Context(), "sh", "-c", "exec "+line)
				c.Dir = in
				untilInterrupted(t, c)
				return
			}
			c.Dir, c.Env = in, append(os.Environ(), "TMPDIR="+t.TempDir())
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// served is a project with a Redis, from which two features were asked for and logged.
func served(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "crm")
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	script := fmt.Sprintf(`set -e
echo 'online: {redis: %s}' >>loam.yaml
loam simulate --contacts 20 --days 30 --out events
loam backfill events/events.jsonl
loam materialize
loam serve --addr %[2]s --log-features 1 &
curl -sSf --retry 20 --retry-connrefused http://%[2]s/ready
curl -sSf http://%[2]s/get-online-features -H 'Content-Type: application/json' -d '{"feature_service": "churn_v1", "entities": {"contact_id": ["c7"]}}'
kill -TERM $!
wait $!`, miniredis.RunT(t).Addr(), address)
	c := exec.CommandContext(t.Context(), "sh", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// untilInterrupted starts a worker, and ends it as Ctrl-C does once it says that it is at work.
func untilInterrupted(t *testing.T, c *exec.Cmd) {
	t.Helper()
	out, in := io.Pipe()
	c.Stderr = in
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	timeout := time.AfterFunc(time.Minute, func() { _ = c.Process.Kill() })
	defer timeout.Stop()
	done := make(chan string, 1)
	go func() {
		var text bytes.Buffer
		part := make([]byte, 4096)
		told := false
		for {
			n, err := out.Read(part)
			text.Write(part[:n])
			if !told && strings.Contains(text.String(), "Ctrl-C ends") {
				told = true
				_ = c.Process.Signal(syscall.SIGINT)
			}
			if err != nil {
				done <- text.String()
				return
			}
		}
	}()
	err := c.Wait()
	in.Close()
	if text := <-done; err != nil || !strings.Contains(text, "Ctrl-C ends") {
		t.Errorf("%v\n%s", err, text)
	}
}

// prepared makes the project folder that the examples are run in. Its files hold what the examples name: a malformed event at
// line 117 of the topic contact.v1 and of a file whose hash begins with 3f2a; and a schema of contact.
func prepared(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "crm")
	loam := func(args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), "loam", args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("loam %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if _, err := initProject(dir); err != nil {
		t.Fatal(err)
	}
	loam("simulate", "--contacts", "100", "--days", "30", "--labels", "20", "--format", "jsonl.gz", "--out", ".")
	loam("simulate", "--contacts", "100", "--days", "30", "--format", "parquet", "--out", ".")
	var lines strings.Builder
	for i := range 117 {
		lines.WriteString(change(i, fmt.Sprintf("old%d", i), "lead"))
	}
	topic := filepath.Join(dir, ".loam", "topics", "contact.v1")
	if err := os.MkdirAll(topic, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"0": lines.String() + "{\n", "1": "", "2": "", "3": ""} { // as many as simulate makes
		if err := os.WriteFile(filepath.Join(topic, name+".jsonl"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	begun := sha256.New()
	begun.Write([]byte(lines.String()))
	last := ""
	for i := 0; ; i++ {
		last = fmt.Sprintf("{%d\n", i)
		whole, err := begun.(hash.Cloner).Clone()
		if err != nil {
			t.Fatal(err)
		}
		whole.Write([]byte(last))
		if sum := whole.Sum(nil); sum[0] == 0x3f && sum[1] == 0x2a {
			break
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "old.jsonl"), []byte(lines.String()+last), 0o644); err != nil {
		t.Fatal(err)
	}
	const avro = `{"type": "record", "name": "Event", "fields": [{"name": "envelope", "type": {"type": "record", "name": "Envelope", "fields": [
		{"name": "event_id", "type": "string"}, {"name": "event_type", "type": "string"}, {"name": "source", "type": "string"},
		{"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-millis"}}, {"name": "delivery_attempt", "type": "int"},
		{"name": "schema_version", "type": "string"}]}}, {"name": "payload", "type": {"type": "record", "name": "Contact", "fields": [
		{"name": "contact_id", "type": "string"}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "contact.avsc"), []byte(avro), 0o644); err != nil {
		t.Fatal(err)
	}
	loam("backfill", "old.jsonl")
	loam("run", "--until-end")
	repaired := fmt.Sprintf(`{"position": "contact.v1/0@117", "body": %s}`, strings.TrimSpace(change(999, "mended", "lead")))
	if err := os.WriteFile(filepath.Join(dir, "repaired.jsonl"), []byte(repaired), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
