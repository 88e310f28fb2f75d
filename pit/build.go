package pit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Options bound and inform a build.
type Options struct {
	Now         func() time.Time // the clock
	Version     string           // loam's, for the card
	MemoryBytes int64            // of DuckDB; 0 leaves its default
	TempDir     string           // where it spills to
	// Step, if not nil, is told what is being done, for progress.
	Step func(what string, done, of int)
	// loosenUS moves the bound of every join, to show that the audit sees it. Tests set it.
	loosenUS int64
}

// ErrIncomplete: labels are later than the watermark, and the request requires that none is.
var ErrIncomplete = errors.New("labels are later than the watermark")

// build is a training set in the making.
type build struct {
	project *feature.Project
	lake    *lake.Lake
	request feature.DatasetRequest
	options Options
	db      *sql.DB
	labels  *labels
	jobs    []*viewJob
	card    *Card
}

// Build makes the training set that the request asks for: a Parquet file and its card. Neither is there if it fails.
func Build(ctx context.Context, l *lake.Lake, p *feature.Project, request feature.DatasetRequest, o Options) (*Card, error) {
	if o.Step == nil {
		o.Step = func(string, int, int) {}
	}
	start := o.Now()
	b := &build{project: p, lake: l, request: request, options: o}
	b.request.Labels, b.request.Out = b.path(request.Labels), b.path(request.Out)
	if b.request.Labels == b.request.Out {
		return nil, fmt.Errorf("the training set would overwrite its labels %s: name another file", b.request.Out)
	}
	b.card = &Card{
		Version: CardVersion, Clock: clockText(request.AsOf), Name: request.Name, Project: p.Name, CreatedAt: start.UTC().Truncate(time.Microsecond),
		Out: b.request.Out, Snapshots: map[string]int64{}, Watermarks: map[string]time.Time{}, Loam: o.Version, Tag: "dataset-" + uuid.NewString(),
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
	var err error
	if b.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	defer b.db.Close()
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	b.card.WallMS = o.Now().Sub(start).Milliseconds()
	if err := b.keepCard(ctx, start); err != nil {
		// A training set without its card is none, and its snapshots need not be kept.
		return nil, errors.Join(err, os.Remove(b.request.Out), b.unpin(context.WithoutCancel(ctx)))
	}
	return b.card, nil
}

// keepCard puts the card beside the training set and into the lake, or nowhere.
func (b *build) keepCard(ctx context.Context, start time.Time) error {
	path := CardPath(b.request.Out)
	text, err := b.card.write(path)
	if err != nil {
		return err
	}
	if err := b.lake.AppendCard(ctx, b.request.Name, b.request.Out, string(text), start.UnixMicro()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func clockText(c feature.Clock) string {
	if c == feature.EventClock {
		return "event: what was true in the source at the label's time, whenever loam learnt of it"
	}
	return "served: what loam had ingested by the label's time, as a model would have been given it"
}

func (b *build) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(b.project.Dir, p)
}

func (b *build) run(ctx context.Context) error {
	if err := b.plan(ctx); err != nil {
		return err
	}
	// The snapshots are tagged before they are read, so that they can't expire meanwhile.
	if err := b.pin(ctx); err != nil {
		return err
	}
	if err := b.join(ctx); err != nil {
		return errors.Join(err, b.unpin(context.WithoutCancel(ctx)))
	}
	return nil
}

// join does the work on snapshots that are pinned.
func (b *build) join(ctx context.Context) error {
	steps := len(b.jobs) + 2
	b.options.Step("reading labels", 0, steps)
	if err := b.loadLabels(ctx); err != nil {
		return err
	}
	if err := b.watermarks(ctx); err != nil {
		return err
	}
	if err := b.db.Exec(ctx, "CREATE OR REPLACE TEMP TABLE differing (label_row BIGINT)"); err != nil {
		return err
	}
	for i, j := range b.jobs {
		b.options.Step("joining "+j.view.Name, i+1, steps)
		join := b.attribute
		if j.view.Windowed() {
			join = b.windowed
		}
		if err := join(ctx, j); err != nil {
			return fmt.Errorf("join feature view %s: %w", j.view.Name, err)
		}
	}
	if b.card.Audit.MaxUS != nil && *b.card.Audit.MaxUS > 0 {
		return fmt.Errorf("the audit found a feature %d us after its label: the training set is not written; this is a defect of loam", *b.card.Audit.MaxUS)
	}
	b.options.Step("writing "+filepath.Base(b.request.Out), steps-1, steps)
	if err := b.write(ctx); err != nil {
		return err
	}
	b.options.Step("done", steps, steps)
	return nil
}

// plan finds the views that the features come from, in the order asked, and opens their streams.
func (b *build) plan(ctx context.Context) error {
	readings := map[string]*lake.Reading{}
	for _, f := range b.request.Features {
		i := slices.IndexFunc(b.jobs, func(j *viewJob) bool { return j.view.Name == f.View })
		if i < 0 {
			view := b.project.View(f.View)
			j := &viewJob{view: view, entity: b.project.Entity(view.Entity), stream: b.project.Stream(view.Stream)}
			if readings[view.Stream] == nil {
				r, err := b.lake.Read(ctx, j.stream)
				if err != nil {
					return err
				}
				readings[view.Stream] = r
			}
			j.reading = readings[view.Stream]
			i = len(b.jobs)
			b.jobs = append(b.jobs, j)
			b.card.Definitions = append(b.card.Definitions, b.project.ViewDefinition(view), j.stream.Definition())
		}
		b.jobs[i].features = append(b.jobs[i].features, f.Feature)
	}
	for _, r := range readings {
		for table, snapshot := range r.Snapshots() {
			b.card.Snapshots[table] = snapshot
		}
	}
	return nil
}

func (b *build) loadLabels(ctx context.Context) error {
	var textKeys []string
	for _, j := range b.jobs {
		for _, k := range j.entity.JoinKeys {
			if c, ok := j.stream.Column(k); ok && c.Type.Kind == feature.String {
				textKeys = append(textKeys, k)
			}
		}
	}
	var err error
	if b.labels, err = loadLabels(ctx, b.db, b.request.Labels, b.request.TimeColumn, textKeys); err != nil {
		return err
	}
	for _, f := range b.request.Features {
		if name, taken := b.labels.has(f.Column()); taken {
			return fmt.Errorf("labels %s have a column %s already, which is the name of a feature: rename it", b.request.Labels, name)
		}
	}
	b.card.Labels = CardLabels{Path: b.request.Labels, SHA256: b.labels.sha256, Rows: b.labels.rows}
	return nil
}

// watermarks finds up to when the streams are complete, and what share of the labels is later.
func (b *build) watermarks(ctx context.Context) error {
	var least *time.Time
	empty := ""
	for _, j := range b.jobs {
		offsets, err := j.reading.Offsets()
		if err != nil {
			return err
		}
		mark, ok := offsets.Watermark()
		if !ok {
			empty = j.stream.Name
			continue
		}
		at := time.UnixMicro(mark).UTC()
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
	if b.labels.rows == 0 {
		return nil
	}
	late := b.labels.rows
	if least != nil {
		err := b.db.QueryRow(ctx, sql.Render("SELECT count(*) FROM labels WHERE {time} > make_timestamptz({mark})",
			sql.Args{"time": sql.Ident(labelTime), "mark": sql.Fragment(fmt.Sprint(least.UnixMicro()))}), nil, &late)
		if err != nil {
			return err
		}
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

// loosen moves the bound of a join in tests, and is the identity otherwise.
func (b *build) loosen(statement string) string {
	if b.options.loosenUS == 0 {
		return statement
	}
	return strings.ReplaceAll(statement, "a.label_bound", fmt.Sprintf("(a.label_bound + INTERVAL %d microsecond)", b.options.loosenUS))
}

// write puts labels and features together and writes the Parquet file, and what it holds into the card.
func (b *build) write(ctx context.Context) error {
	columns := []sql.Fragment{sql.Idents("l.", b.labels.names())}
	joins := sql.Fragment("labels l")
	for _, j := range b.jobs {
		joins += sql.Fragment(sql.Render(" LEFT JOIN {t} ON {t}.label_row = l.{row}", sql.Args{"t": alias(j), "row": sql.Ident(labelRow)}))
	}
	for _, f := range b.request.Features {
		j := b.job(f.View)
		value := alias(j) + "." + sql.Ident(f.Feature)
		if zeroWithoutEvents(j.view, f.Feature) {
			value = "CASE WHEN " + alias(j) + ".label_row IS NULL THEN 0 ELSE " + value + " END"
		}
		columns = append(columns, value+" AS "+sql.Ident(f.Column()))
	}
	err := b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE dataset AS SELECT {columns}, l.{row} FROM {joins}",
		sql.Args{"columns": sql.Join(", ", columns), "joins": joins, "row": sql.Ident(labelRow)}))
	if err != nil {
		return err
	}
	if err := b.describe(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.request.Out), 0o755); err != nil {
		return fmt.Errorf("make the folder of the training set: %w", err)
	}
	temporary := b.request.Out + ".part"
	err = b.db.Exec(ctx, sql.Render("COPY (SELECT * EXCLUDE ({row}) FROM dataset ORDER BY {row}) TO {out} (FORMAT parquet, COMPRESSION zstd)",
		sql.Args{"row": sql.Ident(labelRow), "out": sql.Literal(temporary)}))
	if err == nil {
		err = os.Rename(temporary, b.request.Out)
	}
	if err != nil {
		_ = os.Remove(temporary) // it may not be there
		return fmt.Errorf("write %s: %w", b.request.Out, err)
	}
	return nil
}

// job is the part of the build that a view has.
func (b *build) job(view string) *viewJob {
	return b.jobs[slices.IndexFunc(b.jobs, func(j *viewJob) bool { return j.view.Name == view })]
}

func alias(j *viewJob) sql.Fragment { return sql.Ident(j.featureTable()) }

// zeroWithoutEvents reports whether a feature is 0 for an entity without events: counts and distincts.
func zeroWithoutEvents(v *feature.View, name string) bool {
	for _, a := range v.Aggregates {
		for _, w := range a.Windows {
			if a.FeatureName(w) == name {
				return a.Fn == feature.Count || a.Fn == feature.Distinct
			}
		}
	}
	return false
}

// describe fills the card with what the training set holds, and holds its rows against the labels'.
func (b *build) describe(ctx context.Context) error {
	items := []sql.Fragment{"count(*)", "(SELECT count(DISTINCT label_row) FROM differing)"}
	for _, f := range b.request.Features {
		items = append(items, "count("+sql.Ident(f.Column())+")")
	}
	counts := make([]int64, len(items))
	dst := make([]any, len(items))
	for i := range dst {
		dst[i] = &counts[i]
	}
	if err := b.db.QueryRow(ctx, sql.Render("SELECT {items} FROM dataset", sql.Args{"items": sql.Join(", ", items)}), nil, dst...); err != nil {
		return err
	}
	b.card.Rows = counts[0]
	if b.card.Rows != b.labels.rows {
		panic(fmt.Sprintf("%d labels became %d rows", b.labels.rows, b.card.Rows))
	}
	rate := func(n int64) float64 {
		if b.card.Rows == 0 {
			return 0
		}
		return float64(n) / float64(b.card.Rows)
	}
	b.card.Labels.ClocksDiffer = rate(counts[1])
	for i, f := range b.request.Features {
		j := b.job(f.View)
		b.card.Features = append(b.card.Features, CardFeature{
			Column: f.Column(), Type: j.view.FeatureType(j.stream, f.Feature).String(), NullRate: rate(b.card.Rows - counts[i+2]),
		})
	}
	return b.db.QueryRow(ctx, "SELECT version()", nil, &b.card.DuckDB)
}

// pin tags the snapshots that are read, so that they outlive expiry and the training set can be made again.
func (b *build) pin(ctx context.Context) error {
	return b.eachTable(func(t *lake.Table) error { return t.Tag(ctx, b.card.Tag, t.SnapshotID()) })
}

func (b *build) unpin(ctx context.Context) error {
	return b.eachTable(func(t *lake.Table) error { return t.Untag(ctx, b.card.Tag) })
}

// eachTable calls do with every table that is read and has a snapshot, once.
func (b *build) eachTable(do func(*lake.Table) error) error {
	done := map[string]bool{}
	for _, j := range b.jobs {
		for _, t := range []*lake.Table{j.reading.Log, j.reading.History} {
			if t == nil || t.SnapshotID() == 0 || done[t.Name()] {
				continue
			}
			done[t.Name()] = true
			if err := do(t); err != nil {
				return err
			}
		}
	}
	return nil
}
