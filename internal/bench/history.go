package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Options say what [History] measures.
type Options struct {
	Dir     string // an empty folder, on the disk to measure
	Keys    int
	Batch   int // changes a batch
	Batches int // 0 means as many as Duration allows
	// Duration ends the run after the batch in which it passes; 0 means never.
	Duration time.Duration
	Mix      Mix
	Maintain bool
	Plain    bool // append the same rows to a plain table beside
	Seed     uint64
	Progress io.Writer // nil for none
}

// Sample is what one batch took.
type Sample struct {
	Changes  int
	LookUp   time.Duration // of the ids of old events
	LateKeys int64
	lake.Timings
	Plain time.Duration // appending the same rows to a plain table
}

// Report is what a run has measured.
type Report struct {
	Fill      time.Duration // writing the contacts' first states
	Open      time.Duration // opening the stream anew, its index included
	HeapBytes uint64        // live heap that the open stream takes
	Samples   []Sample
	Elapsed   time.Duration

	// Read is what reading all of the history takes after the batches, and ReadFresh once it was written anew.
	Read, ReadFresh time.Duration

	Compactions   int
	CompactedRows int64
	Compaction    time.Duration
}

// History fills a log and a history with contacts and commits batches of their changes.
func History(ctx context.Context, def *feature.Stream, o Options) (*Report, error) {
	l, err := lake.Open(ctx, lake.Config{
		Lake:      feature.Lake{Catalog: "catalog.db", Warehouse: "warehouse", FormatVersion: 3},
		Namespace: "bench", Dir: o.Dir,
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if err := l.CreateStream(ctx, def); err != nil {
		return nil, err
	}
	c := &contacts{
		def: def, random: rand.New(rand.NewPCG(o.Seed, 1)), states: make([]uint32, o.Keys), mix: o.Mix,
		now: time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC).UnixMicro(),
	}
	r := &Report{}
	begin := time.Now()
	if err := fill(ctx, l, c, o); err != nil {
		return nil, err
	}
	r.Fill = time.Since(begin)
	before := liveHeap()
	begin = time.Now()
	s, err := l.OpenStream(ctx, def, lake.StreamOptions{TempDir: o.Dir})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Warm(ctx); err != nil {
		return nil, err
	}
	r.Open = time.Since(begin)
	if after := liveHeap(); after > before {
		r.HeapBytes = after - before
	}
	var plain *plainTable
	if o.Plain {
		if plain, err = openPlain(ctx, o.Dir, def); err != nil {
			return nil, err
		}
		defer plain.close()
	}
	stop := func() {}
	if o.Maintain {
		if stop, err = maintain(ctx, l, def, o, r); err != nil {
			return nil, err
		}
		defer func() { stop() }()
	}
	begin = time.Now()
	for i := 0; (o.Batches == 0 || i < o.Batches) && (o.Duration == 0 || time.Since(begin) < o.Duration); i++ {
		sample, err := commit(ctx, s, c, plain, o.Batch)
		if err != nil {
			return nil, err
		}
		r.Samples = append(r.Samples, sample)
		if o.Progress != nil && (i+1)%50 == 0 {
			fmt.Fprintf(o.Progress, "%d batches: %s\n", i+1, Summarize(r.Samples[max(len(r.Samples)-50, 0):]))
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	r.Elapsed = time.Since(begin)
	stop()
	stop = func() {}
	return r, readTwice(ctx, l, def, o, r)
}

// readTwice measures reading all of the history, as it is and written anew.
func readTwice(ctx context.Context, l *lake.Lake, def *feature.Stream, o Options, r *Report) error {
	var err error
	if r.Read, err = readAll(ctx, l, def); err != nil {
		return err
	}
	m, err := l.OpenMaintainer(ctx, def, lake.MaintainOptions{TempDir: o.Dir})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Rewrite(ctx); err != nil {
		return err
	}
	r.ReadFresh, err = readAll(ctx, l, def)
	return err
}

// readAll takes the median of five readings of every value of the history.
func readAll(ctx context.Context, l *lake.Lake, def *feature.Stream) (time.Duration, error) {
	reading, err := l.Read(ctx, def)
	if err != nil {
		return 0, err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	times := make([]time.Duration, 5)
	for i := range times {
		begin := time.Now()
		if err := reading.HistoryView(ctx, db, "history", nil); err != nil {
			return 0, err
		}
		var sum string
		if err := db.QueryRow(ctx, "SELECT sum(hash(history))::VARCHAR FROM history", nil, &sum); err != nil {
			return 0, err
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

// maintain compacts beside, as a worker does, until what it returns is called.
func maintain(ctx context.Context, l *lake.Lake, def *feature.Stream, o Options, r *Report) (stop func(), err error) {
	m, err := l.OpenMaintainer(ctx, def, lake.MaintainOptions{TempDir: o.Dir, Threads: 1})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		defer m.Close()
		for ctx.Err() == nil {
			begin := time.Now()
			c, due, err := m.Compact(ctx, false)
			switch {
			case err != nil && ctx.Err() == nil:
				fmt.Fprintln(os.Stderr, err)
			case due:
				r.Compactions++
				r.CompactedRows += c.Rows
				r.Compaction += time.Since(begin)
				continue
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	return func() { cancel(); done.Wait() }, nil
}

// fill writes the contacts' first states, and puts the tables into the shape that maintenance gives them.
func fill(ctx context.Context, l *lake.Lake, c *contacts, o Options) error {
	const size = 250_000
	s, err := l.OpenStream(ctx, c.def, lake.StreamOptions{TempDir: o.Dir})
	if err != nil {
		return err
	}
	defer s.Close()
	for from := 0; from < len(c.states); from += size {
		b, _ := c.batch(c.first(from, min(size, len(c.states)-from)))
		_, err := s.Commit(ctx, b, s.Head())
		b.Release()
		if err != nil {
			return err
		}
	}
	m, err := l.OpenMaintainer(ctx, c.def, lake.MaintainOptions{TempDir: o.Dir})
	if err != nil {
		return err
	}
	defer m.Close()
	for {
		if _, due, err := m.Compact(ctx, true); err != nil || !due {
			return err
		}
	}
}

// lookUpAfter is how far back the ids of events are in memory in this run: of older events they are looked up in the log.
const lookUpAfter = minute

func commit(ctx context.Context, s *lake.Stream, c *contacts, plain *plainTable, size int) (Sample, error) {
	changes := c.next(size)
	b, ids := c.batch(changes)
	defer b.Release()
	sample := Sample{Changes: size}
	var old []feature.Identity
	for i, ch := range changes {
		if ch.at < c.now-lookUpAfter {
			old = append(old, c.identity(ids[i], ch))
		}
	}
	begin := time.Now()
	found, err := s.LookUp(ctx, old)
	if err != nil {
		return sample, err
	}
	if len(found) > 0 {
		return sample, fmt.Errorf("%d new events were found in the log", len(found))
	}
	sample.LookUp = time.Since(begin)
	result, err := s.Commit(ctx, b, s.Head())
	if err != nil {
		return sample, err
	}
	sample.Timings, sample.LateKeys = result.Timings, result.LateKeys
	if plain != nil {
		if sample.Plain, err = plain.append(ctx, b); err != nil {
			return sample, err
		}
	}
	return sample, nil
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Summary are the figures of some samples.
type Summary struct {
	Batches          int
	P50, P95, Max    time.Duration // plan and commit of the history
	Log, LookUp      time.Duration // medians
	LateKeys         int64
	Stages           map[string]time.Duration
	Plain            time.Duration // median
	HistoryPerSecond float64       // changes, history alone
	BothPerSecond    float64       // changes, look-up, log and history, with upkeep
}

// Summarize gives the figures of samples.
func Summarize(samples []Sample) Summary {
	s := Summary{Batches: len(samples), Stages: map[string]time.Duration{}}
	if len(samples) == 0 {
		return s
	}
	of := func(f func(Sample) time.Duration) []time.Duration {
		all := make([]time.Duration, len(samples))
		for i, x := range samples {
			all[i] = f(x)
		}
		slices.Sort(all)
		return all
	}
	median := func(f func(Sample) time.Duration) time.Duration { return of(f)[len(samples)/2] }
	history := of(func(x Sample) time.Duration { return x.History })
	s.P50, s.P95, s.Max = history[len(history)/2], history[len(history)*95/100], history[len(history)-1]
	s.Log, s.LookUp = median(func(x Sample) time.Duration { return x.Log }), median(func(x Sample) time.Duration { return x.LookUp })
	s.Plain = median(func(x Sample) time.Duration { return x.Plain })
	for name, f := range map[string]func(Sample) time.Duration{
		"late": func(x Sample) time.Duration { return x.Late }, "plan": func(x Sample) time.Duration { return x.Plan },
		"files": func(x Sample) time.Duration { return x.Files }, "vectors": func(x Sample) time.Duration { return x.Vectors },
		"commit": func(x Sample) time.Duration { return x.Commit }, "upkeep": func(x Sample) time.Duration { return x.Upkeep },
	} {
		s.Stages[name] = median(f)
	}
	var changes int
	var historyAlone, both time.Duration
	for _, x := range samples {
		changes += x.Changes
		s.LateKeys += x.LateKeys
		historyAlone += x.History
		both += x.LookUp + x.Log + x.History + x.Upkeep
	}
	s.HistoryPerSecond = float64(changes) / historyAlone.Seconds()
	s.BothPerSecond = float64(changes) / both.Seconds()
	return s
}

func (s Summary) String() string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	return fmt.Sprintf("history p50 %s p95 %s max %s (%d late keys: %s, plan %s, files %s, vectors %s, commit %s), log %s, look-up %s, upkeep %s, plain append %s; "+
		"history %.0f/s, log and history %.0f/s",
		ms(s.P50), ms(s.P95), ms(s.Max), s.LateKeys, ms(s.Stages["late"]), ms(s.Stages["plan"]), ms(s.Stages["files"]), ms(s.Stages["vectors"]), ms(s.Stages["commit"]),
		ms(s.Log), ms(s.LookUp), ms(s.Stages["upkeep"]), ms(s.Plain), s.HistoryPerSecond, s.BothPerSecond)
}
