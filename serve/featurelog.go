package serve

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// FeatureLog takes what requests were served, a share of them, and writes it away beside them. It never holds a request up: what
// it can't take is dropped, and counted.
type FeatureLog struct {
	options FeatureLogOptions
	queue   chan Served
	waiting atomic.Int64 // rows in the queue
	dropped atomic.Int64 // requests
	logged  atomic.Int64 // rows

	mu    sync.Mutex
	marks []marked // as they were read last, oldest first
}

// FeatureLogOptions are what a log of features is made of.
type FeatureLogOptions struct {
	Rate    float64 // the share of requests that is logged, 0 to 1
	Project *feature.Project
	Store   *online.Store
	Now     func() time.Time                                          // the clock of the reads
	Write   func(ctx context.Context, rows []feature.ServedRow) error // is called by one goroutine
	Say     func(format string, args ...any)
}

// Bounds and cadence of the log.
const (
	logRowsMax    = 200_000 // rows that wait to be written
	logRequestMax = 20_000  // requests that do
	logEvery      = 5 * time.Second
	marksEvery    = time.Second
	marksKept     = 3
	logFinishMax  = 20 * time.Second // for the last rows, once the server has ended
	logWriteMax   = time.Minute      // for one write
)

// marked are marks of all views, read before at.
type marked struct {
	at    time.Time
	views map[string]online.Generation // those that are read
}

// readMarksMax bounds how long the marks are asked for, which goes on once the server has ended.
const readMarksMax = 2 * time.Second

// NewFeatureLog makes a log. [FeatureLog.Run] writes it.
func NewFeatureLog(o FeatureLogOptions) *FeatureLog {
	return &FeatureLog{options: o, queue: make(chan Served, logRequestMax)}
}

// Logged is how many rows were written.
func (f *FeatureLog) Logged() int64 { return f.logged.Load() }

// Dropped is how many requests were to be logged and were not.
func (f *FeatureLog) Dropped() int64 { return f.dropped.Load() }

// Sample chooses whether a request is logged, and gives what takes it.
func (f *FeatureLog) Sample() func(Served) {
	if f.options.Rate < 1 && rand.Float64() >= f.options.Rate {
		return nil
	}
	return f.take
}

func (f *FeatureLog) take(s Served) {
	rows := int64(s.Keys.Len)
	if f.waiting.Add(rows) <= logRowsMax {
		select {
		case f.queue <- s:
			return
		default:
		}
	}
	f.waiting.Add(-rows)
	f.dropped.Add(1)
}

// Run writes what was taken every few seconds until ctx is done, and then what is left.
func (f *FeatureLog) Run(ctx context.Context) error {
	var rows []feature.ServedRow
	var told int64
	var failing error
	write := func(ctx context.Context) {
		if len(rows) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, logWriteMax)
		defer cancel()
		if failing = f.options.Write(ctx, rows); failing == nil {
			f.logged.Add(int64(len(rows)))
			f.waiting.Add(-int64(len(rows)))
			rows = rows[:0]
		}
	}
	var written time.Time
	f.readMarks(ctx)
	for {
		wait := time.NewTimer(marksEvery)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
		f.readMarks(ctx) // first: what was read of a generation that is new since then finds its base
		rows = f.drain(rows)
		if ctx.Err() != nil {
			break
		}
		if now := time.Now(); now.Sub(written) >= logEvery {
			was := failing
			write(ctx)
			written = now
			if failing != nil && was == nil {
				f.options.Say("what is served can't be logged, it is tried again: %v", failing)
			}
		}
		if dropped := f.dropped.Load(); dropped > told {
			f.options.Say("%d requests were not logged: the lake takes less than is served", dropped-told)
			told = dropped
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), logFinishMax)
	defer cancel()
	write(last)
	if failing != nil {
		return errors.Join(errors.New("the last of what was served was not logged"), failing)
	}
	return nil
}

// drain makes rows of what was taken.
func (f *FeatureLog) drain(rows []feature.ServedRow) []feature.ServedRow {
	for {
		select {
		case s := <-f.queue:
			before := len(rows)
			rows = f.rows(rows, s)
			f.waiting.Add(int64(len(rows)-before) - int64(s.Keys.Len))
		default:
			return rows
		}
	}
}

// rows appends a row an entity and view.
func (f *FeatureLog) rows(rows []feature.ServedRow, s Served) []feature.ServedRow {
	request := uuid.NewString()
	marks := f.marksBefore(s.Result.At)
	refs := s.Plan.Features()
	for n, row := range s.Result.Rows {
		for _, seen := range s.Result.Seen[n] {
			view := f.options.Project.View(seen.View)
			one := feature.ServedRow{
				ServedAt: s.Result.At.UnixMicro(), Request: request, Service: s.Service, View: seen.View,
				Definition: f.options.Project.ViewDefinition(view).Hash, Generation: seen.Generation, Order: seen.Order, Guards: seen.Guards,
			}
			for _, values := range s.Plan.Entity(seen.View, s.Keys) {
				one.Entity = append(one.Entity, values[n])
			}
			if g, known := marks[seen.View]; known && sameGeneration(g, seen) {
				one.Marks = g.Marks
			}
			switch {
			case seen.Of.AsOf != nil:
				one.Guards = map[string]string{"as_of": seen.Of.AsOf.Format(time.RFC3339Nano)}
			case view.Windowed():
				one.Guards = windowGuards(seen.Of, seen.Guards)
			}
			for i, ref := range refs {
				if ref.View != seen.View {
					continue
				}
				one.Features = append(one.Features, ref.Feature)
				one.Statuses = append(one.Statuses, string(row[i].Status))
				if row[i].Value.Null {
					one.Values = append(one.Values, nil)
				} else {
					one.Values = append(one.Values, &row[i].Value.Text)
				}
			}
			rows = append(rows, one)
		}
	}
	return rows
}

// windowGuards are the offsets that a windowed view's values of an entity go up to: its own guards, and where it has none the base of the
// generation; and how many rows of files and redrives are in that base.
func windowGuards(g *online.Generation, own map[string]string) map[string]string {
	guards := map[string]string{"others": strconv.FormatInt(g.Others, 10)}
	for partition, offset := range g.Base {
		guards[partition] = strconv.FormatInt(offset, 10)
	}
	maps.Copy(guards, own)
	return guards
}

// readMarks asks how far the views are written. Where that fails, rows are logged without.
func (f *FeatureLog) readMarks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readMarksMax)
	defer cancel()
	m := marked{views: map[string]online.Generation{}}
	for _, v := range f.options.Project.Views {
		if f.options.Project.Unserved(v) != "" {
			continue
		}
		all, err := f.options.Store.Generations(ctx, v.Name)
		if err != nil {
			return
		}
		for _, g := range all.All {
			if g.Number == all.Current {
				m.views[v.Name] = g
			}
		}
	}
	m.at = f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.marks = append(f.marks, m); len(f.marks) > marksKept {
		f.marks = f.marks[1:]
	}
}

// sameGeneration reports whether marks are those of the generation that was seen. Numbers begin anew in a Redis that restarted empty.
func sameGeneration(g online.Generation, seen online.Seen) bool {
	return g.Number == seen.Generation && g.BuiltAt.Equal(seen.Of.BuiltAt)
}

// marksBefore are the newest marks that were read before a read began: what is below them was in Redis then.
func (f *FeatureLog) marksBefore(at time.Time) map[string]online.Generation {
	f.mu.Lock()
	defer f.mu.Unlock()
	var newest map[string]online.Generation
	for _, m := range f.marks {
		if !m.at.After(at) {
			newest = m.views
		}
	}
	return newest
}
