// Package redisd starts a redis-server of a test's own, which may be killed, started again and set as the test likes.
package redisd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Server is a redis-server on the loopback. It keeps nothing on disk but what SAVE is told to.
type Server struct {
	Address string
	t       testing.TB
	binary  string
	dir     string
	process *exec.Cmd
}

// startMax bounds how long a start is waited for.
const startMax = 30 * time.Second

// Binary finds redis-server. Where there is none the test is skipped, or fails in CI.
func Binary(t testing.TB) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("LOAM_CI") == "1" {
			t.Fatal("redis-server is missing: scripts/services/redis.sh install brings it")
		}
		t.Skip("redis-server is missing: scripts/services/redis.sh install brings it")
	}
	return binary
}

// New starts a server, which ends with the test, of [Binary].
func New(t testing.TB) *Server {
	t.Helper()
	binary := Binary(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Address: l.Addr().String(), t: t, binary: binary, dir: t.TempDir()}
	l.Close()
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// Start starts it, with what it saved last, and waits until it listens.
func (s *Server) Start() {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.process = exec.Command(s.binary, "--bind", host, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no")
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(startMax); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", s.Address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("redis-server doesn't listen: %v", err)
		}
	}
}

// Kill kills it. What it did not save is lost.
func (s *Server) Kill() {
	_ = s.process.Process.Kill() // it may have ended
	_ = s.process.Wait()
}

// Forget removes what was saved, so that it starts empty.
func (s *Server) Forget() {
	s.t.Helper()
	if err := os.Remove(filepath.Join(s.dir, "dump.rdb")); err != nil {
		s.t.Fatal(err)
	}
}
