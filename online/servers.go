package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// servers are the masters of a store, as far as this process knows.
//
// What a server holds is what was written as long as it is the same run of it: a Redis draws its run id anew whenever it
// starts, also where it then loads an old dump. A server that was a replica lacks what had not come to it when it was
// promoted, so a promotion counts as another run, also that of a server that was master before and kept its run id.
//
// Slots that are moved take their keys along, whole: where the masters stay, a resharding changes nothing. A master that
// is new in the cluster, and held nothing before, has only keys that were moved to it, and joins those that hold a
// generation. That is sure only of one that was running, and no replica, when the cluster was last seen without it; any
// other may have lost again what was moved to it.
type servers struct {
	mu       sync.Mutex
	runs     []string        // of the masters as they were last asked, sorted
	joined   map[string]bool // runs that have only keys that were moved to them
	asked    time.Time       // when they were last asked
	stranger bool            // since then, one was connected to that was not among them
	met      int             // how often that has happened
	told     []string        // the runs when Restarted last told
}

// errReplica: a replica may lack what its master was told, so none is talked to.
var errReplica = errors.New("it is a replica")

// server is what a server says of itself.
type server struct {
	run  string        // its run id, with where it was promoted if it was
	up   time.Duration // since when it runs, whole seconds
	info map[string]string
}

// promoted reports whether it has been a replica.
func (s server) promoted() bool { return strings.Contains(s.run, "+") }

// infoer is a client or a connection.
type infoer interface {
	Info(ctx context.Context, section ...string) *redis.StringCmd
}

// ask asks a server what it is. A double that knows few sections has no run id.
func ask(ctx context.Context, c infoer, sections ...string) (server, error) {
	values := map[string]string{}
	for _, section := range sections {
		text, err := c.Info(ctx, section).Result()
		if err != nil {
			if strings.Contains(err.Error(), "section") {
				continue
			}
			return server{}, err
		}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				values[k] = v
			}
		}
	}
	if values["role"] == "slave" {
		return server{}, errReplica
	}
	s := server{run: values["run_id"], info: values}
	if at := values["second_repl_offset"]; at != "" && at != "-1" {
		s.run += "+" + at
	}
	seconds, _ := strconv.ParseInt(values["uptime_in_seconds"], 10, 64) // 0 where it isn't said, which is the careful answer
	s.up = time.Duration(seconds) * time.Second
	return s, nil
}

// Sections of INFO that tell which run of a server it is, and what it does when memory is short.
var (
	identity = []string{"server", "replication"}
	bounded  = append(identity, "memory")
)

// meet looks at every server that is connected to, before anything is asked of it: one that restarted in between would
// answer as if nothing had happened.
func (s *Store) meet(ctx context.Context, c *redis.Conn) error {
	one, err := ask(ctx, c, identity...)
	if err != nil {
		return err
	}
	k := &s.servers
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.Contains(k.runs, one.run) {
		k.stranger = true
		k.met++
	}
	return nil
}

// meetings is how often a server was connected to that was not known. What was read belongs together only if no other
// was met meanwhile.
func (s *Store) meetings() int {
	s.servers.mu.Lock()
	defer s.servers.mu.Unlock()
	return s.servers.met
}

// checksMax bounds how often the masters are asked again because one was met while they were.
const checksMax = 5

// check asks all masters who they are.
func (s *Store) check(ctx context.Context) error {
	for range checksMax {
		met, begun := s.meetings(), time.Now()
		var mu sync.Mutex
		var all []server
		err := s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
			one, err := ask(ctx, c, bounded...)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, one)
			return nil
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(away(ctx, err), ErrAway):
			return awayError{unusable(err)}
		default:
			return unusable(err)
		}
		for _, one := range all {
			policy, limit := one.info["maxmemory_policy"], one.info["maxmemory"]
			if limit != "" && limit != "0" && policy != "" && policy != "noeviction" {
				return fmt.Errorf("its maxmemory-policy is %s, so it may drop values without a word: set it to noeviction", policy)
			}
		}
		if s.servers.take(all, met, begun) {
			return nil
		}
	}
	return fmt.Errorf("%w: its servers change all the time", ErrAway)
}

// take notes the masters as they were asked from begun on, unless another was met meanwhile.
func (k *servers) take(all []server, met int, begun time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.met != met {
		return false
	}
	joined := map[string]bool{}
	for _, one := range all {
		known := slices.Contains(k.runs, one.run)
		// A second more, for it says whole seconds.
		ran := !k.asked.IsZero() && one.up > begun.Sub(k.asked)+time.Second
		if known && k.joined[one.run] || !known && ran && !one.promoted() {
			joined[one.run] = true
		}
	}
	k.runs = k.runs[:0:0]
	for _, one := range all {
		k.runs = append(k.runs, one.run)
	}
	slices.Sort(k.runs)
	k.joined, k.asked, k.stranger = joined, begun, false
	return true
}

// runIDs are the run ids of the masters as they were last asked for.
func (s *Store) runIDs() []string {
	s.servers.mu.Lock()
	defer s.servers.mu.Unlock()
	return s.servers.runs
}

// holds reports whether the masters are those that a generation was written to, and others that took keys of them over.
func (s *Store) holds(g Generation) bool {
	k := &s.servers
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.stranger && k.follow(g.Runs)
}

// follow reports whether the masters are those of the runs, and others that took keys of them over.
func (k *servers) follow(runs []string) bool {
	for _, run := range runs {
		if !slices.Contains(k.runs, run) {
			return false
		}
	}
	return !slices.ContainsFunc(k.runs, func(run string) bool { return !slices.Contains(runs, run) && !k.joined[run] })
}

// Restarted asks who answers, and reports whether it is another Redis than the last time: it restarted, a replica took
// over, or one of its servers is gone. What it holds is then not what was written, and every view is to be built anew.
func (s *Store) Restarted(ctx context.Context) (bool, error) {
	if s.process != nil {
		return false, nil
	}
	if err := s.check(ctx); err != nil {
		return false, fmt.Errorf("ask Redis for its run id: %w", err)
	}
	s.servers.mu.Lock()
	defer s.servers.mu.Unlock()
	before := s.servers.told
	s.servers.told = s.servers.runs
	return !s.servers.follow(before), nil
}

// recheckAfter is how long the masters of a cluster count as those that they were. A server that is master again after it was a
// replica keeps its connections, so none is met.
const recheckAfter = time.Second

// acquainted asks who answers where a server was met that is not known, and of a cluster now and then.
func (s *Store) acquainted(ctx context.Context) error {
	s.servers.mu.Lock()
	ask := s.servers.stranger || s.sharded() && time.Since(s.servers.asked) > recheckAfter
	s.servers.mu.Unlock()
	if !ask {
		return nil
	}
	return s.check(ctx)
}

// slots says which server holds which slots, and whether some are being moved. It is "" of a Redis that is no cluster.
func (s *Store) slots(ctx context.Context) (held string, moving bool, err error) {
	if _, cluster := s.redis.(*redis.ClusterClient); !cluster {
		return "", false, nil
	}
	var mu sync.Mutex
	var lines []string
	err = s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
		text, err := c.ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) > 8 && strings.Contains(fields[2], "myself") {
				mu.Lock()
				lines = append(lines, fields[0]+" "+strings.Join(fields[8:], " "))
				mu.Unlock()
			}
		}
		return nil
	})
	slices.Sort(lines)
	held = strings.Join(lines, "\n")
	return held, strings.Contains(held, "->-") || strings.Contains(held, "-<-"), err
}
