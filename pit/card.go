package pit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

// TagPrefix begins the tags of snapshots that training sets were made from.
const TagPrefix = "dataset-"

// CardVersion is the version of the card's format, which is frozen.
const CardVersion = 1

// Card says what a training set is made of. It stands as JSON beside the Parquet file and in <ns>.datasets. Times are
// RFC 3339 in UTC.
type Card struct {
	Version int `json:"version"`
	// Clock is the first thing to know of a training set.
	Clock     string        `json:"clock"`
	Name      string        `json:"name,omitempty"`
	Project   string        `json:"project"`
	CreatedAt time.Time     `json:"created_at"`
	Request   CardRequest   `json:"request"`
	Labels    CardLabels    `json:"labels"`
	Out       string        `json:"out"`
	Rows      int64         `json:"rows"`
	Features  []CardFeature `json:"features"`
	// Coverage says of which labels the features' coverages are; null where no label has a time.
	Coverage *CardCoverage `json:"coverage"`
	Views    []CardView    `json:"views"`
	// RowsHash is the hash of all rows over all columns but those of Unhashed; see docs/card.md.
	RowsHash    string               `json:"rows_hash"`
	Unhashed    []string             `json:"unhashed,omitempty"` // sums and averages of doubles, which depend on the order of addition
	Definitions []feature.Definition `json:"definitions"`        // of the views, and the streams they stand on
	Snapshots   map[string]int64     `json:"snapshots"`          // tables read, tagged so that they don't expire
	// Tables are all that is needed to read the same again, by the tables' full names.
	Tables map[string]lake.Pin `json:"tables"`
	// Asked is the request whole, so that the training set can be made again.
	Asked feature.DatasetRequest `json:"asked"`
	// RebuiltFrom is the training set that this one was made again from.
	RebuiltFrom string               `json:"rebuilt_from,omitempty"`
	Tag         string               `json:"tag"`
	Watermarks  map[string]time.Time `json:"watermarks"` // by stream
	Watermark   *time.Time           `json:"watermark"`  // the least of them; null where a stream is empty
	Audit       CardAudit            `json:"audit"`
	Warnings    []string             `json:"warnings,omitempty"`
	Loam        string               `json:"loam_version"`
	DuckDB      string               `json:"duckdb_version"`
	WallMS      int64                `json:"wall_ms"`
}

// CardRequest is what was asked for.
type CardRequest struct {
	Service         string     `json:"service,omitempty"`
	Features        []string   `json:"features"`
	TimeColumn      string     `json:"time_column"`
	AsOf            string     `json:"as_of"`
	KnownAt         *time.Time `json:"known_at,omitempty"`
	AtLabelTime     string     `json:"at_label_time"`
	RequireComplete bool       `json:"require_complete"`
	// JoinKeys are the label columns of join keys that have other names.
	JoinKeys    map[string]string `json:"join_keys,omitempty"`
	Outcomes    []string          `json:"outcomes,omitempty"` // name=stream:within:when
	Sample      string            `json:"sample,omitempty"`
	Split       string            `json:"split,omitempty"`
	Seed        int64             `json:"seed,omitempty"`
	PartitionBy []string          `json:"partition_by,omitempty"`
}

// CardLabels is what the labels were.
type CardLabels struct {
	// Kind is file, stream, table or sql. The hash is of the bytes of a file or stream, and of the text of the others' rows: of
	// each a JSON array of its values as DuckDB writes them as text, and a line feed.
	Kind   string `json:"kind"`
	Path   string `json:"path"` // "" for a table and sql
	Table  string `json:"table,omitempty"`
	SQL    string `json:"sql,omitempty"`
	SHA256 string `json:"sha256"`
	Rows   int64  `json:"rows"` // of the training set
	// Read are the labels that were there; LeftOut of them have outcomes that can't be known yet, and Unsampled are those that the
	// sample leaves.
	Read      int64         `json:"read"`
	LeftOut   int64         `json:"left_out"`
	Unsampled int64         `json:"unsampled"`
	Outcomes  []CardOutcome `json:"outcomes,omitempty"`
	Parts     []CardPart    `json:"parts,omitempty"` // of the split, in their order, those without a label left out
	// AfterWatermark is the share of labels that are later than the watermark: what they see may still change.
	AfterWatermark float64 `json:"after_watermark"`
	// ClocksDiffer is the share of labels for which the two clocks could give different features.
	ClocksDiffer float64 `json:"clocks_differ"`
}

// CardOutcome is a label column that was made of what came true after the labels' times: it looks into the future on
// purpose, and the audit is not of it.
type CardOutcome struct {
	Column        string     `json:"column"`
	Stream        string     `json:"stream"`
	When          string     `json:"when"`
	Within        string     `json:"within"`
	CompleteUntil *time.Time `json:"complete_until"` // a label whose horizon ends later is left out; null where the stream is empty
	LeftOut       int64      `json:"left_out"`
	True          int64      `json:"true"` // labels for which it came true
}

// CardPart is a part of the split; "" is that of labels without the time or key that tells.
type CardPart struct {
	Part string `json:"part"`
	Rows int64  `json:"rows"`
}

// String names the file, the table or the query that gave the labels.
func (l CardLabels) String() string {
	switch {
	case l.Table != "":
		return "table " + l.Table
	case l.SQL != "":
		return "a query"
	case l.Path == feature.Standard:
		return "standard input"
	}
	return l.Path
}

// CardFeature is a column of the training set.
type CardFeature struct {
	Column   string  `json:"column"`
	Type     string  `json:"type"`
	NullRate float64 `json:"null_rate"`
	// Coverage is the share of values that aren't null in each of the card's spans of time; null where a span has no label.
	Coverage []*float64 `json:"coverage"`
	// Labels for which the value is null though there was something to make it of: a sum that its type can't hold, more distinct
	// values than are counted, an error of the expression.
	Overflows int64 `json:"overflows,omitempty"`
	Uncounted int64 `json:"uncounted,omitempty"`
	Errors    int64 `json:"errors,omitempty"`
}

// CardCoverage are equal spans of time between the first and the last label.
type CardCoverage struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Labels []int64   `json:"labels"` // in each span
}

// CardView is what is known of a view's features as a whole.
type CardView struct {
	View string `json:"view"`
	// ClocksDiffer is the share of labels for which the two clocks could give different features of this view.
	ClocksDiffer float64 `json:"clocks_differ"`
}

// CardAudit is the leakage audit: the greatest of feature time minus label time, the feature's time being ingested_at on
// the clock served and event_time on the clock event. It is never above 0; null where no label uses a feature.
type CardAudit struct {
	FeatureTime string `json:"feature_time"`
	MaxUS       *int64 `json:"max_us"`
}

// CardPath is where the card of a training set stands.
func CardPath(out string) string {
	return strings.TrimSuffix(strings.TrimSuffix(out, ".gz"), filepath.Ext(strings.TrimSuffix(out, ".gz"))) + ".card.json"
}

// cardPath is where the card of the training set in the making will stand, "" where it is kept in the lake alone.
func (b *build) cardPath() string { return cardFile(&b.request) }

// cardFile is where the card of the training set of a request stands, "" where it is kept in the lake alone.
func cardFile(r *feature.DatasetRequest) string {
	switch {
	case r.Card != "":
		return r.Card
	case r.Out == feature.Standard:
		return ""
	case r.Format() == feature.PartitionOut:
		return r.Out + ".card.json"
	}
	return CardPath(r.Out)
}

// cardRequest puts what was asked for beyond features and clock into the card.
func (b *build) cardRequest() {
	r := &b.card.Request
	r.JoinKeys, r.PartitionBy, r.Seed = b.request.JoinKeys, b.request.PartitionBy, b.request.Seed
	for _, o := range b.request.Outcomes {
		r.Outcomes = append(r.Outcomes, o.String())
	}
	if b.request.Sample.Given() {
		r.Sample = b.request.Sample.String()
	}
	if b.request.Split.Given() {
		r.Split = b.request.Split.String()
	}
}

// ReadCard reads a card.
func ReadCard(path string) (*Card, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the card: %w", err)
	}
	return ParseCard(path, text)
}

// ParseCard reads the text of a card; place says where it stood.
func ParseCard(place string, text []byte) (*Card, error) {
	var c Card
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s is not the card of a training set: %w", place, err)
	}
	if c.Version != CardVersion {
		return nil, fmt.Errorf("card %s has version %d, and this loam reads version %d", place, c.Version, CardVersion)
	}
	return &c, nil
}

// keepCard puts the card into its file and the lake, or nowhere.
func (b *build) keepCard(ctx context.Context, start time.Time) error {
	text, err := json.MarshalIndent(b.card, "", "  ")
	if err != nil {
		return fmt.Errorf("write the card: %w", err)
	}
	path, part := b.cardPath(), b.cardPart()
	if path != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write the card: %w", err)
		}
		defer os.Remove(part) // it is there only where something failed
		if err := os.WriteFile(part, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("write the card: %w", err)
		}
	}
	// Last what replaces a card that is there.
	if err := b.lake.AppendCard(ctx, b.request.Name, b.request.Out, string(text), start.UnixMicro()); err != nil {
		return err
	}
	if path == "" {
		return nil
	}
	if was, err := ReadCard(path); err == nil && was.Project == b.card.Project && was.Tag != b.card.Tag {
		b.replaced = was
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("write the card: %w", err)
	}
	return nil
}

// cardPart is where the card's file is written first, "" where there is none.
func (b *build) cardPart() string {
	path := b.cardPath()
	if path == "" {
		return ""
	}
	return path + b.card.Tag[len(b.card.Tag)-8:] + ".part"
}

// dropCard removes the card's file.
func (b *build) dropCard() error {
	if path := b.cardPath(); path != "" {
		return os.Remove(path)
	}
	return nil
}
