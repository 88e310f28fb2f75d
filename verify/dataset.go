package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// DatasetOptions say what of a training set is verified, and how.
type DatasetOptions struct {
	File string // the training set, a Parquet file
	Rows int    // how many rows are recomputed, spread over all
	All  bool   // all rows are
	Seed uint64 // chooses among the rows

	Check       feature.CheckExpr // reads the card's expressions
	MemoryBytes int64             // of DuckDB, which evaluates expressions; 0 leaves its default
	TempDir     string            // where it spills to
	Progress    func(done, of int)
}

// DatasetReport says what [Dataset] has checked, and what it found.
type DatasetReport struct {
	Out     string           `json:"out"`
	Rows    int64            `json:"rows"`    // of the file
	Checked int64            `json:"checked"` // rows that were recomputed
	Cells   int64            `json:"cells"`   // values that were recomputed
	Skipped []string         `json:"skipped,omitempty"`
	Notes   []string         `json:"notes,omitempty"`
	Total   int64            `json:"differences"`
	First   []DatasetFinding `json:"findings,omitempty"`
}

// DatasetFinding is a difference: of the whole file, or of one value of it.
type DatasetFinding struct {
	Row    *int64   `json:"row,omitempty"` // number of the label, from 0
	Keys   []string `json:"keys,omitempty"`
	Column string   `json:"column,omitempty"`
	Want   string   `json:"want"`
	Got    string   `json:"got"`
	Text   string   `json:"text,omitempty"` // what differs, where it is no value
}

// datasetFindingsMax bounds the findings that are kept.
const datasetFindingsMax = 20

// OK reports whether nothing differs.
func (r *DatasetReport) OK() bool { return r.Total == 0 }

func (r *DatasetReport) add(f DatasetFinding) {
	if r.Total++; r.Total <= datasetFindingsMax {
		r.First = append(r.First, f)
	}
}

// trainingCard is what is read of a card, docs/card.md.
type trainingCard struct {
	Version int   `json:"version"`
	Rows    int64 `json:"rows"`
	Request struct {
		Features    []string   `json:"features"`
		TimeColumn  string     `json:"time_column"`
		AsOf        string     `json:"as_of"`
		KnownAt     *time.Time `json:"known_at"`
		AtLabelTime string     `json:"at_label_time"`
		// JoinKeys are the label columns of join keys that have other names.
		JoinKeys map[string]string `json:"join_keys"`
		Outcomes []string          `json:"outcomes"`
		Sample   string            `json:"sample"`
		Split    string            `json:"split"`
		Seed     int64             `json:"seed"`
	} `json:"request"`
	Labels struct {
		Path      string        `json:"path"`
		SHA256    string        `json:"sha256"`
		Read      int64         `json:"read"`
		LeftOut   int64         `json:"left_out"`
		Unsampled int64         `json:"unsampled"`
		Rows      int64         `json:"rows"`
		Outcomes  []cardOutcome `json:"outcomes"`
		Parts     []cardPart    `json:"parts"`
	} `json:"labels"`
	Features []struct {
		Column string `json:"column"`
		Type   string `json:"type"`
	} `json:"features"`
	Definitions []feature.Definition `json:"definitions"`
	RowsHash    string               `json:"rows_hash"`
	Unhashed    []string             `json:"unhashed"`
	Tables      map[string]lake.Pin  `json:"tables"`
}

type cardOutcome struct {
	Column        string     `json:"column"`
	CompleteUntil *time.Time `json:"complete_until"`
	LeftOut       int64      `json:"left_out"`
	True          int64      `json:"true"`
}

type cardPart struct {
	Part string `json:"part"`
	Rows int64  `json:"rows"`
}

// datasetCheck is the verification of a training set on its way.
type datasetCheck struct {
	lake     *lake.Lake
	card     trainingCard
	project  *feature.Project // of the card
	options  DatasetOptions
	db       *sql.DB
	report   *DatasetReport
	columns  []sql.Column // of the training set
	views    []*viewCheck
	demands  []*demandCheck
	outcomes []*outcomeCheck
	split    feature.Split
	labelsAt labelsAt
}

// Dataset recomputes rows of a training set from the logs that its card (JSON) names, and compares. What a label sees is
// found by loops over the changes as Parquet readers give them, in Go; DuckDB reads the training set and evaluates the
// expressions of features and conditions, which are its own. A difference is a finding; an error says that it could not look.
func Dataset(ctx context.Context, l *lake.Lake, today *feature.Project, card []byte, o DatasetOptions) (*DatasetReport, error) {
	c := &datasetCheck{lake: l, options: o, report: &DatasetReport{Out: o.File}}
	if c.options.Progress == nil {
		c.options.Progress = func(int, int) {}
	}
	if err := json.Unmarshal(card, &c.card); err != nil {
		return nil, fmt.Errorf("read the card: %w", err)
	}
	if c.card.Version != 1 || len(c.card.Tables) == 0 {
		return nil, fmt.Errorf("the card is of a loam that kept less in it: build the training set anew")
	}
	var err error
	if c.project, err = feature.Recall(today, c.card.Definitions, o.Check); err != nil {
		return nil, err
	}
	if c.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: o.MemoryBytes, TempDir: o.TempDir}); err != nil {
		return nil, err
	}
	defer c.db.Close()
	if err := c.plan(ctx); err != nil {
		return nil, err
	}
	if err := c.size(ctx); err != nil {
		return nil, err
	}
	if err := c.labelsFile(ctx); err != nil {
		return nil, err
	}
	if err := c.choice(ctx); err != nil {
		return nil, err
	}
	if _, ok := c.splitColumns(); !ok {
		c.report.Skipped = append(c.report.Skipped, feature.SplitColumn)
	}
	rows := c.sample()
	for done := 0; done < len(rows); done += sampleRowsMax {
		c.options.Progress(done, len(rows))
		if err := c.rows(ctx, rows[done:min(done+sampleRowsMax, len(rows))]); err != nil {
			return nil, err
		}
	}
	if err := c.wholeSet(ctx); err != nil {
		return nil, err
	}
	if err := c.wholeFile(ctx); err != nil {
		return nil, err
	}
	c.options.Progress(len(rows), len(rows))
	return c.report, nil
}

// plan finds the views of the features and the streams of the outcomes, and opens their logs as they were.
func (c *datasetCheck) plan(ctx context.Context) error {
	if err := c.planOutcomes(ctx); err != nil {
		return err
	}
	for i, text := range c.card.Request.Features {
		ref, err := feature.ParseRef(text)
		if err != nil {
			return fmt.Errorf("read the card: %w", err)
		}
		view := c.project.View(ref.View)
		if view == nil || !c.recomputable(view) {
			c.report.Skipped = append(c.report.Skipped, ref.Column())
			continue
		}
		typ, err := feature.ParseType(c.card.Features[i].Type)
		if err != nil {
			return fmt.Errorf("read the card: type of %s: %w", ref.Column(), err)
		}
		f := featureCheck{name: ref.Feature, column: ref.Column(), typ: typ}
		if view.OnDemand != nil {
			err = c.demand(ctx, view, f)
		} else {
			err = c.feature(ctx, view, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// feature adds a feature to the check of its view.
func (c *datasetCheck) feature(ctx context.Context, view *feature.View, f featureCheck) error {
	at := slices.IndexFunc(c.views, func(v *viewCheck) bool { return v.view.Name == view.Name })
	if at < 0 {
		v := &viewCheck{datasetCheck: c, view: view, stream: c.project.Stream(view.Stream), joinKeys: c.project.Entity(view.Entity).JoinKeys}
		reading, err := c.lake.ReadAt(ctx, v.stream, c.card.Tables)
		if err != nil {
			return err
		}
		v.stream = reading.Stream // with the columns of former definitions
		v.log, v.beyond = reading.Log, c.card.Tables[reading.Log.Name()].Beyond
		at, c.views = len(c.views), append(c.views, v)
	}
	v := c.views[at]
	if i := slices.IndexFunc(v.features, func(o featureCheck) bool { return o.name == f.name }); i < 0 {
		v.features = append(v.features, f)
	} else if f.column != "" {
		v.features[i].column = f.column // it is asked for besides being an input
	}
	return nil
}

// recomputable reports whether the slow path knows what the features of a view are: states or windows, or made of such.
func (c *datasetCheck) recomputable(v *feature.View) bool {
	if v.OnDemand != nil {
		return !slices.ContainsFunc(v.OnDemand.Inputs, func(in feature.Ref) bool {
			of := c.project.View(in.View)
			return of == nil || of.OnDemand != nil || !c.recomputable(of)
		})
	}
	s := c.project.Stream(v.Stream)
	return s != nil && c.project.Entity(v.Entity) != nil
}

// labelsAt is where the labels are, as a relation of DuckDB.
type labelsAt struct {
	scan    sql.Fragment // "" where they can't be compared
	changed bool         // since the training set was made of them
	taken   []int64      // of each row the number of its label, from 0; nil where they are the same
}

// labelsFile finds the labels, and holds their file against the card.
func (c *datasetCheck) labelsFile(ctx context.Context) error {
	path := c.card.Labels.Path
	if path == "" || path == "-" {
		c.report.Notes = append(c.report.Notes, "the labels came from no file, so they weren't compared")
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.report.Notes = append(c.report.Notes, fmt.Sprintf("the labels are gone from %s, so they weren't compared", path))
		return nil
	} else if err != nil {
		return fmt.Errorf("open the labels: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("read the labels %s: %w", path, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != c.card.Labels.SHA256 {
		c.labelsAt.changed = true
		c.report.add(DatasetFinding{Text: "the labels " + path + " have changed: their sha256", Want: c.card.Labels.SHA256, Got: got})
	}
	args := sql.Args{"path": sql.Path(path)}
	switch lower := strings.ToLower(path); {
	case strings.HasSuffix(lower, ".parquet"):
		if c.labelsAt.scan, err = c.db.ParquetScan(ctx, path, "verify_labels"); err != nil {
			return fmt.Errorf("read the labels %s: %w", path, err)
		}
	case strings.HasSuffix(lower, ".csv"), strings.HasSuffix(lower, ".csv.gz"):
		if args["types"], err = c.csvTexts(ctx); err != nil {
			return err
		}
		c.labelsAt.scan = sql.Fragment(sql.Render("read_csv({path}, header = true, sample_size = -1, hive_partitioning = false{types})", args))
	default:
		c.report.Notes = append(c.report.Notes, fmt.Sprintf("the labels %s are neither Parquet nor CSV, so they weren't compared", path))
	}
	return nil
}

// size holds the number of rows of the file against the card.
func (c *datasetCheck) size(ctx context.Context) error {
	if !strings.HasSuffix(strings.ToLower(c.options.File), ".parquet") {
		return fmt.Errorf("the training set %s is no Parquet file, the one kind that is verified", c.options.File)
	}
	err := c.db.QueryRow(ctx, "SELECT count(*) FROM "+string(c.set()), nil, &c.report.Rows)
	if err == nil {
		c.columns, err = c.db.Columns(ctx, "SELECT * EXCLUDE (file_row_number) FROM "+string(c.set()))
	}
	if err != nil {
		return fmt.Errorf("read the training set: %w", err)
	}
	if c.report.Rows != c.card.Rows {
		c.report.add(DatasetFinding{Text: "the number of rows", Want: fmt.Sprint(c.card.Rows), Got: fmt.Sprint(c.report.Rows)})
	}
	return nil
}

// set is the training set, whose column file_row_number is the number of the row.
func (c *datasetCheck) set() sql.Fragment {
	return sql.Fragment(sql.Render("read_parquet({file}, file_row_number = true, hive_partitioning = false)", sql.Args{"file": sql.Path(c.options.File)}))
}

// typeOf is the type of a column of the training set, "" where it has none of that name.
func (c *datasetCheck) typeOf(name string) string { return typeOf(c.columns, name) }

func typeOf(columns []sql.Column, name string) string {
	if i := slices.IndexFunc(columns, func(o sql.Column) bool { return o.Name == name }); i >= 0 {
		return columns[i].Type
	}
	return ""
}

// sampleRowsMax bounds the rows that are recomputed at once, and with them the memory it takes.
const sampleRowsMax = 1 << 16

// sample chooses rows: one in each of as many equal parts of the file, so that none of it is left out.
func (c *datasetCheck) sample() []int64 {
	n := int64(c.options.Rows)
	if c.options.All || n > c.report.Rows {
		n = c.report.Rows
	}
	r := rand.New(rand.NewPCG(c.options.Seed, 6))
	rows := make([]int64, n)
	for i := range rows {
		from, to := int64(i)*c.report.Rows/n, (int64(i)+1)*c.report.Rows/n
		rows[i] = from + r.Int64N(max(to-from, 1))
	}
	return rows
}

// rows recomputes some rows, and compares.
func (c *datasetCheck) rows(ctx context.Context, rows []int64) error {
	if err := c.pick(ctx, rows); err != nil {
		return err
	}
	if err := c.passedThrough(ctx); err != nil {
		return err
	}
	for _, v := range c.views {
		labels, err := v.labels(ctx)
		if err != nil {
			return fmt.Errorf("read the rows of %s: %w", c.options.File, err)
		}
		changes, err := v.read(ctx, labels)
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", v.stream.Name, err)
		}
		recompute := v.attributes
		switch {
		case v.view.OverHistory(v.stream):
			recompute = v.histories
		case v.view.Windowed():
			recompute = v.windows
		}
		if v.want, err = recompute(ctx, labels, changes); err != nil {
			return fmt.Errorf("recompute feature view %s: %w", v.view.Name, err)
		}
		c.compare(labels, v.features, v.want, v.keyColumns())
	}
	for _, d := range c.demands {
		if err := d.check(ctx); err != nil {
			return fmt.Errorf("recompute feature view %s: %w", d.view.Name, err)
		}
	}
	for _, o := range c.outcomes {
		if err := o.check(ctx); err != nil {
			return fmt.Errorf("recompute outcome %s: %w", o.label.Name, err)
		}
	}
	if err := c.parts(ctx); err != nil {
		return fmt.Errorf("recompute the split: %w", err)
	}
	c.report.Checked += int64(len(rows))
	return nil
}

// labelColumn is the column of the labels that holds a join key.
func (c *datasetCheck) labelColumn(joinKey string) string {
	if name, ok := c.card.Request.JoinKeys[joinKey]; ok {
		return name
	}
	return joinKey
}

// wanted is what a value should be, and how far from it a double may be.
type wanted struct {
	value any
	near  float64
}

// compare holds values against those of the file, but for those that are inputs alone.
func (c *datasetCheck) compare(labels []*label, features []featureCheck, want [][]wanted, keys []string) {
	for i, l := range labels {
		for n, f := range features {
			if f.column == "" {
				continue
			}
			c.report.Cells++
			if w := want[i][n]; !sameValue(w.value, l.got[n], w.near) {
				row := l.row
				c.report.add(DatasetFinding{Row: &row, Keys: keys, Column: f.column, Want: showValue(w.value, f.typ), Got: showValue(l.got[n], f.typ)})
			}
		}
	}
}
