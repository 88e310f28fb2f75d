package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/internal/simulate"
)

func (a *app) simulateCommand() *cobra.Command {
	f := simulateFlags{}
	c := &cobra.Command{
		Use:   "simulate",
		Short: "Make up a CRM's events, the same every time",
		Long: `simulate makes up the events of a CRM: leads become customers, deals move through stages, tickets escalate. The same seed
gives the same events. They go to files, or with --topics to the project's topics: its broker's, or its topic folders.`,
		Example: "  loam simulate --contacts 1000 --days 90 --out events\n" +
			"  loam simulate --contacts 1000 --format parquet --out events\n" +
			"  loam simulate --contacts 1000 --events 20000 --topics\n" +
			"  loam simulate --contacts 1000 --labels 500 --out events    # and events/labels.csv",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return misuse{err}
			}
			return a.simulate(c.Context(), f)
		},
	}
	flags := c.Flags()
	flags.Uint64Var(&f.config.Seed, "seed", 1, "seed: the same one gives the same events")
	flags.IntVar(&f.config.Contacts, "contacts", 1000, "contacts that are created")
	flags.IntVar(&f.config.Days, "days", 90, "days that the events span")
	flags.StringVar(&f.start, "start", "", "RFC 3339 time of the first event (default: so that the last is now)")
	flags.IntVar(&f.config.Events, "events", 0, "about how many good events (default: one in four days for each contact)")
	flags.Float64Var(&f.config.Duplicates, "duplicates", 0.01, "share of events delivered twice")
	flags.Float64Var(&f.config.Late, "late", 0.005, "share of events that are a minute to days late")
	flags.Float64Var(&f.config.OutOfOrder, "out-of-order", 0.02, "share of events that younger ones overtake")
	flags.Float64Var(&f.config.Malformed, "malformed", 0.002, "share of malformed events on top")
	flags.Float64Var(&f.config.Deletes, "deletes", 0.002, "share of events that delete a contact")
	flags.StringVar(&f.out, "out", "", "folder to write files to")
	flags.StringVar(&f.format, "format", "jsonl", "format of the files: jsonl, jsonl.gz, or parquet (a file a stream, of rows as they arrive)")
	flags.BoolVar(&f.topics, "topics", false, "write to the project's topics")
	flags.IntVar(&f.partitions, "partitions", 4, "partitions of topics that are made")
	flags.IntVar(&f.labels, "labels", 0, "also write this many labels, contact_id, event_timestamp, churned, as labels.csv")
	return c
}

type simulateFlags struct {
	config     simulate.Config
	start      string
	out        string
	format     string
	topics     bool
	partitions int
	labels     int
}

func (f *simulateFlags) check() error {
	switch {
	case f.topics == (f.out != ""):
		return errors.New("give --out DIR for files, or --topics for the project's topics")
	case f.labels > 0 && f.out == "":
		return errors.New("--labels are written beside files: give --out DIR")
	case f.format != "jsonl" && f.format != "jsonl.gz" && f.format != "parquet":
		return fmt.Errorf("--format is jsonl, jsonl.gz or parquet, not %q", f.format)
	case f.partitions < 1:
		return errors.New("--partitions is at least 1")
	}
	if f.start != "" {
		t, err := time.Parse(time.RFC3339, f.start)
		if err != nil {
			return fmt.Errorf("--start %q is not a time: write RFC 3339, such as 2026-01-01T00:00:00Z", f.start)
		}
		f.config.Start = t
	}
	return nil
}

// eventWriter takes simulated events.
type eventWriter interface {
	Write(simulate.Event) error
	Close() error
}

// kafkaWriter writes to a broker's topics.
type kafkaWriter struct {
	ctx   context.Context
	kafka *simulate.Kafka
}

func (k kafkaWriter) Write(e simulate.Event) error { return k.kafka.Write(k.ctx, e) }
func (k kafkaWriter) Close() error                 { return k.kafka.Close(k.ctx) }

func (a *app) simulate(ctx context.Context, f simulateFlags) error {
	if f.config.Start.IsZero() {
		// Whole days, so that the events of a day are the same whenever they are made on it.
		f.config.Start = a.now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -f.config.Days)
	}
	if err := f.config.Validate(); err != nil {
		return misuse{err}
	}
	w, where, err := a.openEventWriter(ctx, f)
	if err != nil {
		return err
	}
	bar := a.progress("simulate")
	done := int64(0)
	end := f.config.Start.AddDate(0, 0, f.config.Days)
	summary, err := simulate.Run(ctx, f.config, func(e simulate.Event) error {
		done++
		if done%4096 == 0 {
			bar.at(int64(e.At.Sub(f.config.Start)), int64(end.Sub(f.config.Start)), number(done)+" events")
		}
		return w.Write(e)
	})
	bar.end()
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	churned := 0
	if f.labels > 0 {
		if churned, err = writeLabels(ctx, filepath.Join(f.out, "labels.csv"), f); err != nil {
			return err
		}
	}
	return a.result(summary, func(out io.Writer) {
		fmt.Fprintf(out, "%s written to %s: %s unique, %s delivered again, %s late, %s malformed\n", count(int64(summary.Events), "event"), where,
			number(int64(summary.Unique)), number(int64(summary.Duplicates)), number(int64(summary.Late)), number(int64(malformed(summary))))
		rows := [][]string{{"event type", ">events"}}
		for _, name := range slices.Sorted(maps.Keys(summary.ByType)) {
			rows = append(rows, []string{name, number(int64(summary.ByType[name]))})
		}
		table(out, rows)
		if parquet, ok := w.(*simulate.Parquet); ok && parquet.LeftOut > 0 {
			fmt.Fprintf(out, "left out, having no place in Parquet: %s\n", count(int64(parquet.LeftOut), "malformed event"))
		}
		if f.labels > 0 {
			fmt.Fprintf(out, "%s in %s, %s churned\n", count(int64(f.labels), "label"), filepath.Join(f.out, "labels.csv"), number(int64(churned)))
		}
	})
}

func malformed(s simulate.Summary) int {
	n := 0
	for _, c := range s.Malformed {
		n += c
	}
	return n
}

func (a *app) openEventWriter(ctx context.Context, f simulateFlags) (w eventWriter, where string, err error) {
	if !f.topics {
		if err := os.MkdirAll(f.out, 0o755); err != nil {
			return nil, "", fmt.Errorf("make the folder: %w", err)
		}
		if f.format == "parquet" {
			w, err := simulate.CreateParquet(f.out)
			return w, f.out, err
		}
		path := filepath.Join(f.out, "events."+f.format)
		w, err := simulate.CreateJSONL(path)
		return w, path, err
	}
	p, err := a.load(ctx)
	if err != nil {
		return nil, "", err
	}
	var framed *feature.Stream
	topics := simulate.TopicsOf(func(stream string) string {
		s := p.Stream(stream)
		if s.Framed() {
			framed = s
		}
		return s.Topic
	})
	if framed != nil {
		return nil, "", fmt.Errorf("topic %s is written in %s, and simulate writes JSON; give --out DIR for files, or remove encoding from %s",
			framed.Topic, framed.Encoding, framed.At.File)
	}
	if len(p.Broker.Seeds) > 0 {
		access, err := ingest.AccessOf(p.Broker, p.Dir)
		if err != nil {
			return nil, "", err
		}
		k, err := simulate.DialKafka(ctx, p.Broker.Seeds, topics, f.partitions, access.Options()...)
		return kafkaWriter{ctx, k}, "the broker at " + strings.Join(p.Broker.Seeds, ", "), err
	}
	dir := filepath.Dir(topicDir(p, "x"))
	w, err = simulate.OpenFolder(dir, topics, f.partitions)
	return w, dir, err
}

func writeLabels(ctx context.Context, path string, f simulateFlags) (churned int, err error) {
	out, err := os.Create(path)
	if err != nil {
		return 0, fmt.Errorf("write the labels: %w", err)
	}
	churned, err = simulate.WriteLabels(ctx, out, f.config, f.labels)
	return churned, errors.Join(err, out.Close())
}
