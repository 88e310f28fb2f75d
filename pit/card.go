package pit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
)

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
}

// CardLabels is what the labels were.
type CardLabels struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Rows   int64  `json:"rows"`
	// AfterWatermark is the share of labels that are later than the watermark: what they see may still change.
	AfterWatermark float64 `json:"after_watermark"`
	// ClocksDiffer is the share of labels for which the two clocks could give different features.
	ClocksDiffer float64 `json:"clocks_differ"`
}

// CardFeature is a column of the training set.
type CardFeature struct {
	Column   string  `json:"column"`
	Type     string  `json:"type"`
	NullRate float64 `json:"null_rate"`
	// Coverage is the share of values that aren't null in each of the card's spans of time; null where a span has no label.
	Coverage []*float64 `json:"coverage"`
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
	return strings.TrimSuffix(out, filepath.Ext(out)) + ".card.json"
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

func (c *Card) write(path string) ([]byte, error) {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the card: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("write the card: %w", err)
	}
	return text, nil
}
