package online

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// ErrUnavailable: no generation of the view is ready to be read, or what holds it can't be asked.
var ErrUnavailable = errors.New("no generation is ready")

// Store is a Redis, or a Redis Cluster, that holds the views of one project. It is safe for concurrent use.
type Store struct {
	project string
	redis   redis.UniversalClient
	process *miniredis.Miniredis // in-process, or nil
	servers servers
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
	Cluster  bool // it is a cluster, also where one address is given
}

// Open connects to the Redis at host:port, and refuses one that may evict what is written. Several addresses, joined by
// commas, are those of servers of a cluster: one that answers is enough.
func Open(ctx context.Context, project, address string) (*Store, error) {
	return OpenAs(ctx, project, address, Access{})
}

// OpenAs is Open with TLS, or as a user.
func OpenAs(ctx context.Context, project, address string, as Access) (*Store, error) {
	redisLog.Do(func() { redis.SetLogger(quiet{}) })
	s := &Store{project: project}
	// A call ends with its context, too. CLIENT SETINFO, by which a client says who it is, is newer than Redis 6.2.
	if addresses := strings.Split(address, ","); as.Cluster || len(addresses) > 1 {
		s.redis = redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: addresses, DialTimeout: dialTimeout, ReadTimeout: callTimeout, WriteTimeout: callTimeout,
			ContextTimeoutEnabled: true, DisableIdentity: true,
			TLSConfig: as.TLS, Username: as.User, Password: as.Password, OnConnect: s.meet,
		})
	} else {
		s.redis = redis.NewClient(&redis.Options{
			Addr: address, DialTimeout: dialTimeout, ReadTimeout: callTimeout, WriteTimeout: callTimeout, MaxRetries: 1,
			ContextTimeoutEnabled: true, DisableIdentity: true,
			TLSConfig: as.TLS, Username: as.User, Password: as.Password, OnConnect: s.meet,
		})
	}
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open Redis at %s: %w", address, err), s.Close())
	}
	s.servers.told = s.runIDs()
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
		project: project, process: m, servers: servers{runs: []string{""}},
		redis: redis.NewClient(&redis.Options{Addr: m.Addr(), DisableIdentity: true}),
	}, nil
}

// quiet drops what the Redis client logs by itself: errors reach their callers.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var redisLog sync.Once

// sharded reports whether keys are on several masters, which answer beside each other.
func (s *Store) sharded() bool {
	_, cluster := s.redis.(*redis.ClusterClient)
	return cluster
}

// unusable says what to do where the server can't be asked.
func unusable(err error) error {
	remedy := "it does not answer, start it or mend online.redis in loam.yaml"
	switch text := err.Error(); {
	case errors.Is(err, errReplica):
		remedy = "name its master in online.redis of loam.yaml"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		remedy = "its certificate is not one to trust, mend online.tls in loam.yaml: ca names who signed it, server_name the name in it"
	case errors.As(err, new(tls.RecordHeaderError)):
		remedy = "it doesn't talk TLS on this port, mend online.redis or online.tls in loam.yaml"
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "NOAUTH"):
		remedy = "it doesn't know this user and password, mend online.user and the place that online.password names"
	case strings.Contains(text, "NOPERM"):
		remedy = "the user lacks a right, docs/redis.md lists those that are needed"
	case strings.Contains(text, "cluster support disabled"):
		remedy = "it is no cluster: give one address in online.redis, without online.cluster"
	case strings.Contains(text, "CLUSTERDOWN"):
		remedy = "its cluster is down, some of its slots have no server"
	case strings.Contains(text, "max number of clients"):
		remedy = "it has as many clients as its maxclients allows"
	case errors.Is(err, io.EOF), strings.Contains(text, "connection reset"), strings.Contains(text, "broken pipe"):
		remedy = "it ended the connection, which it does where it wants TLS, or a client's certificate (see online.tls in loam.yaml), and where it has as many clients as its maxclients allows"
	}
	return fmt.Errorf("%s: %w", remedy, err)
}

// masters has something done with every server that holds slots, or with the one that there is; with several at a time.
func (s *Store) masters(ctx context.Context, do func(context.Context, *redis.Client) error) error {
	if cluster, ok := s.redis.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, do)
	}
	return do(ctx, s.redis.(*redis.Client))
}

// now is the time by the clock of the server that holds a key: clocks of a cluster's servers differ.
func (s *Store) now(ctx context.Context, key string) (time.Time, error) {
	if cluster, ok := s.redis.(*redis.ClusterClient); ok {
		master, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return time.Time{}, err
		}
		return master.Time(ctx).Result()
	}
	return s.redis.Time(ctx).Result()
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
