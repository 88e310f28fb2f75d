package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest/schema"
	"github.com/loamdata/loam/internal/step"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

func (a *app) dlqRedriveCommand() *cobra.Command {
	var o redriveOptions
	c := &cobra.Command{
		Use:   "redrive [POSITION...]",
		Short: "Take dead letters again, once definitions or records are repaired",
		Long: `redrive takes the dead letters that wait again, all of them or those that are chosen, by the definitions of now. What is accepted
takes its place in log and history by its event time and its own position, as if it had never been refused, and is served
online. The letter stays, and says what became of it, when, and who had it taken; one that is refused again says why.

--with names a file of repaired records, which are taken in the place of the letters' own: a .jsonl file with a line a letter,
{"position": "contact.v1/0@117", "body": {...}}, or what export wrote, mended. record_key may stand beside the body.

No event is taken twice, however often redrive runs, and beside running workers. One that was cut off is ended by the next.`,
		Example: "  loam dlq redrive --stream contact --reason bad_value\n  loam dlq redrive --with repaired.jsonl",
		Args:    arguments(0, -1, ""),
		RunE: func(c *cobra.Command, args []string) error {
			for _, text := range args {
				p, err := parsePosition(text)
				if err != nil {
					return misuse{err}
				}
				o.positions = append(o.positions, p)
			}
			if filtered := o.filter != (letterFilter{}); o.with != "" && (filtered || len(args) > 0) {
				return misused("--with says itself which letters are taken: give no positions, --stream, --reason or --since with it")
			}
			return a.redrive(c.Context(), o)
		},
	}
	o.filter.flags(c)
	c.Flags().StringVar(&o.with, "with", "", "a file of repaired records: .jsonl, or .parquet as export writes it")
	c.Flags().StringVar(&o.by, "by", userName(), "who has them taken")
	c.Flags().BoolVar(&o.noOnline, "no-online", false, "leave the online store out; loam materialize brings it up to date")
	return c
}

// redriveOptions are the flags of redrive.
type redriveOptions struct {
	positions []feature.Position // none stands for all
	filter    letterFilter
	with      string
	by        string
	noOnline  bool
}

// userName is who runs the command, as the system calls them.
func userName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return cmp.Or(os.Getenv("USER"), "unknown")
}

// redrive takes dead letters again.
type redrive struct {
	project *feature.Project
	line    *line
	live    *online.Live // nil without an online store
	store   *online.Store
	db      *sql.DB
	by      string
	now     func() int64 // microseconds since 1970 UTC
	with    map[feature.Position]repair
	// decoders are those of topics whose values name schemas of a registry, by topic; nil until one is needed.
	decoders map[string]*schema.Decoder
	report   redriveReport
	// after is told each step that was done; an error ends the redrive there, as a crash does.
	after func(step string) error
}

func (a *app) redrive(ctx context.Context, o redriveOptions) error {
	r, done, err := a.openRedrive(ctx, o)
	if err != nil {
		return err
	}
	defer done()
	if err := r.run(ctx, o, a.now); err != nil {
		return fmt.Errorf("%w; what was taken before stays, and the same command goes on with the rest", err)
	}
	if err := r.pay(ctx, a); err != nil {
		return fmt.Errorf("the lake has what was taken, windowed views online lack it: %w; run loam materialize", err)
	}
	return a.result(r.report, func(w io.Writer) { r.report.print(w) })
}

func (a *app) openRedrive(ctx context.Context, o redriveOptions) (*redrive, func(), error) {
	p, l, err := a.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	r := &redrive{
		project: p, by: o.by, now: func() int64 { return a.now().UnixMicro() }, report: redriveReport{Streams: map[string]*redriveCount{}},
		after: func(string) error { return nil },
	}
	closers := []func() error{l.Close}
	done := func() {
		for _, c := range slices.Backward(closers) {
			_ = c()
		}
	}
	fail := func(err error) (*redrive, func(), error) {
		done()
		return nil, nil, err
	}
	if o.with != "" {
		if r.with, err = readRepairs(o.with); err != nil {
			return fail(err)
		}
	}
	var names []string
	if o.filter.stream != "" {
		names = []string{o.filter.stream}
	}
	streams, err := pickStreams(p, names)
	if err != nil {
		return fail(err)
	}
	if err := a.ensureApplied(ctx, p, l); err != nil {
		return fail(err)
	}
	if r.line, err = openLine(ctx, p, l, streams, newJobID("redrive")); err != nil {
		return fail(err)
	}
	closers = append(closers, r.line.close)
	if r.db, err = sql.Open(ctx, sql.Options{Files: true, Threads: 1}); err != nil {
		return fail(err)
	}
	closers = append(closers, r.db.Close)
	if o.noOnline {
		return r, done, nil
	}
	store, err := openStore(ctx, p)
	if err != nil {
		return fail(fmt.Errorf("%w; or take the letters into the lake alone with --no-online", err))
	}
	if store == nil {
		return r, done, nil
	}
	closers = append(closers, store.Close)
	r.store = store
	if r.live, err = online.NewLive(ctx, store, l, p); err != nil {
		return fail(err)
	}
	closers = append(closers, r.live.Close)
	if err := r.live.Settle(ctx); err != nil {
		return fail(err)
	}
	return r, done, nil
}

// pay has the windowed views built anew that lack what was taken.
func (r *redrive) pay(ctx context.Context, a *app) error {
	if r.live == nil {
		return nil
	}
	return a.payOwed(ctx, r.live, r.store, r.line.lake, r.project)
}

// run takes the letters of each stream, and then those of none.
func (r *redrive) run(ctx context.Context, o redriveOptions, now func() time.Time) error {
	condition, err := r.condition(ctx, o, now)
	if err != nil {
		return err
	}
	streams := r.line.all()
	for _, s := range streams {
		if _, err := r.finish(ctx, s); err != nil {
			return err
		}
	}
	for _, s := range streams {
		if err := r.take(ctx, s, condition); err != nil {
			return fmt.Errorf("take dead letters of %s again: %w", s.def.Name, err)
		}
	}
	if o.filter.stream != "" {
		return nil
	}
	if err := r.take(ctx, nil, condition); err != nil {
		return fmt.Errorf("take dead letters of no stream again: %w", err)
	}
	known := []sql.Fragment{"''"}
	for _, s := range r.project.Streams {
		known = append(known, sql.Literal(s.Name))
	}
	return r.db.QueryRow(ctx, sql.Render("SELECT count(*) FROM dead_letters WHERE {condition} AND stream NOT IN ({known})",
		sql.Args{"condition": condition, "known": sql.Join(", ", known)}), nil, &r.report.Unknown)
}

// condition says which letters are chosen. Positions and repaired records that have no letter are an error before anything is done.
func (r *redrive) condition(ctx context.Context, o redriveOptions, now func() time.Time) (sql.Fragment, error) {
	condition, err := o.filter.condition(now())
	if err != nil {
		return "", err
	}
	if err := r.line.letters.View(ctx, r.db); err != nil {
		return "", err
	}
	if o.with != "" {
		return r.repaired(ctx, condition)
	}
	var chosen []sql.Fragment
	for _, p := range o.positions {
		var topics int64
		if err := r.db.QueryRow(ctx, "SELECT count(DISTINCT topic) FROM dead_letters WHERE "+string(atPosition(p)), nil, &topics); err != nil {
			return "", err
		}
		switch {
		case topics == 0:
			return "", fmt.Errorf("there is no dead letter at %s; `loam dlq list` gives their positions", p)
		case topics > 1:
			return "", fmt.Errorf("%s is of %d files: give more of the hash", p, topics)
		}
		chosen = append(chosen, "("+atPosition(p)+")")
	}
	if chosen != nil {
		condition += " AND (" + sql.Join(" OR ", chosen) + ")"
	}
	return condition, nil
}

// repaired is the condition of the letters that repaired records were given for.
func (r *redrive) repaired(ctx context.Context, waiting sql.Fragment) (sql.Fragment, error) {
	positions := slices.Collect(maps.Keys(r.with))
	found := map[feature.Position]bool{}
	err := r.line.letters.Each(ctx, r.db, lake.AtAny(positions), lake.ByPosition, -1, func(l feature.DeadLetter) error {
		if found[l.Position] {
			return nil
		}
		found[l.Position] = true
		if l.Redriven != nil && l.Redriven.Outcome != feature.RedriveRefused {
			r.report.Already++
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for p, one := range r.with {
		if !found[p] {
			return "", fmt.Errorf("%s: there is no dead letter at %s, so nothing was taken; `loam dlq list` gives their positions", one.place, p)
		}
	}
	return waiting + " AND " + lake.AtAny(positions), nil
}

// finish ends a redrive of the stream that was cut off, and gives the job id of the last one.
func (r *redrive) finish(ctx context.Context, s *openStream) (string, error) {
	s.tables.Lock()
	defer s.tables.Unlock()
	last, err := s.lake.LastRedrive(ctx)
	if err != nil || !last.Open() {
		return last.JobID, err
	}
	var rows []arrow.RecordBatch
	defer func() { releaseRows(rows) }()
	var positions []feature.Position
	err = s.lake.RedriveRows(ctx, last.JobID, func(batch arrow.RecordBatch) error {
		batch.Retain()
		rows = append(rows, batch)
		some, err := lake.Positions(batch)
		positions = append(positions, some...)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("end a redrive that was cut off: %w", err)
	}
	var marks []lake.Marked
	if len(positions) > 0 {
		err = r.line.letters.Each(ctx, r.db, lake.AtAny(positions), lake.ByPosition, -1, func(l feature.DeadLetter) error {
			marks = append(marks, lake.Marked{Position: l.Position, RecordedAt: l.RecordedAt, Redriven: feature.Redriven{
				Outcome: feature.RedriveAccepted, Stream: s.def.Name, At: last.At, By: last.By, JobID: last.JobID, Repaired: last.Repaired,
			}})
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("end a redrive that was cut off: %w", err)
		}
	}
	if err := r.follow(ctx, s, rows, marks, last.JobID); err != nil {
		return "", fmt.Errorf("end a redrive that was cut off: %w", err)
	}
	r.report.Finished += int64(len(positions))
	return last.JobID, nil
}

// follow does what comes after the rows of a redrive are committed. The caller holds the stream's tables.
func (r *redrive) follow(ctx context.Context, s *openStream, rows []arrow.RecordBatch, marks []lake.Marked, jobID string) error {
	if r.live != nil {
		if _, err := r.live.Write(ctx, &feature.Batch{Stream: s.def, Rows: rows}, s.lake.Head()); err != nil {
			return fmt.Errorf("the lake has what was taken, the online store lacks the newest of it: %w", err)
		}
	}
	step.At(step.RedriveOnline)
	if err := r.after("online"); err != nil {
		return err
	}
	if err := r.mark(ctx, marks); err != nil {
		return err
	}
	step.At(step.RedriveMarked)
	if err := r.after("marked"); err != nil {
		return err
	}
	return s.lake.EndRedrive(ctx, jobID)
}

func (r *redrive) mark(ctx context.Context, marks []lake.Marked) error {
	_, err := r.line.letters.Mark(ctx, r.db, marks)
	return err
}

func releaseRows(rows []arrow.RecordBatch) {
	for _, b := range rows {
		b.Release()
	}
}
