package online

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// commands62 are the commands that loam may use. All are in Redis 6.2 with what is asked of them: SET's PXAT came with it.
var commands62 = []string{
	"cluster", "command", "del", "eval", "evalsha", "exec", "get", "getrange", "hdel", "hello", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx", "info", "mget",
	"multi", "pexpireat", "ping", "readonly", "scan", "set", "time", "unlink", "zadd", "zrangebyscore", "zrem", "zremrangebyscore",
}

// No command is newer than Redis 6.2, those of scripts included: they are counted by the server while views of each layout are
// built, written live, read, listed and removed.
func TestCommandsAreOf62(t *testing.T) {
	server := startServer(t)
	s := openStore(t, server.address())
	w := newLiveWorld(t, s)
	ctx := context.Background()
	w.commit(w.batch(w.topic(0), 50, true))
	w.build()
	w.build() // removes what was built before
	b := w.batch(w.topic(0), 50, true)
	if _, err := w.live.Write(ctx, b, allKnown); err != nil {
		t.Fatal(err)
	}
	w.commit(b)
	w.fatal(w.live.Settle(ctx))
	w.fatal(s.Lease(ctx, "w"))
	_, err := s.Workers(ctx)
	w.fatal(err)
	w.fatal(s.Release(ctx, "w"))
	_, err = s.Restarted(ctx)
	w.fatal(err)
	w.check("its commands were counted")
	c := server.client()
	defer c.Close()
	w.fatal(c.ScriptFlush(ctx).Err()) // which makes scripts be sent whole
	b = w.batch(w.topic(0), 20, true)
	if _, err := w.live.Write(ctx, b, allKnown); err != nil {
		t.Fatal(err)
	}
	w.repair("all", "a", "nobody")
	w.fatal(s.Forget(ctx, "all"))
	if used := newerCommands(t, c, "script|flush", "keys"); len(used) > 0 { // the test's own
		t.Errorf("commands that are not known to be in Redis 6.2: %v", used)
	}
	w.fatal(c.Do(ctx, "object", "help").Err())
	if used := newerCommands(t, c, "script|flush", "keys"); !slices.ContainsFunc(used, func(u string) bool { return strings.HasPrefix(u, "object") }) {
		t.Errorf("the check found nothing of OBJECT: %v", used)
	}
	// What scripts name, also where they have not come to it.
	for _, script := range []*script{guardedOf(3), guardedPatch, guardedFeast, clearFeast, guardedTiles, repaired} {
		for _, call := range regexp.MustCompile(`redis\.p?call\('(\w+)'`).FindAllStringSubmatch(script.text, -1) {
			if !slices.Contains(commands62, strings.ToLower(call[1])) {
				t.Errorf("a script calls %s", call[1])
			}
		}
	}
}

// newerCommands are the commands that a server has been sent and that are not in commands62, but for the tests' own.
func newerCommands(t *testing.T, c *redis.Client, own ...string) []string {
	t.Helper()
	text, err := c.Info(context.Background(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	var newer []string
	seen := 0
	for line := range strings.Lines(text) {
		name, counts, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "cmdstat_"), ":")
		if !ok || !strings.HasPrefix(counts, "calls=") || strings.HasPrefix(counts, "calls=0,") {
			continue
		}
		seen++
		command, _, _ := strings.Cut(name, "|")
		if !slices.Contains(commands62, command) && !slices.Contains(own, name) {
			newer = append(newer, name)
		}
	}
	if seen < 10 {
		t.Errorf("%d commands were counted", seen)
	}
	return newer
}
