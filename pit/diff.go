package pit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// CardDiff is in what two training sets differ. What is the same in both is left out.
type CardDiff struct {
	Request     []Difference     `json:"request,omitempty"`
	Labels      []Difference     `json:"labels,omitempty"`
	Definitions []DefinitionDiff `json:"definitions,omitempty"`
	Snapshots   []Difference     `json:"snapshots,omitempty"`
	Watermarks  []Difference     `json:"watermarks,omitempty"`
	Features    []Difference     `json:"features,omitempty"`   // that only one has, or that have other types
	NullRates   []RateDifference `json:"null_rates,omitempty"` // of features that both have
	Rows        []RowsDifference `json:"rows,omitempty"`       // of features that both have; see DiffRows
	RowsUnknown string           `json:"rows_unknown,omitempty"`
}

// Difference is something that two training sets say otherwise; "" where one doesn't say it.
type Difference struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// DefinitionDiff is a definition that two training sets don't share.
type DefinitionDiff struct {
	Kind  feature.DefinitionKind `json:"kind"`
	Name  string                 `json:"name"`
	Lines []string               `json:"lines"` // "- " what A has, "+ " what B has
}

// RateDifference is a share that is another.
type RateDifference struct {
	Column string  `json:"column"`
	A      float64 `json:"a"`
	B      float64 `json:"b"`
}

// RowsDifference is the number of rows in which a feature has another value.
type RowsDifference struct {
	Column string `json:"column"`
	Rows   int64  `json:"rows"`
}

// Same reports whether nothing differs.
func (d *CardDiff) Same() bool {
	return len(d.Request)+len(d.Labels)+len(d.Definitions)+len(d.Snapshots)+len(d.Watermarks)+len(d.Features)+len(d.NullRates)+len(d.Rows) == 0
}

// Diff tells in what two cards differ.
func Diff(a, b *Card) (*CardDiff, error) {
	d := &CardDiff{Definitions: diffDefinitions(a.Definitions, b.Definitions)}
	asked := [2]map[string]string{}
	for i, c := range []*Card{a, b} {
		request := c.Asked
		request.Name, request.Out, request.Features = "", "", nil
		text, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(text, &members); err != nil {
			return nil, fmt.Errorf("read a request: %w", err)
		}
		asked[i] = map[string]string{}
		for name, value := range members {
			asked[i][name] = strings.Trim(string(value), `"`)
		}
	}
	d.Request = diffTexts(asked[0], asked[1])
	labels := func(c *Card) map[string]string {
		return map[string]string{"sha256": c.Labels.SHA256, "rows": fmt.Sprint(c.Labels.Rows)}
	}
	d.Labels = diffTexts(labels(a), labels(b))
	snapshots := func(c *Card) map[string]string {
		texts := map[string]string{}
		for table, id := range c.Snapshots {
			texts[table] = fmt.Sprint(id)
		}
		return texts
	}
	d.Snapshots = diffTexts(snapshots(a), snapshots(b))
	watermarks := func(c *Card) map[string]string {
		texts := map[string]string{}
		for stream, at := range c.Watermarks {
			texts[stream] = at.Format(time.RFC3339Nano)
		}
		return texts
	}
	d.Watermarks = diffTexts(watermarks(a), watermarks(b))
	types := func(c *Card) map[string]string {
		texts := map[string]string{}
		for _, f := range c.Features {
			texts[f.Column] = f.Type
		}
		return texts
	}
	d.Features = diffTexts(types(a), types(b))
	for _, f := range a.Features {
		i := slices.IndexFunc(b.Features, func(o CardFeature) bool { return o.Column == f.Column })
		if i >= 0 && math.Abs(b.Features[i].NullRate-f.NullRate) > 1e-9 {
			d.NullRates = append(d.NullRates, RateDifference{f.Column, f.NullRate, b.Features[i].NullRate})
		}
	}
	return d, nil
}

// diffTexts gives what two maps say otherwise, by name.
func diffTexts(a, b map[string]string) []Difference {
	names := maps.Clone(a)
	maps.Copy(names, b)
	var all []Difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a[name] != b[name] {
			all = append(all, Difference{name, a[name], b[name]})
		}
	}
	return all
}

func diffDefinitions(a, b []feature.Definition) []DefinitionDiff {
	find := func(list []feature.Definition, d feature.Definition) string {
		i := slices.IndexFunc(list, func(o feature.Definition) bool { return o.Kind == d.Kind && o.Name == d.Name })
		if i < 0 {
			return ""
		}
		return list[i].Text
	}
	var all []DefinitionDiff
	done := map[string]bool{}
	for _, d := range slices.Concat(a, b) {
		key := string(d.Kind) + " " + d.Name
		if was, now := find(a, d), find(b, d); was != now && !done[key] {
			all = append(all, DefinitionDiff{d.Kind, d.Name, diffLines(jsonLines(was), jsonLines(now))})
		}
		done[key] = true
	}
	return all
}

// jsonLines is JSON with a line a member.
func jsonLines(text string) []string {
	var out bytes.Buffer
	if text == "" || json.Indent(&out, []byte(text), "", "  ") != nil {
		return nil
	}
	return strings.Split(out.String(), "\n")
}

// diffLines gives the lines that only one of two texts has, in their order: those of a longest common subsequence are left
// out.
func diffLines(a, b []string) []string {
	common := make([][]int, len(a)+1) // length of what a[i:] and b[j:] have in common
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if common[i][j] = max(common[i+1][j], common[i][j+1]); a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			}
		}
	}
	var lines []string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, "- "+strings.TrimSpace(a[i]))
			i++
		default:
			lines = append(lines, "+ "+strings.TrimSpace(b[j]))
			j++
		}
	}
	return lines
}

// DiffRows counts, for each feature that both have, the rows in which two training sets of the same labels have other values:
// the Parquet files at these paths, row by row.
func DiffRows(ctx context.Context, a, b *Card, pathA, pathB string) ([]RowsDifference, error) {
	if a.Labels.SHA256 != b.Labels.SHA256 || a.Rows != b.Rows {
		return nil, fmt.Errorf("the labels are others, so their rows can't be compared")
	}
	var columns []string
	for _, f := range a.Features {
		if slices.ContainsFunc(b.Features, func(o CardFeature) bool { return o.Column == f.Column && o.Type == f.Type }) {
			columns = append(columns, f.Column)
		}
	}
	if len(columns) == 0 {
		return nil, nil
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	counts := make([]sql.Fragment, len(columns))
	n := make([]int64, len(columns))
	dst := make([]any, len(columns))
	for i, c := range columns {
		counts[i] = sql.Fragment(sql.Render("count(*) FILTER (a.{c} IS DISTINCT FROM b.{c})", sql.Args{"c": sql.Ident(c)}))
		dst[i] = &n[i]
	}
	err = db.QueryRow(ctx, sql.Render("SELECT {counts} FROM read_parquet({a}, file_row_number = true, hive_partitioning = false) a JOIN read_parquet({b}, file_row_number = true, hive_partitioning = false) b USING (file_row_number)",
		sql.Args{"counts": sql.Join(", ", counts), "a": sql.Path(pathA), "b": sql.Path(pathB)}), nil, dst...)
	if err != nil {
		return nil, fmt.Errorf("compare the rows of %s and %s: %w", pathA, pathB, err)
	}
	var all []RowsDifference
	for i, c := range columns {
		if n[i] > 0 {
			all = append(all, RowsDifference{c, n[i]})
		}
	}
	return all, nil
}
