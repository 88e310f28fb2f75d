package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/certs"
	"github.com/loamdata/loam/internal/redisd"
)

const adminPassword, redisPassword, wrongSecret = "admin-Vb55", "right-Qm42", "wrong-Hs86"

// startRedis starts a real Redis that talks TLS only, and wants clients to have a certificate. It gives its address, and a client that
// may do anything.
func startRedis(t *testing.T, files certs.Files) (string, *redis.Client) {
	t.Helper()
	path := redisd.Binary(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	free.Close()
	ctx, stop := context.WithCancel(context.Background())
	var out strings.Builder
	server := exec.CommandContext(ctx, path, "--bind", "127.0.0.1", "--port", "0", "--tls-port", port, "--tls-cert-file", files.ServerCert, "--tls-key-file", files.ServerKey,
		"--tls-ca-cert-file", files.CA, "--tls-auth-clients", "yes", "--requirepass", adminPassword, "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", t.TempDir())
	server.Stdout, server.Stderr = &out, &out
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("redis-server:\n%s", &out)
		}
	})
	config, err := feature.TLS{On: true, CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey}.Config("")
	if err != nil {
		t.Fatal(err)
	}
	admin := redis.NewClient(&redis.Options{Addr: address, TLSConfig: config, Password: adminPassword, DisableIdentity: true})
	t.Cleanup(func() { admin.Close() })
	for end := time.Now().Add(15 * time.Second); admin.Ping(ctx).Err() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("redis-server does not answer: %v", admin.Ping(ctx).Err())
		}
	}
	return address, admin
}

// documentedRights is the command of docs/redis.md that gives a user the rights that loam needs.
func documentedRights(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "ACL SETUSER loam ") {
			return strings.Fields(line)
		}
	}
	t.Fatal("docs/redis.md names no rights")
	return nil
}

// With the rights that docs/redis.md lists, over TLS, everything works that is done with Redis; and none of them is for nothing.
func TestRedisRights(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	address, admin := startRedis(t, files)
	rights := documentedRights(t)
	var command []any
	for _, word := range rights {
		word = strings.ReplaceAll(strings.ReplaceAll(word, "crm:", "scores:"), "PASSWORD", redisPassword)
		command = append(command, word)
	}
	if err := admin.Do(t.Context(), command...).Err(); err != nil {
		t.Fatal(err)
	}
	if err := admin.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	access := fmt.Sprintf("online:\n  redis: %s\n  user: loam\n  password: {file: secret}\n  tls: {ca: %s, cert: %s, key: %s}\n", address, files.CA, files.ClientCert, files.ClientKey)
	p := newScoreProject(t, 3, access)
	p.write("secret", redisPassword+"\n")
	p.write("streams/part.yaml", "stream: part\nkind: state\nformat: row\nkey: [id]\nevent_time: at\nid: position\npayload: patch\ncolumns: [{name: id, type: string}, {name: n, type: double}]\n")
	p.write("features/part.yaml", "entities: [{name: piece, join_keys: [id]}]\nviews: [{name: parts, entity: piece, stream: part, ttl: 10000d, features: [n]}]\n")
	p.write("streams/visit.yaml", "stream: visit\nkind: event\nformat: row\nkey: [visit]\nevent_time: at\nid: position\ncolumns: [{name: visit, type: string}, {name: id, type: string}]\n")
	p.write("features/visit.yaml", "views: [{name: visits, entity: piece, stream: visit, aggregates: [{name: n, fn: count, windows: [30d]}]}]\n")
	p.write(".loam/topics/visit.v1/0.jsonl", fmt.Sprintf(`{"visit": "v", "id": "a", "at": %q}`+"\n", time.Now().UTC().Format(time.RFC3339)))
	p.write(".loam/topics/score.v1/0.jsonl", scores(0, 20))
	p.write(".loam/topics/part.v1/0.jsonl", `{"id": "a", "n": 1, "at": "2026-01-01T00:00:00Z"}`+"\n"+`{"id": "a", "n": null, "at": "2026-01-02T00:00:00Z"}`+"\n"+"what\n")
	p.write("streams/gone.yaml", "stream: gone\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ndelete_when: \"n < 0\"\ncolumns: [{name: id, type: string}, {name: n, type: double}]\n")
	p.write("features/gone.yaml", "entities: [{name: goner, join_keys: [id]}]\nviews: [{name: goners, entity: goner, stream: gone, features: [n]}]\n")
	p.write(".loam/topics/gone.v1/0.jsonl", `{"id": "a", "n": -1, "at": "2026-01-01T00:00:00Z"}`+"\n")
	p.loam("apply")
	p.loam("run", "--until-end", "--stream", "score,part,visit,gone")
	p.loam("materialize")
	p.declare(9)
	p.loam("apply")
	p.loam("dlq", "redrive")
	p.write("more.jsonl", scores(20, 30))
	p.loam("backfill", "--stream", "score", filepath.Join(p.dir, "more.jsonl"))
	p.loam("materialize") // what is replaced is removed
	if text := p.loam("get", "--features", "scores:n", "--features", "parts:n", "--features", "visits:n_30d", "--entity", "id=a"); text == "" {
		t.Error("nothing")
	}
	for _, view := range []string{"scores", "parts", "visits"} {
		p.loam("materialize", "--view", view, "--entity", "id=a", "--entity", "id=nobody")
	}
	p.loam("rewind", "score", "--to", "score.v1/0@5", "--yes")
	p.loam("materialize")

	called, err := admin.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	var used []string
	for line := range strings.Lines(called) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":"); ok && strings.HasPrefix(line, "cmdstat_") {
			used = append(used, "+"+name)
		}
	}
	always := []string{"+hello", "+auth", "+config|resetstat", "+acl|setuser", "+ping", "+client|maint_notifications", "+client"} // the admin's, or such as need no right
	var given []string
	for _, right := range rights {
		if strings.HasPrefix(right, "+") {
			given = append(given, strings.ToLower(right))
		}
	}
	for _, u := range used {
		if !slices.Contains(given, u) && !slices.Contains(always, u) {
			t.Errorf("%s is used and not in docs/redis.md", u)
		}
	}
	for _, g := range given {
		if !slices.Contains(used, g) {
			t.Errorf("%s is in docs/redis.md and not used", g)
		}
	}
	// Without one of them it is said what is missing.
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "loam", "-info").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, p.dir, "materialize"); err == nil || !strings.Contains(err.Error(), "the user lacks a right, docs/redis.md lists those that are needed") {
		t.Errorf("%v", err)
	}
}

// try runs a command, and gives all that it printed.
func try(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: &text, now: time.Now}
	root := a.root()
	root.SetArgs(append(args, "-C", dir))
	err := root.ExecuteContext(t.Context())
	return text.String(), err
}

// What is wrong with the way to Redis is told, with what to do.
func TestRedisRefuses(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	address, _ := startRedis(t, files)
	plain, err := net.Listen("tcp", "127.0.0.1:0") // no TLS, and no Redis
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	go func() {
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "-ERR unknown\r\n")
			c.Close()
		}
	}()
	whole := fmt.Sprintf("{ca: %s, cert: %s, key: %s}", files.CA, files.ClientCert, files.ClientKey)
	for name, c := range map[string]struct{ address, rest, want string }{
		"another password":  {address, "tls: " + whole + ", password: {file: wrong}", "it doesn't know this user and password"},
		"another user":      {address, "tls: " + whole + ", user: nobody, password: {file: wrong}", "it doesn't know this user and password"},
		"no password":       {address, "tls: " + whole, "it doesn't know this user and password"},
		"another CA":        {address, fmt.Sprintf("tls: {ca: %s, cert: %s, key: %s}", files.OtherCA, files.ClientCert, files.ClientKey), "its certificate is not one to trust"},
		"another name":      {address, strings.Replace("tls: "+whole, "{", "{server_name: elsewhere, ", 1), "its certificate is not one to trust"},
		"no TLS":            {address, "password: {file: wrong}", "see online.tls in loam.yaml"},
		"no Redis with TLS": {plain.Addr().String(), "tls: " + whole, "it doesn't talk TLS on this port"},
		"no secret":         {address, "tls: " + whole + ", password: {file: gone}", "read online.password of loam.yaml: open "},
		"no variable":       {address, "tls: " + whole + ", password: {env: LOAM_TEST_NOT_SET}", "read online.password of loam.yaml: the environment variable LOAM_TEST_NOT_SET is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newScoreProject(t, 3, fmt.Sprintf("online: {redis: '%s', %s}\n", c.address, c.rest))
			p.write("wrong", wrongSecret)
			if _, err := try(t, p.dir, "apply"); err != nil {
				t.Fatal(err)
			}
			text, err := try(t, p.dir, "materialize")
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(text+err.Error(), wrongSecret) {
				t.Errorf("%v\n%s", err, text)
			}
		})
	}
}

// A secret is in nothing that is printed or kept, whatever is wrong with it.
func TestSecretsAreNotTold(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	address, _ := startRedis(t, files)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", files.Server(t)) // a broker that ends each connection
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	client := fmt.Sprintf("{ca: %s, cert: %s, key: %s}", files.CA, files.ClientCert, files.ClientKey)
	p := newScoreProject(t, 3, fmt.Sprintf("broker: {seeds: '%s', tls: %s, sasl: {mechanism: PLAIN, user: loam, password: {file: secret}}}\n"+
		"online: {redis: '%s', tls: %s, user: loam, password: {file: secret}}\n", listener.Addr(), client, address, client))
	p.write("secret", wrongSecret+"\n")
	p.write("rows.jsonl", scores(0, 5))
	all := ""
	failed := 0
	for _, args := range [][]string{
		{"validate"}, {"plan"}, {"apply"}, {"status"}, {"run", "--until-end", "--stream", "score"}, {"materialize"},
		{"get", "--features", "scores:n", "--entity", "id=a"}, {"backfill", "--stream", "score", filepath.Join(p.dir, "rows.jsonl")},
		{"backfill", "--no-online", "--stream", "score", filepath.Join(p.dir, "rows.jsonl")}, {"dlq", "list"}, {"dlq", "redrive"}, {"verify"}, {"plan", "--json"}, {"status", "--json"},
	} {
		text, err := try(t, p.dir, args...)
		all += text
		if err != nil {
			all += err.Error()
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing was refused")
	}
	if strings.Contains(all, wrongSecret) {
		t.Errorf("printed: %s", all)
	}
	err = filepath.WalkDir(filepath.Join(p.dir, ".loam"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), wrongSecret) {
			err = errors.New("the secret is in " + path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What simulates a CRM reaches the brokers as a worker does, which then reads it.
func TestSimulateWithLogin(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(files.Server(t)), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "loam", redisPassword))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	p := newScoreProject(t, 3, fmt.Sprintf("broker:\n  seeds: [%s]\n  tls: {ca: %s, cert: %s, key: %s}\n  sasl: {mechanism: SCRAM-SHA-256, user: loam, password: {file: secret}}\n",
		cluster.ListenAddrs()[0], files.CA, files.ClientCert, files.ClientKey))
	p.write("secret", redisPassword+"\n")
	p.loam("simulate", "--contacts", "5", "--days", "3", "--topics", "--partitions", "1")
	p.loam("apply")
	if text := p.loam("run", "--until-end", "--stream", "contact"); !strings.Contains(text, "contact ") {
		t.Errorf("%s", text)
	}
	p.write("secret", wrongSecret+"\n")
	if text, err := try(t, p.dir, "simulate", "--contacts", "5", "--topics"); err == nil || strings.Contains(text+err.Error(), wrongSecret) {
		t.Errorf("%v", err)
	}
}
