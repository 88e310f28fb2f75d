package pit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Options bound and inform a build.
type Options struct {
	Now         func() time.Time // the clock
	Version     string           // loam's, for the card
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to, in a folder of the build's own; "" is the system's
	In          io.Reader        // what labels from standard input are read from
	// InBytesMax, unless it is 0, bounds the bytes and rows of labels that are read from In, and says that anybody may have written them.
	InBytesMax int64
	Stream     io.Writer // what a training set to standard output is written to
	// Step, if not nil, is told what is being done, for progress.
	Step func(what string, done, of int)
	// loosenUS moves the bound of every join, to show that the audit sees it. Tests set it.
	loosenUS int64
	// partRows bounds the labels that are worked on at once; 0 means [partRowsMax]. Tests set it.
	partRows int64
	// foldRows bounds the patches that are folded at once; 0 means [patchesMax]. Tests set it.
	foldRows int64
}

// ErrIncomplete: labels are later than the watermark, and the request requires that none is.
var ErrIncomplete = errors.New("labels are later than the watermark")

// ErrRequest: the request or its labels are at fault, and not what happened meanwhile. The errors that it is among have words of their own.
var ErrRequest = errors.New("the request or its labels are at fault")

// requestError is an error that is among [ErrRequest].
type requestError struct{ error }

func (e requestError) Unwrap() error        { return e.error }
func (e requestError) Is(target error) bool { return target == ErrRequest }

// build is a training set in the making.
type build struct {
	project *feature.Project
	lake    *lake.Lake
	request feature.DatasetRequest
	options Options
	db      *sql.DB
	labels  *labels
	jobs    []*viewJob
	// onDemand are computed from what the jobs join; the features that they read are among the jobs', asked for or not.
	onDemand []*onDemandJob
	outcomes []*outcomeJob
	sources
	temp  string // a folder of the build's own
	card  *Card
	again *Card // of the training set that is made again, nil for a new one
	// replaced is the card that stood in the place of this one's, of another training set; nil where none did.
	replaced *Card
	described
	slots        map[string]*slots // by the expression of the entity's key
	differing    []bool            // by row of the labels that are worked on: whether the clocks could differ in a view
	anyDiffering []bool            // in any
	first, last  int64             // times of those labels, in microseconds: the first, and the last
	row0         int64             // the row of the first of them
}

// Build makes the training set that the request asks for and its card. Neither is there if it fails. What is wrong with the
// request itself is one error that names its keys.
func Build(ctx context.Context, l *lake.Lake, p *feature.Project, request feature.DatasetRequest, o Options) (*Card, error) {
	return produce(ctx, l, p, request, o, nil)
}

// produce makes a training set, anew or as the card says.
func produce(ctx context.Context, l *lake.Lake, p *feature.Project, request feature.DatasetRequest, o Options, again *Card) (*Card, error) {
	if o.Step == nil {
		o.Step = func(string, int, int) {}
	}
	start := o.Now()
	b := &build{project: p, lake: l, request: request, options: o, again: again, sources: sources{readings: map[string]*lake.Reading{}}}
	if err := b.paths(); err != nil {
		return nil, err
	}
	b.card = &Card{
		Version: CardVersion, Clock: clockText(request.AsOf), Name: request.Name, Project: p.Name, CreatedAt: start.UTC().Truncate(time.Microsecond),
		Out: b.request.Out, Snapshots: map[string]int64{}, Tables: map[string]lake.Pin{}, Watermarks: map[string]time.Time{}, Loam: o.Version, Tag: newTag(start),
		Request: CardRequest{
			Service: request.Service, TimeColumn: request.TimeColumn, AsOf: string(request.AsOf), KnownAt: request.KnownAt,
			AtLabelTime: "include", RequireComplete: request.RequireComplete,
		},
		Audit: CardAudit{FeatureTime: strings.Trim(string(b.clockColumn()), `"`)},
	}
	if request.ExcludeLabelTime {
		b.card.Request.AtLabelTime = "exclude"
	}
	for _, f := range request.Features {
		b.card.Request.Features = append(b.card.Request.Features, f.String())
	}
	b.cardRequest()
	b.card.Asked = b.request
	b.rebuilds()
	if err := b.ownTemp(start); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.temp)
	var err error
	if b.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: filepath.Join(b.temp, "spill")}); err != nil {
		return nil, err
	}
	defer b.db.Close()
	if err := request.Check(p, b.checkExpr(ctx)); err != nil {
		return nil, requestError{err}
	}
	out, err := b.newOutput()
	if err != nil {
		return nil, err
	}
	defer out.discard()
	if err := b.run(ctx, out); err != nil {
		if strings.Contains(err.Error(), "Out of Memory Error") {
			err = fmt.Errorf("%w\nDuckDB was given too little memory: set more by `memory` in %s, or --memory", err, feature.ProjectFile)
		}
		return nil, err
	}
	b.card.WallMS = o.Now().Sub(start).Milliseconds()
	if err := b.hand(ctx, out, start); err != nil {
		return nil, errors.Join(err, b.unpin(context.WithoutCancel(ctx))) // its snapshots need not be kept
	}
	return b.card, b.unpinReplaced(ctx)
}

func clockText(c feature.Clock) string {
	if c == feature.EventClock {
		return "event: what was true in the source at the label's time, whenever loam learnt of it"
	}
	return "served: what loam had ingested by the label's time, as a model would have been given it"
}

func (b *build) run(ctx context.Context, out *output) error {
	if err := b.plan(ctx); err != nil {
		return err
	}
	if err := b.note(); err != nil {
		return err
	}
	// The snapshots are tagged before they are read, so that they can't expire meanwhile.
	b.pinLabels(ctx)
	if err := b.pin(ctx); err != nil {
		return err
	}
	if err := b.join(ctx, out); err != nil {
		return errors.Join(err, b.unpin(context.WithoutCancel(ctx)))
	}
	return nil
}

// partLabels is the view of those labels that are worked on.
const partLabels = "part_labels"

// partRowsMax bounds the labels that are worked on at once, and with them the memory that a build takes.
const partRowsMax = 1 << 20

// join does the work on snapshots that are pinned: the labels a part after the other, in their order.
func (b *build) join(ctx context.Context, out *output) error {
	b.options.Step("reading labels", 0, 1)
	if err := b.loadLabels(ctx); err != nil {
		return requestError{err}
	}
	if err := b.spans(ctx); err != nil {
		return err
	}
	if err := b.watermarks(ctx); err != nil {
		return err
	}
	parts := b.parts()
	steps := parts*(len(b.jobs)+1) + 1
	done := 0
	step := func(what string) {
		done++
		b.options.Step(what, done, steps)
	}
	for part := range parts {
		if err := b.joinPart(ctx, part, step); err != nil {
			return err
		}
		step("writing " + filepath.Base(b.request.Out))
		if err := out.add(ctx, b.db, b.row0); err != nil {
			return err
		}
		if err := b.dropFeatures(ctx); err != nil {
			return err
		}
		if err := b.describe(ctx); err != nil {
			return err
		}
	}
	if err := b.fillCard(ctx); err != nil {
		return err
	}
	if err := out.finish(ctx, b.db); err != nil {
		return err
	}
	b.options.Step("done", steps, steps)
	return nil
}

// parts is in how many parts the labels are worked on, one at least.
func (b *build) parts() int {
	rows := b.partRows()
	return max(int((b.labels.rows+rows-1)/rows), 1)
}

// joinPart joins the features of a part of the labels, and makes the view assembled of it. Each view is a step.
func (b *build) joinPart(ctx context.Context, part int, step func(what string)) error {
	rows := b.partRows()
	if err := b.choose(ctx, int64(part)*rows, int64(part+1)*rows); err != nil {
		return err
	}
	for _, j := range b.jobs {
		step("joining " + j.view.Name)
		if err := b.features(ctx, j); err != nil {
			return fmt.Errorf("join feature view %s: %w", j.view.Name, err)
		}
		b.countDiffering(j)
	}
	if err := b.audited(); err != nil {
		return err
	}
	return b.assemble(ctx)
}

// dropFeatures drops the features of a part.
func (b *build) dropFeatures(ctx context.Context) error {
	for _, j := range b.jobs {
		if err := b.db.Exec(ctx, sql.Render("DROP TABLE {table}", sql.Args{"table": sql.Ident(j.featureTable())})); err != nil {
			return err
		}
	}
	return nil
}

// audited refuses features that are newer than a label may see: after its time, or at it where that is left out.
func (b *build) audited() error {
	switch most := b.card.Audit.MaxUS; {
	case most == nil || *most < 0 || *most == 0 && !b.request.ExcludeLabelTime:
		return nil
	case *most == 0:
		return errors.New("the audit found a feature at its label's very time, which is left out: the training set is not written; this is a defect of loam")
	default:
		return fmt.Errorf("the audit found a feature %d us after its label: the training set is not written; this is a defect of loam", *most)
	}
}

// partRows is how many labels are worked on at once: fewer where memory is bounded, at about what a label takes beside DuckDB's
// tables, and an aggregate of its windows.
func (b *build) partRows() int64 {
	if b.options.partRows > 0 {
		return b.options.partRows
	}
	if b.options.MemoryBytes == 0 {
		return partRowsMax
	}
	bytes := int64(400)
	for _, j := range b.jobs {
		bytes += 32 * int64(len(j.features))
		if j.view.Windowed() {
			bytes += 64 * int64(len(j.features))
		}
	}
	return min(max(b.options.MemoryBytes/bytes, 1<<14), partRowsMax)
}

// choose makes the labels of the rows from first to before end those that are worked on.
func (b *build) choose(ctx context.Context, first, end int64) error {
	if err := b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP VIEW {part} AS SELECT * FROM labels WHERE {row} >= {first} AND {row} < {end}", sql.Args{
		"part": partLabels, "row": sql.Ident(labelRow), "first": sql.Fragment(fmt.Sprint(first)), "end": sql.Fragment(fmt.Sprint(end)),
	})); err != nil {
		return err
	}
	b.slots, b.row0 = nil, first
	n := max(min(end, b.labels.rows)-first, 0)
	b.differing, b.anyDiffering = make([]bool, n), make([]bool, n)
	return b.db.QueryRow(ctx, sql.Render("SELECT coalesce(min(epoch_us({time})), 0), coalesce(max(epoch_us({time})), 0) FROM {part}",
		sql.Args{"time": sql.Ident(labelTime), "part": partLabels}), nil, &b.first, &b.last)
}

// differs notes that the clocks could differ for a label.
func (b *build) differs(row int64) { b.differing[row-b.row0] = true }

// features makes the table of a view's features for the labels that are worked on.
func (b *build) features(ctx context.Context, j *viewJob) error {
	switch {
	case j.view.OverHistory(j.stream):
		return b.historyWindowed(ctx, j)
	case j.view.Windowed():
		return b.windowed(ctx, j)
	}
	if err := b.attribute(ctx, j); err != nil {
		return err
	}
	return b.countErrors(ctx, j.featureTable(), j.chosen(), &j.lost)
}

// plan finds the views that the features come from, in the order asked, and opens their streams.
func (b *build) plan(ctx context.Context) error {
	var stored []feature.Ref
	for _, f := range b.request.Features {
		if b.project.View(f.View).OnDemand != nil {
			stored = append(stored, b.planOnDemand(f)...)
		} else {
			stored = append(stored, f)
		}
	}
	for _, f := range stored {
		i := slices.IndexFunc(b.jobs, func(j *viewJob) bool { return j.view.Name == f.View })
		if i < 0 {
			view := b.project.View(f.View)
			j := &viewJob{view: view, entity: b.project.Entity(view.Entity), stream: b.project.Stream(view.Stream)}
			var err error
			if j.reading, err = b.reading(ctx, j.stream); err != nil {
				return err
			}
			i = len(b.jobs)
			b.jobs = append(b.jobs, j)
			b.card.Definitions = append(b.card.Definitions, b.project.ViewDefinition(view), j.stream.Definition())
		}
		if !slices.Contains(b.jobs[i].features, f.Feature) {
			b.jobs[i].features = append(b.jobs[i].features, f.Feature)
		}
	}
	if err := b.planOutcomes(ctx); err != nil {
		return err
	}
	return b.planLabels(ctx)
}

// watermarks finds up to when the streams are complete, and what share of the labels is later.
func (b *build) watermarks(ctx context.Context) error {
	var least *time.Time
	empty := ""
	if b.again != nil { // what was complete then is not what is complete now
		b.sameWatermarks()
		return nil
	}
	for _, j := range b.jobs {
		mark, err := b.mark(ctx, j.stream, j.reading)
		if err != nil {
			return err
		}
		if mark == nil {
			empty = j.stream.Name
			continue
		}
		at := *mark
		b.card.Watermarks[j.stream.Name] = at
		if least == nil || at.Before(*least) {
			least = &at
		}
	}
	if empty != "" {
		least = nil
		b.card.Warnings = append(b.card.Warnings, fmt.Sprintf("stream %s is empty", empty))
	}
	b.card.Watermark = least
	if b.labels.rows == 0 || len(b.jobs) == 0 {
		return nil
	}
	after := sql.Fragment(sql.Ident(labelTime) + " IS NOT NULL") // a label without a time sees nothing
	if least != nil {
		after = sql.Fragment(fmt.Sprintf("%s > make_timestamptz(%d)", sql.Ident(labelTime), least.UnixMicro()))
	}
	var late int64
	if err := b.db.QueryRow(ctx, "SELECT count(*) FROM labels WHERE "+string(after), nil, &late); err != nil {
		return err
	}
	b.card.Labels.AfterWatermark = float64(late) / float64(b.labels.rows)
	if late == 0 {
		return nil
	}
	what := fmt.Sprintf("%d of %d labels are later than the watermark %s, so what they see may still change", late, b.labels.rows, watermarkText(least))
	if b.request.RequireComplete {
		return fmt.Errorf("%w: %s; leave those out, or ask without require_complete", ErrIncomplete, what)
	}
	b.card.Warnings = append(b.card.Warnings, what)
	return nil
}

func watermarkText(at *time.Time) string {
	if at == nil {
		return "(a stream is empty)"
	}
	return at.Format(time.RFC3339Nano)
}
