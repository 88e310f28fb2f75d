package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/internal/redisd"
)

// Clients of a server, and what they may cost it.
const (
	clientsMax       = 10_000
	filesBeside      = 500       // that a process has open besides its clients
	serverBytesMax   = 768 << 20 // of the server's resident memory, ever
	redisConnections = 200       // of the server's; its pool has 10 a core
	triesMax         = 100       // of a client that is told to try again
)

// files raises how many files this process, and those that it starts, may have open, and gives how many that are.
func files(t *testing.T, want uint64) uint64 {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if raised := (syscall.Rlimit{Cur: want, Max: max(want, limit.Max)}); limit.Cur < want && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) != nil {
		raised = syscall.Rlimit{Cur: limit.Max, Max: limit.Max} // whoever may not raise the hard limit
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Cur
}

// resident is how much memory a process has, or by VmHWM the most that it ever had, in bytes; 0 where the system doesn't tell.
func resident(process *os.Process, which string) int64 {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(process.Pid), "status"))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, which+":"); ok {
			kilobytes, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kilobytes << 10
		}
	}
	return 0
}

// client is a connection to a server that stays.
type client struct {
	net.Conn
	answers *bufio.Reader
}

// ask asks for something, and gives status and answer.
func (c client) ask(method, path, body string) (int, string, error) {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return 0, "", err
	}
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: loam\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body); err != nil {
		return 0, "", err
	}
	r, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return r.StatusCode, string(text), err
}

// contacts is how many contacts ticketsOnline makes; the n-th has n open tickets.
const contacts = 50

// ticketsOnline is a project whose contacts are in a Redis of the test's own.
func ticketsOnline(t *testing.T) (own *redisd.Server, dir string) {
	t.Helper()
	own = redisd.New(t)
	dir = newProject(t, fmt.Sprintf("online: {redis: %q}", own.Address))
	var events strings.Builder
	for c := range contacts {
		events.WriteString(tickets(int64(c), time.Now().Add(-time.Hour), c, int64(c)))
	}
	file := filepath.Join(t.TempDir(), "events.jsonl")
	write(t, file, events.String())
	run(t, dir, "apply")
	backfill(t, dir, file)
	run(t, dir, "materialize")
	return own, dir
}

// connect connects to a server.
func connect(address string) (client, error) {
	c, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		return client{}, err
	}
	return client{c, bufio.NewReaderSize(c, 1<<10)}, nil
}

// right asks for a contact of ticketsOnline. It is false where the client is told to try again.
func (c client) right(contact int) (bool, error) {
	status, answer, err := c.ask("POST", "/get-online-features", fmt.Sprintf(`{"features":["profile:open_tickets"],"entities":{"contact_id":["c%d"]}}`, contact))
	if err != nil {
		return false, err
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		return false, nil
	}
	var got struct {
		Results []struct{ Values []json.RawMessage }
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != http.StatusOK || string(got.Results[1].Values[0]) != strconv.Itoa(contact) {
		return false, fmt.Errorf("of contact %d it answers %d %s", contact, status, answer)
	}
	return true, nil
}

// Ten thousand clients that stay connected and ask all at once are each given the right value, or told to try again until they are;
// connections to Redis and memory stay bounded, and after them the server answers as before.
func TestTenThousandClients(t *testing.T) {
	clients := clientsMax
	if limit := files(t, clientsMax+filesBeside); limit < clientsMax+filesBeside {
		clients = int(limit) - filesBeside
		t.Logf("%d clients, for a process may have %d files open here", clients, limit)
	}
	own, dir := ticketsOnline(t)
	url, process := startServing(t, dir)
	address := strings.TrimPrefix(url, "http://")
	beside := redis.NewClient(&redis.Options{Addr: own.Address, DisableIdentity: true, PoolSize: 1})
	defer beside.Close()

	before := resident(process, "VmRSS")
	var connected, done sync.WaitGroup
	begin := make(chan struct{})
	dialing := make(chan struct{}, 200) // at once
	var first, tries, failed atomic.Int64
	for i := range clients {
		connected.Add(1)
		done.Go(func() {
			dialing <- struct{}{}
			c, err := connect(address)
			if err == nil {
				defer c.Close()
				_, _, err = c.ask("GET", "/health", "") // a connection without a request would soon be ended
			}
			<-dialing
			connected.Done()
			<-begin
			for try := 0; err == nil; try++ {
				var ok bool
				if ok, err = c.right(i % contacts); ok {
					if try == 0 {
						first.Add(1)
					}
					return
				}
				if err == nil && try == triesMax {
					err = fmt.Errorf("it was refused %d times", try)
				}
				tries.Add(1)
				time.Sleep(time.Duration(rand.IntN(int(2 * time.Second << min(try, 2))))) // as a client does that is told to come later
			}
			if failed.Add(1) <= 3 {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	connected.Wait()
	idle := resident(process, "VmRSS")
	begun := time.Now()
	close(begin)
	all := make(chan struct{})
	go func() {
		done.Wait()
		close(all)
	}()
	connections := int64(0)
	for ended := false; !ended; {
		select {
		case <-all:
			ended = true
		case <-time.After(20 * time.Millisecond):
		}
		text, err := beside.Info(t.Context(), "clients").Result()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "connected_clients:"); ok {
				now, _ := strconv.ParseInt(n, 10, 64)
				connections = max(connections, now)
			}
		}
	}
	took, most := time.Since(begun), resident(process, "VmHWM")
	t.Logf("%d clients: %d had their value at once, all in %s with %d refusals; %d connections to Redis; the server had %d MiB before, %d with all connected, %d at most",
		clients, first.Load(), took.Round(time.Millisecond), tries.Load(), connections-1, before>>20, idle>>20, most>>20)
	if n := failed.Load(); n > 0 {
		t.Errorf("%d clients had no value", n)
	}
	if connections-1 > redisConnections {
		t.Errorf("there were %d connections to Redis, want %d at most", connections-1, redisConnections)
	}
	if most > serverBytesMax {
		t.Errorf("the server took %d MiB, want %d at most", most>>20, serverBytesMax>>20)
	}
	c, err := connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if ok, err := c.right(7); !ok || err != nil {
		t.Errorf("after them: %v, %v", ok, err)
	}
	if status, text, err := c.ask("GET", "/metrics", ""); err != nil || status != http.StatusOK || !strings.Contains(text, "\nloam_requests_in_flight 0\n") {
		t.Errorf("after them: %d %v %s", status, err, text)
	}
}

// Where a server has no file left for another client, those that it has are answered, and the others are once there is room again.
func TestMoreClientsThanFiles(t *testing.T) {
	_, dir := ticketsOnline(t)
	const limit = 100
	url, process := startServing(t, dir, "sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh")
	address := strings.TrimPrefix(url, "http://")
	var held []client
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	hold := func() client {
		t.Helper()
		c, err := connect(address)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		return c
	}
	first := hold()
	if ok, err := first.right(7); !ok || err != nil {
		t.Fatalf("before: %v, %v", ok, err)
	}
	for range 2 * limit {
		hold()
	}
	open := func() int {
		files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(process.Pid), "fd"))
		if err != nil {
			t.Skipf("this system doesn't tell what files a process has open: %v", err)
		}
		return len(files)
	}
	for end := time.Now().Add(10 * time.Second); open() < limit; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the server has %d files open", open())
		}
	}
	for range 20 {
		if ok, err := first.right(7); !ok || err != nil {
			t.Errorf("with no file left: %v, %v", ok, err)
		}
	}
	for _, c := range held[1:] {
		c.Close()
	}
	held = held[:1]
	for range 5 {
		if ok, err := hold().right(8); !ok || err != nil {
			t.Errorf("with room again: %v, %v", ok, err)
		}
	}
}
