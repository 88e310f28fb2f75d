// Package wire stands between a client and a server in tests, and does what networks and slow servers do.
package wire

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// Wire passes on what a client and a server say.
type Wire struct {
	server   string
	listener net.Listener

	mu     sync.Mutex
	delay  time.Duration         // of what the server says
	silent bool                  // nothing is passed on any more
	torn   bool                  // connections end as soon as they are made
	ends   map[net.Conn]net.Conn // the clients' ends that are open, and the servers'
	lost   map[net.Conn]bool     // clients' ends on which something was swallowed
	most   int                   // how many there were at once
}

// Between makes a wire to a server, which ends with the test.
func Between(t testing.TB, server string) *Wire {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{server: server, listener: l, lost: map[net.Conn]bool{}, ends: map[net.Conn]net.Conn{}}
	var accepting sync.WaitGroup
	accepting.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		accepting.Wait()
		w.Tear()
	})
	return w
}

// Address is where clients connect to.
func (w *Wire) Address() string { return w.listener.Addr().String() }

// Slow has the server's answers come that much later from now on.
func (w *Wire) Slow(delay time.Duration) { w.set(func() { w.delay = delay }) }

// Silence swallows all bytes from now on, those of new connections too: of the next answer on each connection the first half comes.
func (w *Wire) Silence() { w.set(func() { w.silent = true }) }

// Tear resets all connections, and new ones as soon as they are made.
func (w *Wire) Tear() {
	w.set(func() {
		w.torn = true
		for client, server := range w.ends {
			reset(client)
			reset(server)
		}
	})
}

// Mend passes on as in the beginning. Connections on which something was swallowed are reset.
func (w *Wire) Mend() {
	w.set(func() {
		w.delay, w.silent, w.torn = 0, false, false
		for client := range w.lost {
			reset(client)
		}
	})
}

// Open is how many connections there are.
func (w *Wire) Open() (n int) {
	w.set(func() { n = len(w.ends) })
	return n
}

// Most is how many connections there were at once since it was last asked for.
func (w *Wire) Most() (n int) {
	w.set(func() { n, w.most = w.most, len(w.ends) })
	return n
}

func (w *Wire) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// reset ends a connection as one does whose peer has forgotten it.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be closed
	}
	c.Close()
}

func (w *Wire) accept() {
	var passing sync.WaitGroup
	defer passing.Wait()
	for {
		client, err := w.listener.Accept()
		if err != nil {
			w.Tear()
			return
		}
		server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", w.server)
		if err != nil {
			reset(client)
			continue
		}
		torn := false
		w.set(func() {
			if torn = w.torn; !torn {
				w.ends[client] = server
				w.most = max(w.most, len(w.ends))
			}
		})
		if torn {
			reset(client)
			server.Close()
			continue
		}
		passing.Go(func() { w.pass(client, server) })
	}
}

// said is what the server said, and when it is to be passed on.
type said struct {
	text []byte
	at   time.Time
}

// pass passes on until either side ends the connection.
func (w *Wire) pass(client, server net.Conn) {
	answers, gone := make(chan said, 1024), make(chan struct{})
	var parts sync.WaitGroup
	parts.Go(func() {
		defer server.Close()
		defer close(gone)
		for b := make([]byte, 64<<10); ; {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			silent := false
			w.set(func() {
				if silent = w.silent; silent {
					w.lost[client] = true
				}
			})
			if silent {
				continue
			}
			if _, err := server.Write(b[:n]); err != nil {
				return
			}
		}
	})
	parts.Go(func() {
		defer close(answers)
		for {
			b := make([]byte, 64<<10)
			n, err := server.Read(b)
			if err != nil {
				return
			}
			var delay time.Duration
			w.set(func() { delay = w.delay })
			answers <- said{b[:n], time.Now().Add(delay)}
		}
	})
	parts.Go(func() {
		defer client.Close()
		for a := range answers {
			select {
			case <-gone:
			case <-time.After(time.Until(a.at)):
			}
			w.set(func() {
				switch {
				case !w.silent:
				case w.lost[client]:
					a.text = nil
				default:
					a.text, w.lost[client] = a.text[:len(a.text)/2], true
				}
			})
			if _, err := client.Write(a.text); err != nil {
				break
			}
		}
		for range answers { // so that their reader ends
		}
	})
	parts.Wait()
	w.set(func() {
		delete(w.ends, client)
		delete(w.lost, client)
	})
}
