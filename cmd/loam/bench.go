package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/bench"
)

func (a *app) benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "bench",
		Short:   "Measure loam on this machine",
		Long:    `bench measures parts of loam with data that it makes up. It touches no project.`,
		Example: "  loam bench history --keys 5000 --batches 5",
		Args:    noArguments,
	}
	c.AddCommand(a.benchHistoryCommand(), a.benchOnlineCommand(), a.benchWritesCommand())
	return c
}

func (a *app) benchHistoryCommand() *cobra.Command {
	var o bench.Options
	var profile string
	c := &cobra.Command{
		Use:   "history",
		Short: "Measure what a micro-batch of changes costs",
		Long: `bench history fills a log and a history with contacts and commits batches of changes of contacts drawn at random, on the disk
that --dir is on. Beside each batch it appends the same rows to a plain Iceberg table, to tell a figure from the machine's noise.`,
		Example: "  loam bench history --keys 20000 --batches 10\n  loam bench history --keys 10000 --batch 5000 --batches 0 --duration 2s",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case o.Keys < 1 || o.Batch < 1 || o.Batches < 0:
				return misused("--keys and --batch are numbers above 0, and --batches not below")
			case o.Mix.Late < 0 || o.Mix.Late > 1 || o.Mix.NoOp < 0 || o.Mix.NoOp > 1:
				return misused("--late and --no-ops are shares between 0 and 1")
			}
			return profiled(profile, func() error { return a.benchHistory(c.Context(), o) })
		},
	}
	f := c.Flags()
	f.IntVar(&o.Keys, "keys", 1_000_000, "contacts that the history begins with")
	f.IntVar(&o.Batch, "batch", 10_000, "changes a batch")
	f.IntVar(&o.Batches, "batches", 200, "batches to commit; 0 means as many as --duration allows")
	f.DurationVar(&o.Duration, "duration", 0, "end after this time")
	f.Float64Var(&o.Mix.Late, "late", 0.01, "share of late changes: nine of ten by under an hour, the others by up to 90 days")
	f.Float64Var(&o.Mix.NoOp, "no-ops", 0.2, "share of changes that change nothing")
	f.BoolVar(&o.Maintain, "maintain", true, "compact files beside, as a worker does")
	f.BoolVar(&o.Plain, "plain", true, "append the same rows to a plain table beside each batch")
	f.StringVar(&o.Dir, "dir", "", "an empty folder on the disk to measure (default: a temporary one, removed at the end)")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of what is made up")
	f.StringVar(&profile, "cpu-profile", "", "write a profile of the process to this file, for `go tool pprof`")
	return c
}

func (a *app) benchOnlineCommand() *cobra.Command {
	var o bench.OnlineOptions
	var profile string
	c := &cobra.Command{
		Use:   "online",
		Short: "Measure look-ups of online values",
		Long: `bench online fills Redis with made-up contacts and measures look-ups of them: by HMGET alone, through the Go package, over HTTP from
loam serve, and from a running Feast server where --feast names one that has the same features. The ways take turns. What it wrote to
Redis it removes; without --redis it is one inside this process, which tells nothing of a real one.`,
		Example: "  loam bench online --contacts 1000 --events 1000 --lookups 200 --entities 1,10 --concurrency 1",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Contacts < 1 || o.Contacts > 1_000_000 || o.Events < 0 || o.Rounds < 1 || o.Lookups < o.Rounds || slices.Min(append(o.Entities, o.Concurrency...)) < 1 {
				return misused("--contacts is between 1 and 1000000, --rounds, --entities and --concurrency are above 0, and --lookups is not below --rounds")
			}
			return profiled(profile, func() error { return a.benchOnline(c.Context(), o) })
		},
	}
	f := c.Flags()
	f.StringVar(&o.Redis, "redis", "", "host:port of the Redis to measure")
	f.StringVar(&o.Feast, "feast", "", "address of a running Feast server, such as http://127.0.0.1:6567")
	f.IntVar(&o.Contacts, "contacts", 100_000, "contacts that Redis is filled with")
	f.IntVar(&o.Events, "events", 500_000, "events that their windows are made of")
	f.IntVar(&o.Lookups, "lookups", 100_000, "look-ups of each way in each cell")
	f.DurationVar(&o.Seconds, "for", 10*time.Second, "end a way's look-ups in a cell after this time all the same")
	f.IntSliceVar(&o.Entities, "entities", []int{1, 10, 100}, "entities of a look-up")
	f.IntSliceVar(&o.Concurrency, "concurrency", []int{1, 16}, "look-ups at once")
	f.IntVar(&o.Rounds, "rounds", 4, "rounds in which the ways take turns in a cell")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of what is made up")
	f.StringVar(&profile, "cpu-profile", "", "write a profile of the process to this file, for `go tool pprof`")
	return c
}

func (a *app) benchWritesCommand() *cobra.Command {
	var o bench.WritesOptions
	var profile string
	c := &cobra.Command{
		Use:   "writes",
		Short: "Measure writes of online values",
		Long: `bench writes fills Redis with made-up contacts and writes batches of changes of them as a worker does, each guarded by its order. In
turns with that it has redis-benchmark set hashes of as many fields and bytes, in pipelines of as many. What was written to Redis is
removed; without --redis it is one inside this process, which tells nothing of a real one.`,
		Example: "  loam bench writes --contacts 1000 --batch 100 --changes 1000 --rounds 1",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Contacts < 1 || o.Contacts > 1_000_000 || o.Batch < 1 || o.Writes < 1 || o.Rounds < 1 || o.TTL < 0 {
				return misused("--contacts is between 1 and 1000000, --batch, --changes and --rounds are above 0, and --ttl is not below")
			}
			return profiled(profile, func() error { return a.benchWrites(c.Context(), o) })
		},
	}
	f := c.Flags()
	f.StringVar(&o.Redis, "redis", "", "host:port of the Redis to measure")
	f.StringVar(&o.Benchmark, "redis-benchmark", "redis-benchmark", "the program to measure beside")
	f.IntVar(&o.Contacts, "contacts", 100_000, "contacts that Redis is filled with")
	f.IntVar(&o.Batch, "batch", 10_000, "changes a batch")
	f.IntVar(&o.Writes, "changes", 500_000, "changes a turn")
	f.IntVar(&o.Rounds, "rounds", 3, "rounds in which the ways take turns")
	f.DurationVar(&o.TTL, "ttl", 0, "ttl of the view; 0 is none")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of what is made up")
	f.StringVar(&profile, "cpu-profile", "", "write a profile of the process to this file, for `go tool pprof`")
	return c
}

func (a *app) benchWrites(ctx context.Context, o bench.WritesOptions) error {
	if o.Redis == "" {
		o.Benchmark = ""
	}
	done, err := benchPlace(&o.Dir, &o.Redis)
	if err != nil {
		return err
	}
	defer done()
	o.Progress = a.err
	o.Load = func(dir string) (*feature.Project, error) { return loadProject(ctx, dir) }
	r, err := bench.Writes(ctx, o)
	if err != nil {
		return err
	}
	return a.result(r, func(w io.Writer) {
		fmt.Fprintf(w, "guarded writes: %.0f entities/s\n", r.GuardedPerSecond)
		if r.PlainPerSecond > 0 {
			fmt.Fprintf(w, "redis-benchmark: %.0f/s, which loam has %.2f of\n", r.PlainPerSecond, r.Ratio)
		}
	})
}

func (a *app) benchOnline(ctx context.Context, o bench.OnlineOptions) error {
	done, err := benchPlace(&o.Dir, &o.Redis)
	if err != nil {
		return err
	}
	defer done()
	if o.Loam, err = os.Executable(); err != nil {
		return fmt.Errorf("find the binary: %w", err)
	}
	o.Progress = a.err
	o.Load = func(dir string) (*feature.Project, error) { return loadProject(ctx, dir) }
	r, err := bench.Online(ctx, o)
	if err != nil {
		return err
	}
	return a.result(r, func(w io.Writer) {
		for _, s := range r.Skipped {
			fmt.Fprintf(w, "left out: %s\n", s)
		}
	})
}

// benchPlace makes a folder to measure in, and where no address is given a Redis inside this process. The caller ends both by done.
func benchPlace(dir, address *string) (done func(), err error) {
	if *dir, err = os.MkdirTemp("", "loam-bench-"); err != nil {
		return nil, fmt.Errorf("make a folder to measure in: %w", err)
	}
	if *address != "" {
		return func() { os.RemoveAll(*dir) }, nil
	}
	m, err := miniredis.Run()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a Redis in this process: %w", err), os.RemoveAll(*dir))
	}
	*address = m.Addr()
	return func() {
		m.Close()
		os.RemoveAll(*dir)
	}, nil
}

// profiled runs work, and writes its CPU profile to the file unless that is "".
func profiled(file string, work func() error) error {
	if file == "" {
		return work()
	}
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return errors.Join(fmt.Errorf("write the profile: %w", err), out.Close())
	}
	err = work()
	pprof.StopCPUProfile()
	return errors.Join(err, out.Close())
}

func (a *app) benchHistory(ctx context.Context, o bench.Options) error {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "loam-bench-")
		if err != nil {
			return fmt.Errorf("make a folder to measure in: %w", err)
		}
		defer os.RemoveAll(dir)
		o.Dir = dir
	}
	if o.Batches == 0 && o.Duration == 0 {
		return misused("give --batches or --duration")
	}
	o.Progress = a.err
	r, err := bench.History(ctx, feature.Builtin("contact"), o)
	if err != nil {
		return err
	}
	return a.result(r, func(w io.Writer) { r.Print(w, o) })
}
