package pit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
)

// CardVersion is the version of the card's format, which is frozen.
const CardVersion = 1

// Card says what a training set is made of. It stands as JSON beside the Parquet file and in <ns>.datasets. Times are
// RFC 3339 in UTC.
type Card struct {
	Version int `json:"version"`
	// Clock is the first thing to know of a training set.
	Clock       string               `json:"clock"`
	Name        string               `json:"name,omitempty"`
	Project     string               `json:"project"`
	CreatedAt   time.Time            `json:"created_at"`
	Request     CardRequest          `json:"request"`
	Labels      CardLabels           `json:"labels"`
	Out         string               `json:"out"`
	Rows        int64                `json:"rows"`
	Features    []CardFeature        `json:"features"`
	Definitions []feature.Definition `json:"definitions"` // of the views, and the streams they stand on
	Snapshots   map[string]int64     `json:"snapshots"`   // tables read, tagged so that they don't expire
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
	var c Card
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s is not the card of a training set: %w", path, err)
	}
	if c.Version != CardVersion {
		return nil, fmt.Errorf("card %s has version %d, and this loam reads version %d", path, c.Version, CardVersion)
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
