package online

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
)

// State says how far a generation is.
type State string

// States of a generation.
const (
	Building State = "building" // written, not read
	Ready    State = "ready"    // written and read
)

// Generation is one generation of a view. Fields of the hash <project>:<view>:generations say it: <number> holds this
// as JSON, <number>:<topic>:<partition> the offset up to which it is written, its mark; <number>@<worker> that the worker
// writes it; <number>+<run> that a master took keys of it over; <number>/build who builds it; current the number that is read, next
// the newest number that was given.
type Generation struct {
	Number     int64            `json:"-"`
	Definition string           `json:"definition"`         // hash of the view's definition
	Features   []string         `json:"features,omitempty"` // names of the features, by the number that is their field
	State      State            `json:"state"`
	Base       map[string]int64 `json:"base"` // offsets of the snapshot that it was built from, by <topic>:<partition>
	Runs       []string         `json:"runs"` // run ids of the masters it was built on
	BuiltAt    time.Time        `json:"built_at"`
	Layout     feature.Layout   `json:"layout,omitempty"` // Feast's, whose hashes a later generation writes over
	Others     int64            `json:"others,omitempty"` // rows of the base that came of files and redrives, of which offsets don't tell
	Log        string           `json:"log,omitempty"`    // UUID of the table of the log that it was built from
	AsOf       *time.Time       `json:"as_of,omitempty"`  // the instant that its values are as of; nil where they move with each change
	// BaseSequence is the sequence number of the log's snapshot that a windowed view was built from, 0 of an empty log.
	BaseSequence int64 `json:"base_sequence,omitempty"`
	// Besides is what files and redrives had brought to that snapshot, see [lake.Offsets.Besides]. While the log's is another, rows of them are
	// missing from a windowed view.
	Besides string `json:"besides,omitempty"`
	// Marks are the offsets up to which the partitions are written. One of a building generation says where a worker
	// began to write it; a file has one only while it is being backfilled.
	Marks  map[feature.Partition]int64 `json:"-"`
	Joined []string                    `json:"-"` // workers that write it
	Took   []string                    `json:"-"` // of the runs, those of masters that took keys over after it was begun
	text   string                      // as it stands in its field
	lease  leaseOf                     // of one that is building
}

// Fields with the number of the generation that is read, and with the newest that was given.
const (
	fieldCurrent = "current"
	fieldNext    = "next"
)

// Generations are all generations of a view.
type Generations struct {
	Current int64 // the number that is read, 0 for none
	All     []Generation
	next    int64 // the newest number that was given
}

// Generations reads what there is of a view.
func (s *Store) Generations(ctx context.Context, view string) (Generations, error) {
	fields, err := s.redis.HGetAll(ctx, generationsKey(s.project, view)).Result()
	if err == nil {
		err = s.acquainted(ctx) // also with whom that was asked of
	}
	if err != nil {
		return Generations{}, fmt.Errorf("read the generations of %s: %w", view, away(ctx, err))
	}
	var g Generations
	byNumber := map[int64]*Generation{}
	for field, text := range fields {
		if number, err := strconv.ParseInt(field, 10, 64); err == nil {
			one := &Generation{Number: number, Marks: map[feature.Partition]int64{}, text: text}
			if err := json.Unmarshal([]byte(text), one); err != nil {
				return g, fmt.Errorf("generation %d of %s is not one of loam's: %w", number, view, err)
			}
			byNumber[number] = one
		}
	}
	for field, text := range fields {
		if number, building := strings.CutSuffix(field, leaseSuffix); building {
			if n, err := strconv.ParseInt(number, 10, 64); err == nil && byNumber[n] != nil {
				byNumber[n].lease = parseLease(text)
				continue
			}
		}
		if number, run, moved := strings.Cut(field, "+"); moved {
			if n, err := strconv.ParseInt(number, 10, 64); err == nil && byNumber[n] != nil {
				byNumber[n].Took = append(byNumber[n].Took, run)
				if !slices.Contains(byNumber[n].Runs, run) {
					byNumber[n].Runs = append(byNumber[n].Runs, run)
				}
				continue
			}
		}
		if number, worker, joined := strings.Cut(field, "@"); joined {
			if n, err := strconv.ParseInt(number, 10, 64); err == nil && byNumber[n] != nil {
				byNumber[n].Joined = append(byNumber[n].Joined, worker)
				continue
			}
		}
		switch number, rest, isOffset := strings.Cut(field, ":"); {
		case field == fieldCurrent:
			if g.Current, err = strconv.ParseInt(text, 10, 64); err != nil {
				return g, fmt.Errorf("the current generation of %s is %q: %w", view, text, err)
			}
		case field == fieldNext:
			if g.next, err = strconv.ParseInt(text, 10, 64); err != nil {
				return g, fmt.Errorf("the newest generation of %s is %q: %w", view, text, err)
			}
		case isOffset:
			n, err1 := strconv.ParseInt(number, 10, 64)
			if err1 != nil || byNumber[n] == nil {
				continue
			}
			p, ok := parsePartition(rest)
			offset, err2 := strconv.ParseInt(text, 10, 64)
			if ok && err2 == nil {
				byNumber[n].Marks[p] = offset
			}
		}
	}
	for _, one := range byNumber {
		g.All = append(g.All, *one)
	}
	slices.SortFunc(g.All, func(a, b Generation) int { return int(a.Number - b.Number) })
	return g, nil
}

// Usable gives the generation that is read, if it is one of this definition and its Redis has not restarted since.
func (s *Store) Usable(g Generations, definition string) (Generation, bool) {
	for _, one := range g.All {
		if one.Number == g.Current && one.State == Ready && one.Definition == definition && s.holds(one) {
			return one, true
		}
	}
	return Generation{}, false
}

func partitionText(p feature.Partition) string { return fmt.Sprintf("%s:%d", p.Topic, p.Index) }

func parsePartition(text string) (feature.Partition, bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return feature.Partition{}, false
	}
	n, err := strconv.ParseInt(text[i+1:], 10, 32)
	return feature.Partition{Topic: text[:i], Index: int32(n)}, err == nil
}

// joinedField is the field that says that a worker writes a generation.
func joinedField(number int64, worker string) string { return fmt.Sprintf("%d@%s", number, worker) }

// tookField is the field that says that a master took keys of a generation over.
func tookField(number int64, run string) string { return fmt.Sprintf("%d+%s", number, run) }

// adopt notes that masters took keys of a generation over, for processes that have not seen them join.
func (s *Store) adopt(ctx context.Context, view string, g Generation) error {
	for _, run := range s.runIDs() {
		if slices.Contains(g.Runs, run) {
			continue
		}
		if err := s.redis.HSet(ctx, generationsKey(s.project, view), tookField(g.Number, run), 1).Err(); err != nil {
			return fmt.Errorf("note who took over keys of generation %d of %s: %w", g.Number, view, err)
		}
	}
	return nil
}

func markField(number int64, p feature.Partition) string {
	return fmt.Sprintf("%d:%s", number, partitionText(p))
}

// begin enters a new generation, which is building; g says what its base is, if that is known, by its marks, and the instant that it is
// as of. Whoever writes the view writes it, too, from then on, unless it is as of an instant.
func (w *ViewWriter) begin(ctx context.Context, g Generation, now time.Time) (Generation, error) {
	s, view := w.store, w.view.Name
	key := generationsKey(s.project, view)
	number, err := s.redis.HIncrBy(ctx, key, fieldNext, 1).Result()
	if err != nil {
		return Generation{}, fmt.Errorf("begin a generation of %s: %w", view, err)
	}
	g.Number, g.Definition, g.Layout, g.State, g.Runs, g.BuiltAt = number, w.hash, w.view.Layout, Building, s.runIDs(), now.UTC().Truncate(time.Millisecond)
	if w.tiles == nil {
		g.Features = w.view.FeatureNames()
	}
	g.Base = map[string]int64{}
	if g.Marks == nil {
		g.Marks = map[feature.Partition]int64{}
	}
	for p, mark := range g.Marks {
		g.Base[partitionText(p)] = mark
	}
	text, err := json.Marshal(g)
	if err != nil {
		return g, err
	}
	clock, err := s.now(ctx, key)
	if err == nil {
		held := w.lease.take(s, view, number, 0, clock)
		_, err = s.redis.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, key, strconv.FormatInt(number, 10), text, leaseField(number), held)
			for partition, mark := range g.Marks {
				p.HSetNX(ctx, key, markField(number, partition), mark)
			}
			return nil
		})
	}
	if err != nil {
		return g, fmt.Errorf("begin generation %d of %s: %w", number, view, err)
	}
	return g, nil
}

// generation reads one generation of a view, which must be there.
func (s *Store) generation(ctx context.Context, view string, number int64) (Generation, error) {
	all, err := s.Generations(ctx, view)
	if err != nil {
		return Generation{Number: number}, err
	}
	for _, g := range all.All {
		if g.Number == number {
			return g, nil
		}
	}
	return Generation{Number: number}, fmt.Errorf("the online store has lost generation %d of %s while it was built: it restarted, or was emptied", number, view)
}

// complete notes that a generation holds its base, and marks it. A store that restarted meanwhile has part of it: that is an error.
func (w *ViewWriter) complete(ctx context.Context, g Generation) error {
	if err := w.store.same(ctx, w.view.Name, g); err != nil {
		return err
	}
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := w.lease.note(ctx, 0, strconv.FormatInt(g.Number, 10), text); err != nil {
		return err
	}
	_, err = w.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition, offset := range g.Base {
			p.HSetNX(ctx, generationsKey(w.store.project, w.view.Name), fmt.Sprintf("%d:%s", g.Number, partition), offset)
		}
		return nil
	})
	return err
}

// same fails where the store isn't the one that the generation was begun on.
func (s *Store) same(ctx context.Context, view string, g Generation) error {
	if err := s.check(ctx); err != nil {
		return fmt.Errorf("ask Redis for its run id: %w", err)
	}
	if !s.holds(g) {
		return fmt.Errorf("the online store restarted while generation %d of %s was built", g.Number, view)
	}
	_, err := s.generation(ctx, view, g.Number)
	return err
}

// Mark notes up to which offsets a generation is written.
func (s *Store) Mark(ctx context.Context, view string, number int64, offsets map[feature.Partition]int64) error {
	if len(offsets) == 0 {
		return nil
	}
	values := make([]any, 0, 2*len(offsets))
	for p, offset := range offsets {
		values = append(values, markField(number, p), offset)
	}
	if err := s.redis.HSet(ctx, generationsKey(s.project, view), values...).Err(); err != nil {
		return fmt.Errorf("mark the offsets of generation %d of %s: %w", number, view, err)
	}
	return nil
}

// unmark forgets up to where partitions are written: files that have been taken whole.
func (s *Store) unmark(ctx context.Context, view string, number int64, partitions []feature.Partition) error {
	if len(partitions) == 0 {
		return nil
	}
	fields := make([]string, len(partitions))
	for i, p := range partitions {
		fields[i] = markField(number, p)
	}
	if err := s.redis.HDel(ctx, generationsKey(s.project, view), fields...).Err(); err != nil {
		return fmt.Errorf("forget marks of generation %d of %s: %w", number, view, err)
	}
	return nil
}

// join marks where a worker begins to write a generation, and says that it does.
func (s *Store) join(ctx context.Context, view string, g Generation, worker string, positions map[feature.Partition]int64) error {
	key := generationsKey(s.project, view)
	_, err := s.redis.TxPipelined(ctx, func(p redis.Pipeliner) error {
		for partition, offset := range positions {
			p.HSetNX(ctx, key, markField(g.Number, partition), offset)
		}
		p.HSet(ctx, key, joinedField(g.Number, worker), 1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("join generation %d of %s: %w", g.Number, view, err)
	}
	return nil
}

// switchTo makes a generation the one that is read, unless a newer one is.
//
// KEYS[1] the view's generations; ARGV[1] the generation's number, ARGV[2] what it says of itself, ARGV[3] the field of its lease,
// ARGV[4] how that must begin. It gives 0 where a newer one is read, and -1 where the lease is another.
var switchTo = redis.NewScript(`
local current = tonumber(redis.call('HGET', KEYS[1], 'current') or '0')
if current == tonumber(ARGV[1]) then return 1 end
if current > tonumber(ARGV[1]) then return 0 end
local held = redis.call('HGET', KEYS[1], ARGV[3])
if not held or string.sub(held, 1, #ARGV[4]) ~= ARGV[4] then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], 'current', ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[3])
return 1
`)

// Switch makes a generation the one that is read, and removes the older ones. Where a newer one is read already, it
// removes this one, and where the store isn't the one that it was built on any more it fails.
func (s *Store) Switch(ctx context.Context, view string, g Generation) error {
	if err := s.same(ctx, view, g); err != nil {
		return errors.Join(err, s.remove(ctx, view, g))
	}
	g.State = Ready
	text, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("switch to generation %d of %s: %w", g.Number, view, err)
	}
	keys, number := []string{generationsKey(s.project, view)}, strconv.FormatInt(g.Number, 10)
	switched, err := switchTo.Run(ctx, s.redis, keys, number, text, leaseField(g.Number), g.lease.by).Int() // with its text where the server hasn't it
	switch {
	case err != nil:
		return fmt.Errorf("switch to generation %d of %s: %w", g.Number, view, err)
	case switched < 0:
		return fmt.Errorf("switch to generation %d of %s: %w", g.Number, view, errTakenOver)
	case switched == 0:
		return s.remove(ctx, view, g)
	}
	step.At(step.GenerationSwitched)
	all, err := s.Generations(ctx, view)
	if err != nil {
		return err
	}
	for _, old := range all.All {
		if old.Number < g.Number {
			if old.Layout != g.Layout && old.Layout == feature.FeastLayout {
				if err := s.clearFeastView(ctx, view, old.Features); err != nil {
					return err
				}
			}
			if err := s.remove(ctx, view, old); err != nil {
				return err
			}
		}
	}
	step.At(step.GenerationAlone)
	return nil
}

// remove unlinks the hashes of a generation, and then forgets it.
func (s *Store) remove(ctx context.Context, view string, g Generation) error {
	err := s.eachKeys(ctx, view, g.Number, func(keys []string) error {
		_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.Unlink(ctx, k)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("remove generation %d of %s: %w", g.Number, view, err)
	}
	fields := []string{strconv.FormatInt(g.Number, 10), leaseField(g.Number)}
	for _, worker := range g.Joined {
		fields = append(fields, joinedField(g.Number, worker))
	}
	for _, run := range g.Took {
		fields = append(fields, tookField(g.Number, run))
	}
	for p := range g.Marks {
		fields = append(fields, markField(g.Number, p))
	}
	if err := s.redis.HDel(ctx, generationsKey(s.project, view), fields...).Err(); err != nil {
		return fmt.Errorf("forget generation %d of %s: %w", g.Number, view, err)
	}
	return nil
}

// scansMax bounds how often keys are listed again because slots were moved meanwhile.
const scansMax = 3

// errMoving: keys that went from a server that was yet to be listed to one that had been may be missing.
var errMoving = errors.New("slots of the cluster are being moved: ask again once that is done")

// eachKeys hands over the keys of a generation's hashes, some at a time, of which one may come twice. The slice is used
// again after use returns. In a cluster whose slots are moved all the time it is errMoving.
func (s *Store) eachKeys(ctx context.Context, view string, generation int64, use func(keys []string) error) error {
	err := s.eachMatch(ctx, globEscape(keyPrefix(s.project, view, generation))+"{*", use)
	if err != nil {
		return fmt.Errorf("list the hashes of generation %d of %s: %w", generation, view, err)
	}
	return nil
}

// eachMatch hands over the keys that match a pattern, as eachKeys does.
func (s *Store) eachMatch(ctx context.Context, match string, use func(keys []string) error) error {
	for range scansMax {
		before, movingBefore, err := s.slots(ctx)
		if err != nil {
			return err
		}
		var one sync.Mutex // use is called by one server's listing at a time
		err = s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
			return scan(ctx, c, match, func(keys []string) error {
				one.Lock()
				defer one.Unlock()
				return use(keys)
			})
		})
		if err != nil {
			return err
		}
		after, moving, err := s.slots(ctx)
		if err != nil {
			return err
		}
		if before == after && !moving && !movingBefore {
			return nil
		}
	}
	return errMoving
}

// scan hands over the keys of a server that match.
func scan(ctx context.Context, c *redis.Client, match string, use func(keys []string) error) error {
	iterator := c.Scan(ctx, 0, match, pipelineCalls).Iterator()
	keys := make([]string, 0, pipelineCalls)
	for iterator.Next(ctx) {
		if keys = append(keys, iterator.Val()); len(keys) == cap(keys) {
			if err := use(keys); err != nil {
				return err
			}
			keys = keys[:0]
		}
	}
	if err := iterator.Err(); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	return use(keys)
}

// globEscape escapes what SCAN's patterns give a meaning to.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// workersKey is the key of the leases that workers hold while they run: a sorted set of their names, by when the leases run out in
// milliseconds since 1970 of Redis's clock.
func workersKey(project string) string { return project + ":workers" }

// leaseTime is how long a worker counts as running after it last said so.
const leaseTime = 10 * time.Second

// Lease says that a worker runs, for the next ten seconds.
func (s *Store) Lease(ctx context.Context, worker string) error {
	now, err := s.now(ctx, workersKey(s.project))
	if err == nil {
		_, err = s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.ZRemRangeByScore(ctx, workersKey(s.project), "-inf", strconv.FormatInt(now.UnixMilli(), 10))
			p.ZAdd(ctx, workersKey(s.project), redis.Z{Score: float64(now.Add(leaseTime).UnixMilli()), Member: worker})
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("say that the worker runs: %w", err)
	}
	return nil
}

// Release says that a worker has stopped.
func (s *Store) Release(ctx context.Context, worker string) error {
	if err := s.redis.ZRem(ctx, workersKey(s.project), worker).Err(); err != nil {
		return fmt.Errorf("say that the worker has stopped: %w", err)
	}
	return nil
}

// Workers are the names of the workers that run, sorted.
func (s *Store) Workers(ctx context.Context) ([]string, error) {
	now, err := s.now(ctx, workersKey(s.project))
	var workers []string
	if err == nil {
		// The bound is exclusive.
		workers, err = s.redis.ZRangeByScore(ctx, workersKey(s.project), &redis.ZRangeBy{Min: "(" + strconv.FormatInt(now.UnixMilli(), 10), Max: "+inf"}).Result()
	}
	if err != nil {
		return nil, fmt.Errorf("ask which workers run: %w", err)
	}
	slices.Sort(workers)
	return workers, nil
}
