package online

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// ErrUnavailable: no generation of the view is ready to be read.
var ErrUnavailable = errors.New("no generation is ready")

// Store is a Redis that holds the views of one project. It is safe for concurrent use.
type Store struct {
	project string
	redis   redis.UniversalClient
	process *miniredis.Miniredis // in-process, or nil
	mu      sync.Mutex
	runs    []string // run ids of the masters, sorted: those of the newest connections
	told    []string // that Restarted has told
}

// Timeouts of Redis. A call that takes longer has failed; it is repeated by whoever made it.
const (
	dialTimeout = 3 * time.Second
	callTimeout = 5 * time.Second
)

// Access says how a Redis is talked to.
type Access struct {
	TLS      *tls.Config // nil for none
	User     string      // "" for the default user
	Password string
}

// Open connects to the Redis at host:port, and refuses one that may evict what is written.
func Open(ctx context.Context, project, address string) (*Store, error) {
	return OpenAs(ctx, project, address, Access{})
}

// OpenAs is Open with TLS, or as a user.
func OpenAs(ctx context.Context, project, address string, as Access) (*Store, error) {
	s := &Store{project: project}
	s.redis = redis.NewClient(&redis.Options{
		Addr: address, DialTimeout: dialTimeout, ReadTimeout: callTimeout, WriteTimeout: callTimeout, MaxRetries: 1,
		ContextTimeoutEnabled: true, // a call ends with its context, too
		TLSConfig:             as.TLS, Username: as.User, Password: as.Password,
		DisableIdentity: true, // CLIENT SETINFO is newer than Redis 6.2
		OnConnect:       s.connected,
	})
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open Redis at %s: %w", address, err), s.Close())
	}
	s.told = s.runIDs()
	return s, nil
}

// InProcess starts a Redis inside this process, which ends with it.
func InProcess(project string) (*Store, error) {
	redisLog.Do(func() { redis.SetLogger(quiet{}) })
	m, err := miniredis.Run()
	if err != nil {
		return nil, fmt.Errorf("start an in-process Redis: %w", err)
	}
	return &Store{
		project: project, process: m, runs: []string{""},
		redis: redis.NewClient(&redis.Options{Addr: m.Addr(), DisableIdentity: true}),
	}, nil
}

// quiet drops what the Redis client logs by itself: errors reach their callers.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var redisLog sync.Once

// check reads what the server says of itself.
func (s *Store) check(ctx context.Context) error {
	redisLog.Do(func() { redis.SetLogger(quiet{}) })
	info, err := infoOf(ctx, s.redis, "server", "memory")
	if err != nil {
		return unusable(err)
	}
	policy, bounded := info["maxmemory_policy"], info["maxmemory"]
	if bounded != "" && bounded != "0" && policy != "" && policy != "noeviction" {
		return fmt.Errorf("its maxmemory-policy is %s, so it may drop values without a word: set it to noeviction", policy)
	}
	return nil
}

// connected asks a new connection which run of Redis it is to, before anything else is sent over it. A process ends with its
// connections, so what is answered over one is of the run that was noted when it was made, or of an older one: never of a newer one.
func (s *Store) connected(ctx context.Context, c *redis.Conn) error {
	run, err := runOf(ctx, c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.runs, []string{run}) {
		return nil
	}
	// Of two connections that are made at once the older run may come last. It has ended, and doesn't answer again.
	if run, err = runOf(ctx, c); err != nil {
		return err
	}
	s.runs = []string{run}
	return nil
}

// runOf asks a connection for the run id of its server.
func runOf(ctx context.Context, c *redis.Conn) (string, error) {
	info, err := infoOf(ctx, c, "server")
	if err != nil {
		return "", fmt.Errorf("ask Redis for its run id: %w", err)
	}
	return info["run_id"], nil
}

// sharded reports whether keys are on several masters, which answer beside each other.
func (s *Store) sharded() bool {
	_, cluster := s.redis.(*redis.ClusterClient)
	return cluster
}

// unusable says what to do where the server can't be asked.
func unusable(err error) error {
	remedy := "it does not answer, start it or mend online.redis in loam.yaml"
	switch text := err.Error(); {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		remedy = "its certificate is not one to trust, mend online.tls in loam.yaml: ca names who signed it, server_name the name in it"
	case errors.As(err, new(tls.RecordHeaderError)):
		remedy = "it doesn't talk TLS on this port, mend online.redis or online.tls in loam.yaml"
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "NOAUTH"):
		remedy = "it doesn't know this user and password, mend online.user and the place that online.password names"
	case strings.Contains(text, "NOPERM"):
		remedy = "the user lacks a right, docs/redis.md lists those that are needed"
	case errors.Is(err, io.EOF), strings.Contains(text, "connection reset"):
		remedy = "it ended the connection, which it does where it wants TLS, or a client's certificate: see online.tls in loam.yaml"
	}
	return fmt.Errorf("%s: %w", remedy, err)
}

// runIDs are the run ids of the masters, of the newest connections. The slice isn't changed.
func (s *Store) runIDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs
}

// infoOf is what INFO says in some of its sections.
func infoOf(ctx context.Context, r redis.Cmdable, sections ...string) (map[string]string, error) {
	values := map[string]string{}
	for _, section := range sections {
		text, err := r.Info(ctx, section).Result()
		if err != nil {
			if strings.Contains(err.Error(), "section") { // a double that knows few sections
				continue
			}
			return nil, err
		}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				values[k] = v
			}
		}
	}
	return values, nil
}

// Restarted reports whether another Redis answers than the last time it was asked: it restarted, or another took over.
// What it holds is then not what was written, and every view is to be built anew.
func (s *Store) Restarted(ctx context.Context) (bool, error) {
	if s.process != nil {
		return false, nil
	}
	if err := s.check(ctx); err != nil {
		return false, fmt.Errorf("ask Redis for its run id: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.told
	s.told = s.runs
	return !slices.Equal(before, s.told), nil
}

// InProcess reports whether the store ends with this process.
func (s *Store) InProcess() bool { return s.process != nil }

// Close ends the connection, and an in-process Redis.
func (s *Store) Close() error {
	err := s.redis.Close()
	if s.process != nil {
		s.process.Close()
	}
	if err != nil {
		return fmt.Errorf("close Redis: %w", err)
	}
	return nil
}
