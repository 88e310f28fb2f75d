package online

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// A build goes over a view's entities part by part, and notes in its generation how many parts are whole. So the next build goes
// on where one ended that was killed. Who builds a generation holds it by a lease, as workers hold theirs: one whose lease has
// run out has been abandoned, and whoever takes it over moves the lease from what stood there, so that one of two does. One that
// was only stalled finds that out with its next note, and ends.

// buildParts are the parts of a view's entities. It is frozen.
const buildParts = 256

// Columns that say in which part an entity is, and whether an event is past the base.
const (
	columnPart = "loam_part"
	columnPast = "loam_past"
)

// partOf is the expression of the part that an entity is in, the ninth byte of the MD5 of its join keys. It is frozen.
func partOf(keys []string) sql.Fragment {
	texts := make([]sql.Fragment, len(keys))
	for i, k := range keys {
		texts[i] = sql.Ident(k) + "::VARCHAR"
	}
	return sql.Fragment(fmt.Sprintf("(md5_number_lower(concat_ws('|', %s)) %% %d)::INTEGER", sql.Join(", ", texts), buildParts))
}

// leaseField is the field that says who builds a generation: "<build> <parts that are whole> <when the lease runs out>", the last in
// milliseconds since 1970 of Redis's clock.
func leaseField(number int64) string { return strconv.FormatInt(number, 10) + leaseSuffix }

const leaseSuffix = "/build"

// leaseOf is what a generation's lease says.
type leaseOf struct {
	by    string // who builds it
	parts int    // how many parts are whole
	until int64
	text  string // as it stands in its field, "" for none
}

// parseLease reads a lease; what is none has run out, and nothing is whole.
func parseLease(text string) leaseOf {
	l := leaseOf{text: text}
	if _, err := fmt.Sscanf(text, "%s %d %d", &l.by, &l.parts, &l.until); err != nil {
		return leaseOf{text: text}
	}
	return l
}

// abandoned reports whether a generation is building, and nobody builds it.
func (g *Generation) abandoned(now time.Time) bool {
	return g.State == Building && g.lease.until <= now.UnixMilli()
}

// heldBuild sets fields of a view's generations as long as a lease is the one that is known.
//
// KEYS[1] the view's generations; ARGV[1] the field of the lease, ARGV[2] how that must begin; then fields and values to set.
var heldBuild = redis.NewScript(`
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or string.sub(held, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
`)

// errTakenOver: a build that stalled has lost its generation.
var errTakenOver = errors.New("another build has taken it over")

// buildLease is the lease that a build holds; none before it has begun.
type buildLease struct {
	mu     sync.Mutex
	store  *Store
	view   string
	number int64 // of the generation, 0 for none
	by     string
	parts  int
}

// take makes the lease one of a generation of which some parts are whole, and gives the text that enters it.
func (b *buildLease) take(s *Store, view string, number int64, parts int, now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.store, b.view, b.number, b.by, b.parts = s, view, number, fmt.Sprintf("%016x", rand.Uint64()), parts
	return b.text(now.Add(leaseTime))
}

func (b *buildLease) text(until time.Time) string {
	return fmt.Sprintf("%s %d %d", b.by, b.parts, until.UnixMilli())
}

// whole is how many parts are, as far as was noted.
func (b *buildLease) whole() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.parts
}

// note renews the lease for the next ten seconds, says how many parts are whole, unless more are noted, and sets fields of the
// view's generations in the same step.
func (b *buildLease) note(ctx context.Context, parts int, values ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.number == 0 {
		return nil
	}
	key := generationsKey(b.store.project, b.view)
	now, err := b.store.now(ctx, key)
	if err != nil {
		return fmt.Errorf("hold generation %d of %s: %w", b.number, b.view, err)
	}
	b.parts = max(b.parts, parts)
	return b.set(ctx, now.Add(leaseTime), values...)
}

func (b *buildLease) set(ctx context.Context, until time.Time, values ...any) error {
	key := generationsKey(b.store.project, b.view)
	values = append([]any{leaseField(b.number), b.by + " ", leaseField(b.number), b.text(until)}, values...)
	held, err := heldBuild.Run(ctx, b.store.redis, []string{key}, values...).Int()
	if err == nil && held == 0 {
		if _, err = b.store.generation(ctx, b.view, b.number); err == nil {
			err = errTakenOver
		}
	}
	if err != nil {
		return fmt.Errorf("hold generation %d of %s: %w", b.number, b.view, err)
	}
	return nil
}

// release lets the next build take over at once.
func (b *buildLease) release(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set(ctx, time.UnixMilli(0))
}

// keep renews the lease until the build ends, which calls end. Where another build took over, the context that it gives is done.
func (b *buildLease) keep(ctx context.Context) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(leaseTime / 3)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if err := b.note(ctx, 0); errors.Is(err, errTakenOver) { // that the store is away is what the build itself meets
				cancel(err)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// wrote notes how many parts of the entities are written. A part that has a foreign key never is: whoever goes on must meet it, too.
func (w *ViewWriter) wrote(ctx context.Context, parts int) error {
	w.noting.Lock()
	foreign := len(w.foreign) > 0
	w.noting.Unlock()
	if foreign || parts <= w.lease.whole() {
		return nil
	}
	if err := w.lease.note(ctx, parts); err != nil {
		return err
	}
	step.At(step.GenerationPart)
	return nil
}

// resume takes over the view's newest generation, if it was abandoned and can be gone on with; its number is 0 where there is none. What was
// abandoned and can't be is removed. A build that still holds its lease is waited for until it is seen to be at work. One as of an instant is
// always begun anew.
func (w *ViewWriter) resume(ctx context.Context, o BuildOptions) (Generation, error) {
	if o.AsOf != nil {
		return Generation{}, nil
	}
	var seen string // the lease that is waited for
	for {
		all, err := w.store.Generations(ctx, w.view.Name)
		if err != nil {
			return Generation{}, err
		}
		now, err := w.store.now(ctx, generationsKey(w.store.project, w.view.Name))
		if err != nil {
			return Generation{}, fmt.Errorf("ask Redis for the time: %w", err)
		}
		var last *Generation
		for i := range all.All {
			g := &all.All[i]
			why, lost := w.store.lost(all, g, w.hash)
			if g.State != Building {
				continue
			}
			if !lost {
				last = g
			} else if g.abandoned(now) {
				o.say("feature view %s: generation %d, which a build left unfinished, is begun anew: %s", w.view.Name, g.Number, why)
				w.store.discard(ctx, w.view.Name, *g)
			}
		}
		switch {
		case last == nil, last.lease.parts == 0 && !last.abandoned(now):
			return Generation{}, ctx.Err()
		case last.lease.parts == 0:
			w.store.discard(ctx, w.view.Name, *last)
			return Generation{}, ctx.Err()
		case last.abandoned(now):
			if taken, err := w.takeOverBuild(ctx, last, now); err != nil || taken {
				return *last, err
			}
			return Generation{}, nil // another build was faster
		case seen != "" && seen != last.lease.text:
			return Generation{}, nil // it is renewed
		}
		seen = last.lease.text
		if err := pause(ctx); err != nil {
			return Generation{}, fmt.Errorf("wait for the build of generation %d: %w", last.Number, err)
		}
	}
}

// lost says why a generation that is building can't be gone on with by builds of a definition, if it can't.
func (s *Store) lost(all Generations, g *Generation, definition string) (why string, lost bool) {
	switch {
	case g.Definition != definition:
		return "the view's definition has changed", true
	case g.AsOf != nil:
		return "it was to be as of an instant", true
	case !s.holds(*g):
		return "the online store restarted", true
	case g.Number != all.next:
		return "a newer one was begun", true
	case g.lease.text == "":
		return "it doesn't tell how far it is", true
	}
	return "", false
}

// takeOverBuild moves the lease of an abandoned generation to this build, unless another was faster. Of attributes the marks are
// those of an entry now: each worker joins again, and says from where on it writes.
func (w *ViewWriter) takeOverBuild(ctx context.Context, g *Generation, now time.Time) (bool, error) {
	key, field := generationsKey(w.store.project, w.view.Name), leaseField(g.Number)
	text := w.lease.take(w.store, w.view.Name, g.Number, g.lease.parts, now)
	taken, err := heldBuild.Run(ctx, w.store.redis, []string{key}, field, g.lease.text, field, text).Int()
	if err != nil {
		return false, fmt.Errorf("take generation %d of %s over: %w", g.Number, w.view.Name, err)
	}
	if taken == 0 {
		return false, nil
	}
	var fields []string
	for _, worker := range g.Joined {
		fields = append(fields, joinedField(g.Number, worker))
	}
	if w.tiles == nil {
		for p := range g.Marks {
			fields = append(fields, markField(g.Number, p))
		}
		g.Marks = map[feature.Partition]int64{}
	}
	g.Joined = nil
	if len(fields) == 0 {
		return true, nil
	}
	if err := w.store.redis.HDel(ctx, key, fields...).Err(); err != nil {
		return true, fmt.Errorf("take generation %d of %s over: %w", g.Number, w.view.Name, err)
	}
	return true, nil
}

// discard removes a generation that was abandoned, unless somebody took it over. What stays of it goes with the next switch. One in
// Feast's layout stays until then: the sweep has to know its features.
func (s *Store) discard(ctx context.Context, view string, g Generation) {
	if g.Layout == feature.FeastLayout {
		return
	}
	if g.lease.text != "" {
		field := leaseField(g.Number)
		held, err := heldBuild.Run(ctx, s.redis, []string{generationsKey(s.project, view)}, field, g.lease.text, field, "removed 0 0").Int()
		if err != nil || held == 0 {
			return
		}
	}
	_ = s.remove(ctx, view, g)
}

// Abandoned are the generations, by view, that were left unfinished and that no build can go on with.
func (l *Live) Abandoned(ctx context.Context) (map[string][]Generation, error) {
	abandoned := map[string][]Generation{}
	for _, views := range l.views {
		for _, w := range views {
			all, err := l.store.Generations(ctx, w.view.Name)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(all.All, func(g Generation) bool { return g.State == Building && g.Layout != feature.FeastLayout }) {
				continue
			}
			now, err := l.store.now(ctx, generationsKey(l.store.project, w.view.Name))
			if err != nil {
				return nil, fmt.Errorf("ask Redis for the time: %w", err)
			}
			for _, g := range all.All {
				_, lost := l.store.lost(all, &g, w.hash)
				if g.abandoned(now) && (lost || g.lease.parts == 0) && g.Layout != feature.FeastLayout {
					abandoned[w.view.Name] = append(abandoned[w.view.Name], g)
				}
			}
		}
	}
	return abandoned, nil
}

// Discard removes generations that were left unfinished, but for those that somebody has taken over.
func (s *Store) Discard(ctx context.Context, view string, generations []Generation) {
	for _, g := range generations {
		s.discard(ctx, view, g)
	}
}

// anewError says why a generation that was taken over can't be gone on with.
type anewError struct{ why string }

func (e *anewError) Error() string { return "it is begun anew: " + e.why }

// pin notes in a generation what it is filled from, before any part is whole. Where parts are, it was taken over: then the lake must
// still have that, and no more of it than is dealt with, which is what topics brought since.
func (w *ViewWriter) pin(ctx context.Context, g *Generation, reading *lake.Reading, o BuildOptions) error {
	offsets, err := reading.Offsets()
	if err != nil {
		return err
	}
	log := reading.Pins()[reading.Log.Name()].UUID
	if w.lease.whole() > 0 {
		why := ""
		switch {
		case g.Log != log:
			why = "the log was made anew"
		case g.Besides != offsets.Besides():
			why = "files or redrives have brought rows since"
		}
		for text, next := range g.Base {
			if p, ok := parsePartition(text); ok && offsets.Partitions[p].Next < next {
				why = "the log has gone back since"
			}
		}
		if why != "" {
			return &anewError{why}
		}
		o.say("feature view %s: goes on with generation %d where a build ended: %d of its %d parts are written", w.view.Name, g.Number, w.lease.whole(), buildParts)
		return nil
	}
	if w.tiles == nil {
		for p, at := range offsets.Partitions {
			g.Base[partitionText(p)] = at.Next
		}
		g.Besides = offsets.Besides()
	}
	g.Log = log
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return w.lease.note(ctx, 0, strconv.FormatInt(g.Number, 10), text)
}

// loadBase makes the table loam_base of the offsets of a generation's base.
func loadBase(ctx context.Context, db *sql.DB, g Generation) error {
	rows := []string{"('', 0, 0)"}
	for text, next := range g.Base {
		if p, ok := parsePartition(text); ok {
			rows = append(rows, fmt.Sprintf("(%s, %d, %d)", sql.Literal(p.Topic), p.Index, next))
		}
	}
	return db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE loam_base AS SELECT * FROM (VALUES "+strings.Join(rows, ", ")+") AS b(loam_topic, loam_partition, loam_next)")
}

// joinBase joins the base to a log that is called g, and pastBase is the condition that a row of the log came of a topic since.
const (
	joinBase = `LEFT JOIN loam_base b ON g.topic = b.loam_topic AND g."partition" = b.loam_partition`
	pastBase = sql.Fragment(`(topic_live(g.topic) AND NOT starts_with(coalesce(g.job_id, ''), '` + feature.RedriveJobPrefix +
		`') AND g."offset" >= coalesce(b.loam_next, 0))`)
)
