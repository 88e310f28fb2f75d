package online

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// guardedFeast writes a view of an entity in Feast's layout if its guard is greater than the one that stands there, and gives an empty text,
// or else the guard that stood there. The fields of other views stay as they are.
//
// KEYS[1] the hash; ARGV[1] the guard, ARGV[2] its field, ARGV[3] the field of the event time, ARGV[4] the event time, or "" for
// a tombstone, ARGV[5] a guard that is overwritten whatever it is, or ""; then field and value of each feature, of a tombstone
// the fields alone.
var guardedFeast = newScript(`
local old = redis.call('HGET', KEYS[1], ARGV[2])
if old and old >= ARGV[1] and old ~= ARGV[5] then return old end
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], ARGV[3], unpack(ARGV, 6))
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[1], ARGV[3], ARGV[4], unpack(ARGV, 6))
end
return ''
`)

// clearFeast removes fields of a view from a hash, its guard included, unless the guard has changed.
//
// KEYS[1] the hash; ARGV[1] the field of the guard, ARGV[2] the guard, "" for none; then the other fields.
var clearFeast = newScript(`
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1], unpack(ARGV, 3))
`)

// eachFeastKeys hands over the keys of the project in Feast's layout, some at a time, of which one may come twice. The slice is
// used again after use returns.
func (s *Store) eachFeastKeys(ctx context.Context, use func(keys []string) error) error {
	err := s.eachMatch(ctx, "*"+globEscape(s.project), func(keys []string) error {
		keys = slices.DeleteFunc(keys, func(k string) bool { return !feastKeyOf(s.project, k) })
		if len(keys) == 0 {
			return nil
		}
		return use(keys)
	})
	if err != nil {
		return fmt.Errorf("list the hashes in Feast's layout: %w", err)
	}
	return nil
}

// EachFeastHash is [Store.EachHash] of all hashes of the project in Feast's layout, which hold the views that have it.
func (s *Store) EachFeastHash(ctx context.Context, yield func(Hash) error) error {
	return s.eachFeastKeys(ctx, func(keys []string) error { return s.Hashes(ctx, keys, yield) })
}

// clearFeastView removes a view from all hashes in Feast's layout. features are those that it had.
func (s *Store) clearFeastView(ctx context.Context, view string, features []string) error {
	fields := []string{feature.FeastGuardPrefix + view, feature.FeastTimePrefix + view}
	for _, name := range features {
		fields = append(fields, feature.FeastField(view, name))
	}
	err := s.eachFeastKeys(ctx, func(keys []string) error {
		_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.HDel(ctx, k, fields...)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("remove %s from the hashes in Feast's layout: %w", view, err)
	}
	return nil
}

// sendFeast makes guarded writes as part of a generation. A guard that past reports as one that the lake holds, though it makes
// another of the entity, is overwritten; past may be nil.
func (w *ViewWriter) sendFeast(ctx context.Context, generation int64, writes []*entityWrite, past func(guard string) bool) error {
	if generation > generationMax {
		return fmt.Errorf("generation %d is more than the guards of Feast's layout can tell, %d: empty this Redis", generation, generationMax)
	}
	replaced := make([]string, len(writes)) // the guards to overwrite
	for len(writes) > 0 {
		n := min(len(writes), pipelineCalls)
		part, over := writes[:n], replaced[:n]
		stood, err := w.sendFeastPart(ctx, generation, part, over)
		if err != nil {
			return err
		}
		writes, replaced = writes[n:], replaced[n:]
		if past == nil {
			continue
		}
		for i, e := range part {
			if stood[i] != "" && stood[i] != feastGuard(e.order, generation) && past(stood[i]) && stood[i] != over[i] {
				writes, replaced = append(writes[:len(writes):len(writes)], e), append(replaced[:len(replaced):len(replaced)], stood[i])
			}
		}
	}
	return nil
}

// sendFeastPart gives of each write the guard that it lost to, or "".
func (w *ViewWriter) sendFeastPart(ctx context.Context, generation int64, writes []*entityWrite, replaced []string) ([]string, error) {
	calls := newCalls(guardedFeast, len(writes), len(writes)*(9+2*len(w.feast.fields)))
	for i, e := range writes {
		calls.add(e.entity, func(args []any) []any {
			args = append(args, feastGuard(e.order, generation), w.feast.guard, w.feast.time, "", replaced[i])
			if e.deleted {
				for _, field := range w.feast.fields {
					args = append(args, field)
				}
				return args
			}
			args[len(args)-2] = feastTimeOf(e.order)
			for f, field := range w.feast.fields {
				if value := e.values[f]; value != nil {
					args = append(args, field, value)
				} else {
					args = append(args, field, "") // of a null
				}
			}
			return args
		})
	}
	if err := w.store.make(ctx, calls); err != nil {
		return nil, err
	}
	stood := make([]string, len(writes))
	for i, given := range calls.given {
		stood[i], _ = given.(string)
	}
	return stood, nil
}

// feastTimeOf is the event time of a change. That of 1970 itself is not empty: emptiness tells a tombstone.
func feastTimeOf(o feature.Order) []byte {
	if b := appendFeastTime(nil, o.EventTime); len(b) > 0 {
		return b
	}
	return []byte{1 << 3, 0}
}

// pastOf reports of guards in Feast's layout whether the lake, which stands at the offsets, has come to the change that they tell
// of. What is no guard counts as that, too.
func pastOf(offsets lake.Offsets) func(guard string) bool {
	has := hasOf(offsets)
	return func(guard string) bool {
		o, _, err := ParseFeastGuard(guard)
		return err != nil || has(o)
	}
}

// hasOf reports of orders whether the lake, which stands at the offsets, has come to the change.
func hasOf(offsets lake.Offsets) func(feature.Order) bool {
	type source struct {
		live      bool
		topic     uint32
		partition int32
	}
	next := map[source]int64{}
	note := func(p feature.Partition) {
		at, _ := offsets.Of(p)
		next[source{feature.Live(p.Topic), feature.TopicHash(p.Topic), p.Index}] = at.Next
	}
	for p := range offsets.Partitions {
		note(p)
	}
	for _, f := range offsets.Files {
		note(feature.Partition{Topic: feature.FileTopicPrefix + f.SHA256})
	}
	return func(o feature.Order) bool { return o.Offset < next[source{o.Live, o.TopicHash, o.Partition}] }
}

// takeOver makes a generation of another definition, whose hashes are about to be written over, one that is read no more.
func (w *ViewWriter) takeOver(ctx context.Context) error {
	all, err := w.store.Generations(ctx, w.view.Name)
	if err != nil {
		return err
	}
	for _, g := range all.All {
		if g.Number == all.Current && g.Layout == feature.FeastLayout && g.Definition != w.hash {
			if err := w.store.redis.HDel(ctx, generationsKey(w.store.project, w.view.Name), "current").Err(); err != nil {
				return fmt.Errorf("end generation %d of %s: %w", g.Number, w.view.Name, err)
			}
		}
	}
	return nil
}

// sweepFeast removes what a generation that was filled doesn't hold: features that the view had before, and entities that the
// lake doesn't know. past is that of the snapshot.
func (w *ViewWriter) sweepFeast(ctx context.Context, number int64, past func(guard string) bool) error {
	all, err := w.store.Generations(ctx, w.view.Name)
	if err != nil {
		return err
	}
	var earlier []string
	for _, g := range all.All {
		if g.Layout == feature.FeastLayout {
			earlier = append(earlier, g.Features...)
		}
	}
	fields := w.feast.all(w.view.Name, earlier)
	dropped := slices.Clone(fields[1+len(w.feast.fields):])
	return w.store.eachFeastKeys(ctx, func(keys []string) error { return w.sweepFeastKeys(ctx, keys, number, past, fields, dropped) })
}

func (w *ViewWriter) sweepFeastKeys(ctx context.Context, keys []string, number int64, past func(string) bool, fields, dropped []string) error {
	found := make([]*redis.SliceCmd, len(keys))
	_, err := w.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, k := range keys {
			found[i] = p.HMGet(ctx, k, append([]string{w.feast.guard}, fields...)...)
			if len(dropped) > 0 {
				p.HDel(ctx, k, dropped...)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sweep the hashes in Feast's layout: %w", err)
	}
	calls := newCalls(clearFeast, len(keys), len(keys)*(6+len(fields)))
	for i, k := range keys {
		raw := found[i].Val()
		guard, guarded := raw[0].(string)
		if !slices.ContainsFunc(raw, func(v any) bool { return v != nil }) {
			continue // another view's
		}
		if guarded {
			if _, generation, err := ParseFeastGuard(guard); err == nil && generation >= number || !past(guard) {
				continue
			}
		}
		calls.add(k, func(args []any) []any {
			args = append(args, w.feast.guard, guard)
			for _, field := range fields {
				args = append(args, field)
			}
			return args
		})
	}
	if err := w.store.make(ctx, calls); err != nil {
		return fmt.Errorf("sweep the hashes in Feast's layout: %w", err)
	}
	return nil
}
