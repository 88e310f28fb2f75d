package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
)

func (a *app) backfillCommand() *cobra.Command {
	var o backfillOptions
	c := &cobra.Command{
		Use:   "backfill FILE...",
		Short: "Take files in: .jsonl, .jsonl.gz, .csv, .parquet",
		Long: `backfill takes files through the same checks as topics, into the lake and the online store. Without --stream each event
goes to the stream of its event_type. A file is known by its content: taking it twice, renamed or not, changes nothing, and
one that was interrupted is taken on from where it was.

For a stream with load: full all files of the command are one full extract: entities that existed at its time and have no row
in it are deleted as of then, once all rows have been taken and none was refused.`,
		Example: "  loam backfill events.jsonl.gz\n  loam backfill --stream contact contact.parquet",
		Args:    arguments(1, -1, "name the files to take, such as events.jsonl.gz"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.backfill(c.Context(), args, o)
		},
	}
	c.Flags().StringVar(&o.stream, "stream", "", "the stream that every event or row belongs to")
	c.Flags().BoolVar(&o.noOnline, "no-online", false, "leave the online store out; loam materialize brings it up to date")
	c.Flags().StringVar(&o.extract.time, "extract-time", "", "when a full extract was taken, RFC 3339 (default: the greatest event time in it)")
	c.Flags().BoolVar(&o.extract.dryRun, "dry-run", false, "tell what a full extract would delete, and take nothing")
	c.Flags().BoolVar(&o.extract.allowDeletes, "allow-deletes", false, "let a full extract delete more than half of all entities")
	c.Flags().BoolVar(&o.extract.allowEmpty, "allow-empty", false, "let a full extract without rows delete all entities")
	return c
}

// backfillOptions are the flags of backfill.
type backfillOptions struct {
	stream   string
	noOnline bool
	extract  extractOptions
}

// Bounds of a micro-batch of a backfill.
const (
	backfillRows  = 100_000
	backfillBytes = 128 << 20
)

func (a *app) backfill(ctx context.Context, paths []string, o backfillOptions) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	b := &backfill{project: p, now: a.now, did: outcome{}}
	if b.streams, b.only, err = backfillStreams(p, o.stream); err != nil {
		return err
	}
	// All files are looked at before anything of one is taken.
	var files []ingest.File
	for _, path := range paths {
		f, err := ingest.StatFile(ctx, path)
		if errors.Is(err, ingest.ErrEmptyFile) && o.extract.allowEmpty {
			err = nil
		}
		if err != nil {
			return err
		}
		if f.Rows() && b.only == nil {
			return fmt.Errorf("%s holds rows, which don't say what they are: name their stream with --stream", path)
		}
		files = append(files, f)
	}
	if b.full, err = newFullExtract(b.only, files, o.extract, a.now()); err != nil {
		return err
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		return err
	}
	if b.line, err = openLine(ctx, p, l, b.streams, newJobID("backfill")); err != nil {
		return err
	}
	defer b.line.close()
	if err := b.line.openTopics(ctx, p); err != nil {
		return err
	}
	if !o.noOnline && !o.extract.dryRun {
		store, err := openStore(ctx, p)
		if err != nil {
			return fmt.Errorf("%w; or take the files into the lake alone with --no-online", err)
		}
		if store != nil {
			defer store.Close()
			if b.live, err = online.NewLive(ctx, store, l, p); err != nil {
				return err
			}
			defer b.live.Close()
			b.store = store
			if err := b.live.Settle(ctx); err != nil {
				return err
			}
		}
	}
	begun := a.now()
	if b.full != nil {
		if err := b.full.begin(b.line); err != nil {
			return err
		}
		files = b.full.files
		if b.full.loaded && o.extract.time == "" {
			a.say("the extract was loaded before; with --extract-time it is one of that time, too")
		}
	}
	for _, f := range files {
		if o.extract.dryRun {
			break
		}
		bar := a.progress("backfill " + filepath.Base(f.Path))
		err := b.take(ctx, f, func(done int64) {
			bar.at(done, f.SizeBytes, number(b.read)+" events")
		})
		err = errors.Join(err, b.settle())
		bar.end()
		if err != nil {
			if b.read == 0 || errors.Is(err, context.Canceled) {
				return err
			}
			return fmt.Errorf("%w; what was taken before stays, and once this is mended the same command adds the rest", err)
		}
	}
	var said *extractReport
	if b.full != nil {
		said, err = b.finish(ctx, l)
	}
	if err == nil {
		err = a.payFiles(ctx, b)
	}
	report := b.did.report()
	report.Extract = said
	failed := a.result(report, func(w io.Writer) {
		if !o.extract.dryRun {
			b.did.print(w)
		}
		if said != nil {
			said.print(w)
		}
		if read := b.did.total().Read; read > 0 {
			fmt.Fprintf(w, "  took %s\n", a.now().Sub(begun).Round(10*time.Millisecond))
		}
	})
	return errors.Join(err, failed)
}

// payFiles has the windowed views built anew that lack what the files brought.
func (a *app) payFiles(ctx context.Context, b *backfill) error {
	if b.live == nil {
		return nil
	}
	if err := a.payOwed(ctx, b.live, b.store, b.line.lake, b.project); err != nil {
		return fmt.Errorf("the lake has the files, windowed views online lack them: %w; run this again, or loam materialize", err)
	}
	return nil
}

// payOwed builds the windowed views anew whose generation lacks rows of files or redrives.
func (a *app) payOwed(ctx context.Context, live *online.Live, s *online.Store, l *lake.Lake, p *feature.Project) error {
	owing, err := live.Owing(ctx)
	if err != nil {
		return err
	}
	for _, view := range owing {
		bar := a.progress("materialize " + view)
		_, _, err := materialize(ctx, s, l, p, p.View(view), nil, a.now, func(done, of int64) { bar.at(done, of, number(done)+" entities") }, a.say)
		bar.end()
		if err != nil {
			return err
		}
	}
	return nil
}

// backfillStreams are the streams that files may go to: the named one, or all whose events say what they are.
func backfillStreams(p *feature.Project, only string) ([]*feature.Stream, *feature.Stream, error) {
	if only != "" {
		s, err := streamOf(p, only)
		return []*feature.Stream{s}, s, err
	}
	var streams []*feature.Stream
	for _, s := range p.Streams {
		if s.Format == feature.EnvelopeFormat {
			streams = append(streams, s)
		}
	}
	return streams, nil, nil
}

// backfill takes files in, one after the other. While a micro-batch is committed, the next one is read.
type backfill struct {
	project *feature.Project
	streams []*feature.Stream
	only    *feature.Stream
	full    *fullExtract // nil unless the files are one
	line    *line
	live    *online.Live // nil without an online store
	store   *online.Store
	now     func() time.Time
	read    int64
	known   map[string]lake.Head // by stream, the log's head by which the first event that waits in the router was decided on
	commits chan error           // of the commit that is going on, or nil
	did     outcome              // of the commits that have ended
}

// take takes one file from where each stream stands in it.
func (b *backfill) take(ctx context.Context, f ingest.File, progress func(bytes int64)) error {
	partition := feature.Partition{Topic: f.Topic}
	starts := map[string]int64{}
	from := int64(-1)
	done := 0
	for _, o := range b.line.all() {
		offsets, err := o.offsets()
		if err != nil {
			return err
		}
		at, _ := offsets.Of(partition)
		starts[o.def.Name] = at.Next
		if from < 0 || at.Next < from {
			from = at.Next
		}
		if fileDone(offsets, f.Topic) {
			done++
		}
	}
	if done == len(b.streams) {
		return nil
	}
	if b.live != nil {
		if err := b.live.Begin(ctx, b.streams, partition, starts); err != nil {
			return err
		}
	}
	source, err := f.Open(from, progress)
	if err != nil {
		return err
	}
	defer source.Close()
	refused, err := b.line.refusedBefore(ctx, &partition)
	if err != nil {
		return err
	}
	router := ingest.NewRouter(ingest.RouterOptions{
		Streams: b.streams, Only: b.only, JobID: b.line.jobID, Dedups: b.line.dedups(), Refused: refused,
		Deletes: b.line.deletes(), Mappings: b.line.mappings(),
		Starts: func(stream string, _ feature.Partition) int64 { return starts[stream] },
	})
	for {
		poll, err := source.Poll(ctx)
		if err != nil {
			// What was read before is fine and stays.
			return errors.Join(err, b.flush(context.WithoutCancel(ctx), router, nil))
		}
		now := b.now().UnixMicro()
		if err := b.add(ctx, router, poll.Records, now); err != nil {
			return err
		}
		var ends []ingest.End
		if poll.Done {
			ends = []ingest.End{{Partition: partition, At: now, Done: b.full == nil || b.full.behind != partition, Idle: true}}
		}
		if rows, size := router.Pending(); rows < backfillRows && size < backfillBytes && !poll.Done {
			continue
		}
		if err := b.flush(ctx, router, ends); err != nil {
			return err
		}
		if poll.Done {
			return nil
		}
	}
}

// add routes records, which decides on duplicates.
func (b *backfill) add(ctx context.Context, router *ingest.Router, records []ingest.Record, now int64) error {
	defer lockIDs(b.line.all())()
	if rows, _ := router.Pending(); rows == 0 {
		b.known = map[string]lake.Head{}
		for name, o := range b.line.streams {
			b.known[name] = o.known
		}
	}
	b.read += int64(len(records))
	return router.AddAll(ctx, records, now)
}

// flush takes what waits in the router and has it committed beside what follows, once the commit before has ended.
func (b *backfill) flush(ctx context.Context, router *ingest.Router, ends []ingest.End) error {
	unlock := lockIDs(b.line.all())
	made, err := router.Flush(ctx, ends)
	batches := make([]routed, len(made))
	for i, m := range made {
		batches[i] = routed{Batch: m}
		if m.Stream != nil {
			batches[i].known = b.known[m.Stream.Name]
		}
	}
	unlock()
	if err = errors.Join(err, b.settle()); err != nil {
		release(batches)
		return err
	}
	b.commits = make(chan error, 1)
	go func() {
		defer release(batches)
		b.commits <- b.commit(ctx, batches)
	}()
	return nil
}

// settle waits for the commit that is going on.
func (b *backfill) settle() error {
	if b.commits == nil {
		return nil
	}
	err := <-b.commits
	b.commits = nil
	return err
}

// commit commits batches to the lake, then writes them online.
func (b *backfill) commit(ctx context.Context, batches []routed) error {
	if err := b.line.commit(ctx, batches, b.did); err != nil {
		return err
	}
	step.At(step.BackfillCommitted)
	if b.live == nil {
		return nil
	}
	for _, m := range batches {
		if _, err := b.live.Write(ctx, m.Batch, m.known); err != nil {
			return fmt.Errorf("the lake has what was read, the online store lacks the newest of it; run this again to catch up: %w", err)
		}
	}
	return nil
}

// fileDone reports whether a stream has taken a file whole.
func fileDone(o lake.Offsets, topic string) bool {
	sha := strings.TrimPrefix(topic, feature.FileTopicPrefix)
	for _, f := range o.Files {
		if f.SHA256 == sha {
			return f.Done
		}
	}
	return false
}
