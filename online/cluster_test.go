package online

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/internal/redisd"
)

// A testServer is a redis-server of a test's own. It is killed with the test.
type testServer struct {
	t       *testing.T
	port    string
	dir     string
	options []string
	cmd     *exec.Cmd
}

// startServer starts one, and skips the test where there is none to start.
func startServer(t *testing.T, options ...string) *testServer {
	t.Helper()
	redisd.Binary(t)
	s := &testServer{t: t, port: freePort(t), dir: t.TempDir(), options: options}
	t.Cleanup(s.kill)
	s.start()
	return s
}

// freePort is a port below those that systems give out by themselves, and which has another one 10000 above it: a
// server of a cluster speaks to the others there.
func freePort(t *testing.T) string {
	t.Helper()
	for range 200 {
		port := 11_000 + rand.IntN(9_000)
		free := true
		for _, p := range []int{port, port + 10_000} {
			l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", p))
			if free = free && err == nil; err == nil {
				l.Close()
			}
		}
		if free {
			return strconv.Itoa(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (s *testServer) address() string { return "127.0.0.1:" + s.port }

// start starts it, with what its folder holds.
func (s *testServer) start() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", append([]string{"--bind", "127.0.0.1", "--port", s.port, "--dir", s.dir, "--save", "", "--appendonly", "no",
		"--daemonize", "no", "--enable-debug-command", "yes"}, s.options...)...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.await("it answers", func(c *redis.Client) bool { return c.Ping(context.Background()).Err() == nil })
}

// kill ends it at once.
func (s *testServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *testServer) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.address(), DisableIdentity: true, MaxRetries: -1})
}

func (s *testServer) await(what string, so func(c *redis.Client) bool) {
	s.t.Helper()
	c := s.client()
	defer c.Close()
	awaitThat(s.t, what, func() bool { return so(c) })
}

func awaitThat(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in a minute not: %s", what)
		}
	}
}

// cli runs redis-cli.
func cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("redis-cli", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startCluster starts a cluster of so many masters, each with so many replicas.
func startCluster(t *testing.T, masters, replicas int) (all []*testServer, address string) {
	t.Helper()
	args := []string{"--cluster", "create"}
	var addresses []string
	for range masters * (1 + replicas) {
		s := startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
		all, addresses = append(all, s), append(addresses, s.address())
	}
	args = append(append(args, addresses...), "--cluster-replicas", strconv.Itoa(replicas), "--cluster-yes")
	cli(t, args...)
	for _, s := range all {
		s.await("the cluster is up", func(c *redis.Client) bool {
			text, err := c.ClusterInfo(context.Background()).Result()
			return err == nil && strings.Contains(text, "cluster_state:ok")
		})
	}
	return all, strings.Join(addresses, ",")
}

func (s *testServer) id() string { return strings.TrimSpace(cli(s.t, "-p", s.port, "cluster", "myid")) }

// Slots are moved to and fro while values are written and read: nothing is lost, nothing wrong is read, and the views
// stay as they are, also on a server that joins meanwhile. A server that is met for the first time and may have lost what
// was moved to it does not.
func TestResharding(t *testing.T) {
	servers, address := startCluster(t, 3, 0)
	s := openStore(t, address)
	w := newLiveWorld(t, s)
	w.commit(w.batch(w.topic(0), 200, false))
	w.build()
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { // as a worker does
		for ctx.Err() == nil {
			b := w.batch(w.topic(0), 20, false)
			if restarted, err := s.Restarted(context.Background()); err != nil || restarted {
				t.Errorf("restarted: %v, %v", restarted, err)
			}
			for {
				if _, err := w.live.Write(context.Background(), b, allKnown); err == nil {
					break
				} else if ctx.Err() != nil {
					t.Errorf("it can't write any more: %v", err)
					return
				}
			}
			w.commit(b)
		}
	})
	reads := 0
	work.Go(func() {
		refs, err := w.project.Resolve([]string{"all:n"})
		w.fatal(err)
		other := openSame(t, s, address)
		reader := NewClient(other, w.project, time.Now)
		last := map[string]int64{}
		for ctx.Err() == nil {
			// A worker has asked who the masters are for the store that it writes by; this one is a reader's own.
			_, err := other.Restarted(context.Background())
			var rows [][]Feature
			if err == nil {
				rows, err = reader.Read(context.Background(), refs, []map[string]string{{"a": "a", "b": "0"}, {"a": "b", "b": "0"}, {"a": "c", "b": "0"}})
			}
			if err != nil {
				if !(errors.Is(err, ErrUnavailable) || errors.Is(err, ErrAway)) {
					t.Errorf("read: %v", err)
				}
				continue
			}
			reads++
			for i, row := range rows {
				at := row[0].EventTime.UnixMicro()
				if key := fmt.Sprint(i); at != 0 && row[0].Status != NotFound {
					if at < last[key] {
						t.Errorf("an older value came after a newer one")
					}
					last[key] = at
				}
			}
		}
	})
	move := func(from, to *testServer, slots int) {
		t.Helper()
		cli(t, "--cluster", "reshard", servers[0].address(), "--cluster-from", from.id(), "--cluster-to", to.id(), "--cluster-slots", strconv.Itoa(slots),
			"--cluster-yes", "--cluster-pipeline", "10")
	}
	move(servers[0], servers[1], 2000)
	move(servers[1], servers[2], 2000)
	more := startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
	time.Sleep(2 * time.Second) // uptime is told in seconds: it must have been running when the cluster was last looked at
	cli(t, "--cluster", "add-node", more.address(), servers[0].address())
	for _, one := range append(servers, more) {
		one.await("the new server is known", func(c *redis.Client) bool {
			nodes, err := c.ClusterNodes(ctx).Result()
			info, err2 := c.ClusterInfo(ctx).Result()
			return err == nil && err2 == nil && strings.Count(nodes, " connected") == 4 && strings.Contains(info, "cluster_state:ok")
		})
	}
	move(servers[2], more, 2000)
	move(servers[0], more, 1000)
	stop()
	work.Wait()
	if reads < 10 {
		t.Errorf("%d reads", reads)
	}
	all, err := s.Generations(context.Background(), "all")
	w.fatal(err)
	if g, ok := s.Usable(all, writer(t, s, w.project, "all").hash); !ok || g.Number != 1 || len(g.Runs) != 4 {
		t.Errorf("after slots were moved the generation is %+v, usable %v", g, ok)
	}
	// Who has not seen it join goes by what the worker has noted.
	stranger := openSame(t, s, address)
	if _, ok := stranger.Usable(all, writer(t, s, w.project, "all").hash); !ok {
		t.Error("a process that begins finds the view unavailable")
	}
	w.check("slots were moved")
}

// openSame opens the project of a store once more.
func openSame(t *testing.T, s *Store, address string) *Store {
	t.Helper()
	other, err := Open(context.Background(), s.project, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return other
}

// A replica that takes over may lack writes: what it holds is read no more, and neither when the server that was master
// before takes over again. A cluster without a server for some slots is unavailable.
func TestFailover(t *testing.T) {
	servers, address := startCluster(t, 3, 1)
	s := openStore(t, address)
	w := newLiveWorld(t, s)
	w.commit(w.batch(w.topic(0), 50, false))
	w.build()
	ctx := context.Background()
	refs, err := w.project.Resolve([]string{"all:n"})
	w.fatal(err)
	reader := NewClient(s, w.project, time.Now)
	read := func() error {
		var entities []map[string]string
		for k := range 20 {
			entities = append(entities, map[string]string{"a": string(rune('a' + k)), "b": "0"})
		}
		_, err := reader.Read(ctx, refs, entities)
		return err
	}
	w.fatal(read())
	role := func(one *testServer) string {
		c := one.client()
		defer c.Close()
		text, _ := c.Info(ctx, "replication").Result()
		_, role, _ := strings.Cut(text, "role:")
		role, _, _ = strings.Cut(role, "\r\n")
		return role
	}
	var replica, master *testServer
	for _, one := range servers {
		if role(one) == "slave" {
			replica = one
			break
		}
	}
	c := replica.client()
	defer c.Close()
	text, err := c.Info(ctx, "replication").Result()
	w.fatal(err)
	for _, one := range servers {
		if strings.Contains(text, "master_port:"+one.port) {
			master = one
		}
	}
	takeOver := func(one *testServer) {
		t.Helper()
		one.await("it follows its master", func(c *redis.Client) bool {
			text, err := c.Info(ctx, "replication").Result()
			return err == nil && strings.Contains(text, "master_link_status:up")
		})
		// The others vote for no second replica of a master within twice their timeout, and the attempt runs out in 5 s.
		var asked time.Time
		awaitThat(t, "it is master", func() bool {
			if time.Since(asked) > 6*time.Second {
				cli(t, "-p", one.port, "cluster", "failover")
				asked = time.Now()
			}
			return role(one) == "master"
		})
		// Each server learns of it at its own time.
		for _, other := range servers {
			other.await("it is master", func(c *redis.Client) bool {
				nodes, err := c.ClusterNodes(ctx).Result()
				_, of, _ := strings.Cut(nodes, ":"+one.port+"@")
				of, _, _ = strings.Cut(of, "\n")
				return err == nil && strings.Contains(of, "master") && len(strings.Fields(of)) > 7
			})
		}
	}
	takeOver(replica)
	// By the look at a server that is connected to, or by what the worker asks each second.
	awaitThat(t, "the view is unavailable", func() bool {
		_, err := s.Restarted(ctx)
		return err == nil && errors.Is(read(), ErrUnavailable)
	})
	takeOver(master)
	awaitThat(t, "the first master is asked", func() bool { restarted, err := s.Restarted(ctx); return err == nil && !restarted })
	if err := read(); !(errors.Is(err, ErrUnavailable) || errors.Is(err, ErrAway)) {
		t.Errorf("the first master is master again, and what it lost is read: %v", err)
	}
	if missing, err := w.live.Missing(ctx); err != nil || len(missing) != 3 {
		t.Errorf("missing are %v, %v", missing, err)
	}
	w.build()
	w.fatal(read())
	master.kill()
	replica.kill()
	awaitThat(t, "the cluster is down", func() bool { return errors.Is(read(), ErrAway) })
	if _, err := Open(ctx, "p", address); err == nil {
		t.Error("a cluster that is down opens")
	}
}

// Keys are listed whole, or not at all: while slots are being moved a listing gives up.
func TestListingWhileSlotsMove(t *testing.T) {
	servers, address := startCluster(t, 3, 0)
	s := openStore(t, address)
	w := newLiveWorld(t, s)
	w.commit(w.batch(w.topic(0), 50, false))
	w.build()
	ctx := context.Background()
	list := func() (int, error) {
		found := 0
		err := s.eachMatch(ctx, globEscape(s.project)+":*", func(keys []string) error {
			found += len(keys)
			return nil
		})
		return found, err
	}
	want := len(keys(t, s, s.project+":*"))
	if n, err := list(); err != nil || n != want {
		t.Errorf("%d keys are listed, want %d: %v", n, want, err)
	}
	cli(t, "-p", servers[1].port, "cluster", "setslot", "0", "importing", servers[0].id())
	cli(t, "-p", servers[0].port, "cluster", "setslot", "0", "migrating", servers[1].id())
	if _, err := list(); !errors.Is(err, errMoving) {
		t.Errorf("while a slot is being moved: %v", err)
	}
	for _, one := range servers[:2] {
		cli(t, "-p", one.port, "cluster", "setslot", "0", "stable")
	}
	if n, err := list(); err != nil || n != want {
		t.Errorf("afterwards %d keys are listed, want %d: %v", n, want, err)
	}
}

// A replica is not written to, nor read.
func TestReplica(t *testing.T) {
	master := startServer(t)
	replica := startServer(t, "--replicaof", "127.0.0.1 "+master.port)
	if _, err := Open(context.Background(), "p", replica.address()); !errors.Is(err, errReplica) || !strings.Contains(err.Error(), "name its master") {
		t.Errorf("a replica: %v", err)
	}
	if _, err := OpenAs(context.Background(), "p", master.address(), Access{Cluster: true}); err == nil || !strings.Contains(err.Error(), "it is no cluster") {
		t.Errorf("no cluster: %v", err)
	}
}
